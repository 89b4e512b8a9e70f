// What CUDA C++ needs to run on a CPU, one block after another. Each thread of a block is a stack of its own; it gives way
// to the others where it waits for its warp or its block. The kernels take their ways for GPUs without tensor cores.
#include <math.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#include <type_traits>

#define __CUDA_ARCH__ 520
#define __device__
#define __global__
#define __shared__ static
#define __forceinline__ inline
#define __noinline__
#define __launch_bounds__(...)

struct uint3 {
    unsigned x, y, z;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
struct alignas(8) uint2 {
    unsigned x, y;
};
struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
static uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
static uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
static float2 make_float2(float x, float y) { return {x, y}; }
static float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

static uint3 threadIdx, blockIdx, blockDim, gridDim;
alignas(16) static char shared_memory[256 * 1024];

static const int MOST_THREADS = 1024, STACK_BYTES = 64 * 1024, MOST_WARPS = MOST_THREADS / 32;

// Where all that are `alive` among the threads of some warps wait for each other. waits: a bit for each thread.
struct Gate {
    int alive, waiting, first_warp, num_warps;
    unsigned waits[MOST_WARPS];
};
struct Warp {
    Gate gate;
    unsigned long long values[2][32];  // Two alternate: others may still read the last ones.
};
struct Thread {
    jmp_buf here, begin;  // `begin`: where it waits for the next block
    int side;
};

static Thread threads[MOST_THREADS];
static Warp warps[MOST_WARPS];
static unsigned ready[MOST_WARPS];  // a bit for each thread that can go on
static Gate block;
static int current, num_threads, num_stacks;
static ucontext_t starter, started;
static jmp_buf after_block;
static void (*run_kernel)(void**);
static void** kernel_arguments;

static void resume(int thread) {
    current = thread, threadIdx.x = thread;
    _longjmp(threads[thread].here, 1);
}
// Go on with the next thread that can; or behind the block, when all have ended.
static void give_way() {
    const int num_warps = num_threads / 32;
    const unsigned later = ready[current / 32] & ~0u << current % 32 << 1;
    if (later) resume(current / 32 * 32 + __builtin_ctz(later));
    for (int i = 1; i <= num_warps; i++) {
        const int warp = (current / 32 + i) % num_warps;
        if (ready[warp]) resume(warp * 32 + __builtin_ctz(ready[warp]));
    }
    if (block.alive) fprintf(stderr, "the threads of a block wait for one another\n"), abort();
    _longjmp(after_block, 1);
}
static void open_if_all_wait(Gate& gate) {
    if (gate.waiting < gate.alive) return;
    gate.waiting = 0;
    for (int warp = gate.first_warp; warp < gate.first_warp + gate.num_warps; warp++)
        ready[warp] |= gate.waits[warp], gate.waits[warp] = 0;
}
static void wait_at(Gate& gate) {
    const int warp = current / 32;
    const unsigned bit = 1u << current % 32;
    gate.waiting++, gate.waits[warp] |= bit, ready[warp] &= ~bit;
    open_if_all_wait(gate);
    if (!(ready[warp] & bit) && !_setjmp(threads[current].here)) give_way();
}
// One block after another; it keeps its stack between them, since to make one takes longer than most kernels.
static void start_thread() {
    if (!_setjmp(threads[current].begin)) swapcontext(&started, &starter);
    run_kernel(kernel_arguments);
    ready[current / 32] &= ~(1u << current % 32);
    Gate& warp = warps[current / 32].gate;
    warp.alive--, block.alive--;
    if (warp.alive) open_if_all_wait(warp);
    if (block.alive) open_if_all_wait(block);
    give_way();
}

static void make_stacks() {
    static char* stacks = (char*)malloc((size_t)MOST_THREADS * STACK_BYTES);
    for (; num_stacks < num_threads; num_stacks++) {
        current = num_stacks;
        getcontext(&started);
        started.uc_stack.ss_sp = stacks + (size_t)current * STACK_BYTES, started.uc_stack.ss_size = STACK_BYTES;
        makecontext(&started, start_thread, 0);
        swapcontext(&starter, &started);
    }
}

static void run_block() {
    const int num_warps = num_threads / 32;
    block = {num_threads, 0, 0, num_warps, {}};
    for (int i = 0; i < num_warps; i++) warps[i].gate = {32, 0, i, 1, {}}, ready[i] = ~0u;
    for (int i = 0; i < num_threads; i++) {
        memcpy(threads[i].here, threads[i].begin, sizeof(jmp_buf));
        threads[i].side = 0;
    }
    if (!_setjmp(after_block)) resume(0);
}

extern "C" void run_on_cpu(void (*kernel)(void**), void** arguments, int x, int y, int z, int threads_of_block) {
    run_kernel = kernel, kernel_arguments = arguments, num_threads = threads_of_block;
    make_stacks();
    gridDim = {(unsigned)x, (unsigned)y, (unsigned)z}, blockDim = {(unsigned)threads_of_block, 1, 1};
    for (blockIdx.z = 0; blockIdx.z < gridDim.z; blockIdx.z++)
        for (blockIdx.y = 0; blockIdx.y < gridDim.y; blockIdx.y++)
            for (blockIdx.x = 0; blockIdx.x < gridDim.x; blockIdx.x++) run_block();
}

static void __syncthreads() { wait_at(block); }
static void __syncwarp() { wait_at(warps[current / 32].gate); }
template <class T>
static T __shfl_sync(unsigned, T value, int lane) {
    Warp& warp = warps[current / 32];
    const int side = threads[current].side ^= 1;
    memcpy(&warp.values[side][current % 32], &value, sizeof(T));
    wait_at(warp.gate);
    memcpy(&value, &warp.values[side][lane], sizeof(T));
    return value;
}
template <class T>
static T __shfl_xor_sync(unsigned mask, T value, int by) {
    return __shfl_sync(mask, value, current % 32 ^ by);
}

// One thread runs at a time.
static unsigned atomicInc(unsigned* to, unsigned most) {
    const unsigned was = *to;
    *to = was >= most ? 0 : was + 1;
    return was;
}
static unsigned atomicAdd(unsigned* at, unsigned more) { return (*at += more) - more; }

template <class A, class B>
static std::common_type_t<A, B> min(A a, B b) {
    return a < b ? a : b;
}
template <class A, class B>
static std::common_type_t<A, B> max(A a, B b) {
    return a < b ? b : a;
}
template <class To, class From>
static To bits_as(From value) {
    To result;
    memcpy(&result, &value, sizeof(To));
    return result;
}
static float __uint_as_float(unsigned x) { return bits_as<float>(x); }
static float __int_as_float(int x) { return bits_as<float>(x); }
static int __float_as_int(float x) { return bits_as<int>(x); }
static unsigned __float_as_uint(float x) { return bits_as<unsigned>(x); }
static float half_to_float(unsigned short x) { return (float)bits_as<_Float16>(x); }
static unsigned short float_to_half(float x) { return bits_as<unsigned short>((_Float16)x); }
static float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
static float __fmul_rn(float a, float b) { return a * b; }
static float __fadd_rn(float a, float b) { return a + b; }
static float __fsub_rn(float a, float b) { return a - b; }
static float __fdiv_rn(float a, float b) { return a / b; }
#define __expf expf
static float rsqrtf(float x) { return 1.0f / sqrtf(x); }
static unsigned __umulhi(unsigned a, unsigned b) { return (unsigned long long)a * b >> 32; }
static size_t __cvta_generic_to_shared(const void* p) { return (size_t)p; }
