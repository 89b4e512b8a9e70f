"""LlamaDeck's engine as a chat sees it: through the runner, with a warm worker ready; for the benchmark."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.measuring import Decoded
from benchmarks.prompts import Prompts
from benchmarks.steady_memory import process_mib
from core.common.errors import EngineError
from core.engine.answer import Answer
from core.engine.protocol import ModelFacts
from core.engine.request_options import PLAIN, AdapterUse, RequestOptions
from core.engine.runner import Runner
from core.engine.sampling_params import Sampling
from core.memory.adapter_room import NO_ROOM, AdapterRoom
from core.memory.cache_choice import EVERY_CHAT_FULL, CacheChoice

LOAD_S = 1800.0
WARM_S = 60.0
LOOK_S = 0.002
# An answer as long as was asked, whose tokens come one by one: with a least length none are proposed, which would make
# copied texts faster.
ONE_BY_ONE = RequestOptions(ignore_eos=True, min_tokens=1)
# Answers that end by themselves too early are asked for with other prompts, this often in all.
TRIES = 4


class Engine:
    """One runner, which loads one model after another."""

    def __init__(self, prompts: Prompts, with_spare: bool = False) -> None:
        """with_spare: a worker with all imports waits before each load, as a dashboard has it; its imports take longer
        than what is measured here."""
        self._prompts = prompts
        self._runner = Runner()
        if with_spare:
            self._runner.warm_worker.start(idle_s=0.0)
        self.max_chats = 0
        # What the chats are written with, in turns; none without any.
        self.adapters: Sequence[AdapterUse] = ()
        # What else is asked of them.
        self.asked = PLAIN
        self.had_spare = with_spare and self._runner.warm_worker.wait(WARM_S)

    def load(
        self,
        folder: Path,
        context_tokens: int,
        num_chats: int,
        kernel: str | None = None,
        adapters: AdapterRoom = NO_ROOM,
        cache: CacheChoice = EVERY_CHAT_FULL,
    ) -> float:
        """Seconds from the click until the model is ready, with the fastest kernel that fits or `kernel`, with room for
        `adapters`, and with a cache as `cache` says. Raises DeckError where it cannot be loaded."""
        self._runner.unload()
        self._runner.load(folder, context_tokens, num_chats, kernel, adapters=adapters, cache=cache)
        state = self._runner.wait_while_loading(LOAD_S)
        if state.phase != "ready":
            raise state.error or EngineError("nothing_loaded")
        self.max_chats = num_chats
        if not self.facts.captured and not self.facts.device.startswith("CPU"):
            # Whoever reads the figures must not take them for those of captured steps.
            print(f"{folder.name}: its steps are not captured", file=sys.stderr, flush=True)
        # The next warm worker imports now, not beside what is measured.
        self.had_spare = self.had_spare and self._runner.warm_worker.wait(WARM_S)
        return state.ready_after_s

    @property
    def facts(self) -> ModelFacts:
        facts = self._runner.state.facts
        if facts is None:
            raise self._runner.state.error or EngineError("nothing_loaded")
        return facts

    def first_token_s(self, num_tokens: int) -> float:
        """From the question to the end of an answer of one token."""
        prompt, begin_s = self._prompts.take(num_tokens), time.perf_counter()
        wait(self._runner.generate(prompt, greedy(1)))
        return time.perf_counter() - begin_s

    def first_tokens_s(self, num_chats: int, num_tokens: int) -> float:
        """From `num_chats` questions at once to the end of the last of their answers, of one token each."""
        prompts, begin_s = [self._prompts.take(num_tokens) for _ in range(num_chats)], time.perf_counter()
        for answer in [self._runner.generate(prompt, greedy(1)) for prompt in prompts]:
            wait(answer)
        return time.perf_counter() - begin_s

    def decode(self, num_chats: int, prompt_tokens: int, new_tokens: int) -> Decoded:
        """How fast `num_chats` are written at once, while all of them are: from when the last one began until the
        first one ends."""
        best = Decoded(0.0, 0, False)
        for _ in range(TRIES):
            prompts = [self._prompts.take(prompt_tokens) for _ in range(num_chats)]
            answers = [
                self._runner.generate(prompt, greedy(new_tokens), options=options_of(chat, self.adapters, self.asked))
                for chat, prompt in enumerate(prompts)
            ]
            decoded = watch_one(answers[0]) if num_chats == 1 else watch_all(answers)
            best = max(best, decoded, key=lambda one: (one.num_tokens > 0, one.is_whole, one.num_tokens))
            # A rate over half of the tokens is one; that some were missing is said. There is none where some chats were
            # done before others began, as where an adapter is read from the disk for the first time.
            if best.num_tokens and (best.is_whole or best.num_tokens >= num_chats * new_tokens / 2):
                break
        return best

    def write(self, prompt: tuple[int, ...], sampling: Sampling, options: RequestOptions) -> float:
        """How fast one answer to `prompt` is written, in tokens/s without its first one."""
        return watch_one(self._runner.generate(prompt, sampling, options=options)).tokens_per_s

    def memory_mib(self) -> tuple[str, int]:
        """What the worker holds: the GPU's memory by NVML where it says so, else the host's."""
        pid = self._runner.worker_pid
        assert pid is not None
        of_gpu = process_mib(pid)
        return ("gpu", of_gpu) if of_gpu else ("host", resident_mib(pid))

    def close(self) -> None:
        self._runner.close()


def options_of(chat: int, adapters: Sequence[AdapterUse], asked: RequestOptions = PLAIN) -> RequestOptions:
    return replace(asked, adapter=adapters[chat % len(adapters)]) if adapters else asked


def greedy(new_tokens: int) -> Sampling:
    return Sampling(temperature=0.0, max_new_tokens=new_tokens)


def wait(answer: Answer) -> None:
    answer.wait()
    if answer.error is not None:
        raise answer.error


def watch_one(answer: Answer) -> Decoded:
    """By the engine's own clock, which leaves out the first token."""
    wait(answer)
    stats = answer.stats
    assert stats is not None
    return Decoded(stats.decode_tokens_per_s, stats.num_tokens, answer.reason == "length")


def watch_all(answers: list[Answer]) -> Decoded:
    """Tokens of all answers while all of them are being written."""
    while any(answer.phase in ("queued", "reading") for answer in answers):
        time.sleep(LOOK_S)
    begin_s, begin = time.perf_counter(), count(answers)
    while all(answer.is_running for answer in answers):
        time.sleep(LOOK_S)
    took_s, drawn = time.perf_counter() - begin_s, count(answers) - begin
    for answer in answers:
        wait(answer)
    return Decoded(drawn / took_s if drawn else 0.0, drawn, all(answer.reason == "length" for answer in answers))


def count(answers: list[Answer]) -> int:
    return sum(answer.num_tokens for answer in answers)


def resident_mib(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text("ascii", "replace").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) // 1024
    return 0
