"""What one request asks beside its settings: for this answer alone, never kept in a preset."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from core.common.errors import InputError
from core.common.values import is_whole

# As OpenAI and vLLM have them.
MAX_TOP_LOGPROBS = 20
MAX_BIAS = 100.0
MAX_BIASED = 1024
MAX_GRAMMAR_CHARS = 2**18
MAX_ADAPTER_WEIGHT = 4.0


@dataclass(frozen=True, slots=True)
class Grammar:
    """What an answer has to look like: `text` is a JSON schema, a regular expression, a grammar in Lark or GBNF.

    "call": a call of a tool, held to the JSON schema as far as that can be. "calls": words with such calls between
    them, in tags.
    """

    kind: Literal["json", "regex", "lark", "gbnf", "call", "calls"]
    text: str


@dataclass(frozen=True, slots=True)
class AdapterUse:
    """The LoRA adapter in `folder`, `weight` times as strong as its own scale makes it. `name` is for people."""

    name: str
    folder: Path
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not 0.0 < self.weight <= MAX_ADAPTER_WEIGHT:
            raise InputError("setting_range", name="adapter_weight", value=str(self.weight), low=0,
                             high=MAX_ADAPTER_WEIGHT)  # fmt: skip


@dataclass(frozen=True, slots=True)
class RequestOptions:
    """`logit_bias`: what is added to the logits of tokens, by id. No end comes before `min_tokens`, and with
    `ignore_eos` none but those of length. `logprobs`: how many of the likeliest tokens are told with each token; None
    tells nothing. `prompt_logprobs` tells them of the prompt's tokens, too. The special tokens that stand in `shown`
    are in the answer's text, too. `is_prompt_alone`: nobody wants the answer, and the prompt may fill the context.
    """

    logit_bias: tuple[tuple[int, float], ...] = ()
    min_tokens: int = 0
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_logprobs: bool = False
    grammar: Grammar | None = None
    shown: tuple[str, ...] = ()
    is_prompt_alone: bool = False
    adapter: AdapterUse | None = None

    def __post_init__(self) -> None:
        if len(self.logit_bias) > MAX_BIASED:
            raise InputError("logit_bias", count=len(self.logit_bias), limit=MAX_BIASED)
        if self.logprobs is not None and not (is_whole(self.logprobs) and 0 <= self.logprobs <= MAX_TOP_LOGPROBS):
            raise InputError("setting_whole", name="logprobs", value=str(self.logprobs), low=0, high=MAX_TOP_LOGPROBS)
        if self.grammar is not None and len(self.grammar.text) > MAX_GRAMMAR_CHARS:
            raise InputError("grammar_large", chars=len(self.grammar.text), limit=MAX_GRAMMAR_CHARS)


PLAIN = RequestOptions()
