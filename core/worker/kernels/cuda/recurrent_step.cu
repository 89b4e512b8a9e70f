// A Gated DeltaNet layer for one new token a row, in one kernel. STEP_THREADS: of a block. MANY_ROWS: whether a thread block
// of many rows has room in shared memory for what it reads ahead, whose parts then begin on 16 bytes.

#define QUADS (DV / 4)
#define ROW_GROUPS (STEP_THREADS / QUADS)
#define ROWS_EACH ((DK + ROW_GROUPS - 1) / ROW_GROUPS)
#define CHANNELS_EACH ((HEAD_CHANNELS + STEP_THREADS - 1) / STEP_THREADS)
#define COLUMNS_EACH ((DV + STEP_THREADS - 1) / STEP_THREADS)

#if MANY_ROWS
// Of a row's value head, what the step needs beside the state: its queries', keys' and values' last inputs of the
// convolution, that one's weights, the new inputs, the gates. Then beta, the decay, and what that is made of.
struct HeadInputs {
    u16 window[HEAD_CHANNELS * MEMORY], weights[HEAD_CHANNELS * WIDTH], mixed[HEAD_CHANNELS], gates[DV];
    // Each the one of two u16 in memory, the lower or the higher, where its address says.
    u32 beta, decay;
    float log_rate, offset;
};

// Copy each channel's EACH values of queries, keys and values, 16 bytes at a time. run(at): where the values of the head's
// channel `at` lie, the first of a query's, a key's or a value's.
template <int EACH, class Run>
__device__ __forceinline__ void copy_channels(bool is_there, u16* to, Run run) {
#pragma unroll 1
    for (int piece = threadIdx.x; piece < HEAD_CHANNELS * EACH / 8; piece += STEP_THREADS) {
        const int at = piece * 8, first = at < DK * EACH ? 0 : at < 2 * DK * EACH ? DK : 2 * DK;
        copy_16_or_zeros(is_there, to + at, run(first) + at - first * EACH);
    }
}

// The u16 at `from` is in the 4 bytes that are copied: in their upper half where its address says so.
__device__ __forceinline__ void copy_around(u32* to, const u16* from) { copy_4(to, (const u16*)((i64)from & ~3ll)); }
__device__ __forceinline__ u16 one_of(u32 two, const u16* from) { return (u16)(two >> ((i64)from & 2) * 8); }
#endif

// One new token a row. columns [rows]: its place in its slot's text; below 0 the row gets zeros and its slot is left alone.
// readers [rows][key heads]: zeros, and zeros again afterwards. out [rows][value heads * DV], each value where
// `inverse_permutation` says, if given, in tiles of `tile_rows`, if any.
// A thread keeps four columns of some of the state's rows, which it reads before the token's numbers are there. Of many
// rows (MANY) a block takes one head after the other, and asks for all that the next one needs while it computes: `ahead`
// [ROWS_EACH][STEP_THREADS] of the state, of which each thread reads what it asked for itself; behind it HeadInputs.
template <bool MANY>
__device__ __forceinline__ void step_heads(
    const u16* mixed, const u16* gates, const u16* betas, const u16* decays, int mixed_row, int gates_row, int betas_row,
    int decays_row, int head_step, int keys, int values, int values_step, int gates_step, int scalars_step,
    const u16* conv_weights, const float* log_rates, const float* offsets, const u16* norm_weights, u16* conv,
    float* state, const i64* slots, const i64* columns, u32* readers, u16* out, const int* inverse_permutation,
    int tile_rows, i64 conv_row, i64 state_row, float eps, int key_heads, int value_heads, int rows, float4* ahead) {
    __shared__ float active[HEAD_CHANNELS], deltas[DV], squares[STEP_THREADS / 32];
    __shared__ float read[2][ROW_GROUPS][DV];  // Of the state by key and by query, a row group's part.
    __shared__ u16 own_gates[DV], norms[DV];
    __shared__ float scalars[2];  // Beta, and by how much the state fades.
    __shared__ u32 arrived;
    const Projected from = PROJECTED;
    const Heads heads = {key_heads, value_heads};
    const int ratio = heads.ratio(), tid = threadIdx.x, lane = tid % 32, quad = tid % QUADS, group = tid / QUADS;
#if MANY_ROWS
    HeadInputs& inputs = *(HeadInputs*)(ahead + ROWS_EACH * STEP_THREADS);
#endif
    // What earlier steps left in memory, and weights: a kernel before this one writes none of it.
    auto ask_for_memory = [&](int item) {
#if MANY_ROWS
        if (item >= rows * value_heads) return;
        const int head = item % value_heads;
        const i64 column = columns[item / value_heads], slot = slots[item / value_heads];
        if ((column | slot) < 0) return;
        const float* own_state = state + slot * state_row + (i64)head * DK * DV;
        // Not unrolled: registers are few.
#pragma unroll 1
        for (int e = 0; e < ROWS_EACH; e++) {
            const int at = e * ROW_GROUPS + group;
            const bool is_there = at < DK && group < ROW_GROUPS && column > 0;
            copy_16_or_zeros(is_there, ahead + e * STEP_THREADS + tid, is_there ? own_state + at * DV + quad * 4 : own_state);
        }
        copy_channels<MEMORY>(column > 0, inputs.window, [&](int at) {
            return conv + slot * conv_row + Channel(from, heads, head, at).channel * MEMORY;
        });
        copy_channels<WIDTH>(true, inputs.weights, [&](int at) {
            return conv_weights + Channel(from, heads, head, at).channel * WIDTH;
        });
#endif
    };
    // What the layer's matrices made of the token.
    auto ask_for_token = [&](int item) {
#if MANY_ROWS
        if (item >= rows * value_heads) return;
        const int head = item % value_heads;
        const i64 row = item / value_heads;
        copy_channels<1>(true, inputs.mixed, [&](int at) {
            return mixed + row * mixed_row + Channel(from, heads, head, at).input;
        });
        const u16* own_gates = gates + row * gates_row + head / ratio * gates_step + head % ratio * DV;
        // Threads that the other copies leave something to do.
        const int from_last = STEP_THREADS - 1 - tid;
        if (from_last < DV / 8) copy_16_or_zeros(true, inputs.gates + from_last * 8, own_gates + from_last * 8);
        if (tid == 0) copy_around(&inputs.beta, &scalar_of(from, betas, betas_row, ratio, row, head));
        if (tid == 1) copy_around(&inputs.decay, &scalar_of(from, decays, decays_row, ratio, row, head));
        if (tid == 2) copy_4(&inputs.log_rate, log_rates + head);
        if (tid == 3) copy_4(&inputs.offset, offsets + head);
#endif
    };
    auto ask_ahead = [&](int item) {
        ask_for_memory(item);
        ask_for_token(item);
    };
    if (MANY) {
        for (int at = tid; at < DV; at += STEP_THREADS) norms[at] = norm_weights[at];
        ask_for_memory(blockIdx.x);
        pdl_trigger();
        pdl_wait();
        ask_for_token(blockIdx.x);
        wait_for_copies();
        __syncthreads();
    }
    auto step_head = [&](int head, int row) {
        auto put = [&](int at, u16 value) {
            const int place = head * DV + at;
            const int at_input = inverse_permutation ? inverse_permutation[place] : place;
            out[input_offset(row, at_input, value_heads * DV, tile_rows)] = value;
        };
        // slots, columns and what earlier steps left in them were written before the step's first kernel: no need to wait.
        const i64 column = columns[row], slot = slots[row];
        // Slots are not negative: both are asked for at once.
        if ((column | slot) < 0) {
            if (!MANY) {
                pdl_trigger();
                pdl_wait();
            }
            for (int at = tid; at < DV; at += STEP_THREADS) put(at, 0);
            if (MANY) ask_ahead(row * value_heads + head + gridDim.x);
            return;
        }
        const bool is_first = column == 0;
        u16* const own_conv = conv + slot * conv_row;
        float* const own_state = state + slot * state_row + (i64)head * DK * DV;

        float kept[ROWS_EACH][4] = {};
#pragma unroll
        for (int e = 0; e < ROWS_EACH; e++) {
            const int at = e * ROW_GROUPS + group;
            if (MANY || at >= DK || group >= ROW_GROUPS || is_first) continue;
            const float4 four = *(const float4*)(own_state + at * DV + quad * 4);
            kept[e][0] = four.x, kept[e][1] = four.y, kept[e][2] = four.z, kept[e][3] = four.w;
        }
        u16 window[CHANNELS_EACH][WIDTH], weights[CHANNELS_EACH][WIDTH];
#pragma unroll
        for (int c = 0; c < CHANNELS_EACH; c++) {
            const int at = c * STEP_THREADS + tid;
            if (at >= HEAD_CHANNELS) continue;
            const int channel = Channel(from, heads, head, at).channel;
#pragma unroll
            for (int i = 0; i < WIDTH; i++) {
#if MANY_ROWS
                if (MANY) {
                    weights[c][i] = inputs.weights[at * WIDTH + i];
                    window[c][i] = i < MEMORY ? inputs.window[at * MEMORY + i] : inputs.mixed[at];
                    continue;
                }
#endif
                weights[c][i] = conv_weights[channel * WIDTH + i];
                if (i < MEMORY) window[c][i] = is_first ? 0 : own_conv[channel * MEMORY + i];
            }
        }
        // The last threads have no channel: they read the gates and the norm's weights, and the very last one the scalars.
        // All that is read of a token is asked for before any of it is waited for.
        const int from_last = STEP_THREADS - 1 - tid;
        u16 norm[COLUMNS_EACH], gate[COLUMNS_EACH], beta_bits, decay_bits;
        float log_rate, offset;
        const u16 *own_beta = &scalar_of(from, betas, betas_row, ratio, row, head),
                  *own_decay = &scalar_of(from, decays, decays_row, ratio, row, head);
        if (!MANY) {
            if (from_last == 0) log_rate = log_rates[head], offset = offsets[head];
#pragma unroll
            for (int c = 0; c < COLUMNS_EACH; c++) {
                const int at = c * STEP_THREADS + from_last;
                if (at < DV) norm[c] = norm_weights[at];
            }
            pdl_trigger();
            pdl_wait();
            if (from_last == 0) beta_bits = *own_beta, decay_bits = *own_decay;
#pragma unroll
            for (int c = 0; c < CHANNELS_EACH; c++) {
                const int at = c * STEP_THREADS + tid;
                if (at < HEAD_CHANNELS) window[c][MEMORY] = mixed[(i64)row * mixed_row + Channel(from, heads, head, at).input];
            }
#pragma unroll
            for (int c = 0; c < COLUMNS_EACH; c++) {
                const int at = c * STEP_THREADS + from_last;
                if (at < DV) gate[c] = gates[row * (i64)gates_row + head / ratio * gates_step + head % ratio * DV + at];
            }
#pragma unroll
            for (int c = 0; c < COLUMNS_EACH; c++) {
                const int at = c * STEP_THREADS + from_last;
                if (at < DV) norms[at] = norm[c], own_gates[at] = gate[c];
            }
        }
#if MANY_ROWS
        if (MANY) {
            if (from_last == 0)
                beta_bits = one_of(inputs.beta, own_beta), decay_bits = one_of(inputs.decay, own_decay),
                log_rate = inputs.log_rate, offset = inputs.offset;
            for (int at = tid; at < DV; at += STEP_THREADS) own_gates[at] = inputs.gates[at];
        }
#endif
        if (from_last == 0)
            scalars[0] = beta_of(beta_bits), scalars[1] = expf(log_decay_of(decay_bits, log_rate, offset));
#pragma unroll
        for (int c = 0; c < CHANNELS_EACH; c++) {
            const int at = c * STEP_THREADS + tid;
            if (at < HEAD_CHANNELS) active[at] = convolve(window[c], weights[c]);
        }
        __syncthreads();
        const float beta = scalars[0], decay = scalars[1];
        // Value heads that share a key head all read its channels' last inputs; the last of them to come this far moves them
        // on, and each moves its own values' on.
        u32* counter = readers + row * key_heads + head / ratio;
        const u32 before = tid == 0 && ratio > 1 ? atomicInc(counter, ratio - 1) : 0;  // The last one leaves a zero.

        // Each warp adds them up for itself, which saves waiting for one that does.
        float key_squares = 0.0f, query_squares = 0.0f, products = 0.0f;
        for (int at = lane; at < DK; at += 32) {
            const float query = active[at], key = active[DK + at];
            key_squares += key * key, query_squares += query * query, products += query * key;
        }
        const float key_by = rsqrtf(warp_sum(key_squares) + 1e-6f);
        const float query_by = rsqrtf(warp_sum(query_squares) + 1e-6f) * rsqrtf((float)DK);
        const float match = warp_sum(products) * key_by * query_by;

        if (MANY) {
#pragma unroll
            for (int e = 0; e < ROWS_EACH; e++) {
                const float4 four = ahead[e * STEP_THREADS + tid];
                kept[e][0] = four.x, kept[e][1] = four.y, kept[e][2] = four.z, kept[e][3] = four.w;
            }
            ask_ahead(row * value_heads + head + gridDim.x);
        }
        float by_key[4] = {}, by_query[4] = {};
#pragma unroll
        for (int e = 0; e < ROWS_EACH; e++) {
            const int at = min(e * ROW_GROUPS + group, DK - 1);  // Of rows that do not exist zeros are kept.
#pragma unroll
            for (int i = 0; i < 4; i++) {
                by_query[i] = __fmaf_rn(kept[e][i], active[at], by_query[i]);
                by_key[i] = __fmaf_rn(kept[e][i], active[DK + at], by_key[i]);
            }
        }
        if (group < ROW_GROUPS)
#pragma unroll
            for (int i = 0; i < 4; i++)
                read[0][group][quad * 4 + i] = by_key[i], read[1][group][quad * 4 + i] = by_query[i];
        __syncthreads();
        // What the state will say to the query: what it says now, faded, and the new value as far as key and query match.
        float answers[COLUMNS_EACH], sum = 0.0f;
#pragma unroll
        for (int c = 0; c < COLUMNS_EACH; c++) {
            const int at = c * STEP_THREADS + tid;
            if (at >= DV) continue;
            float stored = 0.0f, answer = 0.0f;
#pragma unroll
            for (int i = 0; i < ROW_GROUPS; i++) stored += read[0][i][at], answer += read[1][i][at];
            const float delta = (active[2 * DK + at] - stored * (decay * key_by)) * beta;
            deltas[at] = delta * key_by;
            answers[c] = round_half(__fmaf_rn(delta, match, answer * (decay * query_by)));
            sum += answers[c] * answers[c];
        }
        sum = warp_sum(sum);
        if (lane == 0) squares[tid / 32] = sum;
        if (tid == 0) arrived = before;
        __syncthreads();
        const bool is_last = ratio == 1 || arrived == ratio - 1;

#pragma unroll
        for (int e = 0; e < ROWS_EACH; e++) {
            const int at = e * ROW_GROUPS + group;
            if (at >= DK || group >= ROW_GROUPS) continue;
            const float key = active[DK + at];
            store_four(own_state + at * DV + quad * 4, __fmaf_rn(key, deltas[quad * 4], kept[e][0] * decay),
                       __fmaf_rn(key, deltas[quad * 4 + 1], kept[e][1] * decay), __fmaf_rn(key, deltas[quad * 4 + 2], kept[e][2] * decay),
                       __fmaf_rn(key, deltas[quad * 4 + 3], kept[e][3] * decay));
        }
#pragma unroll
        for (int c = 0; c < CHANNELS_EACH; c++) {
            const int at = c * STEP_THREADS + tid;
            if (at >= HEAD_CHANNELS || (at < 2 * DK && !is_last)) continue;
            const int channel = Channel(from, heads, head, at).channel;
#pragma unroll
            for (int i = 0; i < MEMORY; i++) own_conv[channel * MEMORY + i] = window[c][i + 1];
        }
        float whole = 0.0f;
#pragma unroll
        for (int i = 0; i < STEP_THREADS / 32; i++) whole += squares[i];
        const float by = rsqrtf(whole / DV + eps);
#pragma unroll
        for (int c = 0; c < COLUMNS_EACH; c++) {
            const int at = c * STEP_THREADS + tid;
            if (at >= DV) continue;
            put(at, gated(answers[c], by, norms[at], own_gates[at]));
        }
    };
    if (!MANY) return step_head(blockIdx.x, blockIdx.y);
#pragma unroll 1
    for (int item = blockIdx.x; item < rows * value_heads; item += gridDim.x) {
        step_head(item % value_heads, item / value_heads);
        // The next head's numbers take the place of this one's.
        wait_for_copies();
        __syncthreads();
    }
}

// Grid (value heads, rows).
extern "C" __global__ void __launch_bounds__(STEP_THREADS, DK * DV > 128 * 128 ? 1 : 2)
    delta_step(const u16* mixed, const u16* gates, const u16* betas, const u16* decays, int mixed_row, int gates_row,
               int betas_row, int decays_row, int head_step, int keys, int values, int values_step, int gates_step,
               int scalars_step, const u16* conv_weights, const float* log_rates, const float* offsets,
               const u16* norm_weights, u16* conv, float* state, const i64* slots, const i64* columns, u32* readers,
               u16* out, const int* inverse_permutation, int tile_rows, i64 conv_row, i64 state_row, float eps, int key_heads,
               int value_heads, int rows) {
    step_heads<false>(mixed, gates, betas, decays, mixed_row, gates_row, betas_row, decays_row, head_step, keys, values,
                      values_step, gates_step, scalars_step, conv_weights, log_rates, offsets, norm_weights, conv, state,
                      slots, columns, readers, out, inverse_permutation, tile_rows, conv_row, state_row, eps, key_heads,
                      value_heads, rows, nullptr);
}

// Any number of blocks.
extern "C" __global__ void __launch_bounds__(STEP_THREADS, 2)
    delta_step_many(const u16* mixed, const u16* gates, const u16* betas, const u16* decays, int mixed_row, int gates_row,
                    int betas_row, int decays_row, int head_step, int keys, int values, int values_step, int gates_step,
                    int scalars_step, const u16* conv_weights, const float* log_rates, const float* offsets,
                    const u16* norm_weights, u16* conv, float* state, const i64* slots, const i64* columns, u32* readers,
                    u16* out, const int* inverse_permutation, int tile_rows, i64 conv_row, i64 state_row, float eps, int key_heads,
                    int value_heads, int rows) {
#if MANY_ROWS
    extern __shared__ uint4 shared[];
    step_heads<true>(mixed, gates, betas, decays, mixed_row, gates_row, betas_row, decays_row, head_step, keys, values,
                     values_step, gates_step, scalars_step, conv_weights, log_rates, offsets, norm_weights, conv, state,
                     slots, columns, readers, out, inverse_permutation, tile_rows, conv_row, state_row, eps, key_heads,
                     value_heads, rows, (float4*)shared);
#endif
}
