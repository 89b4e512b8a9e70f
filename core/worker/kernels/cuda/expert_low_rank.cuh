// What LoRA adapters (arXiv 2106.09685) add to products with experts: B t, with t = weight * A x of the expert that a pair
// goes to and of the adapter of its token (core/worker/kernels/expert_low_rank.py).
struct PairLowRank {
    const u16 *b0, *b1;  // of gate and of up; of down twice the same: [experts][outputs][columns], of all places side by side
    const float* t;      // [pairs][parts][rank], in the order of the segments
    const int* places;   // [pairs]: where the adapter lies; below 0: there is none
    int outputs, columns, rank, parts;

    // `value` of the pair at `at`, rounded, plus what its adapter adds to its expert's `output`; summed in order. part: 1
    // of up.
    __device__ __forceinline__ float add_to(float value, int at, int expert, int output, int part) const {
        const int place = places[at];
        if (place < 0) return value;
        const u16* b = (part ? b1 : b0) + ((i64)expert * outputs + output) * columns + place * rank;
        return value + low_rank_product(b, t + ((i64)at * parts + min(part, parts - 1)) * rank, rank);
    }
};
