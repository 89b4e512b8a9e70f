"""Holds the plan of quantizing against what it took: makes models of random weights, quantizes each, and compares.

`python -m benchmarks.quantize_plan FOLDER --models 7B:8 Mixtral-8x7B:2 [--limit-s N] [--json FILE]`: names of
benchmarks/shapes.json, each with the number of layers where it shall be fewer than the real one's. Memory depends on
one layer alone and time on their number, so few tell of all: the time of the whole model is scaled from what each layer
took and what came before the first. A job that is not done after `--limit-s` is ended, and what it did is told.

"held": the plan is never below what was taken, and at most 1 % and 64 MiB above. Perplexity of random weights tells
nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from benchmarks.figures import Figures, add_results
from benchmarks.plain_model import make_plain, plain_shape
from benchmarks.random_model import SHAPES
from benchmarks.steady_memory import process_mib
from core.common.errors import DeckError
from core.gpu.snapshot import read_snapshot
from core.memory.sizes import MIB
from core.quantize.job import QuantizeJob
from core.quantize.options import QuantizeOptions
from core.quantize.plan import QuantizePlan, plan_job
from core.quantize.queue import QuantizeQueue
from core.quantize.target import folder_target

POLL_S, CLOSE_S = 0.2, 30.0
KINDS = ("vram", "ram", "disk", "result")


@dataclass(slots=True)
class Watched:
    """What looks at a job each POLL_S have seen: the most of each, MiB, and when layers were done, seconds."""

    vram_mib: int = 0
    ram_mib: int = 0
    disk_mib: int = 0
    first_layer_s: float = 0.0
    last_layer_s: float = 0.0
    layer: int = 0
    stages_s: dict[str, float] = field(default_factory=dict)


@dataclass(slots=True)
class Row:
    """One model; times in seconds, memory in MiB. `scaled_s`: of the model with all its layers."""

    model: str
    layers: int
    all_layers: int
    device: str
    options: str
    planned_s: float
    planned: dict[str, int]
    took_s: float = 0.0
    taken: dict[str, int] = field(default_factory=dict)
    layer_s: float = 0.0
    scaled_s: float = 0.0
    planned_whole_s: float = 0.0
    stages_s: dict[str, float] = field(default_factory=dict)
    facts: dict[str, object] = field(default_factory=dict)
    said: str = ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--models", nargs="+", default=["7B:8"], metavar="MODEL[:LAYERS]")
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--group-size", type=int, default=128)
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--limit-s", type=float, default=540.0, help="for all models together")
    add_results(parser)
    parser.add_argument("--keep-models", action="store_true")
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    begin_s = time.monotonic()
    os.environ["LLAMADECK_MODELS"] = str(arguments.folder / "models")
    device = "cpu" if arguments.cpu or read_snapshot().error is not None else "cuda:0"
    rows: list[Row] = []
    figures = Figures("Quantizing: planned and taken", arguments.results)
    for name, layers in map(parse_model, arguments.models):
        left_s = arguments.limit_s - (time.monotonic() - begin_s)
        rows.append(measure(arguments.folder, name, layers, QuantizeOptions(arguments.bits, arguments.group_size),
                            device, left_s, arguments.keep_models))  # fmt: skip
        tell(rows[-1], figures)
        if arguments.json is not None:
            arguments.json.write_text(json.dumps([asdict(row) for row in rows], indent=1))
        print(table(rows), flush=True)
    return 1 if any(row.said for row in rows) else 0


def tell(row: Row, figures: Figures) -> None:
    name = f"{row.model}, {row.layers} of {row.all_layers} layers, {row.options}"
    pairs = {"time, s": (row.planned_s, row.took_s), "whole model, s": (row.planned_whole_s, row.scaled_s)}
    pairs |= {f"{kind}, MiB": (row.planned[kind], row.taken.get(kind, 0)) for kind in KINDS}
    for column, (planned_value, taken) in pairs.items():
        figures.add(name, f"{column}: planned", planned_value)
        if taken:
            figures.add(name, f"{column}: taken", taken)
    for stage, took_s in row.stages_s.items():
        figures.add(name, f"{stage}, s", took_s)
    if row.said:
        figures.fail(name, "end", row.said)


def parse_model(text: str) -> tuple[str, int | None]:
    name, _, layers = text.partition(":")
    if name not in SHAPES or (layers and not layers.isdecimal()):
        sys.exit(f"{text} is no MODEL or MODEL:LAYERS; models: {', '.join(sorted(SHAPES))}")
    return name, int(layers) if layers else None


def measure(
    folder: Path, name: str, layers: int | None, options: QuantizeOptions, device: str, limit_s: float, is_kept: bool
) -> Row:
    """One model from nothing to its row, whatever happens."""
    begin_s = time.monotonic()
    shape, whole = plain_shape(name, layers), plain_shape(name)
    plan = plan_job(shape, options, device)
    row = Row(name, shape.num_layers, whole.num_layers, device_name(device), options.label, plan.time_s, planned(plan))
    row.planned_whole_s = plan_job(whole, options, device).time_s
    print(
        f"{name}, {row.layers} of {row.all_layers} layers: planned {plan.time_s:.0f} s, {row.planned} MiB", flush=True
    )
    source = folder / f"random-{name}-{row.layers}"
    try:
        if not (source / "config.json").exists():
            make_plain(source, name, layers)
            print(f"made in {time.monotonic() - begin_s:.0f} s", flush=True)
        quantize(row, source, options, device, limit_s - (time.monotonic() - begin_s), folder / "models")
    except (DeckError, OSError, RuntimeError) as error:
        row.said = str(error)
        print(f"{name}: {error}", flush=True)
    if not is_kept:
        shutil.rmtree(source, ignore_errors=True)
        shutil.rmtree(folder / "models", ignore_errors=True)
    return row


def planned(plan: QuantizePlan) -> dict[str, int]:
    return {kind: getattr(plan, f"{kind}_bytes") // MIB for kind in KINDS}


def quantize(row: Row, source: Path, options: QuantizeOptions, device: str, limit_s: float, models: Path) -> None:
    """Run the job, at most `limit_s`, and write what it took into `row`. Raises DeckError."""
    begin_s, seen = time.monotonic(), Watched()
    queue = QuantizeQueue()
    job = queue.add(folder_target(source), options, device, "made")
    try:
        is_done = watch(job, seen, limit_s, models)
        row.took_s = round(time.monotonic() - begin_s, 1)
        if not is_done:
            row.said = f"ended after {row.took_s:.0f} s, in layer {seen.layer} of {row.layers}"
            queue.cancel(job.id)
            job.wait(CLOSE_S)
    finally:
        queue.close()
    state = job.snapshot()
    result = state.result or {}
    if seen.layer > 1:
        row.layer_s = round((seen.last_layer_s - seen.first_layer_s) / (seen.layer - 1), 2)
    row.stages_s = result.get("took_s") or seen.stages_s
    row.facts = {key: result[key] for key in ("rows", "tokens", "quantizer", "peak_vram_bytes") if key in result}
    row.taken = {"vram": seen.vram_mib, "ram": seen.ram_mib, "disk": seen.disk_mib}
    if result:
        row.taken["result"] = used_bytes(models / "made") // MIB
    row.scaled_s = round(scaled_s(row), 1)
    if state.error is not None:
        raise state.error


def watch(
    job: QuantizeJob, seen: Watched, limit_s: float, models: Path, clock: Callable[[], float] = time.monotonic
) -> bool:
    """Look at the job until it rests; whether it did within `limit_s`."""
    begin_s = last_s = clock()
    stage, told = "", ""
    while not job.wait(POLL_S):
        now_s = clock()
        state, pid = job.snapshot(), job.pid
        if state.stage != stage:
            if stage:
                seen.stages_s[stage] = round(now_s - last_s, 1)
            stage, last_s = state.stage, now_s
        if state.layer != seen.layer:
            seen.layer, seen.last_layer_s = state.layer, now_s
            seen.first_layer_s = seen.first_layer_s or now_s
        seen.disk_mib = max(seen.disk_mib, used_bytes(models) // MIB)
        if pid is not None:
            seen.vram_mib = max(seen.vram_mib, process_mib(pid))
            seen.ram_mib = max(seen.ram_mib, ram_mib(pid))
        text = f"{state.stage} {state.layer}/{state.layers}"
        if text != told:
            print(f"{now_s - begin_s:6.0f} s  {text}, {seen.vram_mib} MiB VRAM, {seen.ram_mib} MiB RAM", flush=True)
            told = text
        if now_s - begin_s > limit_s:
            return False
    seen.stages_s[stage] = round(clock() - last_s, 1)
    return True


def scaled_s(row: Row) -> float:
    """What the whole model takes: what the layers took, as often as it has them; the perplexities, which read all of
    them; and all else once: the start, what comes before the first layer, and the question at the end."""
    if not row.layer_s:
        return 0.0
    reading = row.stages_s.get("before", 0.0) + row.stages_s.get("after", 0.0)
    once = row.took_s - reading - row.layer_s * row.layers if "after" in row.stages_s else 0.0
    return row.layer_s * row.all_layers + reading * row.all_layers / row.layers + max(0.0, once)


def ram_mib(pid: int) -> int:
    """What a process has in memory now, but for files, of which the system can let go; 0 for one that has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text("ascii", "replace").splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith(("RssAnon:", "RssShmem:"))) // 1024


def device_name(device: str) -> str:
    gpu = next(iter(read_snapshot().gpus), None)
    return gpu.label if device != "cpu" and gpu is not None else device


def is_held(planned_mib: int, taken_mib: int) -> bool:
    return taken_mib <= planned_mib <= 1.01 * taken_mib + 64


def table(rows: Sequence[Row]) -> str:
    """Markdown; of each kind of memory the plan, a slash, and what was taken, MiB."""
    heads = ["model", "layers", "a layer, s", "all, s", "whole model, s", *KINDS, "held"]
    lines = [heads, ["---"] * len(heads)]
    for row in rows:
        pairs = [(row.planned[kind], row.taken.get(kind)) for kind in KINDS]
        held = [kind for kind in ("vram", "ram", "disk") if is_held(row.planned[kind], row.taken.get(kind, 0))]
        lines.append([
            row.model, f"{row.layers} of {row.all_layers}", f"{row.layer_s:.2f}",
            f"{row.planned_s:.0f} / {row.took_s:.0f}", f"{row.planned_whole_s:.0f} / {row.scaled_s:.0f}",
            *(f"{plan} / {'–' if taken is None else taken}" for plan, taken in pairs), ", ".join(held) or "–",
        ])  # fmt: skip
    said = [f"{row.model}: {row.said}" for row in rows if row.said]
    return "\n".join([*(f"| {' | '.join(cells)} |" for cells in lines), *said])


def used_bytes(folder: Path) -> int:
    total = 0
    for path, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(path, name)).st_size
            except FileNotFoundError:
                continue
    return total


if __name__ == "__main__":
    sys.exit(main())
