// The natural logarithm of the probability of each row's token, and the likeliest tokens with theirs. One block a row
// reads it once for its maximum and once for its sum. Every thread then holds the highest of its stripe, the places
// that are a block apart; for the next of the likeliest only stripes are read again that gave one of those before.

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

// A block has 32 warps, so that every warp's lanes take in the results of all warps.
__device__ __forceinline__ Best best_of_block(Best own, Best* room) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    for (int part = 0; part < 2; part++) {
#pragma unroll
        for (int by = 16; by; by /= 2) {
            const Best other = {__shfl_xor_sync(~0u, own.value, by), __shfl_xor_sync(~0u, own.place, by)};
            own = better(own, other);
        }
        if (part == 1) return own;
        __syncthreads();  // The last result was read.
        if (lane == 0) room[warp] = own;
        __syncthreads();
        own = room[lane];
    }
    return own;
}

__device__ __forceinline__ float sum_of_block(float own, float* room) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int by = 16; by; by /= 2) own += __shfl_xor_sync(~0u, own, by);
    if (lane == 0) room[warp] = own;
    __syncthreads();
    own = room[lane];
#pragma unroll
    for (int by = 16; by; by /= 2) own += __shfl_xor_sync(~0u, own, by);
    return own;
}

// logits [rows][size]; tokens [rows], below 0: none. told [rows][1 + 2 * max_top]: the token's own, those of the first
// num_top likeliest, from max_top + 1 on their ids.
extern "C" __global__ void __launch_bounds__(LOGPROB_THREADS)
    logprobs(const u16* logits, const i64* tokens, int* told, int size, int num_top, int max_top) {
    __shared__ Best bests[32];
    __shared__ float sums[32];
    __shared__ int stripes[MAX_TOP];
    pdl_trigger();
    pdl_wait();
    const i64 row = blockIdx.x;
    const u16* own = logits + row * size;
    int* out = told + row * (1 + 2 * max_top);
    Best highest = {0.0f, -1};
#pragma unroll 8
    for (int place = threadIdx.x; place < size; place += LOGPROB_THREADS)
        highest = better(highest, Best{to_float(own[place]), place});
    Best best = best_of_block(highest, bests);
    float sum = 0.0f;
#pragma unroll 8
    for (int place = threadIdx.x; place < size; place += LOGPROB_THREADS) sum += __expf(to_float(own[place]) - best.value);
    const float total = best.value + logf(sum_of_block(sum, sums));
    if (threadIdx.x == 0) out[0] = __float_as_int(tokens[row] < 0 ? 0.0f : to_float(own[tokens[row]]) - total);
    const int length = (size + LOGPROB_THREADS - 1) / LOGPROB_THREADS;
    int num_stripes = 0;
    for (int k = 0; k < num_top; k++) {
        if (k > 0) {
            const Best last = best;
            best = highest;
            for (int i = threadIdx.x; i < num_stripes * length; i += LOGPROB_THREADS) {
                const int place = stripes[i / length] + i % length * LOGPROB_THREADS;
                if (place >= size) continue;
                const float value = to_float(own[place]);
                const bool is_left = value < last.value || (value == last.value && place > last.place);
                if (is_left) best = better(best, Best{value, place});
            }
            best = best_of_block(best, bests);
        }
        // A stripe that is read again from now on no longer counts by its highest.
        bool is_new = best.place >= 0;
        for (int s = 0; s < num_stripes; s++) is_new &= stripes[s] != best.place % LOGPROB_THREADS;
        if (is_new && threadIdx.x == best.place % LOGPROB_THREADS) {
            stripes[num_stripes] = threadIdx.x;
            highest.place = -1;
        }
        num_stripes += is_new;
        __syncthreads();
        if (threadIdx.x == 0) {
            out[1 + k] = __float_as_int(best.value - total);
            out[1 + max_top + k] = best.place;
        }
    }
}
