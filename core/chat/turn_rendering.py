"""Renders turns through a model's own template, whatever that template refuses.

Some templates refuse a system text or leave it out. Most refuse two turns of one speaker in a row, many an answer
before the first question. `render_turns` tries what a template takes, mildest change first.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from core.chat.template import ChatTemplate, TemplateError, TemplateLimitError
from core.chat.template_messages import Turn
from core.chat.truncation import PromptParts, join_texts

# A longer name, or one with a line end, would break the form of a dialogue.
MAX_NAME_CHARS = 80


@dataclass(frozen=True, slots=True)
class Names:
    """Who speaks, on one line each; `others` are further characters."""

    user: str
    char: str
    others: tuple[str, ...] = ()

    @classmethod
    def of(cls, user: str, char: str) -> Names:
        """Names as people or cards give them; one that is empty gets a plain word."""
        return cls(one_line(user) or "You", one_line(char) or "Assistant")

    def with_others(self, others: Iterable[str]) -> Names:
        return replace(self, others=tuple(name for one in others if (name := one_line(one))))


def render_turns(template: ChatTemplate, parts: PromptParts, names: Names, system: str) -> str:
    """The prompt for `parts`, with `system` in place of their system text. Raises TemplateError."""
    system = join_texts(system, _examples(parts, names), parts.after_examples)
    spoken = merge([_without_system(turn) for turn in parts.history if turn["content"].strip()])
    if parts.voice == "assistant":
        spoken = _with_question(spoken, parts.after)
    refusal: TemplateError | None = None
    found = ""
    for turns in _attempts(system, spoken):
        try:
            rendered = _render(template, turns, parts)
        except TemplateLimitError:
            raise
        except TemplateError as error:
            refusal = refusal or error
            continue
        if system in rendered:
            return rendered
        found = found or rendered
    if not found and refusal is not None:
        raise refusal
    return found


def _without_system(turn: Turn) -> Turn:
    """The user tells what the system says within a chat, such as lore: templates refuse it there."""
    return Turn(role="user", content=turn["content"]) if turn["role"] == "system" else turn


def with_names(turns: Iterable[Turn]) -> tuple[Turn, ...]:
    """The turns with the names of those that have one before their words."""
    return tuple(
        Turn(role=turn["role"], content=f"{one_line(turn['name'])}: {turn['content'].strip()}")
        if turn.get("name") and turn["content"].strip()
        else turn
        for turn in turns
    )


def turn_end(template: ChatTemplate) -> str:
    """What the template writes after a user's words, which ends an answer in the user's voice.

    Where it writes nothing there, that is how an answer begins.
    """
    asked = Turn(role="user", content="x")
    try:
        begin, after = template.render_open([asked])
        if not after.strip():
            answered, _ = template.render_open([asked, Turn(role="assistant", content="")])
            after = answered.removeprefix(begin)
    except TemplateError:
        return ""
    lines = after.strip().splitlines()
    return lines[0].strip() if lines else ""


def merge(turns: list[Turn]) -> list[Turn]:
    """The turns, those of one speaker in a row joined, such as an unanswered question and the next one."""
    merged: list[Turn] = []
    for turn in turns:
        if merged and merged[-1]["role"] == turn["role"]:
            both = (merged[-1]["content"], turn["content"])
            merged[-1] = {**turn, "content": "\n\n".join(text for text in both if text)}
        else:
            merged.append(turn)
    return merged


def _attempts(system: str, spoken: list[Turn]) -> list[list[Turn]]:
    """The same chat in the forms that templates take, the most faithful first."""
    head = [Turn(role="system", content=system)] if system else []
    asked_first = spoken
    if not spoken or spoken[0]["role"] == "assistant":
        asked_first = [Turn(role="user", content=""), *spoken]
    attempts = [[*head, *spoken]] + [[*head, *asked_first]] * (asked_first is not spoken)
    if system:
        first = Turn(role="user", content=join_texts(system, asked_first[0]["content"]))
        attempts.append([first, *asked_first[1:]])
    return attempts


def _render(template: ChatTemplate, turns: list[Turn], parts: PromptParts) -> str:
    """The prompt that ends where `voice` goes on. Raises TemplateError."""
    start = parts.start.rstrip(" ")
    if parts.voice == "user":
        return template.render_open(merge([*turns, Turn(role="user", content=start)]))[0]
    if not start.strip():
        return template.render(turns)
    return template.render_begun(turns, start)


def _with_question(spoken: list[Turn], after: str) -> list[Turn]:
    """The turns with a question at their end, which the character's last instruction becomes part of."""
    if not spoken or spoken[-1]["role"] != "user":
        return [*spoken, Turn(role="user", content=after.strip())]
    question = spoken[-1]["content"]
    return [*spoken[:-1], Turn(role="user", content=join_texts(question, after) if after.strip() else question)]


def _examples(parts: PromptParts, names: Names) -> str:
    speakers = {"user": names.user, "assistant": names.char}
    blocks = [
        "\n".join(f"{speakers[turn['role']]}: {turn['content'].strip()}" for turn in example)
        for example in parts.examples
    ]
    return join_texts("Example dialogue:", *blocks) if blocks else ""


def one_line(name: str) -> str:
    return " ".join(name.split())[:MAX_NAME_CHARS]
