// 4-bit codes as the A operands of mma and wgmma: a word has 8 codes, 4 of each of two outputs. GROUP_SIZE_32: how many
// times 32 inputs share a scale (0: all inputs do).

// How many scales 64 inputs have, and the index of the scale of the given 32 inputs.
#define SCALES (GROUP_SIZE_32 == 1 ? 2 : 1)
__device__ __forceinline__ int scale_group_of(int half) {
    return GROUP_SIZE_32 ? half / (GROUP_SIZE_32 ? GROUP_SIZE_32 : 1) : 0;
}

// What `centered_codes` adds to the bits of codes: for output g (even registers) and g+8 (odd ones).
struct ZeroPair {
    u32 even, odd;
};
__device__ __forceinline__ ZeroPair zero_pair(float even, float odd);
__device__ __forceinline__ ZeroPair zero_pair(u32 pair) { return zero_pair(low(pair), high(pair)); }

// Raw codes. The last bits of a half are a number already: code · 2^-24, or · 2^-20 four bits higher. In a bfloat16
// they are 128 + code. STEP_EVEN, STEP_ODD: the value of one code of output g, of output g+8. OFFSET: what is added to
// a code.
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
// The last bits of 1024 + code are the code; four bits higher it is 1024 + 16 · code.
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
