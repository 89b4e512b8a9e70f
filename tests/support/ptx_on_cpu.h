// CUDA C++ of the engine's own kernels on a CPU: every thread is a fiber, and every PTX instruction a function with its
// outputs, then its inputs, as arguments. tests/support/ptx_on_cpu.py makes calls of `asm`.
//
// Blocks of a launch run at once, in one thread of the CPU, and a fiber runs until it waits. Asynchronous copies
// arrive when they are waited for, no sooner.

#include <setjmp.h>
#include <ucontext.h>

#include <cmath>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <vector>

#define __device__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __cluster_dims__(...)
typedef unsigned int u32;
typedef unsigned short u16;
typedef long long i64;
struct uint4 { u32 x, y, z, w; };
struct uint2 { u32 x, y; };
struct float2 { float x, y; };
struct float4 { float x, y, z, w; };
struct Index { u32 x, y, z; };
inline uint4 make_uint4(u32 x, u32 y, u32 z, u32 w) { return {x, y, z, w}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

// A block's dynamic shared memory begins here in its address space: kernels that need more must align it themselves.
constexpr u32 SHARED_BEGIN = 1040;
constexpr size_t STACK_BYTES = 128 * 1024, KEPT_FIBERS = 1024;

struct Barrier { int arrived = 0; u32 phase = 0; };
struct Warp { Barrier barrier; u32 values[2][32][8]; };
struct Block;
// A row of the grid, as every kernel here has them that has clusters at all.
struct Cluster { Barrier all; std::vector<Block*> blocks; };
struct Block {
    Index index;
    Cluster* cluster;
    std::vector<Warp> warps;
    std::vector<char> shared;
    Barrier all, named[16];
    alignas(16) float fixed[256];  // what a kernel declares as shared memory of known size
    bool flag;
};
// So many times every thread had its turn, and none came to its end.
static const u32 MOST_IDLE_TURNS = 100000;
struct Copy { void* to; const void* from; int size; };
struct Fiber {
    Block* block;
    Index index;
    jmp_buf here;
    std::unique_ptr<char[]> stack{new char[STACK_BYTES]};
    u32 exchanges = 0;
    std::vector<Copy> copies;
    std::deque<std::vector<Copy>> groups;
    bool is_done = false;
};
static Fiber* fiber;
static jmp_buf scheduler;
static Index grid;
static std::function<void()> entry;
#define threadIdx (fiber->index)
#define blockIdx (fiber->block->index)
#define gridDim grid

inline void yield() {
    if (!_setjmp(fiber->here)) _longjmp(scheduler, 1);
}
inline void wait(Barrier& barrier, int count) {
    const u32 phase = barrier.phase;
    if (++barrier.arrived == count) {
        barrier.arrived = 0, barrier.phase++;
        return;
    }
    while (barrier.phase == phase) yield();
}
inline void __syncthreads() { wait(fiber->block->all, (int)fiber->block->warps.size() * 32); }
inline Warp& own_warp() { return fiber->block->warps[threadIdx.x / 32]; }
inline void __syncwarp() { wait(own_warp().barrier, 32); }
inline void __threadfence() {}

// What all lanes of the warp give: two sets of it take turns, so that none is overwritten before all have read it.
typedef u32 Given[32][8];
inline const Given& exchange(std::initializer_list<u32> values) {
    Warp& warp = own_warp();
    Given& given = warp.values[fiber->exchanges++ % 2];
    std::copy(values.begin(), values.end(), given[threadIdx.x % 32]);
    wait(warp.barrier, 32);
    return given;
}
template <class T> T __shfl_sync(u32, T value, int lane) {
    u32 bits;
    memcpy(&bits, &value, 4);
    memcpy(&value, &exchange({bits})[lane % 32][0], 4);
    return value;
}
template <class T> T __shfl_xor_sync(u32, T value, int by) { return __shfl_sync(~0u, value, threadIdx.x % 32 ^ by); }

inline float __uint_as_float(u32 bits) { float x; memcpy(&x, &bits, 4); return x; }
inline u32 __float_as_uint(float x) { u32 bits; memcpy(&bits, &x, 4); return bits; }
inline u32 as_bits(float x) { u32 bits; memcpy(&bits, &x, 4); return bits; }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline float __expf(float x) { return expf(x); }
inline float __fmul_rn(float a, float b) { return a * b; }
inline u32 atomicAdd(u32* at, int by) { const u32 was = *at; *at += by; return was; }
inline float rsqrtf(float x) { return 1 / sqrtf(x); }
template <class T> T __ldg(const T* from) { return *from; }
template <class T> T __ldcg(const T* from) { return *from; }
inline int atomicAdd(int* to, int what) { return *to += what, *to - what; }
inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }
inline u32 __byte_perm(u32 a, u32 b, u32 how) {
    const unsigned long long both = (unsigned long long)b << 32 | a;
    u32 r = 0;
    for (int i = 0; i < 4; i++) r |= (u32)(both >> (how >> i * 4 & 7) * 8 & 255) << i * 8;
    return r;
}
inline size_t __cvta_generic_to_shared(const void* p) { return (char*)p - fiber->block->shared.data() + SHARED_BEGIN; }
inline char* at_shared(u32 address) { return fiber->block->shared.data() + address - SHARED_BEGIN; }

inline float from_f16(u16 bits) { _Float16 x; memcpy(&x, &bits, 2); return x; }
inline u16 to_f16(float value) { const _Float16 x = value; u16 bits; memcpy(&bits, &x, 2); return bits; }
inline float from_bf16(u16 bits) { return __uint_as_float((u32)bits << 16); }
inline u16 to_bf16(float value) {
    const u32 bits = as_bits(value);
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

namespace ptx {
inline void cvt_rn_bf16_f32(u16& r, float x) { r = to_bf16(x); }
inline void cvt_rn_f16_f32(u16& r, float x) { r = to_f16(x); }
inline void cvt_f32_f16(float& r, u16 x) { r = from_f16(x); }
inline void prefetch_global_L2(const void*) {}
// a · b + c of both halves, rounded once: a float has room for the exact product, a double for the sum.
template <class From, class To> u32 fma_pair(u32 a, u32 b, u32 c, From from, To to) {
    u32 r = 0;
    for (int i = 0; i < 32; i += 16)
        r |= (u32)to((float)((double)from(a >> i) * from(b >> i) + from(c >> i))) << i;
    return r;
}
inline void fma_rn_bf16x2(u32& r, u32 a, u32 b, u32 c) { r = fma_pair(a, b, c, from_bf16, to_bf16); }
inline void fma_rn_f16x2(u32& r, u32 a, u32 b, u32 c) { r = fma_pair(a, b, c, from_f16, to_f16); }
inline void mul_rn_bf16x2(u32& r, u32 a, u32 b) { fma_rn_bf16x2(r, a, b, 0); }
inline void mul_rn_f16x2(u32& r, u32 a, u32 b) { fma_rn_f16x2(r, a, b, 0); }
inline void add_rn_f16x2(u32& r, u32 a, u32 b) { fma_rn_f16x2(r, a, 0x3c003c00, b); }
inline void lop3_b32(u32& r, u32 a, u32 b, u32 c) { r = (a & b) | c; }  // 0xea, the only one

// A of lane 4g+t: rows g, g+8, g, g+8, columns 2t, 2t+1, the last two 8 further on. b(k, column): an element of B.
template <class From, class B> void mma(float* c, const Given& given, From from, B b, int columns) {
    const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    for (int i = 0; i < columns / 2; i++) {
        double sum = c[i];
        for (int k = 0; k < 16; k++) {
            const u32 pair = given[g * 4 + k % 8 / 2][i % 4 / 2 + k / 8 * 2];
            sum += (double)from((u16)(pair >> k % 2 * 16)) * b(k, i / 4 * 8 + t * 2 + i % 2);
        }
        c[i] = (float)sum;
    }
}
template <class From>
void mma_m16n8k16(float** d, std::initializer_list<u32> a_and_b, std::initializer_list<float> from_c, From from) {
    const Given& given = exchange(a_and_b);
    float c[4];
    std::copy(from_c.begin(), from_c.end(), c);
    mma(c, given, from, [&](int k, int column) {
        return from((u16)(given[column * 4 + k % 8 / 2][4 + k / 8] >> k % 2 * 16));
    }, 8);
    for (int i = 0; i < 4; i++) *d[i] = c[i];
}
#define MMA(TYPE, FROM)                                                                                             \
    inline void mma_sync_aligned_m16n8k16_row_col_f32_##TYPE##_##TYPE##_f32(                                       \
        float& d0, float& d1, float& d2, float& d3, u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1, float c0,       \
        float c1, float c2, float c3) {                                                                            \
        float* d[4] = {&d0, &d1, &d2, &d3};                                                                        \
        mma_m16n8k16(d, {a0, a1, a2, a3, b0, b1}, {c0, c1, c2, c3}, FROM);                                          \
    }                                                                                                              \
    template <class... Rest> void wgmma_mma_async_sync_aligned_m64n128k16_f32_##TYPE##_##TYPE(float& c, Rest&... r) { \
        wgmma(&c, FROM, 128, r...);                                                                                \
    }                                                                                                              \
    template <class... Rest> void wgmma_mma_async_sync_aligned_m64n64k16_f32_##TYPE##_##TYPE(float& c, Rest&... r) {  \
        wgmma(&c, FROM, 64, r...);                                                                                 \
    } \
    template <class... Rest> void wgmma_mma_async_sync_aligned_m64n32k16_f32_##TYPE##_##TYPE(float& c, Rest&... r) {  \
        wgmma(&c, FROM, 32, r...);                                                                                 \
    }
// Of the sums, which lie side by side, the first is enough. B: `columns` rows of 128 bytes, swizzled; the last says where.
template <class From, class... Rest> void wgmma(float* c, From from, int columns, Rest&... rest) {
    const unsigned long long last[] = {(unsigned long long)rest...};
    const size_t n = sizeof...(rest);
    const Given& given = exchange({(u32)last[n - 5], (u32)last[n - 4], (u32)last[n - 3], (u32)last[n - 2]});
    const u32 begin = (u32)(last[n - 1] & 0x3fff) << 4;
    mma(c, given, from, [&](int k, int column) {
        u32 at = begin + column * 128 + k * 2;
        at ^= (at >> 7 & 7) << 4;
        u16 x;
        memcpy(&x, at_shared(at), 2);
        return from(x);
    }, columns);
}
MMA(f16, from_f16)
MMA(bf16, from_bf16)
inline void wgmma_fence_sync_aligned() {}
inline void wgmma_commit_group_sync_aligned() {}
inline void wgmma_wait_group_sync_aligned() {}
inline void fence_proxy_async_shared_cta() {}
inline void ex2_approx_ftz_f32(float& to, float x) { to = std::exp2(x); }
inline void setmaxnreg_dec_sync_aligned_u32(int = 0) {}
inline void setmaxnreg_inc_sync_aligned_u32(int = 0) {}
inline void stmatrix_sync_aligned_m8n8_x4_trans_shared_b16(u32 to, u32 r0, u32 r1, u32 r2, u32 r3) {
    const Given& given = exchange({to, r0, r1, r2, r3});
    const int lane = threadIdx.x % 32;
    // Lane 8i+j says where row j of matrix i goes. Transposed: a pair in lane 4g+t is of column g, rows 2t and 2t+1.
    for (int column = 0; column < 8; column++) {
        const u16 x = given[column * 4 + lane % 8 / 2][1 + lane / 8] >> lane % 2 * 16;
        memcpy(at_shared(to) + column * 2, &x, 2);
    }
    __syncwarp();
}

inline void load(u32& x, u32& y, u32& z, u32& w, const void* from) {
    uint4 v;
    memcpy(&v, from, 16);
    x = v.x, y = v.y, z = v.z, w = v.w;
}
#define LOAD(NAME, AT, FROM) inline void NAME(u32& x, u32& y, u32& z, u32& w, AT from) { load(x, y, z, w, FROM); }
#define LOAD_SOME(NAME, AT, FROM)                                             \
    inline void NAME(u32& x, u32& y, u32& z, u32& w, AT from, u32 is_read) { \
        if (is_read) load(x, y, z, w, FROM);                                  \
    }
LOAD(ld_shared_v4_u32, u32, at_shared(from))
LOAD(ld_global_v4_u32, const void*, from)
LOAD(ld_global_nc_L1_no_allocate_L2_128B_v4_u32, const void*, from)
LOAD_SOME(setp_ne_u32_ld_shared_v4_u32, u32, at_shared(from))
LOAD_SOME(setp_ne_u32_ld_global_v4_u32, const void*, from)
// The transpose of 8x8 halves: lane 4g+t gives row g, columns 2t and 2t+1.
inline void movmatrix_sync_aligned_m8n8_trans_b16(u32& r, u32 pair) {
    const Given& given = exchange({pair});
    const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    const u32 low = given[t * 8 + g / 2][0] >> g % 2 * 16, high = given[t * 8 + 4 + g / 2][0] >> g % 2 * 16;
    r = (low & 0xffff) | high << 16;
}
inline void ld_shared_u32(u32& r, u32 from) { memcpy(&r, at_shared(from), 4); }
inline void ld_acquire_gpu_u32(u32& r, const u32* from) { yield(), r = *from; }
inline void st_release_gpu_u32(u32* to, u32 what) { *to = what; }
inline void ld_relaxed_gpu_u32(int& r, const int* from) { r = *from; }
inline void ld_relaxed_gpu_u64(unsigned long long& r, const unsigned long long* from) { yield(), r = *from; }
inline void st_relaxed_gpu_u64(unsigned long long* to, unsigned long long what) { *to = what; }

inline void arrive_all(const std::vector<Copy>& copies) {
    for (const Copy& one : copies) memcpy(one.to, one.from, one.size);
}
inline void cp_async_cg_shared_global_L2_128B(u32 to, const void* from) {
    fiber->copies.push_back({at_shared(to), from, 16});
}
// What is left of the 16 bytes becomes zeros.
inline void cp_async_cg_shared_global_L2_128B(u32 to, const void* from, int size) {
    static const char zeros[16] = {};
    fiber->copies.push_back({at_shared(to), from, size});
    fiber->copies.push_back({at_shared(to) + size, zeros, 16 - size});
}
inline void cp_async_ca_shared_global_L2_128B(u32 to, const void* from) {
    fiber->copies.push_back({at_shared(to), from, 4});
}
inline void cp_async_commit_group() { fiber->groups.push_back(std::move(fiber->copies)), fiber->copies.clear(); }
inline void cp_async_wait_group(int but) {
    for (; (int)fiber->groups.size() > but; fiber->groups.pop_front()) arrive_all(fiber->groups.front());
}

// A phase of an mbarrier ends once `pending` threads arrived, and all the bytes that were expected.
struct MBarrier { u32 count : 15, pending : 15, parity : 1; int bytes; };
inline MBarrier& barrier_at(u32 at) { return *(MBarrier*)at_shared(at); }
inline void end_phase(MBarrier& one) {
    if (!one.pending && !one.bytes) one.parity ^= 1, one.pending = one.count;
}
inline void mbarrier_init_shared_b64(u32 at, int count) { barrier_at(at) = {(u32)count, (u32)count, 0, 0}; }
inline void mbarrier_arrive_shared_b64(u32 at) { barrier_at(at).pending--, end_phase(barrier_at(at)); }
inline void mbarrier_arrive_expect_tx_shared_b64(u32 at, int bytes) {
    barrier_at(at).bytes += bytes, mbarrier_arrive_shared_b64(at);
}
inline void mbarrier_try_wait_parity_shared_b64_selp_u32(u32& done, u32 at, int parity) {
    done = barrier_at(at).parity != (u32)parity;
    if (!done) yield();
}
inline void cp_async_mbarrier_arrive_noinc_shared_b64(u32 at) {
    arrive_all(fiber->copies), fiber->copies.clear(), mbarrier_arrive_shared_b64(at);
}
inline void cp_async_bulk_shared_cluster_global_mbarrier_complete_tx_bytes(
    u32 to, const void* from, int size, u32 barrier) {
    memcpy(at_shared(to), from, size);
    barrier_at(barrier).bytes -= size, end_phase(barrier_at(barrier));
}
// An address in another block's shared memory: in the upper bits whose.
inline void mapa_shared_cluster_u32(u32& r, u32 at, int rank) { r = at | (u32)rank << 24; }
inline void ld_shared_cluster_f32(float& r, u32 from) {
    Block* block = fiber->block->cluster->blocks[from >> 24];
    memcpy(&r, block->shared.data() + (from & 0xffffff) - SHARED_BEGIN, 4);
}
inline void barrier_cluster_arrive_release_barrier_cluster_wait_acquire() {
    Cluster& own = *fiber->block->cluster;
    wait(own.all, (int)(own.blocks.size() * fiber->block->warps.size() * 32));
}
inline void fence_mbarrier_init_release_cluster() {}
// `run` of a block of the cluster, as if its threads ran it.
template <class Run> void in_cluster(int rank, Run run) {
    Block* own = fiber->block;
    fiber->block = own->cluster->blocks[rank], run(), fiber->block = own;
}
inline void mbarrier_arrive_shared_cluster_b64(u32 at) {
    in_cluster(at >> 24, [&] { mbarrier_arrive_shared_b64(at & 0xffffff); });
}
inline void cp_async_bulk_shared_cluster_global_mbarrier_complete_tx_bytes_multicast_cluster(
    u32 to, const void* from, int size, u32 barrier, u16 ranks) {
    for (int rank = 0; ranks >> rank; rank++)
        if (ranks >> rank & 1)
            in_cluster(rank, [&] {
                cp_async_bulk_shared_cluster_global_mbarrier_complete_tx_bytes(to, from, size, barrier);
            });
}
inline void bar_sync(int barrier, int count) { wait(fiber->block->named[barrier], count); }
}  // namespace ptx

static ucontext_t starter, started;
// One thread of a block after another: to make a stack takes longer than what most threads do.
inline void run_fiber() {
    if (!_setjmp(fiber->here)) swapcontext(&started, &starter);
    for (;; yield()) entry(), fiber->is_done = true;
}
inline void start(Fiber& one) {
    fiber = &one;
    getcontext(&started);
    started.uc_stack.ss_sp = one.stack.get(), started.uc_stack.ss_size = STACK_BYTES;
    makecontext(&started, run_fiber, 0);
    swapcontext(&starter, &started);
}
inline void resume(Fiber& one) {
    fiber = &one;
    if (!_setjmp(scheduler)) _longjmp(one.here, 1);
}
// Run `kernel` with pointers to its arguments, in blocks of `num_threads`, of which `most_blocks` run at once, in their
// order, and those of a row of the grid always. False where all threads that may run wait.
extern "C" bool launch(void (*kernel)(void**), const u32* size, int num_threads, int shared_bytes, u32 most_blocks,
                       void** arguments) {
    grid = {size[0], size[1], size[2]};
    entry = [=] { kernel(arguments); };
    std::deque<Block> blocks;
    std::deque<Cluster> clusters;
    static std::deque<Fiber> fibers;
    size_t used = 0;
    for (u32 at = 0; at < size[0] * size[1] * size[2]; at++) {
        Block& block = blocks.emplace_back();
        block.index = {at % size[0], at / size[0] % size[1], at / size[0] / size[1]};
        if (at % size[0] == 0) clusters.emplace_back();
        block.cluster = &clusters.back(), block.cluster->blocks.push_back(&block);
        block.warps.resize(num_threads / 32);
        block.shared.assign(shared_bytes, (char)0xff);  // as bits of any number, not one
        for (int thread = 0; thread < num_threads; thread++) {
            if (used == fibers.size()) start(fibers.emplace_back());
            Fiber& one = fibers[used++];
            one.block = &block, one.index = {(u32)thread, 0, 0}, one.is_done = false;
            one.exchanges = 0, one.copies.clear(), one.groups.clear();
        }
    }
    std::vector<int> left_of(blocks.size(), num_threads);
    size_t left = used;
    for (u32 turns = 0; left && turns < MOST_IDLE_TURNS; turns++) {
        u32 running = 0;
        for (size_t of = 0; of < blocks.size(); of++) {
            // Those of a cluster always run at once.
            if (of % size[0] == 0 && running >= most_blocks) break;
            if (!left_of[of]) continue;
            running++;
            for (int thread = 0; thread < num_threads; thread++) {
                Fiber& one = fibers[of * num_threads + thread];
                if (one.is_done) continue;
                resume(one);
                if (one.is_done) left--, left_of[of]--, turns = 0;
            }
        }
    }
    // Those that wait stand in the middle of the kernel.
    if (left) fibers.clear();
    if (used > KEPT_FIBERS && !left) fibers.resize(KEPT_FIBERS);
    return left == 0;
}
