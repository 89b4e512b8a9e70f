"""Which variant of the kernels for experts and for unquantized matrices is fastest, beside the present one.

`python -m benchmarks.kernel_variants [--shape qwen3-30b-a3b] [--only experts]` prints Markdown tables. For each shape:
microseconds by tokens for the variants of core/worker/kernels/expert_kernels.py that are listed here, for tiles of
prompts in core/worker/kernels/expert_prompts.py, and for the router both ways. A variant whose result is another one is
marked with the largest difference, as a share of the result's spread. Layers are those of benchmarks/expert_speed.py.
Then the matrices before and after Qwen3.5-27B's recurrent rule, as in benchmarks/mixer_speed.py, for the variants of
core/worker/kernels/dense_small_batch.py.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks import mixer_speed
from benchmarks.deadline import Deadline, add_limit
from benchmarks.expert_speed import LEAST_BYTES, SHAPES, Shape, bytes_of, make_experts, route_rows, time_of
from benchmarks.figures import Figures, add_results
from benchmarks.measuring import Unable
from core.common.errors import DeckError
from core.worker.kernels import dense_small_batch, expert_kernels, expert_prompts, routed_pairs, router_kernel
from core.worker.kernels.dense_small_batch import TILES
from core.worker.kernels.expert_kernels import DOWN, GATE_UP, ExpertKernels, Variant
from core.worker.kernels.expert_prompts import ExpertPrompts
from core.worker.kernels.packed_experts import PackedExperts
from core.worker.kernels.packing import CodeFormat
from core.worker.kernels.routed_pairs import Added
from core.worker.plan_load import use_capturable_stream

FEW_TOKENS, MANY_TOKENS, ROUTED_TOKENS = (1, 2, 4, 8, 16, 32, 64), (512, 2048, 4000), (32, 64, 128, 256, 512, 4000)
PARTS = ("router", "experts", "prompts", "matrices")
DENSE_NAMES = ("IN_TURNS", "AHEAD", "MIN_BLOCKS", "MIN_NORMED_BLOCKS", "TILES", "MOST_NORMED_INPUTS")
DTYPE, FORMAT = torch.bfloat16, CodeFormat(4, 128, False)


class Change(NamedTuple):
    """Variants by name in place of the present ones; and constants of modules."""

    label: str
    gate_up: dict[str, Variant] = {}
    down: dict[str, Variant] = {}
    constants: tuple[tuple[Any, str, Any], ...] = ()


FEW = (
    Change("present"),
    Change(
        "fewer stages",
        {
            "1": Variant(1, 2, 2, 3),
            "pairs": Variant(1, 2, 2, 3, 2),
            "8": Variant(1, 2, 2, 3),
            "16": Variant(2, 2, 2, 2),
        },
        {"1": Variant(1, 1, 3, 2), "pairs": Variant(1, 2, 2, 1), "8": Variant(1, 2, 2, 1), "16": Variant(2, 2, 2, 1)},
    ),
    Change(
        "more stages, two blocks",
        {
            "1": Variant(1, 2, 4, 2),
            "pairs": Variant(1, 2, 4, 2, 2),
            "8": Variant(1, 2, 4, 2),
            "16": Variant(2, 2, 4, 2),
        },
        {"1": Variant(1, 1, 5, 2), "pairs": Variant(1, 2, 4, 1), "8": Variant(1, 2, 4, 1), "16": Variant(2, 2, 4, 1)},
    ),
    Change(
        "four tiles",
        {
            "1": Variant(1, 4, 2, 2),
            "pairs": Variant(1, 4, 3, 2, 1),
            "8": Variant(1, 4, 3, 2),
            "16": Variant(2, 4, 3, 1),
        },
        {"1": Variant(1, 2, 3, 1), "pairs": Variant(1, 4, 2, 1), "8": Variant(1, 4, 2, 1), "16": Variant(2, 1, 3, 1)},
    ),
    Change(
        "parts",
        {"1": Variant(1, 2, 4, 2, 2), "pairs": Variant(1, 2, 3, 3, 4), "8": Variant(1, 2, 3, 2, 2)},
        {"pairs": Variant(1, 1, 4, 2), "8": Variant(1, 1, 4, 1)},
    ),
    Change("no parts", {"pairs": Variant(1, 2, 3, 3)}, {"pairs": Variant(1, 1, 4, 2)}),
    Change("sorted sooner", constants=((routed_pairs, "WORTH_SORTING", 1.1),)),
    Change("sorted later", constants=((routed_pairs, "WORTH_SORTING", 1.8),)),
    Change("16 rows later", constants=((routed_pairs, "ROWS_BY_AVERAGE", ((8, 6.0), (16, 12.0), (32, float("inf")))),)),
)
MANY = (
    Change("present"),
    Change("two stages less", constants=((expert_prompts, "STAGES", {64: {4: 6, 8: 5}, 128: {4: 4, 8: 4}}),)),
)
MATRICES = (
    Change("present"),
    *(
        Change(
            label,
            constants=tuple((dense_small_batch, *one) for one in zip(DENSE_NAMES, values, strict=True)),
        )
        for label, values in {
            "in turns": (True, 2, {8: 1, 16: 1, 32: 1}, 1, TILES, 4_000_000),
            "in turns, 3 blocks": (True, 2, {8: 3, 16: 1, 32: 1}, 3, TILES, 4_000_000),
            "in turns, 3 blocks, norm fused": (True, 2, {8: 3, 16: 1, 32: 1}, 3, TILES, 1 << 40),
            "in turns, 3 blocks, norm before": (True, 2, {8: 3, 16: 1, 32: 1}, 3, TILES, 0),
            "in turns, 3 ahead": (True, 3, {8: 2, 16: 1, 32: 1}, 1, TILES, 4_000_000),
            "in turns, 1 ahead, 4 blocks": (True, 1, {8: 4, 16: 2, 32: 1}, 3, TILES, 4_000_000),
            "in turns, one tile": (True, 2, {8: 3, 16: 2, 32: 2}, 3, {8: 1, 16: 1, 32: 1}, 4_000_000),
            "3 ahead": (False, 3, {8: 2, 16: 1, 32: 1}, 1, TILES, 4_000_000),
        }.items()
    ),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, nargs="*", default=["qwen3-30b-a3b", "mixtral-8x7b"])
    parser.add_argument("--only", choices=PARTS)
    add_results(parser)
    add_limit(parser)
    options = parser.parse_args()
    tables = Tables(options.results, Deadline.after(options.limit_s))
    use_capturable_stream(torch.device("cuda", 0))
    with torch.inference_mode():
        for name in options.shape:
            print_tables(tables, name, SHAPES[name], [options.only] if options.only else list(PARTS))
        if options.only in (None, "matrices"):
            tables.print("qwen3.5-27b, before + after the rule", (1, 2, 4, 8, 16, 32), MATRICES, measure_matrices)


def print_tables(tables: Tables, name: str, shape: Shape, parts: list[str]) -> None:
    if "router" in parts:
        print_routers(tables, name, shape)
    layers = make_layers(shape) if set(parts) & {"experts", "prompts"} else []
    if "experts" in parts:
        tables.print(f"{name}, few tokens", FEW_TOKENS, FEW, lambda one, tokens: measure(layers, shape, one, tokens))
    if "prompts" in parts:
        tables.print(f"{name}, prompts", MANY_TOKENS, MANY, lambda one, tokens: measure(layers, shape, one, tokens))


class Tables:
    """Prints tables, and appends their figures to `path`. Nothing is begun any more after `deadline`."""

    def __init__(self, path: Path | None, deadline: Deadline) -> None:
        self._path, self._deadline = path, deadline

    def print(
        self, title: str, tokens: tuple[int, ...], changes: tuple[Change, ...], measured: Callable[[Change, int], str]
    ) -> None:
        heads = " | ".join(map(str, tokens))
        print(f"\n{title}: µs\n\n| tokens | {heads} |\n" + "|---" * (len(tokens) + 1) + "|", flush=True)
        figures = Figures(f"Variants of kernels: {title}, µs", self._path)
        for change in changes:
            cells = [self._cell(change, one, measured, figures) for one in tokens]
            print(f"| {change.label} | {' | '.join(cells)} |", flush=True)

    def _cell(self, change: Change, tokens: int, measured: Callable[[Change, int], str], figures: Figures) -> str:
        """A variant that this GPU cannot run has none, and leaves the others."""
        try:
            self._deadline.require()
            cell = measured(change, tokens)
        except (Unable, DeckError, RuntimeError) as error:
            figures.fail(change.label, str(tokens), str(error).partition("\n")[0][:200])
            return "–"
        figures.add(change.label, str(tokens), sum(map(float, cell.partition(" (")[0].split(" + "))))
        if " (" in cell:
            figures.fail(change.label, str(tokens), cell)
        return cell


def make_layers(shape: Shape) -> list[PackedExperts]:
    """As many as no cache of the GPU holds."""
    of_layer = shape.num_experts * bytes_of_expert(shape)
    return [make_experts(shape, FORMAT, DTYPE) for _ in range(max(2, -(-LEAST_BYTES // of_layer)))]


def bytes_of_expert(shape: Shape) -> int:
    return bytes_of(FORMAT, shape.hidden, 2 * shape.intermediate) + bytes_of(FORMAT, shape.intermediate, shape.hidden)


def measure(layers: list[PackedExperts], shape: Shape, change: Change, tokens: int) -> str:
    """The time of one layer; and how far the result is from that of the present kernels, where it is."""
    random = torch.Generator("cuda").manual_seed(tokens)
    x = torch.randn((tokens, shape.hidden), device="cuda", generator=random).to(DTYPE)
    turns = max(1, -(-LEAST_BYTES // (bytes_of_expert(shape) * shape.chosen * tokens * len(layers))))
    scores = torch.rand((turns, len(layers), tokens, shape.num_experts), device="cuda", generator=random)
    ids = scores.topk(shape.chosen, dim=-1).indices.contiguous()
    weights = torch.rand((tokens, shape.chosen), device="cuda", generator=random)
    wanted = layers[0].multiply(x, ids[0, 0], weights)
    with changed(layers, change):
        got = layers[0].multiply(x, ids[0, 0], weights)

        def run() -> None:
            for turn in range(turns):
                for number, layer in enumerate(layers):
                    layer.multiply(x, ids[turn, number], weights, Added(x))

        figure = f"{time_of(run) / (turns * len(layers)) * 1e6:.1f}"
    off = float((got.float() - wanted.float()).abs().max() / wanted.float().std())
    return figure if torch.equal(got, wanted) else f"{figure} (off by {off:.4f})"


def measure_matrices(change: Change, rows: int) -> str:
    before = [(module, name, getattr(module, name)) for module, name, _ in change.constants]
    for module, name, value in change.constants:
        setattr(module, name, value)
    try:
        for compiled in (dense_small_batch.module_for, dense_small_batch.dense_kernels_for):
            compiled.cache_clear()
        bench = mixer_speed.Bench(mixer_speed.SHAPES["qwen3.5-27b"], DTYPE, torch.device("cuda", 0))
        figures = bench.products(rows)
    finally:
        for module, name, value in before:
            setattr(module, name, value)
    return " + ".join(f"{one.seconds * 1e6:.1f}" for one in figures)


@contextmanager
def changed(layers: list[PackedExperts], change: Change) -> Iterator[None]:
    """Let the layers run the kernels that `change` names."""
    constants = list(change.constants)
    for name, present, some in (("GATE_UP", GATE_UP, change.gate_up), ("DOWN", DOWN, change.down)):
        constants.append((expert_kernels, name, {**present, **{key: (one,) for key, one in some.items()}}))
    before = [(module, name, getattr(module, name)) for module, name, _ in constants]
    kept = [(layer._gate_up_kernels, layer._down_kernels, layer._prompts) for layer in layers]
    for module, name, value in constants:
        setattr(module, name, value)
    try:
        if change.gate_up or change.down:
            kernels = ExpertKernels(DTYPE, FORMAT, torch.device("cuda", 0))
            for layer in layers:
                layer._gate_up_kernels = layer._down_kernels = kernels
        if any(name == "STAGES" for _, name, _ in change.constants) and layers[0]._prompts:
            expert_prompts.prompt_kernels_for.cache_clear()
            prompts = ExpertPrompts(DTYPE, (FORMAT, FORMAT), torch.device("cuda", 0))
            for layer in layers:
                layer._prompts = prompts
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)
        for layer, (gate_up, down, prompts_before) in zip(layers, kept, strict=True):
            layer._gate_up_kernels, layer._down_kernels, layer._prompts = gate_up, down, prompts_before


def print_routers(tables: Tables, name: str, shape: Shape) -> None:
    def measured(change: Change, tokens: int) -> str:
        for module, constant, value in change.constants:
            setattr(module, constant, value)
        x = torch.randn((tokens, shape.hidden), device="cuda").to(DTYPE)
        return f"{time_of(route_rows(shape, x, 32)) / 32 * 1e6:.1f}"

    present = router_kernel.MANY_LOGITS
    changes = [
        Change(label, constants=((router_kernel, "MANY_LOGITS", most),))
        for label, most in (("four rows at a time", 1 << 40), ("in tiles", 0), ("present", present))
    ]
    tables.print(f"{name}, router", ROUTED_TOKENS, tuple(changes), measured)


if __name__ == "__main__":
    main()
