"""./llamadeck bench: the engine through the runner, as a chat uses it, beside transformers' generate() in one run.

Prints a table, with --json one object. On a CPU the engines take turns, and llama.cpp is a third one where it is
installed and the model is the starter; on a GPU, whose memory is for one, they come one after the other.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from importlib.metadata import version

from benchmarks import llama_cpp
from benchmarks.engine import Engine
from benchmarks.measuring import (
    GENERATE_ON_GPU,
    ON_CPU,
    ON_GPU,
    QUICK,
    Extent,
    Measured,
    Rounds,
    Unable,
    bytes_a_token,
    fitting,
    measure_decoding,
    measure_first_tokens,
)
from benchmarks.peer import Peer
from benchmarks.prompts import Prompts
from benchmarks.report import NAMES, Findings, Note, as_object, table_lines
from core import library, starter
from core.checkpoint import Checkpoint
from core.errors import DeckError, EngineError, InputError
from core.settings import ROOT
from core.terminal import Terminal
from core.text import translate

LIBRARIES = ("torch", "transformers", "gptqmodel")
# Room for an answer behind the longest prompt.
SPARE_TOKENS = 64


def main(arguments: Sequence[str], terminal: Terminal) -> int:
    def text(key: str) -> str:
        return translate(terminal.language, f"bench.{key}")

    parser = argparse.ArgumentParser(prog="llamadeck bench", description=text("about"), allow_abbrev=False)
    parser.add_argument("model", nargs="?", metavar="MODEL", help=text("help_model"))
    parser.add_argument("--json", action="store_true", help=terminal.text("help_json"))
    parser.add_argument("--quick", action="store_true", help=text("help_quick"))
    options = parser.parse_args(arguments)
    with ExitStack() as ends:
        bench = Bench(choose_model(options.model), options.quick, terminal, ends)
        findings = bench.run()
    result = as_object(findings, bench.extent)
    out = terminal.to_stdout()
    lines = [json.dumps(result, ensure_ascii=False)] if options.json else table_lines(result, findings, out)
    for line in lines:
        out.write(line)
    return 0


def choose_model(name: str | None) -> Checkpoint:
    if name is not None:
        return library.find(name)
    found = [entry.checkpoint for entry in library.scan() if entry.checkpoint is not None]
    if not found:
        raise InputError("no_models")
    return found[0]


class Bench:
    """One run. `ends` closes what was started, however the run ends."""

    def __init__(self, checkpoint: Checkpoint, is_quick: bool, terminal: Terminal, ends: ExitStack) -> None:
        self._checkpoint, self._is_quick, self._terminal, self._ends = checkpoint, is_quick, terminal, ends
        self._prompts = Prompts(checkpoint)
        self._limit = checkpoint.max_context_tokens
        self._notes: list[Note] = []
        self._found: dict[str, Rounds] = {"engine": Rounds()}
        self.extent = QUICK

    def run(self) -> Findings:
        """Measure everything. Raises DeckError where the model cannot be loaded at all."""
        self._say("copy")
        copy_bytes_per_s = measure_copying()
        engine = Engine(self._prompts)
        self._ends.callback(engine.close)
        load_s = self._load_one_chat(engine)
        findings = Findings(
            facts=engine.facts,
            versions={name: version(name) for name in LIBRARIES},
            cores=len(os.sched_getaffinity(0)),
            copy_bytes_per_s=copy_bytes_per_s,
            bytes_a_token=bytes_a_token(self._checkpoint),
            load_s=load_s,
            had_spare=engine.had_spare,
            found=self._found,
            notes=self._notes,
        )
        is_gpu = engine.facts.memory is not None
        asked = QUICK if self._is_quick else ON_GPU if is_gpu else ON_CPU
        self.extent = fitting(asked, self._limit)
        self._note_lengths(asked)
        peers: dict[str, Measured] = {} if is_gpu else self._start_peers(engine.facts.context_tokens)
        self._measure({"engine": engine, **peers}, self.extent, 1)
        findings.memory = engine.memory_mib()
        self._measure_chats(engine, peers)
        if is_gpu:
            engine.close()
            extent = fitting(QUICK if self._is_quick else GENERATE_ON_GPU, self._limit)
            peers = self._start_peers(0)
            for chats in extent.chats:
                self._measure(peers, extent, chats)
        self._note_gaps()
        return findings

    def _load_one_chat(self, engine: Engine) -> list[float]:
        """Load for one chat with room for the longest prompt. What the first load compiles and reads from the disk is
        there at the further ones, which are what counts."""
        context_tokens = min(self._limit, max(ON_GPU.lengths) + SPARE_TOKENS)
        self._say("load")
        times = [engine.load(self._checkpoint.folder, context_tokens, 1)]
        if not self._is_quick:
            times = [engine.load(self._checkpoint.folder, context_tokens, 1) for _ in range(2)]
        if not engine.had_spare:
            self._note("no_spare")
        return times

    def _start_peers(self, context_tokens: int) -> dict[str, Measured]:
        """The other engines that can be had; which one cannot is a note. `context_tokens` 0: on a GPU."""
        peers: dict[str, Measured] = {}
        folder = str(self._checkpoint.folder)
        self._add_peer(peers, "generate", "benchmarks.generate", [folder], max_chats=sys.maxsize)
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
        self._add_peer(peers, "llama_cpp", "benchmarks.llama_cpp", [str(file), str(context_tokens)], max_chats=1)

    def _add_peer(
        self, peers: dict[str, Measured], name: str, module: str, arguments: list[str], max_chats: int
    ) -> None:
        self._say(name)
        self._found[name] = Rounds()
        try:
            peer = Peer(module, arguments, self._prompts, max_chats)
        except Unable as error:
            self._found[name].failures.append(str(error))
            return
        self._ends.callback(peer.close)
        peers[name] = peer

    def _measure(self, engines: dict[str, Measured], extent: Extent, num_chats: int) -> None:
        if num_chats == 1:
            self._say("first_token")
            measure_first_tokens(engines, self._found, extent.lengths)
        self._say("decode", chats=num_chats)
        measure_decoding(engines, self._found, num_chats, extent)

    def _measure_chats(self, engine: Engine, peers: dict[str, Measured]) -> None:
        """Many chats over one load for the most of them, or for as many as can be loaded."""
        context_tokens = min(self._limit, self.extent.prompt_tokens + self.extent.new_tokens + SPARE_TOKENS)
        several = [chats for chats in self.extent.chats if chats > 1]
        for most in reversed(several):
            self._say("load")
            try:
                engine.load(self._checkpoint.folder, context_tokens, most)
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
            for why in rounds.failures:
                self._note("missing", name=NAMES[name], why=why)
            for chats, decoded in rounds.decoded.items():
                if not all(one.is_whole for one in decoded):
                    self._note("ended", name=NAMES[name], chats=chats, tokens=self.extent.new_tokens)

    def _note(self, key: str, **params: str | int) -> None:
        self._notes.append(Note(key, params))

    def _say(self, key: str, **params: int) -> None:
        self._terminal.write(translate(self._terminal.language, f"bench.step_{key}", **params))


def measure_copying() -> float:
    """Bytes a second, read and write counted, measured before anything else uses the memory."""
    command = [sys.executable, "-m", "benchmarks.copy_speed"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if done.returncode != 0:
        raise EngineError("bench_copy", why=(done.stderr.strip().splitlines() or ["?"])[-1][:200])
    return float(done.stdout.split()[-1])
