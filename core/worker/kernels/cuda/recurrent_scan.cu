// The gated delta rule over a chunk, token by token in float.

#define SCAN_TOKENS (DK > 128 ? 4096 / DK : 32)
#define SCAN_COLUMNS 32
#define FOURS ((DK + 31) / 32)

// The rule itself, token by token: answers [tokens][value heads * DV]. A block takes SCAN_COLUMNS columns of a value head's
// state, which do not depend on the others; eight lanes share two columns, each with FOURS times four of their rows. The
// sums' order does not depend on where a chunk begins, so neither do the results.
extern "C" __global__ void __launch_bounds__(128)
    delta_scan(const u16* active, const float* scalars, const u16* mixed, u16* conv, float* state, const i64* slots,
               const i64* bounds, const i64* kept_on_way, u16* answers, i64 conv_row, i64 state_row, int mixed_row,
               int head_step, int keys, int values, int values_step, int key_heads, int value_heads, int tokens) {
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
    const OnWay on_way(kept_on_way);
    u16* const conv_on_way = conv + on_way.row * conv_row;
    float* const state_on_way = state + on_way.row * state_row + (i64)head * DK * DV + column;
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
    auto store = [&](float* to) {
#pragma unroll
        for (int f = 0; f < FOURS; f++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const int at = f * 32 + part * 4 + i;
                if (at < DK && is_there) *(float2*)(to + (i64)at * DV) = make_float2(kept[f][i][0], kept[f][i][1]);
            }
    };
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
            if (base + token + 1 == on_way.tokens) store(state_on_way);
        }
        __syncthreads();
    }
    store(state);
    if (blockIdx.x == 0) {
        const Projected from = {mixed, nullptr, nullptr, nullptr, mixed_row, 0, 0, 0, head_step, keys, values, values_step};
        if (on_way.tokens && on_way.tokens <= count) keep_last_inputs(from, heads, head, on_way.tokens, is_first, conv_on_way);
        keep_last_inputs(from, heads, head, count, is_first, conv);
    }
}
