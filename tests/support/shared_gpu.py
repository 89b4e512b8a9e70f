"""A program on a GPU that others have as well: `python -m tests.support.shared_gpu SECONDS` multiplies 32 rows for so
long, as the steps of many chats do."""

from __future__ import annotations

import sys
import time

import torch

from core.worker.kernels.packed_prefill import FusedDequantGemm
from core.worker.kernels.packing import CodeFormat
from tests.support.random_matrix import make_matrix

DEVICE = torch.device("cuda:0")
ROWS, REPEATS = 32, 100
# Of Qwen3.5-27B: the matrix of gate and up, and down's.
SHAPES = [(5120, 34816), (17408, 5120)]


def main() -> None:
    end_s = time.monotonic() + float(sys.argv[1])
    random, format = torch.Generator(DEVICE).manual_seed(1), CodeFormat(4, 128, False)
    gemm = FusedDequantGemm(torch.bfloat16, format, DEVICE)
    pairs = [
        (make_matrix(*shape, torch.bfloat16, format, False, random),
         torch.randn((ROWS, shape[0]), device=DEVICE, generator=random).bfloat16())
        for shape in SHAPES
    ]  # fmt: skip

    def multiply() -> None:
        for matrix, x in pairs:
            gemm.multiply(matrix, x, None)

    multiply()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(REPEATS):
            multiply()
    while time.monotonic() < end_s:
        graph.replay()
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
