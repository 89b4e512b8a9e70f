// Rows as wgmma takes them from shared memory (input_offset in common.cuh), and wgmma itself, which only compute capability
// 9.0 has. TILE_ROWS: how many rows a tile has, 32, 64 or 128.

#define X_TILE (TILE_ROWS * 64)

__device__ __forceinline__ i64 swizzled_offset(int row, int place, int blocks) {
    return input_offset(row, place, blocks * 64, TILE_ROWS);
}
// Store 8 inputs of a row, each where `inverse_permutation` says, if given.
__device__ __forceinline__ void store_swizzled_8(uint4 values, int row, int at, const int* inverse_permutation,
                                                 int blocks, u16* out) {
    const u32 words[4] = {values.x, values.y, values.z, values.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        if (inverse_permutation) {
            out[swizzled_offset(row, inverse_permutation[at + i * 2], blocks)] = (u16)words[i];
            out[swizzled_offset(row, inverse_permutation[at + i * 2 + 1], blocks)] = (u16)(words[i] >> 16);
        } else {
            *(u32*)(out + swizzled_offset(row, at + i * 2, blocks)) = words[i];
        }
    }
}

// Where the pairs `i` (0 to 3) of four eights lie side by side, of 32 inputs of a row, the `half`th.
__device__ __forceinline__ uint4* swizzled_pairs(uint4* out, int row, int half, int i, int blocks) {
    return out + ((i64)(row / TILE_ROWS) * blocks + half / 2) * (X_TILE / 8) + row % TILE_ROWS * 8 +
           ((half % 2 * 4 + i) ^ row % 8);
}
// The `at`th 16 bytes of a swizzled row: pairs of four eights of `from`, which has the row in order.
__device__ __forceinline__ void swizzle_pairs(const u16* from, int row, int at, int blocks, uint4* out) {
    const u32* pairs = (const u32*)from + at / 4 * 16 + at % 4;
    *swizzled_pairs(out, row, at / 4, at % 4, blocks) = make_uint4(pairs[0], pairs[4], pairs[8], pairs[12]);
}
// 32 inputs of a row, the `half`th: `from` in the model's order, permutation [inputs], or null: in order.
__device__ __forceinline__ void swizzle_32(const u16* from, const int* permutation, int row, int half, int blocks,
                                           uint4* out) {
    u32 words[4][4];
#pragma unroll
    for (int t = 0; t < 4; t++) {
        if (permutation) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const int place = half * 32 + t * 8 + i * 2;
                words[t][i] = (u32)from[permutation[place]] | (u32)from[permutation[place + 1]] << 16;
            }
        } else {
            const uint4 v = *(const uint4*)(from + half * 32 + t * 8);
            words[t][0] = v.x, words[t][1] = v.y, words[t][2] = v.z, words[t][3] = v.w;
        }
    }
#pragma unroll
    for (int i = 0; i < 4; i++)
        *swizzled_pairs(out, row, half, i, blocks) = make_uint4(words[0][i], words[1][i], words[2][i], words[3][i]);
}

// silu(gate) * up of 8 of a row's outputs, as inputs of a product: `gates` and `ups` are the row's from the input `first` on,
// a multiple of 32. Which 8, `at` says: the `at`th that follow one another where there is an `inverse_permutation`, else the
// pairs that lie side by side, so that 64 of a row are one line of memory.
__device__ __forceinline__ void store_gated_8(const u16* gates, const u16* ups, int at, int row, int first,
                                              const int* inverse_permutation, int blocks, u16* out) {
    if (inverse_permutation) {
        float g[8], u[8];
        unpack8(*(const uint4*)(gates + at * 8), g);
        unpack8(*(const uint4*)(ups + at * 8), u);
#pragma unroll
        for (int i = 0; i < 8; i++) u[i] = swiglu(g[i], u[i]);
        store_swizzled_8(pack8(u), row, first + at * 8, inverse_permutation, blocks, out);
        return;
    }
    u32 words[4];
#pragma unroll
    for (int t = 0; t < 4; t++) {
        const int place = at / 4 * 32 + t * 8 + at % 4 * 2;
        const u32 g = *(const u32*)(gates + place), u = *(const u32*)(ups + place);
        words[t] = pack(swiglu(low(g), low(u)), swiglu(high(g), high(u)));
    }
    *swizzled_pairs((uint4*)out, row, first / 32 + at / 4, at % 4, blocks) =
        make_uint4(words[0], words[1], words[2], words[3]);
}

__device__ __forceinline__ void wgmma(float* c, const u32* a, unsigned long long with) {
#if TILE_ROWS == 128
    asm volatile("wgmma.mma_async.sync.aligned.m64n128k16." WGMMA_TYPES
                 "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,"
                 "%27,%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,"
                 "%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63}, {%64,%65,%66,%67}, %68, 1, 1, 1, 0;"
                 : F16(0), F16(16), F16(32), F16(48)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(with));
#elif TILE_ROWS == 32
    asm volatile("wgmma.mma_async.sync.aligned.m64n32k16." WGMMA_TYPES
                 "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15}, {%16,%17,%18,%19}, %20, 1, 1, 1, 0;"
                 : F16(0)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(with));
#else
    asm volatile("wgmma.mma_async.sync.aligned.m64n64k16." WGMMA_TYPES
                 "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,"
                 "%27,%28,%29,%30,%31}, {%32,%33,%34,%35}, %36, 1, 1, 1, 0;"
                 : F16(0), F16(16)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(with));
#endif
}

__device__ __forceinline__ u32 times(u32 a, u32 b) {
    u32 r;
#if BF16
    asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
#else
    asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
#endif
    return r;
}
