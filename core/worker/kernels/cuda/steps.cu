// The small operations of a captured step. Each reads from GPU memory what changes from step to step, so that a captured
// graph stays valid. gather_slots, place_chunks and rope_angles let no later kernel start early (pdl_trigger): cuda/attention.cu reads
// what they write before it waits.

// Whether 8 values at a time are 16 aligned bytes. `strides`: all of them, and the length, combined by "or".
__device__ __forceinline__ bool is_aligned(const void* a, const void* b, int strides) {
    return (((unsigned long long)a | (unsigned long long)b) & 15) == 0 && (strides & 7) == 0;
}

// 8 values of a row of `size`, from `at` on; 0 beyond its end.
__device__ __forceinline__ uint4 load_part(const u16* row, int at, int size, bool is_wide) {
    if (is_wide) return *(const uint4*)(row + at);
    u32 words[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const int one = at + 2 * i;
        words[i] = (one < size ? row[one] : 0) | (u32)(one + 1 < size ? row[one + 1] : 0) << 16;
    }
    return make_uint4(words[0], words[1], words[2], words[3]);
}

__device__ __forceinline__ void store_part(u16* row, int at, int size, bool is_wide, uint4 values) {
    if (is_wide) {
        *(uint4*)(row + at) = values;
        return;
    }
    const u32 words[4] = {values.x, values.y, values.z, values.w};
#pragma unroll
    for (int i = 0; i < 8; i++)
        if (at + i < size) row[at + i] = (u16)(words[i / 2] >> i % 2 * 16);
}

// For each of `rows`: its slot's last token, its position, the column to write (-1 for the padding slot), and the end of
// the columns that it sees: found [4][num_rows].
extern "C" __global__ void __launch_bounds__(64)
    gather_slots(const i64* rows, const i64* tokens, const i64* positions, i64* found, int num_rows, int padding_slot) {
    const int row = blockIdx.x * 64 + threadIdx.x;
    pdl_wait();
    if (row >= num_rows) return;
    const i64 slot = rows[row], position = positions[slot], column = slot < padding_slot ? position : -1;
    found[row] = tokens[slot];
    found[num_rows + row] = position;
    found[2 * num_rows + row] = column;
    found[3 * num_rows + row] = column + 1;
}

// Where the rows of a pass belong that reads the chunks [num_chunks][4] of prompts: slot, first column, tokens, first
// row, one chunk's rows behind the other's. rows [3][num_rows]: each row's slot, position, and column to write; behind
// the last chunk the padding slot, 0 and -1.
extern "C" __global__ void __launch_bounds__(64)
    place_chunks(const i64* chunks, i64* rows, int num_rows, int num_chunks, int padding_slot) {
    const int at = blockIdx.x * 64 + threadIdx.x;
    pdl_wait();
    if (at >= num_rows) return;
    i64 slot = padding_slot, position = 0, column = -1;
    for (int i = 0; i < num_chunks; i++) {
        const i64* own = chunks + i * 4;
        if (at >= own[3] && at < own[3] + own[2]) slot = own[0], position = column = own[1] + at - own[3];
    }
    rows[at] = slot;
    rows[num_rows + at] = position;
    rows[2 * num_rows + at] = column;
}

// Cosines and sines of positions [num_rows] times frequencies [half], each [num_rows][2 * half], alike in both halves.
extern "C" __global__ void __launch_bounds__(256)
    rope_angles(const i64* positions, const float* frequencies, u16* cosines, u16* sines, float scaling, int num_rows,
                int half) {
    const int index = blockIdx.x * 256 + threadIdx.x, row = index / half, place = index % half;
    pdl_wait();
    if (row >= num_rows) return;
    const float angle = (float)positions[row] * frequencies[place];
    const u16 cosine = to_half(cosf(angle) * scaling), sine = to_half(sinf(angle) * scaling);
    const i64 to = (i64)row * 2 * half + place;
    cosines[to] = cosines[to + half] = cosine;
    sines[to] = sines[to + half] = sine;
}

// RMSNorm (arXiv 1910.07467) of rows [num_rows][size], by THREADS of a block each. The sum's order depends on `size`
// alone.
template <int THREADS>
__device__ __forceinline__ void norm_row(const u16* x, const u16* weight, u16* out, int x_row, int num_rows, int size,
                                         float eps, float offset) {
    __shared__ float sums[THREADS / 32];
    const int begin = threadIdx.x % THREADS * 8;
    const i64 row = (i64)blockIdx.x * (blockDim.x / THREADS) + threadIdx.x / THREADS;
    pdl_trigger();
    pdl_wait();
    if (row >= num_rows) return;  // All THREADS of a row.
    x += row * x_row, out += row * size;
    const bool is_wide = is_aligned(x, weight, x_row | size) && is_aligned(out, out, 0);
    float sum = 0.0f;
    for (int at = begin; at < size; at += THREADS * 8) add_squares(load_part(x, at, size, is_wide), sum);
    sum = warp_sum(sum);
    if (THREADS > 32) {
        if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = sum;
        __syncthreads();
        sum = 0.0f;
#pragma unroll
        for (int i = 0; i < THREADS / 32; i++) sum += sums[i];
    }
    const float by = rsqrtf(sum / size + eps);
    for (int at = begin; at < size; at += THREADS * 8)
        store_part(out, at, size, is_wide,
                   rmsnorm_8(load_part(x, at, size, is_wide), by, load_part(weight, at, size, is_wide), offset));
}
// For rows of a head, a warp a row; and for longer ones, a block a row.
extern "C" __global__ void __launch_bounds__(128)
    norm_short_rows(const u16* x, const u16* weight, u16* out, int x_row, int num_rows, int size, float eps,
                    float offset) {
    norm_row<32>(x, weight, out, x_row, num_rows, size, eps, offset);
}
extern "C" __global__ void __launch_bounds__(512)
    norm_long_rows(const u16* x, const u16* weight, u16* out, int x_row, int num_rows, int size, float eps,
                   float offset) {
    norm_row<512>(x, weight, out, x_row, num_rows, size, eps, offset);
}

// both [num_rows][2 * size], gate then up -> silu(gate) * up, [num_rows][size]. A thread takes 8 values.
extern "C" __global__ void __launch_bounds__(256)
    gate_rows(const u16* both, u16* out, int both_row, int num_rows, int size) {
    const int parts = (size + 7) / 8;
    const int index = blockIdx.x * 256 + threadIdx.x, row = index / parts, at = index % parts * 8;
    pdl_trigger();
    pdl_wait();
    if (row >= num_rows) return;
    both += (i64)row * both_row, out += (i64)row * size;
    const bool is_wide = is_aligned(both, out, both_row | size);
    float gates[8], ups[8];
    unpack8(load_part(both, at, size, is_wide), gates);
    unpack8(load_part(both + size, at, size, is_wide), ups);
#pragma unroll
    for (int i = 0; i < 8; i++) gates[i] = swiglu(gates[i], ups[i]);
    store_part(out, at, size, is_wide, pack8(gates));
}

// Where a head of a row's token lies: its strides, in elements.
struct Heads {
    int row, head, token;
    __device__ __forceinline__ i64 at(int of_row, int of_head, int of_token) const {
        return (i64)of_row * row + (i64)of_head * head + (i64)of_token * token;
    }
};

// RoPE (arXiv 2104.09864) in place on the first 2 * half of each head of query [rows][heads][tokens][..] and key, with
// angles [rows or 1][tokens][2 * half]. A thread takes 8 values of both halves of a head; rounds as cuda/attention.cu does.
extern "C" __global__ void __launch_bounds__(256)
    rotate_heads(u16* query, u16* key, const u16* cosines, const u16* sines, int query_row, int query_head,
                 int query_token, int key_row, int key_head, int key_token, int angle_row, int angle_token, int rows,
                 int tokens, int query_heads, int key_heads, int half) {
    const int parts = (half + 7) / 8, heads = query_heads + key_heads;
    const int index = blockIdx.x * 256 + threadIdx.x, at = index % parts * 8, head = index / parts % heads;
    const int place = index / (parts * heads), token = place % tokens, row = place / tokens;
    pdl_trigger();
    pdl_wait();
    if (row >= rows) return;
    const Heads queries = {query_row, query_head, query_token}, keys = {key_row, key_head, key_token};
    u16* here = head < query_heads ? query + queries.at(row, head, token)
                                   : key + keys.at(row, head - query_heads, token);
    const i64 angle = (i64)row * angle_row + (i64)token * angle_token;
    cosines += angle, sines += angle;
    const bool is_wide = is_aligned(here, cosines, half) && is_aligned(sines, sines, 0);
    float halves[2][8], cosine[2][8], sine[2][8], turned[2][8];
#pragma unroll
    for (int i = 0; i < 2; i++) {
        unpack8(load_part(here + i * half, at, half, is_wide), halves[i]);
        unpack8(load_part(cosines + i * half, at, half, is_wide), cosine[i]);
        unpack8(load_part(sines + i * half, at, half, is_wide), sine[i]);
    }
#pragma unroll
    for (int i = 0; i < 8; i++) {
        turned[0][i] = __fmaf_rn(halves[0][i], cosine[0][i], __fmul_rn(-halves[1][i], sine[0][i]));
        turned[1][i] = __fmaf_rn(halves[1][i], cosine[1][i], __fmul_rn(halves[0][i], sine[1][i]));
    }
    store_part(here, at, half, is_wide, pack8(turned[0]));
    store_part(here + half, at, half, is_wide, pack8(turned[1]));
}

#if CACHE_BITS == 8
// Store the values of a head, by a warp: their scale, and their integers.
__device__ __forceinline__ void store_integers(const u16* from, int dim, kv_t* to, u16* to_scale) {
    const int lane = threadIdx.x % 32;
    const bool is_wide = is_aligned(from, from, dim);
    float largest = 0.0f;
    for (int at = lane * 8; at < dim; at += 256) largest = largest_of(load_part(from, at, dim, is_wide), largest);
#pragma unroll
    for (int by = 16; by; by /= 2) largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, by));
    const u16 scale = scale_of(largest);
    const float inverse = inverse_scale(scale);
    if (lane == 0) *to_scale = scale;
    for (int at = lane * 8; at < dim; at += 256) {
        const uint2 bytes = quantize_8(load_part(from, at, dim, is_wide), inverse);
        for (int i = 0; i < 8 && at + i < dim; i++) to[at + i] = (kv_t)((i < 4 ? bytes.x : bytes.y) >> i % 4 * 8);
    }
}
#endif

// New keys and values [rows][heads][tokens][dim] into a layer's pages, at `slots` [rows] and `columns` [rows][tokens].
// A column below 0 is not stored. Of 16 bit a thread takes 8 values of both, of 8 bit a warp a head.
extern "C" __global__ void __launch_bounds__(256)
    store_heads(const u16* key, const u16* value, const KvPages cache, const i64* slots, const i64* columns,
                int key_row, int key_head, int key_token, int value_row, int value_head, int value_token, int rows,
                int tokens, int heads, int dim) {
    const int parts = CACHE_BITS == 8 ? 32 : (dim + 7) / 8;
    const int index = blockIdx.x * 256 + threadIdx.x, at = index % parts * 8, head = index / parts % heads;
    const int place = index / (parts * heads), token = place % tokens, row = place / tokens;
    pdl_trigger();
    pdl_wait();
    if (row >= rows) return;
    const i64 column = columns[(i64)row * tokens + token];
    if (column < 0) return;
    const Heads key_strides = {key_row, key_head, key_token}, value_strides = {value_row, value_head, value_token};
    key += key_strides.at(row, head, token), value += value_strides.at(row, head, token);
    const int page = cache.of(slots[row])[column / PAGE_TOKENS];
    const i64 to = cache.offset(page, head, (int)column, dim);
#if CACHE_BITS == 8
    const i64 to_scale = cache.scale(page, head, (int)column);
    store_integers(key, dim, cache.keys + to, cache.key_scales + to_scale);
    store_integers(value, dim, cache.values + to, cache.value_scales + to_scale);
#else
    u16 *keys = cache.keys + to, *values = cache.values + to;
    const bool is_wide = is_aligned(key, value, dim) && is_aligned(keys, values, 0);
    store_part(keys, at, dim, is_wide, load_part(key, at, dim, is_wide));
    store_part(values, at, dim, is_wide, load_part(value, at, dim, is_wide));
#endif
}
