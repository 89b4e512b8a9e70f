"""Units of memory, and how torch's allocator rounds (c10/cuda/CUDACachingAllocator)."""

MIB = 2**20
HALF_BYTES = 2
FLOAT_BYTES = 4
INT_BYTES = 4
# kMinBlockSize: every allocation takes a multiple of it.
BLOCK_BYTES = 512
# Expandable segments grow by this much; those of small blocks by less.
SEGMENT_BYTES = 20 * MIB
SMALL_SEGMENT_BYTES = 2 * MIB


def round_to_block(num_bytes: int) -> int:
    """`num_bytes` rounded up to the allocator's blocks."""
    return -(-num_bytes // BLOCK_BYTES) * BLOCK_BYTES
