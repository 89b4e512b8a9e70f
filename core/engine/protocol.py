"""What the dashboard and the engine's process say to each other, as plain values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from core.common.errors import DeckError, GpuUseError
from core.engine.request_options import PLAIN, RequestOptions
from core.engine.sampling_params import Sampling
from core.engine.thought import ThoughtRules
from core.gpu.torch_support import InstalledTorch
from core.memory.adapter_room import NO_ROOM, AdapterRoom
from core.memory.cache_choice import EVERY_CHAT_FULL, CacheBits, CacheChoice
from core.memory.plan import MemoryPlan

# Why an answer ended: the model's own end, a stop string, the asked-for length, a full context, or a person.
Reason = Literal["end", "stop", "length", "context", "cancelled", "failed"]
Stage = Literal["start", "compile", "read", "prepare", "warm_up", "connect"]


class Conversation(str):
    """A chat as its turns, for a server that puts them into its model's template itself.

    As a text it is what a person reads. `turns` are pairs of a role and its words. `is_open`: the answer continues the
    last turn. `thoughts` are what was thought before each turn, `variables` what is set for the template.
    """

    turns: tuple[tuple[str, str], ...]
    is_open: bool
    thoughts: tuple[str, ...]
    variables: Mapping[str, Any]

    def __new__(
        cls,
        turns: Iterable[tuple[str, str]],
        is_open: bool,
        thoughts: Iterable[str] = (),
        variables: Mapping[str, Any] | None = None,
    ) -> Conversation:
        turns = tuple(turns)
        text = "\n\n".join(f"{role}: {words}" for role, words in turns)
        made = super().__new__(cls, text if is_open else f"{text}\n\nassistant:")
        made.turns, made.is_open = turns, is_open
        made.thoughts, made.variables = tuple(thoughts), variables or {}
        return made


# Dashboard to worker ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Load:
    """Load the checkpoint in `folder` with room for `num_slots` chats of `context_tokens` each.

    `kernel` None takes the fastest that fits. `force` loads on a GPU although the plan says that it does not fit;
    `on_cpu` leaves the GPUs alone. `adapters`: the room for LoRA adapters. `cache`: what is promised to the
    chats.
    """

    folder: Path
    context_tokens: int
    num_slots: int
    kernel: str | None = None
    force: bool = False
    on_cpu: bool = False
    adapters: AdapterRoom = NO_ROOM
    cache: CacheChoice = EVERY_CHAT_FULL


@dataclass(frozen=True, slots=True)
class Generate:
    """Answer `prompt`, which is text with its special tokens written out, or token ids.

    `continues`: the prompt ends inside the answer, whose text goes on after the prompt's last token. `client` is for
    whom it is, see core/engine/fair_queue.py: "" for the pages. With `thought` the marks of thoughts are in the text
    although they are special tokens, and a thought is ended where it is over its budget.
    """

    request: int
    prompt: str | tuple[int, ...]
    sampling: Sampling
    continues: bool = False
    client: str = ""
    thought: ThoughtRules | None = None
    options: RequestOptions = PLAIN


@dataclass(frozen=True, slots=True)
class Cancel:
    request: int


# Worker to dashboard ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ImportsDone:
    """A warm worker has imported everything that a load needs, and waits for one.

    `torch` is what it imported, `gpu_error` why a load could not use the GPUs here.
    """

    torch: InstalledTorch | None = None
    gpu_error: GpuUseError | None = None


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """The worker's process lives. `stuck_s`: how long its main thread has been at one step, where that is longer than
    any step takes; else 0."""

    stuck_s: float = 0.0


@dataclass(frozen=True, slots=True)
class LoadProgress:
    """`fraction` of the whole load, 0 to 1, never falling."""

    stage: Stage
    fraction: float


@dataclass(frozen=True, slots=True)
class MemoryFacts:
    """GPU memory after a load and its warm-up at full size: the plan, and the most that torch's allocator held.

    `loaded_bytes` are the weights and the kernel's scratch, once all were read. `context_bytes` is what NVML counts for
    the process beside torch's allocator; None where NVML does not tell. A forced load is not held to its plan.
    """

    plan: MemoryPlan
    loaded_bytes: int
    peak_bytes: int
    context_bytes: int | None
    is_forced: bool


@dataclass(frozen=True, slots=True)
class RemoteFacts:
    """What is known of a model on another server. `server` is its host as sentences call it.

    `is_context_told`, `is_context_chosen`: the length of the context comes from the server, or from a person; else it
    is assumed. `ignored` are the settings that the server does not take. `takes_variables`: it has a template for
    which variables such as enable_thinking can be set.
    """

    server: str
    software: str
    is_context_told: bool
    is_context_chosen: bool
    counts_tokens: bool
    can_continue: bool
    ignored: tuple[str, ...]
    takes_variables: bool = False


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What was loaded, and how: shown to people and printed by the benchmark.

    `captured`: its steps are CUDA graphs. `memory` is None on a CPU. `remote` is None where this machine runs it.
    `pool_tokens`: how many tokens all chats have together; None where each can have a whole context.
    `notes` are keys of sentences (`load.note_…`): where the files were not as their configuration says.
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
    notes: tuple[str, ...] = ()
    adapters: AdapterRoom = NO_ROOM
    pool_tokens: int | None = None
    cache_bits: CacheBits = 16


@dataclass(frozen=True, slots=True)
class Loaded:
    facts: ModelFacts


@dataclass(frozen=True, slots=True)
class LoadFailed:
    error: DeckError


@dataclass(frozen=True, slots=True)
class TokenChance:
    """A token, the bytes that it stands for, and the natural logarithm of its probability; None where there is none."""

    token: int
    data: bytes
    logprob: float | None


@dataclass(frozen=True, slots=True)
class TokenInfo:
    """A token that came, and the likeliest in its place, the likeliest first. `is_end`: it ended the answer, and is no
    part of its text."""

    chosen: TokenChance
    top: tuple[TokenChance, ...] = ()
    is_end: bool = False


@dataclass(frozen=True, slots=True)
class PromptStarted:
    """The prompt is being read: `prompt_tokens` in all, of which `reused_tokens` were still in the cache."""

    request: int
    prompt_tokens: int
    reused_tokens: int


@dataclass(frozen=True, slots=True)
class Paused:
    """The answer waits until others leave room in the cache, or goes on where it was."""

    request: int
    is_paused: bool


@dataclass(frozen=True, slots=True)
class TextChunk:
    """A further piece of the answer; never half a character, and empty where tokens made no text yet.

    `num_tokens` counts the whole answer so far. `tokens` are the further tokens where the request asks for
    log-probabilities; their text may still be held back.
    """

    request: int
    text: str
    num_tokens: int
    tokens: tuple[TokenInfo, ...] = ()


@dataclass(frozen=True, slots=True)
class PromptScored:
    """Log-probabilities of further tokens of the prompt; its first token has none."""

    request: int
    tokens: tuple[TokenInfo, ...]


@dataclass(frozen=True, slots=True)
class AnswerStats:
    """Times as the engine saw them: reading the prompt, then drawing tokens. Waiting in the queue is neither, nor is
    what an answer waits for room in the cache."""

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
    """`stop` is the stop string that ended the answer, "" where something else did."""

    request: int
    reason: Reason
    stats: AnswerStats
    stop: str = ""


@dataclass(frozen=True, slots=True)
class Failed:
    """The request failed; the model stays loaded."""

    request: int
    error: DeckError


Command = Load | Generate | Cancel
AnswerEvent = PromptStarted | PromptScored | Paused | TextChunk | Finished | Failed
Event = ImportsDone | Heartbeat | LoadProgress | Loaded | LoadFailed | AnswerEvent


@dataclass(frozen=True, slots=True)
class EngineState:
    """What the engine is doing, as pages read it. `model` is the name of what is loaded or being loaded.

    `ready_after_s` is how long its load took from the click, the start of the process with it.
    `server` is the host of a model that runs elsewhere, `folder` the model's on this machine; the other is None.
    `asleep`: nothing is loaded because nobody asked for long; this load brings back what was, if it did not fail
    ("failed") when it was tried.
    """

    phase: Literal["empty", "loading", "ready", "failed"] = "empty"
    model: str | None = None
    stage: Stage = "start"
    fraction: float = 0.0
    facts: ModelFacts | None = None
    error: DeckError | None = None
    ready_after_s: float = 0.0
    server: str | None = None
    folder: Path | None = None
    asleep: Load | None = None
