// Products of many rows with matrices of 4 or 8 bit on the tensor cores of compute capability 9.0. Compiled for one
// group size, as matrices.cu, whose tiles it reads: a lane's words are its part of wgmma's A.
//
// The matrix's outputs are the product's M, the rows its N. `permute_rows` lays the rows out for wgmma (swizzled.cuh).
// Of a thread block one warpgroup copies row tiles and codes, and the others multiply: while the tensor cores are at the K
// blocks of one turn, the next ones' codes are dequantized, by the same warps or by others.

// What each thread that multiplies has of a row tile's sums, in fours.
#define FOURS (TILE_ROWS / 8)

// x [rows, inputs] in the model's order, 32 inputs of a row a thread. permutation [inputs], or null: in order.
extern "C" __global__ void __launch_bounds__(256)
    permute_rows(const u16* x, const int* permutation, uint4* out, int x_row, int rows, int blocks) {
    const int at = blockIdx.x * 256 + threadIdx.x, row = at / (blocks * 2), half = at % (blocks * 2);
    pdl_trigger();
    pdl_wait();
    if (row < rows) swizzle_32(x + (i64)row * x_row, permutation, row, half, blocks, out);
}

// RMSNorm of x [rows, inputs], a block a row of up to MOST inputs; to `plain` [rows, inputs] as well, in order, if given.
// The row goes through shared memory, so that whole lines are stored.
template <int MOST>
__device__ __forceinline__ void norm_row(const u16* x, const u16* weight, const int* inverse_permutation, u16* out,
                                         u16* plain, int x_row, int blocks, float eps, float offset) {
    extern __shared__ __align__(1024) unsigned char shared[];
    u16* done = (u16*)shared;  // [MOST]
    __shared__ float sums[16];
    pdl_trigger();
    RmsNorm<512, MOST> norm;
    norm.read(weight, blocks * 64);
    pdl_wait();
    norm.apply(x + (i64)blockIdx.x * x_row, blocks * 64, eps, offset, sums, [&](int at, uint4 values) {
        store_8(values, at, inverse_permutation, done);
        if (plain) *(uint4*)(plain + (i64)blockIdx.x * blocks * 64 + at) = values;
    });
    __syncthreads();
    for (int at = threadIdx.x; at < blocks * 8; at += 512) swizzle_pairs(done, blockIdx.x, at, blocks, (uint4*)out);
}
extern "C" __global__ void __launch_bounds__(512)
    rmsnorm_rows(const u16* x, const u16* weight, const int* inverse_permutation, u16* out, u16* plain, int x_row,
                 int blocks, float eps, float offset) {
    norm_row<USUAL_ROW>(x, weight, inverse_permutation, out, plain, x_row, blocks, eps, offset);
}
// A thread keeps more of its row: fewer blocks run at once.
extern "C" __global__ void __launch_bounds__(512)
    rmsnorm_long_rows(const u16* x, const u16* weight, const int* inverse_permutation, u16* out, u16* plain, int x_row,
                      int blocks, float eps, float offset) {
    norm_row<MAX_ROW>(x, weight, inverse_permutation, out, plain, x_row, blocks, eps, offset);
}

// What a thread block multiplies at once, a turn: TURN K blocks of MT * 64 outputs for each of GROUPS warpgroups, and of NT *
// TILE_ROWS rows. STAGES: how many turns are in flight. Two warpgroups dequantize a turn ahead; of more there is always one
// at the tensor cores, and no register to spare. CLUSTER: so many thread blocks multiply the same rows, by outputs that
// follow one another; each copies a part of the row tiles, for all of them.
template <int MT_, int NT_, int STAGES_, int GROUPS_, int TURN_, int CLUSTER_>
struct Turn {
    static constexpr int MT = MT_, NT = NT_, STAGES = STAGES_, GROUPS = GROUPS_, TURN = TURN_, CLUSTER = CLUSTER_;
    static constexpr int TILES = GROUPS * MT * 4, WARPS = GROUPS * 4, THREADS = WARPS * 32;
    static_assert(TILES <= 16, "a warp copies the scales of a set, two lanes a tile");
    static constexpr bool IS_AHEAD = GROUPS == 2;
    // How many scales an output has for a turn, and for how many halves of a K block each is.
    static constexpr int SET_HALVES = GROUP_SIZE_32 && GROUP_SIZE_32 < TURN * 2 ? GROUP_SIZE_32 : TURN * 2,
                         SETS = TURN * 2 / SET_HALVES;
    // Of the results, half of the outputs side by side.
    static constexpr int PITCH = TILES * 8 + 8;
};

// Its shared memory.
template <class T>
struct Stages {
    uint4 x[T::STAGES][T::NT][T::TURN][X_TILE / 8];
    uint4 codes[T::STAGES][T::TILES][T::TURN * PIECES][32];
    u32 scales[T::STAGES][T::SETS][T::TILES][8];
#if ZEROS
    u32 zeros[T::STAGES][T::SETS][T::TILES][8];
#endif
    u16 done[2][T::NT * TILE_ROWS][T::PITCH];
    i64 full[T::STAGES], empty[T::STAGES];
};

// A cluster's work (stream-K), which all of its thread blocks go through together: first its share of the turns of the units from `whole` on, from its end to its
// beginning, then whole units before them. Where several clusters share a unit, the one with its last turns adds the
// others' partial sums: it waits for earlier clusters alone, which a GPU starts before it. Not all of them need to run at
// once. The grid's rows are clusters.
struct StreamKWork {
    int whole, turns, next_whole, unit, begin, end;
    u32 rest, first, at;

    __device__ __forceinline__ StreamKWork(int units, int whole, int turns)
        : whole(whole), turns(turns), next_whole(blockIdx.y), rest((units - whole) * turns) {
        first = end_of((int)blockIdx.y - 1), at = end_of(blockIdx.y);
    }
    // Where the share of a cluster ends. Less than two waves are shared, so 32 bits are enough.
    __device__ __forceinline__ u32 end_of(int cluster) const { return rest * (cluster + 1) / gridDim.y; }
    __device__ __forceinline__ bool next() {
        if (at > first) {
            const u32 of_rest = (at - 1) / turns, before = of_rest * turns;
            unit = whole + of_rest, end = at - before;
            at = first > before ? first : before, begin = at - before;
            return true;
        }
        if (next_whole >= whole) return false;
        unit = next_whole, begin = 0, end = turns;
        next_whole += gridDim.y;
        return true;
    }
    // Whether the share of `other`, an earlier cluster, ends in this unit, of which this one has the last turns.
    __device__ __forceinline__ bool begins_in(int other) const {
        return begin > 0 && other >= 0 && end_of(other) > (u32)(unit - whole) * turns;
    }
};

// The matrix's tiles that a thread block takes of a unit: TILES that follow one another; or of a GATED product, whose matrix is gate and
// then up, half of them gate's and as many of up's, which belong together.
template <int TILES, int CLUSTER, bool GATED>
struct UnitTiles {
    int first, end, half;
    __device__ __forceinline__ UnitTiles(int unit, int tiles)
        : first((unit * CLUSTER + (int)blockIdx.x) * (GATED ? TILES / 2 : TILES)), end(GATED ? tiles / 2 : tiles), half(tiles / 2) {}
    __device__ __forceinline__ int operator[](int of) const {
        if (!GATED) return min(first + of, end - 1);
        return min(first + of % (TILES / 2), end - 1) + of / (TILES / 2) * half;
    }
};

// x, swizzled -> out [rows, outputs], plus `residual` [rows, outputs] if given. GATED: -> silu(gate) * up, as the rows of a
// product with `out_row` K blocks, each input where `inverse_permutation` says, if given. partial_sums: NT * MT *
// FOURS for each multiplying thread of each thread block. ready: a zero for each, and zero again at the end.
// A multiprocessor has one thread block, which takes all registers. With two smaller ones for few rows, and several
// programs on the GPU, one thread block of an H200's waited for ever for copies that it had asked for: once in 8,000 steps
// of 8 layers. Why is not known.
template <class T, bool GATED>
__device__ __forceinline__ void dequant_gemm(const uint4* codes, const u32* scales, const u32* zeros, const uint4* x,
                                             u16* out, const u16* bias, const u16* residual, float4* partial_sums,
                                             u32* ready, const int* inverse_permutation, int out_row, int rows,
                                             int tiles, int blocks, int groups, int whole) {
    typedef UnitTiles<T::TILES, T::CLUSTER, GATED> OfUnit;
    constexpr int MT = T::MT, NT = T::NT, TURN = T::TURN, SETS = T::SETS, THREADS = T::THREADS, CLUSTER = T::CLUSTER;
    constexpr int PARTIAL_SUMS = NT * MT * FOURS * THREADS;
    extern __shared__ __align__(1024) unsigned char shared[];
    Stages<T>& room = *(Stages<T>*)(shared + (1024 - smem_address(shared) % 1024) % 1024);
    const int lane = threadIdx.x % 32, warp = __shfl_sync(~0u, (int)threadIdx.x / 32, 0), g = lane / 4;
    const int row_blocks = (rows + NT * TILE_ROWS - 1) / (NT * TILE_ROWS), turns = blocks / TURN,
              units = (tiles + T::TILES * CLUSTER - 1) / (T::TILES * CLUSTER) * row_blocks,
              block = blockIdx.y * CLUSTER + blockIdx.x;
    if (threadIdx.x == 0) {
        // A stage is full once 128 threads' codes and the row tiles have arrived; empty once every warp has read it, in
        // all blocks of the cluster.
        for (int s = 0; s < T::STAGES; s++)
            mbarrier_init(&room.full[s], 129), mbarrier_init(&room.empty[s], T::WARPS * CLUSTER);
        asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
        if (CLUSTER > 1) asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    if (CLUSTER > 1)
        cluster_sync();
    else
        __syncthreads();
    pdl_trigger();
    int stage = 0, parity = 0;
    if (warp >= T::WARPS) {
        if (T::IS_AHEAD) asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
        const int part = warp - T::WARPS;
        // Where the warp's tiles and the lane's scales of a unit lie, from `turn` on.
        constexpr int TURN_PIECES = TURN * PIECES;
        u32 from_codes[T::TILES / 4], from_scales = 0;
        auto begin_unit = [&](int unit, int turn) {
            const OfUnit of_unit(unit / row_blocks, tiles);
#pragma unroll
            for (int i = 0; i < T::TILES / 4; i++)
                from_codes[i] = (u32)(of_unit[part + i * 4] * blocks + turn * TURN) * (PIECES * 32) + lane;
            from_scales = (u32)of_unit[lane / 2] * groups * 8 + lane % 2 * 4;
        };
        auto copy_codes = [&](int to, int turn) {
#pragma unroll
            for (int i = 0; i < T::TILES / 4; i++) {
#pragma unroll
                for (int piece = 0; piece < TURN_PIECES; piece++)
                    cp_async_16(&room.codes[to][part + i * 4][piece][lane], codes + from_codes[i] + piece * 32);
                from_codes[i] += TURN_PIECES * 32;
            }
            if (part == 0 && lane < T::TILES * 2) {
#pragma unroll
                for (int i = 0; i < SETS; i++) {
                    const u32 from = from_scales + scale_group_of(turn * TURN * 2 + i * T::SET_HALVES) * 8;
                    cp_async_16(&room.scales[to][i][lane / 2][lane % 2 * 4], scales + from);
#if ZEROS
                    cp_async_16(&room.zeros[to][i][lane / 2][lane % 2 * 4], zeros + from);
#endif
                }
            }
            mbarrier_arrive_on_copies(&room.full[to]);
        };
        // No kernel writes codes: as many as there is room for are asked for before the rows are there.
        int early = 0;
        StreamKWork first_work(units, whole, turns);
        if (first_work.next()) {
            begin_unit(first_work.unit, first_work.begin);
            for (int turn = first_work.begin; turn < first_work.end && early < T::STAGES; turn++)
                copy_codes(early++, turn);
        }
        pdl_wait();
        for (StreamKWork work(units, whole, turns); work.next();) {
            if (!early) begin_unit(work.unit, work.begin);
            const int row_tile = work.unit % row_blocks * NT,
                      num_row_tiles = min(NT, (rows + TILE_ROWS - 1) / TILE_ROWS - row_tile);
            const uint4* from_x = x + (i64)row_tile * blocks * (X_TILE / 8);
            for (int turn = work.begin; turn < work.end; turn++) {
                mbarrier_wait(&room.empty[stage], parity ^ 1);
                if (threadIdx.x == THREADS) {
                    mbarrier_expect_bytes(&room.full[stage], num_row_tiles * TURN * X_TILE * 2);
                    for (int n = blockIdx.x; n < num_row_tiles; n += CLUSTER) {
                        const uint4* from = from_x + ((i64)n * blocks + turn * TURN) * (X_TILE / 8);
                        if (CLUSTER > 1)
                            cp_async_bulk_multicast(room.x[stage][n], from, TURN * X_TILE * 2, &room.full[stage],
                                                    (1 << CLUSTER) - 1);
                        else
                            cp_async_bulk(room.x[stage][n], from, TURN * X_TILE * 2, &room.full[stage]);
                    }
                }
                if (early)
                    early--;
                else
                    copy_codes(stage, turn);
                if (++stage == T::STAGES) stage = 0, parity ^= 1;
            }
        }
        if (CLUSTER > 1) cluster_sync();
        return;
    }

    if (T::IS_AHEAD) asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
    const int warpgroup = warp / 4, part = warp % 4, own_tile = warpgroup * MT * 4 + part;
    pdl_wait();
    // A turn's codes and scales as they are stored.
    struct Raw {
        uint4 codes[MT][TURN * PIECES];
        u32 scales[SETS][MT];
#if ZEROS
        u32 zeros[SETS][MT];
#endif
    };
    // The next stage's, once they are there; which stage that was.
    auto take = [&](Raw& raw) {
        mbarrier_wait(&room.full[stage], parity);
#pragma unroll
        for (int m = 0; m < MT; m++) {
            const int tile = own_tile + m * 4;
#pragma unroll
            for (int piece = 0; piece < TURN * PIECES; piece++)
                raw.codes[m][piece] = room.codes[stage][tile][piece][lane];
#pragma unroll
            for (int set = 0; set < SETS; set++) {
                raw.scales[set][m] = room.scales[stage][set][tile][g];
#if ZEROS
                raw.zeros[set][m] = room.zeros[stage][set][tile][g];
#endif
            }
        }
        const int taken = stage;
        if (++stage == T::STAGES) stage = 0, parity ^= 1;
        return taken;
    };
    typedef u32 Operands[TURN * 4][MT][4];
    auto dequantize = [&](const Raw& raw, Operands& a) {
#pragma unroll
        for (int m = 0; m < MT; m++) {
#pragma unroll
            for (int step = 0; step < TURN * 4; step++) {
                const int set = step / 2 / T::SET_HALVES;
#if ZEROS
                const ZeroPair less = zero_pair(raw.zeros[set][m]);
#else
                const ZeroPair less = zero_pair(MIDDLE, MIDDLE);
#endif
                const uint4& from = raw.codes[m][step * PIECES / 4];
                const u32 words[4] = {from.x, from.y, from.z, from.w};
                const u32 scale = raw.scales[set][m];
                const u32 even = splat((u16)scale), odd = splat((u16)(scale >> 16));
                u32* to = a[step][m];
                centered_codes(words + step * OPERAND_WORDS % 4, less, to);
                to[0] = times(to[0], even), to[2] = times(to[2], even);
                to[1] = times(to[1], odd), to[3] = times(to[3], odd);
            }
        }
    };
    for (StreamKWork work(units, whole, turns); work.next();) {
        float sum[NT][MT][TILE_ROWS / 2] = {};
        auto multiply = [&](const Operands& a, int held) {
            const unsigned long long with = wgmma_descriptor(room.x[held]);
            asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
            for (int step = 0; step < TURN * 4; step++)
#pragma unroll
                for (int n = 0; n < NT; n++)
#pragma unroll
                    for (int m = 0; m < MT; m++)
                        wgmma(sum[n][m], a[step][m], with + (n * TURN + step / 4) * (X_TILE / 8) + step % 4 * 2);
            asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
        };
        auto finish = [&](int held) {
            asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
            __syncwarp();
            if (CLUSTER > 1) {
                if (lane < CLUSTER) mbarrier_arrive_in_cluster(&room.empty[held], lane);
            } else if (lane == 0) {
                mbarrier_arrive(&room.empty[held]);
            }
        };
        Operands a[T::IS_AHEAD ? 2 : 1];
        Raw raw;
        int held = take(raw);
        dequantize(raw, a[0]);
        for (int base = work.begin; base < work.end; base += T::IS_AHEAD ? 2 : 1)
#pragma unroll
            for (int side = 0; side < (T::IS_AHEAD ? 2 : 1); side++) {
                const int turn = base + side, done = held;
                if (T::IS_AHEAD && turn >= work.end) break;
                multiply(a[side], held);
                if (turn + 1 < work.end) held = take(raw);
                if (T::IS_AHEAD && turn + 1 < work.end) dequantize(raw, a[side ^ 1]);
                finish(done);
                if (!T::IS_AHEAD && turn + 1 < work.end) dequantize(raw, a[0]);
            }

        if (work.end < turns) {
            float4* to = partial_sums + block * PARTIAL_SUMS + threadIdx.x;
#pragma unroll
            for (int i = 0; i < NT * MT * FOURS; i++) {
                const float* from = &sum[i / FOURS / MT][i / FOURS % MT][i % FOURS * 4];
                to[i * THREADS] = make_float4(from[0], from[1], from[2], from[3]);
            }
            __threadfence();
            named_barrier_sync(1, THREADS);
            if (threadIdx.x == 0) st_release(ready + block, 1);
            continue;
        }
        int others = 0;
        while (work.begins_in((int)blockIdx.y - 1 - others)) others++;
        if (others) {
            u32* of_others = ready + block - others * CLUSTER;
            // Each waits for another one: one after the other would be a round trip for each.
            for (int other = threadIdx.x; other < others; other += THREADS) {
                while (!ld_acquire(of_others + other * CLUSTER)) {
                }
            }
            named_barrier_sync(1, THREADS);
            const float4* from = partial_sums + (block - others * CLUSTER) * PARTIAL_SUMS + threadIdx.x;
            for (int other = 0; other < others; other++, from += CLUSTER * PARTIAL_SUMS) {
#pragma unroll
                for (int i = 0; i < NT * MT * FOURS; i++) {
                    float* to = &sum[i / FOURS / MT][i / FOURS % MT][i % FOURS * 4];
                    const float4 more = __ldcg(from + i * THREADS);
                    to[0] += more.x, to[1] += more.y, to[2] += more.z, to[3] += more.w;
                }
            }
            named_barrier_sync(1, THREADS);
            for (int other = threadIdx.x; other < others; other += THREADS) st_release(of_others + other * CLUSTER, 0);
        }

        // sum[.][4j..4j+3]: outputs g, g, g+8, g+8 of rows 8j+2t, 8j+2t+1, 8j+2t, 8j+2t+1.
        const OfUnit of_unit(work.unit / row_blocks, tiles);
        const int first_row = work.unit % row_blocks * NT * TILE_ROWS;
        // Of a GATED product the first half of the warpgroups has gate's outputs, the second one up's. Else a warpgroup stores
        // its own.
        constexpr int HALF_TILES = T::TILES / 2;
        auto sync_done = [&] { GATED ? named_barrier_sync(1, THREADS) : named_barrier_sync(warpgroup + 2, 128); };
        sync_done();
#pragma unroll
        for (int m = 0; m < MT; m++) {
            const int tile = own_tile + m * 4;
            float more[2] = {};
            if (bias && of_unit.first + (GATED ? tile % HALF_TILES : tile) < of_unit.end) {
                const u16* from = bias + of_unit[tile] * 16 + g;
                more[0] = to_float(from[0]), more[1] = to_float(from[8]);
            }
#pragma unroll
            for (int j = 0; j < NT * FOURS; j += 2) {
                const float* from = sum[j / FOURS][m] + j % FOURS * 4;
                u32 r[4];
#pragma unroll
                for (int i = 0; i < 4; i++) r[i] = pack(from[i * 2] + more[i % 2], from[i * 2 + 1] + more[i % 2]);
                u16* to = &room.done[tile / HALF_TILES][(j + lane / 16) * 8 + lane % 8]
                                    [tile % HALF_TILES * 16 + lane / 8 % 2 * 8];
                asm volatile(
                    "stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1,%2,%3,%4};" ::"r"(smem_address(to)),
                    "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3])
                    : "memory");
            }
        }
        sync_done();
        constexpr int STORING = GATED ? THREADS : 128, EIGHTS = GATED ? HALF_TILES * 2 : MT * 8;
        for (int at = threadIdx.x % STORING; at < NT * TILE_ROWS * EIGHTS; at += STORING) {
            const int row = at / EIGHTS, eight = at % EIGHTS + (GATED ? 0 : warpgroup * EIGHTS);
            if (first_row + row >= rows || of_unit.first + eight / 2 >= of_unit.end) continue;
            if (GATED) {
                store_gated_8(room.done[0][row], room.done[1][row], eight, first_row + row, of_unit.first * 16,
                              inverse_permutation, out_row, out);
                continue;
            }
            const i64 to = (i64)(first_row + row) * out_row + of_unit.first * 16 + eight * 8;
            uint4 value = *(const uint4*)&room.done[eight / (HALF_TILES * 2)][row][eight % (HALF_TILES * 2) * 8];
            if (residual) {
                float whole[8], more[8];
                unpack8(value, whole);
                unpack8(*(const uint4*)(residual + to), more);
#pragma unroll
                for (int i = 0; i < 8; i++) whole[i] += more[i];
                value = pack8(whole);
            }
            *(uint4*)(out + to) = value;
        }
    }
    // Other blocks may still arrive at this one's barriers.
    if (CLUSTER > 1) cluster_sync();
}

// DIMS: __cluster_dims__ of CLUSTER blocks, or nothing.
#define GEMM(NAME, MT, NT, STAGES, GROUPS, TURN, CLUSTER, DIMS, GATED, BYTES)                                          \
    typedef Turn<MT, NT, STAGES, GROUPS, TURN, CLUSTER> Turn_##NAME;                                                   \
    static_assert(sizeof(Stages<Turn_##NAME>) + 1024 == BYTES, "what a block of threads has room for");                \
    extern "C" __global__ void DIMS __launch_bounds__(GROUPS * 128 + 128, 1)                                           \
        NAME(const uint4* codes, const u32* scales, const u32* zeros, const uint4* x, u16* out, const u16* bias,       \
             const u16* residual, float4* partial_sums, u32* ready, const int* inverse_permutation, int out_row,       \
             int rows, int tiles, int blocks, int groups, int whole) {                                                 \
        dequant_gemm<Turn_##NAME, GATED>(codes, scales, zeros, x, out, bias, residual, partial_sums, ready,            \
                                         inverse_permutation, out_row, rows, tiles, blocks, groups, whole);            \
    }
GEMMS
