"""The API's own description, OpenAPI 3.1: requests from the types that check them, answers as they are written."""

from __future__ import annotations

from functools import cache
from typing import Any

from pydantic.json_schema import models_json_schema

from core.api import unsupported
from core.api.dialects import description
from core.api.schema import ChatRequest, CompletionRequest, DetokenizeRequest, TokenizeRequest
from core.api.strict import Strict

VERSION = "1"
ABOUT = (
    "The loaded model, as OpenAI's API. What is below /v1 is there without /v1 as well. Fields that are not named are "
    "ignored; samplers have one order, repetition_penalty looks at the whole text. Of Anthropic's API and Ollama's "
    "and of OpenAI's /v1/responses the fields are named that count here; their own documents say more of each."
)
REQUESTS: tuple[type[Strict], ...] = (ChatRequest, CompletionRequest, TokenizeRequest, DetokenizeRequest)
TEXT, NUMBER = {"type": "string"}, {"type": "integer", "minimum": 0}
OPTIONAL_TEXT = {"type": ["string", "null"]}
EVENTS = {"description": "Server-sent events: the data of each is a piece of the answer as JSON, of the last [DONE]."}
# What any route may answer beside what it is for.
FAILURES = {
    "400": "What was sent cannot be answered; `param` names what is wrong.",
    "401": "No key, or one that opens nothing.",
    "404": "No such model; or no such path.",
    "405": "Another method is wanted.",
    "408": "The body did not come in time.",
    "413": "The body is too large.",
    "415": "The body is no JSON.",
    "429": "Too many answers are waiting; Retry-After says when to ask again.",
    "500": "The engine failed.",
    "503": "No model is loaded, or it is being loaded; Retry-After says when to ask again.",
}


@cache
def describe() -> dict[str, Any]:
    """The whole description."""
    _, definitions = models_json_schema(
        [(kind, "validation") for kind in REQUESTS], ref_template="#/components/schemas/{model}"
    )
    schemas: dict[str, Any] = {**definitions["$defs"], **_answers(), **description.schemas()}
    for name in ("ChatRequest", "CompletionRequest"):
        schemas[name]["properties"] |= unsupported.describe()
    key = {"type": "http", "scheme": "bearer", "description": "A key from the page Settings."}
    return {
        "openapi": "3.1.0",
        "info": {"title": "LlamaDeck", "version": VERSION, "description": ABOUT},
        "servers": [{"url": "/"}],
        "security": [{"key": []}, {}],
        "paths": _paths(),
        "components": {"schemas": schemas, "securitySchemes": {"key": key}},
    }


def _paths() -> dict[str, Any]:
    name = {"name": "id", "in": "path", "required": True, "schema": TEXT | {"minLength": 1}}
    return {
        "/v1/models": {"get": _route("listModels", "The loaded model and the characters.", "ModelList")},
        "/v1/models/{id}": {"get": _route("getModel", "One of them.", "Model") | {"parameters": [name]}},
        "/v1/chat/completions": {
            "post": _route(
                "chat",
                "The model's answer to messages, or a character's.",
                "ChatCompletion",
                "ChatRequest",
                description.SSE,
            )
        },
        "/v1/completions": {
            "post": _route("complete", "How a text goes on.", "TextCompletion", "CompletionRequest", description.SSE)
        },
        "/v1/tokenize": {"post": _route("tokenize", "A text's tokens.", "Tokenized", "TokenizeRequest")},
        "/v1/detokenize": {"post": _route("detokenize", "Tokens' text.", "Detokenized", "DetokenizeRequest")},
        "/v1/key": {"get": _route("tryKey", "Whether the key is right; asked for on this machine too.", "KeyState")},
        "/health": {"get": _route("health", "Whether the server is alive; needs no key.", "Health") | {"security": []}},
        "/ready": {"get": _ready()},
        "/metrics": {"get": _route("metrics", "Figures for Prometheus.", None)},
        "/openapi.json": {"get": _route("describe", "This description.", "Description")},
        **{
            one.path: {one.method: _route(one.name, one.summary, one.answer, one.request, one.stream, one.error)}
            for one in description.OPERATIONS
        },
    }


def _route(
    operation: str,
    summary: str,
    answer: str | None,
    request: str | None = None,
    stream: str | None = None,
    error: str = "Error",
) -> dict[str, Any]:
    content = {"text/plain": {"schema": TEXT}} if answer is None else _json(answer)
    if stream is not None:
        # Each line is an answer for itself where no events are sent.
        content = content | {stream: {"schema": EVENTS if stream == description.SSE else {}}}
    failures = {status: {"description": text, "content": _json(error)} for status, text in FAILURES.items()}
    route: dict[str, Any] = {
        "operationId": operation,
        "summary": summary,
        "responses": {"200": {"description": summary, "content": content}, **failures},
    }
    if request is not None:
        route["requestBody"] = {"required": True, "content": _json(request)}
    return route


def _ready() -> dict[str, Any]:
    route = _route("ready", "Whether a model is loaded and its engine answers; needs no key.", "Readiness")
    route["responses"]["503"] = {
        "description": "It does not: no model, one that is being loaded or failed, or an engine that hangs.",
        "content": _json("Readiness"),
    }
    return route | {"security": []}


def _json(schema: str) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}


def _object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}


def _list(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


def _chat_logprobs() -> dict[str, Any]:
    token = _object(token=TEXT, logprob={"type": ["number", "null"]}, bytes=_list(NUMBER))
    with_top = {**token, "properties": token["properties"] | {"top_logprobs": _list(token)}}
    return {"anyOf": [_object(content=_list(with_top), refusal={"type": "null"}), {"type": "null"}]}


def _completion_logprobs() -> dict[str, Any]:
    number = {"type": ["number", "null"]}
    top = {"type": ["object", "null"], "additionalProperties": {"type": "number"}}
    lists = _object(
        tokens=_list(TEXT), token_logprobs=_list(number), top_logprobs=_list(top), text_offset=_list(NUMBER)
    )
    return {"anyOf": [lists, {"type": "null"}]}


def _answers() -> dict[str, Any]:
    error = _object(message=TEXT, type=TEXT, param=OPTIONAL_TEXT, code=OPTIONAL_TEXT)
    model = _object(id=TEXT, object={"const": "model"}, created=NUMBER, owned_by=TEXT)
    model["properties"]["max_model_len"] = NUMBER | {"description": "Of what is loaded."}
    model["properties"]["pool_tokens"] = NUMBER | {
        "description": "Tokens of all chats together; left out where each can have a whole context."
    }
    model["properties"]["parent"] = TEXT | {"description": "A character's: the model that speaks for it."}
    usage = _object(
        prompt_tokens=NUMBER,
        completion_tokens=NUMBER,
        total_tokens=NUMBER,
        prompt_tokens_details=_object(cached_tokens=NUMBER),
    )
    ends = {"index": NUMBER, "finish_reason": {"enum": ["stop", "length", "tool_calls"]}, "stop_reason": OPTIONAL_TEXT}
    message = _object(role={"const": "assistant"}, content=OPTIONAL_TEXT)
    call = _object(id=TEXT, type={"const": "function"}, function=_object(name=TEXT, arguments=TEXT))
    thought = TEXT | {"description": "What the model thought before, where it did."}
    message["properties"] |= {"reasoning_content": thought, "reasoning": thought, "tool_calls": _list(call)}
    head = {"id": TEXT, "created": NUMBER, "model": TEXT, "usage": usage}
    return {
        "Error": _object(error=error),
        "Model": model,
        "ModelList": _object(object={"const": "list"}, data=_list(model)),
        "ChatCompletion": _object(
            object={"const": "chat.completion"},
            choices=_list(_object(message=message, logprobs=_chat_logprobs(), **ends)),
            **head,
        ),
        "TextCompletion": _object(
            object={"const": "text_completion"},
            choices=_list(_object(text=TEXT, logprobs=_completion_logprobs(), **ends)),
            **head,
        ),
        "Tokenized": _object(count=NUMBER, max_model_len=NUMBER, tokens={"type": ["array", "null"], "items": NUMBER}),
        "Detokenized": _object(prompt=TEXT),
        "Health": _object(status={"const": "ok"}),
        "KeyState": _object(object={"const": "key"}, valid={"const": True}),
        "Readiness": _object(
            status={"enum": ["ready", "asleep", "empty", "loading", "failed", "silent"]},
            silent_s={"type": "number", "minimum": 0, "description": "For how long the engine has not answered."},
        ),
        "Description": _object(openapi=TEXT, paths={"type": "object"}),
    }
