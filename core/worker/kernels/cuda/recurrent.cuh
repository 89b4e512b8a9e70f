// What the kernels of Gated DeltaNet layers share (arXiv 2412.06464): a causal convolution and SiLU over queries,
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
__device__ __forceinline__ float beta_of(u16 beta) { return round_half(1.0f / (1.0f + expf(-to_float(beta)))); }
__device__ __forceinline__ float log_decay_of(u16 decay, float log_rate, float offset) {
    const float x = to_float(decay) + offset;
    return -expf(log_rate) * (x > 20.0f ? x : log1pf(expf(x)));
}
__device__ __forceinline__ const u16& scalar_of(const Projected& from, const u16* scalars, int stride, int ratio, i64 row,
                                                int head) {
    return scalars[row * stride + head / ratio * from.scalars_step + head % ratio];
}
__device__ __forceinline__ float read_beta(const Projected& from, int ratio, i64 row, int head) {
    return beta_of(scalar_of(from, from.betas, from.betas_row, ratio, row, head));
}
__device__ __forceinline__ float read_log_decay(const Projected& from, int ratio, i64 row, int head, const float* log_rates,
                                                const float* offsets) {
    return log_decay_of(scalar_of(from, from.decays, from.decays_row, ratio, row, head), log_rates[head], offsets[head]);
}

// A value of the normed output, gated. `by`: one over the head's root mean square.
__device__ __forceinline__ u16 gated(float value, float by, u16 weight, u16 gate) {
    return to_half(round_half(round_half(value * by) * to_float(weight)) * silu(to_float(gate)));
}

// At once: of a float4 NVRTC 12.4 makes four stores, each of a quarter of every sector.
__device__ __forceinline__ void store_four(float* to, float a, float b, float c, float d) {
#if __CUDA_ARCH__ >= 700
    asm volatile("st.global.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(to), "f"(a), "f"(b), "f"(c), "f"(d) : "memory");
#else
    *(float4*)to = make_float4(a, b, c, d);
#endif
}

// The arguments that a kernel begins with.
#define PROJECTED                                                                                              \
    Projected {                                                                                                     \
        mixed, gates, betas, decays, mixed_row, gates_row, betas_row, decays_row, head_step, keys, values,          \
            values_step, gates_step, scalars_step                                                                   \
    }

// What of a chunk is kept on the way, beside what is left after all of it: in which row, and after how many tokens, at
// least MEMORY; 0 for nothing. kept [2] may be null.
struct OnWay {
    i64 row;
    int tokens;
    __device__ __forceinline__ OnWay(const i64* kept) : row(kept ? kept[0] : 0), tokens(kept ? (int)kept[1] : 0) {}
};

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
