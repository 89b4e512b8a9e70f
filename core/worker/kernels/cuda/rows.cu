// RMSNorm of several rows, a block a row of at most MAX_ROW values, and the sums of what comes out in runs:
// [runs][sums_row]. Knows no model.
extern "C" __global__ void __launch_bounds__(512)
    norm_rows(const u16* x, const u16* weight, u16* out, const int* places, int x_row, int size, float eps,
              float* run_sums, int sums_row, int run) {
    __shared__ float sums[16];
    let_next_come();
    Norm<512, MAX_ROW> norm;
    norm.read(weight, size);
    wait_for_previous();
    u16* to = out + (i64)blockIdx.x * size;
    norm.apply(x + (i64)blockIdx.x * x_row, size, eps, sums, [&](int at, uint4 done) { put8(done, at, places, to); });
    __syncthreads();
    sum_runs<512>(to, size, run, run_sums + blockIdx.x, sums_row);
}
