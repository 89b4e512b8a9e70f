// Attention over the slots' KV cache, on tensor cores: of one new token a row, and of a chunk of one prompt.
// DIM: size of a head. COLUMNS of the cache are multiplied at a time, by warps of 16 queries each. Keys are copied into
// shared memory while values are multiplied, and the other way round.

#define PADDED ((DIM + 15) / 16 * 16)
// From one row in shared memory to the next: 8 rows that a warp reads together hit different banks.
#define ROW (PADDED + 8)
#define STEPS (PADDED / 16)
#define TILES (PADDED / 8)
#define CHUNK_WARPS 4
#define LOWEST __int_as_float(0xff800000)

template <int WARPS>
struct Tiles {
    u16 queries[WARPS * 16][ROW], keys[COLUMNS][ROW], values[COLUMNS][ROW];
};

// Where a head's columns lie in the cache, and the first and the end of those that any query sees.
struct CachedHead {
    const u16 *keys, *values;
    i64 column_size;
    int begin, stop;
};

// Softmax sums of two queries of a lane, in base 2: the largest score, the sum of 2^(score - top), and the values that
// those weigh. sum[i]: elements 8i + 2t and 8i + 2t + 1 of both.
struct TwoSums {
    float top[2], total[2], sum[TILES][4];
};

template <int WARPS>
__device__ __forceinline__ void sync_warps() {
    if (WARPS == 1)
        __syncwarp();
    else
        __syncthreads();
}

// Copy rows of DIM values into `to`, zeros where there are no more than `count`.
template <int WARPS, int ROWS>
__device__ __forceinline__ void load_rows(u16 (*to)[ROW], const u16* from, i64 row_size, int count) {
    constexpr int THREADS = WARPS * 32, TURNS = (ROWS * TILES + THREADS - 1) / THREADS;
#pragma unroll 4
    for (int i = 0; i < TURNS; i++) {
        const int index = i * THREADS + threadIdx.x, row = index / TILES, at = index % TILES * 8;
        if (TURNS * THREADS > ROWS * TILES && row >= ROWS) break;
        const u16* source = from + row * row_size + at;
#if DIM % 8
        for (int j = 0; j < 8; j++) to[row][at + j] = row < count && at + j < DIM ? source[j] : 0;
#else
        const bool is_there = row < count && at < DIM;
#if __CUDA_ARCH__ >= 800
        cp_async_16_zfill(is_there, &to[row][at], is_there ? source : from);
#else
        *(uint4*)&to[row][at] = is_there ? *(const uint4*)source : make_uint4(0, 0, 0, 0);
#endif
#endif
    }
}

// The softmax sums of a warp's 16 queries over a head's columns. Lane 4g+t has queries g and g+8, which see columns
// seen[0] to end[0] - 1, and those of [1]. scale: of the scores, in base 2.
template <int WARPS>
__device__ __forceinline__ void attend_columns(Tiles<WARPS>& room, const CachedHead& head, const int* seen,
                                               const int* end, float scale, TwoSums& sums) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, t = lane % 4;
    auto load_tile = [&](u16(*to)[ROW], const u16* from, int at) {
        load_rows<WARPS, COLUMNS>(to, from + at * head.column_size, head.column_size, head.stop - at);
    };
#pragma unroll
    for (int q = 0; q < 2; q++) sums.top[q] = LOWEST, sums.total[q] = 0.0f;
#pragma unroll
    for (int d = 0; d < TILES; d++)
#pragma unroll
        for (int i = 0; i < 4; i++) sums.sum[d][i] = 0.0f;
    load_tile(room.keys, head.keys, head.begin);
#pragma unroll 1
    for (int at = head.begin; at < head.stop; at += COLUMNS) {
        wait_for_copies();
        sync_warps<WARPS>();
        load_tile(room.values, head.values, at);
        // score[n]: of query g at columns 8n + 2t and 8n + 2t + 1, then of query g+8.
        float score[COLUMNS / 8][4] = {};
#pragma unroll
        for (int s = 0; s < STEPS; s++) {
            u32 query[4];
            load_matrices<false>(query, &room.queries[warp * 16 + lane % 16][s * 16 + lane / 16 * 8]);
#pragma unroll
            for (int n = 0; n < COLUMNS / 16; n++) {
                u32 keys[4];
                load_matrices<false>(keys, &room.keys[n * 16 + lane / 16 * 8 + lane % 8][s * 16 + lane / 8 % 2 * 8]);
                mma(score[2 * n], query, keys[0], keys[1]);
                mma(score[2 * n + 1], query, keys[2], keys[3]);
            }
        }
        const bool sees_all = max(seen[0], seen[1]) <= at && at + COLUMNS <= min(end[0], end[1]);
        float shrink[2];
#pragma unroll
        for (int q = 0; q < 2; q++) {
            float top = sums.top[q];
#pragma unroll
            for (int n = 0; n < COLUMNS / 8; n++)
#pragma unroll
                for (int j = 0; j < 2; j++) {
                    const int column = at + n * 8 + t * 2 + j;
                    float& one = score[n][q * 2 + j];
                    one = sees_all || (column >= seen[q] && column < end[q]) ? one * scale : LOWEST;
                    top = fmaxf(top, one);
                }
            top = fmaxf(top, __shfl_xor_sync(~0u, top, 1));
            top = fmaxf(top, __shfl_xor_sync(~0u, top, 2));
            const float base = top == LOWEST ? 0.0f : top;
            shrink[q] = exp2f(sums.top[q] - base);
            sums.top[q] = top, sums.total[q] *= shrink[q];
#pragma unroll
            for (int n = 0; n < COLUMNS / 8; n++)
#pragma unroll
                for (int j = 0; j < 2; j++) {
                    float& one = score[n][q * 2 + j];
                    one = exp2f(one - base);
                    sums.total[q] += one;
                }
        }
#pragma unroll
        for (int d = 0; d < TILES; d++)
#pragma unroll
            for (int i = 0; i < 4; i++) sums.sum[d][i] *= shrink[i / 2];
        wait_for_copies();
        sync_warps<WARPS>();
        if (at + COLUMNS < head.stop) load_tile(room.keys, head.keys, at + COLUMNS);
#pragma unroll
        for (int c = 0; c < COLUMNS / 16; c++) {
            const float *low_columns = score[2 * c], *high_columns = score[2 * c + 1];
            const u32 weights[4] = {pack(low_columns[0], low_columns[1]), pack(low_columns[2], low_columns[3]),
                                    pack(high_columns[0], high_columns[1]), pack(high_columns[2], high_columns[3])};
#pragma unroll
            for (int d = 0; d < STEPS; d++) {
                u32 values[4];
                load_matrices<true>(values, &room.values[c * 16 + lane % 16][d * 16 + lane / 16 * 8]);
                mma(sums.sum[2 * d], weights, values[0], values[1]);
                mma(sums.sum[2 * d + 1], weights, values[2], values[3]);
            }
        }
    }
#pragma unroll
    for (int q = 0; q < 2; q++) {
        sums.total[q] += __shfl_xor_sync(~0u, sums.total[q], 1);
        sums.total[q] += __shfl_xor_sync(~0u, sums.total[q], 2);
    }
}

// What a head's sink adds to its softmax sum: a score that belongs to no column (arXiv 2309.17453). top: in base 2.
__device__ __forceinline__ float of_sink(const u16* sinks, int head, float top) {
    return sinks && top != LOWEST ? exp2f(to_float(sinks[head]) * 1.4426950408889634f - top) : 0.0f;
}

// Causal attention of one slot's new tokens: query [heads][tokens][DIM] by its strides -> out [tokens][heads][DIM].
// sinks [heads]: see of_sink, if given. bounds [2]: the first one's column, and how many there are. What stands beyond them in the cache is not touched: a NaN
// that an earlier chat left weighs nothing, but times nothing it is a NaN. The other tokens' results mean nothing.
// A block takes 16 tokens a warp; those that see most come first.
extern "C" __global__ void __launch_bounds__(CHUNK_WARPS * 32, PADDED <= 128 ? 3 : 1)
    attend_chunk(const u16* query, const u16* keys, const u16* values, const i64* slots, const i64* bounds, u16* out,
                 i64 slot_size, i64 head_size, int column_size, int query_head, int query_token, float scale,
                 int window, int tokens, int group, int num_columns, const u16* sinks) {
    extern __shared__ uint4 shared[];
    Tiles<CHUNK_WARPS>& room = *(Tiles<CHUNK_WARPS>*)shared;
    const int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    const int head = blockIdx.y, heads = gridDim.y, first = (gridDim.x - 1 - blockIdx.x) * CHUNK_WARPS * 16;
    pdl_trigger();
    pdl_wait();
    const int begin = (int)bounds[0], count = min((int)bounds[1], tokens);
    const int stop = first < count ? min(begin + min(first + CHUNK_WARPS * 16, count), num_columns) : 0;
    const i64 own = slots[0] * slot_size + head / group * head_size;
    const CachedHead cached = {keys + own, values + own, column_size,
                               max(0, begin + first - window + 1) / COLUMNS * COLUMNS, stop};
    load_rows<CHUNK_WARPS, CHUNK_WARPS * 16>(room.queries, query + (i64)head * query_head + (i64)first * query_token,
                                             query_token, tokens - first);
    int seen[2], end[2];
#pragma unroll
    for (int q = 0; q < 2; q++) {
        end[q] = begin + first + warp * 16 + q * 8 + g + 1;
        seen[q] = max(0, end[q] - window);
        end[q] = min(end[q], stop);
    }
    TwoSums sums;
    attend_columns(room, cached, seen, end, scale * 1.4426950408889634f, sums);
#pragma unroll
    for (int q = 0; q < 2; q++) {
        const int token = first + warp * 16 + q * 8 + g;
        if (token >= tokens) continue;
        const float total = sums.total[q] + of_sink(sinks, head, sums.top[q]);
        const float by = total == 0.0f ? 1.0f : 1.0f / total;
        u16* to = out + ((i64)token * heads + head) * DIM;
#pragma unroll
        for (int d = 0; d < TILES; d++) {
            const int at = d * 8 + t * 2;
            if (at < DIM) *(u32*)(to + at) = pack(sums.sum[d][q * 2] * by, sums.sum[d][q * 2 + 1] * by);
        }
    }
}

// Attention of one new token a row over its slot's first `ends` [rows] columns, of which it sees the last `window`:
// gridDim.x splits of them (arXiv 2311.01282), 16 of the queries that share a key in each block of one warp.
// parts [rows][heads][splits][DIM], tops and totals without DIM: each split's softmax sums, for attend_combined.
extern "C" __global__ void __launch_bounds__(32)
    attend_split(const u16* query, const u16* keys, const u16* values, const i64* slots, const i64* ends, float* parts,
                 float* tops, float* totals, i64 slot_size, i64 head_size, int column_size, int query_row,
                 int query_head, float scale, int window, int heads, int group) {
    extern __shared__ uint4 shared[];
    Tiles<1>& room = *(Tiles<1>*)shared;
    const int g = threadIdx.x / 4, t = threadIdx.x % 4, row = blockIdx.z, split = blockIdx.x, splits = gridDim.x;
    const int sixteens = (group + 15) / 16, kv_head = blockIdx.y / sixteens, member = blockIdx.y % sixteens * 16;
    const int head = kv_head * group + member, count = min(16, group - member);
    pdl_trigger();
    pdl_wait();
    const int stop = (int)ends[row], first = max(0, stop - window);
    const int share = ((stop - first + splits - 1) / splits + COLUMNS - 1) / COLUMNS * COLUMNS;
    const int begin = first + split * share, end = min(stop, begin + share);
    const bool is_there = begin < end;
    TwoSums sums;
    if (is_there) {
        const i64 own = slots[row] * slot_size + kv_head * head_size;
        const CachedHead cached = {keys + own, values + own, column_size, begin, end};
        const int seen[2] = {begin, begin}, last[2] = {end, end};
        load_rows<1, 16>(room.queries, query + (i64)row * query_row + (i64)head * query_head, query_head, count);
        attend_columns(room, cached, seen, last, scale * 1.4426950408889634f, sums);
    }
#pragma unroll
    for (int q = 0; q < 2; q++) {
        const int one = q * 8 + g;
        if (one >= count) continue;
        const i64 place = ((i64)row * heads + head + one) * splits + split;
        if (t == 0) tops[place] = is_there ? sums.top[q] : LOWEST, totals[place] = is_there ? sums.total[q] : 0.0f;
        if (!is_there) continue;
#pragma unroll
        for (int d = 0; d < TILES; d++) {
            const int at = d * 8 + t * 2;
            if (at < DIM) *(float2*)(parts + place * DIM + at) = make_float2(sums.sum[d][q * 2], sums.sum[d][q * 2 + 1]);
        }
    }
}

// The splits of a row's head, at most 32, merged: out [rows][heads][DIM]. A head that saw nothing gets zeros.
extern "C" __global__ void __launch_bounds__(128)
    attend_combined(const float* parts, const float* tops, const float* totals, u16* out, int splits,
                    const u16* sinks, int heads) {
    const i64 first = (i64)blockIdx.x * splits;
    const int lane = threadIdx.x % 32;
    pdl_trigger();
    pdl_wait();
    // Each warp weighs all splits, a lane each.
    const float own_top = lane < splits ? tops[first + lane] : LOWEST;
    float total = lane < splits ? totals[first + lane] : 0.0f, top = own_top;
#pragma unroll
    for (int by = 16; by; by /= 2) top = fmaxf(top, __shfl_xor_sync(~0u, top, by));
    const float own_weight = total == 0.0f ? 0.0f : exp2f(own_top - top);
    total = warp_sum(total * own_weight);
    if (total != 0.0f) total += of_sink(sinks, blockIdx.x % heads, top);
    for (int base = 0; base < DIM; base += 128) {
        const int at = base + threadIdx.x;
        float value = 0.0f;
#pragma unroll 8
        for (int i = 0; i < splits; i++) {
            const float weight = __shfl_sync(~0u, own_weight, i);
            if (weight != 0.0f && at < DIM) value += weight * parts[(first + i) * DIM + at];
        }
        if (at < DIM) out[(i64)blockIdx.x * DIM + at] = to_half(total == 0.0f ? 0.0f : value / total);
    }
}
