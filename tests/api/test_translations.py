"""What strangers send in place of requests of other APIs: understood, or refused in words; never a fault of ours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.api.dialects.anthropic import AnthropicExchange
from core.api.dialects.ollama import OllamaExchange
from core.api.dialects.responses import ResponsesExchange
from core.api.errors import ApiError
from core.api.json_text import to_json
from core.api.schema import Sampled, read_body
from core.common.errors import DeckError

# Words that mean something somewhere, in all places.
WORDS = ("text", "user", "assistant", "tool", "tool_use", "tool_result", "thinking", "function", "function_call",
         "function_call_output",
         "reasoning", "message", "input_text", "json_schema", "allowed_tools", "any", "x")  # fmt: skip
NAMES = ("type", "role", "content", "text", "name", "id", "call_id", "tool_use_id", "input", "arguments", "function",
         "tool_calls", "thinking", "schema", "parameters", "tools", "mode", "output", "effort", "format")  # fmt: skip
FIELDS = ("messages", "input", "system", "instructions", "tools", "tool_choice", "thinking", "output_config", "text",
          "reasoning", "options", "format", "prompt", "raw", "stop_sequences",
          "model", "stream", "think", "images")  # fmt: skip
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(-5, 5), st.sampled_from(WORDS))
VALUES: Any = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=4),
    max_leaves=12,
)
BODIES = st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=6)


@pytest.mark.parametrize(
    "make",
    [AnthropicExchange, ResponsesExchange, lambda: OllamaExchange("chat"), lambda: OllamaExchange("generate")],
    ids=["anthropic", "responses", "ollama chat", "ollama generate"],
)
def test_whatever_comes_is_understood_or_refused(make: Callable[[], Any]) -> None:
    @given(BODIES)
    def translate(body: dict[str, Any]) -> None:
        try:
            made = make().translate(body)
        except ApiError as error:
            assert error.sentence("en")
            return
        try:
            read_body(Sampled, to_json(made).encode())
        except DeckError as error:
            assert error.sentence("en")

    translate()
