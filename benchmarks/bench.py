"""./llamadeck bench: the engine through the runner, as a chat uses it, beside transformers' generate() in one run.

Tells each figure on standard error when it is known, and prints a table at the end, with --json one object; when it is
stopped, with what there is. On a CPU the engines take turns, and llama.cpp is a third one where it is
installed and the model is the starter; on a GPU, whose memory is for one, they come one after the other.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from importlib.metadata import version

from benchmarks import llama_cpp
from benchmarks.engine import Engine
from benchmarks.measuring import (
    GENERATE_ON_GPU,
    ON_CPU,
    ON_GPU,
    QUICK,
    QUICK_ON_GPU,
    Extent,
    Measured,
    Rounds,
    TooSlow,
    Unable,
    bytes_a_token,
    fitting,
    measure_decoding,
    measure_first_tokens,
)
from benchmarks.peer import Limits, Peer
from benchmarks.prompts import Prompts
from benchmarks.report import NAMES, Findings, Note, as_object, table_lines, unmeasured
from core.checkpoint.checkpoint import Checkpoint
from core.common.errors import DeckError, EngineError, InputError
from core.common.i18n import translate
from core.common.paths import ROOT
from core.common.signals import StopSignals
from core.common.terminal import Terminal
from core.library import scan as library
from core.starter import build as starter

LIBRARIES = ("torch", "transformers", "gptqmodel")
# Room for an answer behind the longest prompt.
SPARE_TOKENS = 64
# On a GPU generate() is beside the point for longer than this, however slowly it writes a large model.
GPU_LIMITS = Limits(all_answers_s=120.0)


def main(arguments: Sequence[str], terminal: Terminal) -> int:
    def text(key: str) -> str:
        return translate(terminal.language, f"bench.{key}")

    parser = argparse.ArgumentParser(prog="llamadeck bench", description=text("about"), allow_abbrev=False)
    parser.add_argument("model", nargs="?", metavar="MODEL", help=text("help_model"))
    parser.add_argument("--json", action="store_true", help=terminal.text("help_json"))
    parser.add_argument("--quick", action="store_true", help=text("help_quick"))
    options = parser.parse_args(arguments)
    with ExitStack() as ends, StopSignals(signal.SIGINT, signal.SIGTERM):
        bench = Bench(choose_model(options.model), options.quick, terminal, ends)
        is_whole = bench.run()
        # Before anything is ended, which takes seconds that there may not be.
        result = as_object(bench.findings, bench.extent)
        out = terminal.to_stdout()
        lines = [json.dumps(result, ensure_ascii=False)] if options.json else table_lines(result, bench.findings, out)
        for line in lines:
            out.write(line)
    return 0 if is_whole else 1


def choose_model(name: str | None) -> Checkpoint:
    if name is not None:
        return library.find(name)
    found = [entry.checkpoint for entry in library.scan() if entry.checkpoint is not None]
    if not found:
        raise InputError("no_models")
    return found[0]


def engine_with_spare(prompts: Prompts) -> Engine:
    return Engine(prompts, with_spare=True)


class Bench:
    """One run. `ends` closes what was started, however the run ends; `findings` are there once the model was loaded."""

    findings: Findings

    def __init__(
        self,
        checkpoint: Checkpoint,
        is_quick: bool,
        terminal: Terminal,
        ends: ExitStack,
        make_engine: Callable[[Prompts], Engine] = engine_with_spare,
    ) -> None:
        self._checkpoint, self._is_quick, self._terminal, self._ends = checkpoint, is_quick, terminal, ends
        self._prompts, self._make_engine = Prompts(checkpoint), make_engine
        self._limit = checkpoint.max_context_tokens
        self._notes: list[Note] = []
        self._found: dict[str, Rounds] = {"engine": Rounds()}
        self.extent = QUICK

    def run(self) -> bool:
        """Measure everything; False where that was stopped or the engine failed, with what there was until then.

        Raises DeckError where the model cannot be loaded at all.
        """
        engine, is_whole = self._begin(), False
        try:
            self._measure_all(engine)
            is_whole = True
        except KeyboardInterrupt:
            self._note("stopped")
        except DeckError as error:
            self._note("failed", why=error.sentence(self._terminal.language))
        self._note_gaps()
        if not is_whole:
            self._notes += unmeasured(self._found, self.extent)
        return is_whole

    def _begin(self) -> Engine:
        self._say("copy")
        copy_bytes_per_s = measure_copying()
        self._tell("copy", value=copy_bytes_per_s / 1e9)
        engine = self._make_engine(self._prompts)
        self._ends.callback(engine.close)
        load_s = self._load_one_chat(engine)
        self.findings = Findings(
            facts=engine.facts,
            versions={name: version(name) for name in LIBRARIES},
            cores=len(os.sched_getaffinity(0)),
            copy_bytes_per_s=copy_bytes_per_s,
            bytes_a_token=bytes_a_token(self._checkpoint),
            load_s=load_s,
            had_spare=engine.had_spare,
            memory=engine.memory_mib(),
            found=self._found,
            notes=self._notes,
        )
        return engine

    def _measure_all(self, engine: Engine) -> None:
        is_gpu = engine.facts.memory is not None
        quick, full = (QUICK_ON_GPU, ON_GPU) if is_gpu else (QUICK, ON_CPU)
        asked = quick if self._is_quick else full
        self.extent = fitting(asked, self._limit)
        self._note_lengths(asked)
        peers: dict[str, Measured] = {} if is_gpu else self._start_peers(engine.facts.context_tokens)
        self._measure({"engine": engine, **peers}, self.extent, 1)
        self.findings.memory = engine.memory_mib()
        self._measure_chats(engine, peers)
        if is_gpu:
            engine.close()
            extent = fitting(QUICK if self._is_quick else GENERATE_ON_GPU, self._limit)
            peers = self._start_peers(0)
            for chats in extent.chats:
                self._measure(peers, extent, chats)

    def _load_one_chat(self, engine: Engine) -> list[float]:
        """Load for one chat with room for the longest prompt. What the first load compiles and reads from the disk is
        there at the further ones, which are what counts."""
        context_tokens = min(self._limit, max(ON_GPU.lengths) + SPARE_TOKENS)
        times = [self._load(engine, context_tokens, 1)]
        if not self._is_quick:
            times = [self._load(engine, context_tokens, 1) for _ in range(2)]
        if not engine.had_spare:
            self._note("no_spare")
        return times

    def _load(self, engine: Engine, context_tokens: int, num_chats: int) -> float:
        self._say("load")
        took_s = engine.load(self._checkpoint.folder, context_tokens, num_chats)
        self._tell("load", value=took_s)
        return took_s

    def _start_peers(self, context_tokens: int) -> dict[str, Measured]:
        """The other engines that can be had; which one cannot is a note. `context_tokens` 0: on a GPU."""
        peers: dict[str, Measured] = {}
        folder = str(self._checkpoint.folder)
        limits = Limits() if context_tokens else GPU_LIMITS
        self._add_peer(peers, "generate", "benchmarks.generate", [folder], sys.maxsize, limits)
        if self._checkpoint.folder.name == starter.NAME and context_tokens:
            self._add_llama_cpp(peers, context_tokens)
        return peers

    def _add_llama_cpp(self, peers: dict[str, Measured], context_tokens: int) -> None:
        if not llama_cpp.is_installed():
            self._note("llama_cpp", command=f"{sys.executable} -m pip install llama-cpp-python")
            return
        try:
            file = llama_cpp.find_model(lambda _: None)
        except DeckError as error:
            self._note("missing", name=NAMES["llama_cpp"], why=error.sentence(self._terminal.language))
            return
        self._add_peer(peers, "llama_cpp", "benchmarks.llama_cpp", [str(file), str(context_tokens)], 1, Limits())

    def _add_peer(
        self, peers: dict[str, Measured], name: str, module: str, arguments: list[str], max_chats: int, limits: Limits
    ) -> None:
        self._say(name)
        self._found[name] = Rounds()
        try:
            peer = Peer(module, arguments, self._prompts, max_chats, limits)
        except Unable as error:
            self._found[name].failures.append(error)
            return
        self._ends.callback(peer.close)
        peers[name] = peer

    def _measure(self, engines: dict[str, Measured], extent: Extent, num_chats: int) -> None:
        if num_chats == 1:
            self._say("first_token")
            measure_first_tokens(engines, self._found, extent.lengths, self._tell_first_token)
        self._say("decode", chats=num_chats)
        measure_decoding(engines, self._found, num_chats, extent, self._tell_decode)

    def _measure_chats(self, engine: Engine, peers: dict[str, Measured]) -> None:
        """Many chats over one load for the most of them, or for as many as can be loaded."""
        context_tokens = min(self._limit, self.extent.prompt_tokens + self.extent.new_tokens + SPARE_TOKENS)
        several = [chats for chats in self.extent.chats if chats > 1]
        for most in reversed(several):
            try:
                self._load(engine, context_tokens, most)
            except DeckError as error:
                self._note("no_room", chats=most, why=error.sentence(self._terminal.language))
                continue
            for chats in several:
                if chats <= most:
                    self._measure({"engine": engine, **peers}, self.extent, chats)
            return

    def _note_lengths(self, asked: Extent) -> None:
        for length in asked.lengths:
            if length > self._limit:
                self._note("range", tokens=length, limit=self._limit)
            elif length > self._limit - 1:
                self._note("shorter", asked=length, tokens=self._limit - 1)

    def _note_gaps(self) -> None:
        """What is missing or shorter than it was to be."""
        for name, rounds in self._found.items():
            for error in rounds.failures:
                if isinstance(error, TooSlow):
                    self._note("too_slow", name=NAMES[name], seconds=round(error.seconds))
                else:
                    self._note("missing", name=NAMES[name], why=str(error))
            for chats, decoded in rounds.decoded.items():
                if not all(one.is_whole for one in decoded):
                    self._note("ended", name=NAMES[name], chats=chats, tokens=self.extent.new_tokens)

    def _note(self, key: str, **params: str | int) -> None:
        """Once: a peer that is gone fails in the same way whenever it is asked."""
        note = Note(key, params)
        if note not in self._notes:
            self._notes.append(note)

    def _say(self, key: str, **params: int) -> None:
        self._terminal.write(translate(self._terminal.language, f"bench.step_{key}", **params))

    def _tell_first_token(self, name: str, num_tokens: int, took_s: float) -> None:
        self._tell("first_token", 1000 * took_s, name=NAMES[name], tokens=num_tokens)

    def _tell_decode(self, name: str, num_chats: int, tokens_per_s: float) -> None:
        self._tell("decode", tokens_per_s, name=NAMES[name], chats=num_chats)

    def _tell(self, key: str, value: float, **params: str | int) -> None:
        """A figure, at once: a run may end before its table."""
        text = translate(self._terminal.language, f"bench.figure_{key}", value=f"{value:.1f}", **params)
        self._terminal.write(f"  {text}")


def measure_copying() -> float:
    """Bytes a second, read and write counted, measured before anything else uses the memory."""
    command = [sys.executable, "-m", "benchmarks.copy_speed"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if done.returncode != 0:
        raise EngineError("bench_copy", why=(done.stderr.strip().splitlines() or ["?"])[-1][:200])
    return float(done.stdout.split()[-1])
