// GPTQ's rounding of 128 inputs of a matrix, one after the other: what rounding one does wrong goes onto those after it,
// as the inverse Hessian says. Rows of the matrix do not touch each other: each has a warp, whose lanes keep 4 values.
//
// Each operation is rounded by itself and in the order that torch would do them, so that the codes are torch's.

#define BLOCK_INPUTS 128
#define ROW_VALUES (BLOCK_INPUTS / 32)

// weights, rounded, errors, losses [rows][128], a row every `weights_stride` and so on; inverse [128][128], of which the
// upper triangle is read; scales, zeros [groups][rows]; groups [128]. `highest`: the highest code.
extern "C" __global__ void __launch_bounds__(GPTQ_THREADS)
    gptq_block(const float* weights, const float* inverse, const float* scales, const float* zeros, const int* groups,
               float* rounded, float* errors, float* losses, int num_rows, int weights_stride, int rounded_stride,
               int errors_stride, int losses_stride, int highest) {
    pdl_wait();
    const int lane = threadIdx.x % 32;
    const i64 row = (i64)blockIdx.x * (GPTQ_THREADS / 32) + threadIdx.x / 32;
    if (row >= num_rows) return;
    float values[ROW_VALUES];
#pragma unroll
    for (int i = 0; i < ROW_VALUES; i++) values[i] = weights[row * weights_stride + lane + 32 * i];
#pragma unroll
    for (int i = 0; i < ROW_VALUES; i++) {
        for (int turn = 0; turn < 32; turn++) {
            const int input = 32 * i + turn;
            const float* factors = inverse + input * BLOCK_INPUTS;
            const float value = __shfl_sync(~0u, values[i], turn), diagonal = factors[input];
            const i64 at = (i64)groups[input] * num_rows + row;
            const float scale = scales[at], zero = zeros[at];
            float code = __fadd_rn(rintf(__fdiv_rn(value, scale)), zero);
            // A NaN stays one, so that it is noticed.
            code = code < 0.0f ? 0.0f : code > (float)highest ? (float)highest : code;
            const float near = __fmul_rn(scale, __fsub_rn(code, zero)), miss = __fsub_rn(value, near);
            const float error = __fdiv_rn(miss, diagonal);
            if (lane == turn) {
                rounded[row * rounded_stride + input] = near;
                errors[row * errors_stride + input] = error;
                losses[row * losses_stride + input] = __fdiv_rn(__fmul_rn(miss, miss), __fmul_rn(diagonal, diagonal));
            }
#pragma unroll
            for (int j = i; j < ROW_VALUES; j++)
                values[j] = __fsub_rn(values[j], __fmul_rn(error, factors[lane + 32 * j]));
        }
    }
}
