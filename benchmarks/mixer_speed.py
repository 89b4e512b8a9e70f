"""How fast the kernels of a Gated DeltaNet layer are, alone, beside the time in which memory brings what they need.

`python -m benchmarks.mixer_speed [--shape qwen3.5-27b]` prints a Markdown table: the unquantized matrices before the
rule with their norm, the rule, and the matrix after it with the residual, for one new token of some chats; and the rule
over a chunk of a prompt. Layers run one after the other in a CUDA graph, as many as no cache of the GPU holds. The
ceiling is the speed at which the GPU copies memory. A chunk's work is arithmetic, so no part of it is named.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch

from benchmarks.copy_speed import gpu_speed
from benchmarks.expert_speed import time_of
from benchmarks.figures import Figures, add_results
from core.checkpoint.recurrent import GatedDeltaNet
from core.memory.sizes import FLOAT_BYTES, HALF_BYTES
from core.worker.kernels.dense_small_batch import dense_kernels_for
from core.worker.kernels.fused_norm import FusedRmsNorm
from core.worker.kernels.recurrent import DeltaKernels, DeltaWeights, Projected
from core.worker.plan_load import use_capturable_stream

COLUMNS = ("what", "chats or tokens", "µs", "MB", "ceiling µs", "% of it")
CHATS, CHUNKS = (1, 8, 32), (512, 1024)
# Beyond the second-level cache of any GPU; and the fewest layers in a graph, for what is small.
LEAST_BYTES, MOST_LAYERS = 1 << 28, 32


class Shape(NamedTuple):
    """A layer, and the size of the hidden state."""

    hidden: int
    mixer: GatedDeltaNet


SHAPES = {
    "qwen3.5-27b": Shape(5120, GatedDeltaNet(16, 48, 128, 128, 4)),
    "qwen3.5-35b-a3b": Shape(2048, GatedDeltaNet(16, 32, 128, 128, 4)),
    "qwen3-next-80b-a3b": Shape(2048, GatedDeltaNet(16, 32, 128, 128, 4)),
}


class Figure(NamedTuple):
    """A kernel's time and the bytes that it needs, for `size` chats or tokens."""

    what: str
    size: int
    seconds: float
    num_bytes: int

    def row(self, copied: float) -> str:
        """copied: bytes that the GPU copies in a second."""
        ceiling = self.num_bytes / copied
        part = "" if self.what == "chunk" else f"{100 * ceiling / self.seconds:.0f}"
        figures = (f"{self.seconds * 1e6:.1f}", f"{self.num_bytes / 1e6:.1f}", f"{ceiling * 1e6:.1f}", part)
        return "| " + " | ".join((self.what, str(self.size), *figures)) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, nargs="*", default=["qwen3.5-27b"])
    parser.add_argument("--dtype", choices=("float16", "bfloat16"), default="bfloat16")
    parser.add_argument("--chats", type=int, nargs="*", default=CHATS)
    parser.add_argument("--chunks", type=int, nargs="*", default=CHUNKS)
    add_results(parser)
    options = parser.parse_args()
    figures = Figures("Kernels of recurrent layers", options.results)
    device, copied = torch.device("cuda", 0), gpu_speed()
    use_capturable_stream(device)
    with torch.inference_mode():
        for name in options.shape:
            print(f"\n{name}, {options.dtype}; {copied / 1e12:.2f} TB/s\n")
            print("| " + " | ".join(COLUMNS) + " |\n|---" + "|---:" * (len(COLUMNS) - 1) + "|", flush=True)
            bench = Bench(SHAPES[name], getattr(torch, options.dtype), device)
            for figure in bench.measure(options.chats, options.chunks):
                print(figure.row(copied), flush=True)
                row = f"{name}, {figure.what}, {figure.size}"
                figures.add(row, "µs", figure.seconds * 1e6)
                if figure.what != "chunk":
                    figures.add(row, "% of what memory allows", 100 * figure.num_bytes / copied / figure.seconds)


class Bench:
    """The kernels of one shape over random numbers."""

    def __init__(self, shape: Shape, dtype: torch.dtype, device: torch.device) -> None:
        self._shape, self._dtype, self._device = shape, dtype, device
        self._dense = dense_kernels_for(dtype, device)

    def measure(self, chats: Sequence[int], chunks: Sequence[int]) -> Iterator[Figure]:
        for rows in chats:
            before, after = self.products(rows)
            yield from (before, self._step(rows), after)
        for tokens in chunks:
            yield self._chunk(tokens)

    def products(self, rows: int) -> tuple[Figure, Figure]:
        """Of the matrices before the rule, and of the one after it."""
        mixer, hidden = self._shape.mixer, self._shape.hidden
        values = mixer.num_value_heads * mixer.value_dim
        before = (mixer.channels, values, mixer.num_value_heads, mixer.num_value_heads)
        return (
            self._products("before", [(one, hidden) for one in before], rows),
            self._products("after", [(hidden, values)], rows),
        )

    def _products(self, what: str, sizes: Sequence[tuple[int, int]], rows: int) -> Figure:
        """Of matrices [outputs, inputs]: the first ones after a norm, the last one before a residual."""
        num_bytes = sum(outputs * inputs for outputs, inputs in sizes) * HALF_BYTES
        layers = [[self._random(*one) for one in sizes] for _ in range(layers_of(num_bytes))]
        outputs, inputs = sum(outputs for outputs, _ in sizes), sizes[0][1]
        x, residual = self._random(rows, inputs), self._random(rows, outputs) if what == "after" else None
        norm = None if what == "after" else FusedRmsNorm(self._random(inputs), None, 1e-6)
        return self._figure(what, rows, num_bytes, layers, lambda one: self._dense.multiply(one, x, residual, norm))

    def _step(self, rows: int) -> Figure:
        """The rule for one new token a row, each of a slot of its own."""
        mixer, projected = self._shape.mixer, self._projected(rows)
        num_bytes = 2 * rows * state_bytes(mixer)
        layers = [self._memory(rows) for _ in range(layers_of(num_bytes))]
        kernels, weights = DeltaKernels(mixer, self._dtype, rows, self._device), self._weights()
        slots = torch.arange(rows, device=self._device)
        columns = slots + 100

        def run(memory: tuple[torch.Tensor, torch.Tensor]) -> object:
            return kernels.step(projected, weights, *memory, slots, columns)

        return self._figure("rule", rows, num_bytes, layers, run)

    def _chunk(self, tokens: int) -> Figure:
        mixer, projected = self._shape.mixer, self._projected(tokens)
        # What the matrices gave is read, and what the last matrix takes is written.
        values = mixer.num_value_heads * mixer.value_dim
        num_bytes = tokens * (mixer.channels + 2 * values) * HALF_BYTES + 2 * state_bytes(mixer)
        layers = [self._memory(1) for _ in range(4)]
        kernels, weights = DeltaKernels(mixer, self._dtype, 1, self._device), self._weights()
        slots, bounds = torch.zeros(1, dtype=torch.long, device=self._device), torch.tensor([tokens, tokens])
        bounds = bounds.to(self._device)

        def run(memory: tuple[torch.Tensor, torch.Tensor]) -> object:
            return kernels.chunk(projected, weights, *memory, slots, bounds)

        return self._figure("chunk", tokens, num_bytes, layers, run)

    def _figure(
        self, what: str, count: int, num_bytes: int, layers: Sequence[Any], run: Callable[[Any], object]
    ) -> Figure:
        def run_all() -> None:
            for layer in layers:
                run(layer)

        return Figure(what, count, time_of(run_all) / len(layers), num_bytes)

    def _projected(self, tokens: int) -> Projected:
        mixer = self._shape.mixer
        heads = mixer.num_value_heads
        sizes = [mixer.channels, heads * mixer.value_dim, heads, heads]
        return Projected.side_by_side(mixer, *self._random(tokens, sum(sizes)).split(sizes, -1))

    def _weights(self) -> DeltaWeights:
        mixer = self._shape.mixer
        a_log, dt_bias = torch.randn((2, mixer.num_value_heads), device=self._device)
        return DeltaWeights(
            self._random(mixer.channels, mixer.conv_width), a_log, dt_bias, self._random(mixer.value_dim), 1e-6
        )

    def _memory(self, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
        mixer = self._shape.mixer
        shape = (rows, mixer.num_value_heads, mixer.key_dim, mixer.value_dim)
        state = torch.zeros(shape, dtype=torch.float32, device=self._device)
        return self._random(rows, mixer.channels, mixer.conv_width - 1), state

    def _random(self, *shape: int) -> torch.Tensor:
        return (torch.randn(shape, device=self._device) * 0.05).to(self._dtype)


def state_bytes(mixer: GatedDeltaNet) -> int:
    """What a layer keeps of one chat."""
    heads = mixer.num_value_heads * mixer.key_dim * mixer.value_dim * FLOAT_BYTES
    return heads + mixer.channels * (mixer.conv_width - 1) * HALF_BYTES


def layers_of(num_bytes: int) -> int:
    """How many layers that read `num_bytes` each no cache holds."""
    return max(2, min(MOST_LAYERS, -(-LEAST_BYTES // num_bytes)))


if __name__ == "__main__":
    main()
