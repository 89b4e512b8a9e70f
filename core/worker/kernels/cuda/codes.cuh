// Codes of 4 or 8 bit as the A operands of mma and wgmma. BITS: how many. GROUP_SIZE_32: how many times 32 inputs share
// a scale (0: all inputs do).
//
// Half of a word's codes are of output g, half of output g+8: of each 16 bits of it the lower and the upper BITS, and of
// 4 bit two of each. An operand has 4 registers, a pair of inputs each: even ones of output g, odd ones of output g+8.

// How many scales 64 inputs have, and the index of the scale of the given 32 inputs.
#define SCALES (GROUP_SIZE_32 == 1 ? 2 : 1)
__device__ __forceinline__ int scale_group_of(int half) {
    return GROUP_SIZE_32 ? half / (GROUP_SIZE_32 ? GROUP_SIZE_32 : 1) : 0;
}

// The zero point of all codes where none are stored.
#define MIDDLE (BITS == 4 ? 8.0f : 128.0f)
// 64 inputs of a tile are so many pieces of 512 bytes, 16 a lane.
#define PIECES (BITS / 4)
// A lane's words of one operand: the first or second 4 inputs (`second`) of the 8 that it has of 32, the lower or upper
// 32 (`half`) of the 64. piece: the one that has them.
#define OPERAND_WORDS (BITS / 4)
struct Operand {
    u32 words[OPERAND_WORDS];

    __device__ __forceinline__ Operand(const uint4& piece, int half, int second) {
#if BITS == 4
        words[0] = half ? (second ? piece.w : piece.z) : (second ? piece.y : piece.x);
#else
        words[0] = second ? piece.z : piece.x, words[1] = second ? piece.w : piece.y;
#endif
    }
};

// What `centered_codes` adds to the bits of codes: for output g (even registers) and g+8 (odd ones).
struct ZeroPair {
    u32 even, odd;
};
__device__ __forceinline__ ZeroPair zero_pair(float even, float odd);
__device__ __forceinline__ ZeroPair zero_pair(u32 pair) { return zero_pair(low(pair), high(pair)); }

#if BF16
// by · times + more, for a pair.
__device__ __forceinline__ u32 bf16_fma(u32 by, u32 times, u32 more) {
    u32 r;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(r) : "r"(by), "r"(times), "r"(more));
    return r;
}
__device__ __forceinline__ u32 plus(u32 bits, u32 zero) { return bf16_fma(bits, 0x3f803f80u, zero); }
#else
__device__ __forceinline__ u32 plus(u32 bits, u32 zero) {
    u32 r;
    asm("add.rn.f16x2 %0, %1, %2;" : "=r"(r) : "r"(bits), "r"(zero));
    return r;
}
#endif

// The bits of `word` where `mask` has them, and those of `more`, in one instruction: compilers make two of it where both
// are constants.
__device__ __forceinline__ u32 masked(u32 word, u32 mask, u32 more) {
    u32 r;
    asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(r) : "r"(word), "r"(mask), "r"(more));
    return r;
}

// `raw_codes` makes numbers of codes as fast as can be. STEP_EVEN, STEP_ODD: the value of one code
// of output g, of output g+8. OFFSET: what is added to a code.
#if BITS == 4 && BF16
// 128 + code.
#define STEP_EVEN 1.0f
#define STEP_ODD 1.0f
#define OFFSET 128.0f
__device__ __forceinline__ void raw_codes(const u32* words, u32* a) {
#pragma unroll
    for (int i = 0; i < 4; i++) a[i] = masked(words[0] >> i * 4, 0x000f000f, 0x43004300);
}
__device__ __forceinline__ ZeroPair zero_pair(float even, float odd) {
    return {splat(to_half(-OFFSET - even)), splat(to_half(-OFFSET - odd))};
}
__device__ __forceinline__ void centered_codes(const u32* words, ZeroPair zero, u32* a) {
    raw_codes(words, a);
#pragma unroll
    for (int i = 0; i < 4; i++) a[i] = plus(a[i], i % 2 ? zero.odd : zero.even);
}
#elif BITS == 4
// The last bits of a half are a number already: code · 2^-24, or · 2^-20 four bits higher.
#define STEP_EVEN 5.9604644775390625e-8f
#define STEP_ODD 9.5367431640625e-7f
#define OFFSET 0.0f
__device__ __forceinline__ void raw_codes(const u32* words, u32* a) {
    const u32 shifted = words[0] >> 8;
    a[0] = words[0] & 0x000f000f, a[1] = words[0] & 0x00f000f0;
    a[2] = shifted & 0x000f000f, a[3] = shifted & 0x00f000f0;
}
// The last bits of 1024 + code are the code; four bits higher it is 1024 + 16 · code.
__device__ __forceinline__ u32 masked(u32 word, u32 mask) { return masked(word, mask, 0x64006400u); }
__device__ __forceinline__ ZeroPair zero_pair(float even, float odd) {
    return {splat(to_half(-1024.0f - even)), splat(to_half(-64.0f - odd))};
}
__device__ __forceinline__ u32 sixteenth_plus(u32 bits, u32 zero) {
    u32 r;
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(r) : "r"(bits), "r"(0x2c002c00u), "r"(zero));
    return r;
}
__device__ __forceinline__ void centered_codes(const u32* words, ZeroPair zero, u32* a) {
    const u32 shifted = words[0] >> 8;
    a[0] = plus(masked(words[0], 0x000f000f), zero.even);
    a[1] = sixteenth_plus(masked(words[0], 0x00f000f0), zero.odd);
    a[2] = plus(masked(shifted, 0x000f000f), zero.even);
    a[3] = sixteenth_plus(masked(shifted, 0x00f000f0), zero.odd);
}
#elif BF16
// code - 128, as (128 + its last seven bits) - (128, and 128 more where its first bit is 0): a bfloat16 has eight bits,
// so both are exact, and so is what is left.
#define STEP_EVEN 1.0f
#define STEP_ODD 1.0f
#define OFFSET -128.0f
__device__ __forceinline__ u32 signed_code(u32 codes) {
    const u32 last = masked(codes, 0x007f007f, 0x43004300), first = masked(~codes, 0x00800080, 0x43004300);
    return bf16_fma(first, 0xbf80bf80u, last);
}
__device__ __forceinline__ void raw_codes(const u32* words, u32* a) {
#pragma unroll
    for (int i = 0; i < 4; i++) a[i] = signed_code(words[i / 2] >> i % 2 * 8);
}
__device__ __forceinline__ ZeroPair zero_pair(float even, float odd) {
    return {splat(to_half(-OFFSET - even)), splat(to_half(-OFFSET - odd))};
}
__device__ __forceinline__ void centered_codes(const u32* words, ZeroPair zero, u32* a) {
    raw_codes(words, a);
#if ZEROS
#pragma unroll
    for (int i = 0; i < 4; i++) a[i] = plus(a[i], i % 2 ? zero.odd : zero.even);
#endif
}
#else
// The last bits of a half are a number already: code · 2^-24.
#define STEP_EVEN 5.9604644775390625e-8f
#define STEP_ODD 5.9604644775390625e-8f
#define OFFSET 0.0f
__device__ __forceinline__ void raw_codes(const u32* words, u32* a) {
#pragma unroll
    for (int i = 0; i < 4; i++) a[i] = __byte_perm(words[i / 2], 0, i % 2 ? 0x4341 : 0x4240);
}
// The last bits of 1024 + code are the code.
__device__ __forceinline__ ZeroPair zero_pair(float even, float odd) {
    return {splat(to_half(-1024.0f - even)), splat(to_half(-1024.0f - odd))};
}
__device__ __forceinline__ void centered_codes(const u32* words, ZeroPair zero, u32* a) {
#pragma unroll
    for (int i = 0; i < 4; i++)
        a[i] = plus(__byte_perm(words[i / 2], 0x64646464, i % 2 ? 0x4341 : 0x4240), i % 2 ? zero.odd : zero.even);
}
#endif
