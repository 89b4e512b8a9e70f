// RMSNorm of rows, and their products with one or two narrow matrices in half precision, such as those of a recurrent
// layer's betas and decays: one kernel in the place of three, of which each begins where the last one has ended. TILE_ROWS:
// see swizzled.cuh.
//
// A cluster of CLUSTER blocks takes 16 outputs of 32 rows. Each of its warps has one K block of 64 inputs, and asks for all
// that it needs of them at once, so that the kernel waits for memory once: the blocks exchange sums of squares, then sums of
// products. There is little code, which each step reads from memory anew. A row's result does not depend on the others.

#define THREADS (WARPS * 32)
#define ROWS 32
#define COLUMNS 16
#define SUMS (ROWS * COLUMNS)

// Shared memory of a block.
struct Narrow {
    float squares[WARPS][ROWS], all_squares[ROWS], by[ROWS];
    float sums[WARPS][SUMS], all_sums[SUMS];
};

// Of 4 lanes that follow one another, each has 4 words: the transpose of those.
__device__ __forceinline__ uint4 transposed_words(uint4 own, int t) {
    u32 words[4] = {own.x, own.y, own.z, own.w};
#pragma unroll
    for (int by = 1; by < 4; by *= 2)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            if (i & by) continue;
            const bool is_upper = t & by;
            const u32 other = __shfl_xor_sync(~0u, is_upper ? words[i] : words[i | by], by);
            words[i] = is_upper ? other : words[i], words[i | by] = is_upper ? words[i | by] : other;
        }
    return make_uint4(words[0], words[1], words[2], words[3]);
}

// x [rows, blocks * 64] -> normed, laid out the same or, if `is_swizzled`, for wgmma; and by `first` and `second` [outputs,
// blocks * 64] -> out [rows, first_outputs + second_outputs].
extern "C" __global__ void __cluster_dims__(CLUSTER, 1, 1) __launch_bounds__(THREADS)
    norm_and_multiply(const u16* x, const u16* norm_weight, float eps, float offset, const u16* first,
                      const u16* second, int first_outputs, int second_outputs, u16* normed, int is_swizzled, u16* out,
                      int x_row, int out_row, int rows, int blocks) {
    extern __shared__ uint4 shared[];
    Narrow& room = *(Narrow*)shared;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
    const int rank = blockIdx.x, first_row = blockIdx.z * ROWS, size = blocks * 64;
    const int first_tiles = (first_outputs + COLUMNS - 1) / COLUMNS;
    const bool is_second = blockIdx.y >= first_tiles;
    const int tile = is_second ? blockIdx.y - first_tiles : blockIdx.y;
    const int outputs = is_second ? second_outputs : first_outputs;
    const u16* weights = is_second ? second : first;
    const int block = rank * WARPS + warp, place = block * 64 + t * 8;
    const bool has_block = block < blocks;

    // Halves of the K block: weights of outputs g and g + 8, and of rows g, g + 8, ..
    uint4 a[2][2] = {}, norm_weights[2] = {}, with[2][ROWS / 8] = {};
#pragma unroll
    for (int h = 0; h < 2; h++) {
        if (!has_block) continue;
        norm_weights[h] = *(const uint4*)(norm_weight + place + h * 32);
#pragma unroll
        for (int j = 0; j < 2; j++) {
            const int output = min(tile * COLUMNS + j * 8 + g, outputs - 1);
            a[h][j] = ld_weights_16(weights + (i64)output * size + place + h * 32);
        }
    }
    pdl_trigger();
    pdl_wait();
#pragma unroll
    for (int h = 0; h < 2; h++)
#pragma unroll
        for (int n = 0; n < ROWS / 8; n++) {
            const int row = first_row + n * 8 + g;
            if (has_block && row < rows) with[h][n] = ld_global_16(x + (i64)row * x_row + place + h * 32);
        }
#pragma unroll
    for (int n = 0; n < ROWS / 8; n++) {
        float squares = 0.0f;
        add_squares(with[0][n], squares), add_squares(with[1][n], squares);
        squares += __shfl_xor_sync(~0u, squares, 1);
        squares += __shfl_xor_sync(~0u, squares, 2);
        if (t == 0) room.squares[warp][n * 8 + g] = squares;
    }
    __syncthreads();
    if (threadIdx.x < ROWS) {
        float whole = 0.0f;
#pragma unroll
        for (int w = 0; w < WARPS; w++) whole += room.squares[w][threadIdx.x];
        room.all_squares[threadIdx.x] = whole;
    }
    cluster_sync();
    if (threadIdx.x < ROWS) {
        float whole = 0.0f;
#pragma unroll
        for (int r = 0; r < CLUSTER; r++) whole += ld_cluster(r, room.all_squares[threadIdx.x]);
        room.by[threadIdx.x] = rsqrtf(whole / size + eps);
    }
    __syncthreads();

#pragma unroll
    for (int n = 0; n < ROWS / 8; n++) {
        float total[4] = {};
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const uint4 even = a[h][0], odd = a[h][1];
            const u32 low_inputs[4] = {even.x, odd.x, even.y, odd.y}, high_inputs[4] = {even.z, odd.z, even.w, odd.w};
            with[h][n] = rmsnorm_8(with[h][n], room.by[n * 8 + g], norm_weights[h], offset);
            mma(total, low_inputs, with[h][n].x, with[h][n].y);
            mma(total, high_inputs, with[h][n].z, with[h][n].w);
        }
#pragma unroll
        for (int i = 0; i < 4; i++)
            room.sums[warp][(n * 8 + t * 2 + i % 2) * COLUMNS + g + i / 2 * 8] = total[i];
    }
    __syncthreads();
    for (int at = threadIdx.x; at < SUMS; at += THREADS) {
        float whole = 0.0f;
#pragma unroll
        for (int w = 0; w < WARPS; w++) whole += room.sums[w][at];
        room.all_sums[at] = whole;
    }
    cluster_sync();
    float result = 0.0f;
    const int at = rank * (SUMS / CLUSTER) + threadIdx.x % (SUMS / CLUSTER);
    if (threadIdx.x < SUMS / CLUSTER)
#pragma unroll
        for (int r = 0; r < CLUSTER; r++) result += ld_cluster(r, room.all_sums[at]);
    // Other blocks still read this one's shared memory. What is stored comes after it: the barrier would wait for that.
    cluster_sync();
    const int of_row = first_row + at / COLUMNS, output = tile * COLUMNS + at % COLUMNS;
    if (threadIdx.x < SUMS / CLUSTER && of_row < rows && output < outputs)
        out[(i64)of_row * out_row + (is_second ? first_outputs : 0) + output] = to_half(result);
    if (blockIdx.y || !has_block) return;
#pragma unroll
    for (int h = 0; h < 2; h++)
#pragma unroll
        for (int n = 0; n < ROWS / 8; n++) {
            const int row = first_row + n * 8 + g;
            const uint4 pairs = is_swizzled ? transposed_words(with[h][n], t) : with[h][n];
            uint4* to = is_swizzled ? swizzled_pairs((uint4*)normed, row, block * 2 + h, t, blocks)
                                    : (uint4*)(normed + (i64)row * size + place + h * 32);
            if (row < rows) *to = pairs;
        }
}
