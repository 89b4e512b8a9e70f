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
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, astuple, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.deadline import Deadline, add_limit
from benchmarks.figures import Figures, add_results
from benchmarks.memory_cases import (
    ADAPTED,
    CROWDED,
    CROWDED_RUNGS,
    MODELS,
    NUM_DRAWN,
    RUNGS,
    SHARED_RUNGS,
    TOGETHER,
    Case,
    draw_cases,
)
from benchmarks.memory_peak import explained
from core.checkpoint.checkpoint import read_checkpoint
from core.gpu.snapshot import read_snapshot
from core.memory.adapter_room import adaptable_matrices, adaptable_stacks
from core.memory.kernels.registry import able_kernels, kernel_named
from core.memory.model_shape import ModelShape, matrix_shapes, read_shape
from core.memory.plan import MemoryPlan, make_plan
from core.memory.sizes import MIB
from core.memory.step_sizes import GPU_CHUNK_TOKENS, USUAL_SIZES, VERIFIED_TOKENS
from core.worker.main import ENVIRONMENT

KERNELS = ("llamadeck", "triton")
UNCAPPED_BYTES = 2**60
# How a rung ends, beside "fits".
OUT_OF_MEMORY, ONLY_OTHERWISE = "out of memory", "only otherwise"
DECODED_TOKENS = 24
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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--json", type=Path, help="all rows, written again after each model")
    add_results(parser)
    add_limit(parser)
    parser.add_argument("--models", nargs="*", default=list(MODELS))
    parser.add_argument("--kernels", nargs="*", default=list(KERNELS))
    parser.add_argument("--draw", type=int, default=NUM_DRAWN, help="how many models to draw beside")
    parser.add_argument("--adapted", nargs="*", default=list(ADAPTED), help="models with room for adapters")
    parser.add_argument("--together", nargs="*", default=list(TOGETHER), help="models whose chats share the cache")
    parser.add_argument("--crowded", nargs="*", default=list(CROWDED), help="models with many chats")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--captured", action="store_true", help="the plans for captured steps, over merged matrices")
    parser.add_argument(
        "--cache-bits", type=int, default=16, choices=(16, 8), help="of keys and values, but of those of --together"
    )
    parser.add_argument("--chunk-tokens", type=int, default=GPU_CHUNK_TOKENS, help="how many of prompts a pass reads")
    parser.add_argument("--verified-tokens", type=int, default=VERIFIED_TOKENS, help="how many of a chat a step "
                        "verifies")  # fmt: skip
    parser.add_argument("--explain", type=Path, metavar="FOLDER")
    parser.add_argument("--child", nargs=2, metavar=("CASE", "KERNEL"))
    options = parser.parse_args()
    if options.child:
        case = Case(*json.loads(options.child[0]))
        climbed = climb(options.folder, case, options.child[1], options.captured, options.explain)
        print(json.dumps([asdict(row) for row in climbed]))
        return 0
    cases = [Case(name, MODELS[name], list(RUNGS)) for name in options.models]
    cases += [Case(name, ADAPTED[name][0], list(RUNGS), ADAPTED[name][1]) for name in options.adapted]
    cases += [Case(name, CROWDED[name], list(CROWDED_RUNGS)) for name in options.crowded]
    cases += draw_cases(random.Random(options.seed), options.draw)
    cases = [replace(case, cache_bits=options.cache_bits) for case in cases]
    cases += [Case(name, arguments, list(SHARED_RUNGS), **how)
              for name, (arguments, how) in TOGETHER.items() if name in options.together]  # fmt: skip
    cases = [replace(case, step_sizes=(options.chunk_tokens, options.verified_tokens)) for case in cases]
    rows: list[dict[str, Any]] = []
    figures = Figures("Memory: planned and held, MiB", options.results)
    told = ", 8 bit" * (options.cache_bits == 8)
    if (options.chunk_tokens, options.verified_tokens) != USUAL_SIZES:
        told += f", {options.chunk_tokens} tokens a pass, {options.verified_tokens} verified"

    def note(some: list[dict[str, Any]]) -> None:
        rows.extend(some)
        if options.json:
            options.json.write_text(json.dumps(rows, indent=1))
        for row in some:
            name = f"{row['model']}, {row['kernel']}, {row['context_tokens']} × {row['num_slots']}{told}"
            for column in ("planned_mib", "peak_mib", "planned_context_mib", "context_mib"):
                if row[column] == row[column]:
                    figures.add(name, column.removesuffix("_mib"), row[column])
            figures.add(name, "held", float(row["with_plan"] == "fits"))
            figures.add(name, "less is too little", float(had_too_little(row["with_less"])))

    deadline = Deadline.after(options.limit_s)
    run_all(options.folder, cases, options.kernels, options.captured, options.explain, note, deadline)
    print(table(rows))
    return 0 if all(row["with_plan"] == "fits" and had_too_little(row["with_less"]) for row in rows) else 1


def had_too_little(outcome: str) -> bool:
    """Whether memory is why a rung ended so. Steps that could not be captured for want of it run otherwise, and fit."""
    return outcome in (OUT_OF_MEMORY, ONLY_OTHERWISE)


def run_all(
    folder: Path,
    cases: list[Case],
    kernels: list[str],
    captured: bool,
    explain: Path | None,
    note: Callable[[list[dict[str, Any]]], None],
    deadline: Deadline,
) -> None:
    """Make every checkpoint, then climb each kernel's ladder in a process of its own, as many as the card holds; `note`
    hears of each one's rows. None begins after `deadline`."""
    made = {case.name: threading.Event() for case in cases}
    room, noting = Room(BUDGET_MIB), threading.Lock()

    def make(case: Case) -> None:
        target = folder / case.name
        if not deadline.left_s or (target / "config.json").is_file():
            made[case.name].set()
            return
        command = [sys.executable, "-m", "benchmarks.random_model", case.arguments[0], str(target)]
        try:
            subprocess.run(command + case.arguments[1:], check=True)
        finally:
            made[case.name].set()

    def climb_in_child(pair: tuple[Case, str]) -> None:
        case, kernel = pair
        made[case.name].wait()
        if not deadline.left_s or not (folder / case.name / "config.json").is_file():
            print(f"{case.name} {kernel}: not measured", file=sys.stderr, flush=True)
            return
        with room.take(needed_mib(folder, case, kernel, captured)):
            command = [sys.executable, "-m", "benchmarks.memory_ladder", str(folder)]
            command += ["--child", json.dumps(list(astuple(case))), kernel]
            command += ["--captured"] * captured + (["--explain", str(explain)] if explain else [])
            done = subprocess.run(command, capture_output=True, text=True, env=os.environ | ENVIRONMENT)
        if done.returncode:
            print(f"{case.name} {kernel}: {done.stderr.strip()[-900:]}", file=sys.stderr, flush=True)
            return
        rows: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
        with noting:
            note(rows)
        print(f"{case.name} {kernel}: {done.stderr[-600:]}\n{table(rows)}", file=sys.stderr, flush=True)

    with ThreadPoolExecutor(6) as makers, ThreadPoolExecutor(9) as climbers:
        makers.map(make, cases)
        list(climbers.map(climb_in_child, itertools.product(cases, kernels)))


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
    return max(plan_of(folder, case, kernel, *rung, captured).total for rung in case.rungs) / MIB + 500


def plan_of(folder: Path, case: Case, kernel: str, context_tokens: int, num_slots: int, captured: bool) -> MemoryPlan:
    shape = read_shape(read_checkpoint(folder / case.name), captured, case.room, case.cache_bits)
    cache = case.cache(context_tokens, num_slots)
    return make_plan(shape, kernel_named(kernel), (9, 0), context_tokens, num_slots, case.sizes, captured, cache)


def climb(folder: Path, case: Case, kernel_name: str, captured: bool, explain: Path | None) -> list[Row]:
    """One model with one kernel: loaded once, under the smallest rung's cap, then every rung with its own."""
    import torch

    from core.memory.load_plan import choose_dtype
    from core.tokenizer.read import read_tokenizer
    from core.worker.model.adapters import add_adapters
    from core.worker.model.device_map import DeviceMap
    from core.worker.model.expert_adapters import add_expert_adapters
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
    rungs = [(plan_of(folder, case, kernel_name, *rung, captured), *rung) for rung in case.rungs]
    rungs.sort(key=lambda rung: rung[0].allocated)
    use_capturable_stream()
    cap(rungs[0][0].allocated)
    with torch.inference_mode():
        dtype = getattr(torch, choose_dtype(checkpoint, kernel, device))
        shape = read_shape(checkpoint, captured, case.room, case.cache_bits)
        places = DeviceMap((torch.device("cuda:0"),))
        model = load_model(checkpoint, shape, kernel, places, dtype, case.sizes.chunk_tokens, lambda _: None)
        banks = None
        if case.room.count:
            most_slots = max(num_slots for _, num_slots in case.rungs)
            banks = add_adapters(model, adaptable_matrices(checkpoint), case.room, most_slots)
        if banks is not None and case.room.reaches_experts:
            add_expert_adapters(model, adaptable_stacks(checkpoint), banks)
    loading_mib = torch.cuda.max_memory_reserved() / MIB
    planned_mib = (rungs[0][0].weights + rungs[0][0].scratch) / MIB
    held_mib = torch.cuda.memory_allocated() / MIB
    print(f"loaded: {held_mib:.1f} held for {planned_mib:.1f} planned, peak {loading_mib:.0f} MiB", file=sys.stderr)
    tokenizer, rows = read_tokenizer(folder / name), []
    for plan, context_tokens, num_slots in rungs:
        tried = Filling(case, model, banks, tokenizer, context_tokens, num_slots, shape)
        outcome, peak_mib, context_mib = fill(tried, plan.allocated)
        if explain:
            written = explain / f"{name.split(':')[0]} {kernel_name} {context_tokens}x{num_slots}.txt".replace(" ", "_")
            with explained(written):
                fill(tried, UNCAPPED_BYTES)
        if outcome != "fits":
            _, peak_mib, context_mib = fill(tried, UNCAPPED_BYTES)
        less = plan.allocated - (0.01 * plan.total + 64 * MIB)
        outcome_less, *_ = fill(tried, int(less))
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


@dataclass(frozen=True, slots=True)
class Filling:
    """A rung of `case`, with the model that is loaded for it."""

    case: Case
    model: Any
    banks: Any
    tokenizer: Any
    context_tokens: int
    num_slots: int
    shape: ModelShape

    def prompt(self, request: int) -> tuple[int, ...]:
        """Of all but the last tokens. Those that are alike have another last one each."""
        count, offset = self.context_tokens - DECODED_TOKENS, 0 if self.case.is_alike else request
        return (*((7 * place + offset) % 500 + 5 for place in range(count - 1)), request + 5)


def fill(tried: Filling, num_bytes: int) -> tuple[str, float, float]:
    """Fill every slot to its last token under a cap, each with one of the adapters' places where there are any: how it
    ended, the most that was reserved, and what the process then held beside that, MiB. Where there are not tokens for
    all, chats wait for others to end."""
    import torch
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    from core.engine.protocol import Generate, PromptStarted
    from core.engine.sampling_params import Sampling
    from core.worker.decode.cuda_graphs import ATTENTION
    from core.worker.decode.steps import EagerSteps, Steps
    from core.worker.load import fuse_and_capture, spread_pages
    from core.worker.model import attention
    from core.worker.model.model_runner import ModelRunner
    from core.worker.scheduler import Scheduler

    gc.collect()
    cap(num_bytes)
    torch.cuda.reset_peak_memory_stats()
    ends: list[Any] = []
    case, model, banks, shape = tried.case, tried.model, tried.banks, tried.shape
    context_tokens, num_slots = tried.context_tokens, tried.num_slots
    model.config._attn_implementation = attention.register()
    slots = scheduler = None
    steps: Steps | None = None
    chunk_tokens = case.sizes.chunk_tokens
    try:
        with torch.inference_mode():
            if banks is not None:
                # No slot has an adapter, as after a load: the filling before this one left its own.
                for slot in range(banks.num_slots):
                    banks.set_slot(slot, None)
                banks.select(range(banks.num_slots))
            cache = case.cache(context_tokens, num_slots)
            num_pages = cache.num_pages(num_slots, context_tokens) if shape.is_capturable else None
            slots = ModelRunner(
                model, num_slots, context_tokens, banks, num_pages=num_pages, cache_bits=shape.cache_bits
            )
            if shape.is_capturable:
                spread_pages(slots.cache)
                steps = fuse_and_capture(slots, model, case.sizes, shape.is_merged)
            else:
                steps = EagerSteps(slots)
            # Where graphs have no room, smaller ones are taken.
            chunk_tokens = max(steps.pass_sizes, default=chunk_tokens)
            scheduler = Scheduler(steps, tried.tokenizer, frozenset(), chunk_tokens, ends.append)
            # The places are empty; what is computed with them takes the same.
            for slot in range(num_slots if banks is not None else 0):
                banks.set_slot(slot, slot % banks.room.count)
            for request in range(num_slots):
                sampling = Sampling(temperature=0.8, top_p=0.9, repetition_penalty=1.1, max_new_tokens=context_tokens)
                scheduler.submit(Generate(request, tried.prompt(request), sampling))
                # Chats share what another one has read.
                for _ in range(2 + context_tokens // chunk_tokens if case.is_alike and not request else 0):
                    scheduler.step()
            while not scheduler.is_idle:
                scheduler.step()
        full = sum(getattr(event, "reason", None) == "context" for event in ends)
        outcome = "fits" if full == num_slots else f"only {full} full"
        num_reused = sum(event.reused_tokens for event in ends if isinstance(event, PromptStarted))
        if case.is_alike and num_slots > 1 and num_reused == 0:
            outcome = "nothing shared"
        if shape.is_capturable:
            is_recorded = getattr(steps, "is_recorded", None) is shape.is_merged
            outcome = outcome if is_recorded and chunk_tokens == case.sizes.chunk_tokens else ONLY_OTHERWISE
    except torch.cuda.OutOfMemoryError as error:
        print(f"{context_tokens} x {num_slots}: {error}", file=sys.stderr)
        outcome = OUT_OF_MEMORY
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
    handles = map(pynvml.nvmlDeviceGetHandleByIndex, range(pynvml.nvmlDeviceGetCount()))
    processes = itertools.chain.from_iterable(map(pynvml.nvmlDeviceGetComputeRunningProcesses, handles))
    own = [one for one in processes if one.pid == os.getpid()]
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
