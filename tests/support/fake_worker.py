"""A worker with no model: the engine's messages from a small script, so that pages can be tried in moments.

Start it through Runner(worker_module="tests.support.fake_worker"), or the dashboard with
LLAMADECK_WORKER=tests.support.fake_worker. LLAMADECK_FAKE_LOAD_S is how long a load takes, LLAMADECK_FAKE_WORD_S a
word. A model whose name contains "refused" fails to load, one with "dies" kills the worker, one with "noted" has notes.
An answer repeats the question; words in it change that: "words=200" says how many words, "wait=0.05" the seconds
between two, "think=5" how many words it thinks before, "sample" answers with every kind of Markdown, "fail" and "die"
break off, "forever" never ends by itself; the question "settings" is answered with the generation settings that came
with it.
"""

from __future__ import annotations

import math
import os
import re
import signal
import sys
import time
from multiprocessing.connection import Connection

from core.checkpoint.checkpoint import Checkpoint, read_checkpoint
from core.common.errors import DeckError, EngineError
from core.common.paths import model_name
from core.engine.protocol import (
    AnswerStats,
    Cancel,
    Failed,
    Finished,
    Generate,
    ImportsDone,
    Load,
    Loaded,
    LoadFailed,
    LoadProgress,
    MemoryFacts,
    ModelFacts,
    Paused,
    PromptStarted,
    Reason,
    Stage,
    TextChunk,
    TokenChance,
    TokenInfo,
)
from core.engine.request_options import RequestOptions
from core.engine.sampling_params import Sampling
from core.gpu.snapshot import read_snapshot
from core.memory.device_memory import DeviceMemory
from core.memory.fit import require_fit
from core.memory.sizes import MIB
from core.worker.heartbeat import Outlet, Pulse

STAGES: tuple[Stage, ...] = ("start", "read", "prepare", "warm_up")
STEPS_PER_STAGE = 5
BREAK_AFTER_WORDS = 4
SAMPLE = """Lunch costs $5 and dinner $6; 约 40 元。

```python
def price(meal: str) -> str:
    return {"lunch": "$5", "dinner": "$6"}[meal]
```

| meal | price |
|---|---|
| lunch | $5 |

1. **Bold** and `code $1`
2. 一个中文的条目
"""


class Script:
    """One answer in the making."""

    def __init__(self, request: int, prompt: str, sampling: Sampling, options: RequestOptions) -> None:
        question = re.split(r"\[INST\]|<\|im_start\|>user", prompt)[-1]
        question = re.split(r"\[/INST\]|<\|im_end\|>", question)[0].strip()
        self.request = request
        self.prompt_tokens = len(prompt.split())
        self.num_reused = int(_setting(question, "reused", "0"))
        # After how many words it waits for room.
        self.paused_at = int(_setting(question, "paused", "0"))
        self.stop = sampling.stop
        self.wait_s = float(_setting(question, "wait", os.environ.get("LLAMADECK_FAKE_WORD_S", "0.01")))
        self.options = options
        self.words = (
            [f"{sampling!r} {options!r}"] if question == "settings" else [*_thought(question), *_words(question)]
        )
        self.ends_with = next((word for word in ("fail", "die") if word in question.split()), "end")
        self.said = 0
        self.began_s = self.next_s = time.monotonic() + self.wait_s


def _setting(question: str, name: str, default: str) -> str:
    found = re.search(rf"{name}=([\d.]+)", question)
    return found.group(1) if found else default


def _pretended_memory(checkpoint: Checkpoint, command: Load) -> MemoryFacts | None:
    """On the first GPU that NVML shows, the verdict of the real worker, and 30 MiB less than the plan as used."""
    gpus = [gpu for gpu in read_snapshot().gpus if gpu.error is None and gpu.total_mib]
    if not gpus or command.on_cpu:
        return None
    card, force = DeviceMemory.measured(gpus[0]), command.force
    asked = (command.context_tokens, command.num_slots, command.kernel, force)
    report = require_fit(checkpoint, [card], *asked, adapters=command.adapters, cache=command.cache)
    plan = report.plan
    return MemoryFacts(plan, plan.weights + plan.scratch, plan.allocated - 30 * MIB, None, force)


def _thought(question: str) -> list[str]:
    count = int(_setting(question, "think", "0"))
    return ["<think>", "\n", *(f"thought{place} " for place in range(count)), "\n</think>", "\n\n"] if count else []


def _words(question: str) -> list[str]:
    if "sample" in question.split():
        return re.findall(r"\S+\s*", SAMPLE)
    is_counting = "words=" in question or "forever" in question
    text = "one two three four five " if is_counting else f"You said: {question} "
    words = re.findall(r"\S+\s*", text)
    count = 1_000_000 if "forever" in question else int(_setting(question, "words", str(len(words))))
    return [words[i % len(words)] for i in range(count)]


def _told(word: str, script: Script) -> tuple[TokenInfo, ...]:
    """A word is as likely as its place in the answer says."""
    if script.options.logprobs is None:
        return ()
    chosen = TokenChance(script.said, word.encode(), -0.5 * script.said)
    return (TokenInfo(chosen, (chosen, TokenChance(0, b"\xe4", -9.0))[: script.options.logprobs]),)


class FakeWorker:
    def __init__(self, connection: Connection, outlet: Outlet) -> None:
        self._connection, self._pipe = connection, outlet
        self._scripts: dict[int, Script] = {}

    def run(self) -> None:
        while True:
            due_s = min((script.next_s for script in self._scripts.values()), default=None)
            wait_s = None if due_s in (None, math.inf) else max(0.0, due_s - time.monotonic())
            if self._connection.poll(wait_s):
                self._obey(self._connection.recv())
            for script in list(self._scripts.values()):
                if script.next_s <= time.monotonic():
                    self._say(script)

    def _obey(self, command: object) -> None:
        match command:
            case Load():
                self._load(command)
            case Generate():
                script = Script(command.request, str(command.prompt), command.sampling, command.options)
                self._scripts[command.request] = script
                self._pipe.send(PromptStarted(command.request, script.prompt_tokens, script.num_reused))
            case Cancel() if command.request in self._scripts:
                self._finish(self._scripts[command.request], "cancelled")

    def _load(self, command: Load) -> None:
        began_s, name = time.monotonic(), model_name(command.folder)
        seconds = float(os.environ.get("LLAMADECK_FAKE_LOAD_S", "0.2"))
        num_steps = STEPS_PER_STAGE * len(STAGES)
        for step in range(num_steps):
            self._pipe.send(LoadProgress(STAGES[step // STEPS_PER_STAGE], step / num_steps))
            time.sleep(seconds / num_steps)
            if "dies" in name:
                os.kill(os.getpid(), signal.SIGKILL)
        try:
            if "refused" in name:
                raise EngineError("nothing_loaded")
            checkpoint = read_checkpoint(command.folder)
            memory = _pretended_memory(checkpoint, command)
        except DeckError as error:
            self._pipe.send(LoadFailed(error))
            return
        facts = ModelFacts(
            name=name,
            architecture=checkpoint.architecture,
            device="cpu",
            kernel="dense",
            kernel_reason="dense",
            context_tokens=command.context_tokens or min(4096, checkpoint.max_context_tokens),
            num_slots=command.num_slots,
            load_s=time.monotonic() - began_s,
            weights_bytes=checkpoint.size_bytes,
            cache_bytes=memory.plan.kv_cache if memory else 94_371_840,
            memory=memory,
            notes=("own_head", "zeros_version") if "noted" in name else (),
            adapters=command.adapters,
            pool_tokens=command.cache.pool_tokens if memory else None,
        )
        self._pipe.send(Loaded(facts))

    def _say(self, script: Script) -> None:
        if script.ends_with != "end" and script.said == BREAK_AFTER_WORDS:
            self._break_off(script)
        elif script.said == script.paused_at > 0:
            self._pipe.send(Paused(script.request, True))
            script.next_s = math.inf
        elif script.said == len(script.words):
            self._finish(script, "end")
        else:
            script.said += 1
            word = script.words[script.said - 1]
            if word.strip() in script.stop:
                self._finish(script, "stop", word.strip())
                return
            self._pipe.send(TextChunk(script.request, word, script.said, _told(word, script)))
            script.next_s += script.wait_s

    def _break_off(self, script: Script) -> None:
        if script.ends_with == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        del self._scripts[script.request]
        self._pipe.send(Failed(script.request, EngineError("nothing_loaded")))

    def _finish(self, script: Script, reason: Reason, stop: str = "") -> None:
        del self._scripts[script.request]
        decode_s = time.monotonic() - script.began_s
        stats = AnswerStats(script.prompt_tokens, script.num_reused, script.said, 0.0, script.wait_s, decode_s, 1)
        self._pipe.send(Finished(script.request, reason, stats, stop))


if __name__ == "__main__":
    try:
        pipe = Connection(int(sys.argv[1]))
        outlet = Outlet(pipe)
        Pulse(outlet).start()
        if sys.argv[2:] == ["warm"]:
            outlet.send(ImportsDone())
        FakeWorker(pipe, outlet).run()
    except (EOFError, OSError):
        pass
