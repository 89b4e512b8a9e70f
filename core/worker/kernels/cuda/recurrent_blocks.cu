// The gated delta rule over a chunk, 64 tokens at a time on tensor cores, for heads whose sizes are
// multiples of 16 (keys) and 8 (values). COLUMNS: of a value head's state, for one thread block; STAGES: blocks of tokens
// in shared memory at once.
//
// A token's correction of the state depends on all before it. Within 64 tokens this is a triangular system of equations
// (arXiv 2406.06484, with the fading of arXiv 2412.06464 as a factor of each pair of tokens). `delta_pairs` solves it for
// all blocks of a chunk at once; `delta_blocks` then takes one block after the other.

#define BLOCK 64
#define KEY_ROW (DK + 8)
#define PAIR_ROW (BLOCK + 8)
#define VALUE_ROW (COLUMNS + 8)
#define FLOAT_ROW (BLOCK + 4)

// Copy rows of SIZE values, 16 bytes at a time; zeros where there are no more than `rows` of them, or `size` in a row.
template <int ROWS, int SIZE, int TO_ROW, int THREADS>
__device__ __forceinline__ void copy_rows(u16* to, const u16* from, i64 from_row, int rows, int size) {
    constexpr int PIECES = SIZE / 8;
    for (int index = threadIdx.x; index < ROWS * PIECES; index += THREADS) {
        const int row = index / PIECES, at = index % PIECES * 8;
        const bool is_there = row < rows && at < size;
        copy_16_or_zeros(is_there, to + row * TO_ROW + at, is_there ? from + row * from_row + at : from);
    }
}

// The operand of 16 rows and 16 columns of a product's left side; or of its transpose, which lies in memory.
__device__ __forceinline__ void load_left(u32* to, const u16* from, int row_size, int row, int column) {
    const int lane = threadIdx.x % 32;
    load_matrices<false>(to, from + (row + lane % 16) * row_size + column + lane / 16 * 8);
}
__device__ __forceinline__ void load_left_turned(u32* to, const u16* from, int row_size, int row, int column) {
    const int lane = threadIdx.x % 32;
    load_matrices<true>(to, from + (column + lane / 16 * 8 + lane % 8) * row_size + row + lane / 8 % 2 * 8);
}
// Of 16 rows and 16 columns of its right side: to[0..1] of the first eight columns, to[2..3] of the others.
__device__ __forceinline__ void load_right(u32* to, const u16* from, int row_size, int row, int column) {
    const int lane = threadIdx.x % 32;
    load_matrices<true>(to, from + (row + lane % 16) * row_size + column + lane / 16 * 8);
}
__device__ __forceinline__ void load_right_turned(u32* to, const u16* from, int row_size, int row, int column) {
    const int lane = threadIdx.x % 32;
    load_matrices<false>(to, from + (column + lane / 16 * 8 + lane % 8) * row_size + row + lane / 8 % 2 * 8);
}

// Shared memory of delta_pairs. `solved` takes the place of keys and queries once those are multiplied.
struct Pairs {
    union {
        struct {
            u16 keys[BLOCK][KEY_ROW], queries[BLOCK][KEY_ROW];
        } raw;
        float solved[BLOCK][FLOAT_ROW];
    };
    float system[BLOCK][FLOAT_ROW];
    // Of each token: the logarithm of what is left of the state before the block, beta, and the lengths' inverses.
    float logs[BLOCK], betas[BLOCK], key_bys[BLOCK], query_bys[BLOCK];
};

// For each block of tokens and value head, pairs [value heads][blocks][2][BLOCK][BLOCK]: the inverse of the system that
// gives the corrections, and how strongly a token's query reads each correction. Of both only the lower triangle counts.
// scalars [value heads][tokens][4], as delta_inputs gives them, become: what a key reads of the state before the block,
// beta, what a key writes into the state after it, what a query reads of the state before it; all as factors of the raw
// key or query.
extern "C" __global__ void __launch_bounds__(128)
    delta_pairs(const u16* active, float* scalars, u16* pairs, const i64* bounds, int key_heads, int value_heads,
                int tokens) {
    extern __shared__ uint4 shared[];
    Pairs& room = *(Pairs*)shared;
    const Heads heads = {key_heads, value_heads};
    const int head = blockIdx.y, key_head = head / heads.ratio(), base = blockIdx.x * BLOCK, tid = threadIdx.x;
    const int warp = tid / 32, lane = tid % 32, g = lane / 4, t = lane % 4, channels = heads.channels();
    pdl_trigger();
    pdl_wait();
    const int count = min((int)bounds[1], tokens) - base;
    if (count <= 0) return;
    const u16* first = active + (i64)base * channels + key_head * DK;
    copy_rows<BLOCK, DK, KEY_ROW, 128>(room.raw.queries[0], first, channels, count, DK);
    copy_rows<BLOCK, DK, KEY_ROW, 128>(room.raw.keys[0], first + key_heads * DK, channels, count, DK);
    float4* own = (float4*)(scalars + ((i64)head * tokens + base) * 4);
    if (warp == 0) {
        float before = 0.0f;
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int at = half * 32 + lane;
            float4 one = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
            if (at < count) one = own[at];
            float log = one.x;
#pragma unroll
            for (int by = 1; by < 32; by *= 2) {
                const float other = __shfl_sync(~0u, log, max(lane - by, 0));
                if (lane >= by) log += other;
            }
            log += before;
            before = __shfl_sync(~0u, log, 31);
            room.logs[at] = log, room.betas[at] = one.y, room.key_bys[at] = one.z, room.query_bys[at] = one.w;
        }
    }
    wait_for_copies();
    __syncthreads();
    if (tid < min(count, BLOCK)) {
        const float log = room.logs[tid], left = expf(log), key_by = room.key_bys[tid];
        own[tid] = make_float4(key_by * left, room.betas[tid], key_by * expf(room.logs[BLOCK - 1] - log),
                               room.query_bys[tid] * left);
    }
    // Each warp takes 16 tokens, and those up to them.
    u16* solved = pairs + ((i64)head * gridDim.x + blockIdx.x) * 2 * BLOCK * BLOCK;
    u16* reads = solved + BLOCK * BLOCK;
    for (int earlier = 0; earlier <= warp; earlier++) {
        float alike[2][4] = {}, asked[2][4] = {};
#pragma unroll
        for (int k = 0; k < DK / 16; k++) {
            u32 keys[4], queries[4], with[4];
            load_left(keys, room.raw.keys[0], KEY_ROW, warp * 16, k * 16);
            load_left(queries, room.raw.queries[0], KEY_ROW, warp * 16, k * 16);
            load_right_turned(with, room.raw.keys[0], KEY_ROW, k * 16, earlier * 16);
#pragma unroll
            for (int n = 0; n < 2; n++) {
                mma(alike[n], keys, with[2 * n], with[2 * n + 1]);
                mma(asked[n], queries, with[2 * n], with[2 * n + 1]);
            }
        }
#pragma unroll
        for (int n = 0; n < 2; n++)
#pragma unroll
            for (int r = 0; r < 2; r++) {
                const int token = warp * 16 + r * 8 + g, before = earlier * 16 + n * 8 + t * 2;
                float strength[2];
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    const int one = before + i;
                    const float left = one <= token ? expf(room.logs[token] - room.logs[one]) * room.key_bys[one] : 0.0f;
                    room.system[token][one] =
                        one < token ? alike[n][r * 2 + i] * left * room.key_bys[token] * room.betas[token] : 0.0f;
                    strength[i] = asked[n][r * 2 + i] * left * room.query_bys[token];
                }
                *(u32*)(reads + token * BLOCK + before) = pack(strength[0], strength[1]);
            }
    }
    __syncthreads();
    // The inverse of 1 + system, a thread a column: 16 rows at a time, from the first that its warp's columns can have.
    if (warp >= 2) return;
    for (int b = warp * 2; b < 4; b++) {
        float rows[16];
#pragma unroll
        for (int r = 0; r < 16; r++) rows[r] = b * 16 + r == tid ? 1.0f : 0.0f;
        for (int c = warp * 2; c < b; c++)
#pragma unroll
            for (int s = 0; s < 16; s += 4) {
                float known[4];
#pragma unroll
                for (int i = 0; i < 4; i++) known[i] = room.solved[c * 16 + s + i][tid];
#pragma unroll
                for (int r = 0; r < 16; r++) {
                    const float4 by = *(const float4*)&room.system[b * 16 + r][c * 16 + s];
                    rows[r] -= by.x * known[0] + by.y * known[1] + by.z * known[2] + by.w * known[3];
                }
            }
#pragma unroll
        for (int r = 1; r < 16; r++)
#pragma unroll
            for (int s = 0; s < r; s++) rows[r] -= room.system[b * 16 + r][b * 16 + s] * rows[s];
#pragma unroll
        for (int r = 0; r < 16; r++) {
            room.solved[b * 16 + r][tid] = rows[r];
            solved[(b * 16 + r) * BLOCK + tid] = to_half(rows[r]);
        }
    }
}

// A block of tokens in shared memory. values: then what the corrections are solved from.
struct Stage {
    u16 keys[BLOCK][KEY_ROW], queries[BLOCK][KEY_ROW], values[BLOCK][VALUE_ROW];
    u16 solved[BLOCK][PAIR_ROW], reads[BLOCK][PAIR_ROW];
    float4 scalars[BLOCK];
};
// state: of the head's columns before the block. corrections: of each token; written: as they are left after the block.
struct Blocks {
    Stage stages[STAGES];
    u16 state[DK][VALUE_ROW], corrections[BLOCK][VALUE_ROW], written[BLOCK][VALUE_ROW];
};
#define BLOCK_WARPS 8
#define STATE_TILES ((DK / 16 + BLOCK_WARPS - 1) / BLOCK_WARPS)
#define SIXTEENS (COLUMNS / 32)

// A warp's part of the state. [i][n][0..1]: of row g of its i-th 16 rows, columns 8n + 2t and 8n + 2t + 1; [2..3]: of row
// g + 8.
typedef float State[STATE_TILES][COLUMNS / 8][4];

// what(two, row, column) for each two columns of a row that a lane has.
template <class What>
__device__ __forceinline__ void each_pair(State& kept, What what) {
    const int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
#pragma unroll
    for (int i = 0; i < STATE_TILES; i++) {
        const int tile = i * BLOCK_WARPS + warp;
        if (tile >= DK / 16) continue;
#pragma unroll
        for (int n = 0; n < COLUMNS / 8; n++)
#pragma unroll
            for (int r = 0; r < 2; r++) what(kept[i][n] + r * 2, tile * 16 + r * 8 + g, n * 8 + t * 2);
    }
}

// The chunk's blocks, one after the other: answers [tokens][value heads * DV]. A thread block takes COLUMNS columns of a
// value head's state, which a warp keeps in registers, 16 rows of it at a time.
extern "C" __global__ void __launch_bounds__(BLOCK_WARPS * 32, 1)
    delta_blocks(const u16* active, const float* scalars, const u16* pairs, const u16* mixed, u16* conv, float* state,
                 const i64* slots, const i64* bounds, const i64* kept_on_way, u16* answers, i64 conv_row, i64 state_row,
                 int mixed_row, int head_step, int keys, int values, int values_step, int key_heads, int value_heads,
                 int tokens) {
    extern __shared__ uint4 shared[];
    Blocks& room = *(Blocks*)shared;
    const Heads heads = {key_heads, value_heads};
    const int head = blockIdx.y, key_head = head / heads.ratio(), tid = threadIdx.x, first = blockIdx.x * COLUMNS;
    const int warp = tid / 32, lane = tid % 32, g = lane / 4, t = lane % 4, channels = heads.channels();
    // Of products [tokens][columns] a warp takes 16 tokens and half of the columns.
    const int own = warp % 4, half = warp / 4 * (COLUMNS / 2);
    pdl_trigger();
    pdl_wait();
    const int count = min((int)bounds[1], tokens);
    const bool is_first = bounds[0] == 0;
    if (count <= 0) return;
    const OnWay on_way(kept_on_way);
    u16* const conv_on_way = conv + on_way.row * conv_row;
    float* const state_on_way = state + on_way.row * state_row + (i64)head * DK * DV + first;
    conv += slots[0] * conv_row, state += slots[0] * state_row + (i64)head * DK * DV + first;
    scalars += (i64)head * tokens * 4, pairs += (i64)head * ((tokens + BLOCK - 1) / BLOCK) * 2 * BLOCK * BLOCK;
    answers += head * DV + first;
    auto load = [&](Stage& to, int base) {
        const u16* from = active + (i64)base * channels + key_head * DK;
        const int left = count - base;
        copy_rows<BLOCK, DK, KEY_ROW, BLOCK_WARPS * 32>(to.queries[0], from, channels, left, DK);
        copy_rows<BLOCK, DK, KEY_ROW, BLOCK_WARPS * 32>(to.keys[0], from + key_heads * DK, channels, left, DK);
        copy_rows<BLOCK, COLUMNS, VALUE_ROW, BLOCK_WARPS * 32>(
            to.values[0], active + (i64)base * channels + 2 * key_heads * DK + head * DV + first, channels, left,
            DV - first);
        const u16* of_block = pairs + (i64)base * 2 * BLOCK;
        copy_rows<BLOCK, BLOCK, PAIR_ROW, BLOCK_WARPS * 32>(to.solved[0], of_block, BLOCK, BLOCK, BLOCK);
        copy_rows<BLOCK, BLOCK, PAIR_ROW, BLOCK_WARPS * 32>(to.reads[0], of_block + BLOCK * BLOCK, BLOCK, BLOCK, BLOCK);
        copy_rows<BLOCK, 8, 8, BLOCK_WARPS * 32>((u16*)to.scalars, (const u16*)(scalars + (i64)base * 4), 8, left, 8);
    };
    load(room.stages[0], 0);
    State kept;
    each_pair(kept, [&](float* two, int row, int column) {
        const bool is_there = !is_first && first + column < DV;
        const float2 found = is_there ? *(const float2*)(state + (i64)row * DV + column) : make_float2(0.0f, 0.0f);
        two[0] = found.x, two[1] = found.y;
    });
    auto store = [&](float* to) {
        each_pair(kept, [&](float* two, int row, int column) {
            if (first + column < DV) *(float2*)(to + (i64)row * DV + column) = make_float2(two[0], two[1]);
        });
    };
    int at = 0;
#pragma unroll 1
    for (int base = 0; base < count; base += BLOCK) {
        Stage& now = room.stages[at];
        each_pair(kept, [&](float* two, int row, int column) { *(u32*)&room.state[row][column] = pack(two[0], two[1]); });
        wait_for_copies();
        __syncthreads();
        at = at + 1 == STAGES ? 0 : at + 1;
        if (STAGES > 1 && base + BLOCK < count) load(room.stages[at], base + BLOCK);

        // What the keys and the queries read of the state before the block.
        float stored[SIXTEENS * 2][4] = {}, answer[SIXTEENS * 2][4] = {};
#pragma unroll 4
        for (int k = 0; k < DK / 16; k++) {
            u32 by_key[4], by_query[4];
            load_left(by_key, now.keys[0], KEY_ROW, own * 16, k * 16);
            load_left(by_query, now.queries[0], KEY_ROW, own * 16, k * 16);
#pragma unroll
            for (int s = 0; s < SIXTEENS; s++) {
                u32 with[4];
                load_right(with, room.state[0], VALUE_ROW, k * 16, half + s * 16);
#pragma unroll
                for (int n = 0; n < 2; n++) {
                    mma(stored[s * 2 + n], by_key, with[2 * n], with[2 * n + 1]);
                    mma(answer[s * 2 + n], by_query, with[2 * n], with[2 * n + 1]);
                }
            }
        }
        float4 of_token[2];
#pragma unroll
        for (int r = 0; r < 2; r++) of_token[r] = now.scalars[own * 16 + r * 8 + g];
#pragma unroll
        for (int n = 0; n < SIXTEENS * 2; n++)
#pragma unroll
            for (int r = 0; r < 2; r++) {
                u32& two = *(u32*)&now.values[own * 16 + r * 8 + g][half + n * 8 + t * 2];
                const float* read = stored[n] + r * 2;
                const float beta = of_token[r].y, by = of_token[r].x;
                two = pack((low(two) - read[0] * by) * beta, (high(two) - read[1] * by) * beta);
            }
        __syncthreads();

        float correction[SIXTEENS * 2][4] = {};
        for (int k = 0; k <= own; k++) {
            u32 left[4];
            load_left(left, now.solved[0], PAIR_ROW, own * 16, k * 16);
#pragma unroll
            for (int s = 0; s < SIXTEENS; s++) {
                u32 with[4];
                load_right(with, now.values[0], VALUE_ROW, k * 16, half + s * 16);
#pragma unroll
                for (int n = 0; n < 2; n++) mma(correction[s * 2 + n], left, with[2 * n], with[2 * n + 1]);
            }
        }
#pragma unroll
        for (int n = 0; n < SIXTEENS * 2; n++)
#pragma unroll
            for (int r = 0; r < 2; r++) {
                const int token = own * 16 + r * 8 + g, column = half + n * 8 + t * 2;
                const float *two = correction[n] + r * 2, by = of_token[r].z;
                *(u32*)&room.corrections[token][column] = pack(two[0], two[1]);
                *(u32*)&room.written[token][column] = pack(two[0] * by, two[1] * by);
                answer[n][r * 2] *= of_token[r].w, answer[n][r * 2 + 1] *= of_token[r].w;
            }
        __syncthreads();

        for (int k = 0; k <= own; k++) {
            u32 left[4];
            load_left(left, now.reads[0], PAIR_ROW, own * 16, k * 16);
#pragma unroll
            for (int s = 0; s < SIXTEENS; s++) {
                u32 with[4];
                load_right(with, room.corrections[0], VALUE_ROW, k * 16, half + s * 16);
#pragma unroll
                for (int n = 0; n < 2; n++) mma(answer[s * 2 + n], left, with[2 * n], with[2 * n + 1]);
            }
        }
#pragma unroll
        for (int n = 0; n < SIXTEENS * 2; n++)
#pragma unroll
            for (int r = 0; r < 2; r++) {
                const int token = base + own * 16 + r * 8 + g, column = half + n * 8 + t * 2;
                if (token < count && first + column < DV)
                    *(u32*)(answers + (i64)token * value_heads * DV + column) =
                        pack(answer[n][r * 2], answer[n][r * 2 + 1]);
            }
        // What is left of the state: what the last token's key would read of it, by what it writes.
        const float4 end = now.scalars[min(count - base, BLOCK) - 1];
        const float fade = end.x / end.z;
        each_pair(kept, [&](float* two, int, int) { two[0] *= fade, two[1] *= fade; });
#pragma unroll
        for (int k = 0; k < BLOCK / 16; k++) {
            u32 left[STATE_TILES][4];
#pragma unroll
            for (int i = 0; i < STATE_TILES; i++)
                if (i * BLOCK_WARPS + warp < DK / 16)
                    load_left_turned(left[i], now.keys[0], KEY_ROW, (i * BLOCK_WARPS + warp) * 16, k * 16);
#pragma unroll
            for (int s = 0; s < COLUMNS / 16; s++) {
                u32 with[4];
                load_right(with, room.written[0], VALUE_ROW, k * 16, s * 16);
#pragma unroll
                for (int i = 0; i < STATE_TILES; i++)
                    if (i * BLOCK_WARPS + warp < DK / 16)
#pragma unroll
                        for (int n = 0; n < 2; n++) mma(kept[i][s * 2 + n], left[i], with[2 * n], with[2 * n + 1]);
            }
        }
        if (STAGES == 1) {
            __syncthreads();
            if (base + BLOCK < count) load(room.stages[0], base + BLOCK);
        }
        if (base + BLOCK == on_way.tokens) store(state_on_way);
    }
    store(state);
    if (blockIdx.x == 0) {
        const Projected from = {mixed, nullptr, nullptr, nullptr, mixed_row, 0, 0, 0, head_step, keys, values, values_step};
        if (on_way.tokens && on_way.tokens <= count) keep_last_inputs(from, heads, head, on_way.tokens, is_first, conv_on_way);
        keep_last_inputs(from, heads, head, count, is_first, conv);
    }
}
