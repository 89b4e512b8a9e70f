// Halves of rows between two cards, which write into each other's memory. `full` [2][rows][columns] has what a card computed
// in its half of the columns, and gets the other half. VERIFY: a card sends the count of its exchanges and looks whether
// what arrives is the same count.
//
// Exchanges are counted, by each block for itself, and odd ones have another place than even ones. A card writes into a
// place again once it has heard of the exchange between. The other card began that one after it had read the place. So
// nothing is ever reset, and no card waits for the other to have read.

typedef unsigned long long u64;

// Turns of waiting, less than a second; then a card tells of it and waits no more, since it must not hang.
#define MOST_TURNS (1 << 20)
enum { LOST = 1, WRONG = 2 };
// Flags lie a line of memory apart.
#define FLAG_STEP 32

// Release and acquire reach over both cards (.sys). What a block's other threads wrote before a barrier is released too.
__device__ __forceinline__ void store_release(u32* to, u32 value) {
    asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(to), "r"(value) : "memory");
}
__device__ __forceinline__ u32 load_acquire(const u32* from) {
    u32 value;
    asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(value) : "l"(from) : "memory");
    return value;
}
// Each of both words comes whole, whatever the other does.
__device__ __forceinline__ void store_words(u64* to, u64 first, u64 second) {
    asm volatile("st.relaxed.sys.global.v2.u64 [%0], {%1, %2};" ::"l"(to), "l"(first), "l"(second) : "memory");
}
__device__ __forceinline__ void load_words(const u64* from, u64& first, u64& second) {
    asm volatile("ld.relaxed.sys.global.v2.u64 {%0, %1}, [%2];" : "=l"(first), "=l"(second) : "l"(from) : "memory");
}

// The piece of 8 values with the number `piece` among those of the half of `card`.
__device__ __forceinline__ i64 place_of(int piece, int columns, int card) {
    const int pieces = columns / 16;
    return (i64)(piece / pieces) * columns + card * (columns / 2) + piece % pieces * 8;
}

__device__ __forceinline__ uint4 sent(const u16* from, u32 count) {
#if VERIFY
    return make_uint4(count, count, count, count);
#else
    return *(const uint4*)from;
#endif
}

__device__ __forceinline__ void look_at(uint4 arrived, u32 count, u32* fault) {
#if VERIFY
    if (arrived.x != count || arrived.y != count || arrived.z != count || arrived.w != count) atomicOr(fault, WRONG);
#endif
}

// A flag for each block tells that its part has arrived.
extern "C" __global__ void exchange_by_flags(u16* full, u16* others_full, u32* flags, u32* others_flags, u32* counts,
                                             u32* fault, int rows, int columns, int card) {
    pdl_wait();
    pdl_trigger();
    const u32 count = counts[blockIdx.x] + 1;
    const bool is_lost = *(volatile u32*)fault & LOST;
    const i64 place = (i64)(count % 2) * rows * columns;
    const int pieces = rows * (columns / 16), step = gridDim.x * blockDim.x;
    const int first = blockIdx.x * blockDim.x + threadIdx.x;
    for (int i = first; i < pieces; i += step) {
        const i64 at = place + place_of(i, columns, card);
        *(uint4*)(others_full + at) = sent(full + at, count);
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        store_release(others_flags + blockIdx.x * FLAG_STEP, count);
        // The other card may be one exchange ahead.
        for (int turn = 0; !is_lost && (int)(load_acquire(flags + blockIdx.x * FLAG_STEP) - count) < 0; turn++)
            if (turn == MOST_TURNS) {
                atomicOr(fault, LOST);
                break;
            }
        counts[blockIdx.x] = count;
    }
    __syncthreads();
#if VERIFY
    for (int i = first; i < pieces; i += step)
        look_at(*(const uint4*)(full + place + place_of(i, columns, 1 - card)), count, fault);
#endif
}

// Four bytes at a time beside the count, in words that come whole: twice the bytes, and one way in place of two.
// words [2][pieces][4]: what arrives, before it is put into its place.
extern "C" __global__ void exchange_by_words(u16* full, u64* words, u64* others_words, u32* counts, u32* fault, int rows,
                                             int columns, int card) {
    pdl_wait();
    pdl_trigger();
    const u32 count = counts[blockIdx.x] + 1;
    const bool is_lost = *(volatile u32*)fault & LOST;
    const i64 place = (i64)(count % 2) * rows * columns;
    const int pieces = rows * (columns / 16), step = gridDim.x * blockDim.x;
    const int first = blockIdx.x * blockDim.x + threadIdx.x;
    const u64 mark = (u64)count << 32;
    words += (i64)(count % 2) * pieces * 4;
    others_words += (i64)(count % 2) * pieces * 4;
    for (int i = first; i < pieces; i += step) {
        const uint4 values = sent(full + place + place_of(i, columns, card), count);
        store_words(others_words + (i64)i * 4, mark | values.x, mark | values.y);
        store_words(others_words + (i64)i * 4 + 2, mark | values.z, mark | values.w);
    }
    for (int i = first; i < pieces; i += step) {
        u64 a, b, c, d;
        for (int turn = 0;; turn++) {
            load_words(words + (i64)i * 4, a, b);
            load_words(words + (i64)i * 4 + 2, c, d);
            if (is_lost || (a >> 32 == count && b >> 32 == count && c >> 32 == count && d >> 32 == count)) break;
            if (turn == MOST_TURNS) {
                atomicOr(fault, LOST);
                break;
            }
        }
        const uint4 arrived = make_uint4((u32)a, (u32)b, (u32)c, (u32)d);
        *(uint4*)(full + place + place_of(i, columns, 1 - card)) = arrived;
        look_at(arrived, count, fault);
    }
    __syncthreads();
    if (threadIdx.x == 0) counts[blockIdx.x] = count;
}
