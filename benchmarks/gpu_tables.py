"""Measures everything that one session on a GPU can, and loses nothing when it is cut off.

`python -m benchmarks.gpu_tables FOLDER --out OUT [--cards 0,1] [--lanes N] [--limit-s 560] [--vllm SITE]
[--llama-cpp BIN] [--only PART ...]` runs the jobs of benchmarks/gpu_jobs.py, each in a process of its own with one card
or two, in their order as far as time and cards allow; `--list` shows them. With several lanes as many jobs load,
compile and test on one card side by side, and all of them stand still while one measures (benchmarks/turns.py). Models
are made in FOLDER ahead of their use, and taken away when there is no room for the next. Figures and outcomes of tests
are in FOLDER the moment they are known, and in OUT some seconds later: figures.jsonl, tests.jsonl, jobs.json,
summary.md and log.txt. At the limit, or at Ctrl-C, what runs is stopped and all that is there is written. Another call
goes on with what was not done.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import turns
from benchmarks.figures import markdown, now, read_figures, read_lines
from benchmarks.gpu_jobs import CARD_GIB, MODEL_GIB, Job, Places, Running, all_jobs, choose, make_arguments
from core.common.files import write_atomically
from core.common.paths import ROOT
from core.common.signals import StopSignals

FIGURES, OUTCOMES, JOBS = "figures.jsonl", "tests.jsonl", "jobs.json"
# Before the limit children are stopped, have so long to end, and are killed.
STOP_S, END_S = 20.0, 12.0
LOOK_S, WRITE_S = 0.5, 8.0
# A job has this many times as long as it is said to take.
PATIENCE = 2.5
# Left free beside models: quantizing and others write too.
ROOM_GIB = 20
LOG_BYTES, LOGS_BYTES = 60_000, 6_000_000
FAULT_CHARS = 1500


@dataclass(slots=True)
class Child:
    job: Job
    cards: tuple[int, ...]
    process: subprocess.Popen[bytes]
    begin_s: float
    is_stopped: bool = False


@dataclass(slots=True)
class Session:
    """The jobs of one call. `done`: how each one that has begun ended, by name."""

    places: Places
    out: Path
    cards: Sequence[int]
    deadline_s: float
    pending: list[Job]
    num_lanes: int = 1
    done: dict[str, dict[str, object]] = field(default_factory=dict)
    children: list[Child] = field(default_factory=list)
    maker: Maker | None = None

    def run(self) -> None:
        """Until all is done, the time is over or somebody stops it; then nothing of it runs any more."""
        shutil.rmtree(self.turns, ignore_errors=True)
        self.turns.mkdir()
        self.maker = Maker(self.places.folder, self.pending, self.turns)
        self.maker.start()
        try:
            written_s = 0.0
            while (self.pending or self.children) and self.left_s > 0:
                self._begin_jobs()
                if not self.children and not self._is_waited_for():
                    break
                self._look()
                if time.monotonic() - written_s > WRITE_S:
                    self.write()
                    written_s = time.monotonic()
                time.sleep(LOOK_S)
        finally:
            self.maker.stop()
            self._stop()
            self.write()

    @property
    def turns(self) -> Path:
        return self.places.folder / "turns"

    @property
    def left_s(self) -> float:
        """Until children are stopped."""
        return self.deadline_s - STOP_S - time.monotonic()

    def _is_waited_for(self) -> bool:
        """Whether a job that there is time for waits for its model."""
        assert self.maker is not None
        return any(
            job.seconds <= self.left_s and not self.maker.has_failed(job.models) and job.num_cards <= len(self.cards)
            for job in self.pending
        )

    def _begin_jobs(self) -> None:
        assert self.maker is not None
        with turns.between_turns(self.turns) as is_free:
            if not is_free:
                return
            turns.go_on(self.turns)
            while (chosen := self._choose(self.maker.ready())) is not None:
                job, cards = chosen
                self.pending.remove(job)
                self.children.append(self._start(job, cards))
                self.maker.keep(self.pending, [child.job for child in self.children])

    def _choose(self, ready: set[str]) -> tuple[Job, tuple[int, ...]] | None:
        """The next job and its cards: those that nobody has, else one with a free lane and memory enough."""
        now_s = time.monotonic()
        running = [Running(one.job, one.begin_s + one.job.seconds - now_s) for one in self.children]
        on = {card: [one.job for one in self.children if card in one.cards] for card in self.cards}
        free = [card for card in self.cards if not on[card]]
        job = choose(self.pending, len(free), running, ready, self.left_s) if free else None
        if job is not None:
            return job, tuple(free[: job.num_cards])
        for card in self.cards:
            room_gib = CARD_GIB - sum(one.card_gib for one in on[card])
            fitting = [one for one in self.pending if one.num_cards == 1 and one.card_gib <= room_gib]
            job = choose(fitting, 1, running, ready, self.left_s) if len(on[card]) < self.num_lanes else None
            if job is not None:
                return job, (card,)
        return None

    def _start(self, job: Job, cards: tuple[int, ...]) -> Child:
        print(f"{now()} card {cards}: {job.name}", flush=True)
        limit_s = max(1.0, min(self.left_s, self._patience_s(job)) - 2.0)
        arguments = [*job.arguments, *(["--limit-s", f"{limit_s:.0f}"] if job.has_limit else [])]
        environment = os.environ | {"CUDA_VISIBLE_DEVICES": ",".join(map(str, cards)), "PYTHONUNBUFFERED": "1"}
        environment |= {turns.VARIABLE: str(self.turns)} if self.num_lanes > 1 else {}
        with self._log_of(job).open("wb") as log:
            process = subprocess.Popen([sys.executable, *arguments], cwd=ROOT, env=environment, stdout=log, stderr=log,
                                       stdin=subprocess.DEVNULL, start_new_session=True)  # fmt: skip
        turns.enter(self.turns, process.pid)
        return Child(job, cards, process, time.monotonic())

    def _patience_s(self, job: Job) -> float:
        """Of those that share a card each waits for the others."""
        return PATIENCE * job.seconds * self.num_lanes

    def _look(self) -> None:
        assert self.maker is not None
        for child in list(self.children):
            took_s = time.monotonic() - child.begin_s
            if child.process.poll() is not None:
                self._remove(child)
                over = "its time was over, " if child.is_stopped else ""
                self._note(child, took_s, f"{over}exit code {child.process.returncode}")
                self.maker.keep(self.pending, [one.job for one in self.children])
            elif took_s > self._patience_s(child.job) + END_S:
                signal_group(child.process, signal.SIGKILL)
            elif took_s > self._patience_s(child.job) and not child.is_stopped:
                child.is_stopped = True
                signal_group(child.process, signal.SIGINT)

    def _stop(self) -> None:
        """Ask the children to end, and end them."""
        for child in self.children:
            signal_group(child.process, signal.SIGINT)
            signal_group(child.process, signal.SIGCONT)
        end_s = time.monotonic() + END_S
        for child in list(self.children):
            with suppress(subprocess.TimeoutExpired):
                child.process.wait(max(0.0, end_s - time.monotonic()))
            self._remove(child)
            self._note(child, time.monotonic() - child.begin_s, "stopped at the limit", is_done=False)

    def _remove(self, child: Child) -> None:
        """With whatever it has left behind."""
        turns.leave(self.turns, child.process.pid)
        signal_group(child.process, signal.SIGKILL)
        child.process.wait()
        self.children.remove(child)

    def _note(self, child: Child, took_s: float, end: str, is_done: bool = True) -> None:
        cards = ", ".join(map(str, child.cards))
        self.done[child.job.name] = {"end": end, "took_s": round(took_s), "cards": cards, "is_done": is_done}
        print(f"{now()} card {cards}: {child.job.name}: {end} after {took_s:.0f} s", flush=True)

    def _log_of(self, job: Job) -> Path:
        folder = self.places.folder / "logs"
        folder.mkdir(exist_ok=True)
        return folder / "".join(letter if letter.isalnum() else "-" for letter in job.name)

    def write(self) -> None:
        """All that is known, into OUT; each file is whole at any time."""
        self.out.mkdir(parents=True, exist_ok=True)
        write_atomically(self.places.folder / JOBS, json.dumps(self.done, indent=1))
        for path in (self.places.results, self.places.outcomes, self.places.folder / JOBS):
            if path.is_file():
                write_atomically(self.out / path.name, path.read_text("utf-8"))
        write_atomically(self.out / "log.txt", self._logs())
        running = [child.job.name for child in self.children]
        figures, outcomes = read_figures(self.places.results), read_lines(self.places.outcomes)
        text = summary(self.done, running, [job.name for job in self.pending], outcomes) + "\n\n" + markdown(figures)
        write_atomically(self.out / "summary.md", text + "\n")

    def _logs(self) -> str:
        """The ends of all logs, the newest last."""
        folder = self.places.folder / "logs"
        paths = sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime) if folder.is_dir() else []
        parts = []
        for path in paths:
            text = path.read_bytes()[-LOG_BYTES:].decode("utf-8", "replace")
            parts.append(f"===== {path.name}\n{text}\n")
        return "".join(parts)[-LOGS_BYTES:]


class Maker(threading.Thread):
    """Makes the models that jobs need, in their order, as long as there is room; those that no job needs any more are
    taken away for that."""

    def __init__(self, folder: Path, jobs: Sequence[Job], turns: Path) -> None:
        super().__init__(daemon=True)
        self._folder, self._turns = folder, turns
        self._changed = threading.Condition()
        self._needed = list(dict.fromkeys(model for job in jobs for model in job.models))
        self._failed: set[str] = set()
        self._is_over = False
        self._process: subprocess.Popen[bytes] | None = None

    def ready(self) -> set[str]:
        with suppress(FileNotFoundError):
            return {path.parent.name for path in self._folder.glob("*/config.json")}
        return set()

    def has_failed(self, models: Sequence[str]) -> bool:
        with self._changed:
            return any(model in self._failed for model in models)

    def keep(self, pending: Sequence[Job], running: Sequence[Job]) -> None:
        """Know which models are still needed: those of `running` now, those of `pending` later."""
        with self._changed:
            self._needed = list(dict.fromkeys(model for job in (*running, *pending) for model in job.models))
            self._changed.notify_all()

    def stop(self) -> None:
        with self._changed:
            self._is_over = True
            self._changed.notify_all()
            if self._process is not None:
                signal_group(self._process, signal.SIGKILL)
        self.join()

    def run(self) -> None:
        while (model := self._next()) is not None:
            command = make_arguments(model, self._folder)
            begin_s = time.monotonic()
            if not self._begin(command):
                return
            assert self._process is not None
            code = self._process.wait()
            turns.leave(self._turns, self._process.pid)
            print(f"{now()} made {model} in {time.monotonic() - begin_s:.0f} s, exit code {code}", flush=True)
            with self._changed:
                if code and not self._is_over:
                    self._failed.add(model)

    def _begin(self, command: Sequence[str]) -> bool:
        """Between turns; False where all is over before."""
        while True:
            with turns.between_turns(self._turns) as is_free, self._changed:
                if self._is_over:
                    return False
                if is_free:
                    self._process = subprocess.Popen(
                        command, cwd=ROOT, stdin=subprocess.DEVNULL, start_new_session=True
                    )
                    turns.enter(self._turns, self._process.pid)
                    return True
                self._changed.wait(LOOK_S)

    def _next(self) -> str | None:
        """The next model to make, once there is room for it."""
        with self._changed:
            while not self._is_over:
                there = self.ready()
                missing = [one for one in self._needed if one not in there and one not in self._failed]
                if missing and self._has_room(MODEL_GIB[missing[0]] + ROOM_GIB, there):
                    return missing[0]
                self._changed.wait(None if missing else 1.0)
        return None

    def _has_room(self, size_gib: int, there: set[str]) -> bool:
        for model in sorted(there - set(self._needed)):
            if free_gib(self._folder) >= size_gib:
                return True
            if model in MODEL_GIB:
                (self._folder / model / "config.json").unlink()
                shutil.rmtree(self._folder / model)
        return free_gib(self._folder) >= size_gib


def free_gib(folder: Path) -> float:
    return shutil.disk_usage(folder).free / 2**30


def signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def summary(
    done: dict[str, dict[str, object]],
    running: Sequence[str],
    pending: Sequence[str],
    outcomes: Sequence[dict[str, object]],
) -> str:
    """Markdown: what ran and how it ended, and what tests failed."""
    lines = ["| job | cards | s | end |", "| --- | --- | --- | --- |"]
    for name, one in done.items():
        lines.append(f"| {name} | {one['cards']} | {one['took_s']} | {one['end']} |")
    lines += ["", f"Running: {'; '.join(running) or '–'}", f"Not begun: {'; '.join(pending) or '–'}", ""]
    # A test that ran again counts once.
    last = {str(one["test"]): one for one in outcomes}
    counts = {kind: sum(one["outcome"] == kind for one in last.values()) for kind in ("passed", "failed", "skipped")}
    lines.append(f"Tests: {', '.join(f'{count} {kind}' for kind, count in counts.items())}")
    for name, one in last.items():
        if one["outcome"] == "failed":
            lines += ["", f"{name}, {one['seconds']} s", "```", str(one["said"])[-FAULT_CHARS:], "```"]
    slowest = sorted(last.values(), key=lambda one: -float(str(one["seconds"])))[:5]
    lines += ["", *(f"- {one['seconds']} s: {one['test']}" for one in slowest)]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="for models, and for what another call goes on with")
    parser.add_argument("--out", type=Path, required=True, metavar="OUT")
    parser.add_argument("--cards", default="0", metavar="N,N")
    parser.add_argument("--lanes", type=int, default=1, metavar="N", help="jobs on one card side by side, in turns")
    parser.add_argument("--limit-s", type=float, default=560.0)
    parser.add_argument(
        "--only", nargs="*", metavar="PART", help="jobs whose name has one of these in it, in this order"
    )
    parser.add_argument("--skip", nargs="*", default=[], metavar="PART")
    parser.add_argument("--again", action="store_true", help="what was done too")
    parser.add_argument("--vllm", type=Path, metavar="SITE")
    parser.add_argument("--vllm-python", default=sys.executable, metavar="PYTHON")
    parser.add_argument("--llama-cpp", type=Path, metavar="BIN", help="see benchmarks/llama_cpp_gpu.py")
    parser.add_argument("--list", action="store_true", help="show the jobs that would run, and run none")
    options = parser.parse_args(arguments)
    deadline_s, folder = time.monotonic() + options.limit_s, options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    cards = [int(card) for card in options.cards.split(",")]
    site = options.vllm.resolve() if options.vllm else None
    tools = options.llama_cpp.resolve() if options.llama_cpp else None
    places = Places(folder, folder / FIGURES, folder / OUTCOMES, site, options.vllm_python, tools)
    jobs_file = folder / JOBS
    done: dict[str, dict[str, object]] = json.loads(jobs_file.read_text("utf-8")) if jobs_file.is_file() else {}
    jobs = [job for job in all_jobs(places) if job.num_cards <= len(cards)]
    jobs = pick(jobs, options.only, options.skip)
    if not options.again:
        jobs = [job for job in jobs if not done.get(job.name, {}).get("is_done")]
    if options.list:
        for job in jobs:
            print(f"{job.seconds:5.0f} s  {job.num_cards} card(s)  {job.name}")
        return 0
    session = Session(places, options.out, cards, deadline_s, jobs, options.lanes, done)
    with StopSignals(signal.SIGINT, signal.SIGTERM), suppress(KeyboardInterrupt):
        session.run()
    print((options.out / "summary.md").read_text("utf-8"))
    return 0


def pick(jobs: Sequence[Job], only: Sequence[str] | None, skip: Sequence[str]) -> list[Job]:
    """Those whose name has a part of `only` in it, in the order of the parts, without those of `skip`."""
    wanted = list(jobs) if only is None else [job for part in only for job in jobs if part in job.name]
    return [job for job in dict.fromkeys(wanted) if not any(part in job.name for part in skip)]


if __name__ == "__main__":
    sys.exit(main())
