// The natural logarithm of the probability of each row's token, and the likeliest tokens with theirs. One block a row
// reads it once for its maximum, once for its sum, and once more for each of the likeliest: few are asked for.

struct Best {
    float value;
    int place;
};

// Of two the higher, of equals the first; a place below 0 is none.
__device__ __forceinline__ Best better(Best a, Best b) {
    if (b.place < 0) return a;
    if (a.place < 0) return b;
    if (a.value != b.value) return a.value > b.value ? a : b;
    return a.place < b.place ? a : b;
}

__device__ __forceinline__ Best best_of_block(Best own, Best* room) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int by = 16; by; by /= 2) {
        const Best other = {__shfl_xor_sync(~0u, own.value, by), __shfl_xor_sync(~0u, own.place, by)};
        own = better(own, other);
    }
    __syncthreads();  // The last result was read.
    if (lane == 0) room[warp] = own;
    __syncthreads();
    own = room[0];
    for (int w = 1; w < LOGPROB_THREADS / 32; w++) own = better(own, room[w]);
    return own;
}

__device__ __forceinline__ float sum_of_block(float own, float* room) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int by = 16; by; by /= 2) own += __shfl_xor_sync(~0u, own, by);
    if (lane == 0) room[warp] = own;
    __syncthreads();
    own = room[0];
    for (int w = 1; w < LOGPROB_THREADS / 32; w++) own += room[w];
    return own;
}

// logits [rows][size]; tokens [rows], below 0: none. chosen [rows], top_values and top_tokens [rows][max_top], of which
// the first num_top are written.
extern "C" __global__ void __launch_bounds__(LOGPROB_THREADS)
    logprobs(const u16* logits, const i64* tokens, float* chosen, float* top_values, i64* top_tokens, int size,
             int num_top, int max_top) {
    __shared__ Best bests[LOGPROB_THREADS / 32];
    __shared__ float sums[LOGPROB_THREADS / 32];
    const i64 row = blockIdx.x;
    const u16* own = logits + row * size;
    Best best = {0.0f, -1};
    for (int place = threadIdx.x; place < size; place += LOGPROB_THREADS)
        best = better(best, Best{to_float(own[place]), place});
    best = best_of_block(best, bests);
    float sum = 0.0f;
    for (int place = threadIdx.x; place < size; place += LOGPROB_THREADS) sum += __expf(to_float(own[place]) - best.value);
    const float total = best.value + logf(sum_of_block(sum, sums));
    if (threadIdx.x == 0) chosen[row] = tokens[row] < 0 ? 0.0f : to_float(own[tokens[row]]) - total;
    for (int k = 0; k < num_top; k++) {
        if (k > 0) {
            const Best last = best;
            best = {0.0f, -1};
            for (int place = threadIdx.x; place < size; place += LOGPROB_THREADS) {
                const float value = to_float(own[place]);
                const bool is_left = value < last.value || (value == last.value && place > last.place);
                if (is_left) best = better(best, Best{value, place});
            }
            best = best_of_block(best, bests);
        }
        if (threadIdx.x == 0) {
            top_values[row * max_top + k] = best.value - total;
            top_tokens[row * max_top + k] = best.place;
        }
    }
}
