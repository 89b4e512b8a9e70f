// RMSNorm of rows of at most MAX_ROW values, a block a row, and the sums of the result's scale groups:
// group_sums [groups][sums_row].
extern "C" __global__ void __launch_bounds__(512)
    rmsnorm_and_sum(const u16* x, const u16* weight, u16* out, const int* inverse_permutation, int x_row, int size,
                    float eps, float offset, float* group_sums, int sums_row, int inputs_per_group) {
    __shared__ float sums[16];
    pdl_trigger();
    RmsNorm<512, MAX_ROW> norm;
    norm.read(weight, size);
    pdl_wait();
    u16* to = out + (i64)blockIdx.x * size;
    norm.apply(x + (i64)blockIdx.x * x_row, size, eps, offset, sums,
               [&](int at, uint4 done) { store_8(done, at, inverse_permutation, to); });
    __syncthreads();
    scale_group_sums<512>(to, size, inputs_per_group, group_sums + blockIdx.x, sums_row);
}
