// Pages of the KV cache, PAGE_TOKENS columns each (core/worker/kernels/kv_pages.py). CACHE_BITS: of a key's or value's
// elements. 16: as the model computes them. 8: integers from -127 to 127, times a scale of each head's column.

#if CACHE_BITS == 8
typedef signed char kv_t;
#else
typedef u16 kv_t;
#endif

struct KvPages {
    kv_t *keys, *values;
    u16 *key_scales, *value_scales;  // [pages][kv_heads][PAGE_TOKENS]; null with 16 bit.
    const int* table;                // Of each slot, table_row pages.
    i64 page_size, head_size;
    int table_row, kv_heads;

    // The pages of a slot, in order.
    __device__ __forceinline__ const int* of(i64 slot) const { return table + slot * table_row; }
    // The offset of a head's column in a page, of heads of `dim`.
    __device__ __forceinline__ i64 offset(int page, int head, int column, int dim) const {
        return page * page_size + head * head_size + column % PAGE_TOKENS * dim;
    }
    // The offset of its scale.
    __device__ __forceinline__ i64 scale(int page, int head, int column) const {
        return ((i64)page * kv_heads + head) * PAGE_TOKENS + column % PAGE_TOKENS;
    }
};

// Weights of values are multiplied by this beside the values' scales, which half precision has few small numbers for; the
// sums are divided by it. The largest finite scale times this is finite.
#define SCALE_UP 64.0f

// The largest of 8 values and `largest`.
__device__ __forceinline__ float largest_of(uint4 of, float largest) {
    float values[8];
    unpack8(of, values);
#pragma unroll
    for (int i = 0; i < 8; i++) largest = fmaxf(largest, values[i] < 0.0f ? -values[i] : values[i]);
    return largest;
}

// The scale of a head whose largest value is `largest`; what its values are multiplied by to become integers.
__device__ __forceinline__ u16 scale_of(float largest) { return to_half(largest / 127.0f); }
__device__ __forceinline__ float inverse_scale(u16 scale) {
    return to_float(scale) == 0.0f ? 0.0f : 1.0f / to_float(scale);
}

// 8 values as integers, a byte each.
__device__ __forceinline__ uint2 quantize_8(uint4 of, float inverse) {
    float values[8];
    unpack8(of, values);
    u32 words[2] = {0, 0};
#pragma unroll
    for (int i = 0; i < 8; i++) {
        const int one = min(max((int)rintf(values[i] * inverse), -127), 127);
        words[i / 4] |= (u32)(one & 255) << i % 4 * 8;
    }
    uint2 bytes;
    bytes.x = words[0], bytes.y = words[1];
    return bytes;
}

// Two of four integers, the first or the last, in half precision, which has all of them.
#if __CUDA_ARCH__ >= 800 && BF16
// (128 + the last seven bits) - (128, and 128 more where the first bit is 1).
__device__ __forceinline__ u32 two_integers(u32 bytes, bool is_last) {
    const u32 pair = __byte_perm(bytes, 0x43434343u, is_last ? 0x4342 : 0x4140);
    u32 r;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(r) : "r"(pair & 0xff80ff80u), "r"(0xbf80bf80u), "r"(pair & 0xff7fff7fu));
    return r;
}
#elif __CUDA_ARCH__ >= 800
// The last bits of 1024 + n are n, here the integer and 128 more.
__device__ __forceinline__ u32 two_integers(u32 bytes, bool is_last) {
    const u32 pair = __byte_perm(bytes ^ 0x80808080u, 0x64646464u, is_last ? 0x4342 : 0x4140);
    u32 r;
    asm("add.rn.f16x2 %0, %1, %2;" : "=r"(r) : "r"(pair), "r"(0xe480e480u));
    return r;
}
#else
__device__ __forceinline__ u32 two_integers(u32 bytes, bool is_last) {
    const u32 pair = is_last ? bytes >> 16 : bytes;
    return pack((float)(signed char)pair, (float)(signed char)(pair >> 8));
}
#endif
__device__ __forceinline__ uint4 integers_8(uint2 bytes) {
    return make_uint4(two_integers(bytes.x, false), two_integers(bytes.x, true), two_integers(bytes.y, false),
                      two_integers(bytes.y, true));
}
