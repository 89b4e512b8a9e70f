"""How fast products of some rows with unquantized matrices are, by our kernel and by cuBLAS.

`python -m benchmarks.dense_products [--rows 32 64]` prints a Markdown table, µs: our kernel after a norm and without,
cuBLAS after a norm and without, and the time in which memory brings the weights. Layers run one after the other in a
CUDA graph, as many as no cache of the GPU holds.
"""

from __future__ import annotations

import argparse

import torch

from benchmarks.copy_speed import gpu_speed
from benchmarks.expert_speed import time_of
from benchmarks.mixer_speed import layers_of
from core.memory.sizes import HALF_BYTES
from core.worker.kernels import step_ops
from core.worker.kernels.dense_small_batch import dense_kernels_for
from core.worker.kernels.fused_norm import FusedRmsNorm
from core.worker.plan_load import use_capturable_stream

DTYPE, EPS = torch.bfloat16, 1e-6
# The outputs of matrices that multiply the same rows, and their inputs.
SHAPES = {
    "Qwen3.5-27B, before the rule": ((10240, 6144, 48, 48), 5120),
    "its queries, keys and values": ((10240,), 5120),
    "its gates": ((6144,), 5120),
    "its betas and decays": ((48, 48), 5120),
    "after the rule": ((5120,), 6144),
    "Qwen3.5-35B-A3B, before the rule": ((8192, 4096, 32, 32), 2048),
    "after it": ((2048,), 4096),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="*", default=[32, 64])
    options = parser.parse_args()
    device, copied = torch.device("cuda", 0), gpu_speed()
    use_capturable_stream(device)
    print("| matrices | rows | ours, normed | ours | cuBLAS, normed | cuBLAS | memory |\n|---" + "|---:" * 6 + "|")
    with torch.inference_mode():
        for name, (outputs, inputs) in SHAPES.items():
            for rows in options.rows:
                times = " | ".join(f"{1e6 * one_s:.1f}" for one_s in measure(outputs, inputs, rows, device))
                memory_s = sum(outputs) * inputs * HALF_BYTES / copied
                print(f"| {name} | {rows} | {times} | {1e6 * memory_s:.1f} |", flush=True)


def measure(outputs: tuple[int, ...], inputs: int, rows: int, device: torch.device) -> list[float]:
    """Seconds for one layer: our kernel after a norm and without, then cuBLAS."""
    count = layers_of(sum(outputs) * inputs * HALF_BYTES)
    layers = [[draw(size, inputs, device=device) for size in outputs] for _ in range(count)]
    x, weight = draw(rows, inputs, device=device), draw(inputs, device=device)
    kernels, norm = dense_kernels_for(DTYPE, device), FusedRmsNorm(weight, None, EPS)

    def ours(norm: FusedRmsNorm | None) -> None:
        for layer in layers:
            kernels.multiply(layer, x, norm=norm)

    def cublas(is_normed: bool) -> None:
        for layer in layers:
            normed = step_ops.rms_norm(x, weight, EPS, 0.0) if is_normed else x
            for matrix in layer:
                torch.mm(normed, matrix.t())

    runs = (lambda: ours(norm), lambda: ours(None), lambda: cublas(True), lambda: cublas(False))
    return [time_of(run) / count for run in runs]


def draw(*shape: int, device: torch.device) -> torch.Tensor:
    return (torch.randn(shape, device=device) * 0.05).to(DTYPE)


if __name__ == "__main__":
    main()
