// What products with experts read: all experts' matrices, and which rows are whose (core/worker/kernels/routed_pairs.py).

// All experts' matrices. tiles, blocks (64 inputs), groups: of one expert.
struct Stack {
    const char* codes;
    const char* scales;
    const char* zeros;
    int tiles, blocks, groups;
};

// Rows first, first + 1, ... of the pairs by expert.
struct Segment {
    int expert, first, rows;
};
__device__ __forceinline__ Segment pair_as_segment(const i64* ids, int pair) { return {(int)__ldcg(ids + pair), pair, 1}; }
__device__ __forceinline__ Segment read_segment(const int* segments, int at) {
    const int* from = segments + at * 4;
    return {__ldcg(from), __ldcg(from + 1), __ldcg(from + 2)};
}

// What is added to the weighted sums of tokens, all [tokens][size]: `residual`, and what an expert gives that all tokens
// go through (`shared`), times its gate [tokens]. Each may be null.
struct Added {
    const u16* residual;
    const u16* shared;
    const float* gates;

    __device__ __forceinline__ float to(float sum, int token, i64 at) const {
        if (shared) sum = __fmaf_rn(gates ? gates[token] : 1.0f, to_float(shared[at]), sum);
        return residual ? sum + to_float(residual[at]) : sum;
    }
};
