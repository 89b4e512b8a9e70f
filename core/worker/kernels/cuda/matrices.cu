// Products of up to 32 rows with matrices of 4 or 8 bit on tensor cores; and the matrix dequantized. Compiled for one group size. GROUP_SIZE_32: how many times 32 inputs share a scale (0: all inputs do).
// ZEROS: whether zero points are stored (else all are MIDDLE). PRODUCTS_ALONE: leaves out
// all but the products. MAX_NORMED: longest row (elements) that is RMS-normed on the way. ADAPTERS: whether the products
// add what each row's LoRA adapter adds (low_rank.cuh), before anything else is done with an output. TOLD_FLOATS: eight
// more than the most values of t that the blocks of one row's product compute and tell each other.
//
// core/worker/kernels/packing.py draws a tile: 16 outputs, of which 64 inputs are one piece of 512 bytes at 4 bit, and
// two at 8; 16 bytes for each of a warp's 32 lanes. Their words are the A operands of 4 products m16n8k16; the
// activations are B. Lane 4g+t has, of each 32 inputs, 8t..8t+7 for outputs g and g+8.
// The inputs are summed in SUMS parts: neighbours are added, then the pairs in order. So a row's result depends neither
// on the number of rows nor on how many warps share the work.
// Small batches multiply the raw codes without subtracting the zero point. A scale group's sum is then too large
// by zero_point · sum(inputs of the group). The accumulator starts at minus that, which saves a subtraction a code. (A
// scale group here: inputs that share a scale, or 64 of them where those are more than a stage brings.)
// The sums of several rows' scale groups come as group_sums [groups][sums_row]; a block computes those of a single row.

#define SUMS 16

// -(OFFSET + zero) · step · sum(inputs of the scale group). OFFSET: what turning a code into a half-precision number
// adds. step: the value of one code.
__device__ __forceinline__ float initial_accumulator(float zero, float step, float sum) {
    return (-OFFSET - zero) * step * sum;
}

enum { NONE, RESIDUAL, SWIGLU };

// A quantized matrix. scales, and zeros where there are any: [tiles][groups][8] pairs, of outputs g and g+8.
struct Packed {
    const uint4* codes;
    const u32* scales;
    const u32* zeros;
    int blocks, groups;
};

// v = *from where `is_read`, else unchanged. Unneeded reads cost power, and a GPU at its power limit lowers its clock.
__device__ __forceinline__ void read_some(uint4& v, const uint4* from, bool is_shared, bool is_read) {
    if (is_shared)
        asm volatile("{.reg .pred p; setp.ne.u32 p, %5, 0; @p ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];}"
                     : "+r"(v.x), "+r"(v.y), "+r"(v.z), "+r"(v.w)
                     : "r"(smem_address(from)), "r"((u32)is_read));
    else
        asm volatile("{.reg .pred p; setp.ne.u32 p, %5, 0; @p ld.global.v4.u32 {%0, %1, %2, %3}, [%4];}"
                     : "+r"(v.x), "+r"(v.y), "+r"(v.z), "+r"(v.w)
                     : "l"(from), "r"((u32)is_read));
}

// A turn's end: `all` [WARPS][ROWS][COLUMNS], the warps' sums, added in order, through the epilogue, to `out`.
template <int WARPS, int ROWS, int COLUMNS, int EPILOGUE>
__device__ __forceinline__ void reduce_and_store(const float* all, int turn, u16* out, int out_row, const u16* bias,
                                                 const u16* residual, const int* inverse_permutation, int rows,
                                                 int tiles, const LowRank& lora) {
    constexpr int SUMS_PER_WARP = SUMS / WARPS;
    constexpr int WIDE = EPILOGUE == SWIGLU ? COLUMNS / 2 : COLUMNS;
    for (int at = threadIdx.x; at < rows * WIDE; at += WARPS * 32) {
        const int row = at / WIDE, place = at % WIDE, output = turn * WIDE + place;
        auto value = [&](int column, int of) {
            float whole = 0.0f;
#pragma unroll
            for (int one = 0; one < WARPS; one += 2 / SUMS_PER_WARP) {
                const float* own = all + (one * ROWS + row) * COLUMNS + column;
                whole += SUMS_PER_WARP == 1 ? own[0] + own[ROWS * COLUMNS] : own[0];
            }
            whole *= column & 8 ? 1 / STEP_ODD : 1 / STEP_EVEN;
            whole = round_half(bias ? whole + to_float(bias[of]) : whole);
#if ADAPTERS
            whole = lora.add_to(whole, row, of);
#endif
            return whole;
        };
        if (EPILOGUE == SWIGLU) {
            if (output >= tiles * 8) continue;
            const int column = place / 16 * 32 + place % 16;
            const float gate = value(column, output), up = value(column + 16, output + tiles * 8);
            const int place_out = inverse_permutation ? inverse_permutation[output] : output;
            out[row * out_row + place_out] = to_half(swiglu(gate, up));
        } else {
            if (output >= tiles * 16) continue;
            const float whole = value(place, output);
            out[row * out_row + output] =
                EPILOGUE == RESIDUAL ? to_half(whole + to_float(residual[row * out_row + output])) : to_half(whole);
        }
    }
}

#if ADAPTERS
// Ask for what a turn's end reads of B: it is known long before.
template <int WARPS, int COLUMNS, int EPILOGUE>
__device__ __forceinline__ void prefetch_up(const LowRank& lora, int turn, int rows, int tiles) {
    constexpr int LINE = 64;
    for (int at = threadIdx.x; at < rows * COLUMNS; at += WARPS * 32) {
        const int row = at / COLUMNS, column = at % COLUMNS, place = lora.place_of(row);
        const int output = EPILOGUE == SWIGLU ? turn * COLUMNS / 2 + column / 32 * 16 + column % 16
                                              : turn * COLUMNS + column;
        if (place < 0 || output >= (EPILOGUE == SWIGLU ? tiles * 8 : tiles * 16)) continue;
        const u16* b = lora.up_row(place, EPILOGUE == SWIGLU && column & 16 ? output + tiles * 8 : output);
        for (int i = 0; i < lora.rank; i += LINE) asm volatile("prefetch.global.L2 [%0];" ::"l"(b + i));
    }
}
#endif

// x [rows, inputs] -> out [rows, outputs]. RESIDUAL: plus `residual`. SWIGLU: silu(first half of the outputs) * second
// half, each stored where `inverse_permutation` says, if given.
// A warp multiplies its part of the inputs of CT tiles, the block all inputs; then the block's next CT tiles (a turn).
// NORMED: x is one row; RMSNorm (`norm_weight`, `eps`, `offset`) stores it where `x_inverse_permutation` says, if given, first.
// group_sums: for several rows.
template <int WARPS, int NT, int CT, int STAGES, int EPILOGUE, bool NORMED>
__device__ __forceinline__ void multiply_packed(const Packed weights, const u16* x, int x_row, u16* out, int out_row,
                                                const u16* bias, const u16* residual, const int* inverse_permutation,
                                                int rows, int tiles, const u16* norm_weight,
                                                const int* x_inverse_permutation, float eps, float offset,
                                                const float* group_sums, int sums_row, const LowRank& lora,
                                                const LowRankDown& down) {
    // 16 warps are for one row, and so is NORMED: of the tensor cores' eight columns only the first counts.
    constexpr bool SINGLE_ROW = WARPS == 16 || NORMED;
    constexpr int COLUMNS = CT * 16, ROWS = SINGLE_ROW ? 1 : NT * 8, SUMS_PER_WARP = SUMS / WARPS;
    // Two sets of sums alternate, so that one barrier a turn is enough; of large sets shared memory holds one.
    constexpr int SETS = ROWS * COLUMNS > 512 ? 1 : 2;
    // A stage, for one warp: UNIT K blocks of CT tiles. First the codes in pieces of 512 bytes, then the scales, then
    // the zeros, 128 bytes each. Every lane copies into shared memory what it will read itself.
    constexpr int SCALES_AT = UNIT * PIECES * CT * 512, ZEROS_AT = SCALES_AT + SCALES * CT * 128;
    constexpr int STAGE_BYTES = ZEROS_AT + ZEROS * SCALES * CT * 128;
    extern __shared__ uint4 shared[];
    float* sums = (float*)((char*)shared + WARPS * STAGES * STAGE_BYTES);            // [SETS][WARPS][ROWS][COLUMNS]
    float4* initial_accumulators = (float4*)(sums + SETS * WARPS * ROWS * COLUMNS);  // of one row's scale groups
    u16* normed = (u16*)(initial_accumulators + MAX_NORMED / INPUTS_PER_GROUP);
    const int lane = threadIdx.x % 32, part = __shfl_sync(~0u, threadIdx.x / 32, 0), g = lane / 4, t = lane % 4;
    const int units = weights.blocks / UNIT, begin = units * part / WARPS, end = units * (part + 1) / WARPS;
    const int num_turns = (tiles + CT - 1) / CT;
    auto tile_of = [&](int turn, int c) {
        return min(EPILOGUE == SWIGLU ? turn * CT / 2 + c / 2 + c % 2 * (tiles / 2) : turn * CT + c, tiles - 1);
    };

    // The first blocks have t to compute, so the last ones have more turns.
    const int first_turn = ADAPTERS ? gridDim.x - 1 - blockIdx.x : blockIdx.x;
    int next_turn = first_turn, next_unit = begin;
    const u32 own = smem_address(shared) + part * STAGES * STAGE_BYTES;
    u32 slot = 0;
    u32 from_codes[CT], from_scales[CT];  // in bytes: a matrix has less than 4 GiB
    auto seek_turn = [&]() {
#pragma unroll
        for (int c = 0; c < CT; c++) {
            const int tile = tile_of(next_turn, c);
            from_codes[c] = (u32)(tile * weights.blocks + begin * UNIT) * (PIECES * 512) + lane * 16;
            from_scales[c] = (u32)(tile * weights.groups + GROUP_OF(begin)) * 32 + g * 4;
        }
    };
    auto load_stage = [&](u32 into) {
        if (next_turn < num_turns) {
            const u32 to_codes = own + into + lane * 16, to_scales = own + into + lane * 4 + SCALES_AT;
#pragma unroll
            for (int c = 0; c < CT; c++) {
#pragma unroll
                for (int i = 0; i < UNIT * PIECES; i++)
                    cp_async_16(to_codes + (i * CT + c) * 512, (const char*)weights.codes + from_codes[c] + i * 512);
#pragma unroll
                for (int i = 0; i < SCALES; i++) {
                    cp_async_4(to_scales + (i * CT + c) * 128, (const char*)weights.scales + from_scales[c] + i * 32);
#if ZEROS
                    cp_async_4(to_scales + (ZEROS_AT - SCALES_AT) + (i * CT + c) * 128,
                               (const char*)weights.zeros + from_scales[c] + i * 32);
#endif
                }
                from_codes[c] += UNIT * PIECES * 512;
#if GROUP_SIZE_32
                if ((next_unit + 1) % UNITS_PER_GROUP == 0) from_scales[c] += SCALES * 32;
#endif
            }
            if (++next_unit == end) {
                next_unit = begin, next_turn += gridDim.x;
                if (next_turn < num_turns) seek_turn();
            }
        }
        asm volatile("cp.async.commit_group;" ::: "memory");
    };
    if (begin < end) {
        seek_turn();
#pragma unroll
        for (int u = 0; u < STAGES; u++) load_stage(u * STAGE_BYTES);
    }
    pdl_trigger();
    RmsNorm<WARPS * 32, NORMED ? MAX_NORMED : WARPS * 256> rmsnorm;
    if (NORMED) rmsnorm.read(norm_weight, weights.blocks * 64);
#if ADAPTERS
    prefetch_up<WARPS, COLUMNS, EPILOGUE>(lora, first_turn, rows, tiles);
    // Blocks compute t of one row before their products, and read it at the end of their first turn.
    const int place = SINGLE_ROW && down.told ? lora.place_of(0) : -1, num_told = lora.parts * lora.rank;
    const bool is_teller = place >= 0;
    const float strength = is_teller ? down.weights[lora.slots[0]] : 0.0f;
    u32 tag = 0;
    uint4 early_a[EARLY_A] = {};
    if (is_teller && blockIdx.x < num_told && threadIdx.x < DOWN_THREADS) {
        const u16* a = down.row(place, lora.rank, blockIdx.x, weights.blocks * 64);
#pragma unroll
        for (int i = 0; i < EARLY_A; i++) {
            const int at = (i * DOWN_THREADS + threadIdx.x) * 8;
            if (at < weights.blocks * 64) early_a[i] = *(const uint4*)(a + at);
        }
    }
#endif
    pdl_wait();

    if (NORMED) {
        rmsnorm.apply(x, weights.blocks * 64, eps, offset, sums,
                      [&](int at, uint4 done) { store_8(done, at, x_inverse_permutation, normed); });
        __syncthreads();
        x = normed;
    }
#if ADAPTERS
    // t in order, then what a dot product sums of each warp.
    __shared__ __align__(16) float told_here[TOLD_FLOATS];
    if (is_teller) tag = down.tag();
    if (is_teller)
        tell_low_rank(down, x, NORMED ? x_inverse_permutation : down.x_places, weights.blocks * 64, place, lora.rank,
                      num_told, strength, early_a, tag, told_here + TOLD_FLOATS - 8);
#endif
    if (SINGLE_ROW) {
        // Each warp sums its own part's groups, 2048 inputs at a time: global memory is slow to answer.
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
                const float sum = scale_group_sum(values[i], INPUTS_PER_GROUP);
#if ZEROS
                const float even = sum, odd = sum;
#else
                const float even = initial_accumulator(MIDDLE, STEP_EVEN, sum),
                            odd = initial_accumulator(MIDDLE, STEP_ODD, sum);
#endif
                if (input < till && input % INPUTS_PER_GROUP == 0)
                    initial_accumulators[input / INPUTS_PER_GROUP] = make_float4(even, even, odd, odd);
            }
        }
        __syncwarp();
    }
    // Lanes of rows that do not exist read the last row's inputs; their results are not stored.
    const uint4* from_x[NT];
#pragma unroll
    for (int n = 0; n < NT; n++)
        from_x[n] = (const uint4*)(x + min(n * 8 + g, rows - 1) * x_row + begin * UNIT * 64 + t * 8);
    // Activations are read half a K block ahead.
    uint4 next[2][NT] = {};
    auto read_x = [&](uint4& to, const uint4* from) {
        if (SINGLE_ROW)
            read_some(to, from, NORMED, g == 0);
        else
            to = *from;
    };
    const uint4* x_at[NT];
#pragma unroll
    for (int n = 0; n < NT; n++) x_at[n] = from_x[n];
    // And so are the sums of a scale group, of rows 2t and 2t+1.
    float2 next_sums[NT];
    auto read_sums = [&](int group) {
#pragma unroll
        for (int n = 0; n < NT; n++)
            if (!SINGLE_ROW) next_sums[n] = *(const float2*)(group_sums + (i64)group * sums_row + n * 8 + t * 2);
    };
    if (begin < end) {
        read_sums(begin * SCALES);
#pragma unroll
        for (int n = 0; n < NT; n++) read_x(next[0][n], from_x[n]), read_x(next[1][n], from_x[n] + 4);
    }
    int side = 0;
    for (int turn = first_turn; turn < num_turns; turn += gridDim.x, side = SETS - 1 - side) {
        float* all = sums + side * WARPS * ROWS * COLUMNS;
        int unit = begin;
#if ADAPTERS
        if (turn != first_turn) prefetch_up<WARPS, COLUMNS, EPILOGUE>(lora, turn, rows, tiles);
#endif
#pragma unroll 1
        for (int sum_of = 0; sum_of < SUMS_PER_WARP; sum_of++) {
            const int till = units * (part * SUMS_PER_WARP + sum_of + 1) / SUMS;
            float total[CT][NT][4] = {};
            for (; unit < till; unit++) {
                asm volatile("cp.async.wait_group %0;" ::"n"(STAGES - 1) : "memory");
                const u32 codes_at = own + slot + lane * 16, scales_at = own + slot + lane * 4 + SCALES_AT;
                const uint4* after[NT];
#pragma unroll
                for (int n = 0; n < NT; n++) after[n] = unit + 1 == end ? from_x[n] : x_at[n] + UNIT * 8;
                float sum[CT][NT][4], initial[NT][4];
#pragma unroll
                for (int b = 0; b < UNIT; b++) {
                    uint4 now[CT];
#pragma unroll
                    for (int c = 0; c < CT; c++) now[c] = ld_shared_16(codes_at + (b * PIECES * CT + c) * 512);
#pragma unroll
                    for (int h = 0; h < 2; h++) {
#if PIECES == 2
#pragma unroll
                        for (int c = 0; c < CT; c++)
                            if (h) now[c] = ld_shared_16(codes_at + ((b * PIECES + 1) * CT + c) * 512);
#endif
                        const int half = b * 2 + h, group = half / HALVES_PER_GROUP;
                        auto then = [&](int n) { return (b + 1 < UNIT ? x_at[n] + b * 8 + 8 : after[n]) + h * 4; };
                        uint4 with[NT];
#pragma unroll
                        for (int n = 0; n < NT; n++) {
                            with[n] = next[h][n];
                            if (!SINGLE_ROW) read_x(next[h][n], then(n));
                        }
                        if (half % HALVES_PER_GROUP == 0) {
                            if (SINGLE_ROW) {
                                const float4 one = initial_accumulators[unit * SCALES + group];
                                initial[0][0] = one.x, initial[0][1] = one.y, initial[0][2] = one.z,
                                initial[0][3] = one.w;
                            } else {
#pragma unroll
                                for (int n = 0; n < NT; n++)
#pragma unroll
                                    for (int i = 0; i < 4; i++) {
                                        const float sum_of = i % 2 ? next_sums[n].y : next_sums[n].x;
#if ZEROS
                                        initial[n][i] = sum_of;
#else
                                        initial[n][i] = initial_accumulator(MIDDLE, i < 2 ? STEP_EVEN : STEP_ODD, sum_of);
#endif
                                    }
                                read_sums(group + 1 < SCALES ? unit * SCALES + group + 1
                                                             : (unit + 1 == end ? begin : unit + 1) * SCALES);
                            }
                        }
#pragma unroll
                        for (int c = 0; c < CT; c++) {
                            u32 a[4];
                            raw_codes(Operand(now[c], h, 0).words, a);
                            if (half % HALVES_PER_GROUP == 0) {
#if ZEROS
                                const u32 zero =
                                    ld_shared_4(scales_at + (ZEROS_AT - SCALES_AT) + (group * CT + c) * 128);
#pragma unroll
                                for (int n = 0; n < NT; n++) {
                                    float from[4];
#pragma unroll
                                    for (int i = 0; i < 4; i++)
                                        from[i] = initial_accumulator(i < 2 ? low(zero) : high(zero),
                                                                      i < 2 ? STEP_EVEN : STEP_ODD, initial[n][i]);
                                    mma_from(sum[c][n], a, with[n].x, with[n].y, from);
                                }
#else
#pragma unroll
                                for (int n = 0; n < NT; n++) mma_from(sum[c][n], a, with[n].x, with[n].y, initial[n]);
#endif
                            } else {
#pragma unroll
                                for (int n = 0; n < NT; n++) mma(sum[c][n], a, with[n].x, with[n].y);
                            }
                            raw_codes(Operand(now[c], h, 1).words, a);
#pragma unroll
                            for (int n = 0; n < NT; n++) mma(sum[c][n], a, with[n].z, with[n].w);
                            if ((half + 1) % HALVES_PER_GROUP == 0) {
                                const u32 scale = ld_shared_4(scales_at + (group * CT + c) * 128);
#pragma unroll
                                for (int n = 0; n < NT; n++)
#pragma unroll
                                    for (int i = 0; i < 4; i += SINGLE_ROW ? 2 : 1)
                                        total[c][n][i] =
                                            __fmaf_rn(sum[c][n][i], i < 2 ? low(scale) : high(scale), total[c][n][i]);
                            }
                        }
                        if (SINGLE_ROW) read_x(next[h][0], then(0));
                    }
                }
#pragma unroll
                for (int n = 0; n < NT; n++) x_at[n] = after[n];
                load_stage(slot);
                slot = slot == (STAGES - 1) * STAGE_BYTES ? 0 : slot + STAGE_BYTES;
            }
            // total[.][.][0..3]: outputs g, g, g+8, g+8 of rows 2t, 2t+1, 2t, 2t+1.
            if (SINGLE_ROW && t) continue;
#pragma unroll
            for (int c = 0; c < CT; c++)
#pragma unroll
                for (int n = 0; n < NT; n++)
#pragma unroll
                    for (int i = 0; i < 4; i += SINGLE_ROW ? 2 : 1) {
                        float& kept = all[(part * ROWS + n * 8 + t * 2 + i % 2) * COLUMNS + c * 16 + g + i / 2 * 8];
                        kept = sum_of ? kept + total[c][n][i] : total[c][n][i];
                    }
        }
        LowRank added = lora;
#if ADAPTERS
        if (is_teller) {
            if (turn == first_turn)
                for (int i = threadIdx.x; i < num_told; i += WARPS * 32) told_here[i] = down.hear(i, tag);
            added.t = told_here;
        }
#endif
        __syncthreads();
        reduce_and_store<WARPS, ROWS, COLUMNS, EPILOGUE>(all, turn, out, out_row, bias, residual, inverse_permutation,
                                                         rows, tiles, added);
        if (SETS == 1) __syncthreads();
    }
}

#if ADAPTERS
#define LOW_RANK_PARAMETERS                                                                                            \
    , const u16* b0, const u16* b1, const u16* b2, int second, int third, int parts, int columns, int rank,            \
        const float* t, const i64* slots, const int* places, const LowRankDown down
#define LOW_RANK b0, b1, b2, second, third, parts, columns, rank, t, slots, places
#define LOW_RANK_DOWN down
#else
#define LOW_RANK_PARAMETERS
#define LOW_RANK
#define LOW_RANK_DOWN LowRankDown{}
#endif
#define PACKED(NAME, WARPS, NT, CT, STAGES, EPILOGUE, NORMED, MIN_BLOCKS)                                              \
    extern "C" __global__ void __launch_bounds__(WARPS * 32, MIN_BLOCKS)                                               \
        NAME(const uint4* codes, const u32* scales, const u32* zeros, const u16* x, u16* out, const u16* bias,         \
             const u16* residual, const int* inverse_permutation, int x_row, int out_row, int rows, int tiles,         \
             int blocks, int groups, const u16* norm_weight, const int* x_inverse_permutation, float eps,              \
             float offset, const float* group_sums, int sums_row LOW_RANK_PARAMETERS) {                                \
        multiply_packed<WARPS, NT, CT, STAGES, EPILOGUE, NORMED>(                                                      \
            Packed{codes, scales, zeros, blocks, groups}, x, x_row, out, out_row, bias, residual, inverse_permutation, \
            rows, tiles, norm_weight, x_inverse_permutation, eps, offset, group_sums, sums_row, LowRank{LOW_RANK},     \
            LOW_RANK_DOWN);                                                                                            \
    }

VARIANTS

#if !PRODUCTS_ALONE
// For products of several rows: the sums of each row's scale groups, [groups][sums_row]. A block a row and part.
extern "C" __global__ void __launch_bounds__(256)
    sum_rows(const u16* x, float* group_sums, int x_row, int size, int sums_row) {
    const int parts = gridDim.y, all = (size + 255) / 256, part = blockIdx.y;
    const int begin = all * part / parts * 256, end = min(size, all * (part + 1) / parts * 256);
    pdl_trigger();
    pdl_wait();
    scale_group_sums<256>(x + (i64)blockIdx.x * x_row + begin, end - begin, INPUTS_PER_GROUP,
                          group_sums + (i64)(begin / INPUTS_PER_GROUP) * sums_row + blockIdx.x, sums_row);
}

// Dequantize tiles from `first_tile` on to [outputs, inputs] in half precision, a block a tile.
extern "C" __global__ void __launch_bounds__(256) dequantize(const uint4* codes, const u32* scales, const u32* zeros,
                                                             u16* out, int first_tile, int blocks, int groups) {
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4, tile = first_tile + blockIdx.x;
    pdl_wait();
    for (int block = threadIdx.x / 32; block < blocks; block += 8) {
        uint4 now;
#pragma unroll
        for (int h = 0; h < 2; h++) {
            if (h < PIECES) now = ld_weights_16(codes + (((i64)tile * blocks + block) * PIECES + h) * 32 + lane);
            const i64 at = ((i64)tile * groups + scale_group_of(block * 2 + h)) * 8 + g;
            const u32 scale = __ldg(scales + at);
#if ZEROS
            const ZeroPair zero = zero_pair(__ldg(zeros + at));
#else
            const ZeroPair zero = zero_pair(MIDDLE, MIDDLE);
#endif
            u32 first[4], second[4];
            centered_codes(Operand(now, h, 0).words, zero, first);
            centered_codes(Operand(now, h, 1).words, zero, second);
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
    pdl_trigger();
}

// Repack a checkpoint's words [inputs * BITS / 32, outputs], codes of one output each, into tiles: a block for 64 inputs
// of a tile. permutation [inputs]: the model's input at each position of the matrix; null: in order.
extern "C" __global__ void __launch_bounds__(PIECES * 128)
    pack(const u32* words, const int* permutation, u32* codes, int blocks, int outputs, int first_tile) {
    constexpr int IN_WORD = 32 / BITS, PLACES = IN_WORD / 2;
    const u32 piece = PIECES == 2 ? threadIdx.x / 128 : 0, thread = threadIdx.x - piece * 128;
    // `word` counts a lane's words of the K block, PIECES * 2 for each 32 inputs.
    const int word = piece * 4 + thread % 4, lane = thread / 4, g = lane / 4, t = lane % 4;
    const int input = blockIdx.x * 64 + word / (PIECES * 2) * 32 + t * 8 + word % (PIECES * 2) * PLACES;
    u32 packed = 0;
    pdl_wait();
#pragma unroll
    for (int place = 0; place < PLACES; place++) {
        const int from = permutation ? permutation[input + place] : input + place;
#pragma unroll
        for (int side = 0; side < 2; side++) {
            const u32 whole = words[(i64)(from / IN_WORD) * outputs + blockIdx.y * 16 + side * 8 + g];
            const u32 code = whole >> from % IN_WORD * BITS & ((1u << BITS) - 1);
            packed |= code << (side * BITS + place / 2 * 8 + place % 2 * 16);
        }
    }
    codes[((i64)(first_tile + blockIdx.y) * blocks + blockIdx.x) * (PIECES * 128) + threadIdx.x] = packed;
}
#endif
