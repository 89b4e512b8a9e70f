"""How a chat is put to a model in each mode, and what its answer is cut down to.

instruct       the model's own template
chat-instruct  the same, told to speak as a character
chat           plain lines "Name: text", for models that know no template
notebook       one text that goes on
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from core.chat.records import Mode
from core.chat.template import ChatTemplate, Turn
from core.chat.truncation import PromptParts, join_texts
from core.chat.turn_rendering import Voice, render_turns, turn_end
from core.engine.sampling_params import MAX_STOP_STRINGS

# What the makers of models put into a name to say that it was taught to chat.
CHAT_MODEL_NAME = re.compile(r"(?:^|[^a-z])(?:chat|instruct|it|vicuna|zephyr|assistant)(?:[^a-z]|$)", re.IGNORECASE)
# A line end of one of our own, so that a name cannot break the dialogue's form.
MAX_NAME_CHARS = 80


@dataclass(frozen=True, slots=True)
class Names:
    """Who speaks, on one line each."""

    user: str
    char: str

    @classmethod
    def of(cls, user: str, char: str) -> Names:
        """Names as people or cards give them; one that is empty gets a plain word."""
        return cls(_one_line(user) or "You", _one_line(char) or "Assistant")


@dataclass(frozen=True, slots=True)
class PromptStyle:
    """One mode with a model's template. `opening` is what the model's tokenizer puts before plain text ("<s>")."""

    mode: Mode
    template: ChatTemplate
    names: Names
    opening: str = ""

    def render(self, parts: PromptParts) -> str:
        """The prompt, with special tokens written out once. Raises TemplateError."""
        match self.mode:
            case "notebook":
                return self.opening + "".join(turn["content"] for turn in parts.history) + parts.start
            case "chat":
                return self.opening + render_dialogue(parts, self.names)
            case "chat-instruct":
                frame = (
                    f"Write the next message of {self.names.char} in the conversation with {self.names.user}."
                    f" Speak only as {self.names.char}."
                )
                return render_turns(self.template, parts, self.names, join_texts(frame, parts.system))
        return render_turns(self.template, parts, self.names, parts.system)

    def stop_strings(self, voice: Voice = "assistant", own: tuple[str, ...] = ()) -> tuple[str, ...]:
        """Where an answer ends, with a person's `own` stop strings."""
        ours: list[str] = []
        if self.mode in ("chat", "chat-instruct"):
            ours += [f"\n{self.names.user}:", f"\n{self.names.char}:"]
        if self.mode in ("instruct", "chat-instruct") and voice == "user":
            ours += [end for end in [turn_end(self.template)] if end]
        return tuple(dict.fromkeys([*ours, *own]))[:MAX_STOP_STRINGS]

    def clean_answer(self, answer: str, parts: PromptParts) -> str:
        """The message that `answer` makes: its beginning added, or the speaker's name before it taken off."""
        if self.mode == "notebook":
            return "".join(turn["content"] for turn in parts.history) + parts.start + answer
        if parts.start:
            return prefix_text(parts.start) + answer
        name = self.names.user if parts.voice == "user" else self.names.char
        return answer.lstrip().removeprefix(f"{name}:").lstrip()


def choose_mode(template: ChatTemplate, model: str, has_character: bool) -> Mode:
    """The mode to begin with for a model by its template and name, with or without a character."""
    if template.source is not None or CHAT_MODEL_NAME.search(model):
        return "chat-instruct" if has_character else "instruct"
    return "chat" if has_character else "notebook"


def notebook_parts(text: str) -> PromptParts:
    """A notebook's text by its lines, of which those that do not fit go whole, from the first on."""
    lines = text.splitlines(keepends=True)
    return PromptParts(tuple(Turn(role="user", content=line) for line in lines))


def render_dialogue(parts: PromptParts, names: Names) -> str:
    """Plain dialogue that ends with the name of whoever speaks next."""
    speakers: dict[Literal["system", "user", "assistant"], str] = {"user": names.user, "assistant": names.char}

    def lines(turns: tuple[Turn, ...]) -> str:
        spoken = [turn for turn in turns if turn["content"].strip()]
        return "".join(f"{speakers[turn['role']]}: {turn['content'].strip()}\n" for turn in spoken)

    head = join_texts(parts.system, *(lines(example) for example in parts.examples))
    after = f"{parts.after.strip()}\n" if parts.after.strip() and parts.voice == "assistant" else ""
    start = f" {prefix_text(parts.start)}" if parts.start.strip() else ""
    return f"{head}\n\n" * bool(head) + lines(parts.history) + after + f"{speakers[parts.voice]}:{start}"


def prefix_text(text: str) -> str:
    """A beginning as the model gets it: a space at its end belongs to the next word's token."""
    return text.rstrip(" ")


def _one_line(name: str) -> str:
    return " ".join(name.split())[:MAX_NAME_CHARS]
