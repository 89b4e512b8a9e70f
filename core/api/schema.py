"""What a client may send, as types that check it and that describe it.

What is not named here is ignored, so that clients of other servers work; what would change an answer and cannot be
done is refused (unsupported.py).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    Field,
    PlainValidator,
    ValidationError,
    WithJsonSchema,
)

from core.api.errors import ApiError
from core.api.grammar_fields import Alternatives, ContextFree, Format, Pattern, Schema, Structured, only_one
from core.api.json_text import read_json
from core.api.length_fields import MAX_LENGTH, Tokens, TokensOrNone
from core.api.message_fields import MAX_SHOWN_CHARS, TEXT, Messages, Variables
from core.api.sampling_fields import Breakers, LogitBias, within
from core.api.strict import Strict
from core.api.tool_fields import Choice, ToolFields
from core.api.unsupported import check_supported, name_sent, with_our_names
from core.common.values import printable
from core.engine.request_options import MAX_TOP_LOGPROBS, Grammar
from core.engine.sampling_params import MAX_STOP_STRINGS, SAMPLING_RANGES

# A chat's own marks (PromptStyle.stop_strings) take the rest.
MAX_STOP = MAX_STOP_STRINGS - 16
MAX_STOP_CHARS = 1000
MAX_CHOICES = 16
# Of a value that cannot be used, in what is said of it.
MAX_VALUE_CHARS = 40
MAX_INT64 = 2**63 - 1
IDS: dict[str, Any] = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}
PROMPT_SCHEMA: dict[str, Any] = {
    "description": "A text, the ids of its tokens, or several of either.",
    "anyOf": [
        TEXT,
        {"type": "array", "items": TEXT, "minItems": 1, "maxItems": MAX_CHOICES},
        IDS,
        {"type": "array", "items": IDS, "minItems": 1, "maxItems": MAX_CHOICES},
    ],
}
STOP_TEXT = TEXT | {"maxLength": MAX_STOP_CHARS}
STOP_SCHEMA: dict[str, Any] = {
    "description": "Where the answer ends; the text itself is left out.",
    "anyOf": [
        STOP_TEXT | {"minLength": 1},
        {"type": "array", "items": STOP_TEXT, "maxItems": MAX_STOP},
        {"type": "null"},
    ],
}


class StreamOptions(Strict):
    include_usage: bool | None = None


def _as_stop(value: object) -> tuple[str, ...]:
    words = [value] if isinstance(value, str) and value else value if value is not None else []
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise ValueError("a text that is not empty, or a list of texts, is wanted")
    if len(words) > MAX_STOP:
        raise ValueError(f"at most {MAX_STOP} texts are taken")
    if any(len(word) > MAX_STOP_CHARS for word in words):
        raise ValueError(f"a text of at most {MAX_STOP_CHARS} characters is wanted")
    # Some editors send an empty one among others.
    return tuple(word for word in words if word)


def _as_prompts(value: object) -> tuple[str | tuple[int, ...], ...]:
    prompts = [value] if isinstance(value, str) or is_ids(value) else value
    if not isinstance(prompts, list) or not prompts:
        raise ValueError("a text, a list of token ids, or a list of either is wanted")
    if len(prompts) > MAX_CHOICES:
        raise ValueError(f"at most {MAX_CHOICES} prompts are taken")
    if all(isinstance(one, str) for one in prompts):
        return tuple(prompts)
    if not all(is_ids(one) for one in prompts):
        raise ValueError("every prompt has to be a text, or every one a list of token ids")
    if not all(0 <= token <= MAX_INT64 for one in prompts for token in one):
        raise ValueError("a token id is a number from 0 to the last one of the model's vocabulary")
    return tuple(tuple(one) for one in prompts)


def is_ids(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(type(one) is int for one in value)


GRAMMAR_FIELDS = (
    "response_format",
    "guided_json",
    "guided_regex",
    "guided_choice",
    "guided_grammar",
    "structured_outputs",
)
Stop = Annotated[tuple[str, ...], PlainValidator(_as_stop), WithJsonSchema(STOP_SCHEMA)]
Prompts = Annotated[tuple[str | tuple[int, ...], ...], PlainValidator(_as_prompts), WithJsonSchema(PROMPT_SCHEMA)]


class Sampled(Strict):
    """What both kinds of requests share. What is left out is as the model recommends."""

    model: str | None = Field(None, description="The loaded model's name, which is also what is meant without one.")
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    max_tokens: Tokens | None = None
    temperature: Annotated[float, within("temperature")] | None = None
    top_p: Annotated[float, within("top_p")] | None = None
    top_k: Annotated[int, Field(ge=-1, le=int(SAMPLING_RANGES["top_k"][1]))] | None = None
    min_p: Annotated[float, within("min_p")] | None = None
    repetition_penalty: Annotated[float, within("repetition_penalty")] | None = None
    seed: Annotated[int, Field(ge=-MAX_INT64 - 1, le=MAX_INT64)] | None = None
    stop: Stop = ()
    presence_penalty: Annotated[float, within("presence_penalty")] | None = None
    frequency_penalty: Annotated[float, within("frequency_penalty")] | None = None
    logit_bias: LogitBias = ()
    min_tokens: Annotated[int, Field(ge=-1, le=MAX_LENGTH)] | None = Field(
        None, description="Neither the model's own end nor a stop string ends a shorter answer."
    )
    ignore_eos: bool | None = Field(None, description="The model's own end never comes.")
    typical_p: Annotated[float, within("typical_p")] | None = None
    xtc_probability: Annotated[float, within("xtc_probability")] | None = None
    xtc_threshold: Annotated[float, within("xtc_threshold")] | None = None
    dry_multiplier: Annotated[float, within("dry_multiplier")] | None = None
    dry_base: Annotated[float, within("dry_base")] | None = None
    dry_allowed_length: Annotated[int, within("dry_allowed_length")] | None = None
    dry_range: Annotated[int, Field(ge=-1, le=int(SAMPLING_RANGES["dry_range"][1]))] | None = Field(
        None, description="How many of the last tokens DRY looks at; 0 and -1: all."
    )
    dry_sequence_breakers: Breakers = None
    mirostat: Annotated[int, within("mirostat")] | None = None
    mirostat_tau: Annotated[float, within("mirostat_tau")] | None = None
    mirostat_eta: Annotated[float, within("mirostat_eta")] | None = None
    response_format: Format = None
    guided_json: Schema = None
    guided_regex: Pattern = None
    guided_choice: Alternatives = None
    guided_grammar: ContextFree = None
    structured_outputs: Structured = None

    @property
    def grammar(self) -> Grammar | None:
        """The form that the answer has to have. Raises ApiError where several are asked for."""
        return only_one({name: getattr(self, name) for name in GRAMMAR_FIELDS})


class ChatRequest(Sampled):
    """`model` may name a character: it answers as on the page Chat."""

    messages: Messages
    max_completion_tokens: Tokens | None = None
    tools: ToolFields | None = Field(None, description="Functions that the model may call.")
    tool_choice: Choice = None
    parallel_tool_calls: bool | None = None
    continue_final_message: bool | None = Field(
        None, description="The answer goes on from the last message, which is the assistant's."
    )
    chat_template_kwargs: Variables = Field(default_factory=dict)
    enable_thinking: bool | None = Field(None, description="Whether the model thinks, where its template has a switch.")
    logprobs: bool | None = Field(None, description="Tells how likely each token was.")
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = Field(
        None, description="How many of the likeliest tokens are told beside each."
    )
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = Field(
        None, description="How much the model thinks, where its template asks for it; none switches thinking off."
    )
    thinking_budget: Annotated[int, Field(ge=1, le=MAX_LENGTH)] | None = Field(
        None, description="After this many tokens a thought is ended, and the answer follows."
    )


class CompletionRequest(Sampled):
    prompt: Prompts
    max_tokens: TokensOrNone | None = None
    suffix: str | None = Field(None, description="What comes after the text that is wanted.")
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = Field(
        None, description="Tells how likely each token was, and so many of the likeliest; with echo of the prompt too."
    )
    best_of: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = Field(
        None, description="So many answers are written, of which the n likeliest are sent."
    )


class TokenizeRequest(Strict):
    """The tokens of a text, or of messages in the model's own form."""

    model: str | None = None
    prompt: str | None = None
    messages: Messages | None = None
    chat_template_kwargs: Variables = Field(default_factory=dict)


class DetokenizeRequest(Strict):
    model: str | None = None
    tokens: list[Annotated[int, Field(ge=0, le=MAX_INT64)]]


Request = TypeVar("Request", bound=Strict)
# From a body as another API has it to one of ours. Raises ApiError.
Translate = Callable[[dict[str, Any]], dict[str, Any]]


def read_body(kind: type[Request], body: bytes, translate: Translate | None = None) -> Request:
    """The request in `body`; of Sampled the kind that its prompt or its messages make it. Raises ApiError that names
    the first field that is wrong."""
    try:
        value = read_json(body)
    except ValueError as error:
        raise ApiError("api_json", why=str(error)[:MAX_SHOWN_CHARS]) from None
    if not isinstance(value, dict):
        raise ApiError("api_field", field="body", why="an object is wanted")
    if translate is not None:
        value = translate(value)
    sent = value
    if issubclass(kind, Sampled):
        value = with_our_names(value)
        check_supported(value)
    chosen: type[Any] = kind
    if kind is Sampled:
        chosen = CompletionRequest if "prompt" in value else ChatRequest
    try:
        found: Request = chosen.model_validate(value)
        return found
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        top, *below = first["loc"] or ("body",)
        field = ".".join(map(str, (name_sent(str(top), sent), *below)))[:MAX_SHOWN_CHARS]
        why = first["msg"].removeprefix("Value error, ") + _told(first["input"])
        raise ApiError("api_field", field=field, why=why) from None


def _told(value: object) -> str:
    """The value that was sent, where it is a number or a short text."""
    if not isinstance(value, int | float | str):
        return ""
    shown = printable(json.dumps(value, ensure_ascii=False))
    return f" (sent: {shown})" if len(shown) <= MAX_VALUE_CHARS else ""
