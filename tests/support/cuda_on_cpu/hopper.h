// What stands in for hopper.cuh and warpgroup_products.cuh on a CPU: barriers that a thread waits at by giving way, copies
// that are there at once, and wgmma as PTX defines it, number by number.

static void yield_thread() {
    if (!_setjmp(threads[current].here)) give_way();
}
// `waiting`: how many of a phase are still to arrive; `count`: of each phase; `phase`: of the one under way.
struct Arrivals {
    short waiting, count;
    int phase;
};
static void mbarrier_init(i64* barrier, int count) { *(Arrivals*)barrier = {(short)count, (short)count, 0}; }
static void mbarrier_arrive(i64* barrier) {
    Arrivals& all = *(Arrivals*)barrier;
    if (--all.waiting == 0) all.waiting = all.count, all.phase ^= 1;
}
// Until the phase of that parity has ended.
static void mbarrier_wait(i64* barrier, int parity) {
    while (((Arrivals*)barrier)->phase == parity) yield_thread();
}
static void copies_commit() {}
template <int MOST>
static void copies_wait() {}
static void async_fence() {}
template <int COUNT>
static void set_registers_less() {}
template <int COUNT>
static void set_registers_more() {}
static float exp2_fast(float x) { return exp2f(x); }
static void copy_now(bool is_there, void* to, const void* from) {
    *(uint4*)to = is_there ? *(const uint4*)from : make_uint4(0, 0, 0, 0);
}
#define cp_async_16_zfill copy_now

static void named_barrier_sync(int barrier, int count) {
    static int arrived[16], turns[16];
    const int turn = turns[barrier];
    if (++arrived[barrier] == count) arrived[barrier] = 0, turns[barrier]++;
    while (turns[barrier] == turn) yield_thread();
}

static void wgmma_fence() {}
static void wgmma_commit() {}
template <int MOST>
static void wgmma_wait() {}
// Addresses as they are, in units of 16 bytes. `slice_bytes` is the same for all that are turned.
static int turned_slice_bytes;
static unsigned long long wgmma_descriptor(const void* p) { return (unsigned long long)p >> 4; }
static unsigned long long turned_descriptor(const void* p, int slice_bytes) {
    turned_slice_bytes = slice_bytes;
    return wgmma_descriptor(p);
}
// A number `bytes` behind what a descriptor says; 16 bytes lie where the 128 bytes that they are in, of eight, say.
static float number_at(unsigned long long descriptor, int bytes) {
    unsigned long long at = (descriptor << 4) + bytes;
    at ^= at >> 3 & 0x70;
    return to_float(*(u16*)at);
}
static float in_rows(unsigned long long descriptor, int row, int place) {
    return number_at(descriptor, row / 8 * 1024 + row % 8 * 128 + place * 2);
}
static float in_turned(unsigned long long descriptor, int input, int output) {
    return number_at(descriptor, output / 64 * turned_slice_bytes + input / 8 * 1024 + input % 8 * 128 + output % 64 * 2);
}
// The row and the column of a thread's sum c[i].
static int row_of_sum(int i) { return threadIdx.x % 128 / 32 * 16 + threadIdx.x % 32 / 4 + i / 2 % 2 * 8; }
static int column_of_sum(int i) { return i / 4 * 8 + threadIdx.x % 4 * 2 + i % 2; }

template <int N>
static void wgmma_rows(float* c, unsigned long long of, unsigned long long with, bool adds) {
    for (int i = 0; i < N / 2; i++) {
        float sum = adds ? c[i] : 0.0f;
        for (int k = 0; k < 16; k++) sum += in_rows(of, row_of_sum(i), k) * in_rows(with, column_of_sum(i), k);
        c[i] = sum;
    }
}
template <int N>
static void wgmma_turned(float* c, const u32* a, unsigned long long with) {
    // Of each warpgroup, what its threads give: rows g and g+8 of pairs t, then of pairs t + 4.
    static float given[8][64][16];
    const int warpgroup = threadIdx.x / 128, t = threadIdx.x % 4;
    for (int i = 0; i < 4; i++)
        for (int j = 0; j < 2; j++)
            given[warpgroup][row_of_sum(i % 2 * 2)][i / 2 * 8 + t * 2 + j] = j ? high(a[i]) : low(a[i]);
    named_barrier_sync(8 + warpgroup, 128);
    for (int i = 0; i < N / 2; i++)
        for (int k = 0; k < 16; k++)
            c[i] += given[warpgroup][row_of_sum(i)][k] * in_turned(with, k, column_of_sum(i));
    named_barrier_sync(8 + warpgroup, 128);
}
