// What comes before and after the rule in a chunk of one slot's text. bounds [2]: its first token's place and how many tokens
// there are; the graph that the kernels are part of may have room for more. The rule itself is in recurrent_scan.cu and, for
// GPUs whose tensor cores are fast at it, in recurrent_blocks.cu.

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
