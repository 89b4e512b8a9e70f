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
