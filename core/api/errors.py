"""What an error is for a client: its HTTP status and OpenAI's words for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from core.common.errors import DeckError

# Seconds after which it makes sense to ask again: when an answer has ended, when a model is loaded.
BUSY_RETRY_S = 2
LOAD_RETRY_S = 5


class ApiError(DeckError):
    """A request is not answered; its sender reads why."""


@dataclass(frozen=True, slots=True)
class HttpErrorShape:
    """How HTTP and OpenAI's API name an error.

    `param` is the field that is to blame, where the error itself does not name one by its value `field`.
    """

    status: int
    type: str
    code: str | None = None
    param: str | None = None
    retry_s: int | None = None


INVALID, AUTHENTICATION, SERVER = "invalid_request_error", "authentication_error", "server_error"
# What makes the prompt, by its name in chat completions.
PROMPT_FIELD = "messages"
CONTEXT = HttpErrorShape(400, INVALID, "context_length_exceeded", PROMPT_FIELD)
NOT_LOADED = HttpErrorShape(503, SERVER, "model_not_loaded", "model", LOAD_RETRY_S)
# Why the loaded model cannot have an adapter: what a person put there, or how the model was loaded.
ADAPTER_FAULTS = (
    "adapters_no_room", "adapter_over_rank", "adapter_plain_matrix", "adapter_base_matrix", "adapter_base_shape",
    "adapter_no_expert_room", "adapter_room_experts", "adapter_room_rank", "adapter_base_experts",
    "adapter_experts_layout", "adapter_parameter", "adapter_router", "adapter_twice", "adapter_foreign_experts",
    "adapter_none", "adapter_pickled", "adapter_no_weights", "adapter_kind", "adapter_variant", "adapter_changed_base",
    "adapter_tensor", "adapter_empty", "adapter_half", "adapter_not_gathered", "adapter_shapes", "adapter_rank",
    "adapter_rank_limit", "adapter_alpha", "adapter_pattern", "adapter_patterns", "adapter_nan",
    "adapter_unreadable", "adapter_bad_json", "adapter_config_too_large", "adapter_corrupt_weights",
    "adapter_truncated", "adapter_rewritten", "adapter_dtype", "adapter_outside", "adapter_tied_head",
    "adapter_embedding", "adapter_setting", "adapter_range", "adapter_rank_experts", "adapter_merged",
    "adapter_base_copy", "adapter_own_layer", "adapter_resized", "adapter_copy_unknown", "adapter_deeper",
)  # fmt: skip
FAULT = HttpErrorShape(500, SERVER, "internal_error")

# Errors named here are the sender's, or pass by themselves. Every other one is a fault of the server.
SHAPES = {
    "api_key_missing": HttpErrorShape(401, AUTHENTICATION, "invalid_api_key"),
    "api_key_wrong": HttpErrorShape(401, AUTHENTICATION, "invalid_api_key"),
    "api_path": HttpErrorShape(404, INVALID, "unknown_url"),
    "api_method": HttpErrorShape(405, INVALID, "method_not_allowed"),
    "api_body_slow": HttpErrorShape(408, INVALID, "request_timeout"),
    "api_body_large": HttpErrorShape(413, INVALID, "request_too_large"),
    "api_content_encoding": HttpErrorShape(415, INVALID, "unsupported_content_encoding"),
    "api_values": HttpErrorShape(413, INVALID, "request_too_large"),
    "api_large_busy": HttpErrorShape(429, "rate_limit_error", "rate_limit_exceeded", retry_s=BUSY_RETRY_S),
    "api_ending": HttpErrorShape(503, SERVER, "server_ending", retry_s=LOAD_RETRY_S),
    "api_content_type": HttpErrorShape(415, INVALID, "unsupported_content_type"),
    "api_json": HttpErrorShape(400, INVALID, "invalid_json"),
    "api_field": HttpErrorShape(400, INVALID, "invalid_value"),
    "api_refused": HttpErrorShape(400, INVALID, "unsupported_parameter"),
    "api_part": HttpErrorShape(400, INVALID, "unsupported_content", PROMPT_FIELD),
    "api_model": HttpErrorShape(404, INVALID, "model_not_found", "model"),
    "api_model_library": HttpErrorShape(404, INVALID, "model_not_found", "model"),
    "api_model_gone": HttpErrorShape(404, INVALID, "model_not_found", "model"),
    "api_adapter": HttpErrorShape(404, INVALID, "model_not_found", "model"),
    "api_adapter_unnamed": HttpErrorShape(404, INVALID, "model_not_found", "model"),
    **dict.fromkeys(ADAPTER_FAULTS, HttpErrorShape(400, INVALID, "adapter", "model")),
    "api_character_completion": HttpErrorShape(400, INVALID, "unsupported_model", "model"),
    "api_no_infill": HttpErrorShape(400, INVALID, "unsupported_parameter", "suffix"),
    "api_no_tokenizer": HttpErrorShape(400, INVALID, "tokenizer_unavailable", "model"),
    "api_echo": HttpErrorShape(400, INVALID, "invalid_value", "logprobs"),
    "api_many": HttpErrorShape(400, INVALID, "invalid_value", "n"),
    "api_busy": HttpErrorShape(429, "rate_limit_error", "rate_limit_exceeded", retry_s=BUSY_RETRY_S),
    "api_loading": HttpErrorShape(503, SERVER, "model_loading", "model", LOAD_RETRY_S),
    "api_answering": HttpErrorShape(503, SERVER, "model_busy", "model", LOAD_RETRY_S),
    "api_fault": FAULT,
    "api_too_long": CONTEXT,
    "api_far_too_long": CONTEXT,
    "message_too_long": CONTEXT,
    "character_too_long": CONTEXT,
    "prompt_too_long": CONTEXT,
    "prompt_empty": HttpErrorShape(400, INVALID, "invalid_value"),
    "prompt_token": HttpErrorShape(400, INVALID, "invalid_value", "prompt"),
    "chat_template": HttpErrorShape(400, INVALID, "chat_template", PROMPT_FIELD),
    "chat_template_question": HttpErrorShape(400, INVALID, "chat_template", PROMPT_FIELD),
    "chat_format_unknown": HttpErrorShape(400, INVALID, "chat_template", PROMPT_FIELD),
    "chat_template_open": HttpErrorShape(400, INVALID, "chat_template", PROMPT_FIELD),
    "chat_template_time": HttpErrorShape(400, INVALID, "chat_template", PROMPT_FIELD),
    "chat_template_memory": HttpErrorShape(400, INVALID, "chat_template", PROMPT_FIELD),
    "chat_template_output": HttpErrorShape(400, INVALID, "chat_template", PROMPT_FIELD),
    "chat_template_ended": HttpErrorShape(400, INVALID, "chat_template", PROMPT_FIELD),
    "chat_template_busy": HttpErrorShape(503, SERVER, "chat_template", PROMPT_FIELD, BUSY_RETRY_S),
    "tokenizer_text": HttpErrorShape(400, INVALID, "tokenizer", PROMPT_FIELD),
    "nothing_loaded": NOT_LOADED,
    "answer_model_unloaded": NOT_LOADED,
    "engine_silent": HttpErrorShape(503, SERVER, "engine_silent", "model", LOAD_RETRY_S),
    # Of a model on another server.
    "remote_no_continue": HttpErrorShape(400, INVALID, "unsupported_parameter", "continue_final_message"),
    "remote_refused": HttpErrorShape(400, INVALID, "refused_by_server"),
    "remote_busy": HttpErrorShape(429, "rate_limit_error", "rate_limit_exceeded", retry_s=BUSY_RETRY_S),
    **{
        key: HttpErrorShape(502, SERVER, "server_unavailable", "model", LOAD_RETRY_S)
        for key in (
            "remote_unreachable",
            "remote_silent",
            "remote_broken",
            "remote_key",
            "remote_no_model",
            "remote_fault",
            "remote_error",
            "remote_garbled",
            "remote_too_much",
            "remote_no_route",
            "remote_redirect",
            "remote_not_openai",
        )
    },
    "stop_strings": HttpErrorShape(400, INVALID, "invalid_value", "stop"),
    "dry_breakers": HttpErrorShape(400, INVALID, "invalid_value", "dry_sequence_breakers"),
    "logit_bias": HttpErrorShape(400, INVALID, "invalid_value", "logit_bias"),
    "logit_bias_token": HttpErrorShape(400, INVALID, "invalid_value", "logit_bias"),
    "grammar": HttpErrorShape(400, INVALID, "invalid_grammar", "response_format"),
    "grammar_tools": HttpErrorShape(400, INVALID, "invalid_grammar", "tools"),
    "grammar_large": HttpErrorShape(400, INVALID, "invalid_grammar", "response_format"),
    "grammar_tokenizer": HttpErrorShape(400, INVALID, "unsupported_parameter", "response_format"),
    "remote_options": HttpErrorShape(400, INVALID, "unsupported_parameter"),
}


def shape_of(error: DeckError) -> HttpErrorShape:
    return SHAPES.get(error.key, FAULT)


def body_of(error: DeckError, language: str, prompt_field: str = PROMPT_FIELD) -> dict[str, Any]:
    """The error as OpenAI writes it, in the reader's language. `prompt_field` is the one that makes the prompt."""
    shape = shape_of(error)
    field = error.params.get("field", prompt_field if shape.param == PROMPT_FIELD else shape.param)
    return {"error": {"message": error.sentence(language), "type": shape.type, "param": field, "code": shape.code}}
