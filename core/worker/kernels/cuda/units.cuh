// How a warp that multiplies a few rows reads a tile of codes (core/worker/kernels/packing.py): a unit of K blocks at a
// time. GROUP_SIZE_32: how many times 32 inputs share a scale (0: all inputs do).

// How many K blocks (64 inputs) a stage brings: of 4 bit a scale group, at least one; of 8 bit one, which is as many
// bytes. HALVES_PER_GROUP: of 32 inputs, for one scale.
#define UNIT (BITS == 4 && GROUP_SIZE_32 > 2 ? GROUP_SIZE_32 / 2 : 1)
#define HALVES_PER_GROUP (2 * UNIT / SCALES)
#if GROUP_SIZE_32
#define UNITS_PER_GROUP (GROUP_SIZE_32 > 2 * UNIT ? GROUP_SIZE_32 / (2 * UNIT) : 1)
#define GROUP_OF(unit) ((unit) / UNITS_PER_GROUP * SCALES)
#else
#define GROUP_OF(unit) 0
#endif
// How many inputs' products are added before the sum is scaled.
#define INPUTS_PER_GROUP (HALVES_PER_GROUP * 32)
