// The gated delta rule (arXiv 2412.06464) as Gated DeltaNet layers have it: a causal convolution and SiLU over queries,
// keys and values; the rule itself, on a state a value head; RMSNorm of what is read, gated by SiLU.
// DK, DV: sizes of a key's and of a value's head. WIDTH: inputs of the convolution. Rounds where torch rounds.
//
// A layer's memory of a slot: conv [channels][WIDTH - 1], the convolution's last inputs, oldest first; and state
// [value heads][DK][DV], float. What stands there counts for nothing at a text's first token.

#define MEMORY (WIDTH - 1)
#define HEAD_CHANNELS (2 * DK + DV)

// What the layer's matrices made of a token, each with its stride from row to row: mixed holds queries, keys and values;
// gates scale the output; betas and decays are one number a value head. Key head h's values are those of value heads
// h * ratio to h * ratio + ratio - 1.
struct Projected {
    const u16 *mixed, *gates, *betas, *decays;
    int mixed_row, gates_row, betas_row, decays_row;
    // In `mixed`: from a key head to the next, for queries and keys; where keys begin; where values begin; from a key
    // head's values to the next one's. Then the same step of `gates`, and of `betas` and `decays`.
    int head_step, keys, values, values_step, gates_step, scalars_step;
};

struct Heads {
    int key_heads, value_heads;
    __device__ __forceinline__ int ratio() const { return value_heads / key_heads; }
    __device__ __forceinline__ int channels() const { return 2 * key_heads * DK + value_heads * DV; }
};

// A channel of a value head, 0 to HEAD_CHANNELS - 1: its query, its key, its value. input: its place in a row of `mixed`;
// channel: its place in the convolution.
struct Channel {
    int input, channel;
    __device__ __forceinline__ Channel(const Projected& from, const Heads& heads, int head, int at) {
        const int key_head = head / heads.ratio(), member = head % heads.ratio();
        if (at < 2 * DK) {
            const int is_key = at >= DK, place = at - is_key * DK;
            input = key_head * from.head_step + is_key * from.keys + place;
            channel = (is_key * heads.key_heads + key_head) * DK + place;
        } else {
            input = from.values + key_head * from.values_step + member * DV + at - 2 * DK;
            channel = 2 * heads.key_heads * DK + head * DV + at - 2 * DK;
        }
    }
};

__device__ __forceinline__ float silu(float x) { return x / (1.0f + __expf(-x)); }

// One channel's convolution and SiLU; `inputs`: oldest first.
__device__ __forceinline__ float convolve(const u16* inputs, const u16* weights) {
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < WIDTH; i++) sum = __fmaf_rn(to_float(inputs[i]), to_float(weights[i]), sum);
    return round_half(silu(round_half(sum)));
}

// How strongly a token's value replaces what is stored under its key, and by how much the state fades: log of the factor.
__device__ __forceinline__ float read_beta(const Projected& from, int ratio, i64 row, int head) {
    const int at = head / ratio * from.scalars_step + head % ratio;
    return round_half(1.0f / (1.0f + expf(-to_float(from.betas[row * from.betas_row + at]))));
}
__device__ __forceinline__ float read_log_decay(const Projected& from, int ratio, i64 row, int head, const float* log_rates,
                                                const float* offsets) {
    const int at = head / ratio * from.scalars_step + head % ratio;
    const float x = to_float(from.decays[row * from.decays_row + at]) + offsets[head];
    return -expf(log_rates[head]) * (x > 20.0f ? x : log1pf(expf(x)));
}

// A value of the normed output, gated. `by`: one over the head's root mean square.
__device__ __forceinline__ u16 gated(float value, float by, u16 weight, u16 gate) {
    return to_half(round_half(round_half(value * by) * to_float(weight)) * silu(to_float(gate)));
}

// The arguments that a kernel begins with.
#define PROJECTED                                                                                              \
    Projected {                                                                                                     \
        mixed, gates, betas, decays, mixed_row, gates_row, betas_row, decays_row, head_step, keys, values,          \
            values_step, gates_step, scalars_step                                                                   \
    }

#define QUADS (DV / 4)
#define ROW_GROUPS (STEP_THREADS / QUADS)
#define ROWS_EACH ((DK + ROW_GROUPS - 1) / ROW_GROUPS)
#define CHANNELS_EACH ((HEAD_CHANNELS + STEP_THREADS - 1) / STEP_THREADS)
#define COLUMNS_EACH ((DV + STEP_THREADS - 1) / STEP_THREADS)

// One new token a row: grid (value heads, rows). columns [rows]: its place in its slot's text; below 0 the row gets zeros
// and its slot is left alone. readers [rows][key heads]: zeros, and zeros again afterwards. out [rows][value heads * DV],
// each value where `inverse_permutation` says, if given.
// A thread keeps four columns of some of the state's rows, which it reads before the token's numbers are there.
extern "C" __global__ void __launch_bounds__(STEP_THREADS, DK * DV > 128 * 128 ? 1 : 2)
    delta_step(const u16* mixed, const u16* gates, const u16* betas, const u16* decays, int mixed_row, int gates_row,
               int betas_row, int decays_row, int head_step, int keys, int values, int values_step, int gates_step,
               int scalars_step, const u16* conv_weights, const float* log_rates, const float* offsets, const u16* norm_weights,
               u16* conv, float* state, const i64* slots, const i64* columns, u32* readers, u16* out,
               const int* inverse_permutation, i64 conv_row, i64 state_row, float eps, int key_heads, int value_heads) {
    __shared__ float active[HEAD_CHANNELS], deltas[DV], squares[STEP_THREADS / 32];
    __shared__ float read[2][ROW_GROUPS][DV];  // Of the state by key and by query, a row group's part.
    __shared__ u32 arrived;
    const Projected from = PROJECTED;
    const Heads heads = {key_heads, value_heads};
    const int head = blockIdx.x, row = blockIdx.y, ratio = heads.ratio(), tid = threadIdx.x, lane = tid % 32;
    auto put = [&](int at, u16 value) {
        const int place = head * DV + at;
        out[(i64)row * value_heads * DV + (inverse_permutation ? inverse_permutation[place] : place)] = value;
    };
    // slots, columns and what earlier steps left in them were written before the step's first kernel: no need to wait.
    const i64 column = columns[row];
    if (column < 0) {
        pdl_trigger();
        pdl_wait();
        for (int at = tid; at < DV; at += STEP_THREADS) put(at, 0);
        return;
    }
    const bool is_first = column == 0;
    conv += slots[row] * conv_row, state += slots[row] * state_row + (i64)head * DK * DV;

    const int quad = tid % QUADS, group = tid / QUADS;
    float kept[ROWS_EACH][4] = {};
#pragma unroll
    for (int e = 0; e < ROWS_EACH; e++) {
        const int at = e * ROW_GROUPS + group;
        if (at >= DK || group >= ROW_GROUPS || is_first) continue;
        const float4 four = *(const float4*)(state + at * DV + quad * 4);
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
            weights[c][i] = conv_weights[channel * WIDTH + i];
            if (i < MEMORY) window[c][i] = is_first ? 0 : conv[channel * MEMORY + i];
        }
    }
    pdl_trigger();
    pdl_wait();

#pragma unroll
    for (int c = 0; c < CHANNELS_EACH; c++) {
        const int at = c * STEP_THREADS + tid;
        if (at < HEAD_CHANNELS) window[c][MEMORY] = mixed[(i64)row * mixed_row + Channel(from, heads, head, at).input];
    }
    const float beta = read_beta(from, ratio, row, head);
    const float decay = expf(read_log_decay(from, ratio, row, head, log_rates, offsets));
#pragma unroll
    for (int c = 0; c < CHANNELS_EACH; c++) {
        const int at = c * STEP_THREADS + tid;
        if (at < HEAD_CHANNELS) active[at] = convolve(window[c], weights[c]);
    }
    __syncthreads();
    // Value heads that share a key head all read its channels' last inputs; the last of them to come this far moves them
    // on, and each moves its own values' on.
    u32* counter = readers + row * key_heads + head / ratio;
    if (tid == 0) arrived = ratio == 1 ? 0 : atomicAdd(counter, 1u);

    // Each warp adds them up for itself, which saves waiting for one that does.
    float key_squares = 0.0f, query_squares = 0.0f, products = 0.0f;
    for (int at = lane; at < DK; at += 32) {
        const float query = active[at], key = active[DK + at];
        key_squares += key * key, query_squares += query * query, products += query * key;
    }
    const float key_by = rsqrtf(warp_sum(key_squares) + 1e-6f);
    const float query_by = rsqrtf(warp_sum(query_squares) + 1e-6f) * rsqrtf((float)DK);
    const float match = warp_sum(products) * key_by * query_by;

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
    const bool is_last = ratio == 1 || arrived == ratio - 1;
    __syncthreads();

#pragma unroll
    for (int e = 0; e < ROWS_EACH; e++) {
        const int at = e * ROW_GROUPS + group;
        if (at >= DK || group >= ROW_GROUPS) continue;
        const float key = active[DK + at];
        float4 four;
        four.x = __fmaf_rn(key, deltas[quad * 4], kept[e][0] * decay);
        four.y = __fmaf_rn(key, deltas[quad * 4 + 1], kept[e][1] * decay);
        four.z = __fmaf_rn(key, deltas[quad * 4 + 2], kept[e][2] * decay);
        four.w = __fmaf_rn(key, deltas[quad * 4 + 3], kept[e][3] * decay);
        *(float4*)(state + at * DV + quad * 4) = four;
    }
#pragma unroll
    for (int c = 0; c < CHANNELS_EACH; c++) {
        const int at = c * STEP_THREADS + tid;
        if (at >= HEAD_CHANNELS || (at < 2 * DK && !is_last)) continue;
        const int channel = Channel(from, heads, head, at).channel;
#pragma unroll
        for (int i = 0; i < MEMORY; i++) conv[channel * MEMORY + i] = window[c][i + 1];
    }
    if (tid == 0 && is_last && ratio > 1) *counter = 0;
    float whole = 0.0f;
#pragma unroll
    for (int i = 0; i < STEP_THREADS / 32; i++) whole += squares[i];
    const float by = rsqrtf(whole / DV + eps);
#pragma unroll
    for (int c = 0; c < COLUMNS_EACH; c++) {
        const int at = c * STEP_THREADS + tid;
        if (at >= DV) continue;
        const i64 gate = row * (i64)gates_row + head / ratio * gates_step + head % ratio * DV + at;
        put(at, gated(answers[c], by, norm_weights[at], gates[gate]));
    }
}

// A chunk of one slot's text, in three kernels. bounds [2]: its first token's place and how many tokens there are; the
// graph that the kernels are part of may have room for more.

// How many tokens a warp takes one after the other.
#define INPUT_TOKENS 4

// Convolution and SiLU of each token: active [tokens][channels], a warp for some tokens of a key head with its value heads,
// two channels a lane. scalars [value heads][tokens]: log of the decay, beta, one over the key's length, one over the
// query's times sqrt(DK).
extern "C" __global__ void __launch_bounds__(128)
    delta_inputs(const u16* mixed, const u16* gates, const u16* betas, const u16* decays, int mixed_row, int gates_row,
                 int betas_row, int decays_row, int head_step, int keys, int values, int values_step, int gates_step,
                 int scalars_step, const u16* conv_weights, const float* log_rates, const float* offsets, const u16* conv,
                 const i64* slots, const i64* bounds, u16* active, float* scalars, i64 conv_row, int key_heads,
                 int value_heads, int tokens) {
    const Projected from = PROJECTED;
    const Heads heads = {key_heads, value_heads};
    const int key_head = blockIdx.y, ratio = heads.ratio(), channels = heads.channels(), lane = threadIdx.x % 32;
    const int first = (blockIdx.x * 4 + threadIdx.x / 32) * INPUT_TOKENS;
    pdl_trigger();
    pdl_wait();
    const int count = min((int)bounds[1], tokens);
    if (first >= count) return;
    const bool is_first = bounds[0] == 0;
    conv += slots[0] * conv_row;
    float key_squares[INPUT_TOKENS] = {}, query_squares[INPUT_TOKENS] = {};
    for (int at = lane * 2; at < 2 * DK + ratio * DV; at += 64) {
        const bool is_value = at >= 2 * DK, is_key = at >= DK && !is_value;
        const int place = is_value ? at - 2 * DK : is_key ? at - DK : at;
        const int input = is_value ? values + key_head * values_step + place : key_head * head_step + is_key * keys + place;
        const int channel = is_value ? (2 * key_heads) * DK + key_head * ratio * DV + place
                                     : (is_key * key_heads + key_head) * DK + place;
        u16 window[2][INPUT_TOKENS + MEMORY], weights[2][WIDTH];
#pragma unroll
        for (int c = 0; c < 2; c++)
#pragma unroll
            for (int i = 0; i < WIDTH; i++) weights[c][i] = conv_weights[(channel + c) * WIDTH + i];
#pragma unroll
        for (int i = 0; i < INPUT_TOKENS + MEMORY; i++) {
            const int back = first + i - MEMORY;
            u32 two = 0;
            if (back >= 0 && back < count) two = *(const u32*)(mixed + (i64)back * mixed_row + input);
            if (back < 0 && !is_first) {
                const u16* kept = conv + channel * MEMORY + MEMORY + back;
                two = kept[0] | (u32)kept[MEMORY] << 16;
            }
            window[0][i] = (u16)two, window[1][i] = (u16)(two >> 16);
        }
#pragma unroll
        for (int i = 0; i < INPUT_TOKENS; i++) {
            if (first + i >= count) break;
            const float even = convolve(window[0] + i, weights[0]), odd = convolve(window[1] + i, weights[1]);
            *(u32*)(active + (i64)(first + i) * channels + channel) = pack(even, odd);
            if (is_key) key_squares[i] += even * even + odd * odd;
            if (!is_key && !is_value) query_squares[i] += even * even + odd * odd;
        }
    }
#pragma unroll
    for (int i = 0; i < INPUT_TOKENS; i++) {
        const int token = first + i;
        const float key_by = rsqrtf(warp_sum(key_squares[i]) + 1e-6f);
        const float query_by = rsqrtf(warp_sum(query_squares[i]) + 1e-6f) * rsqrtf((float)DK);
        if (token >= count) break;
        for (int member = lane; member < ratio; member += 32) {
            const int head = key_head * ratio + member;
            float4 one;
            one.x = read_log_decay(from, ratio, token, head, log_rates, offsets);
            one.y = read_beta(from, ratio, token, head);
            one.z = key_by, one.w = query_by;
            *(float4*)(scalars + ((i64)head * tokens + token) * 4) = one;
        }
    }
}

// The convolution's last inputs after a chunk of `count` tokens: of the head's values, and of its query and key by the
// first of the value heads that share them.
__device__ __forceinline__ void keep_last_inputs(const Projected& from, const Heads& heads, int head, int count,
                                                 bool is_first, u16* conv) {
    for (int at = head % heads.ratio() ? 2 * DK + threadIdx.x : threadIdx.x; at < HEAD_CHANNELS; at += blockDim.x) {
        const Channel one(from, heads, head, at);
        u16 last[MEMORY];
#pragma unroll
        for (int i = 0; i < MEMORY; i++) {
            const int token = count - MEMORY + i;
            last[i] = token >= 0 ? from.mixed[(i64)token * from.mixed_row + one.input]
                      : is_first ? 0
                                 : conv[one.channel * MEMORY + MEMORY + token];
        }
#pragma unroll
        for (int i = 0; i < MEMORY; i++) conv[one.channel * MEMORY + i] = last[i];
    }
}

#define SCAN_TOKENS (DK > 128 ? 4096 / DK : 32)
#define SCAN_COLUMNS 32
#define FOURS ((DK + 31) / 32)

// The rule itself, token by token: answers [tokens][value heads * DV]. A block takes SCAN_COLUMNS columns of a value head's
// state, which do not depend on the others; eight lanes share two columns, each with FOURS times four of their rows. The
// sums' order does not depend on where a chunk begins, so neither do the results.
extern "C" __global__ void __launch_bounds__(128)
    delta_scan(const u16* active, const float* scalars, const u16* mixed, u16* conv, float* state, const i64* slots,
               const i64* bounds, u16* answers, i64 conv_row, i64 state_row, int mixed_row, int head_step, int keys,
               int values, int values_step, int key_heads, int value_heads, int tokens) {
    __shared__ float now_keys[SCAN_TOKENS][DK], now_queries[SCAN_TOKENS][DK], now_values[SCAN_TOKENS][SCAN_COLUMNS];
    // Of each token: the decay, how strongly a value replaces, what is stored under the key times what, the query times what.
    __shared__ float numbers[SCAN_TOKENS][4], now_matches[SCAN_TOKENS];
    const Heads heads = {key_heads, value_heads};
    const int head = blockIdx.y, ratio = heads.ratio(), key_head = head / ratio, tid = threadIdx.x;
    const int part = tid % 8, own = tid / 8 * 2, column = blockIdx.x * SCAN_COLUMNS + own;
    const int channels = heads.channels(), key_at = (key_heads + key_head) * DK, query_at = key_head * DK;
    const int value_at = 2 * key_heads * DK + head * DV + blockIdx.x * SCAN_COLUMNS;
    pdl_trigger();
    pdl_wait();
    const int count = min((int)bounds[1], tokens);
    const bool is_first = bounds[0] == 0, is_there = column < DV;
    if (count <= 0) return;
    conv += slots[0] * conv_row, state += slots[0] * state_row + (i64)head * DK * DV + column;
    scalars += (i64)head * tokens * 4;
    float kept[FOURS][4][2] = {};
#pragma unroll
    for (int f = 0; f < FOURS; f++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int at = f * 32 + part * 4 + i;
            if (at >= DK || !is_there || is_first) continue;
            const float2 two = *(const float2*)(state + (i64)at * DV);
            kept[f][i][0] = two.x, kept[f][i][1] = two.y;
        }
    for (int base = 0; base < count; base += SCAN_TOKENS) {
        const int most = min(SCAN_TOKENS, count - base);
        for (int at = tid; at < most * DK; at += 128) {
            const u16* from = active + (i64)(base + at / DK) * channels + at % DK;
            now_keys[at / DK][at % DK] = to_float(from[key_at]);
            now_queries[at / DK][at % DK] = to_float(from[query_at]);
        }
        for (int at = tid; at < most * SCAN_COLUMNS; at += 128) {
            const int token = at / SCAN_COLUMNS, of = at % SCAN_COLUMNS;
            const bool is_column = blockIdx.x * SCAN_COLUMNS + of < DV;
            now_values[token][of] = is_column ? to_float(active[(i64)(base + token) * channels + value_at + of]) : 0.0f;
        }
        __syncthreads();
        for (int token = tid / 32; token < most; token += 4) {
            float products = 0.0f;
            for (int at = tid % 32; at < DK; at += 32) products += now_keys[token][at] * now_queries[token][at];
            products = warp_sum(products);
            if (tid % 32) continue;
            const float4 one = *(const float4*)(scalars + (i64)(base + token) * 4);
            const float decay = expf(one.x);
            numbers[token][0] = decay, numbers[token][1] = one.y * one.z;
            numbers[token][2] = decay * one.z, numbers[token][3] = one.w;
            now_matches[token] = products;
        }
        __syncthreads();
#pragma unroll 2
        for (int token = 0; token < most; token++) {
            const float decay = numbers[token][0], strength = numbers[token][1];
            float stored[2] = {}, answer[2] = {};
            float4 key[FOURS];
#pragma unroll
            for (int f = 0; f < FOURS; f++) {
                const int at = f * 32 + part * 4;
                if (at >= DK) continue;
                key[f] = *(const float4*)&now_keys[token][at];
                const float4 query = *(const float4*)&now_queries[token][at];
                const float four[4] = {key[f].x, key[f].y, key[f].z, key[f].w};
                const float asks[4] = {query.x, query.y, query.z, query.w};
#pragma unroll
                for (int i = 0; i < 4; i++)
#pragma unroll
                    for (int c = 0; c < 2; c++) {
                        stored[c] = __fmaf_rn(kept[f][i][c], four[i], stored[c]);
                        answer[c] = __fmaf_rn(kept[f][i][c], asks[i], answer[c]);
                    }
            }
#pragma unroll
            for (int by = 1; by < 8; by *= 2)
#pragma unroll
                for (int c = 0; c < 2; c++) {
                    stored[c] += __shfl_xor_sync(~0u, stored[c], by);
                    answer[c] += __shfl_xor_sync(~0u, answer[c], by);
                }
            float delta[2];
#pragma unroll
            for (int c = 0; c < 2; c++) {
                delta[c] = (now_values[token][own + c] - stored[c] * numbers[token][2]) * strength;
                answer[c] = __fmaf_rn(delta[c], now_matches[token], answer[c] * decay) * numbers[token][3];
            }
#pragma unroll
            for (int f = 0; f < FOURS; f++) {
                if (f * 32 + part * 4 >= DK) continue;
                const float four[4] = {key[f].x, key[f].y, key[f].z, key[f].w};
#pragma unroll
                for (int i = 0; i < 4; i++)
#pragma unroll
                    for (int c = 0; c < 2; c++)
                        kept[f][i][c] = __fmaf_rn(four[i], delta[c], kept[f][i][c] * decay);
            }
            if (part == 0 && is_there)
                *(u32*)(answers + ((i64)(base + token) * value_heads + head) * DV + column) = pack(answer[0], answer[1]);
        }
        __syncthreads();
    }
#pragma unroll
    for (int f = 0; f < FOURS; f++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int at = f * 32 + part * 4 + i;
            if (at < DK && is_there) *(float2*)(state + (i64)at * DV) = make_float2(kept[f][i][0], kept[f][i][1]);
        }
    if (blockIdx.x == 0) {
        const Projected from = {mixed, nullptr, nullptr, nullptr, mixed_row, 0, 0, 0, head_step, keys, values, values_step};
        keep_last_inputs(from, heads, head, count, is_first, conv);
    }
}

// RMSNorm of each head, gated: answers [tokens][value heads * DV] in place, a warp a head and token.
extern "C" __global__ void __launch_bounds__(128)
    delta_outputs(u16* answers, const u16* gates, const u16* norm_weights, const i64* bounds, int gates_row,
                  int gates_step, float eps, int ratio, int value_heads, int tokens) {
    const int token = blockIdx.x * 4 + threadIdx.x / 32, head = blockIdx.y, lane = threadIdx.x % 32;
    pdl_trigger();
    pdl_wait();
    if (token >= tokens) return;
    const bool is_there = token < bounds[1];  // What lies beyond is made zeros: numbers, whatever was there.
    answers += ((i64)token * value_heads + head) * DV;
    gates += (i64)token * gates_row + head / ratio * gates_step + head % ratio * DV;
    float sum = 0.0f;
    for (int at = lane; at < DV; at += 32) sum += to_float(answers[at]) * to_float(answers[at]);
    const float by = rsqrtf(warp_sum(sum) / DV + eps);
    for (int at = lane; at < DV; at += 32)
        answers[at] = is_there ? gated(to_float(answers[at]), by, norm_weights[at], gates[at]) : 0;
}
