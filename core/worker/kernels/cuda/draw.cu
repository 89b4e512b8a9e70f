// Samples the next token of each row. With CLUSTERS, a cluster of SAMPLE_BLOCKS blocks holds the row's scores in
// registers, SCORES a thread; without, one block keeps them in GPU memory. Same cuts as core/worker/decode/sampling.py.

typedef unsigned char u8;

#if CLUSTERS
// A thread's own score, and how many it handles at once.
#define SCORE(i) scores[i]
#define SCORES_AT_ONCE SCORES
#define READS SCORES
#else
#define SCORE(i) scores[(i) * SAMPLE_THREADS]
#define SCORES_AT_ONCE 4
#define READS 1
#define __cluster_dims__(...)
__device__ __forceinline__ void cluster_sync() { __syncthreads(); }
__device__ __forceinline__ float ld_cluster(int, const float& own) { return own; }
#endif

#define READ_AT_ONCE 16
// Thresholds tried at once: as good as 3 bisections. A score RANGE below the highest weighs nothing.
#define THRESHOLDS 7
#define PASSES (BISECTIONS / 3)
#define LOWEST __int_as_float(0xff800000)

struct ClusterScratch {
    float warps[THRESHOLDS][SAMPLE_THREADS / 32];
    float whole[2][THRESHOLDS];  // Two alternate: other blocks may still read the last one.
    float all[THRESHOLDS];
};

__device__ __forceinline__ float combine(float a, float b, bool is_sum) { return is_sum ? a + b : fmaxf(a, b); }

// Over the cluster: the sums, or maxima, of each of COUNT values of every thread.
template <int COUNT>
__device__ __forceinline__ void cluster_reduce(float* values, bool is_sum, ClusterScratch& room, int& side) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int k = 0; k < COUNT; k++) {
#pragma unroll
        for (int by = 16; by; by /= 2) values[k] = combine(values[k], __shfl_xor_sync(~0u, values[k], by), is_sum);
        if (lane == 0) room.warps[k][warp] = values[k];
    }
    __syncthreads();
    if (threadIdx.x < COUNT) {
        float whole = room.warps[threadIdx.x][0];
#pragma unroll
        for (int w = 1; w < SAMPLE_THREADS / 32; w++) whole = combine(whole, room.warps[threadIdx.x][w], is_sum);
        room.whole[side][threadIdx.x] = whole;
    }
    cluster_sync();
    if (threadIdx.x < (THRESHOLDS + 1) * SAMPLE_BLOCKS) {
        const int k = min(threadIdx.x / SAMPLE_BLOCKS, COUNT - 1);
        float all = ld_cluster(threadIdx.x % SAMPLE_BLOCKS, room.whole[side][k]);
#pragma unroll
        for (int by = SAMPLE_BLOCKS / 2; by; by /= 2) all = combine(all, __shfl_xor_sync(~0u, all, by), is_sum);
        if (threadIdx.x % SAMPLE_BLOCKS == 0) room.all[k] = all;
    }
    __syncthreads();
#pragma unroll
    for (int k = 0; k < COUNT; k++) values[k] = room.all[k];
    side ^= 1;
}

// A random number in [0, 1) by Philox 4x32-10 (Salmon et al., 2011).
__device__ __forceinline__ float philox_uniform(unsigned long long key, u32 counter) {
    u32 c0 = counter, c1 = 0, c2 = 0, c3 = 0, k0 = (u32)key, k1 = (u32)(key >> 32);
#pragma unroll
    for (int round = 0; round < 10; round++) {
        const u32 was0 = c0, was2 = c2;
        c0 = __umulhi(0xCD9E8D57u, was2) ^ c1 ^ k0, c2 = __umulhi(0xD2511F53u, was0) ^ c3 ^ k1;
        c1 = 0xCD9E8D57u * was2, c3 = 0xD2511F53u * was0;
        k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
    }
    const int x = (int)c0;
    return (x < 0 ? -x - 1 : x) * 4.6566127342e-10f;
}

// The token of a thread's first score, and the step from each score's token to the next.
__device__ __forceinline__ int first_place() { return blockIdx.x * SAMPLE_THREADS + threadIdx.x; }
#define STEP (SAMPLE_BLOCKS * SAMPLE_THREADS)

// Call put(i, values[place]) for the thread's scores. READ_AT_ONCE values are asked for before the first one is there.
template <class T, class Put>
__device__ __forceinline__ void for_each_score(int size, const T* values, Put put) {
#pragma unroll READS
    for (int base = 0; base < SCORES; base += READ_AT_ONCE) {
        T got[READ_AT_ONCE];
#pragma unroll
        for (int u = 0; u < READ_AT_ONCE; u++) {
            const int place = first_place() + (base + u) * STEP;
            if (base + u < SCORES && place < size) got[u] = values[place];
        }
#pragma unroll
        for (int u = 0; u < READ_AT_ONCE; u++) {
            const int place = first_place() + (base + u) * STEP;
            if (base + u < SCORES && place < size) put(base + u, got[u]);
        }
    }
}

// How many scores are at least each of COUNT thresholds, or the sum of their e^(score - top).
template <int COUNT>
__device__ __forceinline__ void weigh(const float* scores, float top, int size, float low, float width, bool is_mass,
                                      float* found, ClusterScratch& room, int& side) {
#pragma unroll
    for (int k = 0; k < COUNT; k++) found[k] = 0.0f;
#pragma unroll SCORES_AT_ONCE
    for (int i = 0; i < SCORES; i++) {
        if (!CLUSTERS && first_place() + i * STEP >= size) break;
        const float weight = is_mass ? __expf(SCORE(i) - top) : 1.0f;
#pragma unroll
        for (int k = 0; k < COUNT; k++)
            if (first_place() + i * STEP < size && SCORE(i) >= low + (k + 1) * width) found[k] += weight;
    }
    cluster_reduce<COUNT>(found, true, room, side);
}

// settings [slots + 1][SETTINGS]: temperature, top-p, top-k, min-p, repetition, presence and frequency penalty, whether
// the slot has offsets, whether it has a mask. scratch [rows][size]: for the scores, without clusters. is_late: whether
// slots that have a mask are drawn, or those that have none. The other arguments are those of SamplingKernel in
// core/worker/kernels/sampling_kernel.py.
extern "C" __global__ void __cluster_dims__(SAMPLE_BLOCKS, 1, 1) __launch_bounds__(SAMPLE_THREADS)
    sample(const u16* logits, float* scratch, const i64* rows, const float* settings, const i64* seeds, u8* seen,
           i64* tokens, i64* positions, float* offsets, const int* masks, const i64* places, i64* sampled, int size,
           int num_slots, int is_kept, int is_late) {
    __shared__ ClusterScratch room;
    int side = 0;
    pdl_trigger();
    pdl_wait();
    const i64 row = blockIdx.y, slot = rows[row];
    const float *own = settings + slot * SETTINGS, temperature = own[0], top_p = own[1], top_k = own[2], min_p = own[3];
    const float penalty = own[4];
    float* own_offsets = own[7] > 0.0f ? offsets + slot * size : nullptr;
    const int* mask = own[8] > 0.0f ? masks + slot * ((size + 31) / 32) : nullptr;
    const i64 position = places[row];
    if ((mask != nullptr) != (is_late != 0)) {
        // Its position grows all the same.
        if (!is_late && is_kept && slot < num_slots && first_place() == 0) positions[slot] = position;
        return;
    }
    const bool is_greedy = temperature < 1e-5f;
    auto place_of = [](int i) { return first_place() + i * STEP; };
#if CLUSTERS
    float scores[SCORES];
#else
    float* scores = scratch + row * size + threadIdx.x;
#endif
#if CLUSTERS
#pragma unroll
    for (int i = 0; i < SCORES; i++) scores[i] = LOWEST;
#endif
    for_each_score(size, logits + row * size, [&](int i, u16 logit) { SCORE(i) = to_float(logit); });
    if (penalty != 1.0f)
        for_each_score(size, seen + slot * size, [&](int i, u8 marks) {
            const float score = SCORE(i);
            if (marks) SCORE(i) = score > 0.0f ? score / penalty : score * penalty;
        });
    if (own_offsets) for_each_score(size, own_offsets, [&](int i, float offset) { SCORE(i) += offset; });
    float highest[2] = {LOWEST, 0.0f};  // and whether any is NaN
#pragma unroll SCORES_AT_ONCE
    for (int i = 0; i < SCORES; i++) {
        const int place = place_of(i);
        if (!CLUSTERS && place >= size) break;
        if (mask && place < size && !(mask[place / 32] >> place % 32 & 1)) SCORE(i) = LOWEST;
        if (!is_greedy) SCORE(i) /= temperature;
        highest[0] = fmaxf(highest[0], SCORE(i));
        if (SCORE(i) != SCORE(i)) highest[1] = 1.0f;
    }
    cluster_reduce<2>(highest, false, room, side);
    const float top = highest[0];

    // The highest threshold with `wanted` scores, or their weight, at or above it.
    auto search = [&](float low, bool is_mass, float wanted) {
        float width = top - low;
#pragma unroll 1
        for (int pass = 0; pass < PASSES; pass++) {
            width /= THRESHOLDS + 1;
            float found[THRESHOLDS];
            weigh<THRESHOLDS>(scores, top, size, low, width, is_mass, found, room, side);
            int enough = 0;
#pragma unroll
            for (int k = 0; k < THRESHOLDS; k++) enough += found[k] >= wanted;
            low += enough * width;
        }
        return low;
    };
    float threshold = LOWEST;
    if (is_greedy) {
        threshold = top;
    } else {
        if (top_k > 0.0f && top_k < size) threshold = search(top - 4 * RANGE, false, top_k);
        if (top_p < 1.0f) {
            float mass[1];
            weigh<1>(scores, top, size, threshold, 0.0f, true, mass, room, side);
            threshold = search(fmaxf(threshold, top - RANGE), true, top_p * mass[0]);
        }
        if (min_p > 0.0f) threshold = fminf(fmaxf(threshold, top + logf(min_p)), top);
    }

    // Of the remaining scores, each plus Gumbel noise, the highest; of equals the first.
    float best[1] = {LOWEST};
#pragma unroll SCORES_AT_ONCE
    for (int i = 0; i < SCORES; i++) {
        const int place = place_of(i);
        if (!CLUSTERS && place >= size) break;
        if (!(SCORE(i) >= threshold) || place >= size) {
            SCORE(i) = LOWEST;
        } else if (!is_greedy) {
            const unsigned long long key = seeds[slot] + position * 0x1E3779B97F4A7C15ll;
            SCORE(i) -= logf(-logf(fmaxf(philox_uniform(key, place), 1e-10f)));
        }
        best[0] = fmaxf(best[0], SCORE(i));
    }
    cluster_reduce<1>(best, false, room, side);
    float back[1] = {1.0f - size};
#pragma unroll SCORES_AT_ONCE
    for (int i = 0; i < SCORES; i++)
        if (place_of(i) < size && SCORE(i) == best[0]) back[0] = fmaxf(back[0], -(float)place_of(i));
    cluster_reduce<1>(back, false, room, side);
    if (first_place() == 0) {
        const int token = (int)-back[0];
        if (is_kept && slot < num_slots) {
            u8& marks = seen[slot * size + token];
            if (own_offsets) own_offsets[token] -= own[6] + (marks & 2 ? 0.0f : own[5]);
            marks = 3;
            tokens[slot] = token;
            positions[slot] = position;
        }
        sampled[row] = highest[1] > 0.0f ? -1 : token;
    }
    cluster_sync();  // Other blocks still read this one's shared memory.
}
