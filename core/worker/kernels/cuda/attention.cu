// Attention of one new token a row over the KV cache, on tensor cores.
// DIM: size of a head. ROTARY: how many of its first elements RoPE turns, a multiple of 16. HEAD_NORM: whether each query
// and key is RMS-normed by itself first. GATED: whether a gate for its output lies behind each query. QUERIES: how many
// of a key's queries a block computes together, at most 8. CLUSTERS: whether blocks read one another's shared memory.
// Each of ATTEND_WARPS warps takes COLUMNS columns at a time, the rows of a product.
// Columns come in segments of ATTEND_WARPS * COLUMNS. Every KV_SPLITS-th segment belongs to one part. Each part is
// summed by itself (arXiv 2311.01282); then the parts are added in order. So a row's result depends neither on the
// number of blocks nor on the other rows.

#define ATTEND_THREADS (ATTEND_WARPS * 32)
#define SEGMENT (ATTEND_WARPS * COLUMNS)
#define STEPS (DIM / 32)
#define CHUNKS (DIM / 64)
#define PIECES (DIM / 8)
#define TURNED (ROTARY / 8)
#define QUERY_HEADS (GATED ? 2 : 1)
#define LOG2_E 1.4426950408889634f

// A warp's columns in flight, copied in lines of 128 bytes: half lines make memory a sixth slower. Lane 4g+t reads, of
// each 32 elements of a key, 8t..8t+7 of columns g and g+8; of each 64 elements of a value, 8g..8g+7 of columns 2t,
// 2t+1, 2t+8 and 2t+9. The piece of 8 elements is swizzled so that 8 lanes that read together hit different banks.
struct Columns {
    uint4 keys[COLUMNS][PIECES], values[COLUMNS][PIECES];

    __device__ __forceinline__ uint4& key(int column, int piece) { return keys[column][piece ^ column % 2 * 4]; }
    __device__ __forceinline__ uint4& value(int column, int piece) {
        return values[column][piece ^ column / 2 % 4 * 2];
    }
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

// One new token a row: RoPE on its query and key, after their norm; key and value are stored in the slot's cache at `columns`; the query
// attends to the columns up to there, at most `window` of them. A row with a column below 0 gets zeros and stores
// nothing.
// BLOCKS blocks take a row's parts in turn, each with STAGES loads of a warp's columns in flight.
// qkv [rows, (heads + 2 kv heads) * DIM], or with a gate behind each query, -> out [rows, heads * DIM], each value where
// `inverse_permutation` says, if given. sinks [heads]: see combine_splits. Without clusters: parts [rows, heads, KV_SPLITS, DIM], tops and totals without DIM, a counter a row and head
// group.
template <int BLOCKS, int STAGES>
__device__ __forceinline__ void attend(const u16* qkv, const u16* cos, const u16* sin, u16* keys, u16* values,
                                       const i64* slots, const i64* columns, float* parts, float* tops, float* totals,
                                       u32* ended, u16* out, const int* inverse_permutation, i64 slot_size,
                                       i64 head_size, int angle_row, float scale, int window, int heads, int kv_heads,
                                       const HeadNorm norm, const u16* sinks) {
    constexpr int SIZE = QUERIES * DIM, TURNS = ((QUERIES + 2) * PIECES + ATTEND_THREADS - 1) / ATTEND_THREADS;
    extern __shared__ uint4 shared[];
    AttentionShared<BLOCKS, STAGES>& room = *(AttentionShared<BLOCKS, STAGES>*)shared;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const int rank = blockIdx.x, row = blockIdx.z, head = blockIdx.y * QUERIES, kv_head = head / (heads / kv_heads);
    const u16* here = qkv + (i64)row * (heads * QUERY_HEADS + 2 * kv_heads) * DIM;
    auto store = [&](int at, float value) {
        const int place = head * DIM + at;
        out[(i64)row * heads * DIM + (inverse_permutation ? inverse_permutation[place] : place)] = to_half(value);
    };
    auto put = [&](int at, float value) {
        if (GATED) value = round_half(value) * sigmoid(here[((head + at / DIM) * 2 + 1) * DIM + at % DIM]);
        store(at, value);
    };
    // columns, slots, angles and older keys and values were written before the step's first kernel: no need to wait.
    const int column = (int)columns[row];
    if (column < 0) {
        pdl_trigger();
        pdl_wait();
        if (rank == 0)
            for (int at = threadIdx.x; at < SIZE; at += ATTEND_THREADS) store(at, 0.0f);
        return;
    }
    const int begin = max(0, column + 1 - window), first = begin / SEGMENT, last = column / SEGMENT - first;
    const i64 own = slots[row] * slot_size + kv_head * head_size;
    keys += own, values += own;
    if (sinks) sinks += head;

    int coming = rank;
    auto load_stage = [&](int into) {
        if (coming <= last) {
            Columns& to = room.coming[warp][into];
            const int base = (first + coming) * SEGMENT + warp * COLUMNS;
#pragma unroll
            for (int i = 0; i < COLUMNS * PIECES / 32; i++) {
                const int one = i * 32 / PIECES + lane / PIECES, piece = lane % PIECES, at = base + one;
                const bool is_seen = at >= begin && at < column;
                cp_async_16_zfill(is_seen, &to.key(one, piece), keys + (i64)at * DIM + piece * 8);
                cp_async_16_zfill(is_seen, &to.value(one, piece), values + (i64)at * DIM + piece * 8);
            }
            const int next_part = coming % KV_SPLITS + BLOCKS;
            coming = coming + KV_SPLITS <= last ? coming + KV_SPLITS : next_part < KV_SPLITS ? next_part : last + 1;
        }
        asm volatile("cp.async.commit_group;" ::: "memory");
    };
#pragma unroll
    for (int u = 0; u < STAGES; u++) load_stage(u);
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
        if (at >= num_pieces) break;
        const bool is_value = which == QUERIES + 1;
        const uint4 done = is_value || piece >= TURNED
                               ? own_piece[i]
                               : apply_rope(own_piece[i], partner[i], piece_cos[i], piece_sin[i], piece < TURNED / 2);
        room.heads[which][piece] = done;
        if (which >= QUERIES && head % (heads / kv_heads) == 0)
            *(uint4*)((is_value ? values : keys) + (i64)column * DIM + piece * 8) = done;
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
                    now.key(fresh, piece) = room.heads[QUERIES][piece];
                    now.value(fresh, piece) = room.heads[QUERIES + 1][piece];
                }
                __syncwarp();
            }

            // score[0..3]: queries 2t and 2t+1 at column g, then at g+8. Two accumulators alternate.
            float score[4] = {}, others[4] = {};
#pragma unroll
            for (int s = 0; s < STEPS; s++) {
                const uint4 low_key = now.key(g, s * 4 + t), high_key = now.key(g + 8, s * 4 + t);
                const u32 even[4] = {low_key.x, high_key.x, low_key.y, high_key.y};
                const u32 odd[4] = {low_key.z, high_key.z, low_key.w, high_key.w};
                mma(score, even, query[s].x, query[s].y);
                mma(others, odd, query[s].z, query[s].w);
            }
            float shrink[2];
#pragma unroll
            for (int q = 0; q < 2; q++) {
                float new_top = top[q];
#pragma unroll
                for (int c = 0; c < 2; c++) {
                    const int at = base + c * 8 + g;
                    float& one = score[c * 2 + q];
                    one = at >= begin && at <= column ? (one + others[c * 2 + q]) * (scale * LOG2_E)
                                                      : -1e30f;
                    new_top = fmaxf(new_top, one);
                }
#pragma unroll
                for (int by = 4; by < 32; by *= 2) new_top = fmaxf(new_top, __shfl_xor_sync(~0u, new_top, by));
                shrink[q] = exp2f(top[q] - new_top);
                top[q] = new_top, total[q] *= shrink[q];
#pragma unroll
                for (int c = 0; c < 2; c++) {
                    float& one = score[c * 2 + q];
                    one = one > -1e29f ? round_half(exp2f(one - new_top)) : 0.0f;
                    total[q] += one;
                }
            }
            const u32 low_weights = transposed(pack(score[0], score[1])),
                      high_weights = transposed(pack(score[2], score[3]));
#pragma unroll
            for (int c = 0; c < CHUNKS; c++) {
                u32 words[4][4];
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    const uint4 one = now.value(t * 2 + i % 2 + i / 2 * 8, c * 8 + g);
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
                    *(float4*)(warp_values + of * DIM + c * 64 + g * 8 + i * 4) =
                        make_float4(a[q], a[2 + q], b[q], b[2 + q]);
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
        const u16* qkv, const u16* cos, const u16* sin, u16* keys, u16* values, const i64* slots, const i64* columns,  \
        float* parts, float* tops, float* totals, u32* ended, u16* out, const int* inverse_permutation, i64 slot_size, \
        i64 head_size, int angle_row, float scale, int window, int heads, int kv_heads, const u16* query_weight,       \
        const u16* key_weight, float eps, float offset, const u16* sinks) {                                            \
        attend<BLOCKS, STAGES>(qkv, cos, sin, keys, values, slots, columns, parts, tops, totals, ended, out,           \
                               inverse_permutation, slot_size, head_size, angle_row, scale, window, heads, kv_heads,   \
                               HeadNorm{query_weight, key_weight, eps, offset}, sinks);                                \
    }
ATTENDS

// New tokens of one chat, a row each: norm and RoPE on queries in place; keys, after both, and values are stored in the
// slot's cache at `columns`. A column below 0 is not stored. A thread takes two pieces of a query or key, which RoPE
// turns with one another where it does, or two pieces of a value.
extern "C" __global__ void __launch_bounds__(256)
    apply_rope_and_store_kv(u16* qkv, const u16* cos, const u16* sin, u16* keys, u16* values, const i64* slots,
                            const i64* columns, i64 slot_size, i64 head_size, int angle_row, int rows, int heads,
                            int kv_heads, const u16* query_weight, const u16* key_weight, float eps, float offset) {
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
    if (row >= rows) return;
    const i64 column = columns[row];
    if (!is_query && column < 0) return;
    if (!is_value && is_turned) {
        const u16 *c = cos + (i64)row * angle_row, *s = sin + (i64)row * angle_row;
        const uint4 turned = apply_rope(first, second, *(const uint4*)(c + first_at), *(const uint4*)(s + first_at), true);
        second = apply_rope(second, first, *(const uint4*)(c + second_at), *(const uint4*)(s + second_at), false);
        first = turned;
    }
    u16* into = is_query ? from : (is_value ? values : keys) + slots[0] * slot_size + head * head_size + column * DIM;
    *(uint4*)(into + first_at) = first, *(uint4*)(into + second_at) = second;
}

// attended [rows, heads, DIM] times the gates in qkv, in place. A thread takes a piece.
extern "C" __global__ void __launch_bounds__(256)
    gate_heads(u16* attended, const u16* qkv, int rows, int heads, int kv_heads) {
    const int at = blockIdx.x * 256 + threadIdx.x, row = at / (heads * PIECES), head = at / PIECES % heads;
    pdl_trigger();
    pdl_wait();
    if (row >= rows) return;
    const u16* gates = qkv + ((i64)row * (heads * QUERY_HEADS + 2 * kv_heads) + head * 2 + 1) * DIM + at % PIECES * 8;
    uint4* piece = (uint4*)attended + at;
    float values[8];
    unpack8(*piece, values);
#pragma unroll
    for (int i = 0; i < 8; i++) values[i] *= sigmoid(gates[i]);
    *piece = pack8(values);
}
