// Instructions of compute capability 9.0 on: mbarriers that copies complete, and shared memory of a cluster's other
// blocks; and the operands of wgmma, which only 9.0 has.

__device__ __forceinline__ void mbarrier_init(i64* barrier, int count) {
    asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(smem_address(barrier)), "r"(count) : "memory");
}
__device__ __forceinline__ void mbarrier_wait(i64* barrier, int parity) {
    u32 done;
    do {
        asm volatile("{\n.reg .pred p;\nmbarrier.try_wait.parity.shared.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}"
                     : "=r"(done)
                     : "r"(smem_address(barrier)), "r"(parity)
                     : "memory");
    } while (!done);
}
__device__ __forceinline__ void mbarrier_arrive(i64* barrier) {
    asm volatile("mbarrier.arrive.shared.b64 _, [%0];" ::"r"(smem_address(barrier)) : "memory");
}

// A phase of an mbarrier ends once the copies have arrived as well: `count` bytes of bulk copies, or all cp_async_16
// that the thread issued before.
__device__ __forceinline__ void mbarrier_expect_bytes(i64* barrier, int count) {
    asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(smem_address(barrier)), "r"(count)
                 : "memory");
}
__device__ __forceinline__ void cp_async_bulk(void* to, const void* from, int count, i64* barrier) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                     smem_address(to)),
                 "l"(from), "r"(count), "r"(smem_address(barrier))
                 : "memory");
}
__device__ __forceinline__ void mbarrier_arrive_on_copies(i64* barrier) {
    asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(smem_address(barrier)) : "memory");
}

// Copies of cp_async_16 in groups: all but the last MOST groups that the thread asked for are there.
__device__ __forceinline__ void copies_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int MOST>
__device__ __forceinline__ void copies_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(MOST) : "memory");
}
// What the thread wrote to shared memory is there for wgmma.
__device__ __forceinline__ void async_fence() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// A warpgroup gives registers back, or takes more: COUNT for each thread.
template <int COUNT>
__device__ __forceinline__ void set_registers_less() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COUNT));
}
template <int COUNT>
__device__ __forceinline__ void set_registers_more() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COUNT));
}

// 2^x, 0 where that is no normal number.
__device__ __forceinline__ float exp2_fast(float x) {
    float r;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
    return r;
}

// `threads` of a block wait for one another at a named barrier.
__device__ __forceinline__ void named_barrier_sync(int barrier, int threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

// A number that blocks exchange: what the writer wrote before it is visible to a reader that sees it.
__device__ __forceinline__ void st_release(u32* to, u32 what) {
    asm volatile("st.release.gpu.u32 [%0], %1;" ::"l"(to), "r"(what) : "memory");
}
__device__ __forceinline__ u32 ld_acquire(const u32* from) {
    u32 what;
    asm volatile("ld.acquire.gpu.u32 %0, [%1];" : "=r"(what) : "l"(from) : "memory");
    return what;
}

// The same copy into the shared memory of each block of a cluster whose bit is in `ranks`, and for its own barrier there.
__device__ __forceinline__ void cp_async_bulk_multicast(void* to, const void* from, int count, i64* barrier, u16 ranks) {
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1], %2, [%3], %4;" ::
            "r"(smem_address(to)),
        "l"(from), "r"(count), "r"(smem_address(barrier)), "h"(ranks)
        : "memory");
}
__device__ __forceinline__ void mbarrier_arrive_in_cluster(i64* barrier, int rank) {
    u32 at;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(at) : "r"(smem_address(barrier)), "r"(rank));
    asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(at) : "memory");
}
__device__ __forceinline__ void cluster_sync() {
    asm volatile("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;" ::: "memory");
}
__device__ __forceinline__ float ld_cluster(int rank, const float& own) {
    u32 at;
    float v;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(at) : "r"(smem_address(&own)), "r"(rank));
    asm volatile("ld.shared::cluster.f32 %0, [%1];" : "=f"(v) : "r"(at) : "memory");
    return v;
}

// The descriptor of a wgmma operand in shared memory: address in units of 16 bytes, 1024 bytes from 8 rows to the next
// 8, rows of 128 bytes, swizzled by 128 bytes.
__device__ __forceinline__ unsigned long long wgmma_descriptor(const void* p) {
    return (smem_address(p) & 0x3ffff) >> 4 | 1ull << 16 | 64ull << 32 | 1ull << 62;
}

// 16 of a thread's sums, as operands of asm.
#define F4(i) "+f"(c[i]), "+f"(c[i + 1]), "+f"(c[i + 2]), "+f"(c[i + 3])
#define F16(i) F4(i), F4(i + 4), F4(i + 8), F4(i + 12)
#if BF16
#define WGMMA_TYPES "f32.bf16.bf16 "
#else
#define WGMMA_TYPES "f32.f16.f16 "
#endif
