"""Whether two cards that split every matrix by its columns would be worth it for one chat: what their exchanges take.

`python -m benchmarks.two_card_exchange` splits the rows of a Llama-2 70B over two cards. Four times a layer each card
needs the half that the other computed: after attention, its output matrix, the gated product and the last matrix. One
exchange is measured of 320 (80 layers) in a captured graph on each card, for 1, 8 and 32 rows:

- by flags: a card writes its half into the other's memory, then a flag for each block, and waits for the other's flags;
- by words: every four bytes come with their own flag, in one word of eight;
- both with the card itself in place of the other: what is no link's;
- by NCCL's all_gather, captured, a process a card;
- by copies of the driver with events between both streams, as one graph of both cards, and enqueued one by one.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Protocol

import torch

from benchmarks.deadline import Deadline, add_limit
from benchmarks.figures import OURS, Figures, add_results, markdown
from benchmarks.measuring import Unable
from benchmarks.speed_table import told
from core.worker.decode.device_link import needs_host
from core.worker.kernels.nvrtc import CudaCodeError, CudaModule, library, read_source

ROWS, HIDDEN, INTERMEDIATE = (1, 8, 32), 8192, 28672
LAYERS, A_LAYER = 80, 4
EXCHANGES = LAYERS * A_LAYER
# A round: graphs enqueued on both cards, so often each.
REPLAYS, ROUNDS = 20, 5
NUM_THREADS, MOST_BLOCKS = 256, 96
# As the kernels have them.
FLAG_STEP, LOST = 32, 1
FAULTS = {LOST: "the other card was not heard of", 2: "what arrived was not what was sent", 3: "both"}
WAYS = ("flags", "words")
NCCL_S = 90.0
SOURCE = Path(__file__).with_suffix(".cu")


@dataclass(frozen=True, slots=True)
class Case:
    rows: int
    columns: int

    @property
    def row(self) -> str:
        """Its name in the table."""
        return f"{self.rows} x {self.columns}"

    @property
    def num_blocks(self) -> int:
        """A thread takes 8 values of the card's half at a time."""
        return min(MOST_BLOCKS, -(-self.rows * self.columns // 16 // NUM_THREADS))


CASES = tuple(Case(rows, columns) for rows in ROWS for columns in (HIDDEN, INTERMEDIATE))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nccl", nargs=2, metavar=("RANK", "FILE"), help=argparse.SUPPRESS)
    add_results(parser)
    add_limit(parser)
    options = parser.parse_args()
    if options.nccl:
        all_gather_times(int(options.nccl[0]), Path(options.nccl[1]))
    figures, deadline = Figures("Exchange between two cards, µs", options.results), Deadline.after(options.limit_s)
    measure(figures, deadline)
    for rows in ROWS:
        for way in (*WAYS, "NCCL", "copies"):
            add_token(figures, rows, way)
    print(markdown(figures.found), flush=True)
    return 1 if figures.failures else 0


def measure(figures: Figures, deadline: Deadline) -> None:
    devices = [torch.device("cuda", 0), torch.device("cuda", 1)]
    # It lets each card write into the other's memory, too.
    if any([needs_host(*devices), needs_host(*devices[::-1])]):
        figures.fail(CASES[0].row, WAYS[0], "the cards do not reach each other's memory")
        return
    for case in CASES:
        for way in WAYS:
            for name, pair in ((way, devices), (f"{way}, itself", devices[:1])):
                with faults_told(figures, case, name):
                    if len(pair) == 2:
                        check(Exchange(case, way, pair, verify=True))
                    add_times(figures, case, name, Exchange(case, way, pair), deadline)
        copies = Copies(case, devices)
        with faults_told(figures, case, "copies"):
            add_times(figures, case, "copies", copies.capture(), deadline)
        with faults_told(figures, case, "copies, enqueued"):
            add_times(figures, case, "copies, enqueued", copies, deadline)
    with told(figures, CASES[0].row, "NCCL", OURS):
        add_nccl(figures, min(NCCL_S, deadline.require()))


@contextmanager
def faults_told(figures: Figures, case: Case, name: str) -> Iterator[None]:
    """Let the table tell of what CUDA or torch refuses, too."""
    with told(figures, case.row, name, OURS):
        try:
            yield
        except RuntimeError as error:
            raise Unable(str(error).splitlines()[0]) from error


class Side:
    """One card's part, with its graph of EXCHANGES."""

    def __init__(self, case: Case, device: torch.device) -> None:
        self.device, self.stream = device, torch.cuda.Stream(device)
        pieces = case.rows * case.columns // 16
        self.full = torch.ones((2, case.rows, case.columns), dtype=torch.float16, device=device)
        self.words = torch.zeros((2, pieces, 4), dtype=torch.int64, device=device)
        self.flags = torch.zeros(case.num_blocks * FLAG_STEP, dtype=torch.int32, device=device)
        self.counts = torch.zeros(case.num_blocks, dtype=torch.int32, device=device)
        self.fault = torch.zeros(1, dtype=torch.int32, device=device)
        self.graph = torch.cuda.CUDAGraph()


class Exchange:
    """Graphs on both cards, or on one that exchanges with itself."""

    def __init__(self, case: Case, way: str, devices: Sequence[torch.device], verify: bool = False) -> None:
        self.sides = [Side(case, device) for device in devices]
        launches = [self._launch(case, way, card, verify) for card in range(len(devices))]
        synchronize()
        for side, launch in zip(self.sides, launches, strict=True):
            with torch.cuda.device(side.device), torch.cuda.graph(side.graph, stream=side.stream):
                for _ in range(EXCHANGES):
                    launch()
        # A first launch brings a graph to its card, and may wait for all that runs: in it no card waits for the other.
        self._set_fault(LOST)
        self.replay()
        self._set_fault(0)

    def _set_fault(self, fault: int) -> None:
        synchronize()
        for side in self.sides:
            side.fault.fill_(fault)
        synchronize()

    def _launch(self, case: Case, way: str, card: int, verify: bool) -> Callable[[], None]:
        side, other = self.sides[card], self.sides[-1 - card]
        kernel = module_for(side.device, verify).kernel(f"exchange_by_{way}")
        sent = (other.full, side.flags, other.flags) if way == "flags" else (side.words, other.words)
        arguments = (side.full, *sent, side.counts, side.fault, case.rows, case.columns, card)
        return lambda: kernel((case.num_blocks, 1, 1), NUM_THREADS, *arguments)

    def replay(self) -> None:
        """Enqueue both graphs. The host waits for neither in between: each needs the other to run."""
        for side in self.sides:
            with torch.cuda.device(side.device), torch.cuda.stream(side.stream):
                side.graph.replay()

    def require_sound(self) -> None:
        """Raises Unable where a card was not heard of in time, or what arrived was not what it had sent last."""
        synchronize()
        if fault := max(int(side.fault.item()) for side in self.sides):
            raise Unable(FAULTS[fault])


def check(exchange: Exchange) -> None:
    for _ in range(REPLAYS):
        exchange.replay()
    exchange.require_sound()


@cache
def module_for(device: torch.device, verify: bool) -> CudaModule:
    return CudaModule(read_source() + SOURCE.read_text("utf-8"), {"BF16": 0, "VERIFY": int(verify)}, device)


class Copies:
    """Each card's half is copied by the driver, and each stream waits for the other's copy."""

    def __init__(self, case: Case, devices: Sequence[torch.device]) -> None:
        shape = case.rows, case.columns // 2
        self._streams = [torch.cuda.Stream(device) for device in devices]
        self._halves = [torch.ones(shape, dtype=torch.float16, device=device) for device in devices]
        self._arrived = [torch.zeros(shape, dtype=torch.float16, device=device) for device in devices]
        synchronize()

    def replay(self) -> None:
        for _ in range(EXCHANGES):
            events = []
            for card, stream in enumerate(self._streams):
                half, arrived = self._halves[card], self._arrived[1 - card]
                with torch.cuda.stream(stream):
                    code = library().cuMemcpyAsync(
                        ctypes.c_void_p(arrived.data_ptr()), ctypes.c_void_p(half.data_ptr()),
                        ctypes.c_size_t(half.nbytes), ctypes.c_void_p(stream.cuda_stream),
                    )  # fmt: skip
                    if code:
                        raise CudaCodeError(f"cuMemcpyAsync: CUDA's error {code}")
                    events.append(stream.record_event())
            for stream, event in zip(self._streams, events[::-1], strict=True):
                stream.wait_event(event)

    def capture(self) -> torch.cuda.CUDAGraph:
        """One graph over both cards."""
        graph, (first, second) = torch.cuda.CUDAGraph(), self._streams
        with torch.cuda.device(first.device), torch.cuda.graph(graph, stream=first, capture_error_mode="thread_local"):
            second.wait_event(first.record_event())
            self.replay()
            first.wait_event(second.record_event())
        return graph


class Replayed(Protocol):
    def replay(self) -> None: ...


def add_times(figures: Figures, case: Case, name: str, graph: Replayed, deadline: Deadline) -> None:
    for took_us in times_us(graph, deadline):
        figures.add(case.row, name, took_us)
    if isinstance(graph, Exchange):
        graph.require_sound()


def times_us(graph: Replayed, deadline: Deadline) -> list[float]:
    """Microseconds of one exchange, of each round but the first."""
    found = []
    for _ in range(1 + ROUNDS):
        deadline.require()
        synchronize()
        begin_s = time.perf_counter()
        for _ in range(REPLAYS):
            graph.replay()
        synchronize()
        found.append(1e6 * (time.perf_counter() - begin_s) / REPLAYS / EXCHANGES)
    return found[1:]


def synchronize() -> None:
    for card in range(torch.cuda.device_count()):
        torch.cuda.synchronize(card)


def add_nccl(figures: Figures, limit_s: float) -> None:
    """Both ranks in processes of their own, ended after `limit_s`. Raises Unable where one fails."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "benchmarks.two_card_exchange", "--nccl"]
        ranks = [
            subprocess.Popen([*command, str(rank), f"{folder}/meeting"], stdout=subprocess.PIPE, text=True)
            for rank in range(2)
        ]
        end_s = time.monotonic() + limit_s
        try:
            said = [rank.communicate(timeout=max(0.1, end_s - time.monotonic()))[0] for rank in ranks]
        except subprocess.TimeoutExpired as error:
            raise Unable(f"NCCL took longer than {limit_s:.0f} s") from error
        finally:
            for rank in ranks:
                rank.kill()
                rank.wait()
    if codes := [rank.returncode for rank in ranks if rank.returncode]:
        raise Unable(f"NCCL ended with {codes[0]}")
    add_said(figures, said[0])


def add_said(figures: Figures, said: str) -> None:
    """What a rank told: JSON lines of a row and its times; NCCL's own lines stand between."""
    for line in said.splitlines():
        if line.startswith("{"):
            told_line = json.loads(line)
            for took_us in told_line["times_us"]:
                figures.add(told_line["row"], "NCCL", took_us)


def all_gather_times(rank: int, meeting: Path) -> None:
    """One rank: tells each case's times, then ends the process at once, since graphs hold NCCL's communicator."""
    import torch.distributed as dist

    device = torch.device("cuda", rank)
    torch.cuda.set_device(device)
    dist.init_process_group("nccl", init_method=f"file://{meeting}", rank=rank, world_size=2, device_id=device,
                            timeout=timedelta(seconds=NCCL_S))  # fmt: skip
    for case in CASES:
        half = torch.ones(case.rows * case.columns // 2, dtype=torch.float16, device=device)
        full = torch.empty(case.rows * case.columns, dtype=torch.float16, device=device)
        dist.all_gather_into_tensor(full, half)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            for _ in range(EXCHANGES):
                dist.all_gather_into_tensor(full, half)
        times = times_us(graph, Deadline.after(NCCL_S))
        print(json.dumps({"row": case.row, "times_us": times}), flush=True)
    sys.stdout.flush()
    os._exit(0)


def add_token(figures: Figures, rows: int, way: str) -> None:
    """What all exchanges of a step take, in ms: three of four are of the hidden size."""
    sizes: Mapping[int, int] = {HIDDEN: 3 * LAYERS, INTERMEDIATE: LAYERS}
    times = {columns: figures.median(Case(rows, columns).row, way) for columns in sizes}
    known = [count * took_us for columns, count in sizes.items() if (took_us := times[columns]) is not None]
    if len(known) == len(sizes):
        figures.add(f"a step of {rows}, ms", way, sum(known) / 1000)


if __name__ == "__main__":
    sys.exit(main())
