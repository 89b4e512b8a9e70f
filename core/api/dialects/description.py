"""What OpenAPI says of the other APIs: the fields that are read here; their own documents say more of each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Schema = dict[str, Any]
TEXT: Schema = {"type": "string"}
FLAG: Schema = {"type": "boolean"}
WHOLE: Schema = {"type": "integer", "minimum": 0}
ANY_OBJECT: Schema = {"type": "object"}
SSE, LINES = "text/event-stream", "application/x-ndjson"


@dataclass(frozen=True, slots=True)
class Operation:
    """One route. `request`, `answer` and `error` name schemas; `stream` is the kind of an answer in pieces, if any."""

    path: str
    method: str
    name: str
    summary: str
    answer: str
    request: str | None = None
    stream: str | None = None
    error: str = "Error"


ANTHROPIC, OLLAMA = "AnthropicError", "OllamaError"
OPERATIONS = (
    Operation("/v1/messages", "post", "createMessage", "Anthropic's: the answer to messages.", "AnthropicMessage",
              "AnthropicRequest", SSE, ANTHROPIC),
    Operation("/v1/messages/count_tokens", "post", "countMessageTokens", "Anthropic's: the tokens of messages.",
              "AnthropicTokens", "AnthropicRequest", None, ANTHROPIC),
    Operation("/v1/responses", "post", "createResponse", "OpenAI's newer form of an answer; nothing is stored.",
              "Response", "ResponseRequest", SSE),
    Operation("/api/chat", "post", "ollamaChat", "Ollama's: the answer to messages.", "OllamaAnswer",
              "OllamaChatRequest", LINES, OLLAMA),
    Operation("/api/generate", "post", "ollamaGenerate", "Ollama's: the answer to a text, or how it goes on.",
              "OllamaAnswer", "OllamaGenerateRequest", LINES, OLLAMA),
    Operation("/api/show", "post", "ollamaShow", "Ollama's: what a model is.", "OllamaModelFacts",
              "OllamaShowRequest", None, OLLAMA),
    Operation("/api/tags", "get", "ollamaTags", "Ollama's: the models.", "OllamaModels", error=OLLAMA),
    Operation("/api/ps", "get", "ollamaRunning", "Ollama's: what is loaded.", "OllamaModels", error=OLLAMA),
    Operation("/api/version", "get", "ollamaVersion", "Ollama's: a version that its clients want.", "OllamaVersion",
              error=OLLAMA),
)  # fmt: skip


def schemas() -> dict[str, Schema]:
    return {**_anthropic(), **_responses(), **_ollama()}


def _object(required: tuple[str, ...] = (), **properties: Any) -> Schema:
    return {"type": "object", "properties": properties, "required": list(required)}


def _made(**properties: Any) -> Schema:
    """Of an answer, which has all of them."""
    return _object(tuple(properties), **properties)


def _list(items: Schema, **more: Any) -> Schema:
    return {"type": "array", "items": items, **more}


def _text_or(items: Schema) -> Schema:
    return {"anyOf": [TEXT, _list(items)]}


def _or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


SAMPLING: dict[str, Schema] = {
    "model": TEXT,
    "temperature": {"type": "number", "minimum": 0, "maximum": 2},
    "top_p": {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
    "stream": FLAG,
}


def _anthropic() -> dict[str, Schema]:
    text = _object(("type", "text"), type={"const": "text"}, text=TEXT)
    block = {
        "description": "Parts that hold something else than text are refused.",
        "anyOf": [
            text,
            _object(("type", "thinking"), type={"const": "thinking"}, thinking=TEXT),
            _object(("type", "id", "name"), type={"const": "tool_use"}, id=TEXT, name=TEXT, input=ANY_OBJECT),
            _object(("type", "tool_use_id"), type={"const": "tool_result"}, tool_use_id=TEXT, content=_text_or(text)),
        ],
    }
    tool = _object(("name",), name=TEXT, description=TEXT, input_schema=ANY_OBJECT, type={"const": "custom"})
    request = _object(
        ("messages",),
        **SAMPLING,
        max_tokens={"type": "integer", "minimum": 1},
        messages=_list(
            _object(("role", "content"), role={"enum": ["user", "assistant"]}, content=_text_or(block)), minItems=1
        ),
        system=_text_or(text),
        top_k=WHOLE,
        stop_sequences=_list(TEXT),
        thinking=_object(("type",), type={"enum": ["enabled", "adaptive", "disabled"]}, budget_tokens=WHOLE),
        output_config=_object(effort=TEXT, format=_object(type={"const": "json_schema"}, schema=ANY_OBJECT)),
        tools=_list(tool),
        tool_choice=_object(
            ("type",), type={"enum": ["auto", "any", "tool", "none"]}, name=TEXT, disable_parallel_tool_use=FLAG
        ),
    )
    usage = _made(
        input_tokens=WHOLE, output_tokens=WHOLE, cache_creation_input_tokens=WHOLE, cache_read_input_tokens=WHOLE
    )
    said = _object(("type",), type={"enum": ["text", "thinking", "tool_use"]})
    return {
        "AnthropicRequest": request,
        "AnthropicMessage": _made(
            id=TEXT,
            type={"const": "message"},
            role={"const": "assistant"},
            model=TEXT,
            content=_list(said),
            stop_reason={"enum": ["end_turn", "max_tokens", "stop_sequence", "tool_use"]},
            stop_sequence=_or_null(TEXT),
            usage=usage,
        ),
        "AnthropicTokens": _made(input_tokens=WHOLE),
        ANTHROPIC: _made(type={"const": "error"}, error=_made(type=TEXT, message=TEXT)),
    }


def _responses() -> dict[str, Schema]:
    part = _object(("type", "text"), type={"enum": ["input_text", "output_text"]}, text=TEXT)
    item = {
        "anyOf": [
            _object(
                ("role", "content"),
                type={"const": "message"},
                role={"enum": ["user", "assistant", "system", "developer"]},
                content=_text_or(part),
            ),
            _object(
                ("type", "call_id", "name", "arguments"),
                type={"const": "function_call"},
                call_id=TEXT,
                name=TEXT,
                arguments=TEXT,
            ),
            _object(
                ("type", "call_id", "output"),
                type={"const": "function_call_output"},
                call_id=TEXT,
                output=_text_or(part),
            ),
        ]
    }
    tool = _object(("type", "name"), type={"const": "function"}, name=TEXT, description=TEXT, parameters=ANY_OBJECT)
    request = _object(
        ("input",),
        **SAMPLING,
        input={"anyOf": [TEXT, _list(item, minItems=1)]},
        instructions=_or_null(TEXT),
        max_output_tokens=_or_null({"type": "integer", "minimum": 1}),
        reasoning=_object(effort=TEXT),
        text=_object(format=_object(("type",), type={"enum": ["text", "json_object", "json_schema"]})),
        tools=_list(tool),
        tool_choice={"anyOf": [{"enum": ["auto", "none", "required"]}, ANY_OBJECT]},
        parallel_tool_calls=FLAG,
    )
    output = _object(("type",), type={"enum": ["message", "reasoning", "function_call"]})
    return {
        "ResponseRequest": request,
        "Response": _object(
            ("id", "object", "created_at", "status", "model", "output", "usage"),
            id=TEXT,
            object={"const": "response"},
            created_at=WHOLE,
            status={"enum": ["completed", "incomplete"]},
            model=TEXT,
            output=_list(output),
            usage=_object(("input_tokens", "output_tokens", "total_tokens"), input_tokens=WHOLE, output_tokens=WHOLE,
                          total_tokens=WHOLE),
        ),
    }  # fmt: skip


def _ollama() -> dict[str, Schema]:
    common: dict[str, Schema] = {
        "model": TEXT,
        "stream": FLAG | {"description": "True where it is not given."},
        "options": ANY_OBJECT | {"description": "Settings of the draw, by Ollama's names or ours."},
        "format": {"anyOf": [{"const": "json"}, ANY_OBJECT], "description": "json, or a JSON schema."},
        "think": {"anyOf": [FLAG, TEXT]},
        "keep_alive": {"anyOf": [TEXT, {"type": "integer"}]},
    }
    call = _object(("function",), function=_object(("name",), name=TEXT, arguments=ANY_OBJECT))
    message = _object(
        ("role", "content"),
        role={"enum": ["system", "user", "assistant", "tool"]},
        content=TEXT,
        thinking=TEXT,
        tool_calls=_list(call),
    )
    tool = _object(("function",), type={"const": "function"}, function=_object(("name",), name=TEXT))
    model = _made(name=TEXT, model=TEXT, modified_at=TEXT, size=WHOLE, digest=TEXT, details=ANY_OBJECT)
    answer = _object(
        ("model", "created_at", "done"), model=TEXT, created_at=TEXT, done=FLAG, done_reason=TEXT, message=message,
        response=TEXT, thinking=TEXT, prompt_eval_count=WHOLE, eval_count=WHOLE
    )  # fmt: skip
    return {
        "OllamaChatRequest": _object(("model",), **common, messages=_list(message), tools=_list(tool)),
        "OllamaGenerateRequest": _object(("model",), **common, prompt=TEXT, suffix=TEXT, system=TEXT, raw=FLAG),
        "OllamaShowRequest": _object(("model",), model=TEXT),
        "OllamaAnswer": answer,
        "OllamaModelFacts": _made(
            modelfile=TEXT, parameters=TEXT, template=TEXT, details=ANY_OBJECT, model_info=ANY_OBJECT,
            capabilities=_list(TEXT), modified_at=TEXT
        ),
        "OllamaModels": _made(models=_list(model)),
        "OllamaVersion": _made(version=TEXT),
        OLLAMA: _made(error=TEXT),
    }  # fmt: skip
