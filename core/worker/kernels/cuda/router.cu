// Which experts each row goes to: RMSNorm, the router's logits, their scores, and the best. MAX_SIZE: the longest row
// (elements). EXPERTS_EACH: how many experts a lane looks at, a 32nd of all. A row's result does not depend on the other
// rows.
//
// Of a few rows, a block takes 8 experts, a warp each, and the last block to end for some rows chooses for them. Many
// rows go through three kernels: norm_rows, logits_of_tiles and choose_of_rows.

enum { SIGMOID = 1, NORMALIZED = 2, ROUND_LOGITS = 4, ROUND_WEIGHTS = 8 };

__device__ __forceinline__ float warp_max(float value) {
#pragma unroll
    for (int by = 16; by; by /= 2) value = fmaxf(value, __shfl_xor_sync(~0u, value, by));
    return value;
}

// By a warp: the `chosen` best of a row's experts, and their weights.
__device__ __forceinline__ void choose_experts(const float* logits, const float* bias, i64* ids, float* weights,
                                               int experts, int chosen, float scale, float least_sum, int how) {
    const int lane = threadIdx.x % 32;
    const float nothing = __uint_as_float(0xff800000u);
    float scores[EXPERTS_EACH], choice[EXPERTS_EACH];
    float most = nothing, sum = 0.0f;
#pragma unroll
    for (int i = 0; i < EXPERTS_EACH; i++) {
        const int expert = i * 32 + lane;
        scores[i] = expert < experts ? __ldcg(logits + expert) : nothing;
        most = fmaxf(most, scores[i]);
    }
    most = warp_max(most);
#pragma unroll
    for (int i = 0; i < EXPERTS_EACH; i++) {
        scores[i] = how & SIGMOID ? 1.0f / (1.0f + __expf(-scores[i])) : __expf(scores[i] - most);
        sum += scores[i];
    }
    sum = warp_sum(sum);
#pragma unroll
    for (int i = 0; i < EXPERTS_EACH; i++) {
        const int expert = i * 32 + lane;
        if (!(how & SIGMOID)) scores[i] /= sum;
        choice[i] = expert < experts ? scores[i] + (bias ? bias[expert] : 0.0f) : nothing;
    }
    int kept = 0;
    float weight = 0.0f;
    for (int one = 0; one < chosen; one++) {
        // Logits that are no numbers leave the first experts.
        float best = nothing, score = 0.0f;
        int expert = one;
#pragma unroll
        for (int i = 0; i < EXPERTS_EACH; i++)
            if (choice[i] > best) best = choice[i], score = scores[i], expert = i * 32 + lane;
#pragma unroll
        for (int by = 16; by; by /= 2) {
            const float other = __shfl_xor_sync(~0u, best, by), other_score = __shfl_xor_sync(~0u, score, by);
            const int other_expert = __shfl_xor_sync(~0u, expert, by);
            if (other > best || (other == best && other_expert < expert))
                best = other, score = other_score, expert = other_expert;
        }
#pragma unroll
        for (int i = 0; i < EXPERTS_EACH; i++)
            if (i * 32 + lane == expert) choice[i] = nothing;
        if (lane == one) kept = expert, weight = score;
    }
    if (how & NORMALIZED) weight /= fmaxf(warp_sum(weight), least_sum);
    weight *= scale;
    if (lane < chosen) ids[lane] = kept, weights[lane] = how & ROUND_WEIGHTS ? round_half(weight) : weight;
}

// x [rows][size] -> normed, its RMSNorm (`offset` is added to each weight); ids and weights [rows][chosen]. router [experts][size]. gate_weight: of the
// gate of an expert that all rows go through, whose sigmoid goes to `gates` [rows]; null for none. logits: room for
// [rows][experts]. ended: a zero for each ROWS rows, and zero again at the end. columns [rows], or null: a row whose
// column is below 0 is nobody's, and is taken for the first one, so that no expert is read for it alone.
template <int ROWS>
__device__ __forceinline__ void route(const u16* x, const u16* norm_weight, const u16* router, const u16* gate_weight,
                                      const float* bias, const i64* columns, u16* normed, float* logits, int* ended,
                                      i64* ids, float* weights, float* gates, int x_row, int size, int rows,
                                      int experts, int chosen, float eps, float offset, float scale, float least_sum,
                                      int how) {
    constexpr int AHEAD = 8;
    extern __shared__ uint4 shared[];
    float* sums = (float*)shared;
    int* is_last = (int*)(sums + 16);
    u16* of_rows = (u16*)(sums + 32);  // [ROWS][size]
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, expert = blockIdx.x * 8 + warp;
    const int first = blockIdx.y * ROWS, count = min(ROWS, rows - first);
    const bool is_gate = gate_weight && expert == experts, is_there = expert < experts || is_gate;
    const u16* line = is_gate ? gate_weight : router + (i64)min(expert, experts - 1) * size;
    uint4 ahead[AHEAD];
#pragma unroll
    for (int i = 0; i < AHEAD; i++) {
        const int at = (i * 32 + lane) * 8;
        ahead[i] = at < size ? ld_weights_16(line + at) : make_uint4(0, 0, 0, 0);
    }
    pdl_trigger();
    RmsNorm<256, MAX_SIZE> norm;
    norm.read(norm_weight, size);
    pdl_wait();
    for (int r = 0; r < count; r++) {
        __syncthreads();
        const i64 from = columns && columns[first + r] < 0 ? 0 : first + r;
        norm.apply(x + from * x_row, size, eps, offset, sums, [&](int at, uint4 done) {
            *(uint4*)(of_rows + r * size + at) = done;
            if (blockIdx.x == 0) *(uint4*)(normed + (i64)(first + r) * size + at) = done;
        });
    }
    __syncthreads();
    float total[ROWS] = {};
    for (int base = 0; base < size; base += AHEAD * 256)
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            const int at = base + (i * 32 + lane) * 8;
            if (at >= size) break;
            float by[8];
            unpack8(base ? ld_weights_16(line + at) : ahead[i], by);
#pragma unroll
            for (int r = 0; r < ROWS; r++) {
                float values[8];
                unpack8(*(const uint4*)(of_rows + min(r, count - 1) * size + at), values);
#pragma unroll
                for (int j = 0; j < 8; j++) total[r] = __fmaf_rn(by[j], values[j], total[r]);
            }
        }
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        float logit = warp_sum(total[r]);
        if (how & ROUND_LOGITS) logit = round_half(logit);
        if (lane || r >= count || !is_there) continue;
        if (is_gate)
            gates[first + r] = 1.0f / (1.0f + __expf(-round_half(logit)));
        else
            logits[(i64)(first + r) * experts + expert] = logit;
    }
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) *is_last = atomicAdd(ended + blockIdx.y, 1) == (int)gridDim.x - 1;
    __syncthreads();
    if (!*is_last) return;
    __threadfence();
    if (threadIdx.x == 0) ended[blockIdx.y] = 0;
    if (warp < count)
        choose_experts(logits + (i64)(first + warp) * experts, bias, ids + (i64)(first + warp) * chosen,
                       weights + (i64)(first + warp) * chosen, experts, chosen, scale, least_sum, how);
}

#define ROUTE(NAME, ROWS)                                                                                              \
    extern "C" __global__ void __launch_bounds__(256)                                                                  \
        NAME(const u16* x, const u16* norm_weight, const u16* router, const u16* gate_weight, const float* bias,       \
             const i64* columns, u16* normed, float* logits, int* ended, i64* ids, float* weights, float* gates,       \
             int x_row, int size, int rows, int experts, int chosen, float eps, float offset, float scale,             \
             float least_sum, int how) {                                                                               \
        route<ROWS>(x, norm_weight, router, gate_weight, bias, columns, normed, logits, ended, ids, weights, gates,    \
                    x_row, size, rows, experts, chosen, eps, offset, scale, least_sum, how);                           \
    }
ROUTE(route_1, 1)
ROUTE(route_4, 4)

// Of many rows, the first: RMSNorm, a block a row, and the gate of the expert that all rows go through, as above.
extern "C" __global__ void __launch_bounds__(256)
    norm_rows(const u16* x, const u16* norm_weight, const u16* gate_weight, u16* normed, float* gates, int x_row,
              int size, float eps, float offset) {
    __shared__ float sums[24];
    pdl_trigger();
    RmsNorm<256, MAX_SIZE> norm;
    norm.read(norm_weight, size);
    pdl_wait();
    float logit = 0.0f;
    norm.apply(x + (i64)blockIdx.x * x_row, size, eps, offset, sums, [&](int at, uint4 done) {
        *(uint4*)(normed + (i64)blockIdx.x * size + at) = done;
        if (!gate_weight) return;
        float values[8], by[8];
        unpack8(done, values);
        unpack8(*(const uint4*)(gate_weight + at), by);
#pragma unroll
        for (int j = 0; j < 8; j++) logit = __fmaf_rn(by[j], values[j], logit);
    });
    if (!gate_weight) return;
    logit = warp_sum(logit);
    if (threadIdx.x % 32 == 0) sums[16 + threadIdx.x / 32] = logit;
    __syncthreads();
    if (threadIdx.x) return;
    float whole = 0.0f;
#pragma unroll
    for (int warp = 0; warp < 8; warp++) whole += sums[16 + warp];
    gates[blockIdx.x] = 1.0f / (1.0f + __expf(-round_half(whole)));
}

// Where 8 inputs of a line lie in a stage of logits_of_tiles, in bytes. Lines of 64 inputs that follow one another have
// their halves the other way round, so that a warp's operands come from different banks.
__device__ __forceinline__ int stage_place(int line, int eighth) { return line * 128 + (eighth ^ line % 2 * 4) * 16; }

// The second: normed [rows][size] times router [experts][size] -> logits [rows][experts], by tensor cores in tiles of
// 64 rows and 64 experts. A stage is 64 inputs of both. Four warps multiply a quarter of the tile each, with half of
// every stage's inputs; four more the other half, which is added at the end.
extern "C" __global__ void __launch_bounds__(256)
    logits_of_tiles(const u16* normed, const u16* router, float* logits, int size, int rows, int experts, int how) {
    constexpr int STAGE_BYTES = 128 * 128;
    extern __shared__ uint4 shared[];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4, num_stages = size / 64;
    const int first = blockIdx.x * 64, first_expert = blockIdx.y * 64;
    const int eighth = threadIdx.x % 8, line = threadIdx.x / 8;
    const u32 to = smem_address(shared) + stage_place(line, eighth);
    // Lines that do not exist are the last one; their results are not stored.
    const u16* from[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const int at = line + i % 2 * 32;
        from[i] = i < 2 ? normed + (i64)min(first + at, rows - 1) * size + eighth * 8
                        : router + (i64)min(first_expert + at, experts - 1) * size + eighth * 8;
    }
    auto load_stage = [&](int stage) {
        if (stage < num_stages)
#pragma unroll
            for (int i = 0; i < 4; i++)
                cp_async_16(to + stage % LOGIT_STAGES * STAGE_BYTES + i * 32 * 128, from[i] + stage * 64);
        asm volatile("cp.async.commit_group;" ::: "memory");
    };
    pdl_trigger();
    pdl_wait();
#pragma unroll
    for (int stage = 0; stage < LOGIT_STAGES - 1; stage++) load_stage(stage);
    const int part = warp / 4, quarter = warp % 4, own_row = quarter / 2 * 32, own_expert = quarter % 2 * 32;
    float total[2][4][4] = {};
    for (int stage = 0; stage < num_stages; stage++) {
        asm volatile("cp.async.wait_group %0;" ::"n"(LOGIT_STAGES - 2) : "memory");
        __syncthreads();
        load_stage(stage + LOGIT_STAGES - 1);
        const char* at = (const char*)shared + stage % LOGIT_STAGES * STAGE_BYTES;
        uint4 row[4], expert[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            row[i] = *(const uint4*)(at + stage_place(own_row + i * 8 + g, part * 4 + t));
            expert[i] = *(const uint4*)(at + stage_place(64 + own_expert + i * 8 + g, part * 4 + t));
        }
#pragma unroll
        for (int m = 0; m < 2; m++) {
            const uint4 upper = row[m * 2], lower = row[m * 2 + 1];
            const u32 a[8] = {upper.x, lower.x, upper.y, lower.y, upper.z, lower.z, upper.w, lower.w};
#pragma unroll
            for (int n = 0; n < 4; n++) {
                mma(total[m][n], a, expert[n].x, expert[n].y);
                mma(total[m][n], a + 4, expert[n].z, expert[n].w);
            }
        }
    }
    __syncthreads();
    float* others = (float*)shared + quarter * 32 * 32 + lane;
#pragma unroll
    for (int i = 0; i < 32; i++)
        if (part) others[i * 32] = total[i / 16][i / 4 % 4][i % 4];
    __syncthreads();
    if (part) return;
#pragma unroll
    for (int i = 0; i < 32; i++) {
        const int row = first + own_row + i / 16 * 16 + i % 4 / 2 * 8 + g;
        const int expert = first_expert + own_expert + i / 4 % 4 * 8 + t * 2 + i % 2;
        const float logit = total[i / 16][i / 4 % 4][i % 4] + others[i * 32];
        if (row < rows && expert < experts)
            logits[(i64)row * experts + expert] = how & ROUND_LOGITS ? round_half(logit) : logit;
    }
}

// The third: a warp chooses for a row.
extern "C" __global__ void __launch_bounds__(256)
    choose_of_rows(const float* logits, const float* bias, i64* ids, float* weights, int rows, int experts, int chosen,
                   float scale, float least_sum, int how) {
    pdl_trigger();
    pdl_wait();
    const i64 row = blockIdx.x * 8 + threadIdx.x / 32;
    if (row < rows)
        choose_experts(logits + row * experts, bias, ids + row * chosen, weights + row * chosen, experts, chosen, scale,
                       least_sum, how);
}
