// Attention of chunks of prompts over the slots' KV cache, on the tensor cores of compute capability 9.0. DIM: size of a
// head, 64, 128 or 256. COLUMNS of the cache are multiplied at a time.
//
// Of a thread block one warpgroup brings keys and values into shared memory, in rows of 128 bytes as wgmma takes them, and two
// others multiply, 64 queries each: while one weighs its scores, the tensor cores are at the other's.

#define GROUPS 2
#define QUERIES 64
#define TILE_QUERIES (GROUPS * QUERIES)
#define SLICES (DIM / 64)
#define EIGHTS (DIM / 8)
#define STAGES 2
#define MULTIPLYING (GROUPS * 128)
#define COPYING 128
#define TILE_PAGES (COLUMNS / PAGE_TOKENS)
// So many copies of keys or values are on their way when another one is asked for.
#define LAG 2
#define KEYS 0
#define VALUES 1
// 16 bytes of a column hold so many elements, and a column so many of those; the threads that copy take so many columns a
// turn.
#define PIECE (128 / CACHE_BITS)
#define PIECES (DIM / PIECE)
#define STEP (COPYING / PIECES)
#define TURNS (COLUMNS / STEP)

// 64 elements of each of some rows; eights of a row are swizzled.
typedef u16 Rows[64];
__device__ __forceinline__ uint4* place_of(Rows* rows, int row, int eight) {
    return (uint4*)&rows[row][(eight ^ row % 8) * 8];
}

struct Room {
    u16 queries[GROUPS][SLICES][QUERIES][64], cached[2][STAGES][SLICES][COLUMNS][64];
#if CACHE_BITS == 8
    float scales[2][STAGES][COLUMNS];
#endif
    i64 full[2][STAGES], empty[2][STAGES];
};

// The columns of a head in the cache that any query of the block sees, and what brings a tile of them into the room.
struct Cached {
    const kv_t *keys, *values;
    const u16 *key_scales, *value_scales;
    const int* pages;
    i64 page_size;
    int scale_page, stop;

    __device__ __forceinline__ Cached(const KvPages& cache, i64 slot, int head, int stop)
        : keys(cache.keys + head * cache.head_size), values(cache.values + head * cache.head_size),
          key_scales(cache.key_scales + cache.scale(0, head, 0)),
          value_scales(cache.value_scales + cache.scale(0, head, 0)), pages(cache.of(slot)),
          page_size(cache.page_size), scale_page(cache.kv_heads * PAGE_TOKENS), stop(stop) {}

    // Of the tile at column `at`; behind the last column it is that of the last one, of which nothing is read.
    __device__ __forceinline__ void look_up(int at, int* to) const {
#pragma unroll
        for (int i = 0; i < TILE_PAGES; i++) to[i] = pages[min(at + i * PAGE_TOKENS, stop - 1) / PAGE_TOKENS];
    }
};

#if CACHE_BITS == 8
// A thread's part of a tile's integers and scales, on their way.
struct RawTile {
    uint4 bytes[TURNS];
    u16 scale;

    __device__ __forceinline__ void load(const Cached& cached, int kind, int at, const int* pages, u32 thread) {
        const int row = thread / PIECES;
        const kv_t* from = (kind == KEYS ? cached.keys : cached.values) + row * DIM + thread % PIECES * PIECE;
#pragma unroll
        for (int i = 0; i < TURNS; i++) {
            bytes[i] = make_uint4(0, 0, 0, 0);
            if (at + i * STEP + row < cached.stop)
                bytes[i] = *(const uint4*)(from + pages[i * STEP / PAGE_TOKENS] * cached.page_size +
                                           i * STEP % PAGE_TOKENS * DIM);
        }
        scale = 0;
        if (thread < COLUMNS && at + thread < cached.stop)
            scale = (kind == KEYS ? cached.key_scales : cached.value_scales)[(i64)pages[thread / PAGE_TOKENS] *
                                                                                cached.scale_page +
                                                                            thread % PAGE_TOKENS];
    }
    __device__ __forceinline__ void store(Room& room, int kind, int stage, u32 thread) const {
        const int row = thread / PIECES, eight = thread % PIECES * 2;
        Rows* to = room.cached[kind][stage][eight / 8];
#pragma unroll
        for (int i = 0; i < TURNS; i++) {
            *place_of(to, i * STEP + row, eight % 8) = integers_8(make_uint2(bytes[i].x, bytes[i].y));
            *place_of(to, i * STEP + row, eight % 8 + 1) = integers_8(make_uint2(bytes[i].z, bytes[i].w));
        }
        if (thread < COLUMNS) room.scales[kind][stage][thread] = to_float(scale) * (kind == KEYS ? 1.0f : SCALE_UP);
    }
};
#endif

// What the warpgroup does that brings tiles, keys and values in turn.
__device__ __forceinline__ void bring_tiles(Room& room, const Cached& cached, int begin) {
    const u32 thread = threadIdx.x % COPYING;
    int stage = 0, parity = 1, pages[TILE_PAGES], next_pages[TILE_PAGES];
    cached.look_up(begin, next_pages);
#if CACHE_BITS == 8
    RawTile keys, values;
    keys.load(cached, KEYS, begin, next_pages, thread);
    auto put = [&](const RawTile& raw, int kind) {
        mbarrier_wait(&room.empty[kind][stage], parity);
        raw.store(room, kind, stage, thread);
        async_fence();
        mbarrier_arrive(&room.full[kind][stage]);
    };
    for (int at = begin; at < cached.stop; at += COLUMNS) {
#pragma unroll
        for (int i = 0; i < TILE_PAGES; i++) pages[i] = next_pages[i];
        cached.look_up(at + COLUMNS, next_pages);
        values.load(cached, VALUES, at, pages, thread);
        put(keys, KEYS);
        keys.load(cached, KEYS, at + COLUMNS, next_pages, thread);
        put(values, VALUES);
        if (++stage == STAGES) stage = 0, parity ^= 1;
    }
#else
    const int row = thread / PIECES, eight = thread % PIECES, own = row * DIM + eight * 8;
    auto copy = [&](const u16* from, int kind, int at) {
        mbarrier_wait(&room.empty[kind][stage], parity);
        Rows* to = room.cached[kind][stage][eight / 8];
#pragma unroll
        for (int i = 0; i < TURNS; i++)
            cp_async_16_zfill(at + i * STEP + row < cached.stop, place_of(to, i * STEP + row, eight % 8),
                              from + pages[i * STEP / PAGE_TOKENS] * cached.page_size + i * STEP % PAGE_TOKENS * DIM);
        copies_commit();
    };
    // Tell of an earlier copy, that of the same kind a tile before.
    auto tell = [&](int kind) {
        async_fence();
        mbarrier_arrive(&room.full[kind][(stage + STAGES - 1) % STAGES]);
    };
    for (int at = begin; at < cached.stop; at += COLUMNS) {
#pragma unroll
        for (int i = 0; i < TILE_PAGES; i++) pages[i] = next_pages[i];
        cached.look_up(at + COLUMNS, next_pages);
        copy(cached.keys + own, KEYS, at);
        if (at > begin) copies_wait<LAG>(), tell(KEYS);
        copy(cached.values + own, VALUES, at);
        if (at > begin) copies_wait<LAG>(), tell(VALUES);
        if (++stage == STAGES) stage = 0, parity ^= 1;
    }
    if (begin < cached.stop) copies_wait<1>(), tell(KEYS), copies_wait<0>(), tell(VALUES);
#endif
}

// Causal attention of the new tokens of several slots: query [heads][tokens][DIM] by its strides -> out [tokens][heads]
// [DIM]. sinks [heads]: see of_sink, if given. chunks: see find_tile. What stands beyond them in the cache is not
// touched: a NaN that an earlier chat left weighs nothing, but times nothing it is a NaN. Tokens of no chunk get zeros.
// Tiles that see most of their chunk come first.
extern "C" __global__ void __launch_bounds__(MULTIPLYING + COPYING, 1)
    attend_prompts(const u16* query, const KvPages cache, const i64* chunks, u16* out, int query_head, int query_token,
                   float scale, int window, int tokens, int group, int num_columns, const u16* sinks, int num_chunks) {
    extern __shared__ uint4 shared[];
    Room& room = *(Room*)((char*)shared + (1024 - smem_address(shared) % 1024) % 1024);
    const int head = blockIdx.y, heads = gridDim.y;
    if (threadIdx.x == 0)
        for (int i = 0; i < 2 * STAGES; i++)
            mbarrier_init(&room.full[i / STAGES][i % STAGES], COPYING),
                mbarrier_init(&room.empty[i / STAGES][i % STAGES], MULTIPLYING / 32);
    __syncthreads();
    pdl_trigger();
    pdl_wait();
    ChunkTile tile;
    if (!find_tile<TILE_QUERIES>(chunks, num_chunks, tokens, gridDim.x - 1 - blockIdx.x, tile)) return;
    const int stop = tile.is_padding ? 0 : min(tile.begin + tile.num_there, num_columns);
    const int begin = max(0, tile.begin - window + 1) / COLUMNS * COLUMNS;
    if (threadIdx.x >= MULTIPLYING) {
        set_registers_less<CACHE_BITS == 8 && DIM < 256 ? 88 : 56>();
        if (begin < stop) bring_tiles(room, Cached(cache, tile.slot, head / group, stop), begin);
        return;
    }

    set_registers_more<CACHE_BITS == 8 && DIM < 256 ? 208 : 224>();
    const int warpgroup = threadIdx.x / 128, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    // The first query of the warp's 16.
    const int own = threadIdx.x / 32 * 16;
    Rows(*queries)[QUERIES] = room.queries[warpgroup];
#pragma unroll
    for (int i = 0; i < QUERIES * EIGHTS / 128; i++) {
        const int index = i * 128 + threadIdx.x % 128, row = index / EIGHTS, eight = index % EIGHTS;
        const int token = warpgroup * QUERIES + row;
        const u16* from = query + (i64)head * query_head + (i64)(tile.first_row + token) * query_token + eight * 8;
        const bool is_there = token < tile.num_there;
        *place_of(queries[eight / 8], row, eight % 8) = is_there ? *(const uint4*)from : make_uint4(0, 0, 0, 0);
    }
    async_fence();
    named_barrier_sync(1 + warpgroup, 128);

    // Lane 4g+t has queries g and g+8 of the warp's, which see columns seen[q] to end[q] - 1.
    int seen[2], end[2];
#pragma unroll
    for (int q = 0; q < 2; q++) {
        end[q] = tile.begin + own + q * 8 + g + 1;
        seen[q] = max(0, end[q] - window);
        end[q] = min(end[q], stop);
    }
    scale *= LOG2_E;
    // score[4n..4n+3]: of query g at columns 8n + 2t and 8n + 2t + 1, then of query g+8. sum[i][4d..]: elements 8d + 2t and 8d + 2t + 1
    // of a part of WIDTH, of both so. top: the largest score so far; total: the sum of the weights.
    constexpr int WIDTH = DIM < 128 ? DIM : 128, PARTS = DIM / WIDTH;
    float score[COLUMNS / 2] = {}, sum[PARTS][WIDTH / 2] = {}, top[2] = {LOWEST, LOWEST}, total[2] = {};
    u32 weights[COLUMNS / 16][4];
    int stage = 0, parity = 0;
    auto release = [&](int kind, int of) {
        __syncwarp();
        if (lane == 0) mbarrier_arrive(&room.empty[kind][of]);
    };
    auto multiply_keys = [&](int from) {
        wgmma_fence();
#pragma unroll
        for (int s = 0; s < DIM / 16; s++)
            wgmma_rows<COLUMNS>(score, wgmma_descriptor(queries[s / 4]) + s % 4 * 2,
                                wgmma_descriptor(room.cached[KEYS][from][s / 4]) + s % 4 * 2, s > 0);
        wgmma_commit();
    };
    auto multiply_values = [&](int from) {
        wgmma_fence();
#pragma unroll
        for (int s = 0; s < COLUMNS / 16; s++)
#pragma unroll
            for (int i = 0; i < PARTS; i++)
                wgmma_turned<WIDTH>(sum[i], weights[s],
                                    turned_descriptor(room.cached[VALUES][from][i * WIDTH / 64], COLUMNS * 128) + s * 128);
        wgmma_commit();
    };
    if (begin < stop) {
        mbarrier_wait(&room.full[KEYS][0], 0);
        multiply_keys(0);
        wgmma_wait<0>();
#if CACHE_BITS != 8
        release(KEYS, 0);
#endif
    }
#pragma unroll 1
    for (int at = begin; at < stop; at += COLUMNS) {
#if CACHE_BITS == 8
#pragma unroll
        for (int n = 0; n < COLUMNS / 8; n++) {
            const float2 by = *(const float2*)&room.scales[KEYS][stage][n * 8 + t * 2];
            score[n * 4] *= by.x, score[n * 4 + 1] *= by.y, score[n * 4 + 2] *= by.x, score[n * 4 + 3] *= by.y;
        }
        release(KEYS, stage);
#endif
        if (max(seen[0], seen[1]) > at || at + COLUMNS > min(end[0], end[1])) {
#pragma unroll
            for (int i = 0; i < COLUMNS / 2; i++) {
                const int column = at + i / 4 * 8 + t * 2 + i % 2, q = i / 2 % 2;
                if (column < seen[q] || column >= end[q]) score[i] = LOWEST;
            }
        }
#pragma unroll
        for (int q = 0; q < 2; q++) {
            float largest = top[q];
#pragma unroll
            for (int n = 0; n < COLUMNS / 8; n++)
                largest = fmaxf(largest, fmaxf(score[n * 4 + q * 2], score[n * 4 + q * 2 + 1]));
            largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, 1));
            largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, 2));
            // Rounded alike, so that columns that a query does not see change nothing.
            const float base = largest == LOWEST ? 0.0f : __fmul_rn(largest, scale);
            const float shrink = exp2_fast(__fsub_rn(__fmul_rn(top[q], scale), base));
            top[q] = largest, total[q] *= shrink;
#pragma unroll
            for (int n = 0; n < COLUMNS / 8; n++)
#pragma unroll
                for (int j = 0; j < 2; j++) {
                    float& one = score[n * 4 + q * 2 + j];
                    one = exp2_fast(__fmaf_rn(one, scale, -base));
                    total[q] += one;
                }
#pragma unroll
            for (int i = 0; i < PARTS; i++)
#pragma unroll
                for (int d = 0; d < WIDTH / 8; d++) sum[i][d * 4 + q * 2] *= shrink, sum[i][d * 4 + q * 2 + 1] *= shrink;
        }
        mbarrier_wait(&room.full[VALUES][stage], parity);
#if CACHE_BITS == 8
#pragma unroll
        for (int n = 0; n < COLUMNS / 8; n++) {
            const float2 by = *(const float2*)&room.scales[VALUES][stage][n * 8 + t * 2];
            score[n * 4] *= by.x, score[n * 4 + 1] *= by.y, score[n * 4 + 2] *= by.x, score[n * 4 + 3] *= by.y;
        }
#endif
#pragma unroll
        for (int i = 0; i < COLUMNS / 4; i++) weights[i / 4][i % 4] = pack(score[i * 2], score[i * 2 + 1]);
        multiply_values(stage);
        const int done = stage;
        if (++stage == STAGES) stage = 0, parity ^= 1;
        if (at + COLUMNS < stop) {
            // The next scores are asked for behind these values: the tensor cores go on from one to the other.
            mbarrier_wait(&room.full[KEYS][stage], parity);
            multiply_keys(stage);
            wgmma_wait<1>();
            release(VALUES, done);
            wgmma_wait<0>();
#if CACHE_BITS != 8
            release(KEYS, stage);
#endif
        } else {
            wgmma_wait<0>();
        }
    }
#pragma unroll
    for (int q = 0; q < 2; q++) {
        total[q] += __shfl_xor_sync(~0u, total[q], 1);
        total[q] += __shfl_xor_sync(~0u, total[q], 2);
        const int token = own + q * 8 + g;
        if (token >= tile.num_there) continue;
        const float all = total[q] + of_sink(sinks, head, top[q] == LOWEST ? LOWEST : top[q] * scale);
        float by = all == 0.0f ? 1.0f : 1.0f / all;
#if CACHE_BITS == 8
        by *= 1.0f / SCALE_UP;
#endif
        u16* to = out + ((i64)(tile.first_row + token) * heads + head) * DIM;
#pragma unroll
        for (int i = 0; i < PARTS; i++)
#pragma unroll
            for (int d = 0; d < WIDTH / 8; d++)
                *(u32*)(to + i * WIDTH + d * 8 + t * 2) =
                    pack(sum[i][d * 4 + q * 2] * by, sum[i][d * 4 + q * 2 + 1] * by);
    }
}
