// Products with the experts that a router chose. A pair is a token and one of its `chosen` experts; it has the number
// token * chosen + place. The matrices of all experts lie one after the other, in the tiles of packing.py.
//
// A segment is what one expert multiplies at once. Of few pairs each is a segment, in the router's order. Of many,
// sort_pairs makes segments of several rows, so that an expert's codes are read once for them.
//
// Blocks share the turns evenly and in order, so a block stays with an expert and its rows. A turn is a few tiles of one
// segment. Each warp multiplies its part of the inputs. Codes are centered before they are multiplied, so no sums of
// inputs are needed. A row's result depends neither on the segment that it is in nor on other rows.
//
// Programmatic launches: a kernel here lets the next one start after its own wait only. The router has ended by then,
// so the next one may read `ids` and the segments, and load codes, before it waits.
//
// ADAPTERS: whether the products add what each pair's LoRA adapter adds (expert_low_rank.cuh). low_rank.cuh comes before.

#if ADAPTERS
#define ADAPTER_PARAMETER , const PairLowRank adapters
#define ADAPTER_ARGUMENT , adapters
#else
#define ADAPTER_PARAMETER
#define ADAPTER_ARGUMENT
#endif

// The first turn of a block.
__device__ __forceinline__ int first_turn(int turns, int block) { return (int)((i64)turns * block / gridDim.x); }

template <int CT>
struct UnitBytes {
    // A stage, for one warp: a unit of CT tiles. First the codes in pieces of 512 bytes, then the scales, then the
    // zeros, 128 bytes each. Every lane copies into shared memory what it will read itself.
    static constexpr int SCALES_AT = UNIT * PIECES * CT * 512, ZEROS_AT = SCALES_AT + SCALES * CT * 128,
                         ALL = ZEROS_AT + ZEROS * SCALES * CT * 128;
};

// Where a block is among its turns, which are the tiles' `columns` of one segment after the other. The next segment is
// read long before it is needed.
template <class Read>
struct Cursor {
    const Read read;
    const int columns;
    int segment, column;
    Segment now, next;

    __device__ __forceinline__ Cursor(Read read, int columns, int turn)
        : read(read), columns(columns), segment(turn / columns), column(turn - segment * columns), now(read(segment)),
          next(read(segment + 1)) {}

    // Whether another segment begins.
    __device__ __forceinline__ bool advance() {
        if (++column < columns) return false;
        column = 0, segment++, now = next, next = read(segment + 1);
        return true;
    }
};

// A warp's share of turns `turn` to `last_turn` (more than `turn`): parts `part` to `part` + EACH of `parts` of the
// inputs, of CT tiles, times 8 * NT rows, of which SINGLE has one; nothing for warps that are not `is_needed`. own: the
// warp's stages in shared memory. read(segment): what it is, for any number. tile_of(column, c): a tile's number among
// its expert's. wait_rows(): waits until the rows are there. row_of(segment, n): where row n * 8 + g begins.
// keep(i, total): takes the sums of part `part` + i. done(segment, its number, column): called by all warps at a turn's end.
template <int NT, int CT, int STAGES, bool SINGLE, int EACH, class Read, class TileOf, class WaitRows, class RowOf,
          class Keep, class Done>
__device__ __forceinline__ void walk_turns(const Stack stack, u32 own, int part, int parts, bool is_needed, int columns,
                                           int turn, int last_turn, Read read, TileOf tile_of, WaitRows wait_rows,
                                           RowOf row_of, Keep keep, Done done) {
    constexpr int SCALES_AT = UnitBytes<CT>::SCALES_AT, ZEROS_AT = UnitBytes<CT>::ZEROS_AT;
    constexpr int STAGE_BYTES = UnitBytes<CT>::ALL;
    // How many times 32 inputs of the rows a lane holds: of 8 rows a unit's, of more a K block's.
    constexpr int HELD = NT == 1 ? UNIT * 2 : 2;
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4, units = stack.blocks / UNIT;
    const int begin = units * part / parts, end = is_needed ? units * (part + EACH) / parts : begin;
    Cursor<Read> to_load(read, columns, turn);
    int to_load_of = turn, next_unit = begin;
    u32 slot = 0;
    const char *from_codes[CT], *from_scales[CT];
    const u32 tile_codes = stack.blocks * (PIECES * 512), tile_scales = stack.groups * 32;
    auto seek_turn = [&]() {
#pragma unroll
        for (int c = 0; c < CT; c++) {
            const u32 tile = to_load.now.expert * stack.tiles + tile_of(to_load.column, c);
            from_codes[c] = stack.codes + (unsigned long long)tile * tile_codes + (begin * UNIT * (PIECES * 512) + lane * 16);
            from_scales[c] = stack.scales + (unsigned long long)tile * tile_scales + (GROUP_OF(begin) * 32 + g * 4);
        }
    };
    auto load_stage = [&](u32 into) {
        if (to_load_of < last_turn) {
            const u32 to_codes = own + into + lane * 16, to_scales = own + into + lane * 4 + SCALES_AT;
#pragma unroll
            for (int c = 0; c < CT; c++) {
#pragma unroll
                for (int i = 0; i < UNIT * PIECES; i++)
                    cp_async_16(to_codes + (i * CT + c) * 512, from_codes[c] + i * 512);
#pragma unroll
                for (int i = 0; i < SCALES; i++) {
                    cp_async_4(to_scales + (i * CT + c) * 128, from_scales[c] + i * 32);
#if ZEROS
                    cp_async_4(to_scales + (ZEROS_AT - SCALES_AT) + (i * CT + c) * 128,
                               stack.zeros + (from_scales[c] - stack.scales) + i * 32);
#endif
                }
                from_codes[c] += UNIT * PIECES * 512;
#if GROUP_SIZE_32
                if ((next_unit + 1) % UNITS_PER_GROUP == 0) from_scales[c] += SCALES * 32;
#endif
            }
            if (++next_unit == end) {
                next_unit = begin, to_load_of++;
                to_load.advance();
                if (to_load_of < last_turn) seek_turn();
            }
        }
        asm volatile("cp.async.commit_group;" ::: "memory");
    };
    if (begin < end) {
        seek_turn();
#pragma unroll
        for (int u = 0; u < STAGES; u++) load_stage(u * STAGE_BYTES);
    }
    wait_rows();
    Cursor<Read> at(read, columns, turn);
    const u16* row[NT] = {};
    auto seek_rows = [&]() {
#pragma unroll
        for (int n = 0; n < NT; n++) row[n] = row_of(at.now, n) + begin * UNIT * 64 + t * 8;
    };
    if (begin < end) seek_rows();
    for (; turn < last_turn; turn++) {
        int unit = begin;
#pragma unroll 1
        for (int one = 0; one < EACH; one++) {
            const int till = EACH == 1 ? end : units * (part + one + 1) / parts;
            float total[CT][NT][4] = {};
            for (; unit < till; unit++) {
                uint4 x[HELD][NT];
                auto read_rows = [&](int half) {
#pragma unroll
                    for (int i = 0; i < HELD; i++)
#pragma unroll
                        for (int n = 0; n < NT; n++)
                            x[i][n] =
                                !SINGLE || g == 0 ? *(const uint4*)(row[n] + (half + i) * 32) : make_uint4(0, 0, 0, 0);
                };
                read_rows(0);
                asm volatile("cp.async.wait_group %0;" ::"n"(STAGES - 1) : "memory");
                const u32 codes_at = own + slot + lane * 16, scales_at = own + slot + lane * 4 + SCALES_AT;
                float sum[CT][NT][4];
                uint4 now[CT];
#pragma unroll
                for (int half = 0; half < UNIT * 2; half++) {
                    if (half && half % HELD == 0) read_rows(half);
                    if (PIECES == 2 || half % 2 == 0) {
#pragma unroll
                        for (int c = 0; c < CT; c++)
                            now[c] = ld_shared_16(codes_at + ((PIECES == 2 ? half : half / 2) * CT + c) * 512);
                    }
                    const int group = half / HALVES_PER_GROUP;
#pragma unroll
                    for (int c = 0; c < CT; c++) {
#if ZEROS
                        const ZeroPair zero =
                            zero_pair(ld_shared_4(scales_at + (ZEROS_AT - SCALES_AT) + (group * CT + c) * 128));
#else
                        const ZeroPair zero = zero_pair(MIDDLE, MIDDLE);
#endif
                        u32 first[4], second[4];
                        centered_codes(Operand(now[c], half % 2, 0).words, zero, first);
                        centered_codes(Operand(now[c], half % 2, 1).words, zero, second);
#pragma unroll
                        for (int n = 0; n < NT; n++) {
                            const uint4 with = x[half % HELD][n];
                            if (half % HALVES_PER_GROUP == 0) {
                                const float nothing[4] = {};
                                mma_from(sum[c][n], first, with.x, with.y, nothing);
                            } else {
                                mma(sum[c][n], first, with.x, with.y);
                            }
                            mma(sum[c][n], second, with.z, with.w);
                        }
                        if ((half + 1) % HALVES_PER_GROUP == 0) {
                            const u32 scale = ld_shared_4(scales_at + (group * CT + c) * 128);
#pragma unroll
                            for (int n = 0; n < NT; n++)
#pragma unroll
                                for (int i = 0; i < 4; i += SINGLE ? 2 : 1)
                                    total[c][n][i] =
                                        __fmaf_rn(sum[c][n][i], i < 2 ? low(scale) : high(scale), total[c][n][i]);
                        }
                    }
                }
#pragma unroll
                for (int n = 0; n < NT; n++) row[n] += UNIT * 64;
                load_stage(slot);
                slot = slot == (STAGES - 1) * STAGE_BYTES ? 0 : slot + STAGE_BYTES;
            }
            keep(one, total);
        }
        done(at.now, at.segment, at.column);
        if (at.advance()) {
            if (begin < end && turn + 1 < last_turn) seek_rows();
        } else {
#pragma unroll
            for (int n = 0; n < NT; n++) row[n] -= (end - begin) * UNIT * 64;
        }
    }
}

// A warp's results of a turn into `all` [rows][CT * 16]. total[.][.][0..3]: outputs g, g, g+8, g+8 of rows 2t, 2t+1,
// 2t, 2t+1.
template <int NT, int CT, bool SINGLE>
__device__ __forceinline__ void keep_sums(const float (&total)[CT][NT][4], float* all) {
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    if (SINGLE && t) return;
#pragma unroll
    for (int c = 0; c < CT; c++)
#pragma unroll
        for (int n = 0; n < NT; n++)
#pragma unroll
            for (int i = 0; i < 4; i += SINGLE ? 2 : 1)
                all[(n * 8 + t * 2 + i % 2) * (CT * 16) + c * 16 + g + i / 2 * 8] = total[c][n][i];
}

// Into how many parts the inputs of gate and up are split: for any number of rows the same.
#define GATE_UP_PARTS 8

// x -> silu(gate) * up of each pair: out [pairs][tiles * 8], in the order of the segments, each value where the expert's
// down wants it (down_inverse [experts][tiles * 8]; null: in order). tokens: the row of x for each place; null: that
// place divided by `chosen`. num_segments: null for `pairs` segments of one row (SINGLE). A warp multiplies EACH parts of
// the inputs; so a turn has EACH times CT tiles.
template <int NT, int CT, int STAGES, bool SINGLE, int EACH>
__device__ __forceinline__ void gate_up(const Stack stack, const u16* x, u16* out, const i64* ids, const int* segments,
                                        const int* num_segments, const int* tokens, const int* down_inverse, int x_row,
                                        int chosen, int pairs ADAPTER_PARAMETER) {
    constexpr int WARPS = 8, ROWS = SINGLE ? 1 : NT * 8, COLUMNS = CT * 16, WIDE = COLUMNS / 2;
    constexpr int SHARES = GATE_UP_PARTS / EACH, ALL = EACH * WIDE;
    // Two sets of sums alternate, so that one barrier a turn is enough; of many rows shared memory holds one.
    constexpr int SETS = NT == 1 ? 2 : 1;
    extern __shared__ uint4 shared[];
    float* sums = (float*)((char*)shared + WARPS * STAGES * UnitBytes<CT>::ALL);  // [SETS][EACH][PARTS][ROWS][COLUMNS]
    const int warp = __shfl_sync(~0u, threadIdx.x / 32, 0), g = threadIdx.x % 32 / 4;
    const int group = warp / SHARES, part = warp % SHARES * EACH;
    const int half = stack.tiles / 2, columns = (half + EACH * (CT / 2) - 1) / (EACH * (CT / 2)), size = stack.tiles * 8;
    pdl_wait();
    pdl_trigger();
    const int num_segments_now = SINGLE ? pairs : __ldcg(num_segments), turns = num_segments_now * columns;
    const int first = first_turn(turns, blockIdx.x), last = first_turn(turns, blockIdx.x + 1);
    if (first == last) return;
    auto read = [=](int segment) {
        const int one = min(segment, num_segments_now - 1);
        return SINGLE ? pair_as_segment(ids, one) : read_segment(segments, one);
    };
    int side = 0;
    walk_turns<NT, CT, STAGES, SINGLE, EACH>(
        stack, smem_address(shared) + warp * STAGES * UnitBytes<CT>::ALL, part, GATE_UP_PARTS, true, columns, first, last,
        read,
        [&](int column, int c) {
            return min((column * EACH + group) * (CT / 2) + c % (CT / 2), half - 1) + c / (CT / 2) * half;
        },
        [&]() {},
        [&](const Segment& segment, int n) {
            // Lanes of rows that do not exist read the last row's inputs; their results are not stored.
            const int place = segment.first + min(n * 8 + g, segment.rows - 1);
            return x + (i64)(tokens ? tokens[place] : place / chosen) * x_row;
        },
        [&](int one, const float (&total)[CT][NT][4]) {
            keep_sums<NT, CT, SINGLE>(
                total, sums + ((side * EACH + group) * GATE_UP_PARTS + part + one) * ROWS * COLUMNS);
        },
        [&](const Segment& segment, int number, int turn_column) {
            const float* all = sums + side * EACH * GATE_UP_PARTS * ROWS * COLUMNS;
            side = SETS - 1 - side;
            __syncthreads();
            for (int place = threadIdx.x; place < segment.rows * ALL; place += WARPS * 32) {
                const int row = place / ALL, of = place % ALL / WIDE, column = place % WIDE;
                const int output = turn_column * ALL + place % ALL;
                if (output >= size) continue;
                float gate = 0.0f, up = 0.0f;
#pragma unroll
                for (int one = 0; one < GATE_UP_PARTS; one++) {
                    const float* from = all + ((of * GATE_UP_PARTS + one) * ROWS + row) * COLUMNS + column;
                    gate += from[0], up += from[WIDE];
                }
#if ADAPTERS
                const int at = segment.first + row;
                gate = adapters.add_to(round_half(gate), at, segment.expert, output, 0);
                up = adapters.add_to(round_half(up), at, segment.expert, output, 1);
#endif
                const int to = down_inverse ? down_inverse[segment.expert * size + output] : output;
                out[(i64)(segment.first + row) * size + to] = to_half(swiglu(round_half(gate), round_half(up)));
            }
            if (SETS == 1) __syncthreads();
        });
}

// Into how many parts the inputs of down are split, each multiplied by a warp of 16: for any number of rows the same.
__device__ __forceinline__ int down_parts(int chosen) {
    int parts = 16;
    while (parts > 1 && parts * chosen > 16) parts /= 2;
    return parts;
}

// gated [pairs][inputs] -> out [tokens][tiles * 16]: the weighted sum of what a token's experts give, and what is
// `added`. For segments of one row, and at most 16 chosen experts.
template <int CT, int STAGES>
__device__ __forceinline__ void down_tokens(const Stack stack, const u16* gated, u16* out, const i64* ids,
                                            const float* weights, const Added added, int chosen,
                                            int num_tokens ADAPTER_PARAMETER) {
    constexpr int WARPS = 16, COLUMNS = CT * 16;
    extern __shared__ uint4 shared[];
    float* sums = (float*)((char*)shared + WARPS * STAGES * UnitBytes<CT>::ALL);  // [2][WARPS][COLUMNS]
    const int warp = __shfl_sync(~0u, threadIdx.x / 32, 0);
    const int parts = down_parts(chosen), own_place = warp / parts, place = min(own_place, chosen - 1);
    const int columns = (stack.tiles + CT - 1) / CT, turns = num_tokens * columns, size = stack.tiles * 16;
    const int first = first_turn(turns, blockIdx.x), last = first_turn(turns, blockIdx.x + 1);
    if (first == last) return;
    int side = 0;
    walk_turns<1, CT, STAGES, true, 1>(
        stack, smem_address(shared) + warp * STAGES * UnitBytes<CT>::ALL, warp % parts, parts, own_place < chosen, columns,
        first, last,
        [=](int token) { return pair_as_segment(ids, min(token, num_tokens - 1) * chosen + place); },
        [&](int column, int c) { return min(column * CT + c, stack.tiles - 1); },
        [&]() {
            pdl_wait();
            pdl_trigger();
        },
        [&](const Segment& segment, int) { return gated + (i64)segment.first * stack.blocks * 64; },
        [&](int, const float (&total)[CT][1][4]) {
            keep_sums<1, CT, true>(total, sums + (side * WARPS + warp) * COLUMNS);
        },
        [&](const Segment& segment, int number, int turn_column) {
            const float* all = sums + side * WARPS * COLUMNS;
            side ^= 1;
            __syncthreads();
            const int output = turn_column * COLUMNS + threadIdx.x, token = number;
            if (threadIdx.x >= COLUMNS || output >= size) return;
            float whole = 0.0f;
            for (int one = 0; one < chosen; one++) {
                float of_one = 0.0f;
                for (int i = 0; i < parts; i++) of_one += all[(one * parts + i) * COLUMNS + threadIdx.x];
#if ADAPTERS
                const int pair = token * chosen + one;
                of_one = adapters.add_to(of_one, pair, (int)ids[pair], output, 0);
#endif
                whole = __fmaf_rn(weights[token * chosen + one], of_one, whole);
            }
            const i64 to = (i64)token * size + output;
            out[to] = to_half(added.to(whole, token, to));
        });
}

// gated [pairs][inputs] -> out [pairs][tiles * 16] in float32, both in the order of the segments.
template <int NT, int CT, int STAGES>
__device__ __forceinline__ void down_segments(const Stack stack, const u16* gated, float* out, const int* segments,
                                              const int* num_segments, int chosen ADAPTER_PARAMETER) {
    constexpr int WARPS = 16, ROWS = NT * 8, COLUMNS = CT * 16;
    extern __shared__ uint4 shared[];
    float* sums = (float*)((char*)shared + WARPS * STAGES * UnitBytes<CT>::ALL);  // [WARPS][ROWS][COLUMNS]
    const int warp = __shfl_sync(~0u, threadIdx.x / 32, 0), g = threadIdx.x % 32 / 4;
    const int parts = down_parts(chosen), own_tiles = warp / parts, size = stack.tiles * 16;
    // A turn's tiles: so many of CT.
    const int groups = WARPS / parts, columns = (stack.tiles + groups * CT - 1) / (groups * CT);
    const int num_segments_now = __ldcg(num_segments), turns = num_segments_now * columns;
    const int first = first_turn(turns, blockIdx.x), last = first_turn(turns, blockIdx.x + 1);
    if (first == last) return;
    walk_turns<NT, CT, STAGES, false, 1>(
        stack, smem_address(shared) + warp * STAGES * UnitBytes<CT>::ALL, warp % parts, parts, true, columns, first, last,
        [=](int segment) { return read_segment(segments, min(segment, num_segments_now - 1)); },
        [&](int column, int c) { return min((column * groups + own_tiles) * CT + c, stack.tiles - 1); },
        [&]() {
            pdl_wait();
            pdl_trigger();
        },
        [&](const Segment& segment, int n) {
            return gated + (i64)(segment.first + min(n * 8 + g, segment.rows - 1)) * stack.blocks * 64;
        },
        [&](int, const float (&total)[CT][NT][4]) {
            keep_sums<NT, CT, false>(total, sums + warp * ROWS * COLUMNS);
        },
        [&](const Segment& segment, int number, int turn_column) {
            __syncthreads();
            for (int place = threadIdx.x; place < segment.rows * groups * COLUMNS; place += WARPS * 32) {
                const int row = place / (groups * COLUMNS), column = place % (groups * COLUMNS);
                const int output = turn_column * groups * COLUMNS + column;
                if (output >= size) continue;
                float of_one = 0.0f;
                for (int i = 0; i < parts; i++)
                    of_one += sums[((column / COLUMNS * parts + i) * ROWS + row) * COLUMNS + column % COLUMNS];
#if ADAPTERS
                of_one = adapters.add_to(of_one, segment.first + row, segment.expert, output, 0);
#endif
                out[(i64)(segment.first + row) * size + output] = of_one;
            }
            __syncthreads();
        });
}

#define GATE_UP(NAME, NT, CT, STAGES, SINGLE, EACH, MIN_BLOCKS)                                                        \
    extern "C" __global__ void __launch_bounds__(256, MIN_BLOCKS)                                                      \
        NAME(const char* codes, const char* scales, const char* zeros, const u16* x, u16* out, const i64* ids,         \
             const int* segments, const int* num_segments, const int* tokens, const int* down_inverse, int tiles,      \
             int blocks, int groups, int x_row, int chosen, int pairs ADAPTER_PARAMETER) {                             \
        gate_up<NT, CT, STAGES, SINGLE, EACH>(Stack{codes, scales, zeros, tiles, blocks, groups}, x, out, ids,         \
                                              segments, num_segments, tokens, down_inverse, x_row, chosen,             \
                                              pairs ADAPTER_ARGUMENT);                                                 \
    }
#define DOWN_TOKENS(NAME, CT, STAGES, MIN_BLOCKS)                                                                      \
    extern "C" __global__ void __launch_bounds__(512, MIN_BLOCKS)                                                      \
        NAME(const char* codes, const char* scales, const char* zeros, const u16* gated, u16* out, const i64* ids,     \
             const float* weights, const u16* residual, const u16* shared_rows, const float* gates, int tiles,         \
             int blocks, int groups, int chosen, int num_tokens ADAPTER_PARAMETER) {                                   \
        down_tokens<CT, STAGES>(Stack{codes, scales, zeros, tiles, blocks, groups}, gated, out, ids, weights,          \
                                Added{residual, shared_rows, gates}, chosen, num_tokens ADAPTER_ARGUMENT);             \
    }
#define DOWN_SEGMENTS(NAME, NT, CT, STAGES)                                                                            \
    extern "C" __global__ void __launch_bounds__(512, 1)                                                               \
        NAME(const char* codes, const char* scales, const char* zeros, const u16* gated, float* out,                   \
             const int* segments, const int* num_segments, int tiles, int blocks, int groups,                          \
             int chosen ADAPTER_PARAMETER) {                                                                           \
        down_segments<NT, CT, STAGES>(Stack{codes, scales, zeros, tiles, blocks, groups}, gated, out, segments,        \
                                      num_segments, chosen ADAPTER_ARGUMENT);                                          \
    }
VARIANTS
