"""How a chat is put to a model in each mode, and what its answer is cut down to.

instruct       the model's own template
chat-instruct  the same, told to speak as a character
chat           plain lines "Name: text", for models that know no template
notebook       one text that goes on
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from core.chat.records import Message, Mode
from core.chat.template import ChatTemplate
from core.chat.template_messages import Turn
from core.chat.truncation import PromptParts, Voice, join_texts
from core.chat.turn_rendering import Names, one_line, render_turns, turn_end, with_names
from core.engine.sampling_params import MAX_STOP_STRINGS
from core.engine.thought import Parts, ThoughtRules, ThoughtSplitter, split_thought
from core.engine.thought_formats import THINK

# A model's name says so where the model was taught to chat.
CHAT_MODEL_NAME = re.compile(r"(?:^|[^a-z])(?:chat|instruct|it|vicuna|zephyr|assistant)(?:[^a-z]|$)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class PromptStyle:
    """How one mode writes a prompt for one model.

    `opening` is what the model's tokenizer puts before plain text, such as "<s>".
    """

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
        if self.names.others:
            # The person's line begins with a name too, where it is written for them.
            start = f"{self.names.user}: {parts.start}" if parts.voice == "user" else parts.start
            parts = replace(parts, history=with_names(parts.history), start=start)
        if self.mode == "instruct" and not self.names.others:
            return render_turns(self.template, parts, self.names, parts.system)
        listeners = [self.names.user, *self.names.others]
        listed = " and ".join([", ".join(listeners[:-1]), listeners[-1]] if listeners[1:] else listeners)
        frame = (
            f"Write the next message of {self.names.char} in the conversation with {listed}."
            f" Speak only as {self.names.char}."
        )
        return render_turns(self.template, parts, self.names, join_texts(frame, parts.system))

    def stop_strings(
        self, voice: Voice = "assistant", own: tuple[str, ...] = (), history: Sequence[Turn] = ()
    ) -> tuple[str, ...]:
        """The strings that end an answer, with a person's `own`: the names before the lines of `history` among them.

        The person may have had another name then.
        """
        ours: list[str] = []
        if self.mode in ("chat", "chat-instruct") or (self.names.others and self.mode == "instruct"):
            ours += [f"\n{self.names.user}:", f"\n{self.names.char}:"]
        if self.mode in ("instruct", "chat-instruct") and voice == "user":
            ours += [end for end in [turn_end(self.template)] if end]
        if self.mode in ("instruct", "chat-instruct"):
            ours += self.template.stop
        others = [] if self.mode == "notebook" else [f"\n{name}:" for name in self.names.others]
        if self.mode == "chat" or self.names.others:
            others += [f"\n{name}:" for turn in history if (name := one_line(turn.get("name", "")))]
        return tuple(dict.fromkeys([*ours, *own, *others]))[:MAX_STOP_STRINGS]

    def begun(self, prompt: str, parts: PromptParts) -> str:
        """What the message begins with that `prompt` asks for: its start, after a thought that the template opened."""
        start = prefix_text(parts.start)
        if self.mode not in ("instruct", "chat-instruct") or parts.voice == "user":
            return start
        return self.template.opened_thought(prompt.removesuffix(start)) + start

    def clean_answer(self, answer: str, parts: PromptParts, begun: str = "") -> str:
        """The message that `answer` makes: after what it was `begun` with, or without the speaker's name."""
        if self.mode == "notebook":
            return "".join(turn["content"] for turn in parts.history) + parts.start + answer
        if parts.start:
            return (begun or prefix_text(parts.start)) + answer
        if begun:
            return with_begun(answer, begun)
        name = self.names.user if parts.voice == "user" else self.names.char
        return answer.lstrip().removeprefix(f"{name}:").lstrip()

    @property
    def thought_rules(self) -> ThoughtRules:
        """How a thought is found in an answer, which is taken with all that the template began it with."""
        known = self.template.thought_format
        return ThoughtRules(known or THINK, may_lack_opening=known is not None)

    def whole_of(self, message: Message) -> str:
        """An answer with its thought, between the marks of this model: another one may have written it."""
        thought, format = message.thought, self.thought_rules.format
        if thought is None or self.mode == "notebook":
            return message.whole
        found = split_thought(message.whole, self.thought_rules)
        if found.opening or found.closing:
            return message.whole
        if not thought.text.strip():
            return message.text
        return f"{format.open[0]}\n{thought.text}{format.closing if thought.closing else ''}{message.text}"

    def engine_rules(self, parts: PromptParts, begun: str, budget_tokens: int | None) -> ThoughtRules | None:
        """What the engine is told of the thought in an answer that was `begun`; None where there can be none."""
        if self.mode == "notebook" or parts.voice == "user":
            return None
        splitter = ThoughtSplitter(self.thought_rules)
        splitter.push(begun)
        is_over = bool(begun.strip()) and not splitter.is_thinking
        return replace(
            self.thought_rules, is_open=splitter.is_thinking, budget_tokens=None if is_over else budget_tokens
        )

    def message_parts(self, answer: str, parts: PromptParts, begun: str = "", is_done: bool = True) -> Parts:
        """The message that `answer` makes, its thought apart, as far as that is certain."""
        text = self.clean_answer(answer, parts, begun)
        if self.mode == "notebook" or parts.voice == "user":
            return Parts(answer=text)
        splitter = ThoughtSplitter(self.thought_rules)
        splitter.push(text)
        found = splitter.end() if is_done else splitter.parts
        name = f"{self.names.char}:"
        if self.mode == "instruct" or not found.closing or not found.answer.startswith(name):
            return found
        said = found.answer.removeprefix(name).lstrip()
        return replace(found, closing=found.closing + found.answer[: len(found.answer) - len(said)], answer=said)


def with_begun(answer: str, begun: str) -> str:
    """An answer after what the template began it with, which some models write once more."""
    answer = answer.lstrip()
    return answer if not answer or answer.startswith(begun.strip()) else begun + answer


def choose_mode(template: ChatTemplate, model: str, has_character: bool) -> Mode:
    """The mode to begin with for a model by its template and name, with or without a character.

    A chat model whose format nobody knows is asked in plain lines until a person chooses its format.
    """
    if template.source is not None:
        return "chat-instruct" if has_character else "instruct"
    return "chat" if has_character or CHAT_MODEL_NAME.search(model) else "notebook"


def notebook_parts(text: str) -> PromptParts:
    """A notebook's text as one part a line. Lines that do not fit are left out whole, from the first on."""
    lines = text.splitlines(keepends=True)
    return PromptParts(tuple(Turn(role="user", content=line) for line in lines))


def render_dialogue(parts: PromptParts, names: Names) -> str:
    """A plain dialogue, which ends with the name of the next speaker."""
    speakers: dict[str, str] = {"user": names.user, "assistant": names.char}

    def head_of(turn: Turn) -> str:
        """The speaker. What the system says, such as lore, nobody does."""
        return "" if turn["role"] == "system" else f"{one_line(turn.get('name', '')) or speakers[turn['role']]}: "

    def lines(turns: tuple[Turn, ...]) -> str:
        return "".join(f"{head_of(turn)}{turn['content'].strip()}\n" for turn in turns if turn["content"].strip())

    head = join_texts(parts.system, *(lines(example) for example in parts.examples), parts.after_examples)
    after = f"{parts.after.strip()}\n" if parts.after.strip() and parts.voice == "assistant" else ""
    start = f" {prefix_text(parts.start)}" if parts.start.strip() else ""
    return f"{head}\n\n" * bool(head) + lines(parts.history) + after + f"{speakers[parts.voice]}:{start}"


def prefix_text(text: str) -> str:
    """The words that an answer begins with, as the model gets them. A space at their end is part of the next token."""
    return text.rstrip(" ")
