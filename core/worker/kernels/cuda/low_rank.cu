// LoRA adapters beside matrices, for rows that each have an adapter of their own, or none (low_rank.cuh). A row reads
// the columns of its own adapter alone, so what others there are changes neither its result nor its cost.

// How many values of A a thread asks for before the row is there: 8192 inputs by 256 threads.
#define EACH 4

// t [rows][parts][rank] = weight * A x: a block a value. a0, a1, a2 [columns][size]: of the matrices that share x.
// x_places: where each input lies in a row of x, null: in order. NORMED: x is RMS-normed first; at most 8192 values.
template <bool NORMED>
__device__ __forceinline__ void multiply_down(const u16* x, int x_row, int size, const int* x_places,
                                              const u16* norm_weight, float eps, float offset, const u16* a, int rank,
                                              const i64* slots, const int* places, const float* weights, float* t) {
    __shared__ float sums[16];
    __shared__ float totals[8];
    const i64 slot = slots[blockIdx.y];
    const int place = places[slot];
    pdl_trigger();
    if (place < 0) {
        // Later kernels count on this one having waited.
        pdl_wait();
        return;
    }
    a += (i64)(place * rank + blockIdx.x % rank) * size;
    uint4 early[EACH];
#pragma unroll
    for (int i = 0; i < EACH; i++) {
        const int at = (i * 256 + threadIdx.x) * 8;
        early[i] = at < size ? *(const uint4*)(a + at) : make_uint4(0, 0, 0, 0);
    }
    const float weight = weights[slot];
    RmsNorm<256, EACH * 2048> norm;
    if (NORMED) norm.read(norm_weight, size);
    pdl_wait();
    x += (i64)blockIdx.y * x_row;
    float sum = 0.0f;
    if (NORMED) {
        norm.apply(x, size, eps, offset, sums, [&](int at, uint4 done) {
            // By constant indexes, so that `early` stays in registers.
            const uint4 first = at < 2048 ? early[0] : early[1], then = at < 6144 ? early[2] : early[3];
            add_products(done, at < 4096 ? first : then, sum);
        });
    } else {
#pragma unroll
        for (int i = 0; i < EACH; i++) {
            const int at = (i * 256 + threadIdx.x) * 8;
            if (at < size) add_products(read_row_8(x, x_places, at), early[i], sum);
        }
        for (int at = (EACH * 256 + threadIdx.x) * 8; at < size; at += 2048)
            add_products(read_row_8(x, x_places, at), *(const uint4*)(a + at), sum);
    }
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0) totals[threadIdx.x / 32] = sum;
    __syncthreads();
    if (threadIdx.x) return;
    float whole = 0.0f;
#pragma unroll
    for (int i = 0; i < 8; i++) whole += totals[i];
    t[(i64)blockIdx.y * gridDim.x + blockIdx.x] = weight * whole;
}

extern "C" __global__ void __launch_bounds__(256)
    low_rank_down(const u16* x, int x_row, int size, const int* x_places, const u16* a0, const u16* a1, const u16* a2,
                  int rank, const i64* slots, const int* places, const float* weights, float* t) {
    const int part = blockIdx.x / rank;
    multiply_down<false>(x, x_row, size, x_places, nullptr, 0.0f, 0.0f, part == 0 ? a0 : part == 1 ? a1 : a2, rank,
                         slots, places, weights, t);
}

extern "C" __global__ void __launch_bounds__(256)
    low_rank_down_normed(const u16* x, int x_row, int size, const u16* norm_weight, float eps, float offset,
                         const u16* a0, const u16* a1, const u16* a2, int rank, const i64* slots, const int* places,
                         const float* weights, float* t) {
    const int part = blockIdx.x / rank;
    multiply_down<true>(x, x_row, size, nullptr, norm_weight, eps, offset, part == 0 ? a0 : part == 1 ? a1 : a2, rank,
                        slots, places, weights, t);
}

// out [rows][outputs] += B t, in place.
extern "C" __global__ void __launch_bounds__(256)
    low_rank_up(u16* out, int out_row, int outputs, const u16* b0, const u16* b1, const u16* b2, int second, int third,
                int parts, int columns, int rank, const float* t, const i64* slots, const int* places) {
    const LowRank low = {b0, b1, b2, second, third, parts, columns, rank, t, slots, places};
    const int output = blockIdx.x * 256 + threadIdx.x, row = blockIdx.y;
    pdl_trigger();
    pdl_wait();
    if (output >= outputs || low.place_of(row) < 0) return;
    u16* to = out + (i64)row * out_row + output;
    *to = to_half(low.add_to(to_float(*to), row, output));
}
