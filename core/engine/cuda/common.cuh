// What the kernels of this folder share: half-precision arithmetic without CUDA's headers, so that NVRTC needs no files.
// BF16 chooses the type of activations: bfloat16, else float16.

typedef unsigned int u32;
typedef unsigned short u16;
typedef long long i64;

#if BF16
__device__ __forceinline__ float to_float(u16 x) { return __uint_as_float((u32)x << 16); }
__device__ __forceinline__ u16 to_half(float x) {
    u16 r;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(r) : "f"(x));
    return r;
}
#else
__device__ __forceinline__ float to_float(u16 x) {
    float r;
    asm("cvt.f32.f16 %0, %1;" : "=f"(r) : "h"(x));
    return r;
}
__device__ __forceinline__ u16 to_half(float x) {
    u16 r;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(r) : "f"(x));
    return r;
}
#endif

__device__ __forceinline__ float round_half(float x) { return to_float(to_half(x)); }
__device__ __forceinline__ float low(u32 pair) { return to_float((u16)pair); }
__device__ __forceinline__ float high(u32 pair) { return to_float((u16)(pair >> 16)); }
__device__ __forceinline__ u32 pack(float a, float b) { return (u32)to_half(a) | (u32)to_half(b) << 16; }
__device__ __forceinline__ u32 twice(u16 x) { return (u32)x | (u32)x << 16; }

__device__ __forceinline__ void unpack8(uint4 v, float* to) {
    const u32 words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        to[2 * i] = low(words[i]);
        to[2 * i + 1] = high(words[i]);
    }
}

// 1 / the root mean square of a row (arXiv 1910.07467), summed by the block's first 256 threads: in one order always.
__device__ __forceinline__ float norm_of(const u16* row, int size, float eps, float* parts) {
    float sum = 0.0f;
    if (threadIdx.x < 256) {
        for (int at = threadIdx.x * 8; at < size; at += 2048) {
            float values[8];
            unpack8(*(const uint4*)(row + at), values);
#pragma unroll
            for (int i = 0; i < 8; i++) sum += values[i] * values[i];
        }
#pragma unroll
        for (int by = 16; by; by /= 2) sum += __shfl_xor_sync(~0u, sum, by);
        if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = sum;
    }
    __syncthreads();
    sum = 0.0f;
#pragma unroll
    for (int i = 0; i < 8; i++) sum += parts[i];
    return rsqrtf(sum / size + eps);
}

// The row times `by` and `weight`, put where `places` says, if there are any.
__device__ __forceinline__ void put_normed(const u16* row, int size, float by, const u16* weight, const int* places,
                                           u16* to) {
    for (int at = threadIdx.x * 8; at < size; at += blockDim.x * 8) {
        float values[8], times[8];
        unpack8(*(const uint4*)(row + at), values);
        unpack8(*(const uint4*)(weight + at), times);
        u32 done[4];
#pragma unroll
        for (int i = 0; i < 4; i++)
            done[i] = pack(round_half(values[2 * i] * by) * times[2 * i],
                           round_half(values[2 * i + 1] * by) * times[2 * i + 1]);
        if (places) {
#pragma unroll
            for (int i = 0; i < 8; i++) to[places[at + i]] = (u16)(done[i / 2] >> i % 2 * 16);
        } else {
            *(uint4*)(to + at) = make_uint4(done[0], done[1], done[2], done[3]);
        }
    }
}

// Weights are read once: past the first cache, in whole lines.
__device__ __forceinline__ uint4 read_weights(const void* from) {
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(from));
    return v;
}

__device__ __forceinline__ uint4 read16(const void* from) {
    uint4 v;
    asm volatile("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(from)
                 : "memory");
    return v;
}

// Kernels follow one another without a gap: the next one's blocks may come while this one's still run, and wait here
// before they touch what it writes. Every kernel waits, so whatever came before the one before has ended as well.
__device__ __forceinline__ void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
__device__ __forceinline__ void let_next_come() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;");
#endif
}
