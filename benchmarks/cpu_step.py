"""Where a token's time goes on a CPU: the parts of one step of the starter, in CPU time of one core.

`python -m benchmarks.cpu_step [FOLDER] [--position N]`: FOLDER: of another model that the lean pass takes; N: after how
many tokens the step comes, 100. One thread's own CPU time is told, which depends less on what else runs than the clock
does; it does not show what more threads gain.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from core.checkpoint.checkpoint import read_checkpoint
from core.engine.protocol import Load
from core.starter import build as starter
from core.worker.decode.cpu_decode import FastDecodePass
from core.worker.decode.steps import EagerSteps
from core.worker.load import load_engine

CONTEXT_TOKENS = 1024
ROWS = (1, 8)
ROUNDS, WARM_UP = 30, 3


class Parts:
    """The CPU time of each part, in all steps since the last `clear`."""

    def __init__(self) -> None:
        self.taken_s: defaultdict[str, float] = defaultdict(float)

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            begin_s = time.thread_time()
            result = function(*arguments)
            self.taken_s[name] += time.thread_time() - begin_s
            return result

        return run

    def watch(self, fast: FastDecodePass) -> None:
        for layer in fast._layers:
            for field in fields(layer):
                if callable(function := getattr(layer, field.name)):
                    setattr(layer, field.name, self.timed(field.name, function))
        for name in ("_heads", "_write", "_attend", "_angles", "_norm", "_head"):
            setattr(fast, name, self.timed(name.lstrip("_"), getattr(fast, name)))


def step_ms(fast: FastDecodePass, rows: int, position: int) -> float:
    """The median of ROUNDS steps that decode a token of each of `rows` slots."""
    taken_s = []
    for _ in range(WARM_UP + ROUNDS):
        begin_s = time.thread_time()
        fast.forward(range(rows), [5] * rows, [position] * rows)
        taken_s.append(time.thread_time() - begin_s)
    return statistics.median(taken_s[WARM_UP:]) * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cpu_step")
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--position", type=int, choices=range(CONTEXT_TOKENS), default=100, metavar="N")
    arguments = parser.parse_args()
    position = arguments.position
    folder = arguments.folder or starter.ensure_cached(lambda stage, fraction: None)
    command = Load(folder, CONTEXT_TOKENS, max(ROWS), on_cpu=True)
    steps = load_engine(read_checkpoint(folder), command, lambda stage, fraction: None).steps
    assert isinstance(steps, EagerSteps)
    fast = steps._fast_decode
    if fast is None:
        raise SystemExit("The lean pass does not take this model.")
    torch.set_num_threads(1)
    with torch.inference_mode():
        for rows in ROWS:
            print(f"{rows} rows: {step_ms(fast, rows, position):.1f} ms a step")
        parts = Parts()
        parts.watch(fast)
        for rows in ROWS:
            parts.taken_s.clear()
            step_ms(fast, rows, position)
            told = (f"{name} {taken_s / (WARM_UP + ROUNDS) * 1e3:.2f}" for name, taken_s in parts.taken_s.items())
            print(f"{rows} rows, ms a step (`heads` has `qkv` in it): {', '.join(told)}")


if __name__ == "__main__":
    main()
