// 4-bit codes as tensor cores take them: 8 of a word, 4 of two outputs each, as wgmma's and mma's A. GROUP_SIZE_32 is how many
// 32 inputs share a scale (0: all do).

// How many scales a block of 64 inputs has, and which is that of the given 32 inputs.
#define SCALES (GROUP_SIZE_32 == 1 ? 2 : 1)
__device__ __forceinline__ int scale_group_of(int half) {
    return GROUP_SIZE_32 ? half / (GROUP_SIZE_32 ? GROUP_SIZE_32 : 1) : 0;
}

// What turns the bits of codes into codes less their zero: for outputs g (even words) and g+8 (odd ones).
struct ZeroPair {
    u32 even, odd;
};
__device__ __forceinline__ ZeroPair zero_pair(float even, float odd);
__device__ __forceinline__ ZeroPair zero_pair(u32 pair) { return zero_pair(low(pair), high(pair)); }

// As they lie: in the last bits of a half they are a number already, code * 2^-24, or 2^-20 four bits higher; in those of a
// bfloat16, 128 + code. STEP_EVEN and STEP_ODD: what a code of output g is worth, and one of output g+8; OFFSET: what is added.
#if BF16
#define STEP_EVEN 1.0f
#define STEP_ODD 1.0f
#define OFFSET 128.0f
__device__ __forceinline__ void raw_codes(u32 word, u32* a) {
#pragma unroll
    for (int i = 0; i < 4; i++) a[i] = (word >> i * 4 & 0x000f000f) | 0x43004300;
}
#else
#define STEP_EVEN 5.9604644775390625e-8f
#define STEP_ODD 9.5367431640625e-7f
#define OFFSET 0.0f
__device__ __forceinline__ void raw_codes(u32 word, u32* a) {
    const u32 shifted = word >> 8;
    a[0] = word & 0x000f000f, a[1] = word & 0x00f000f0;
    a[2] = shifted & 0x000f000f, a[3] = shifted & 0x00f000f0;
}
#endif

#if BF16
__device__ __forceinline__ u32 minus(u32 bits, u32 zero) {
    u32 r;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(r) : "r"(bits), "r"(0x3f803f80u), "r"(zero));
    return r;
}
__device__ __forceinline__ ZeroPair zero_pair(float even, float odd) {
    return {splat(to_half(-OFFSET - even)), splat(to_half(-OFFSET - odd))};
}
__device__ __forceinline__ void centered_codes(u32 word, ZeroPair zero, u32* a) {
    raw_codes(word, a);
#pragma unroll
    for (int i = 0; i < 4; i++) a[i] = minus(a[i], i % 2 ? zero.odd : zero.even);
}
#else
// 1024 + code has the code in its last bits, 1024 + 16 * code four bits higher.
__device__ __forceinline__ u32 masked(u32 word, u32 mask) {
    u32 r;
    asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(r) : "r"(word), "r"(mask), "r"(0x64006400u));
    return r;
}
__device__ __forceinline__ ZeroPair zero_pair(float even, float odd) {
    return {splat(to_half(-1024.0f - even)), splat(to_half(-64.0f - odd))};
}
__device__ __forceinline__ u32 plus(u32 bits, u32 zero) {
    u32 r;
    asm("add.rn.f16x2 %0, %1, %2;" : "=r"(r) : "r"(bits), "r"(zero));
    return r;
}
__device__ __forceinline__ u32 sixteenth_plus(u32 bits, u32 zero) {
    u32 r;
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(r) : "r"(bits), "r"(0x2c002c00u), "r"(zero));
    return r;
}
__device__ __forceinline__ void centered_codes(u32 word, ZeroPair zero, u32* a) {
    const u32 shifted = word >> 8;
    a[0] = plus(masked(word, 0x000f000f), zero.even);
    a[1] = sixteenth_plus(masked(word, 0x00f000f0), zero.odd);
    a[2] = plus(masked(shifted, 0x000f000f), zero.even);
    a[3] = sixteenth_plus(masked(shifted, 0x00f000f0), zero.odd);
}
#endif
