// RMSNorm of rows, and their products with one or two narrow matrices in half precision, such as those of a recurrent
// layer's betas and decays: one kernel in the place of three, of which each begins where the last one has ended. TILE_ROWS:
// see swizzled.cuh.
//
// A cluster of CLUSTER blocks takes 16 outputs of 32 rows. Each of its warps asks for all its inputs and weights at once,
// WARP_BLOCKS K blocks of 64 at most, so that it waits for memory once: the blocks exchange sums of squares, then sums of products.
// A row's result does not depend on the others.

#define THREADS (WARPS * 32)
#define PARTS (CLUSTER * WARPS)
#define ROWS 32
#define COLUMNS 16
#define SUMS (ROWS * COLUMNS)

// Shared memory of a block.
struct Narrow {
    float squares[WARPS][ROWS], all_squares[ROWS], by[ROWS];
    float sums[WARPS][SUMS], all_sums[SUMS];
};

// x [rows, blocks * 64] -> normed, laid out the same or, if `is_swizzled`, for wgmma, each value where `inverse_permutation`
// says, if given; and by `first` and `second` [outputs, blocks * 64] -> out [rows, first_outputs + second_outputs].
extern "C" __global__ void __cluster_dims__(CLUSTER, 1, 1) __launch_bounds__(THREADS)
    norm_and_multiply(const u16* x, const u16* norm_weight, float eps, float offset, const u16* first,
                      const u16* second, int first_outputs, int second_outputs, u16* normed,
                      const int* inverse_permutation, int is_swizzled, u16* out, int x_row, int out_row, int rows,
                      int blocks) {
    extern __shared__ uint4 shared[];
    Narrow& room = *(Narrow*)shared;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
    const int rank = blockIdx.x, first_row = blockIdx.z * ROWS, size = blocks * 64;
    const int first_tiles = (first_outputs + COLUMNS - 1) / COLUMNS;
    const bool is_second = blockIdx.y >= first_tiles;
    const int tile = is_second ? blockIdx.y - first_tiles : blockIdx.y;
    const int outputs = is_second ? second_outputs : first_outputs;
    const u16* weights = is_second ? second : first;
    auto block_of = [&](int i) { return rank * WARPS + warp + i * PARTS; };
    auto place_of = [&](int i, int h) { return block_of(i) * 64 + h * 32 + t * 8; };

    uint4 a[WARP_BLOCKS][2][2], norm_weights[WARP_BLOCKS][2], with[WARP_BLOCKS][2][ROWS / 8];
#pragma unroll
    for (int i = 0; i < WARP_BLOCKS; i++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            if (block_of(i) >= blocks) continue;
            norm_weights[i][h] = *(const uint4*)(norm_weight + place_of(i, h));
#pragma unroll
            for (int j = 0; j < 2; j++) {
                const int output = min(tile * COLUMNS + j * 8 + g, outputs - 1);
                a[i][h][j] = ld_weights_16(weights + (i64)output * size + place_of(i, h));
            }
        }
    pdl_trigger();
    pdl_wait();
#pragma unroll
    for (int i = 0; i < WARP_BLOCKS; i++)
#pragma unroll
        for (int h = 0; h < 2; h++)
#pragma unroll
            for (int n = 0; n < ROWS / 8; n++) {
                const int row = first_row + n * 8 + g;
                with[i][h][n] = make_uint4(0, 0, 0, 0);
                if (block_of(i) < blocks && row < rows)
                    with[i][h][n] = ld_global_16(x + (i64)row * x_row + place_of(i, h));
            }

#pragma unroll
    for (int n = 0; n < ROWS / 8; n++) {
        float squares = 0.0f;
#pragma unroll
        for (int i = 0; i < WARP_BLOCKS; i++)
#pragma unroll
            for (int h = 0; h < 2; h++) add_squares(with[i][h][n], squares);
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

    float total[ROWS / 8][4] = {};
#pragma unroll
    for (int i = 0; i < WARP_BLOCKS; i++) {
        if (block_of(i) >= blocks) break;
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const uint4 even = a[i][h][0], odd = a[i][h][1];
            const u32 low_inputs[4] = {even.x, odd.x, even.y, odd.y}, high_inputs[4] = {even.z, odd.z, even.w, odd.w};
#pragma unroll
            for (int n = 0; n < ROWS / 8; n++) {
                const int row = first_row + n * 8 + g;
                const uint4 done = rmsnorm_8(with[i][h][n], room.by[n * 8 + g], norm_weights[i][h], offset);
                if (blockIdx.y == 0 && row < rows) {
                    if (is_swizzled)
                        store_swizzled_8(done, row, place_of(i, h), inverse_permutation, blocks, normed);
                    else
                        store_8(done, place_of(i, h), inverse_permutation, normed + (i64)row * size);
                }
                mma(total[n], low_inputs, done.x, done.y);
                mma(total[n], high_inputs, done.z, done.w);
            }
        }
    }
#pragma unroll
    for (int n = 0; n < ROWS / 8; n++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            room.sums[warp][(n * 8 + t * 2 + i % 2) * COLUMNS + g + i / 2 * 8] = total[n][i];
    __syncthreads();
    for (int at = threadIdx.x; at < SUMS; at += THREADS) {
        float whole = 0.0f;
#pragma unroll
        for (int w = 0; w < WARPS; w++) whole += room.sums[w][at];
        room.all_sums[at] = whole;
    }
    cluster_sync();
    if (threadIdx.x < SUMS / CLUSTER) {
        const int at = rank * (SUMS / CLUSTER) + threadIdx.x, row = first_row + at / COLUMNS;
        const int output = tile * COLUMNS + at % COLUMNS;
        float whole = 0.0f;
#pragma unroll
        for (int r = 0; r < CLUSTER; r++) whole += ld_cluster(r, room.all_sums[at]);
        if (row < rows && output < outputs)
            out[(i64)row * out_row + (is_second ? first_outputs : 0) + output] = to_half(whole);
    }
    cluster_sync();  // Other blocks still read this one's shared memory.
}
