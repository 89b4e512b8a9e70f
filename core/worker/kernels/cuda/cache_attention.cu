// Attention over the slots' KV cache, on tensor cores: of one new token a row, and of chunks of prompts.
// DIM: size of a head. COLUMNS of the cache are multiplied at a time, by warps of 16 queries each. Keys are copied into
// shared memory while values are multiplied, and the other way round.

#define PADDED ((DIM + 15) / 16 * 16)
// From one row in shared memory to the next: 8 rows that a warp reads together hit different banks.
#define ROW (PADDED + 8)
#define STEPS (PADDED / 16)
#define TILES (PADDED / 8)
#define CHUNK_WARPS 4

template <int WARPS>
struct Tiles {
    u16 queries[WARPS * 16][ROW], keys[COLUMNS][ROW], values[COLUMNS][ROW];
#if CACHE_BITS == 8
    float key_scales[COLUMNS], value_scales[COLUMNS];
#endif
};

// Where a head's columns lie in the pages, and the first and the end of those that any query sees.
struct CachedHead {
    const kv_t *keys, *values;
    const u16 *key_scales, *value_scales;  // Of the head in page 0.
    const int* pages;
    i64 page_size;
    int scale_page, begin, stop;

    __device__ __forceinline__ CachedHead(const KvPages& cache, i64 slot, int head, int begin, int stop)
        : keys(cache.keys + head * cache.head_size), values(cache.values + head * cache.head_size),
          key_scales(cache.key_scales + cache.scale(0, head, 0)),
          value_scales(cache.value_scales + cache.scale(0, head, 0)), pages(cache.of(slot)),
          page_size(cache.page_size), scale_page(cache.kv_heads * PAGE_TOKENS), begin(begin), stop(stop) {}
};

// The pages of COLUMNS columns, which lie in two where the first is none of their multiples.
struct TilePages {
    int first, last;

    // That of the column `row` behind column `at`, the first.
    __device__ __forceinline__ int of(int at, int row) const {
        return (at + row) / PAGE_TOKENS == at / PAGE_TOKENS ? first : last;
    }
};

#if CACHE_BITS == 8
// A tile's integers and scales on their way into shared memory.
template <int WARPS>
struct RawTile {
    static constexpr int THREADS = WARPS * 32, TURNS = (COLUMNS * TILES + THREADS - 1) / THREADS;
    static constexpr int SCALES = (COLUMNS + THREADS - 1) / THREADS;
    uint2 bytes[TURNS];
    u16 scales[SCALES];

    __device__ __forceinline__ void load(const CachedHead& head, const kv_t* from, const u16* from_scales, int at,
                                         const TilePages& pages) {
#pragma unroll
        for (int i = 0; i < TURNS; i++) {
            const int index = i * THREADS + threadIdx.x, row = index / TILES, place = index % TILES * 8;
            const kv_t* source = from + pages.of(at, row) * head.page_size + (at + row) % PAGE_TOKENS * DIM + place;
            bytes[i].x = bytes[i].y = 0;
            if (row >= COLUMNS || at + row >= head.stop) continue;
#if DIM % 8
            for (int j = 0; j < 8 && place + j < DIM; j++) {
                u32& word = j < 4 ? bytes[i].x : bytes[i].y;
                word |= (u32)(source[j] & 255) << j % 4 * 8;
            }
#else
            if (place < DIM) bytes[i] = *(const uint2*)source;
#endif
        }
#pragma unroll
        for (int i = 0; i < SCALES; i++) {
            const int row = i * THREADS + threadIdx.x;
            const i64 page = (i64)pages.of(at, row) * head.scale_page;
            scales[i] = row < COLUMNS && at + row < head.stop ? from_scales[page + (at + row) % PAGE_TOKENS] : 0;
        }
    }
    // `by`: what the scales are multiplied by.
    __device__ __forceinline__ void store(u16 (*to)[ROW], float* to_scales, float by) const {
#pragma unroll
        for (int i = 0; i < TURNS; i++) {
            const int index = i * THREADS + threadIdx.x, row = index / TILES, place = index % TILES * 8;
            if (row < COLUMNS) *(uint4*)&to[row][place] = integers_8(bytes[i]);
        }
#pragma unroll
        for (int i = 0; i < SCALES; i++) {
            const int row = i * THREADS + threadIdx.x;
            if (row < COLUMNS) to_scales[row] = to_float(scales[i]) * by;
        }
    }
};
#endif

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

// Copy rows of DIM values into `to`, zeros where there are no more than `count`. row_of(row): where one lies; `valid`: any
// place that may be read.
template <int WARPS, int ROWS, class RowOf>
__device__ __forceinline__ void load_rows(u16 (*to)[ROW], const u16* valid, int count, RowOf row_of) {
    constexpr int THREADS = WARPS * 32, TURNS = (ROWS * TILES + THREADS - 1) / THREADS;
#pragma unroll 4
    for (int i = 0; i < TURNS; i++) {
        const int index = i * THREADS + threadIdx.x, row = index / TILES, at = index % TILES * 8;
        if (TURNS * THREADS > ROWS * TILES && row >= ROWS) break;
        const u16* source = row_of(row) + at;
#if DIM % 8
        for (int j = 0; j < 8; j++) to[row][at + j] = row < count && at + j < DIM ? source[j] : 0;
#else
        const bool is_there = row < count && at < DIM;
        copy_16_or_zeros(is_there, &to[row][at], is_there ? source : valid);
#endif
    }
}

// The softmax sums of a warp's 16 queries over a head's columns. Lane 4g+t has queries g and g+8, which see columns
// seen[0] to end[0] - 1, and those of [1]. scale: of the scores, in base 2.
template <int WARPS>
__device__ __forceinline__ void attend_columns(Tiles<WARPS>& room, const CachedHead& head, const int* seen,
                                               const int* end, float scale, TwoSums& sums) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, t = lane % 4;
    // Looked up a tile ahead.
    auto look_up = [&](int at) {
        if (at >= head.stop) return TilePages{0, 0};
        return TilePages{head.pages[at / PAGE_TOKENS], head.pages[(min(at + COLUMNS, head.stop) - 1) / PAGE_TOKENS]};
    };
    // A tile of 8 bit goes through registers, which it waits in while another is multiplied.
#if CACHE_BITS == 8
    RawTile<WARPS> raw;
    auto load_tile = [&](u16(*to)[ROW], const kv_t* from, const u16* scales, int at, const TilePages& pages) {
        raw.load(head, from, scales, at, pages);
    };
    auto store_tile = [&](u16(*to)[ROW], float* scales, float by) { raw.store(to, scales, by); };
#else
    auto load_tile = [&](u16(*to)[ROW], const kv_t* from, const u16* scales, int at, const TilePages& pages) {
        load_rows<WARPS, COLUMNS>(to, from, head.stop - at, [&](int row) {
            return from + pages.of(at, row) * head.page_size + (at + row) % PAGE_TOKENS * DIM;
        });
    };
#endif
    TilePages pages = look_up(head.begin);
#pragma unroll
    for (int q = 0; q < 2; q++) sums.top[q] = LOWEST, sums.total[q] = 0.0f;
#pragma unroll
    for (int d = 0; d < TILES; d++)
#pragma unroll
        for (int i = 0; i < 4; i++) sums.sum[d][i] = 0.0f;
    load_tile(room.keys, head.keys, head.key_scales, head.begin, pages);
#if CACHE_BITS == 8
    store_tile(room.keys, room.key_scales, 1.0f);
#endif
#pragma unroll 1
    for (int at = head.begin; at < head.stop; at += COLUMNS) {
        const TilePages next_pages = look_up(at + COLUMNS);
        wait_for_copies();
        sync_warps<WARPS>();
        load_tile(room.values, head.values, head.value_scales, at, pages);
        pages = next_pages;
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
#if CACHE_BITS == 8
                    one *= room.key_scales[column - at];
#endif
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
#if CACHE_BITS == 8
        store_tile(room.values, room.value_scales, SCALE_UP);
#endif
#pragma unroll
        for (int d = 0; d < TILES; d++)
#pragma unroll
            for (int i = 0; i < 4; i++) sums.sum[d][i] *= shrink[i / 2];
        wait_for_copies();
        sync_warps<WARPS>();
        if (at + COLUMNS < head.stop) load_tile(room.keys, head.keys, head.key_scales, at + COLUMNS, pages);
#if CACHE_BITS == 8
#pragma unroll
        for (int n = 0; n < COLUMNS / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) score[n][i] *= room.value_scales[n * 8 + t * 2 + i % 2];
#endif
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
#if CACHE_BITS == 8
        if (at + COLUMNS < head.stop) store_tile(room.keys, room.key_scales, 1.0f);
#endif
    }
#if CACHE_BITS == 8
#pragma unroll
    for (int d = 0; d < TILES; d++)
#pragma unroll
        for (int i = 0; i < 4; i++) sums.sum[d][i] *= 1.0f / SCALE_UP;
#endif
#pragma unroll
    for (int q = 0; q < 2; q++) {
        sums.total[q] += __shfl_xor_sync(~0u, sums.total[q], 1);
        sums.total[q] += __shfl_xor_sync(~0u, sums.total[q], 2);
    }
}

// Causal attention of the new tokens of several slots: query [heads][tokens][DIM] by its strides -> out [tokens][heads]
// [DIM]. sinks [heads]: see of_sink, if given. chunks: see find_tile. What stands beyond them in the cache is not
// touched: a NaN that an earlier chat left weighs nothing, but times nothing it is a NaN. Tokens of no chunk get zeros.
// A block takes 16 tokens a warp; those that see most of their chunk come first.
extern "C" __global__ void __launch_bounds__(CHUNK_WARPS * 32, PADDED <= 128 ? 3 : 1)
    attend_chunks(const u16* query, const KvPages cache, const i64* chunks, u16* out, int query_head, int query_token,
                  float scale, int window, int tokens, int group, int num_columns, const u16* sinks, int num_chunks) {
    extern __shared__ uint4 shared[];
    Tiles<CHUNK_WARPS>& room = *(Tiles<CHUNK_WARPS>*)shared;
    const int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    const int head = blockIdx.y, heads = gridDim.y;
    pdl_trigger();
    pdl_wait();
    ChunkTile tile;
    if (!find_tile<CHUNK_WARPS * 16>(chunks, num_chunks, tokens, gridDim.x - 1 - blockIdx.x, tile)) return;
    const int stop = tile.is_padding ? 0 : min(tile.begin + tile.num_there, num_columns);
    const CachedHead cached(cache, tile.slot, head / group, max(0, tile.begin - window + 1) / COLUMNS * COLUMNS, stop);
    query += (i64)head * query_head + (i64)tile.first_row * query_token;
    load_rows<CHUNK_WARPS, CHUNK_WARPS * 16>(room.queries, query, tile.num_there,
                                             [&](int row) { return query + (i64)row * query_token; });
    int seen[2], end[2];
#pragma unroll
    for (int q = 0; q < 2; q++) {
        end[q] = tile.begin + warp * 16 + q * 8 + g + 1;
        seen[q] = max(0, end[q] - window);
        end[q] = min(end[q], stop);
    }
    TwoSums sums;
    attend_columns(room, cached, seen, end, scale * LOG2_E, sums);
#pragma unroll
    for (int q = 0; q < 2; q++) {
        const int token = warp * 16 + q * 8 + g;
        if (token >= tile.num_there) continue;
        const float total = sums.total[q] + of_sink(sinks, head, sums.top[q]);
        const float by = total == 0.0f ? 1.0f : 1.0f / total;
        u16* to = out + ((i64)(tile.first_row + token) * heads + head) * DIM;
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
    attend_split(const u16* query, const KvPages cache, const i64* slots, const i64* ends, float* parts, float* tops,
                 float* totals, int query_row, int query_head, float scale, int window, int heads, int group) {
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
        const CachedHead cached(cache, slots[row], kv_head, begin, end);
        const int seen[2] = {begin, begin}, last[2] = {end, end};
        query += (i64)row * query_row + (i64)head * query_head;
        load_rows<1, 16>(room.queries, query, count, [&](int one) { return query + (i64)one * query_head; });
        attend_columns(room, cached, seen, last, scale * LOG2_E, sums);
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
