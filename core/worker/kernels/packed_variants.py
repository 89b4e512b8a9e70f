"""The compiled variants of the small-batch products, and which of them multiplies how many rows of which matrix."""

from __future__ import annotations

from dataclasses import dataclass

from core.worker.kernels.packing import TILE, CodeFormat

EPILOGUES = ("none", "residual", "swiglu")
# MAX_NORMED: longest row (elements) whose RMS-normed copy a block keeps in shared memory. MAX_GROUP_SUMS: most
# scale-group sums kept there for a row that is not normed.
MAX_NORMED = 8192
MAX_GROUP_SUMS = 1024


@dataclass(frozen=True, slots=True)
class Variant:
    """A product of up to 8 * `row_tiles` rows. A warp computes `tiles` tiles of outputs at once, with `stages` loads of
    their weights in flight. `blocks`: the least blocks of 8 warps on a multiprocessor; of 16 warps half as many.
    `normed`: RMSNorm first."""

    row_tiles: int
    tiles: int
    stages: int
    blocks: int
    normed: bool = False


# Found by trying on an H200 and an H100.
VARIANTS = {
    "narrow": Variant(1, 1, 4, 4),
    # Many tiles: two share the inputs.
    "wide": Variant(1, 2, 2, 3),
    # Each tile reads several rows again, so two tiles share them even where tiles are few; with more loads in flight.
    "deep": Variant(1, 2, 3, 2),
    # One row, through RMSNorm first.
    "normed_narrow": Variant(1, 1, 4, 4, normed=True),
    "normed_wide": Variant(1, 2, 2, 3, normed=True),
    "rows16": Variant(2, 2, 3, 2),
    # More tiles share the rows, which every turn reads again, where enough turns are left for all blocks.
    "rows32": Variant(4, 2, 3, 1),
    "rows32_3": Variant(4, 3, 3, 1),
    "rows32_4": Variant(4, 4, 3, 1),
}
# More tiles than these for each multiprocessor count as many: for one row, and for more rows.
MANY_TILES_OF_ONE, MANY_TILES = 2, 4
# From so many inputs on, 8 warps take too long for one row.
LONG_INPUTS = 5120
# The variants for one row; they exist with 16 warps too.
SINGLE_ROW_VARIANTS = ("narrow", "wide", "normed_narrow", "normed_wide")
# The most shared memory that one of those takes with 16 warps.
SHARED_BYTES_16 = 160_000
# Where one is larger (bytes a tile), as of 8 bit with groups of 32 and zeros, GPUs that have 99 KiB have no room for
# three and the sums of 16 rows.
LARGE_STAGE_BYTES = 1280


def has_many_tiles(tiles: int, rows: int, multiprocessors: int) -> bool:
    return tiles > (MANY_TILES_OF_ONE if rows == 1 else MANY_TILES) * multiprocessors


def choose_warps(tiles: int, inputs: int, rows: int, multiprocessors: int) -> int:
    """How many warps share a tile's inputs: 16 for one row, where inputs are many or tiles few. Two blocks of 8 warps
    multiply several rows faster."""
    return 16 if rows == 1 and (inputs >= LONG_INPUTS or tiles <= MANY_TILES * multiprocessors) else 8


def choose_variants(rows: int, is_wide: bool, epilogue: str) -> tuple[str, ...]:
    """The variants for `rows` <= 32 of a matrix with many tiles (`is_wide`) or few. SwiGLU needs an even number of
    tiles: a gate's tile comes with its partner."""
    if rows > 16:
        return ("rows32", "rows32_4") if epilogue == "swiglu" else ("rows32", "rows32_3", "rows32_4")
    if rows > 8:
        return ("rows16",)
    if epilogue == "swiglu" or is_wide:
        return ("wide",)
    return ("deep",) if rows > 1 else ("narrow",)


def bytes_per_input(variant: Variant, tiles: int, most_blocks: int, bits: int) -> int:
    """Bytes that the busiest of `most_blocks` thread blocks reads for an input: in each turn the rows, and the codes of
    its tiles."""
    turns = -(-tiles // (variant.tiles * most_blocks))
    return turns * (variant.row_tiles * 8 * 2 + variant.tiles * TILE * bits // 8)


def stage_bytes(format: CodeFormat) -> int:
    """Bytes of a tile that one load brings for a warp."""
    return format.stage_blocks * format.pieces * 512 + format.scales_per_block * 128 * (1 + format.has_zeros)


def stages_of(variant: Variant, warps: int, format: CodeFormat) -> int:
    """Loads in flight for each warp: 16 warps need fewer, unless they are few already."""
    if variant.stages == 3 and stage_bytes(format) > LARGE_STAGE_BYTES:
        return 2
    return 3 if warps == 16 and variant.stages == 4 else variant.stages


def shared_bytes(variant: Variant, warps: int, format: CodeFormat) -> int:
    """Bytes of a block's shared memory: the weights in flight, and one or two sets of sums (cuda/matrices.cu)."""
    in_flight = stages_of(variant, warps, format) * variant.tiles * stage_bytes(format)
    is_single_row = variant.normed or warps == 16
    each = (1 if is_single_row else variant.row_tiles * 8) * variant.tiles * TILE
    sums = warps * each * 4 * (1 if each > 512 else 2)
    num_groups = MAX_NORMED // format.inputs_per_group if variant.normed else MAX_GROUP_SUMS
    accumulators = 16 * num_groups if is_single_row else 0
    return warps * in_flight + sums + accumulators + (MAX_NORMED * 2 if variant.normed else 0)
