// Attention of one new token a row over the KV cache, on tensor cores.
// DIM: size of a head. ROTARY: how many of its first elements RoPE turns, a multiple of 16. HEAD_NORM: whether each query
// and key is RMS-normed by itself first. GATED: whether a gate for its output lies behind each query. QUERIES: how many
// of a key's queries a block computes together, at most 8. CLUSTERS: whether blocks read one another's shared memory.
// Each of ATTEND_WARPS warps takes COLUMNS columns at a time, the rows of a product.
// Columns come in segments of ATTEND_WARPS * COLUMNS, one page of the cache or several. Every KV_SPLITS-th segment
// belongs to one part. Each part is summed by itself (arXiv 2311.01282); then the parts are added in order. So a row's
// result depends neither on the number of blocks nor on the other rows.

#define ATTEND_THREADS (ATTEND_WARPS * 32)
#define SEGMENT (ATTEND_WARPS * COLUMNS)
#define SEGMENT_PAGES (SEGMENT / PAGE_TOKENS)
#define STEPS (DIM / 32)
#define CHUNKS (DIM / 64)
#define PIECES (DIM / 8)
// 16 bytes of a column in the cache hold so many elements, and a column so many of those.
#define CACHE_PIECE (128 / CACHE_BITS)
#define CACHE_PIECES (DIM / CACHE_PIECE)
#define TURNED (ROTARY / 8)
#define QUERY_HEADS (GATED ? 2 : 1)
#define LOG2_E 1.4426950408889634f

// A warp's columns in flight, copied in lines of 128 bytes: half lines make memory a sixth slower. Lane 4g+t reads, of
// each 32 elements of a key, 8t..8t+7 of columns g and g+8; of each 64 elements of a value, 8g..8g+7 of columns 2t,
// 2t+1, 2t+8 and 2t+9. The piece of 16 bytes is swizzled so that lanes that read together hit different banks: 8 of them,
// or of 8 bit 16.
struct Columns {
    uint4 keys[COLUMNS][CACHE_PIECES], values[COLUMNS][CACHE_PIECES];

#if CACHE_BITS == 8
    uint4 key_scales[COLUMNS / 8], value_scales[COLUMNS / 8];

    __device__ __forceinline__ uint4& key(int column, int piece) {
        return keys[column][piece ^ (DIM == 64 ? column / 2 % 2 : column % 4) * 2];
    }
    __device__ __forceinline__ uint4& value(int column, int piece) {
        return values[column][piece ^ (DIM == 64 ? column / 4 % 2 : column / 2 % 4) * 2];
    }
    // 8 elements: where they are, and in half precision.
    __device__ __forceinline__ uint2& key_8(int column, int eight) {
        return ((uint2*)&key(column, eight / 2))[eight % 2];
    }
    __device__ __forceinline__ uint2& value_8(int column, int eight) {
        return ((uint2*)&value(column, eight / 2))[eight % 2];
    }
    __device__ __forceinline__ uint4 read_key(int column, int eight) { return integers_8(key_8(column, eight)); }
    __device__ __forceinline__ uint4 read_value(int column, int eight) { return integers_8(value_8(column, eight)); }
    __device__ __forceinline__ u16& key_scale(int column) { return ((u16*)key_scales)[column]; }
    __device__ __forceinline__ u16& value_scale(int column) { return ((u16*)value_scales)[column]; }
#else
    __device__ __forceinline__ uint4& key(int column, int piece) { return keys[column][piece ^ column % 2 * 4]; }
    __device__ __forceinline__ uint4& value(int column, int piece) {
        return values[column][piece ^ column / 2 % 4 * 2];
    }
    __device__ __forceinline__ uint4 read_key(int column, int eight) { return key(column, eight); }
    __device__ __forceinline__ uint4 read_value(int column, int eight) { return value(column, eight); }
#endif
};

// A softmax over some columns, in base 2: the largest score, the sum of 2^(score - top), and a value weighted by those.
struct SoftmaxSum {
    float top, total, value;
};

// Shared memory of one of the BLOCKS that split a head.
template <int BLOCKS, int STAGES>
struct AttentionShared {
    Columns coming[ATTEND_WARPS][STAGES];
    uint4 heads[QUERIES + 2][PIECES];  // The queries and the new key, after RoPE, and the new value.
#if CACHE_BITS == 8
    u16 new_scales[8];  // Of that key and that value.
#endif
    // A part's values are those of its first warp until all warps' are added.
    float values[ATTEND_WARPS - 1][QUERIES * DIM], parts[KV_SPLITS / BLOCKS][QUERIES * DIM];
    float tops[ATTEND_WARPS][QUERIES], part_tops[KV_SPLITS / BLOCKS][QUERIES];
    float totals[ATTEND_WARPS][QUERIES], part_totals[KV_SPLITS / BLOCKS][QUERIES];
};

// The softmax sums of(0) to of(count - 1), merged in that order.
template <int MOST, class Of>
__device__ __forceinline__ SoftmaxSum merge_softmax(int count, Of of) {
    SoftmaxSum all[MOST], sum = {-1e30f, 0.0f, 0.0f};
#pragma unroll
    for (int i = 0; i < MOST; i++) all[i] = i < count ? of(i) : SoftmaxSum{-1e30f, 0.0f, 0.0f};
#pragma unroll
    for (int i = 0; i < MOST; i++) sum.top = fmaxf(sum.top, all[i].top);
#pragma unroll
    for (int i = 0; i < MOST; i++) {
        const float by = exp2f(all[i].top - sum.top);
        sum.total = __fmaf_rn(by, all[i].total, sum.total);
        sum.value = __fmaf_rn(by, all[i].value, sum.value);
    }
    return sum;
}

// Store every `step`-th value of the result, from `from` on: the parts up to `last`, merged. sinks: of each query, a
// score that belongs to no column (arXiv 2309.17453), if given.
template <class Put, class PartOf>
__device__ __forceinline__ void combine_splits(int from, int step, int last, const u16* sinks, Put put,
                                               PartOf part_of) {
    for (int at = from; at < QUERIES * DIM; at += step) {
        const SoftmaxSum sum =
            merge_softmax<KV_SPLITS>(min(KV_SPLITS, last + 1), [&](int p) { return part_of(p, at); });
        const float of_sink = sinks ? exp2f(to_float(sinks[at / DIM]) * LOG2_E - sum.top) : 0.0f;
        put(at, sum.value / (sum.total + of_sink));
    }
}

// The transpose of an 8x8 matrix of which lane 4g+t holds row g, columns 2t and 2t+1.
__device__ __forceinline__ u32 transposed(u32 pair) {
    u32 r;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(r) : "r"(pair));
    return r;
}

// RoPE (arXiv 2104.09864) on 8 elements of a head; `partner`: those half a head away.
__device__ __forceinline__ uint4 apply_rope(uint4 own, uint4 partner, uint4 cos, uint4 sin, bool is_first_half) {
    float a[8], b[8], c[8], d[8];
    unpack8(own, a), unpack8(partner, b), unpack8(cos, c), unpack8(sin, d);
    u32 words[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        float pair[2];
#pragma unroll
        for (int j = 0; j < 2; j++) {
            const int at = 2 * i + j;
            pair[j] = __fmaf_rn(a[at], c[at], __fmul_rn(is_first_half ? -b[at] : b[at], d[at]));
        }
        words[i] = pack(pair[0], pair[1]);
    }
    return make_uint4(words[0], words[1], words[2], words[3]);
}

// The piece that RoPE turns with `piece`; itself where it is not turned.
__device__ __forceinline__ int partner_of(int piece) {
    return piece >= TURNED ? piece : piece < TURNED / 2 ? piece + TURNED / 2 : piece - TURNED / 2;
}

// What an output is multiplied by, rounded as in transformers' models.
__device__ __forceinline__ float sigmoid(u16 gate) { return round_half(1.0f / (1.0f + __expf(-to_float(gate)))); }

// What norms the heads: weights [DIM] of queries and keys, epsilon, what is added to each weight.
struct HeadNorm {
    const u16 *query, *key;
    float eps, offset;
};

// One new token a row: RoPE on its query and key, after their norm; key and value are stored in the slot's pages at `columns`; the query
// attends to the columns up to there, at most `window` of them. A row with a column below 0 gets zeros and stores
// nothing.
// BLOCKS blocks take a row's parts in turn, each with STAGES loads of a warp's columns in flight.
// qkv [rows, (heads + 2 kv heads) * DIM], or with a gate behind each query, -> out [rows, heads * DIM], each value where
// `inverse_permutation` says, if given, in tiles of `tile_rows`, if any. sinks [heads]: see combine_splits. Without clusters: parts [rows, heads, KV_SPLITS, DIM], tops and totals without DIM, a counter a row and head
// group.
template <int BLOCKS, int STAGES>
__device__ __forceinline__ void attend(const u16* qkv, const u16* cos, const u16* sin, const KvPages cache,
                                       const i64* slots, const i64* columns, float* parts, float* tops, float* totals,
                                       u32* ended, u16* out, const int* inverse_permutation, int tile_rows,
                                       int angle_row, float scale, int window, int heads, int kv_heads, const HeadNorm norm,
                                       const u16* sinks) {
    constexpr int SIZE = QUERIES * DIM, TURNS = ((QUERIES + 2) * PIECES + ATTEND_THREADS - 1) / ATTEND_THREADS;
    extern __shared__ uint4 shared[];
    AttentionShared<BLOCKS, STAGES>& room = *(AttentionShared<BLOCKS, STAGES>*)shared;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const int rank = blockIdx.x, row = blockIdx.z, head = blockIdx.y * QUERIES, kv_head = head / (heads / kv_heads);
    const u16* here = qkv + (i64)row * (heads * QUERY_HEADS + 2 * kv_heads) * DIM;
    auto store = [&](int at, float value) {
        const int place = head * DIM + at;
        out[input_offset(row, inverse_permutation ? inverse_permutation[place] : place, heads * DIM, tile_rows)] =
            to_half(value);
    };
    auto put = [&](int at, float value) {
        if (GATED) value = round_half(value) * sigmoid(here[((head + at / DIM) * 2 + 1) * DIM + at % DIM]);
        store(at, value);
    };
    // columns, slots, the table, angles and older keys and values were written before the step's first kernel: no need
    // to wait.
    const int column = (int)columns[row];
    const int* pages = cache.of(slots[row]);
    if (column < 0) {
        pdl_trigger();
        pdl_wait();
        if (rank == 0)
            for (int at = threadIdx.x; at < SIZE; at += ATTEND_THREADS) store(at, 0.0f);
        return;
    }
    const int begin = max(0, column + 1 - window), first = begin / SEGMENT, last = column / SEGMENT - first;
    // The warp's pages, of each segment; behind the last column they are the last one's, of which nothing is seen.
    const int fresh_at = column / PAGE_TOKENS, own_page = first * SEGMENT_PAGES + warp * COLUMNS / PAGE_TOKENS;
    const kv_t *keys = cache.keys + kv_head * cache.head_size, *values = cache.values + kv_head * cache.head_size;
    if (sinks) sinks += head;

    // The segment after `segment` of those that the block takes, part by part; last + 1 after the last one.
    auto next_of = [&](int segment) {
        const int next_part = segment % KV_SPLITS + BLOCKS;
        return segment + KV_SPLITS <= last ? segment + KV_SPLITS : next_part < KV_SPLITS ? next_part : last + 1;
    };
    // `page` is that of segment `coming`, looked up one load ahead.
    int coming = rank, page = 0;
    auto look_up = [&](int segment) {
        return segment <= last ? pages[min(own_page + segment * SEGMENT_PAGES, fresh_at)] : 0;
    };
    auto copy_segment = [&](int into, int segment, int from_page) {
        if (segment <= last) {
            Columns& to = room.coming[warp][into];
            const int base = (first + segment) * SEGMENT + warp * COLUMNS;
            const i64 from = from_page * cache.page_size + warp * COLUMNS % PAGE_TOKENS * DIM;
#pragma unroll
            for (int i = 0; i < COLUMNS * CACHE_PIECES / 32; i++) {
                const int one = i * 32 / CACHE_PIECES + lane / CACHE_PIECES, piece = lane % CACHE_PIECES;
                const int at = base + one;
                const bool is_seen = at >= begin && at < column;
                cp_async_16_zfill(is_seen, &to.key(one, piece), keys + from + one * DIM + piece * CACHE_PIECE);
                cp_async_16_zfill(is_seen, &to.value(one, piece), values + from + one * DIM + piece * CACHE_PIECE);
            }
#if CACHE_BITS == 8
            if (lane < COLUMNS / 4) {
                const bool is_value = lane >= COLUMNS / 8;
                const int eight = lane % (COLUMNS / 8);
                cp_async_16_zfill(true, (is_value ? to.value_scales : to.key_scales) + eight,
                                  (is_value ? cache.value_scales : cache.key_scales) +
                                      cache.scale(from_page, kv_head, warp * COLUMNS + eight * 8));
            }
#endif
        }
        asm volatile("cp.async.commit_group;" ::: "memory");
    };
    auto load_stage = [&](int into) {
        const int now = coming, from_page = page;
        coming = next_of(coming), page = look_up(coming);
        copy_segment(into, now, from_page);
    };
    // The first pages are looked up together.
    int first_pages[STAGES], segments[STAGES];
#pragma unroll
    for (int u = 0; u < STAGES; u++) {
        segments[u] = coming, first_pages[u] = look_up(coming);
        coming = next_of(coming);
    }
    page = look_up(coming);
    const int fresh_page = pages[fresh_at];
#pragma unroll
    for (int u = 0; u < STAGES; u++) copy_segment(u, segments[u], first_pages[u]);
    // Each thread norms and turns some pieces of the heads, for all warps; their loads are issued together.
    uint4 own_piece[TURNS], partner[TURNS], piece_cos[TURNS], piece_sin[TURNS], own_weight[TURNS], partner_weight[TURNS];
#pragma unroll
    for (int i = 0; i < TURNS; i++) {
        const int at = i * ATTEND_THREADS + threadIdx.x, piece = at % PIECES;
        if (piece < TURNED) {
            piece_cos[i] = *(const uint4*)(cos + (i64)row * angle_row + piece * 8);
            piece_sin[i] = *(const uint4*)(sin + (i64)row * angle_row + piece * 8);
        }
        if (HEAD_NORM) {
            const u16* weight = at / PIECES < QUERIES ? norm.query : norm.key;
            own_weight[i] = *(const uint4*)(weight + piece * 8);
            partner_weight[i] = *(const uint4*)(weight + partner_of(piece) * 8);
        }
    }
    pdl_trigger();
    pdl_wait();

    // The new column belongs to the last segment.
    const bool has_fresh = last % BLOCKS == rank;
    const int num_pieces = (QUERIES + (has_fresh ? 2 : 0)) * PIECES;
#pragma unroll
    for (int i = 0; i < TURNS; i++) {
        const int at = i * ATTEND_THREADS + threadIdx.x, piece = at % PIECES, which = at / PIECES;
        if (at >= num_pieces) break;
        const int of = which < QUERIES ? (head + which) * QUERY_HEADS
                                       : heads * QUERY_HEADS + (which - QUERIES) * kv_heads + kv_head;
        own_piece[i] = ld_global_16(here + of * DIM + piece * 8);
        partner[i] = ld_global_16(here + of * DIM + partner_of(piece) * 8);
    }
#if HEAD_NORM
#pragma unroll
    for (int i = 0; i < TURNS; i++) {
        const int at = i * ATTEND_THREADS + threadIdx.x;
        const bool is_normed = at < num_pieces && at / PIECES <= QUERIES;
        float sum = 0.0f;
        if (is_normed) add_squares(own_piece[i], sum);
        // All lanes take part; those of a head are neighbours.
#pragma unroll
        for (int by = PIECES / 2; by; by /= 2) sum += __shfl_xor_sync(~0u, sum, by);
        if (!is_normed) continue;
        const float by = rsqrtf(sum / DIM + norm.eps);
        own_piece[i] = rmsnorm_8(own_piece[i], by, own_weight[i], norm.offset);
        partner[i] = rmsnorm_8(partner[i], by, partner_weight[i], norm.offset);
    }
#endif
#pragma unroll
    for (int i = 0; i < TURNS; i++) {
        const int at = i * ATTEND_THREADS + threadIdx.x, piece = at % PIECES, which = at / PIECES;
        const bool is_value = which == QUERIES + 1, is_stored = which >= QUERIES && head % (heads / kv_heads) == 0;
        uint4 done = make_uint4(0, 0, 0, 0);
        if (at < num_pieces)
            done = is_value || piece >= TURNED
                       ? own_piece[i]
                       : apply_rope(own_piece[i], partner[i], piece_cos[i], piece_sin[i], piece < TURNED / 2);
        kv_t* to = (is_value ? cache.values : cache.keys) + cache.offset(fresh_page, kv_head, column, DIM) + piece * 8;
#if CACHE_BITS == 8
        float largest = largest_of(done, 0.0f);
        // All lanes take part; those of a head are neighbours.
#pragma unroll
        for (int by = PIECES / 2; by; by /= 2) largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, by));
        if (at >= num_pieces) continue;
        if (which < QUERIES) {
            room.heads[which][piece] = done;
            continue;
        }
        const u16 own_scale = scale_of(largest);
        const uint2 bytes = quantize_8(done, inverse_scale(own_scale));
        *(uint2*)&room.heads[which][piece] = bytes;
        if (piece == 0) room.new_scales[which - QUERIES] = own_scale;
        if (is_stored) *(uint2*)to = bytes;
        if (is_stored && piece == 0)
            (is_value ? cache.value_scales : cache.key_scales)[cache.scale(fresh_page, kv_head, column)] = own_scale;
#else
        if (at >= num_pieces) break;
        room.heads[which][piece] = done;
        if (is_stored) *(uint4*)to = done;
#endif
    }
    __syncthreads();
    // A lane's elements of its query, as those of a key. Lanes without a query g compute what nobody stores.
    uint4 query[STEPS];
#pragma unroll
    for (int s = 0; s < STEPS; s++) query[s] = room.heads[min(g, QUERIES - 1)][s * 4 + t];
    int slot = 0;
#pragma unroll 1
    for (int part = rank; part < KV_SPLITS && part <= last; part += BLOCKS) {
        // Of queries 2t and 2t+1. sum[c * 4 + j]: elements c * 64 + g * 8 + 2j of both, then the next element of both.
        float top[2] = {-1e30f, -1e30f}, total[2] = {}, sum[CHUNKS * 4][4] = {};
#pragma unroll 1
        for (int segment = part; segment <= last; segment += KV_SPLITS) {
            asm volatile("cp.async.wait_group %0;" ::"n"(STAGES - 1) : "memory");
            __syncwarp();
            Columns& now = room.coming[warp][slot];
            const int base = (first + segment) * SEGMENT + warp * COLUMNS;
            const int fresh = column - base;
            if (segment == last && fresh >= 0 && fresh < COLUMNS) {
                for (int piece = lane; piece < PIECES; piece += 32) {
#if CACHE_BITS == 8
                    now.key_8(fresh, piece) = *(uint2*)&room.heads[QUERIES][piece];
                    now.value_8(fresh, piece) = *(uint2*)&room.heads[QUERIES + 1][piece];
                    if (piece == 0) now.key_scale(fresh) = room.new_scales[0], now.value_scale(fresh) = room.new_scales[1];
#else
                    now.key(fresh, piece) = room.heads[QUERIES][piece];
                    now.value(fresh, piece) = room.heads[QUERIES + 1][piece];
#endif
                }
                __syncwarp();
            }

            // score[0..3]: queries 2t and 2t+1 at column g, then at g+8. Two accumulators alternate.
            float score[4] = {}, others[4] = {};
#pragma unroll
            for (int s = 0; s < STEPS; s++) {
                const uint4 low_key = now.read_key(g, s * 4 + t), high_key = now.read_key(g + 8, s * 4 + t);
                const u32 even[4] = {low_key.x, high_key.x, low_key.y, high_key.y};
                const u32 odd[4] = {low_key.z, high_key.z, low_key.w, high_key.w};
                mma(score, even, query[s].x, query[s].y);
                mma(others, odd, query[s].z, query[s].w);
            }
#if CACHE_BITS == 8
            float key_scale[2], value_scale[2];
#pragma unroll
            for (int c = 0; c < 2; c++) {
                key_scale[c] = to_float(now.key_scale(c * 8 + g));
                value_scale[c] = to_float(now.value_scale(c * 8 + g)) * SCALE_UP;
            }
#endif
            float shrink[2];
#pragma unroll
            for (int q = 0; q < 2; q++) {
                float new_top = top[q];
#pragma unroll
                for (int c = 0; c < 2; c++) {
                    const int at = base + c * 8 + g;
                    float& one = score[c * 2 + q];
                    one += others[c * 2 + q];
#if CACHE_BITS == 8
                    one *= key_scale[c];
#endif
                    one = at >= begin && at <= column ? one * (scale * LOG2_E) : -1e30f;
                    new_top = fmaxf(new_top, one);
                }
#pragma unroll
                for (int by = 4; by < 32; by *= 2) new_top = fmaxf(new_top, __shfl_xor_sync(~0u, new_top, by));
                shrink[q] = exp2f(top[q] - new_top);
                top[q] = new_top, total[q] *= shrink[q];
#pragma unroll
                for (int c = 0; c < 2; c++) {
                    float& one = score[c * 2 + q];
#if CACHE_BITS == 8
                    const float weight = one > -1e29f ? exp2f(one - new_top) : 0.0f;
                    one = weight > 0.0f ? weight * value_scale[c] : 0.0f;
                    total[q] += weight;
#else
                    one = one > -1e29f ? round_half(exp2f(one - new_top)) : 0.0f;
                    total[q] += one;
#endif
                }
            }
            const u32 low_weights = transposed(pack(score[0], score[1])),
                      high_weights = transposed(pack(score[2], score[3]));
#pragma unroll
            for (int c = 0; c < CHUNKS; c++) {
                u32 words[4][4];
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    const uint4 one = now.read_value(t * 2 + i % 2 + i / 2 * 8, c * 8 + g);
                    words[i][0] = one.x, words[i][1] = one.y, words[i][2] = one.z, words[i][3] = one.w;
                }
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    float* to = sum[c * 4 + j];
#pragma unroll
                    for (int i = 0; i < 4; i++) to[i] *= shrink[i % 2];
                    const u32 pairs[4] = {
                        __byte_perm(words[0][j], words[1][j], 0x5410), __byte_perm(words[0][j], words[1][j], 0x7632),
                        __byte_perm(words[2][j], words[3][j], 0x5410), __byte_perm(words[2][j], words[3][j], 0x7632)};
                    mma(to, pairs, low_weights, high_weights);
                }
            }
            __syncwarp();
            load_stage(slot);
            slot = slot + 1 == STAGES ? 0 : slot + 1;
        }

        float* part_values = room.parts[part / BLOCKS];
        float* warp_values = warp ? room.values[warp - 1] : part_values;
#pragma unroll
        for (int q = 0; q < 2; q++) {
#pragma unroll
            for (int by = 4; by < 32; by *= 2) total[q] += __shfl_xor_sync(~0u, total[q], by);
            const int of = t * 2 + q;
            if (of >= QUERIES) continue;
            if (g == 0) room.tops[warp][of] = top[q], room.totals[warp][of] = total[q];
#pragma unroll
            for (int c = 0; c < CHUNKS; c++)
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    const float *a = sum[c * 4 + i * 2], *b = sum[c * 4 + i * 2 + 1];
                    constexpr float BY = CACHE_BITS == 8 ? 1.0f / SCALE_UP : 1.0f;
                    *(float4*)(warp_values + of * DIM + c * 64 + g * 8 + i * 4) =
                        make_float4(a[q] * BY, a[2 + q] * BY, b[q] * BY, b[2 + q] * BY);
                }
        }
        __syncthreads();
        for (int at = threadIdx.x; at < SIZE; at += ATTEND_THREADS) {
            const int q = at / DIM;
            const SoftmaxSum one = merge_softmax<ATTEND_WARPS>(ATTEND_WARPS, [&](int w) {
                return SoftmaxSum{room.tops[w][q], room.totals[w][q], w ? room.values[w - 1][at] : part_values[at]};
            });
            if (BLOCKS > 1 && !CLUSTERS) {
                const i64 place = ((i64)row * heads + head + q) * KV_SPLITS + part;
                parts[place * DIM + at % DIM] = one.value;
                if (at % DIM == 0) tops[place] = one.top, totals[place] = one.total;
            } else {
                part_values[at] = one.value;
                if (at % DIM == 0)
                    room.part_tops[part / BLOCKS][q] = one.top, room.part_totals[part / BLOCKS][q] = one.total;
            }
        }
        __syncthreads();
    }

    if (BLOCKS == 1) {
        combine_splits(threadIdx.x, ATTEND_THREADS, last, sinks, put, [&](int p, int at) {
            return SoftmaxSum{room.part_tops[p][at / DIM], room.part_totals[p][at / DIM], room.parts[p][at]};
        });
        return;
    }
#if CLUSTERS
    cluster_sync();
    combine_splits(rank * ATTEND_THREADS + threadIdx.x, BLOCKS * ATTEND_THREADS, last, sinks, put, [&](int p, int at) {
        const int here = p / BLOCKS, q = at / DIM;
        return SoftmaxSum{ld_cluster(p % BLOCKS, room.part_tops[here][q]),
                          ld_cluster(p % BLOCKS, room.part_totals[here][q]),
                          ld_cluster(p % BLOCKS, room.parts[here][at])};
    });
    cluster_sync();  // Other blocks still read this one's shared memory.
#else
    if (rank > last) return;
    __shared__ bool is_last;
    if (threadIdx.x == 0) {
        u32* counter = ended + (i64)row * gridDim.y + blockIdx.y;
        __threadfence();
        is_last = atomicAdd(counter, 1) == min(BLOCKS - 1, last);
        if (is_last) *counter = 0;
        __threadfence();
    }
    __syncthreads();
    if (!is_last) return;
    combine_splits(threadIdx.x, ATTEND_THREADS, last, sinks, put, [&](int p, int at) {
        const i64 place = ((i64)row * heads + head + at / DIM) * KV_SPLITS + p;
        return SoftmaxSum{__ldcg(tops + place), __ldcg(totals + place), __ldcg(parts + place * DIM + at % DIM)};
    });
#endif
}

#if CLUSTERS
#define CLUSTER_DIMS(BLOCKS) __cluster_dims__(BLOCKS, 1, 1)
#else
#define CLUSTER_DIMS(BLOCKS)
#endif
#define ATTEND(BLOCKS, STAGES)                                                                                         \
    extern "C" __global__ void CLUSTER_DIMS(BLOCKS) __launch_bounds__(ATTEND_THREADS) attend_##BLOCKS(                 \
        const u16* qkv, const u16* cos, const u16* sin, const KvPages cache, const i64* slots, const i64* columns,       \
        float* parts, float* tops, float* totals, u32* ended, u16* out, const int* inverse_permutation, int tile_rows, \
        int angle_row, float scale, int window, int heads, int kv_heads, const u16* query_weight, const u16* key_weight, float eps,   \
        float offset, const u16* sinks) {                                                                              \
        attend<BLOCKS, STAGES>(qkv, cos, sin, cache, slots, columns, parts, tops, totals, ended, out,                  \
                               inverse_permutation, tile_rows, angle_row, scale, window, heads, kv_heads,                         \
                               HeadNorm{query_weight, key_weight, eps, offset}, sinks);                                \
    }
ATTENDS

// New tokens of prompts, a row each: norm and RoPE on queries in place; keys, after both, and values are stored in the
// cache of each row's slot at `columns`. A column below 0 is not stored. A thread takes two pieces of a query or key,
// which RoPE turns with one another where it does, or two pieces of a value.
extern "C" __global__ void __launch_bounds__(256)
    apply_rope_and_store_kv(u16* qkv, const u16* cos, const u16* sin, const KvPages cache, const i64* slots,
                            const i64* columns, int angle_row, int rows, int heads, int kv_heads, const u16* query_weight,
                            const u16* key_weight, float eps, float offset) {
    constexpr int OF_HEAD = PIECES / 2, PAIRS = TURNED / 2;
    const int of_keys = heads * OF_HEAD, of_values = of_keys + kv_heads * OF_HEAD, each = of_values + kv_heads * OF_HEAD;
    const int at = blockIdx.x * 256 + threadIdx.x, row = at / each, own = at % each, place = own % OF_HEAD;
    const bool is_query = own < of_keys, is_value = own >= of_values, is_turned = place < PAIRS;
    const int head = (is_query ? own : is_value ? own - of_values : own - of_keys) / OF_HEAD;
    // Elements: of a pair that is turned together, or of two neighbours behind all of those.
    const int first_at = (is_turned ? place : TURNED + 2 * (place - PAIRS)) * 8;
    const int second_at = first_at + (is_turned ? PAIRS : 1) * 8;
    uint4 first = make_uint4(0, 0, 0, 0), second = first;
    u16* from = qkv + (i64)row * (heads * QUERY_HEADS + 2 * kv_heads) * DIM +
                (is_query ? head * QUERY_HEADS : heads * QUERY_HEADS + (is_value ? kv_heads : 0) + head) * DIM;
    pdl_trigger();
    pdl_wait();
    if (row < rows) first = *(const uint4*)(from + first_at), second = *(const uint4*)(from + second_at);
#if HEAD_NORM
    float sum = 0.0f;
    add_squares(first, sum), add_squares(second, sum);
    // All lanes take part; those of a head are neighbours.
#pragma unroll
    for (int by = OF_HEAD / 2; by; by /= 2) sum += __shfl_xor_sync(~0u, sum, by);
    if (!is_value) {
        const u16* weight = is_query ? query_weight : key_weight;
        const float by = rsqrtf(sum / DIM + eps);
        first = rmsnorm_8(first, by, *(const uint4*)(weight + first_at), offset);
        second = rmsnorm_8(second, by, *(const uint4*)(weight + second_at), offset);
    }
#endif
    const i64 column = row < rows ? columns[row] : -1;
    if (row < rows && !is_value && is_turned) {
        const u16 *c = cos + (i64)row * angle_row, *s = sin + (i64)row * angle_row;
        const uint4 turned = apply_rope(first, second, *(const uint4*)(c + first_at), *(const uint4*)(s + first_at), true);
        second = apply_rope(second, first, *(const uint4*)(c + second_at), *(const uint4*)(s + second_at), false);
        first = turned;
    }
#if CACHE_BITS == 8
    float largest = largest_of(second, largest_of(first, 0.0f));
#pragma unroll
    for (int by = OF_HEAD / 2; by; by /= 2) largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, by));
#endif
    if (row >= rows) return;
    if (is_query) {
        *(uint4*)(from + first_at) = first, *(uint4*)(from + second_at) = second;
        return;
    }
    if (column < 0) return;
    const int page = cache.of(slots[row])[column / PAGE_TOKENS];
    kv_t* into = (is_value ? cache.values : cache.keys) + cache.offset(page, head, (int)column, DIM);
#if CACHE_BITS == 8
    const u16 scale = scale_of(largest);
    const float inverse = inverse_scale(scale);
    *(uint2*)(into + first_at) = quantize_8(first, inverse), *(uint2*)(into + second_at) = quantize_8(second, inverse);
    if (place == 0) (is_value ? cache.value_scales : cache.key_scales)[cache.scale(page, head, (int)column)] = scale;
#else
    *(uint4*)(into + first_at) = first, *(uint4*)(into + second_at) = second;
#endif
}

// attended [rows, heads, DIM] times the gates in qkv, in place. A thread takes a piece.
extern "C" __global__ void __launch_bounds__(256)
    gate_heads(u16* attended, const u16* qkv, int rows, int heads, int kv_heads) {
    const int at = blockIdx.x * 256 + threadIdx.x, row = at / (heads * PIECES), head = at / PIECES % heads;
    pdl_trigger();
    pdl_wait();
    if (row >= rows) return;
    const uint4 gates =
        ld_global_16(qkv + ((i64)row * (heads * QUERY_HEADS + 2 * kv_heads) + head * 2 + 1) * DIM + at % PIECES * 8);
    const u32 words[4] = {gates.x, gates.y, gates.z, gates.w};
    uint4* piece = (uint4*)attended + at;
    float values[8];
    unpack8(*piece, values);
#pragma unroll
    for (int i = 0; i < 8; i++) values[i] *= sigmoid((u16)(words[i / 2] >> i % 2 * 16));
    *piece = pack8(values);
}
