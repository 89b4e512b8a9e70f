// What a decoding step does to rows beside its matrices: norms, and attention over the slots' cache. Knows no model.
// DIM is the size of a head, QUERIES how many of its queries a block takes together, SEGMENT how many columns at a time.

// RMSNorm, a block a row of at most MAX_ROW values.
extern "C" __global__ void __launch_bounds__(512)
    norm_rows(const u16* x, const u16* weight, u16* out, const int* places, int x_row, int size, float eps) {
    __shared__ float sums[16];
    let_next_come();
    Norm<512, MAX_ROW> norm;
    norm.read(weight, size);
    wait_for_previous();
    norm.apply(x + (i64)blockIdx.x * x_row, size, eps, sums, places, out + (i64)blockIdx.x * size);
}

#define LANES (DIM / 8)
#define TOGETHER (256 / LANES)
#define TURNS (SEGMENT / TOGETHER)
#define BATCH (QUERIES > 2 ? (TURNS < 4 ? TURNS : 4) : (TURNS < 8 ? TURNS : 8))

// 8 places of a head, turned by its position (arXiv 2104.09864): the partner of a place is half a head away.
__device__ __forceinline__ void turned(const u16* head, const u16* cos, const u16* sin, int lane, float* to) {
    const bool is_first = lane < LANES / 2;
    float own[8], partner[8], c[8], s[8];
    unpack8(read16(head + lane * 8), own);
    unpack8(read16(head + (is_first ? lane + LANES / 2 : lane - LANES / 2) * 8), partner);
    unpack8(read16(cos + lane * 8), c);
    unpack8(read16(sin + lane * 8), s);
#pragma unroll
    for (int i = 0; i < 8; i++) to[i] = round_half(own[i] * c[i] + (is_first ? -partner[i] : partner[i]) * s[i]);
}

// One new token of each row: its query and key are turned, key and value go into the slot's cache at `columns`, and the
// query looks at the columns up to there, `window` of them at most. A row with a column below 0 gets zeros.
// The columns are read in segments, by several blocks a head (arXiv 2311.01282); the last one to end sums them up, in
// their order: what comes out does not depend on how many blocks there are, and so not on the other rows.
// qkv [rows, (heads + 2 kv heads) * DIM]; each value of the result is put where `places` says; parts [rows, heads, segments, DIM], tops and totals without DIM.
extern "C" __global__ void __launch_bounds__(256)
    attend(const u16* qkv, const u16* cos, const u16* sin, u16* keys, u16* values, const i64* slots, const i64* columns,
           float* parts, float* tops, float* totals, u32* ended, u16* out, const int* places, i64 slot_size, i64 head_size, int angle_row,
           float scale, int window, int heads, int kv_heads, int max_segments) {
    __shared__ float shared[8][QUERIES][DIM];
    __shared__ float shared_top[8][QUERIES], shared_total[8][QUERIES];
    __shared__ bool is_last;
    const int lane = threadIdx.x % LANES, turn = threadIdx.x / LANES, warp = threadIdx.x / 32;
    const int row = blockIdx.z, head = blockIdx.y * QUERIES, kv_head = head / (heads / kv_heads);
    // Where a row stands, the angles and what the cache held before this step were there before the step's first kernel.
    const int column = (int)columns[row];
    auto put = [&](int at, float value) {
        const int place = head * DIM + at;
        out[(i64)row * heads * DIM + (places ? places[place] : place)] = to_half(value);
    };
    if (column < 0) {
        let_next_come();
        wait_for_previous();
        if (blockIdx.x == 0)
            for (int at = threadIdx.x; at < QUERIES * DIM; at += 256) put(at, 0.0f);
        return;
    }
    const int end = column + 1, begin = max(0, end - window);
    const int first_segment = begin / SEGMENT, num_segments = (end + SEGMENT - 1) / SEGMENT - first_segment;
    if ((int)blockIdx.x >= num_segments) {
        let_next_come();
        wait_for_previous();
        return;
    }
    const u16* here = qkv + (i64)row * (heads + 2 * kv_heads) * DIM;
    const u16 *row_cos = cos + (i64)row * angle_row, *row_sin = sin + (i64)row * angle_row;
    u16* own_keys = keys + slots[row] * slot_size + kv_head * head_size;
    u16* own_values = values + slots[row] * slot_size + kv_head * head_size;
    uint4 key[BATCH], value[BATCH];
    auto read_old = [&](int base) {
#pragma unroll
        for (int u = 0; u < BATCH; u++) {
            const int at = base + u * TOGETHER + turn;
            const bool is_seen = at >= begin && at < column;
            key[u] = is_seen ? *(const uint4*)(own_keys + (i64)at * DIM + lane * 8) : make_uint4(0, 0, 0, 0);
            value[u] = is_seen ? *(const uint4*)(own_values + (i64)at * DIM + lane * 8) : make_uint4(0, 0, 0, 0);
        }
    };
    read_old((first_segment + blockIdx.x) * SEGMENT);
    let_next_come();
    wait_for_previous();
    float query[QUERIES][8];
#pragma unroll
    for (int q = 0; q < QUERIES; q++) {
        turned(here + (head + q) * DIM, row_cos, row_sin, lane, query[q]);
#pragma unroll
        for (int i = 0; i < 8; i++) query[q][i] *= scale * 1.4426950408889634f;
    }
    for (int segment = blockIdx.x; segment < num_segments; segment += gridDim.x) {
        const int base = (first_segment + segment) * SEGMENT;
        float top[QUERIES], total[QUERIES], sum[QUERIES][8];
#pragma unroll
        for (int q = 0; q < QUERIES; q++) {
            top[q] = -1e30f, total[q] = 0.0f;
#pragma unroll
            for (int i = 0; i < 8; i++) sum[q][i] = 0.0f;
        }
        for (int batch = 0; batch < TURNS; batch += BATCH) {
            if (batch || segment != (int)blockIdx.x) read_old(base + batch * TOGETHER);
#pragma unroll
            for (int u = 0; u < BATCH; u++) {
                const int at = base + (batch + u) * TOGETHER + turn;
                if (at == column) {
                    float fresh[8];
                    turned(here + (heads + kv_head) * DIM, row_cos, row_sin, lane, fresh);
                    key[u] = make_uint4(pack(fresh[0], fresh[1]), pack(fresh[2], fresh[3]), pack(fresh[4], fresh[5]),
                                        pack(fresh[6], fresh[7]));
                    value[u] = read16(here + (heads + kv_heads + kv_head) * DIM + lane * 8);
                    if (head % (heads / kv_heads) == 0) {
                        *(uint4*)(own_keys + (i64)at * DIM + lane * 8) = key[u];
                        *(uint4*)(own_values + (i64)at * DIM + lane * 8) = value[u];
                    }
                }
            }
            float score[QUERIES][BATCH];
#pragma unroll
            for (int u = 0; u < BATCH; u++) {
                float places[8];
                unpack8(key[u], places);
#pragma unroll
                for (int q = 0; q < QUERIES; q++) {
                    float dot = 0.0f;
#pragma unroll
                    for (int i = 0; i < 8; i++) dot += query[q][i] * places[i];
#pragma unroll
                    for (int by = LANES / 2; by; by /= 2) dot += __shfl_xor_sync(~0u, dot, by);
                    const int at = base + (batch + u) * TOGETHER + turn;
                    score[q][u] = at >= begin && at < end ? dot : -1e30f;
                }
            }
#pragma unroll
            for (int q = 0; q < QUERIES; q++) {
                float new_top = top[q];
#pragma unroll
                for (int u = 0; u < BATCH; u++) new_top = fmaxf(new_top, score[q][u]);
                const float shrink = exp2f(top[q] - new_top);
                total[q] *= shrink;
#pragma unroll
                for (int i = 0; i < 8; i++) sum[q][i] *= shrink;
#pragma unroll
                for (int u = 0; u < BATCH; u++) {
                    score[q][u] = score[q][u] > -1e29f ? exp2f(score[q][u] - new_top) : 0.0f;
                    total[q] += score[q][u];
                }
                top[q] = new_top;
            }
#pragma unroll
            for (int u = 0; u < BATCH; u++) {
                float places[8];
                unpack8(value[u], places);
#pragma unroll
                for (int q = 0; q < QUERIES; q++)
#pragma unroll
                    for (int i = 0; i < 8; i++) sum[q][i] += score[q][u] * places[i];
            }
        }
        // Within a warp, then over the 8 warps.
#pragma unroll
        for (int q = 0; q < QUERIES; q++) {
#pragma unroll
            for (int by = LANES; by < 32; by *= 2) {
                const float other = __shfl_xor_sync(~0u, top[q], by), both = fmaxf(top[q], other);
                const float own = exp2f(top[q] - both), theirs = exp2f(other - both);
                // Both sides of a pair add in the same order.
                const bool is_low = !(threadIdx.x & by);
                const float other_total = __shfl_xor_sync(~0u, total[q], by);
                total[q] = is_low ? total[q] * own + other_total * theirs : other_total * theirs + total[q] * own;
#pragma unroll
                for (int i = 0; i < 8; i++) {
                    const float other_sum = __shfl_xor_sync(~0u, sum[q][i], by);
                    sum[q][i] = sum[q][i] * own + other_sum * theirs;
                }
                top[q] = both;
            }
            if (threadIdx.x % 32 < LANES) {
#pragma unroll
                for (int i = 0; i < 8; i++) shared[warp][q][lane * 8 + i] = sum[q][i];
                if (lane == 0) shared_top[warp][q] = top[q], shared_total[warp][q] = total[q];
            }
        }
        __syncthreads();
        for (int at = threadIdx.x; at < QUERIES * DIM; at += 256) {
            const int q = at / DIM, place = at % DIM;
            float whole_top = -1e30f, whole_total = 0.0f, whole = 0.0f;
#pragma unroll
            for (int w = 0; w < 8; w++) whole_top = fmaxf(whole_top, shared_top[w][q]);
#pragma unroll
            for (int w = 0; w < 8; w++) {
                const float by = exp2f(shared_top[w][q] - whole_top);
                whole_total += by * shared_total[w][q];
                whole += by * shared[w][q][place];
            }
            if (num_segments == 1) {
                put(at, whole / whole_total);
            } else {
                const i64 part = ((i64)row * heads + head + q) * max_segments + segment;
                parts[part * DIM + place] = whole;
                if (place == 0) tops[part] = whole_top, totals[part] = whole_total;
            }
        }
        __syncthreads();  // Of this segment's sums, and before what is said of them.
    }
    if (num_segments == 1) return;
    u32* counter = ended + (i64)row * gridDim.y + blockIdx.y;
    if (threadIdx.x == 0) {
        __threadfence();
        is_last = atomicAdd(counter, 1) == min((int)gridDim.x, num_segments) - 1;
        if (is_last) *counter = 0;
        __threadfence();
    }
    __syncthreads();
    if (!is_last) return;
    for (int at = threadIdx.x; at < QUERIES * DIM; at += 256) {
        const int q = at / DIM, place = at % DIM;
        const i64 part = ((i64)row * heads + head + q) * max_segments;
        float whole_top = -1e30f, whole_total = 0.0f, whole = 0.0f;
        // Eight at a time, all on their way at once.
        for (int base = 0; base < num_segments; base += 8) {
            float top[8], total[8], sum[8];
#pragma unroll
            for (int i = 0; i < 8; i++) {
                const bool is_there = base + i < num_segments;
                const i64 one = part + (is_there ? base + i : 0);
                top[i] = is_there ? __ldcg(tops + one) : -1e30f;
                total[i] = is_there ? __ldcg(totals + one) : 0.0f;
                sum[i] = is_there ? __ldcg(parts + one * DIM + place) : 0.0f;
            }
            float new_top = whole_top;
#pragma unroll
            for (int i = 0; i < 8; i++) new_top = fmaxf(new_top, top[i]);
            const float shrink = exp2f(whole_top - new_top);
            whole_total *= shrink, whole *= shrink;
#pragma unroll
            for (int i = 0; i < 8; i++) {
                const float by = exp2f(top[i] - new_top);
                whole_total += by * total[i];
                whole += by * sum[i];
            }
            whole_top = new_top;
        }
        put(at, whole / whole_total);
    }
}
