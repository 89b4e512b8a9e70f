"""How fast the kernels for experts are, alone, beside the time in which the GPU's memory brings the weights they need.

`python -m benchmarks.expert_speed [--shape qwen3-30b-a3b] [--bits 4] [--group-size 128]` prints a Markdown table.
Layers of random codes are multiplied one after the other in a CUDA graph, as many as no cache of the GPU holds. Every
token chooses experts at random. The bytes are those of the experts that were chosen at least once; the ceiling is the
speed at which the GPU copies memory.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from typing import NamedTuple

import torch

from benchmarks.copy_speed import gpu_speed
from benchmarks.figures import Figures, add_results
from core.memory.kernels.llamadeck import has_fused_prefill
from core.worker.kernels.expert_kernels import StackedMatrix, expert_kernels_for
from core.worker.kernels.expert_prompts import ExpertPrompts
from core.worker.kernels.fused_norm import FusedRmsNorm
from core.worker.kernels.packed_experts import PackedExperts
from core.worker.kernels.packing import K_BLOCK, TILE, CodeFormat
from core.worker.kernels.routed_pairs import Added, pair_kernels_for
from core.worker.kernels.router_kernel import RouterWeights, RoutingRule, router_kernels_for
from core.worker.plan_load import use_capturable_stream

COLUMNS = ("tokens", "experts µs", "MB of a layer", "ceiling µs", "% of it", "router µs")
TOKENS = (1, 2, 4, 8, 16, 32, 64, 512, 4000)
# Beyond the second-level cache of any GPU.
LEAST_BYTES = 1 << 30
RUNS = 9


class Shape(NamedTuple):
    """A layer's experts."""

    num_experts: int
    chosen: int
    hidden: int
    intermediate: int


SHAPES = {
    "qwen3-30b-a3b": Shape(128, 8, 2048, 768),
    "mixtral-8x7b": Shape(8, 2, 4096, 14336),
    "qwen3.5-35b-a3b": Shape(256, 8, 2048, 512),
    "qwen3-next-80b-a3b": Shape(512, 10, 2048, 512),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, nargs="*", default=["qwen3-30b-a3b", "mixtral-8x7b"])
    parser.add_argument("--bits", type=int, choices=(4, 8), default=4)
    parser.add_argument("--group-size", type=int, choices=(-1, 32, 64, 128), default=128)
    parser.add_argument("--asymmetric", action="store_true")
    parser.add_argument("--dtype", choices=("float16", "bfloat16"), default="bfloat16")
    parser.add_argument("--tokens", type=int, nargs="*", default=TOKENS)
    add_results(parser)
    options = parser.parse_args()
    figures = Figures("Kernels of experts", options.results)
    format = CodeFormat(options.bits, options.group_size, options.asymmetric)
    copied = gpu_speed()
    use_capturable_stream(torch.device("cuda", 0))
    with torch.inference_mode():
        for name in options.shape:
            print_table(name, format, getattr(torch, options.dtype), copied, options.tokens, figures)


def print_table(
    name: str, format: CodeFormat, dtype: torch.dtype, copied: float, all_tokens: list[int], figures: Figures
) -> None:
    shape = SHAPES[name]
    of_expert = bytes_of(format, shape.hidden, 2 * shape.intermediate) + bytes_of(
        format, shape.intermediate, shape.hidden
    )
    # For one token too, what all layers read is more than a cache holds.
    num_layers = max(2, -(-LEAST_BYTES // (of_expert * shape.num_experts)))
    layers = [make_experts(shape, format, dtype) for _ in range(num_layers)]
    print(f"\n{name}, {format.bits} bit, group {format.group_size}, {dtype}; {copied / 1e12:.2f} TB/s\n")
    print("| " + " | ".join(COLUMNS) + " |\n" + "|---:" * len(COLUMNS) + "|", flush=True)
    for tokens in all_tokens:
        cells = measure(shape, layers, of_expert, tokens, dtype, copied)
        print("| " + " | ".join(cells) + " |", flush=True)
        for column, cell in list(zip(COLUMNS, cells, strict=True))[1:]:
            figures.add(f"{name}, {tokens} tokens", column, float(cell))


def measure(
    shape: Shape, layers: list[PackedExperts], of_expert: int, tokens: int, dtype: torch.dtype, copied: float
) -> list[str]:
    x = torch.randn((tokens, shape.hidden), device="cuda").to(dtype)
    # A choice for each turn of each layer: experts that were just read are in the cache.
    turns = max(1, -(-LEAST_BYTES // (of_expert * shape.chosen * tokens * len(layers))))
    scores = torch.rand((turns, len(layers), tokens, shape.num_experts), device="cuda")
    ids = scores.topk(shape.chosen, dim=-1).indices.contiguous()
    weights = torch.rand((tokens, shape.chosen), device="cuda")

    def run() -> None:
        for turn in range(turns):
            for number, layer in enumerate(layers):
                layer.multiply(x, ids[turn, number], weights, Added(x))

    count = turns * len(layers)
    seconds = time_of(run) / count
    hit = sum(int(one.unique().numel()) for one in ids.flatten(0, 1)) / count
    ceiling = hit * of_expert / copied
    figures = (f"{seconds * 1e6:.1f}", f"{hit * of_expert / 1e6:.1f}", f"{ceiling * 1e6:.1f}")
    router = time_of(route_rows(shape, x, 32)) / 32
    return [str(tokens), *figures, f"{100 * ceiling / seconds:.0f}", f"{router * 1e6:.1f}"]


def route_rows(shape: Shape, x: torch.Tensor, times: int) -> Callable[[], None]:
    kernels = router_kernels_for(x.dtype, shape.num_experts, shape.hidden, x.device)
    routers = [torch.randn((shape.num_experts, shape.hidden), device="cuda").to(x.dtype) for _ in range(times)]
    norm = FusedRmsNorm(torch.ones(shape.hidden, device="cuda", dtype=x.dtype), None, 1e-6)
    rule = RoutingRule(False, True, True, True)

    def run() -> None:
        for router in routers:
            kernels.route(x, RouterWeights(norm, router), rule, shape.chosen)

    return run


def time_of(run: Callable[[], None]) -> float:
    """Seconds that one replay of `run` takes as a CUDA graph, the median of RUNS."""
    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
        run()
    times: list[float] = []
    for _ in range(RUNS + 1):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1000)
    return statistics.median(times[1:])


def make_experts(shape: Shape, format: CodeFormat, dtype: torch.dtype) -> PackedExperts:
    device = torch.device("cuda", 0)
    stacks = [
        make_stack(shape.num_experts, *sides, format, dtype)
        for sides in ((shape.hidden, 2 * shape.intermediate), (shape.intermediate, shape.hidden))
    ]
    kernels = expert_kernels_for(dtype, format, device)
    has_tiles = has_fused_prefill(torch.cuda.get_device_capability(device))
    prompts = ExpertPrompts(dtype, (format, format), device) if has_tiles else None
    return PackedExperts(stacks[0], stacks[1], (kernels, kernels), pair_kernels_for(dtype, device), prompts)


def make_stack(num_experts: int, inputs: int, outputs: int, format: CodeFormat, dtype: torch.dtype) -> StackedMatrix:
    shape = (num_experts, outputs // TILE, inputs // K_BLOCK, format.pieces, 32, 4)
    codes = torch.randint(-(2**31), 2**31 - 1, shape, dtype=torch.int32, device="cuda")
    scales = torch.rand((*shape[:2], groups_of(format, inputs), 8, 2), device="cuda").to(dtype) / inputs
    return StackedMatrix(codes, scales, torch.full_like(scales, 8.0) if format.has_zeros else None, None)


def groups_of(format: CodeFormat, inputs: int) -> int:
    return 1 if format.group_size < 0 else inputs // format.group_size


def bytes_of(format: CodeFormat, inputs: int, outputs: int) -> int:
    """Codes, scales and zeros of one matrix."""
    return inputs * outputs * format.bits // 8 + groups_of(format, inputs) * outputs * 2 * (1 + format.has_zeros)


if __name__ == "__main__":
    main()
