"""What each part of a product of many rows takes: the kernel of cuda/prompts.cu as it is, and without that part.

`python -m benchmarks.product_parts [--rows 32 64]` prints a Markdown table for the matrix of gate and up of
Qwen3.5-27B: microseconds by tile. A part whose absence makes no difference waits for another one. The results are wrong
without it, and nothing reads them.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import ClassVar

import torch

from benchmarks.deadline import Deadline, add_limit
from benchmarks.figures import Figures, add_results
from benchmarks.row_products import DTYPE, FORMAT, SHAPES, cell, make_matrix, num_matrices, tile_of
from core.worker.kernels import packed_prefill
from core.worker.kernels.nvrtc import compiled
from core.worker.kernels.packed_prefill import PrefillKernels, prefill_kernels_for, tile_rows_of
from core.worker.plan_load import use_capturable_stream

INPUTS, OUTPUTS = SHAPES["27B"]["gate and up"]
LABELS = ("many outputs", "few outputs", "two tiles of rows")
ROWS = (32, 64, 2048)
# What is left out, as a pattern of the source and what stands in its place.
DEQUANTIZING = {
    r"centered_codes\(words \+ step \* OPERAND_WORDS % 4, less, to\);": "to[0] = words[step * OPERAND_WORDS % 4];",
    r"to\[0\] = times\(to\[0\], even\), to\[2\] = times\(to\[2\], even\);": "to[2] = to[0];",
    r"to\[1\] = times\(to\[1\], odd\), to\[3\] = times\(to\[3\], odd\);": "to[1] = even ^ less.even, to[3] = odd;",
}
# The sums are stored, so that a compiler has to make the operands.
TENSOR_CORES = {
    r"\bwgmma\(sum\[n\]\[m\], a\[step\]\[m\], [^;]*;": "sum[n][m][step % 4] += __uint_as_float("
    "a[step][m][0] ^ a[step][m][1] ^ a[step][m][2] ^ a[step][m][3]);"
}
CODES = {r"cp_async_16\(&room\.(codes|scales|zeros)\[to\][^;]*;": ";"}
ROW_TILES = {
    r"num_row_tiles \* TURN \* X_TILE \* 2\);": "0);",
    r"cp_async_bulk\(room\.x[^;]*;": ";",
}
EXCHANGE = {
    r"while \(!ld_acquire\(of_others \+ other \* CLUSTER\)\)": "while (false)",
    r"for \(int other = 0; other < others;": "for (int other = others; other < others;",
}
WITHOUT: dict[str, Mapping[str, str]] = {
    "whole": {},
    "without dequantizing": DEQUANTIZING,
    "without tensor cores": TENSOR_CORES,
    "without the copies of codes": CODES,
    "without the copies of rows": ROW_TILES,
    "without the others' partial sums": EXCHANGE,
    "copies alone": DEQUANTIZING | TENSOR_CORES,
    "tensor cores alone": DEQUANTIZING | CODES | ROW_TILES,
    "dequantizing alone": TENSOR_CORES | CODES | ROW_TILES,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="*", default=list(ROWS))
    add_results(parser)
    add_limit(parser)
    options = parser.parse_args()
    deadline = Deadline.after(options.limit_s)
    use_capturable_stream(torch.device("cuda", 0))
    with torch.inference_mode():
        matrices = [make_matrix(INPUTS, OUTPUTS) for _ in range(num_matrices(INPUTS * OUTPUTS * FORMAT.bits / 8))]
        for rows in options.rows:
            compile_ahead(rows)
            labels = [label for label in LABELS if has_tile(label, rows)]
            table = Figures(f"Parts of a product of {rows} rows, µs", options.results)
            print(f"\n{table.table}\n\n| | {' | '.join(labels)} |\n|---{'|---' * len(labels)}|", flush=True)
            for name, parts in WITHOUT.items():
                with left_out(parts):
                    cells = [cell(label, matrices, rows, table, deadline, name) for label in labels]
                print(f"| {name} | {' | '.join(cells)} |", flush=True)


def has_tile(label: str, rows: int) -> bool:
    try:
        return tile_of(label, rows) is not None
    except KeyError:
        return False


class Noted:
    """In place of nvrtc.CudaModule: what it is to compile is noted alone."""

    asked: ClassVar[list[tuple[str, Mapping[str, str | int]]]] = []

    def __init__(self, source: str, defines: Mapping[str, str | int], device: torch.device) -> None:
        self.asked.append((source, defines))

    def kernel(self, name: str, shared_bytes: int = 0) -> None:
        return None


def compile_ahead(rows: int) -> None:
    """Compile all that is measured for so many rows at once: one after the other it takes minutes."""
    device, tile_rows, module = torch.device("cuda", 0), tile_rows_of(rows), packed_prefill.CudaModule
    Noted.asked.clear()
    packed_prefill.CudaModule = Noted  # type: ignore[misc, assignment]
    for parts in WITHOUT.values():
        with left_out(parts):
            PrefillKernels(DTYPE, FORMAT, tile_rows, device)
    packed_prefill.CudaModule = module  # type: ignore[misc]
    capability = torch.cuda.get_device_capability(device)
    with ThreadPoolExecutor() as threads:
        list(threads.map(lambda one: compiled(one[0], one[1], capability), Noted.asked))


@contextmanager
def left_out(parts: Mapping[str, str]) -> Iterator[None]:
    """Inside the `with` block the kernels are made without `parts`."""
    read = packed_prefill.read_source
    packed_prefill.read_source = lambda *names, **made: without(parts, read(*names, **made))
    prefill_kernels_for.cache_clear()
    try:
        yield
    finally:
        packed_prefill.read_source = read
        prefill_kernels_for.cache_clear()


def without(parts: Mapping[str, str], source: str) -> str:
    """Raises AssertionError for a part that the source does not have."""
    for pattern, instead in parts.items():
        assert re.search(pattern, source), pattern
        source = re.sub(pattern, instead, source)
    return source


if __name__ == "__main__":
    main()
