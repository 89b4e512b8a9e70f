// Products of few rows with 4-bit matrices, or with half-precision ones, on tensor cores; and a matrix written out.
// Knows no model. Compiled for one group size: HALVES is how many 32 inputs share a scale (0: all do), ZEROS whether
// zeros are stored (else 8). HEAD_PARTS: into how many parts a block sums the head's inputs, 0 where only the products
// are wanted. MAX_NORMED: the longest row that is normed on the way.
//
// A tile is 16 outputs. 64 inputs of a tile are 512 bytes, 16 for each of a warp's 32 lanes: 4 words for 4 products of
// m16n8k16, whose A is the weights and whose B the activations. Inputs are taken in an order in which 8 that one lane
// needs lie beside each other: lane 4g+t takes, of each 32, inputs 8t..8t+7, for outputs g and g+8.
// The inputs are summed in SUMS parts; neighbours are added, then the pairs in order. What comes out for a row depends
// neither on how many rows there are nor on how many warps share the work.
// Few rows are multiplied by codes as they lie. So a run's product (inputs that share a scale, or 64 if all do) is too large
// by what a zero is so, times the sum of the run's inputs. Its sum starts from that, negative, and nothing has to be taken
// from each code. The sums come with the rows, [runs][sums_row]; of one row a block makes them itself.

#define SUMS 16

// What a run's sum starts from: its inputs' sum for each zero, less than nothing. `worth`: of a code.
__device__ __forceinline__ float start_of(float zero, float worth, float sum) { return (-OFFSET - zero) * worth * sum; }

enum { PLAIN, ADDED, GATED };

// 4-bit codes with their scales. `scales`, and `zeros` where there are any: [tiles][groups][8] pairs, of outputs g and
// g+8.
struct Packed {
    const uint4* codes;
    const u32* scales;
    const u32* zeros;
    int blocks, groups;
};

// How many blocks of 64 inputs are taken at once, whole groups where those are not larger, and how many scales that is.
#define UNIT (HALVES > 2 ? HALVES / 2 : 1)
#define EACH (2 * UNIT / SCALES)
#if HALVES
#define GROUP_OF(unit) ((unit) * SCALES)
#else
#define GROUP_OF(unit) 0
#endif
// How many inputs' products are added before they are scaled.
#define RUN (HALVES ? HALVES * 32 : 64)

// Read where `is_read`; else `v` stays what it was. A GPU at the limit of its power lowers its clock, so what nobody needs
// is not read.
__device__ __forceinline__ void read_some(uint4& v, const uint4* from, bool is_shared, bool is_read) {
    if (is_shared)
        asm volatile("{.reg .pred p; setp.ne.u32 p, %5, 0; @p ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];}"
                     : "+r"(v.x), "+r"(v.y), "+r"(v.z), "+r"(v.w)
                     : "r"(shared_at(from)), "r"((u32)is_read));
    else
        asm volatile("{.reg .pred p; setp.ne.u32 p, %5, 0; @p ld.global.v4.u32 {%0, %1, %2, %3}, [%4];}"
                     : "+r"(v.x), "+r"(v.y), "+r"(v.z), "+r"(v.w)
                     : "l"(from), "r"((u32)is_read));
}

// x [rows, inputs] -> out [rows, outputs]: PLAIN; plus `added`; or GATED, silu of the first half of the outputs times the
// second, each put where `places` says, if there are any.
// NT * 8 rows at most. A warp takes its share of the inputs of CT tiles, a block all of them; then its next CT tiles.
// NORMED: x is one row, taken through RMSNorm (`norm`, `eps`) and put where `x_places` says, if there are any, first.
// `run_sums`: of several rows, else none.
template <int WARPS, int NT, int CT, int DEPTH, int FINISH, bool NORMED>
__device__ __forceinline__ void multiply_packed(const Packed weights, const u16* x, int x_row, u16* out, int out_row,
                                                const u16* bias, const u16* added, const int* places, int rows,
                                                int tiles, const u16* norm, const int* x_places, float eps,
                                                const float* run_sums, int sums_row) {
    // 16 warps are for one row, and so is a norm: of the tensor cores' eight columns only the first counts.
    constexpr bool ONE = WARPS == 16 || NORMED;
    constexpr int COLUMNS = CT * 16, ROWS = ONE ? 1 : NT * 8, EACH_SUMS = SUMS / WARPS;
    // Two sets of sums take turns, so that one barrier a turn is enough; large ones have room for one set only.
    constexpr int SETS = ROWS * COLUMNS > 512 ? 1 : 2;
    // A unit of CT tiles on its way from memory, for one warp: the codes, 512 bytes each 64 inputs of a tile, then the
    // scales, then the zeros, 128 bytes each. Every lane fetches into shared memory what it will read itself.
    constexpr int SCALES_AT = UNIT * CT * 512, ZEROS_AT = SCALES_AT + SCALES * CT * 128;
    constexpr int ARRIVING = ZEROS_AT + ZEROS * SCALES * CT * 128;
    extern __shared__ uint4 shared[];
    float* sums = (float*)((char*)shared + WARPS * DEPTH * ARRIVING);  // [SETS][WARPS][ROWS][COLUMNS]
    float4* starts = (float4*)(sums + SETS * WARPS * ROWS * COLUMNS);  // of one row's runs
    u16* normed = (u16*)(starts + MAX_NORMED / RUN);
    const int lane = threadIdx.x % 32, part = __shfl_sync(~0u, threadIdx.x / 32, 0), g = lane / 4, t = lane % 4;
    const int units = weights.blocks / UNIT, begin = units * part / WARPS, end = units * (part + 1) / WARPS;
    const int num_turns = (tiles + CT - 1) / CT;
    auto tile_of = [&](int turn, int c) {
        return min(FINISH == GATED ? turn * CT / 2 + c / 2 + c % 2 * (tiles / 2) : turn * CT + c, tiles - 1);
    };

    int coming_turn = blockIdx.x, coming = begin;
    const u32 own = shared_at(shared) + part * DEPTH * ARRIVING;
    u32 slot = 0;
    u32 from_codes[CT], from_scales[CT];  // in bytes: a matrix has less than 4 GiB
    auto aim = [&]() {
#pragma unroll
        for (int c = 0; c < CT; c++) {
            const int tile = tile_of(coming_turn, c);
            from_codes[c] = (u32)(tile * weights.blocks + begin * UNIT) * 512 + lane * 16;
            from_scales[c] = (u32)(tile * weights.groups + GROUP_OF(begin)) * 32 + g * 4;
        }
    };
    auto fetch = [&](u32 into) {
        if (coming_turn < num_turns) {
            const u32 to_codes = own + into + lane * 16, to_scales = own + into + lane * 4 + SCALES_AT;
#pragma unroll
            for (int c = 0; c < CT; c++) {
#pragma unroll
                for (int b = 0; b < UNIT; b++)
                    fetch16(to_codes + (b * CT + c) * 512, (const char*)weights.codes + from_codes[c] + b * 512);
#pragma unroll
                for (int i = 0; i < SCALES; i++) {
                    fetch4(to_scales + (i * CT + c) * 128, (const char*)weights.scales + from_scales[c] + i * 32);
#if ZEROS
                    fetch4(to_scales + (ZEROS_AT - SCALES_AT) + (i * CT + c) * 128,
                           (const char*)weights.zeros + from_scales[c] + i * 32);
#endif
                }
                from_codes[c] += UNIT * 512;
#if HALVES
                from_scales[c] += SCALES * 32;
#endif
            }
            if (++coming == end) {
                coming = begin, coming_turn += gridDim.x;
                if (coming_turn < num_turns) aim();
            }
        }
        asm volatile("cp.async.commit_group;" ::: "memory");
    };
    if (begin < end) {
        aim();
#pragma unroll
        for (int u = 0; u < DEPTH; u++) fetch(u * ARRIVING);
    }
    let_next_come();
    Norm<WARPS * 32, NORMED ? MAX_NORMED : WARPS * 256> before;
    if (NORMED) before.read(norm, weights.blocks * 64);
    wait_for_previous();

    if (NORMED) {
        before.apply(x, weights.blocks * 64, eps, sums, [&](int at, uint4 done) { put8(done, at, x_places, normed); });
        __syncthreads();
        x = normed;
    }
    if (ONE) {
        // Each warp its own part's, 2048 inputs at a time: they are long in coming.
        const int till = end * UNIT * 64;
        for (int base = begin * UNIT * 64 + lane * 8; base - lane * 8 < till; base += 2048) {
            uint4 values[8];
#pragma unroll
            for (int i = 0; i < 8; i++)
                values[i] = base + i * 256 < till ? *(const uint4*)(x + base + i * 256) : make_uint4(0, 0, 0, 0);
#pragma unroll
            for (int i = 0; i < 8; i++) {
                const int input = base + i * 256;
                if (input - lane * 8 >= till) break;
                const float sum = sum_of_run(values[i], RUN);
#if ZEROS
                const float even = sum, odd = sum;
#else
                const float even = start_of(8.0f, EVEN, sum), odd = start_of(8.0f, ODD, sum);
#endif
                if (input < till && input % RUN == 0) starts[input / RUN] = make_float4(even, even, odd, odd);
            }
        }
        __syncwarp();
    }
    // Rows that are not there read the last one's inputs: what they get is written nowhere.
    const uint4* from_x[NT];
#pragma unroll
    for (int n = 0; n < NT; n++)
        from_x[n] = (const uint4*)(x + min(n * 8 + g, rows - 1) * x_row + begin * UNIT * 64 + t * 8);
    // Inputs come a step before they are needed.
    uint4 next[2][NT] = {};
    auto read_x = [&](uint4& to, const uint4* from) {
        if (ONE) read_some(to, from, NORMED, g == 0);
        else to = *from;
    };
    const uint4* x_at[NT];
#pragma unroll
    for (int n = 0; n < NT; n++) x_at[n] = from_x[n];
    // So do the sums of a run, of rows 2t and 2t+1.
    float2 next_sums[NT];
    auto read_sums = [&](int run) {
#pragma unroll
        for (int n = 0; n < NT; n++)
            if (!ONE) next_sums[n] = *(const float2*)(run_sums + (i64)run * sums_row + n * 8 + t * 2);
    };
    if (begin < end) {
        read_sums(begin * SCALES);
#pragma unroll
        for (int n = 0; n < NT; n++) read_x(next[0][n], from_x[n]), read_x(next[1][n], from_x[n] + 4);
    }
    int side = 0;
    for (int turn = blockIdx.x; turn < num_turns; turn += gridDim.x, side = SETS - 1 - side) {
        float* all = sums + side * WARPS * ROWS * COLUMNS;
        int unit = begin;
#pragma unroll 1
        for (int sum_of = 0; sum_of < EACH_SUMS; sum_of++) {
            const int till = units * (part * EACH_SUMS + sum_of + 1) / SUMS;
            float total[CT][NT][4] = {};
            for (; unit < till; unit++) {
                asm volatile("cp.async.wait_group %0;" ::"n"(DEPTH - 1) : "memory");
                const u32 codes_at = own + slot + lane * 16, scales_at = own + slot + lane * 4 + SCALES_AT;
                const uint4* after[NT];
#pragma unroll
                for (int n = 0; n < NT; n++) after[n] = unit + 1 == end ? from_x[n] : x_at[n] + UNIT * 8;
                float sum[CT][NT][4], start[NT][4];
#pragma unroll
                for (int b = 0; b < UNIT; b++) {
                    uint4 now[CT];
#pragma unroll
                    for (int c = 0; c < CT; c++) now[c] = fetched16(codes_at + (b * CT + c) * 512);
#pragma unroll
                    for (int h = 0; h < 2; h++) {
                        const int half = b * 2 + h, run = half / EACH;
                        auto then = [&](int n) { return (b + 1 < UNIT ? x_at[n] + b * 8 + 8 : after[n]) + h * 4; };
                        uint4 with[NT];
#pragma unroll
                        for (int n = 0; n < NT; n++) {
                            with[n] = next[h][n];
                            if (!ONE) read_x(next[h][n], then(n));
                        }
                        if (half % EACH == 0) {
                            if (ONE) {
                                const float4 one = starts[unit * SCALES + run];
                                start[0][0] = one.x, start[0][1] = one.y, start[0][2] = one.z, start[0][3] = one.w;
                            } else {
#pragma unroll
                                for (int n = 0; n < NT; n++)
#pragma unroll
                                    for (int i = 0; i < 4; i++) {
                                        const float sum_of = i % 2 ? next_sums[n].y : next_sums[n].x;
#if ZEROS
                                        start[n][i] = sum_of;
#else
                                        start[n][i] = start_of(8.0f, i < 2 ? EVEN : ODD, sum_of);
#endif
                                    }
                                read_sums(run + 1 < SCALES ? unit * SCALES + run + 1
                                                           : (unit + 1 == end ? begin : unit + 1) * SCALES);
                            }
                        }
#pragma unroll
                        for (int c = 0; c < CT; c++) {
                            u32 a[4];
                            plain_codes_of(h ? now[c].z : now[c].x, a);
                            if (half % EACH == 0) {
#if ZEROS
                                const u32 zero = fetched4(scales_at + (ZEROS_AT - SCALES_AT) + (run * CT + c) * 128);
#pragma unroll
                                for (int n = 0; n < NT; n++) {
                                    float from[4];
#pragma unroll
                                    for (int i = 0; i < 4; i++)
                                        from[i] = start_of(i < 2 ? low(zero) : high(zero), i < 2 ? EVEN : ODD, start[n][i]);
                                    multiply_from(sum[c][n], a, with[n].x, with[n].y, from);
                                }
#else
#pragma unroll
                                for (int n = 0; n < NT; n++) multiply_from(sum[c][n], a, with[n].x, with[n].y, start[n]);
#endif
                            } else {
#pragma unroll
                                for (int n = 0; n < NT; n++) multiply_add(sum[c][n], a, with[n].x, with[n].y);
                            }
                            plain_codes_of(h ? now[c].w : now[c].y, a);
#pragma unroll
                            for (int n = 0; n < NT; n++) multiply_add(sum[c][n], a, with[n].z, with[n].w);
                            if ((half + 1) % EACH == 0) {
                                const u32 scale = fetched4(scales_at + (run * CT + c) * 128);
#pragma unroll
                                for (int n = 0; n < NT; n++)
#pragma unroll
                                    for (int i = 0; i < 4; i += ONE ? 2 : 1)
                                        total[c][n][i] =
                                            __fmaf_rn(sum[c][n][i], i < 2 ? low(scale) : high(scale), total[c][n][i]);
                            }
                        }
                        if (ONE) read_x(next[h][0], then(0));
                    }
                }
#pragma unroll
                for (int n = 0; n < NT; n++) x_at[n] = after[n];
                fetch(slot);
                slot = slot == (DEPTH - 1) * ARRIVING ? 0 : slot + ARRIVING;
            }
            // total[.][.][0..3]: outputs g, g, g+8, g+8 of rows 2t, 2t+1, 2t, 2t+1.
            if (ONE && t) continue;
#pragma unroll
            for (int c = 0; c < CT; c++)
#pragma unroll
                for (int n = 0; n < NT; n++)
#pragma unroll
                    for (int i = 0; i < 4; i += ONE ? 2 : 1) {
                        float& kept = all[(part * ROWS + n * 8 + t * 2 + i % 2) * COLUMNS + c * 16 + g + i / 2 * 8];
                        kept = sum_of ? kept + total[c][n][i] : total[c][n][i];
                    }
        }
        __syncthreads();
        constexpr int WIDE = FINISH == GATED ? COLUMNS / 2 : COLUMNS;
        for (int at = threadIdx.x; at < rows * WIDE; at += WARPS * 32) {
            const int row = at / WIDE, place = at % WIDE, output = turn * WIDE + place;
            auto value = [&](int column, int of) {
                float whole = 0.0f;
#pragma unroll
                for (int one = 0; one < WARPS; one += 2 / EACH_SUMS) {
                    const float* own = all + (one * ROWS + row) * COLUMNS + column;
                    whole += EACH_SUMS == 1 ? own[0] + own[ROWS * COLUMNS] : own[0];
                }
                whole *= column & 8 ? 1 / ODD : 1 / EVEN;
                return round_half(bias ? whole + to_float(bias[of]) : whole);
            };
            if (FINISH == GATED) {
                if (output >= tiles * 8) continue;
                const int column = place / 16 * 32 + place % 16;
                const float gate = value(column, output), up = value(column + 16, output + tiles * 8);
                const int place_out = places ? places[output] : output;
                out[row * out_row + place_out] = to_half(silu_times(gate, up));
            } else {
                if (output >= tiles * 16) continue;
                const float whole = value(place, output);
                out[row * out_row + output] =
                    FINISH == ADDED ? to_half(whole + to_float(added[row * out_row + output])) : to_half(whole);
            }
        }
        if (SETS == 1) __syncthreads();
    }
}

#define PACKED(NAME, WARPS, NT, CT, DEPTH, FINISH, NORMED, MIN_BLOCKS)                                                \
    extern "C" __global__ void __launch_bounds__(WARPS * 32, MIN_BLOCKS)                                              \
        NAME(const uint4* codes, const u32* scales, const u32* zeros, const u16* x, u16* out, const u16* bias,        \
             const u16* added, const int* places, int x_row, int out_row, int rows, int tiles, int blocks,            \
             int groups, const u16* norm, const int* x_places, float eps, const float* run_sums, int sums_row) {      \
        multiply_packed<WARPS, NT, CT, DEPTH, FINISH, NORMED>(Packed{codes, scales, zeros, blocks, groups}, x, x_row,  \
                                                              out, out_row, bias, added, places, rows, tiles, norm,   \
                                                              x_places, eps, run_sums, sums_row);                     \
    }

VARIANTS

#if HEAD_PARTS
// What products of several rows need beside them: each row's sums in runs, [runs][sums_row]. A block a row and part.
extern "C" __global__ void __launch_bounds__(256) sum_rows(const u16* x, float* run_sums, int x_row, int size, int sums_row) {
    const int parts = gridDim.y, all = (size + 255) / 256, part = blockIdx.y;
    const int begin = all * part / parts * 256, end = min(size, all * (part + 1) / parts * 256);
    let_next_come();
    wait_for_previous();
    sum_runs<256>(x + (i64)blockIdx.x * x_row + begin, end - begin, RUN,
                  run_sums + (i64)(begin / RUN) * sums_row + blockIdx.x, sums_row);
}

// A half-precision matrix [outputs, inputs] as it is, for the head: the same parts, and the same order of sums.
template <int NT, int AHEAD>
__device__ __forceinline__ void multiply_plain(const u16* weights, const u16* x, int x_row, u16* out, int out_row,
                                               int rows, int outputs, int blocks) {
    constexpr int ROWS = NT * 8;
    extern __shared__ float sums[];  // [HEAD_PARTS][ROWS][16]
    const int lane = threadIdx.x % 32, part = threadIdx.x / 32, g = lane / 4, t = lane % 4;
    const int begin = blocks * part / HEAD_PARTS, end = blocks * (part + 1) / HEAD_PARTS;
    const u16 *line[2];
#pragma unroll
    for (int i = 0; i < 2; i++)
        line[i] = weights + (i64)min((int)blockIdx.x * 16 + g + i * 8, outputs - 1) * blocks * 64 + t * 8;
    uint4 ahead[AHEAD][2][2];
#pragma unroll
    for (int u = 0; u < AHEAD; u++)
#pragma unroll
        for (int i = 0; i < 2; i++)
#pragma unroll
            for (int h = 0; h < 2; h++)
                if (begin + u < end) ahead[u][i][h] = read_weights(line[i] + (begin + u) * 64 + h * 32);
    let_next_come();
    wait_for_previous();
    float total[NT][4] = {};
    for (int base = begin; base < end; base += AHEAD) {
#pragma unroll
        for (int u = 0; u < AHEAD; u++) {
            const int block = base + u;
            if (block >= end) break;
#pragma unroll
            for (int h = 0; h < 2; h++) {
                const uint4 even = ahead[u][0][h], odd = ahead[u][1][h];
                if (block + AHEAD < end) {
                    ahead[u][0][h] = read_weights(line[0] + (block + AHEAD) * 64 + h * 32);
                    ahead[u][1][h] = read_weights(line[1] + (block + AHEAD) * 64 + h * 32);
                }
                const u32 first[4] = {even.x, odd.x, even.y, odd.y}, second[4] = {even.z, odd.z, even.w, odd.w};
#pragma unroll
                for (int n = 0; n < NT; n++) {
                    const uint4 with = n * 8 + g < rows
                                           ? read16(x + (i64)(n * 8 + g) * x_row + block * 64 + h * 32 + t * 8)
                                           : make_uint4(0, 0, 0, 0);
                    multiply_add(total[n], first, with.x, with.y);
                    multiply_add(total[n], second, with.z, with.w);
                }
            }
        }
    }
#pragma unroll
    for (int n = 0; n < NT; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) sums[(part * ROWS + n * 8 + t * 2 + i % 2) * 16 + g + i / 2 * 8] = total[n][i];
    __syncthreads();
    for (int at = threadIdx.x; at < rows * 16; at += 256) {
        const int output = blockIdx.x * 16 + at % 16;
        float whole = 0.0f;
#pragma unroll
        for (int one = 0; one < HEAD_PARTS; one++) whole += sums[(one * ROWS + at / 16) * 16 + at % 16];
        if (output < outputs) out[(i64)(at / 16) * out_row + output] = to_half(whole);
    }
}

#define HEAD(NAME, NT, AHEAD)                                                                                         \
    extern "C" __global__ void __launch_bounds__(256)                                                                 \
        NAME(const u16* weights, const u16* x, u16* out, int x_row, int out_row, int rows, int outputs, int blocks) { \
        multiply_plain<NT, AHEAD>(weights, x, x_row, out, out_row, rows, outputs, blocks);                            \
    }
HEAD(head_8, 1, 2)
HEAD(head_16, 2, 2)
HEAD(head_32, 4, 2)

// Tiles from `first_tile` on, written out as [outputs, inputs] in half precision: a block a tile.
extern "C" __global__ void __launch_bounds__(256)
    write_out(const uint4* codes, const u32* scales, const u32* zeros, u16* out, int first_tile, int blocks, int groups) {
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4, tile = first_tile + blockIdx.x;
    wait_for_previous();
    for (int block = threadIdx.x / 32; block < blocks; block += 8) {
        const uint4 now = read_weights(codes + ((i64)tile * blocks + block) * 32 + lane);
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const i64 at = ((i64)tile * groups + group_of(block * 2 + h)) * 8 + g;
            const u32 scale = __ldg(scales + at);
#if ZEROS
            const Zero zero = zero_of(__ldg(zeros + at));
#else
            const Zero zero = zero_of(8.0f, 8.0f);
#endif
            u32 first[4], second[4];
            codes_of(h ? now.z : now.x, zero, first);
            codes_of(h ? now.w : now.y, zero, second);
#pragma unroll
            for (int i = 0; i < 2; i++) {
                const float by = i ? high(scale) : low(scale);
                const u32 codes_here[4] = {first[i], first[i + 2], second[i], second[i + 2]};
                u32 done[4];
#pragma unroll
                for (int w = 0; w < 4; w++) done[w] = pack(low(codes_here[w]) * by, high(codes_here[w]) * by);
                u16* to = out + ((i64)blockIdx.x * 16 + g + i * 8) * blocks * 64 + block * 64 + h * 32 + t * 8;
                *(uint4*)to = make_uint4(done[0], done[1], done[2], done[3]);
            }
        }
    }
    let_next_come();
}

// A checkpoint's words [inputs / 8, outputs], 8 codes of one output each, as codes in the order above: a block of threads
// for 64 inputs of a tile. `order` [inputs] says which input each place takes; none: in order.
extern "C" __global__ void __launch_bounds__(128)
    pack(const u32* words, const int* order, u32* codes, int blocks, int outputs, int first_tile) {
    const int word = threadIdx.x % 4, lane = threadIdx.x / 4, g = lane / 4, t = lane % 4;
    const int input = blockIdx.x * 64 + word / 2 * 32 + t * 8 + word % 2 * 4;
    u32 packed = 0;
    wait_for_previous();
#pragma unroll
    for (int place = 0; place < 4; place++) {
        const int from = order ? order[input + place] : input + place;
#pragma unroll
        for (int side = 0; side < 2; side++) {
            const u32 code = words[(i64)(from / 8) * outputs + blockIdx.y * 16 + side * 8 + g] >> from % 8 * 4 & 15;
            packed |= code << (side * 4 + place / 2 * 8 + place % 2 * 16);
        }
    }
    codes[((i64)(first_tile + blockIdx.y) * blocks + blockIdx.x) * 128 + threadIdx.x] = packed;
}
#endif
