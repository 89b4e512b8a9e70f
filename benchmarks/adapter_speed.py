"""What LoRA adapters cost: a model of random weights that writes with adapters and without, beside vLLM with the same.

`python -m benchmarks.adapter_speed FOLDER` makes the model and its adapters, of all matrices of its layers, in FOLDER
where they are not there yet. Each chat uses one of the adapters, in turns. With `--vllm SITE`, a folder that holds
vLLM's packages, vLLM is measured with `enable_lora` and without, once our engine has ended.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from benchmarks.deadline import Deadline, add_limit
from benchmarks.engine import Engine
from benchmarks.figures import OURS, VLLM, Figures, add_results, markdown
from benchmarks.random_model import SHAPES
from benchmarks.speed_table import Case, Row, Vllm, add_vllm, fill_ours, fill_vllm, make, written
from core.checkpoint.checkpoint import read_checkpoint
from core.engine.request_options import AdapterUse
from core.memory.adapter_room import adaptable_matrices
from tests.support.adapters import write_adapter

# No first tokens: prompts are read once, and are not what this is about.
CELLS = written(1, 8)
# Small, so that hidden values stay as large as they are without.
SPREAD = 0.01


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--shape", choices=SHAPES, default="7B", metavar="SHAPE", help="a model of benchmarks/shapes.json"
    )
    parser.add_argument("--adapters", type=int, default=4, metavar="N")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--engines", nargs="*", choices=("ours", "vllm"), default=["ours", "vllm"])
    add_vllm(parser)
    add_results(parser)
    add_limit(parser)
    options = parser.parse_args()
    deadline, figures = Deadline.after(options.limit_s), Figures("Adapters", options.results)
    folder = options.folder / options.shape
    make([options.shape], folder)
    uses = make_adapters(options.folder / f"adapters-{options.shape}", folder, options.adapters, options.rank)
    without = Row(options.shape, read_checkpoint(folder), Case(options.shape, CELLS))
    name = f"{options.shape}, {len(uses)} adapters of rank {options.rank}"
    used = replace(without, name=name, adapters=uses, rank=options.rank)
    if "ours" in options.engines:
        measure(without, used, OURS, lambda row: fill_ours(row, Engine, figures, deadline), figures)
    if "vllm" in options.engines and options.vllm is not None:
        vllm = Vllm(options.vllm, options.vllm_python)
        measure(without, used, VLLM, lambda row: fill_vllm(row, vllm, figures, deadline), figures)
    print(markdown(figures.found), flush=True)
    return 1 if any(one.engine == OURS for one in figures.failures) else 0


def make_adapters(folder: Path, model: Path, count: int, rank: int) -> list[AdapterUse]:
    """Random adapters of all quantized matrices; those that lie there already are not made again."""
    uses = []
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a") as lock:
        # Both engines' jobs may begin at once.
        fcntl.flock(lock, fcntl.LOCK_EX)
        for number in range(count):
            name = f"rank{rank}-{number}"
            if not (folder / name / "adapter_config.json").is_file():
                write_adapter(folder / name, model, rank, ending="", spread=SPREAD, seed=number)
                name_targets(folder / name / "adapter_config.json", model)
            uses.append(AdapterUse(name, folder / name))
    return uses


def name_targets(config: Path, model: Path) -> None:
    """Name the matrices that an adapter changes, as PEFT does and as vLLM wants it."""
    targets = sorted({name.rpartition(".")[2] for name in adaptable_matrices(read_checkpoint(model))})
    config.write_text(json.dumps(json.loads(config.read_text("utf-8")) | {"target_modules": targets}), "utf-8")


def measure(without: Row, used: Row, engine: str, fill: Callable[[Row], None], figures: Figures) -> None:
    """Both rows, and what is left of the speed with adapters, in percent."""
    for row in (without, used):
        fill(row)
    for cell in without.case.cells:
        rates = [figures.median(row.name, cell.column, engine) for row in (without, used)]
        if rates[0] and rates[1]:
            figures.add(used.name, f"% of {cell.column} without", 100 * rates[1] / rates[0], engine)


if __name__ == "__main__":
    sys.exit(main())
