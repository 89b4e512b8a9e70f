// The next token of each row, by a cluster of DRAW_BLOCKS that hold the row's scores in registers, SCORES a thread, and tell
// one another what they find. As core/worker/decode/sampling.py says, with `_draw` of core/worker/kernels/triton_ops.py's chances. Knows
// no model.

typedef unsigned char u8;

// Borders tried at once, one less than the parts that they make: as good as 3 bisections. A score RANGE below the highest is
// worth nothing.
#define BORDERS 7
#define PASSES (BISECTIONS / 3)
#define LOWEST __int_as_float(0xff800000)

struct DrawRoom {
    float warps[BORDERS][DRAW_THREADS / 32];
    float whole[2][BORDERS];  // They take turns: others may still read the one before.
    float all[BORDERS];
};

__device__ __forceinline__ float combined(float a, float b, bool is_sum) { return is_sum ? a + b : fmaxf(a, b); }

// The cluster's sums, or highest, of each of COUNT values of every thread.
template <int COUNT>
__device__ __forceinline__ void share(float* values, bool is_sum, DrawRoom& room, int& side) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int k = 0; k < COUNT; k++) {
#pragma unroll
        for (int by = 16; by; by /= 2) values[k] = combined(values[k], __shfl_xor_sync(~0u, values[k], by), is_sum);
        if (lane == 0) room.warps[k][warp] = values[k];
    }
    __syncthreads();
    if (threadIdx.x < COUNT) {
        float whole = room.warps[threadIdx.x][0];
#pragma unroll
        for (int w = 1; w < DRAW_THREADS / 32; w++) whole = combined(whole, room.warps[threadIdx.x][w], is_sum);
        room.whole[side][threadIdx.x] = whole;
    }
    meet_cluster();
    if (threadIdx.x < (BORDERS + 1) * DRAW_BLOCKS) {
        const int k = min(threadIdx.x / DRAW_BLOCKS, COUNT - 1);
        float all = of_block(threadIdx.x % DRAW_BLOCKS, room.whole[side][k]);
#pragma unroll
        for (int by = DRAW_BLOCKS / 2; by; by /= 2) all = combined(all, __shfl_xor_sync(~0u, all, by), is_sum);
        if (threadIdx.x % DRAW_BLOCKS == 0) room.all[k] = all;
    }
    __syncthreads();
#pragma unroll
    for (int k = 0; k < COUNT; k++) values[k] = room.all[k];
    side ^= 1;
}

// A number in [0, 1) by Philox 4x32-10 (Salmon et al., 2011).
__device__ __forceinline__ float chance(unsigned long long key, u32 counter) {
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

// A thread's first score's place, and the step from each to the next.
__device__ __forceinline__ int first_place() { return blockIdx.x * DRAW_THREADS + threadIdx.x; }
#define STEP (DRAW_BLOCKS * DRAW_THREADS)

// How many scores are at least each of COUNT borders, or how much all those are worth.
template <int COUNT>
__device__ __forceinline__ void weigh(const float* scores, float top, int size, float low, float width, bool is_mass,
                                      float* found, DrawRoom& room, int& side) {
#pragma unroll
    for (int k = 0; k < COUNT; k++) found[k] = 0.0f;
#pragma unroll
    for (int i = 0; i < SCORES; i++) {
        const float weight = is_mass ? __expf(scores[i] - top) : 1.0f;
#pragma unroll
        for (int k = 0; k < COUNT; k++)
            if (first_place() + i * STEP < size && scores[i] >= low + (k + 1) * width) found[k] += weight;
    }
    share<COUNT>(found, true, room, side);
}

// settings [slots + 1][5]: temperature, top-p, top-k, min-p, penalty. What `draw_all` of core/worker/kernels/triton_ops.py takes.
extern "C" __global__ void __cluster_dims__(DRAW_BLOCKS, 1, 1) __launch_bounds__(DRAW_THREADS)
    draw(const u16* logits, const i64* rows, const float* settings, const i64* seeds, u8* seen, i64* tokens, i64* positions,
         const i64* step, i64* drawn, int size, int num_slots) {
    __shared__ DrawRoom room;
    int side = 0;
    let_next_come();
    wait_for_previous();
    const i64 row = blockIdx.y, slot = rows[row];
    const float *own = settings + slot * 5, temperature = own[0], top_p = own[1], top_k = own[2], min_p = own[3];
    const float penalty = own[4];
    const i64 position = positions[slot] + *step;
    const bool is_greedy = temperature < 1e-5f;
    auto place_of = [](int i) { return first_place() + i * STEP; };
    float scores[SCORES], highest[2] = {LOWEST, 0.0f};  // and whether one is no number
#pragma unroll
    for (int i = 0; i < SCORES; i++) {
        const int place = place_of(i);
        float score = LOWEST;
        if (place < size) {
            score = to_float(logits[row * size + place]);
            if (seen[slot * size + place]) score = score > 0.0f ? score / penalty : score * penalty;
            if (!is_greedy) score /= temperature;
        }
        scores[i] = score;
        highest[0] = fmaxf(highest[0], score);
        if (score != score) highest[1] = 1.0f;
    }
    share<2>(highest, false, room, side);
    const float top = highest[0];

    // The highest border down to which there is enough.
    auto search = [&](float low, bool is_mass, float wanted) {
        float width = top - low;
#pragma unroll 1
        for (int pass = 0; pass < PASSES; pass++) {
            width /= BORDERS + 1;
            float found[BORDERS];
            weigh<BORDERS>(scores, top, size, low, width, is_mass, found, room, side);
            int enough = 0;
#pragma unroll
            for (int k = 0; k < BORDERS; k++) enough += found[k] >= wanted;
            low += enough * width;
        }
        return low;
    };
    float border = LOWEST;
    if (is_greedy) {
        border = top;
    } else {
        if (top_k > 0.0f && top_k < size) border = search(top - 4 * RANGE, false, top_k);
        if (top_p < 1.0f) {
            float mass[1];
            weigh<1>(scores, top, size, border, 0.0f, true, mass, room, side);
            border = search(fmaxf(border, top - RANGE), true, top_p * mass[0]);
        }
        if (min_p > 0.0f) border = fminf(fmaxf(border, top + logf(min_p)), top);
    }

    // Of the scores that are left, each with its chance, the highest; of equals the first.
    float best[1] = {LOWEST};
#pragma unroll
    for (int i = 0; i < SCORES; i++) {
        const int place = place_of(i);
        if (!(scores[i] >= border) || place >= size) {
            scores[i] = LOWEST;
        } else if (!is_greedy) {
            const unsigned long long key = seeds[slot] + position * 0x1E3779B97F4A7C15ll;
            scores[i] -= logf(-logf(fmaxf(chance(key, place), 1e-10f)));
        }
        best[0] = fmaxf(best[0], scores[i]);
    }
    share<1>(best, false, room, side);
    float back[1] = {1.0f - size};
#pragma unroll
    for (int i = 0; i < SCORES; i++)
        if (place_of(i) < size && scores[i] == best[0]) back[0] = fmaxf(back[0], -(float)place_of(i));
    share<1>(back, false, room, side);
    if (first_place() == 0) {
        const int token = (int)-back[0];
        if (slot < num_slots) {
            seen[slot * size + token] = 1;
            tokens[slot] = token;
            positions[slot] = position;
        }
        drawn[row] = highest[1] > 0.0f ? -1 : token;
    }
    meet_cluster();  // What others still read must not go.
}
