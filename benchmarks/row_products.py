"""How fast products of rows with a quantized matrix are, alone: those for few rows beside those for many.

`python -m benchmarks.row_products [--shape 27B] [--rows 32 64]` prints a Markdown table for each matrix: microseconds
by rows for the kernels of core/worker/kernels/packed_small_batch.py, for those of packed_prefill.py and for each of
their tiles, and for a half-precision matrix of the same size in cuBLAS; beside them the time in which memory brings the
codes. Matrices run one after the other in a CUDA graph, as many as no cache of the GPU holds.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from typing import Any

import torch

from benchmarks.copy_speed import gpu_speed
from benchmarks.deadline import Deadline, add_limit
from benchmarks.expert_speed import groups_of, time_of
from benchmarks.figures import Figures, add_results
from core.common.errors import DeckError
from core.memory.kernels.llamadeck import PREFILL_TILE_ROWS
from core.worker.kernels.packed_prefill import (
    ONE_ROW_TILES,
    TWO_ROW_TILES,
    FusedDequantGemm,
    PrefillTile,
    tile_rows_of,
)
from core.worker.kernels.packed_small_batch import MAX_SMALL_BATCH, kernels_for
from core.worker.kernels.packing import K_BLOCK, TILE, CodeFormat, PackedMatrix
from core.worker.plan_load import use_capturable_stream

# Inputs and outputs of each matrix.
SHAPES = {
    "7B": {"qkv": (4096, 12288), "out": (4096, 4096), "gate and up": (4096, 22016), "down": (11008, 4096)},
    "27B": {"first": (5120, 16384), "out": (6144, 5120), "gate and up": (5120, 34816), "down": (17408, 5120)},
}
ROWS = (16, 32, 64, 128, 512, 2048)
DTYPE, FORMAT = torch.float16, CodeFormat(4, 128, False)
LEAST_BYTES, MOST_MATRICES = 1 << 28, 12
LABELS = ("few rows", "many rows", "many outputs", "few outputs", "two tiles of rows", "cuBLAS, half precision")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, nargs="*", default=list(SHAPES))
    parser.add_argument("--rows", type=int, nargs="*", default=list(ROWS))
    add_results(parser)
    add_limit(parser)
    options = parser.parse_args()
    deadline, device, copied = Deadline.after(options.limit_s), torch.device("cuda", 0), gpu_speed()
    use_capturable_stream(device)
    with torch.inference_mode():
        for shape in options.shape:
            for name, (inputs, outputs) in SHAPES[shape].items():
                num_bytes = inputs * outputs * (FORMAT.bits / 8 + 2 / FORMAT.group_size)
                title = f"{shape}, {name}: µs; {num_bytes / copied * 1e6:.1f} to bring the codes"
                table = Figures(f"Products by rows: {title}", options.results)
                print(f"\n{title}\n\n| rows | {' | '.join(map(str, options.rows))} |")
                print("|---" * (len(options.rows) + 1) + "|", flush=True)
                matrices = [make_matrix(inputs, outputs) for _ in range(num_matrices(num_bytes))]
                for label in LABELS:
                    cells = [cell(label, matrices, rows, table, deadline) for rows in options.rows]
                    print(f"| {label} | {' | '.join(cells)} |", flush=True)


def num_matrices(num_bytes: float) -> int:
    return min(MOST_MATRICES, max(2, -int(-LEAST_BYTES // num_bytes)))


def make_matrix(inputs: int, outputs: int) -> PackedMatrix:
    codes = torch.randint(-(2**31), 2**31 - 1, (outputs // TILE, inputs // K_BLOCK, FORMAT.pieces, 32, 4),
                          dtype=torch.int32, device="cuda")  # fmt: skip
    scales = torch.rand((outputs // TILE, groups_of(FORMAT, inputs), 8, 2), device="cuda").to(DTYPE) / inputs
    return PackedMatrix(codes, scales, None, None)


def tile_of(label: str, rows: int) -> PrefillTile | None:
    """The tile that `label` stands for with so many rows; None: the one that is chosen. Raises KeyError where there is
    none."""
    if label == "many rows":
        return None
    if label == "two tiles of rows":
        if rows <= PREFILL_TILE_ROWS:
            raise KeyError(label)
        return TWO_ROW_TILES
    return ONE_ROW_TILES[tile_rows_of(rows)][int(label == "few outputs")]


def cell(
    label: str, matrices: list[PackedMatrix], rows: int, table: Figures, deadline: Deadline, of: str | None = None
) -> str:
    """Microseconds of one product; `of`: the row of the table, if it is not `label`, which is a column then."""
    row, column = (of, label) if of else (label, str(rows))
    try:
        deadline.require()
        seconds = time_of(run_of(label, matrices, rows)) / len(matrices)
    except (KeyError, DeckError, RuntimeError, AssertionError) as error:
        table.fail(row, column, str(error).partition("\n")[0][:200])
        return "–"
    table.add(row, column, seconds * 1e6)
    return f"{seconds * 1e6:.1f}"


def run_of(label: str, matrices: list[PackedMatrix], rows: int) -> Callable[[], None]:
    """What multiplies each of `matrices` once."""
    device = torch.device("cuda", 0)
    x = torch.randn((rows, matrices[0].inputs), device=device).to(DTYPE)
    if label == "few rows":
        if rows > MAX_SMALL_BATCH:
            raise KeyError(label)
        small = kernels_for(DTYPE, FORMAT, device)
        return lambda: for_each(matrices, lambda one: small.multiply(one, x))
    if label.startswith("cuBLAS"):
        # Drawn: tensor cores are faster with zeros, which take less of the card's power.
        plain = [torch.randn((one.outputs, one.inputs), dtype=DTYPE, device=device) for one in matrices[:3]]
        return lambda: for_each(range(len(matrices)), lambda place: x @ plain[place % len(plain)].t())
    gemm, tile = FusedDequantGemm(DTYPE, FORMAT, device), tile_of(label, rows)
    swizzled = gemm.permute_rows(matrices[0], x)
    return lambda: for_each(matrices, lambda one: gemm.multiply_swizzled(one, swizzled, rows, None, tile=tile))


def for_each(of: Iterable[Any], run: Callable[[Any], object]) -> None:
    for one in of:
        run(one)


if __name__ == "__main__":
    main()
