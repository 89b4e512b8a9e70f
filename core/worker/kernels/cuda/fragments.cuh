// Operands of tensor-core products out of shared memory, and the copies that bring them there.

// Copy 16 bytes into shared memory, or zeros; without waiting for them, where the GPU can.
__device__ __forceinline__ void copy_16_or_zeros(bool is_there, void* to, const void* from) {
#if __CUDA_ARCH__ >= 800
    cp_async_16_zfill(is_there, to, from);
#else
    *(uint4*)to = is_there ? *(const uint4*)from : make_uint4(0, 0, 0, 0);
#endif
}
// Copy 4 bytes so.
__device__ __forceinline__ void copy_4(void* to, const void* from) {
#if __CUDA_ARCH__ >= 800
    cp_async_4(smem_address(to), from);
#else
    *(u32*)to = *(const u32*)from;
#endif
}
__device__ __forceinline__ void wait_for_copies() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

// Four 8x8 matrices, whose rows lie where lanes 0 to 7, 8 to 15 and so on say: of each, lane 4g+t gets elements 2t and
// 2t+1 of row g; or, with IS_TURNED, rows 2t and 2t+1 of column g.
#if __CUDA_ARCH__ >= 750
template <bool IS_TURNED>
__device__ __forceinline__ void load_matrices(u32* to, const u16* row) {
    const u32 at = smem_address(row);
    if (IS_TURNED)
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                     : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                     : "r"(at)
                     : "memory");
    else
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                     : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                     : "r"(at)
                     : "memory");
}
#else
template <bool IS_TURNED>
__device__ __noinline__ void load_matrices(u32* to, const u16* row) {
    const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const u16* first = (const u16*)__shfl_sync(~0u, (unsigned long long)row, i * 8 + (IS_TURNED ? 2 * t : g));
        const u16* second = (const u16*)__shfl_sync(~0u, (unsigned long long)row, i * 8 + (IS_TURNED ? 2 * t + 1 : g));
        to[i] = IS_TURNED ? first[g] | (u32)second[g] << 16 : first[2 * t] | (u32)second[2 * t + 1] << 16;
    }
}
#endif
