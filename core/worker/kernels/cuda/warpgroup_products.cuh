// wgmma's other forms, as cuda/prompt_attention.cu needs them. A warpgroup's threads have 64 rows of sums, N / 2 numbers each:
// c[4i..4i+3] are elements 8i + 2t and 8i + 2t + 1 of row g of the warp's 16, then those of row g+8.

__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int MOST>
__device__ __forceinline__ void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(MOST) : "memory");
}

// Rows of 64 whose numbers are the product's outputs: 1024 bytes from 8 rows to the next 8, `slice_bytes` from 64 outputs
// to the next 64.
__device__ __forceinline__ unsigned long long turned_descriptor(const void* p, int slice_bytes) {
    return (smem_address(p) & 0x3ffff) >> 4 | (unsigned long long)(slice_bytes >> 4) << 16 | 64ull << 32 | 1ull << 62;
}

// c [64, N] = (`adds`: c +) of [64, 16] by with [N, 16], both in rows of shared memory.
template <int N>
__device__ __forceinline__ void wgmma_rows(float* c, unsigned long long of, unsigned long long with, bool adds);
// c [64, N] += a [64, 16], a lane's pairs of it, by with [16, N] (turned_descriptor).
template <int N>
__device__ __forceinline__ void wgmma_turned(float* c, const u32* a, unsigned long long with);
template <>
__device__ __forceinline__ void wgmma_rows<64>(float* c, unsigned long long of, unsigned long long with, bool adds) {
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\nwgmma.mma_async.sync.aligned.m64n64k16." WGMMA_TYPES
                 "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,"
                 "%28,%29,%30,%31}, %32, %33, p, 1, 1, 0, 0;\n}"
                 : F16(0), F16(16)
                 : "l"(of), "l"(with), "r"((int)adds));
}
template <>
__device__ __forceinline__ void wgmma_rows<128>(float* c, unsigned long long of, unsigned long long with, bool adds) {
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\nwgmma.mma_async.sync.aligned.m64n128k16." WGMMA_TYPES
                 "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,"
                 "%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,"
                 "%54,%55,%56,%57,%58,%59,%60,%61,%62,%63}, %64, %65, p, 1, 1, 0, 0;\n}"
                 : F16(0), F16(16), F16(32), F16(48)
                 : "l"(of), "l"(with), "r"((int)adds));
}
template <>
__device__ __forceinline__ void wgmma_turned<64>(float* c, const u32* a, unsigned long long with) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n64k16." WGMMA_TYPES
                 "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,"
                 "%28,%29,%30,%31}, {%32,%33,%34,%35}, %36, 1, 1, 1, 1;"
                 : F16(0), F16(16)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(with));
}
template <>
__device__ __forceinline__ void wgmma_turned<128>(float* c, const u32* a, unsigned long long with) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n128k16." WGMMA_TYPES
                 "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,"
                 "%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,"
                 "%54,%55,%56,%57,%58,%59,%60,%61,%62,%63}, {%64,%65,%66,%67}, %68, 1, 1, 1, 1;"
                 : F16(0), F16(16), F16(32), F16(48)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(with));
}
