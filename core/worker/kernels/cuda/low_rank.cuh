// What LoRA adapters (arXiv 2106.09685) add to the outputs of up to three matrices that lie side by side: B t, with
// t = weight * A x of the row's own adapter (core/worker/kernels/low_rank.py).
__device__ __forceinline__ void add_products(uint4 x, uint4 a, float& sum) {
    float of_x[8], of_a[8];
    unpack8(x, of_x);
    unpack8(a, of_a);
#pragma unroll
    for (int i = 0; i < 8; i++) sum = __fmaf_rn(of_x[i], of_a[i], sum);
}

// Eight values of a row from `at` on. places: where each lies in the row, null: in order.
__device__ __forceinline__ uint4 read_row_8(const u16* row, const int* places, int at) {
    if (!places) return *(const uint4*)(row + at);
    u32 words[4];
#pragma unroll
    for (int i = 0; i < 4; i++) words[i] = row[places[at + 2 * i]] | (u32)row[places[at + 2 * i + 1]] << 16;
    return make_uint4(words[0], words[1], words[2], words[3]);
}

// b · t, both [rank], summed in order.
__device__ __forceinline__ float low_rank_product(const u16* b, const float* t, int rank) {
    float sum = 0.0f;
    if (rank % 8 == 0) {
#pragma unroll 2
        for (int at = 0; at < rank; at += 8) {
            float of_b[8];
            unpack8(*(const uint4*)(b + at), of_b);
            const float4 first = *(const float4*)(t + at), then = *(const float4*)(t + at + 4);
            sum = __fmaf_rn(of_b[0], first.x, sum), sum = __fmaf_rn(of_b[1], first.y, sum);
            sum = __fmaf_rn(of_b[2], first.z, sum), sum = __fmaf_rn(of_b[3], first.w, sum);
            sum = __fmaf_rn(of_b[4], then.x, sum), sum = __fmaf_rn(of_b[5], then.y, sum);
            sum = __fmaf_rn(of_b[6], then.z, sum), sum = __fmaf_rn(of_b[7], then.w, sum);
        }
    } else {
        for (int at = 0; at < rank; at++) sum = __fmaf_rn(to_float(b[at]), t[at], sum);
    }
    return sum;
}

struct LowRank {
    const u16 *b0, *b1, *b2;  // of each matrix: [outputs][columns], the adapters of all places side by side
    int second, third;        // where the outputs of the second and of the third matrix begin
    int parts, columns, rank;
    const float* t;     // [rows][parts][rank]
    const i64* slots;   // [rows]
    const int* places;  // by slot: where its adapter lies; below 0: it has none

    __device__ __forceinline__ int place_of(int row) const { return places[slots[row]]; }
    __device__ __forceinline__ int part_of(int output) const { return (output >= second) + (output >= third); }

    // The row of B that `output` has of the adapter in `place`.
    __device__ __forceinline__ const u16* up_row(int place, int output) const {
        const int part = part_of(output);
        const u16* b = part == 0 ? b0 : part == 1 ? b1 : b2;
        const int begin = part == 0 ? 0 : part == 1 ? second : third;
        return b + (i64)(output - begin) * columns + place * rank;
    }

    // `value` of a row's `output`, rounded, plus what the row's adapter adds to it, rounded again; summed in order.
    __device__ __forceinline__ float add_to(float value, int row, int output) const {
        const int place = place_of(row);
        if (place < 0) return value;
        const u16* b = up_row(place, output);
        const float* low_row = t + (i64)(row * parts + part_of(output)) * rank;
        const float sum = low_rank_product(b, low_row, rank);
        return round_half(value + sum);
    }
};
