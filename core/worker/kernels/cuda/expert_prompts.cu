// Products of many rows with the experts that a router chose, on the tensor cores of compute capability 9.0, as prompts.cu
// has them for one matrix. Each segment (pairs.cu) is a row tile of its own, and a thread block multiplies it with 128
// outputs: 64 of gate and the 64 of up that belong to them, or 128 of down. No expert is written out.

// The warps of a thread block that multiply, two warpgroups.
#define MMA_WARPS 8

// Each segment's rows as a row tile of `out` [segments][TILE_ROWS][inputs], 32 inputs a thread. tokens: the row of x at
// each place. permutations [experts][inputs], or null: in order.
extern "C" __global__ void __launch_bounds__(256)
    swizzle_rows(const u16* x, uint4* out, const int* segments, const int* num_segments, const int* tokens,
                 const int* permutations, int x_row, int blocks) {
    const int at = blockIdx.x * 256 + threadIdx.x, row = at / (blocks * 2), half = at % (blocks * 2);
    const int which = row / TILE_ROWS;
    pdl_wait();
    pdl_trigger();
    if (which >= __ldcg(num_segments)) return;
    const Segment segment = read_segment(segments, which);
    if (row % TILE_ROWS >= segment.rows) return;
    const int* permutation = permutations ? permutations + (i64)segment.expert * blocks * 64 : nullptr;
    swizzle_32(x + (i64)tokens[segment.first + row % TILE_ROWS] * x_row, permutation, row, half, blocks, out);
}

// Shared memory of a thread block: 64 outputs for each of two warpgroups.
template <int STAGES>
struct ExpertStages {
    uint4 x[STAGES][X_TILE / 8];
    uint4 codes[STAGES][8][PIECES][32];
    u32 scales[STAGES][SCALES][8][8];
#if ZEROS
    u32 zeros[STAGES][SCALES][8][8];
#endif
    u16 done[2][TILE_ROWS][64 + 8];
    i64 full[STAGES], empty[STAGES];
};

// x: the row tiles of all segments. GATE_UP: silu(gate) * up as row tiles of `out`, each value where the expert's down
// wants it (down_inverse [experts][tiles * 8]; null: in order). Else `out` is float32 [pairs][tiles * 16], in the order
// of the segments.
template <int STAGES, bool GATE_UP>
__device__ __forceinline__ void multiply_segments(const Stack stack, const uint4* x, void* out, const int* segments,
                                                  const int* num_segments, const int* down_inverse) {
    typedef ExpertStages<STAGES> Room;
    extern __shared__ __align__(1024) unsigned char shared[];
    Room& room = *(Room*)(shared + (1024 - smem_address(shared) % 1024) % 1024);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
    const int tiles = stack.tiles, blocks = stack.blocks, each = (tiles + 7) / 8;
    if (threadIdx.x == 0) {
        // A stage is full once 128 threads' codes and the row tile have arrived; empty once every warp has read it.
        for (int s = 0; s < STAGES; s++) mbarrier_init(&room.full[s], 129), mbarrier_init(&room.empty[s], MMA_WARPS);
        asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    }
    __syncthreads();
    pdl_wait();
    pdl_trigger();
    const int units = __ldcg(num_segments) * each;
    // The eight tiles of a unit, four for each warpgroup.
    auto tile_of = [&](int unit, int i) {
        const int at = unit % each;
        return GATE_UP ? at * 4 + i % 4 + i / 4 * (tiles / 2) : at * 8 + i;
    };
    int stage = 0, parity = 0;
    if (warp >= MMA_WARPS) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
        const int part = warp - MMA_WARPS;
        for (int unit = blockIdx.x; unit < units; unit += gridDim.x) {
            const i64 first = (i64)read_segment(segments, unit / each).expert * tiles;
            const uint4* from_x = x + (i64)(unit / each) * blocks * (X_TILE / 8);
            // All addresses are computed before the blocks: these warps would be what the others wait for.
            const uint4* from_codes[2];
#pragma unroll
            for (int i = 0; i < 2; i++) {
                const i64 tile = first + min(tile_of(unit, part + i * 4), tiles - 1);
                from_codes[i] = (const uint4*)stack.codes + tile * blocks * PIECES * 32 + lane;
            }
            // Of part 0, lanes below 16: half a tile's scales each.
            const bool has_scales = part == 0 && lane < 16;
            const i64 scales_at = (first + min(tile_of(unit, lane / 2 % 8), tiles - 1)) * stack.groups * 8 + lane % 2 * 4;
            const u32* from_scales = (const u32*)stack.scales + scales_at;
#if ZEROS
            const u32* from_zeros = (const u32*)stack.zeros + scales_at;
#endif
            for (int block = 0; block < blocks; block++) {
                mbarrier_wait(&room.empty[stage], parity ^ 1);
                if (threadIdx.x == MMA_WARPS * 32) {
                    mbarrier_expect_bytes(&room.full[stage], X_TILE * 2);
                    cp_async_bulk(room.x[stage], from_x, X_TILE * 2, &room.full[stage]);
                }
                from_x += X_TILE / 8;
#pragma unroll
                for (int i = 0; i < 2; i++) {
#pragma unroll
                    for (int piece = 0; piece < PIECES; piece++)
                        cp_async_16(&room.codes[stage][part + i * 4][piece][lane], from_codes[i] + piece * 32);
                    from_codes[i] += PIECES * 32;
                }
                if (has_scales) {
#pragma unroll
                    for (int i = 0; i < SCALES; i++) {
                        const int from = scale_group_of(block * 2 + i) * 8;
                        cp_async_16(&room.scales[stage][i][lane / 2][lane % 2 * 4], from_scales + from);
#if ZEROS
                        cp_async_16(&room.zeros[stage][i][lane / 2][lane % 2 * 4], from_zeros + from);
#endif
                    }
                }
                mbarrier_arrive_on_copies(&room.full[stage]);
                if (++stage == STAGES) stage = 0, parity ^= 1;
            }
        }
        return;
    }

    asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
    const int warpgroup = warp / 4, part = warp % 4;
    // The next stage's codes as operands, once they are there.
    auto take = [&](u32 (&a)[4][4]) {
        mbarrier_wait(&room.full[stage], parity);
        const uint4 now = room.codes[stage][warp][0][lane];
#if BITS == 4
        const u32 words[4] = {now.x, now.y, now.z, now.w};
#else
        const uint4 next = room.codes[stage][warp][1][lane];
        const u32 words[8] = {now.x, now.y, now.z, now.w, next.x, next.y, next.z, next.w};
#endif
#pragma unroll
        for (int step = 0; step < 4; step++) {
            const int set = SCALES == 1 ? 0 : step / 2;
#if ZEROS
            const ZeroPair less = zero_pair(room.zeros[stage][set][warp][g]);
#else
            const ZeroPair less = zero_pair(MIDDLE, MIDDLE);
#endif
            const u32 scale = room.scales[stage][set][warp][g];
            const u32 even = splat((u16)scale), odd = splat((u16)(scale >> 16));
            centered_codes(words + step * OPERAND_WORDS, less, a[step]);
            a[step][0] = times(a[step][0], even), a[step][2] = times(a[step][2], even);
            a[step][1] = times(a[step][1], odd), a[step][3] = times(a[step][3], odd);
        }
        const int taken = stage;
        if (++stage == STAGES) stage = 0, parity ^= 1;
        return taken;
    };
    for (int unit = blockIdx.x; unit < units; unit += gridDim.x) {
        const Segment segment = read_segment(segments, unit / each);
        float sum[TILE_ROWS / 2] = {};
        // While the tensor cores multiply one stage, the next one's operands are made.
        u32 a[2][4][4];
        int held = take(a[0]);
        for (int base = 0; base < blocks; base += 2)
#pragma unroll
            for (int side = 0; side < 2; side++) {
                if (base + side >= blocks) break;
                const unsigned long long with = wgmma_descriptor(room.x[held]);
                asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
                for (int step = 0; step < 4; step++) wgmma(sum, a[side][step], with + step * 2);
                asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
                const int done = held;
                if (base + side + 1 < blocks) held = take(a[side ^ 1]);
                asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
                __syncwarp();
                if (lane == 0) mbarrier_arrive(&room.empty[done]);
            }
        // sum[4j..4j+3]: outputs g, g, g+8, g+8 of rows 8j+2t, 8j+2t+1, 8j+2t, 8j+2t+1.
        if (!GATE_UP) {
            const int tile = tile_of(unit, warp);
            if (tile >= tiles) continue;
            float* to = (float*)out + (i64)segment.first * tiles * 16 + tile * 16 + g;
#pragma unroll
            for (int i = 0; i < TILE_ROWS / 2; i++) {
                const int row = i / 4 * 8 + t * 2 + i % 2;
                if (row < segment.rows) to[(i64)row * tiles * 16 + i / 2 % 2 * 8] = sum[i];
            }
            continue;
        }
        named_barrier_sync(1, MMA_WARPS * 32);
#pragma unroll
        for (int j = 0; j < TILE_ROWS / 8; j += 2) {
            const float* from = sum + j * 4;
            u32 r[4];
#pragma unroll
            for (int i = 0; i < 4; i++) r[i] = pack(from[i * 2], from[i * 2 + 1]);
            u16* to = &room.done[warpgroup][(j + lane / 16) * 8 + lane % 8][part * 16 + lane / 8 % 2 * 8];
            asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1,%2,%3,%4};" ::"r"(smem_address(to)),
                         "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3])
                         : "memory");
        }
        named_barrier_sync(1, MMA_WARPS * 32);
        const int* inverse = down_inverse ? down_inverse + (i64)segment.expert * tiles * 8 : nullptr;
        for (int at = threadIdx.x; at < segment.rows * 8; at += MMA_WARPS * 32) {
            const int row = at / 8;
            store_gated_8(room.done[0][row], room.done[1][row], at % 8, unit / each * TILE_ROWS + row, unit % each * 64,
                          inverse, each, (u16*)out);
        }
    }
}

#define SEGMENTS(NAME, STAGES, GATE_UP, BYTES)                                                                         \
    static_assert(sizeof(ExpertStages<STAGES>) + 1024 == BYTES, "what a block of threads has room for");               \
    extern "C" __global__ void __launch_bounds__(384, 1)                                                               \
        NAME(const char* codes, const char* scales, const char* zeros, const uint4* x, void* out, const int* segments, \
             const int* num_segments, const int* down_inverse, int tiles, int blocks, int groups) {                    \
        multiply_segments<STAGES, GATE_UP>(Stack{codes, scales, zeros, tiles, blocks, groups}, x, out, segments,       \
                                           num_segments, down_inverse);                                                \
    }
KERNELS
