"""Messages of a request as a chat template reads them."""

from __future__ import annotations

from core.api.message_fields import Message
from core.chat.template_messages import Turn


def turn_of(message: Message) -> Turn:
    """The message for a template: a developer's is the system's, and thoughts and calls are the assistant's alone."""
    turn = Turn(role="system" if message.role == "developer" else message.role, content=message.content)
    if message.role == "assistant" and message.reasoning_content:
        turn["thought"] = message.reasoning_content
    if message.role == "assistant" and message.tool_calls:
        turn["tool_calls"] = [call.as_turns_have_it() for call in message.tool_calls]
    if message.role == "tool":
        turn["tool_call_id"] = message.tool_call_id or ""
    return turn


def text_of(message: Message) -> str:
    return message.content + "".join(call.function.arguments for call in message.tool_calls or ())
