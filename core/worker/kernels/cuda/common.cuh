// What the kernels of this folder share: half-precision arithmetic without CUDA's headers, so that NVRTC needs no
// files. BF16: whether activations are bfloat16, else float16.

typedef unsigned int u32;
typedef unsigned short u16;
typedef long long i64;

#if BF16
__device__ __forceinline__ float to_float(u16 x) { return __uint_as_float((u32)x << 16); }
__device__ __forceinline__ u16 to_half(float x) {
#if __CUDA_ARCH__ >= 800
    u16 r;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(r) : "f"(x));
    return r;
#else
    const u32 bits = __float_as_uint(x);
    return x != x ? 0x7fff : (u16)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
#endif
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
__device__ __forceinline__ u32 splat(u16 x) { return (u32)x | (u32)x << 16; }

__device__ __forceinline__ void unpack8(uint4 v, float* to) {
    const u32 words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        to[2 * i] = low(words[i]);
        to[2 * i + 1] = high(words[i]);
    }
}

__device__ __forceinline__ uint4 pack8(const float* values) {
    return make_uint4(pack(values[0], values[1]), pack(values[2], values[3]), pack(values[4], values[5]),
                      pack(values[6], values[7]));
}

__device__ __forceinline__ float swiglu(float gate, float up) { return round_half(gate / (1.0f + __expf(-gate))) * up; }

__device__ __forceinline__ void add_squares(uint4 of, float& sum) {
    float values[8];
    unpack8(of, values);
#pragma unroll
    for (int i = 0; i < 8; i++) sum += values[i] * values[i];
}

__device__ __forceinline__ float warp_sum(float sum) {
#pragma unroll
    for (int by = 16; by; by /= 2) sum += __shfl_xor_sync(~0u, sum, by);
    return sum;
}

// RMSNorm of 8 values of a row: times `by`, rounded, times the weights. offset: what is added to each weight, which then
// are multiplied before anything is rounded; 0 for most models.
__device__ __forceinline__ uint4 rmsnorm_8(uint4 row, float by, uint4 weight, float offset) {
    float values[8], times[8];
    unpack8(row, values);
    unpack8(weight, times);
#pragma unroll
    for (int i = 0; i < 8; i++) {
        const float normed = values[i] * by;
        values[i] = (offset == 0.0f ? round_half(normed) : normed) * (offset + times[i]);
    }
    return pack8(values);
}

// Store 8 values of a row, each where `inverse_permutation` says, if given.
__device__ __forceinline__ void store_8(uint4 values, int at, const int* inverse_permutation, u16* to) {
    if (inverse_permutation) {
        const u32 words[4] = {values.x, values.y, values.z, values.w};
#pragma unroll
        for (int i = 0; i < 8; i++) to[inverse_permutation[at + i]] = (u16)(words[i / 2] >> i % 2 * 16);
    } else {
        *(uint4*)(to + at) = values;
    }
}

// Where input `place` of a row lies (RowLayout in core/worker/kernels/row_layout.py): in rows of `inputs`, or if there are
// `tile_rows` in tiles of so many rows of 64 inputs, K-major and swizzled by 128 bytes, as wgmma takes them. Of 8 inputs
// that lie side by side, each pair goes to another eight: a lane's words of 16 inputs are where A has them
// (core/worker/kernels/packing.py).
__device__ __forceinline__ i64 input_offset(int row, int place, int inputs, int tile_rows) {
    if (!tile_rows) return (i64)row * inputs + place;
    const int pair = place % 64 / 32 * 4 + place % 8 / 2, t = place % 32 / 8;
    return ((i64)(row / tile_rows) * (inputs / 64) + place / 64) * tile_rows * 64 + row % tile_rows * 64 +
           (pair ^ row % 8) * 8 + t * 2 + place % 2;
}

#if BF16
#define TYPES "bf16.bf16"
#define ONES 0x3f803f80u
#else
#define TYPES "f16.f16"
#define ONES 0x3c003c00u
#endif

// One tensor-core product m16n8k16: c = a · b + from.
#if __CUDA_ARCH__ >= 800
__device__ __forceinline__ void mma_from(float* c, const u32* a, u32 b0, u32 b1, const float* from) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." TYPES
                 ".f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%11,%12,%13};"
                 : "=f"(c[0]), "=f"(c[1]), "=f"(c[2]), "=f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "f"(from[0]), "f"(from[1]),
                   "f"(from[2]), "f"(from[3]));
}
#elif __CUDA_ARCH__ >= 750 && !BF16
// In two halves of the inputs.
__device__ __forceinline__ void mma_from(float* c, const u32* a, u32 b0, u32 b1, const float* from) {
    const u32 b[2] = {b0, b1};
#pragma unroll
    for (int i = 0; i < 4; i++) c[i] = from[i];
#pragma unroll
    for (int i = 0; i < 2; i++)
        asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
                     : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                     : "r"(a[2 * i]), "r"(a[2 * i + 1]), "r"(b[i]));
}
#else
// Without tensor cores: lane 4g+t sums rows g and g+8 of columns 2t and 2t+1, four inputs from each lane of a row. Inlined
// it would take minutes to compile.
__device__ __noinline__ void mma_from(float* c, const u32* a, u32 b0, u32 b1, const float* from) {
    const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    const u32 b[2] = {b0, b1};
#pragma unroll
    for (int i = 0; i < 4; i++) c[i] = from[i];
    for (int lane = 0; lane < 4; lane++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const u32 inputs = __shfl_sync(~0u, a[i], g * 4 + lane);
#pragma unroll
            for (int j = 0; j < 2; j++) {
                const u32 weights = __shfl_sync(~0u, b[i / 2], (t * 2 + j) * 4 + lane);
                float& sum = c[i % 2 * 2 + j];
                sum = __fmaf_rn(high(inputs), high(weights), __fmaf_rn(low(inputs), low(weights), sum));
            }
        }
}
#endif
__device__ __forceinline__ void mma(float* c, const u32* a, u32 b0, u32 b1) { mma_from(c, a, b0, b1, c); }

// The sums of 256 values in groups of 32, 64, 128 or 256, by a warp whose lanes hold 8 values each, in order. Every
// lane gets its own group's sum, in the same order of additions in every kernel.
__device__ __forceinline__ float scale_group_sum(uint4 values, int inputs_per_group) {
    const u32 a[4] = {values.x, values.y, values.z, values.w};
    float sums[4] = {};
    mma(sums, a, ONES, ONES);
    float sum = sums[0] + sums[2];
#pragma unroll
    for (int lanes = 4; lanes < 32; lanes *= 2)
        if (lanes * 8 < inputs_per_group) sum += __shfl_xor_sync(~0u, sum, lanes);
    return sum;
}

// The sums of a row's groups by a block of THREADS: sums[group * step].
template <int THREADS>
__device__ __forceinline__ void scale_group_sums(const u16* row, int size, int inputs_per_group, float* sums,
                                                 int step) {
    for (int base = threadIdx.x / 32 * 256; base < size; base += THREADS * 8) {
        const int at = base + threadIdx.x % 32 * 8;
        const float sum =
            scale_group_sum(at < size ? *(const uint4*)(row + at) : make_uint4(0, 0, 0, 0), inputs_per_group);
        if (at < size && at % inputs_per_group == 0) sums[(i64)(at / inputs_per_group) * step] = sum;
    }
}

// RMSNorm (arXiv 1910.07467) of a row of at most MOST values by a block of THREADS, 256 or 512. `read` takes the
// weights before the row is there; the row is read once. 512 partial sums, each of every 512th eight values, are added
// in a fixed order, so that every kernel gets the same bits. sums: 16 floats of shared memory. put(at, values): stores
// 8 results.
template <int THREADS, int MOST>
struct RmsNorm {
    static constexpr int EACH = MOST / 8 / THREADS, TURNS = 512 / THREADS;
    uint4 weights[EACH];

    __device__ __forceinline__ void read(const u16* weight, int size) {
#pragma unroll
        for (int i = 0; i < EACH; i++) {
            const int at = (i * THREADS + threadIdx.x) * 8;
            if (at < size) weights[i] = *(const uint4*)(weight + at);
        }
    }

    template <class Put>
    __device__ __forceinline__ void apply(const u16* row, int size, float eps, float offset, float* sums, Put put) const {
        uint4 values[EACH];
        float sum[TURNS] = {};
#pragma unroll
        for (int i = 0; i < EACH; i++) {
            const int at = (i * THREADS + threadIdx.x) * 8;
            values[i] = at < size ? *(const uint4*)(row + at) : make_uint4(0, 0, 0, 0);
        }
#pragma unroll
        for (int i = 0; i < EACH; i++) add_squares(values[i], sum[i % TURNS]);
#pragma unroll
        for (int turn = 0; turn < TURNS; turn++) {
            const float whole = warp_sum(sum[turn]);
            if (threadIdx.x % 32 == 0) sums[(turn * THREADS + threadIdx.x) / 32] = whole;
        }
        __syncthreads();
        float whole = 0.0f;
#pragma unroll
        for (int i = 0; i < 16; i++) whole += sums[i];
        const float by = rsqrtf(whole / size + eps);
#pragma unroll
        for (int i = 0; i < EACH; i++) {
            const int at = (i * THREADS + threadIdx.x) * 8;
            if (at < size) put(at, rmsnorm_8(values[i], by, weights[i], offset));
        }
    }
};

// Weights are read once: not through L1, in lines of 128 bytes.
__device__ __forceinline__ uint4 ld_weights_16(const void* from) {
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(from));
    return v;
}

__device__ __forceinline__ u32 smem_address(const void* p) { return (u32)__cvta_generic_to_shared(p); }

// Asynchronous copies from global into shared memory.
__device__ __forceinline__ void cp_async_16(u32 to, const void* from) {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
}
__device__ __forceinline__ void cp_async_16(void* to, const void* from) { cp_async_16(smem_address(to), from); }
// Copy 16 bytes, or zeros if there are none.
__device__ __forceinline__ void cp_async_16_zfill(bool is_there, void* to, const void* from) {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(smem_address(to)), "l"(from),
                 "r"(is_there ? 16 : 0)
                 : "memory");
}
__device__ __forceinline__ void cp_async_4(u32 to, const void* from) {
    asm volatile("cp.async.ca.shared.global.L2::128B [%0], [%1], 4;" ::"r"(to), "l"(from) : "memory");
}
__device__ __forceinline__ uint4 ld_shared_16(u32 at) {
    uint4 v;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "r"(at)
                 : "memory");
    return v;
}
__device__ __forceinline__ u32 ld_shared_4(u32 at) {
    u32 v;
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(v) : "r"(at) : "memory");
    return v;
}

__device__ __forceinline__ uint4 ld_global_16(const void* from) {
    uint4 v;
    asm volatile("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(from)
                 : "memory");
    return v;
}

// Programmatic dependent launch: the next kernel's blocks may start while this kernel's still run. Each waits here
// before it touches what other kernels write. Since every kernel waits, all earlier kernels have ended by then as well.
__device__ __forceinline__ void pdl_wait() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
__device__ __forceinline__ void pdl_trigger() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;");
#endif
}
