"""Holds the memory plan against a real GPU: does each model fill every slot with exactly what its plan asks for, and
does it fail with 1 % + 64 MiB less? One card plays smaller ones by a cap on torch's allocator.

The cap does not count CUDA's context and graphs; that part is compared with what NVML says of the process.
`python -m benchmarks.memory_ladder MODELS_FOLDER [--json FILE]` makes the checkpoints and runs everything, and some
that it draws: `--seed` draws the same again. `--explain FOLDER` writes what each part of the peak was allocated by.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import os
import random
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any

from benchmarks.memory_peak import explained
from benchmarks.random_model import SHAPES
from core.checkpoint.checkpoint import read_checkpoint
from core.gpu.snapshot import read_snapshot
from core.memory.kernels.registry import able_kernels, kernel_named
from core.memory.model_shape import ModelShape, matrix_shapes, read_shape
from core.memory.plan import GPU_CHUNK_TOKENS, MemoryPlan, make_plan
from core.memory.sizes import MIB
from core.worker.main import ENVIRONMENT

KERNELS = ("llamadeck", "triton")
UNCAPPED_BYTES = 2**60
DECODED_TOKENS = 24
NUM_DRAWN = 12
# Context and chats of each model; a drawn model has others.
RUNGS = ((2048, 1), (4096, 4), (16384, 1), (16384, 3))
CONTEXTS = (2048, 4096, 8192, 16384, 32768, 65536)
NUM_SLOTS = (1, 2, 3, 4, 8, 16, 32)
# More tokens than that in all slots take minutes to fill.
MOST_TOKENS = 131_072
# Name, and what benchmarks.random_model makes of it. Hollow ones take no byte less. Most have fewer layers than the
# real model: a plan only scales with those.
MODELS = {
    "7B": ["7B"],
    "13B": ["13B"],
    "70B": ["70B", "--hollow"],
    "7B group 32": ["7B", "--group-size", "32", "--layers", "8"],
    "7B group 64": ["7B", "--group-size", "64", "--layers", "8"],
    "7B act-order": ["7B", "--act-order", "--layers", "8"],
    "7B 8 bit": ["7B", "--bits", "8", "--layers", "8"],
    "7B no groups": ["7B", "--group-size", "-1", "--layers", "8"],
    "Llama-3.2-1B": ["Llama-3.2-1B"],
    "Llama-3.2-3B": ["Llama-3.2-3B"],
    "Llama-3.1-8B group 32": ["Llama-3.1-8B", "--group-size", "32", "--layers", "8"],
    "Llama-3.3-70B": ["Llama-3.3-70B", "--layers", "8", "--hollow"],
    "Qwen2.5-0.5B": ["Qwen2.5-0.5B"],
    "Qwen2.5-7B": ["Qwen2.5-7B", "--layers", "8"],
    "Qwen2.5-72B": ["Qwen2.5-72B", "--layers", "8", "--hollow"],
    "Qwen3-0.6B": ["Qwen3-0.6B"],
    "Qwen3-14B": ["Qwen3-14B", "--layers", "8"],
    "Mistral-Nemo-12B": ["Mistral-Nemo-12B", "--layers", "8"],
    "Gemma-2-9B": ["Gemma-2-9B", "--layers", "8"],
    "Gemma-3-1B": ["Gemma-3-1B"],
    "Phi-3-mini": ["Phi-3-mini", "--layers", "8"],
    "Phi-4": ["Phi-4", "--layers", "8"],
    "Qwen3-30B-A3B": ["Qwen3-30B-A3B", "--layers", "12", "--hollow"],
    "Mixtral-8x7B": ["Mixtral-8x7B", "--layers", "8", "--hollow"],
    "Qwen3.5-27B as published": ["Qwen3.5-27B", "--layers", "16", "--hollow", "--keep", "attn", "shared_expert"],
    "Qwen3.5-27B 4 bit": ["Qwen3.5-27B", "--layers", "16", "--hollow"],
    "Qwen3.5-35B-A3B": ["Qwen3.5-35B-A3B", "--layers", "8", "--hollow", "--keep", "attn", "shared_expert"],
    "Qwen3-Next-80B-A3B": ["Qwen3-Next-80B-A3B", "--layers", "4", "--hollow"],
}
# How much of the card's memory may be in use at a time, by all runs together.
BUDGET_MIB = 128_000


@dataclass(frozen=True, slots=True)
class Row:
    """One model, kernel, context and number of slots: the plan and what happened."""

    model: str
    kernel: str
    context_tokens: int
    num_slots: int
    planned_mib: float
    peak_mib: float
    with_plan: str
    with_less: str
    planned_context_mib: float
    context_mib: float


@dataclass(frozen=True, slots=True)
class Case:
    """One model: what `benchmarks.random_model` is called with, and the contexts and chats that are tried."""

    name: str
    arguments: list[str]
    rungs: list[tuple[int, int]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--models", nargs="*", default=list(MODELS))
    parser.add_argument("--kernels", nargs="*", default=list(KERNELS))
    parser.add_argument("--draw", type=int, default=NUM_DRAWN, help="how many models to draw beside")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--captured", action="store_true", help="the plans for captured steps, over merged matrices")
    parser.add_argument("--explain", type=Path, metavar="FOLDER")
    parser.add_argument("--child", nargs=2, metavar=("CASE", "KERNEL"))
    options = parser.parse_args()
    if options.child:
        case = Case(*json.loads(options.child[0]))
        climbed = climb(options.folder, case, options.child[1], options.captured, options.explain)
        print(json.dumps([asdict(row) for row in climbed]))
        return 0
    cases = [Case(name, MODELS[name], list(RUNGS)) for name in options.models]
    cases += draw_cases(random.Random(options.seed), options.draw)
    rows = run_all(options.folder, cases, options.kernels, options.captured, options.explain)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))
    print(table(rows))
    return 0 if all(row["with_plan"] == "fits" and row["with_less"] == "out of memory" for row in rows) else 1


def draw_cases(draw: random.Random, count: int) -> list[Case]:
    """Models that nobody named: a real shape with another number of layers, quantized otherwise, and other rungs."""
    cases = []
    for number in range(count):
        shape, layers = draw.choice(list(SHAPES)), draw.randint(3, 12)
        group_size, bits = draw.choice((32, 64, 128, -1)), draw.choice((4, 4, 4, 8))
        arguments = [shape, "--layers", str(layers), "--group-size", str(group_size), "--bits", str(bits), "--hollow"]
        arguments += ["--act-order"] * (draw.random() < 0.25)
        rungs = [(context, slots) for context in CONTEXTS for slots in NUM_SLOTS if context * slots <= MOST_TOKENS]
        cases.append(Case(f"drawn {number}: {' '.join(arguments)}", arguments, draw.sample(rungs, 4)))
    return cases


def run_all(
    folder: Path, cases: list[Case], kernels: list[str], captured: bool, explain: Path | None
) -> list[dict[str, Any]]:
    """Make every checkpoint, then climb each kernel's ladder in a process of its own, as many as the card holds."""
    made = {case.name: threading.Event() for case in cases}
    room = Room(BUDGET_MIB)

    def make(case: Case) -> None:
        target = folder / case.name
        command = [sys.executable, "-m", "benchmarks.random_model", case.arguments[0], str(target)]
        subprocess.run(command + case.arguments[1:], check=True)
        made[case.name].set()

    def climb_in_child(pair: tuple[Case, str]) -> list[dict[str, Any]]:
        case, kernel = pair
        made[case.name].wait()
        with room.take(needed_mib(folder, case, kernel, captured)):
            command = [sys.executable, "-m", "benchmarks.memory_ladder", str(folder)]
            command += ["--child", json.dumps(list(astuple(case))), kernel]
            command += ["--captured"] * captured + (["--explain", str(explain)] if explain else [])
            done = subprocess.run(command, capture_output=True, text=True, env=os.environ | ENVIRONMENT)
        if done.returncode:
            print(f"{case.name} {kernel}: {done.stderr.strip()[-900:]}", file=sys.stderr, flush=True)
            return []
        rows: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
        print(f"{case.name} {kernel}: {done.stderr[-600:]}\n{table(rows)}", file=sys.stderr, flush=True)
        return rows

    with ThreadPoolExecutor(6) as makers, ThreadPoolExecutor(9) as climbers:
        makers.map(make, cases)
        return list(itertools.chain(*climbers.map(climb_in_child, itertools.product(cases, kernels))))


class Room:
    """The card's memory, handed out to the runs that want a part of it."""

    def __init__(self, total_mib: float) -> None:
        self._free_mib = total_mib
        self._changed = threading.Condition()

    def take(self, mib: float) -> _Taken:
        with self._changed:
            self._changed.wait_for(lambda: self._free_mib >= mib)
            self._free_mib -= mib
        return _Taken(self, mib)

    def give(self, mib: float) -> None:
        with self._changed:
            self._free_mib += mib
            self._changed.notify_all()


@dataclass(frozen=True, slots=True)
class _Taken:
    room: Room
    mib: float

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        self.room.give(self.mib)


def needed_mib(folder: Path, case: Case, kernel: str, captured: bool) -> float:
    return max(plan_of(folder / case.name, kernel, *rung, captured).total for rung in case.rungs) / MIB + 500


def plan_of(folder: Path, kernel: str, context_tokens: int, num_slots: int, captured: bool) -> MemoryPlan:
    shape = read_shape(read_checkpoint(folder), merged=captured)
    return make_plan(shape, kernel_named(kernel), (9, 0), context_tokens, num_slots, GPU_CHUNK_TOKENS, captured)


def climb(folder: Path, case: Case, kernel_name: str, captured: bool, explain: Path | None) -> list[Row]:
    """One model with one kernel: loaded once, under the smallest rung's cap, then every rung with its own."""
    import torch

    from core.memory.load_plan import choose_dtype
    from core.tokenizer.read import read_tokenizer
    from core.worker.model.device_map import DeviceMap
    from core.worker.model.loader import load_model
    from core.worker.plan_load import find_devices, use_capturable_stream

    name = case.name
    checkpoint, device = read_checkpoint(folder / name), find_devices(read_snapshot())[0]
    kernel = kernel_named(kernel_name)
    if kernel not in able_kernels(matrix_shapes(checkpoint), [device]):
        return []
    if captured and not kernel.can_capture(read_shape(checkpoint, merged=True)):
        print(f"{name}: its steps are never captured", file=sys.stderr)
        return []
    rungs = [(plan_of(folder / name, kernel_name, *rung, captured), *rung) for rung in case.rungs]
    rungs.sort(key=lambda rung: rung[0].allocated)
    use_capturable_stream()
    cap(rungs[0][0].allocated)
    with torch.inference_mode():
        dtype, shape = getattr(torch, choose_dtype(checkpoint, kernel, device)), read_shape(checkpoint, captured)
        places = DeviceMap((torch.device("cuda:0"),))
        model = load_model(checkpoint, shape, kernel, places, dtype, GPU_CHUNK_TOKENS, lambda _: None)
    loading_mib = torch.cuda.max_memory_reserved() / MIB
    planned_mib = (rungs[0][0].weights + rungs[0][0].scratch) / MIB
    held_mib = torch.cuda.memory_allocated() / MIB
    print(f"loaded: {held_mib:.1f} held for {planned_mib:.1f} planned, peak {loading_mib:.0f} MiB", file=sys.stderr)
    tokenizer, rows = read_tokenizer(folder / name), []
    for plan, context_tokens, num_slots in rungs:
        outcome, peak_mib, context_mib = fill(model, tokenizer, context_tokens, num_slots, plan.allocated, shape)
        if explain:
            written = explain / f"{name.split(':')[0]} {kernel_name} {context_tokens}x{num_slots}.txt".replace(" ", "_")
            with explained(written):
                fill(model, tokenizer, context_tokens, num_slots, UNCAPPED_BYTES, shape)
        if outcome != "fits":
            _, peak_mib, context_mib = fill(model, tokenizer, context_tokens, num_slots, UNCAPPED_BYTES, shape)
        less = plan.allocated - (0.01 * plan.total + 64 * MIB)
        outcome_less, *_ = fill(model, tokenizer, context_tokens, num_slots, int(less), shape)
        rows.append(
            Row(name, kernel_name, context_tokens, num_slots, plan.allocated / MIB, peak_mib, outcome, outcome_less,
                (plan.context + plan.graphs) / MIB, context_mib)
        )  # fmt: skip
    return rows


def cap(num_bytes: int) -> None:
    """Let torch's allocator have `num_bytes` and no more."""
    import torch

    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, num_bytes / total))


def fill(
    model: Any, tokenizer: Any, context_tokens: int, num_slots: int, num_bytes: int, shape: ModelShape
) -> tuple[str, float, float]:
    """Fill every slot to its last token under a cap: how it ended, the most that was reserved, and what the process
    then held beside that, MiB."""
    import torch
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    from core.engine.protocol import Generate
    from core.engine.sampling_params import Sampling
    from core.worker.decode.cuda_graphs import ATTENTION
    from core.worker.decode.steps import EagerSteps, Steps
    from core.worker.load import fuse_and_capture
    from core.worker.model import attention
    from core.worker.model.model_runner import ModelRunner
    from core.worker.scheduler import Scheduler

    gc.collect()
    cap(num_bytes)
    torch.cuda.reset_peak_memory_stats()
    ends: list[Any] = []
    model.config._attn_implementation = attention.register()
    slots = scheduler = None
    steps: Steps | None = None
    try:
        with torch.inference_mode():
            slots = ModelRunner(model, num_slots, context_tokens)
            if shape.is_capturable:
                steps = fuse_and_capture(slots, model, GPU_CHUNK_TOKENS, shape.is_merged)
            else:
                steps = EagerSteps(slots)
            scheduler = Scheduler(steps, tokenizer, frozenset(), GPU_CHUNK_TOKENS, ends.append)
            for request in range(num_slots):
                prompt = tuple((7 * place + request) % 500 + 5 for place in range(context_tokens - DECODED_TOKENS))
                sampling = Sampling(temperature=0.8, top_p=0.9, repetition_penalty=1.1, max_new_tokens=context_tokens)
                scheduler.submit(Generate(request, prompt, sampling))
            while not scheduler.is_idle:
                scheduler.step()
        full = sum(getattr(event, "reason", None) == "context" for event in ends)
        outcome = "fits" if full == num_slots else f"only {full} full"
        if shape.is_capturable and getattr(steps, "is_recorded", None) is not shape.is_merged:
            outcome = "only otherwise"
    except torch.cuda.OutOfMemoryError as error:
        print(f"{context_tokens} x {num_slots}: {error}", file=sys.stderr)
        outcome = "out of memory"
    peak_mib = torch.cuda.max_memory_reserved() / MIB
    context_mib = process_mib() - torch.cuda.memory_reserved() / MIB
    slots = steps = scheduler = None
    # The registered attention would keep the cache.
    ALL_ATTENTION_FUNCTIONS.register(ATTENTION, attention.attend)
    gc.collect()
    return outcome, peak_mib, context_mib


def process_mib() -> float:
    """What NVML says that this process holds, MiB."""
    import os

    import pynvml

    pynvml.nvmlInit()
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    own = [one for one in pynvml.nvmlDeviceGetComputeRunningProcesses(handle) if one.pid == os.getpid()]
    return own[0].usedGpuMemory / MIB if own and own[0].usedGpuMemory else float("nan")


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown, all in MiB; "over" is how much more the plan asks for than was reserved at the peak."""
    heads = ["model", "kernel", "context", "chats", "plan", "peak", "over", "with the plan", "with less", "context"]
    lines = [heads, ["---"] * len(heads)]
    for row in rows:
        planned, peak = row["planned_mib"], row["peak_mib"]
        over = f"{planned - peak:.0f} ({100 * (planned - peak) / planned:.1f} %)"
        context = f"{row['planned_context_mib']:.0f} for {row['context_mib']:.0f}"
        lines.append([row["model"], row["kernel"], str(row["context_tokens"]), str(row["num_slots"]), f"{planned:.0f}",
                      f"{peak:.0f}", over, row["with_plan"], row["with_less"], context])  # fmt: skip
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    sys.exit(main())
