"""What servers of OpenAI's API differ in: their lists of models, and what a request may ask of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from core.common.errors import EngineError
from core.common.values import is_whole, printable
from core.engine.protocol import Conversation
from core.engine.sampling_params import Sampling

# The settings that every server takes, by our names.
COMMON = ("temperature", "top_p", "max_new_tokens", "seed", "stop", "presence_penalty", "frequency_penalty")
# Those that some servers take, each with what only counts beside it.
SLOW = {
    "typical_p": ("typical_p",),
    "xtc_probability": ("xtc_probability", "xtc_threshold"),
    "dry_multiplier": ("dry_multiplier", "dry_base", "dry_allowed_length", "dry_range", "dry_sequence_breakers"),
    "mirostat": ("mirostat", "mirostat_tau", "mirostat_eta"),
}
MAX_MODELS = 1000
EFFORT = "reasoning_effort"
MAX_ID_CHARS = 500
MAX_CONTEXT_TOKENS = 100_000_000
# OpenAI refuses more; AnswerStream looks for the others.
MAX_STOP_STRINGS = 4


@dataclass(frozen=True, slots=True)
class ServerCapabilities:
    """What one kind of server takes beyond OpenAI's own API; `settings` are pairs of our name and its.

    `can_continue`: it goes on from the last message's words. `count_path`: where it counts as vLLM's /tokenize does.
    `takes_variables`: it gives chat_template_kwargs and earlier thoughts to its model's template.
    `takes_slow`: it has DRY, XTC, typical-p and mirostat.
    `is_single`: a second request, whatever for, breaks off the answer that it is writing.
    """

    software: str = ""
    settings: tuple[tuple[str, str], ...] = ()
    can_continue: bool = False
    count_path: str = ""
    is_single: bool = False
    takes_variables: bool = False
    takes_slow: bool = False

    @property
    def ignored(self) -> tuple[str, ...]:
        """The settings that it does not take; of several that belong together the first."""
        beside = {name for names in SLOW.values() for name in names if name not in SLOW}
        taken = {*COMMON, *(ours for ours, _ in self.settings), *(SLOW if self.takes_slow else ()), *beside}
        return tuple(name for name in Sampling.names() if name not in taken)


OPENAI = ServerCapabilities()
SAME_NAMES = tuple((name, name) for name in ("top_k", "min_p", "repetition_penalty"))
VLLM = ServerCapabilities("vLLM", SAME_NAMES, can_continue=True, count_path="/tokenize", takes_variables=True)
LLAMADECK = replace(VLLM, software="LlamaDeck", count_path="/v1/tokenize", takes_slow=True)
LLAMA_CPP = ServerCapabilities(
    "llama.cpp",
    (("top_k", "top_k"), ("min_p", "min_p"), ("repetition_penalty", "repeat_penalty")),
    takes_variables=True,
    takes_slow=True,
)
LLAMA_CPP_PYTHON = replace(
    LLAMA_CPP, software="llama-cpp-python", is_single=True, takes_variables=False, takes_slow=False
)
# By the owner of a model in the list.
BY_OWNER = {"vllm": VLLM, "llamadeck": LLAMADECK, "llamacpp": LLAMA_CPP, "me": LLAMA_CPP_PYTHON}


@dataclass(frozen=True, slots=True)
class RemoteModel:
    """One model of a server's list. `context_tokens` is None where the server does not tell."""

    name: str
    context_tokens: int | None
    capabilities: ServerCapabilities


def read_models(found: Any, server: str) -> tuple[RemoteModel, ...]:
    """The models of what /v1/models answered. Raises EngineError for what is no such list."""
    entries = found.get("data") if isinstance(found, dict) else None
    if not isinstance(entries, list):
        raise EngineError("remote_not_openai", server=server)
    models = [_read_model(entry) for entry in entries[:MAX_MODELS] if isinstance(entry, dict)]
    return tuple(model for model in models if model is not None)


def _read_model(entry: dict[str, Any]) -> RemoteModel | None:
    name, context, owner = entry.get("id"), entry.get("max_model_len"), entry.get("owned_by")
    if not isinstance(name, str) or not name or len(name) > MAX_ID_CHARS or printable(name) != name:
        return None
    is_told = is_whole(context) and 0 < context <= MAX_CONTEXT_TOKENS
    capabilities = BY_OWNER.get(owner, OPENAI) if isinstance(owner, str) else OPENAI
    return RemoteModel(name, context if is_told else None, capabilities)


def request_for(
    model: RemoteModel, server: str, prompt: str | tuple[int, ...], sampling: Sampling
) -> tuple[str, dict[str, Any]]:
    """The path and the body that ask for `prompt`. Raises EngineError for what the server cannot do."""
    capabilities = model.capabilities
    body: dict[str, Any] = {
        "model": model.name,
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "max_tokens": sampling.max_new_tokens,
        "seed": sampling.seed,
    } | {theirs: getattr(sampling, ours) for ours, theirs in capabilities.settings}
    body |= {
        name: getattr(sampling, name) for name in ("presence_penalty", "frequency_penalty") if getattr(sampling, name)
    }
    if capabilities.takes_slow and sampling.is_slow:
        body |= _slow_fields(sampling)
    if sampling.stop:
        body["stop"] = list(sampling.stop if capabilities is not OPENAI else sampling.stop[:MAX_STOP_STRINGS])
    if not isinstance(prompt, Conversation):
        return "/v1/completions", body | {"prompt": prompt if isinstance(prompt, str) else list(prompt)}
    if prompt.is_open:
        if not capabilities.can_continue:
            raise EngineError("remote_no_continue", server=server)
        body |= {"add_generation_prompt": False, "continue_final_message": True}
    body |= _variables_of(prompt, capabilities)
    return "/v1/chat/completions", body | {"messages": messages_of(prompt, capabilities.takes_variables)}


def _slow_fields(sampling: Sampling) -> dict[str, Any]:
    fields = {name: getattr(sampling, name) for names in SLOW.values() for name in names}
    # llama.cpp's name, which LlamaDeck takes too. There -1 is all of the text.
    last_n = fields.pop("dry_range") or -1
    return fields | {"dry_penalty_last_n": last_n, "dry_sequence_breakers": list(sampling.dry_sequence_breakers)}


def count_request(model: RemoteModel, prompt: str) -> dict[str, Any]:
    """The body that asks how many tokens `prompt` is, with its special tokens."""
    if not isinstance(prompt, Conversation):
        return {"model": model.name, "prompt": prompt}
    return {
        "model": model.name,
        "messages": messages_of(prompt, model.capabilities.takes_variables),
        "add_generation_prompt": not prompt.is_open,
        "continue_final_message": prompt.is_open,
    } | _variables_of(prompt, model.capabilities)


def messages_of(prompt: Conversation, with_thoughts: bool) -> list[dict[str, str]]:
    messages = [{"role": role, "content": printable(words)} for role, words in prompt.turns]
    for message, thought in zip(messages, prompt.thoughts if with_thoughts else (), strict=False):
        if thought:
            # vLLM's newer name and the older one of all.
            message |= {"reasoning_content": printable(thought), "reasoning": printable(thought)}
    return messages


def _variables_of(prompt: Conversation, capabilities: ServerCapabilities) -> dict[str, Any]:
    """What a chat sets for the template. The effort has a field of its own in OpenAI's API."""
    others = {name: value for name, value in prompt.variables.items() if name != EFFORT}
    effort = {EFFORT: prompt.variables[EFFORT]} if EFFORT in prompt.variables else {}
    return effort | ({"chat_template_kwargs": others} if others and capabilities.takes_variables else {})
