"""What the dashboard and the engine's process say to each other, as plain values; knows neither pipes nor torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from core.common.errors import DeckError, GpuUseError, InputError
from core.gpu.torch_support import InstalledTorch
from core.memory.plan import MemoryPlan

# Why an answer ended: the model's own end, a stop string, the asked-for length, a full context, or a person.
Reason = Literal["end", "stop", "length", "context", "cancelled", "failed"]
Stage = Literal["start", "compile", "read", "prepare", "warm_up", "connect"]

# What each setting may be; the same ranges guard the page's widgets, the command line and the engine.
SAMPLING_RANGES: dict[str, tuple[float, float]] = {
    "temperature": (0.0, 5.0),
    "top_p": (0.0, 1.0),
    "top_k": (0, 1_000_000),
    "min_p": (0.0, 1.0),
    "repetition_penalty": (0.5, 5.0),
    "max_new_tokens": (1, 1_000_000),
}
WHOLE_SETTINGS = ("top_k", "max_new_tokens")
MAX_STOP_STRINGS = 16
MAX_SEED = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is drawn. Temperature 0 always takes the likeliest; `top_k` 0 and `top_p` 1 cut nothing."""

    temperature: float = 0.7
    top_p: float = 0.9
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    max_new_tokens: int = 1024
    seed: int | None = None
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, (low, high) in SAMPLING_RANGES.items():
            _check_range(name, getattr(self, name), low, high, name in WHOLE_SETTINGS)
        if self.seed is not None:
            _check_range("seed", self.seed, 0, MAX_SEED, is_whole=True)
        if len(self.stop) > MAX_STOP_STRINGS or not all(isinstance(text, str) and text for text in self.stop):
            raise InputError("stop_strings", count=len(self.stop), limit=MAX_STOP_STRINGS)

    @classmethod
    def names(cls) -> list[str]:
        return [field.name for field in fields(cls)]


def _check_range(name: str, value: object, low: float, high: float, is_whole: bool) -> None:
    kinds = int if is_whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds) or not low <= value <= high:
        key = "setting_whole" if is_whole else "setting_range"
        raise InputError(key, name=name, value=str(value), low=low, high=high)


class Conversation(str):
    """A chat as its turns, for a server that puts them into its model's template itself.

    As a text it is what a person reads. `turns` are pairs of a role and its words; `is_open` where the last of them
    is to be gone on with.
    """

    turns: tuple[tuple[str, str], ...]
    is_open: bool

    def __new__(cls, turns: Iterable[tuple[str, str]], is_open: bool) -> Conversation:
        turns = tuple(turns)
        text = "\n\n".join(f"{role}: {words}" for role, words in turns)
        made = super().__new__(cls, text if is_open else f"{text}\n\nassistant:")
        made.turns, made.is_open = turns, is_open
        return made


# Dashboard to worker ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Load:
    """Load the checkpoint in `folder` with room for `num_slots` chats of `context_tokens` each.

    `kernel` None takes the fastest that fits. `force` loads on a GPU although the plan says that it does not fit;
    `on_cpu` leaves the GPUs alone.
    """

    folder: Path
    context_tokens: int
    num_slots: int
    kernel: str | None = None
    force: bool = False
    on_cpu: bool = False


@dataclass(frozen=True, slots=True)
class Generate:
    """Answer `prompt`, which is text with its special tokens written out, or token ids.

    `continues`: the prompt ends inside the answer, so that what comes is written as going on from its last token.
    `client` is for whom it is, see core/engine/fair_queue.py: "" for the pages.
    """

    request: int
    prompt: str | tuple[int, ...]
    sampling: Sampling
    continues: bool = False
    client: str = ""


@dataclass(frozen=True, slots=True)
class Cancel:
    request: int


# Worker to dashboard ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Prepared:
    """A spare worker has imported everything that a load needs, and waits for one.

    `torch` is what it imported, `gpu_error` why a load could not use the GPUs here.
    """

    torch: InstalledTorch | None = None
    gpu_error: GpuUseError | None = None


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """The worker's process lives. `stuck_s` is how long its main thread has been at one step of its answers where that
    is longer than any takes, else 0."""

    stuck_s: float = 0.0


@dataclass(frozen=True, slots=True)
class LoadProgress:
    """`fraction` of the whole load, 0 to 1, never falling."""

    stage: Stage
    fraction: float


@dataclass(frozen=True, slots=True)
class MemoryFacts:
    """GPU memory after a load and its warm-up at full size: the plan, and what torch's allocator held at the most.

    `context_bytes` is what NVML counts beside that for the process; None where it does not tell.
    A forced load is not held to its plan.
    """

    plan: MemoryPlan
    peak_bytes: int
    context_bytes: int | None
    is_forced: bool


@dataclass(frozen=True, slots=True)
class RemoteFacts:
    """What is known of a model on another server. `server` is its host as sentences call it.

    `is_context_told`, `is_context_chosen`: the length of the context comes from the server, or from a person; else it
    is assumed. `ignored` are the settings that the server does not take.
    """

    server: str
    software: str
    is_context_told: bool
    is_context_chosen: bool
    counts_tokens: bool
    can_continue: bool
    ignored: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What was loaded, and how: shown to people and printed by the benchmark.

    `captured`: its steps are CUDA graphs. `memory` is None on a CPU. `remote` is None where this machine runs it.
    """

    name: str
    architecture: str
    device: str
    kernel: str
    kernel_reason: str
    context_tokens: int
    num_slots: int
    load_s: float
    weights_bytes: int
    cache_bytes: int
    captured: bool = False
    memory: MemoryFacts | None = None
    remote: RemoteFacts | None = None


@dataclass(frozen=True, slots=True)
class Loaded:
    facts: ModelFacts


@dataclass(frozen=True, slots=True)
class LoadFailed:
    error: DeckError


@dataclass(frozen=True, slots=True)
class Began:
    """The prompt is being read: `prompt_tokens` in all, of which `reused_tokens` were still in the cache."""

    request: int
    prompt_tokens: int
    reused_tokens: int


@dataclass(frozen=True, slots=True)
class Text:
    """A further piece of the answer; never half a character, and empty where tokens made no text yet.

    `num_tokens` counts the whole answer so far.
    """

    request: int
    text: str
    num_tokens: int


@dataclass(frozen=True, slots=True)
class AnswerStats:
    """Times as the engine saw them: reading the prompt, then drawing tokens; waiting in the queue is neither."""

    prompt_tokens: int
    reused_tokens: int
    num_tokens: int
    queued_s: float
    prefill_s: float
    decode_s: float
    seed: int

    @property
    def decode_tokens_per_s(self) -> float:
        """The first token is the prefill's; the rate is that of the tokens after it."""
        return (self.num_tokens - 1) / self.decode_s if self.num_tokens > 1 and self.decode_s > 0 else 0.0


@dataclass(frozen=True, slots=True)
class Finished:
    request: int
    reason: Reason
    stats: AnswerStats


@dataclass(frozen=True, slots=True)
class Failed:
    """The request failed; the model stays loaded."""

    request: int
    error: DeckError


Command = Load | Generate | Cancel
Event = Prepared | Heartbeat | LoadProgress | Loaded | LoadFailed | Began | Text | Finished | Failed


@dataclass(frozen=True, slots=True)
class EngineState:
    """What the engine is doing, as pages read it. `model` is the name of what is loaded or being loaded.

    `ready_after_s` is how long its load took from the click, the start of the process with it.
    `server` is the host of a model that runs elsewhere, None for this machine's own.
    """

    phase: Literal["empty", "loading", "ready", "failed"] = "empty"
    model: str | None = None
    stage: Stage = "start"
    fraction: float = 0.0
    facts: ModelFacts | None = None
    error: DeckError | None = None
    ready_after_s: float = 0.0
    server: str | None = None
