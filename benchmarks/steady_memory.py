"""Does anything grow after a load: loads through the runner, fills every chat to its last token, watches NVML.

Run on a GPU with folders of checkpoints; prints a Markdown table in MiB. Exit code 1 where a model held more than its
plan or grew after its load.
"""

from __future__ import annotations

import argparse
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from core.common.errors import EngineError
from core.engine.protocol import MemoryFacts
from core.engine.runner import Runner
from core.engine.sampling_params import Sampling
from core.gpu.snapshot import read_snapshot
from core.memory.sizes import MIB

KERNELS = ("llamadeck", "triton")
LOAD_S = 1800.0
DECODED_TOKENS = 40
LOOK_S = 0.02


@dataclass(frozen=True, slots=True)
class Held:
    """Of one process, in MiB: planned, taken by the warm-up, as NVML says after the load, and at the most later."""

    planned: float
    taken: float
    loaded: int
    most: int


class Watch:
    """The most that a process held while the block ran, read from NVML all the time."""

    def __init__(self, pid: int) -> None:
        self.most_mib = process_mib(pid)
        self._pid = pid
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self.most_mib = max(self.most_mib, process_mib(self._pid))

    def _look(self) -> None:
        while not self._ended.wait(LOOK_S):
            self.most_mib = max(self.most_mib, process_mib(self._pid))


def process_mib(pid: int) -> int:
    processes = [process for gpu in read_snapshot().gpus for process in gpu.processes]
    return sum(process.used_mib or 0 for process in processes if process.pid == pid)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--kernels", nargs="*", default=KERNELS)
    parser.add_argument("--context", type=int, default=4096)
    parser.add_argument("--chats", type=int, default=4)
    options = parser.parse_args()
    print("| model | kernel | planned | taken by the warm-up | NVML after the load | at the most later |")
    print("|---|---|---|---|---|---|")
    is_right = True
    for folder in options.folders:
        for kernel in options.kernels:
            held = measure(folder, kernel, options.context, options.chats)
            row = f"{held.planned:.0f} | {held.taken:.0f} | {held.loaded} | {held.most}"
            print(f"| {folder.name} | {kernel} | {row} |", flush=True)
            is_right &= held.most <= held.planned and held.most == held.loaded
    return 0 if is_right else 1


def measure(folder: Path, kernel: str, context_tokens: int, num_chats: int) -> Held:
    runner = Runner()
    runner.load(folder, context_tokens, num_chats, kernel)
    try:
        state = runner.wait_while_loading(LOAD_S)
        if state.facts is None or state.facts.memory is None or runner.worker_pid is None:
            raise state.error or EngineError("nothing_loaded")
        loaded = process_mib(runner.worker_pid)
        with Watch(runner.worker_pid) as watch:
            fill(runner, context_tokens, num_chats)
        memory: MemoryFacts = state.facts.memory
        taken = memory.peak_bytes + (memory.context_bytes or 0)
        return Held(memory.plan.total / MIB, taken / MIB, loaded, watch.most_mib)
    finally:
        runner.unload()


def fill(runner: Runner, context_tokens: int, num_chats: int) -> None:
    """Every chat to its last token, each with another way of drawing."""
    ways: list[Callable[[], Sampling]] = [
        lambda: Sampling(temperature=0.0, max_new_tokens=context_tokens),
        lambda: Sampling(temperature=0.8, top_p=0.95, repetition_penalty=1.1, max_new_tokens=context_tokens),
        lambda: Sampling(temperature=1.5, top_p=1.0, min_p=0.05, max_new_tokens=context_tokens),
        lambda: Sampling(temperature=1.0, top_k=50, max_new_tokens=context_tokens),
    ]
    prompts = [
        tuple((7 * place + chat) % 500 + 5 for place in range(context_tokens - DECODED_TOKENS))
        for chat in range(num_chats)
    ]
    answers = [runner.generate(prompt, ways[chat % len(ways)]()) for chat, prompt in enumerate(prompts)]
    for answer in answers:
        answer.wait()
        if answer.error is not None:
            raise answer.error


if __name__ == "__main__":
    sys.exit(main())
