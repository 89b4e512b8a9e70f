// LoRA adapters beside the matrices of experts: of each pair of a token and an expert, t = weight * A x of the expert's own
// A and of the token's own adapter (expert_low_rank.cuh). A warp sums a value, the same way whatever pairs there are.

// t [pairs][parts][rank] and `pair_places` [pairs], at each pair's place among the sorted ones (positions; null: in order).
// a0, a1 [experts][columns][size]. x: a row for each token, or (IS_BY_PAIR) for each pair at its place; x_places
// [experts][size]: where each input lies in it, null: in order. slots: of every `tokens_each` tokens. slot_places,
// slot_weights: by slot. Blocks: a pair by 8 values.
template <bool IS_BY_PAIR>
__device__ __forceinline__ void multiply_down(const u16* x, int x_row, int size, const int* x_places, const u16* a0,
                                              const u16* a1, int parts, int columns, int rank, const i64* ids,
                                              const int* positions, int chosen, const i64* slots, int tokens_each,
                                              const int* slot_places, const float* slot_weights, float* t,
                                              int* pair_places) {
    pdl_wait();
    pdl_trigger();
    const int pair = blockIdx.x, token = pair / chosen, dot = blockIdx.y * 8 + threadIdx.x / 32, lane = threadIdx.x % 32;
    const i64 slot = slots[token / tokens_each];
    const int place = slot_places[slot], at = positions ? positions[pair] : pair, expert = (int)ids[pair];
    if (dot == 0 && lane == 0) pair_places[at] = place;
    if (place < 0 || dot >= parts * rank) return;
    const u16* a = (dot < rank ? a0 : a1) + ((i64)expert * columns + place * rank + dot % rank) * size;
    const int* own_places = x_places ? x_places + (i64)expert * size : nullptr;
    x += (i64)(IS_BY_PAIR ? at : token) * x_row;
    float sum = 0.0f;
#pragma unroll 4
    for (int i = lane * 8; i < size; i += 256) add_products(read_row_8(x, own_places, i), *(const uint4*)(a + i), sum);
    sum = warp_sum(sum);
    if (lane == 0) t[(i64)at * parts * rank + dot] = slot_weights[slot] * sum;
}

#define KERNEL(NAME, IS_BY_PAIR)                                                                                       \
    extern "C" __global__ void __launch_bounds__(256)                                                                  \
        NAME(const u16* x, int x_row, int size, const int* x_places, const u16* a0, const u16* a1, int parts,          \
             int columns, int rank, const i64* ids, const int* positions, int chosen, const i64* slots,                \
             int tokens_each, const int* slot_places, const float* slot_weights, float* t, int* pair_places) {         \
        multiply_down<IS_BY_PAIR>(x, x_row, size, x_places, a0, a1, parts, columns, rank, ids, positions, chosen,      \
                                  slots, tokens_each, slot_places, slot_weights, t, pair_places);                      \
    }
KERNEL(pairs_down_of_tokens, false)
KERNEL(pairs_down_of_pairs, true)
