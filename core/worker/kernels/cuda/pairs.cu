// What experts need beside their products: pairs (experts.cu) sorted by expert, and the weighted sum of what a token's
// experts give. No format of matrices is in here.

// Sort `pairs` by the expert that each was given to (ids). One block of 1024 threads; at most 1024 experts.
// At each place of the sorted pairs: tokens, its row of x. positions: the place of each pair. segments: expert, first
// place, number of places (at most `most_rows`), 0. num_segments: how many there are.
extern "C" __global__ void __launch_bounds__(1024)
    sort_pairs(const i64* ids, int* tokens, int* positions, int* segments, int* num_segments, int pairs, int experts,
               int chosen, int most_rows) {
    extern __shared__ int shared_counts[];
    int *counts = shared_counts, *places = counts + 1024, *starts = places + 1024;
    const int at = threadIdx.x;
    counts[at] = 0;
    __syncthreads();
    pdl_wait();
    pdl_trigger();
    for (int pair = at; pair < pairs; pair += 1024) atomicAdd(counts + (int)ids[pair], 1);
    __syncthreads();
    // Sums over all experts before each: of pairs, and of segments.
    const int count = counts[at], num_own = (count + most_rows - 1) / most_rows;
    places[at] = count, starts[at] = num_own;
    for (int by = 1; by < experts; by *= 2) {
        __syncthreads();
        const int more = at >= by ? places[at - by] : 0, more_starts = at >= by ? starts[at - by] : 0;
        __syncthreads();
        places[at] += more, starts[at] += more_starts;
    }
    const int first = places[at] - count, start = starts[at] - num_own;
    if (at == experts - 1) *num_segments = starts[at];
    for (int i = 0; i < num_own; i++) {
        int* to = segments + (start + i) * 4;
        to[0] = at, to[1] = first + i * most_rows, to[2] = min(most_rows, count - i * most_rows), to[3] = 0;
    }
    __syncthreads();
    counts[at] = first;
    __syncthreads();
    for (int pair = at; pair < pairs; pair += 1024) {
        const int place = atomicAdd(counts + (int)ids[pair], 1);
        tokens[place] = pair / chosen, positions[pair] = place;
    }
}

// Each pair's row of x as its expert's matrix wants its inputs: out [pairs][size], a block a pair. permutations
// [experts][size]: the model's input at each position. positions: the place of each pair in `out`; null: in order.
extern "C" __global__ void __launch_bounds__(256)
    gather_rows(const u16* x, u16* out, const i64* ids, const int* permutations, const int* positions, int x_row,
                int size, int chosen) {
    pdl_wait();
    pdl_trigger();
    const int pair = blockIdx.x;
    const u16* from = x + (i64)(pair / chosen) * x_row;
    const int* permutation = permutations + ids[pair] * size;
    u16* to = out + (i64)(positions ? positions[pair] : pair) * size;
    for (int at = threadIdx.x; at < size; at += 256) to[at] = from[permutation[at]];
}

// of_pairs [pairs][size], each at its position -> out [tokens][size]: the weighted sum of a token's, and what is `added`.
// Four outputs a thread.
extern "C" __global__ void __launch_bounds__(256)
    sum_pairs(const float* of_pairs, u16* out, const float* weights, const int* positions, const u16* residual,
              const u16* shared_rows, const float* gates, int size, int chosen, int num_tokens) {
    const Added added{residual, shared_rows, gates};
    pdl_wait();
    pdl_trigger();
    const int at = blockIdx.x * 256 + threadIdx.x, token = at / (size / 4), place = at % (size / 4) * 4;
    if (token >= num_tokens) return;
    float whole[4] = {};
    for (int one = 0; one < chosen; one++) {
        const int pair = token * chosen + one;
        const float4 of_one = *(const float4*)(of_pairs + (i64)positions[pair] * size + place);
        const float by = weights[pair];
        whole[0] = __fmaf_rn(by, of_one.x, whole[0]), whole[1] = __fmaf_rn(by, of_one.y, whole[1]);
        whole[2] = __fmaf_rn(by, of_one.z, whole[2]), whole[3] = __fmaf_rn(by, of_one.w, whole[3]);
    }
    const i64 to = (i64)token * size + place;
#pragma unroll
    for (int i = 0; i < 4; i++) out[to + i] = to_half(added.to(whole[i], token, to + i));
}
