// A product of one row that computes t = weight * A x (low_rank.cuh) itself: its first blocks share the values of t and
// tell all others, so that no kernel comes before it.

typedef unsigned long long u64;

// What the product of one row needs to compute t itself: each value of it by one of its blocks, which tells all.
struct LowRankDown {
    const u16 *a0, *a1, *a2;  // of each matrix: [columns][inputs], the adapters of all places one after the other
    const float* weights;     // by slot
    const int* x_places;      // where each of the model's inputs lies in x, null: in order
    u64* told;                // [parts * rank]: a value of t, and the tag of who told it; null: t is computed already
    const int* passes;        // how many passes of one row there have been
    int launch;               // how many products of this pass came before
    // How many blocks tell values. All wait for these: so no more than run at once wherever there is room for a block of
    // each multiprocessor. A GPU starts blocks in their order.
    int tellers;

    // No other launch has it but one 2^20 passes before, whose values have been told anew since.
    __device__ __forceinline__ u32 tag() const {
        int pass;
        asm volatile("ld.relaxed.gpu.u32 %0, [%1];" : "=r"(pass) : "l"(passes) : "memory");
        return (u32)pass << 12 | (u32)launch;
    }

    __device__ __forceinline__ const u16* row(int place, int rank, int dot, int size) const {
        const int part = dot / rank;
        const u16* a = part == 0 ? a0 : part == 1 ? a1 : a2;
        return a + (i64)(place * rank + dot % rank) * size;
    }

    __device__ __forceinline__ void tell(int dot, float value, u32 tag) const {
        asm volatile("st.relaxed.gpu.u64 [%0], %1;" ::"l"(told + dot), "l"((u64)tag << 32 | __float_as_uint(value))
                     : "memory");
    }

    __device__ __forceinline__ float hear(int dot, u32 tag) const {
        u64 found;
        do {
            asm volatile("ld.relaxed.gpu.u64 %0, [%1];" : "=l"(found) : "l"(told + dot) : "memory");
        } while ((u32)(found >> 32) != tag);
        return __uint_as_float((u32)found);
    }
};

// What sums a dot product, in the order of low_rank.cu; and how much of A a thread asks for before x is there.
#define DOWN_THREADS 256
#define EARLY_A 2

// The block's share of t: A x of its one row, `strength` times. early_a: the beginning of its first row of A. totals [8].
__device__ __forceinline__ void tell_low_rank(const LowRankDown& down, const u16* x, const int* x_places, int size,
                                              int place, int rank, int num_told, float strength,
                                              const uint4 (&early_a)[EARLY_A], u32 tag, float* totals) {
    if ((int)blockIdx.x >= down.tellers) return;
    for (int dot = blockIdx.x; dot < num_told; dot += min((int)gridDim.x, down.tellers)) {
        if (threadIdx.x < DOWN_THREADS) {
            const u16* a = down.row(place, rank, dot, size);
            float sum = 0.0f;
#pragma unroll
            for (int i = 0; i < EARLY_A; i++) {
                const int at = (i * DOWN_THREADS + threadIdx.x) * 8;
                if (at >= size) break;
                add_products(read_row_8(x, x_places, at), dot == blockIdx.x ? early_a[i] : *(const uint4*)(a + at), sum);
            }
            for (int at = (EARLY_A * DOWN_THREADS + threadIdx.x) * 8; at < size; at += DOWN_THREADS * 8)
                add_products(read_row_8(x, x_places, at), *(const uint4*)(a + at), sum);
            sum = warp_sum(sum);
            if (threadIdx.x % 32 == 0) totals[threadIdx.x / 32] = sum;
        }
        __syncthreads();
        if (threadIdx.x == 0) {
            float whole = 0.0f;
#pragma unroll
            for (int i = 0; i < DOWN_THREADS / 32; i++) whole += totals[i];
            down.tell(dot, strength * whole, tag);
        }
        __syncthreads();
    }
}
