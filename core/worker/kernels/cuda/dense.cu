// Products of up to 32 rows with half-precision matrices, on tensor cores. PARTS: into how many parts a block splits the
// inputs, a warp each. IN_TURNS: whether neighbouring K blocks are of different parts, so that a block's warps read
// lines that follow one another at the same time; else a part's follow one another. MAX_NORMED: longest row (elements)
// that is RMS-normed on the way.
// The parts and the order of sums are the same for any number of rows, so a row's result does not depend on the others.

enum { NONE, RESIDUAL };

// Up to four matrices [outputs, inputs] that multiply the same rows, one after the other in a row of the result.
struct Matrices {
    const u16* weights[4];
    int outputs[4];
};

// A block takes CT tiles of 16 outputs of one of the matrices, which share what is read of several rows. NT: eights of
// rows; AHEAD: K blocks of 64 inputs whose weights are in flight. blocks: how many K blocks there are.
template <int NT, int CT, int AHEAD, int EPILOGUE, bool NORMED>
__device__ __forceinline__ void multiply_half(const Matrices& matrices, const u16* x, u16* out, const u16* residual,
                                              const u16* norm_weight, float eps, float offset, int x_row, int out_row,
                                              int rows, int blocks) {
    constexpr int ROWS = NT * 8, COLUMNS = CT * 16;
    extern __shared__ uint4 shared[];
    float* sums = (float*)shared;                         // [PARTS][ROWS][COLUMNS]
    u16* normed = (u16*)(sums + PARTS * ROWS * COLUMNS);  // The row, where it is normed.
    const int lane = threadIdx.x % 32, part = threadIdx.x / 32, g = lane / 4, t = lane % 4;
    const int begin = IN_TURNS ? part : blocks * part / PARTS, step = IN_TURNS ? PARTS : 1;
    const int end = IN_TURNS ? blocks : blocks * (part + 1) / PARTS;
    const u16* weights = matrices.weights[0];
    int outputs = matrices.outputs[0], turn = blockIdx.x, to = 0;
#pragma unroll
    for (int one = 1; one < 4; one++) {
        const int turns = (outputs + COLUMNS - 1) / COLUMNS;
        if (turn < turns || !matrices.outputs[one]) break;
        turn -= turns, to += outputs, weights = matrices.weights[one], outputs = matrices.outputs[one];
    }
    const u16* line[CT][2];
#pragma unroll
    for (int c = 0; c < CT; c++)
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const int output = min(turn * COLUMNS + c * 16 + i * 8 + g, outputs - 1);
            line[c][i] = weights + (i64)output * blocks * 64 + t * 8;
        }
    uint4 ahead[AHEAD][CT][2][2];
    auto load = [&](int u, int block, int h) {
#pragma unroll
        for (int c = 0; c < CT; c++)
#pragma unroll
            for (int i = 0; i < 2; i++) ahead[u][c][i][h] = ld_weights_16(line[c][i] + block * 64 + h * 32);
    };
#pragma unroll
    for (int u = 0; u < AHEAD; u++)
#pragma unroll
        for (int h = 0; h < 2; h++)
            if (begin + u * step < end) load(u, begin + u * step, h);
    pdl_trigger();
    RmsNorm<PARTS * 32, NORMED ? MAX_NORMED : PARTS * 256> rmsnorm;
    if (NORMED) rmsnorm.read(norm_weight, blocks * 64);
    pdl_wait();
    if (NORMED) {
        rmsnorm.apply(x, blocks * 64, eps, offset, sums,
                      [&](int at, uint4 done) { *(uint4*)(normed + at) = done; });
        __syncthreads();
    }
    float total[CT][NT][4] = {};
    for (int base = begin; base < end; base += AHEAD * step) {
#pragma unroll
        for (int u = 0; u < AHEAD; u++) {
            const int block = base + u * step;
            if (block >= end) break;
#pragma unroll
            for (int h = 0; h < 2; h++) {
                u32 first[CT][4], second[CT][4];
#pragma unroll
                for (int c = 0; c < CT; c++) {
                    const uint4 even = ahead[u][c][0][h], odd = ahead[u][c][1][h];
                    first[c][0] = even.x, first[c][1] = odd.x, first[c][2] = even.y, first[c][3] = odd.y;
                    second[c][0] = even.z, second[c][1] = odd.z, second[c][2] = even.w, second[c][3] = odd.w;
                }
                if (block + AHEAD * step < end) load(u, block + AHEAD * step, h);
#pragma unroll
                for (int n = 0; n < NT; n++) {
                    const int row = n * 8 + g, at = block * 64 + h * 32 + t * 8;
                    uint4 with = make_uint4(0, 0, 0, 0);
                    if (row < rows) with = NORMED ? *(const uint4*)(normed + at) : ld_global_16(x + (i64)row * x_row + at);
#pragma unroll
                    for (int c = 0; c < CT; c++) {
                        mma(total[c][n], first[c], with.x, with.y);
                        mma(total[c][n], second[c], with.z, with.w);
                    }
                }
            }
        }
    }
#pragma unroll
    for (int c = 0; c < CT; c++)
#pragma unroll
        for (int n = 0; n < NT; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const int row = n * 8 + t * 2 + i % 2;
                sums[(part * ROWS + row) * COLUMNS + c * 16 + g + i / 2 * 8] = total[c][n][i];
            }
    __syncthreads();
    for (int at = threadIdx.x; at < rows * COLUMNS; at += PARTS * 32) {
        const int row = at / COLUMNS, column = at % COLUMNS, output = turn * COLUMNS + column;
        float whole = 0.0f;
#pragma unroll
        for (int one = 0; one < PARTS; one++) whole += sums[(one * ROWS + row) * COLUMNS + column];
        if (output >= outputs) continue;
        const i64 place = (i64)row * out_row + to + output;
        out[place] = to_half(EPILOGUE == RESIDUAL ? round_half(whole) + to_float(residual[place]) : whole);
    }
}

// MIN_BLOCKS: the least blocks on a multiprocessor.
#define DENSE(NAME, NT, CT, AHEAD, EPILOGUE, NORMED, MIN_BLOCKS)                                                      \
    extern "C" __global__ void __launch_bounds__(PARTS * 32, MIN_BLOCKS)                                              \
        NAME(const u16* first, const u16* second, const u16* third, const u16* fourth, int first_outputs,             \
             int second_outputs, int third_outputs, int fourth_outputs, const u16* x, u16* out, const u16* residual,  \
             const u16* norm_weight, float eps, float offset, int x_row, int out_row, int rows, int blocks) {         \
        const Matrices matrices = {{first, second, third, fourth},                                                    \
                                   {first_outputs, second_outputs, third_outputs, fourth_outputs}};                   \
        multiply_half<NT, CT, AHEAD, EPILOGUE, NORMED>(matrices, x, out, residual, norm_weight, eps, offset, x_row,   \
                                                       out_row, rows, blocks);                                        \
    }
VARIANTS
