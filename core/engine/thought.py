"""How a growing text is split into what a model thought and what it answers; its marks are in thought_formats.py."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from core.engine.detokenize import held_back
from core.engine.thought_formats import THINK, ThoughtFormat

State = Literal["start", "opened", "thought", "closed", "blank", "answer"]
Part = Literal["opening", "thought", "closing", "answer", "ending"]
# What stands on both sides of a mark that is only talked about.
QUOTES = "`\"'"
# What may become a fence of code, at the end of a text; no fence is indented as deep as this is long.
FENCE_BEGUN = re.compile(r"(?:\A|\n)[ \t]*[`~]{0,2}\Z")
MAX_FENCE_CHARS = 64


@dataclass(frozen=True, slots=True)
class ThoughtRules:
    """How one answer's thought is found. `is_open`: the prompt ends inside a thought.

    `may_lack_opening`: an end without a beginning ends a thought too. After `budget_tokens` a thought is ended.
    """

    format: ThoughtFormat = THINK
    is_open: bool = False
    may_lack_opening: bool = False
    budget_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Parts:
    """A text in its parts, which joined are the text: the marks and blanks around a thought, it, and the answer."""

    opening: str = ""
    thought: str = ""
    closing: str = ""
    answer: str = ""
    ending: str = ""

    @property
    def whole(self) -> str:
        return self.opening + self.thought + self.closing + self.answer + self.ending


class ThoughtSplitter:
    """Splits a text that comes in pieces of any size. `parts` with what is held back after them are all that came.

    Only the first thing in a text is a thought. A mark in quotes is none, and neither are marks in a block of code that
    open and close there. Blanks around a thought and before the answer belong to the marks.
    """

    def __init__(self, rules: ThoughtRules) -> None:
        self._format, self._may_turn = rules.format, rules.may_lack_opening and not rules.is_open
        self._state: State = "opened" if rules.is_open else "start"
        self.parts = Parts()
        # What came and is not certain yet; so much of it was looked through for marks.
        self._held, self._num_seen = "", 0
        # The end of a thought, until it is certain that no other thought follows.
        self._closing = ""
        self._is_fenced, self._num_nested = False, 0

    @property
    def is_thinking(self) -> bool:
        return self._state in ("opened", "thought")

    @property
    def is_settled(self) -> bool:
        """Whether all that follows is the answer."""
        return self._state == "answer" and not self._may_turn

    @property
    def closing(self) -> str:
        """What ends the thought here: after a block of code, and not in quotes, where a mark is only talked about."""
        fence, text = "\n```" if self._is_fenced else "", self._format.closing
        before = fence or self._char_before(len(self._held))
        return fence + "\n" * (before[-1] in QUOTES and not text.startswith("\n")) + text

    def push(self, text: str) -> None:
        self._held += text
        self._read(is_end=False)

    def end(self) -> Parts:
        """All of the text: nothing is held back any more."""
        self._read(is_end=True)
        return self.parts

    def _read(self, is_end: bool) -> None:
        before = None
        while self._state != before:
            before = self._state
            match self._state:
                case "start" | "opened":
                    self._read_opening(is_end)
                case "thought":
                    self._read_thought(is_end)
                case "closed":
                    self._read_closing(is_end)
                case "blank":
                    self._read_blank(is_end)
                case "answer":
                    self._read_answer(is_end)

    def _give(self, part: Part, num_chars: int) -> None:
        """Take characters from what is held into one of the parts."""
        given, self._held = self._held[:num_chars], self._held[num_chars:]
        self._num_seen = max(0, self._num_seen - num_chars)
        if given:
            self.parts = replace(self.parts, **{part: getattr(self.parts, part) + given})

    def _read_opening(self, is_end: bool) -> None:
        """The beginning of a text, or of a thought: some models write its mark once more."""
        if found := self._format.openings.match(self._held):
            self._give("opening", found.end())
            self._state = "opened"
        num_blank, text = self._blanks()
        is_open = self._state == "opened"
        marks = self._format.open if is_open else (*self._format.open, *self._format.answer)
        if mark := _mark_at(text, () if is_open else self._format.answer):
            self._give("opening", num_blank + len(mark))
            self._state, self._may_turn = "blank", False
        elif not is_end and _may_begin(text, marks):
            return
        elif is_open:
            self._give("opening", num_blank)
            self._state = "thought"
        else:
            self._state = "answer"

    def _read_thought(self, is_end: bool) -> None:
        begin, end = self._find_close(is_end, is_orphan=False)
        if begin is None:
            self._give("thought", end if is_end else len(self._held[:end].rstrip()))
        else:
            self._close("thought", begin, end)

    def _close(self, part: Part, begin: int, end: int) -> None:
        """End a thought at the mark that stands from `begin` to `end`. It is held until what follows is known."""
        num_chars = len(self._held[:begin].rstrip())
        self._give(part, num_chars)
        length = end - num_chars
        self._closing, self._held, self._num_seen = self._held[:length], self._held[length:], 0
        self._is_fenced, self._num_nested = False, 0
        self._state = "closed"

    def _read_closing(self, is_end: bool) -> None:
        """What follows a thought: an answer, or one more thought."""
        num_blank, text = self._blanks()
        marks = (*self._format.open, *self._format.answer)
        found = _mark_at(text, marks)
        if found is None and not is_end and _may_begin(text, marks):
            return
        closing, self._closing = self._closing, ""
        self._held = closing + self._held
        num_chars = len(closing) + num_blank + len(found or "")
        if found is not None and found in self._format.open:
            # Between two thoughts the marks are part of them; before the first word of any they are its opening.
            self._state = "thought" if self.parts.thought else "opened"
            self._give("thought" if self.parts.thought else "opening", num_chars)
        else:
            self._give("closing", num_chars)
            self._may_turn = False
            self._state = "answer" if found is None and self._held else "blank"

    def _read_blank(self, is_end: bool) -> None:
        """The blanks before an answer's first word."""
        num_blank, text = self._blanks()
        self._give("closing" if self.parts.closing else "opening", num_blank)
        if text or is_end:
            self._state = "answer"

    def _read_answer(self, is_end: bool) -> None:
        if self._may_turn:
            begin, end = self._find_close(is_end, is_orphan=True)
            if begin is not None:
                self._close("answer", begin, end)
                # All of it was the thought.
                self.parts = replace(self.parts, thought=self.parts.answer, answer="")
                self._may_turn = False
            else:
                self._give("answer", end if is_end else len(self._held[:end].rstrip()))
            return
        text = self._held.rstrip()
        is_whole = text.endswith(self._format.answer_end) if self._format.answer_end else False
        num_held = max(map(len, self._format.answer_end)) if is_whole else held_back(text, self._format.answer_end)
        if self._format.answer_end and (is_whole or not is_end):
            self._give("answer", len(text[: len(text) - num_held].rstrip()))
            if is_end:
                self._give("ending", len(self._held))
        else:
            self._give("answer", len(self._held))

    def _find_close(self, is_end: bool, is_orphan: bool) -> tuple[int | None, int]:
        """Where a thought's end begins and ends in what is held; without one, how much of that is certain."""
        text, format = self._held, self._format
        is_first = not (self.parts.answer if is_orphan else self.parts.thought)
        for found in format.event.finditer(text, self._num_seen):
            begin, end = found.span()
            if found["fence"]:
                if begin == 0 and not is_first and not found[0].startswith("\n"):
                    continue
                self._is_fenced, self._num_nested = not self._is_fenced, 0
            elif end == len(text) and not is_end and (is_orphan or self._char_before(begin) in QUOTES):
                # What follows decides.
                return None, begin
            elif self._is_quoted(begin, end):
                pass
            elif found[0] in format.open:
                # In an answer a mark that is opened there is closed there.
                self._num_nested += self._is_fenced or is_orphan
            elif self._num_nested:
                self._num_nested -= 1
            elif not is_orphan or self._is_on_edge(begin, end):
                return begin, end
            self._num_seen = end
        num_held = 0 if is_end else _num_uncertain(text, format)
        self._num_seen = max(self._num_seen, len(text) - num_held)
        return None, len(text) - num_held

    def _char_before(self, place: int) -> str:
        """The character before a place in what is held; a line's end at the beginning of all."""
        before = self._held[place - 1 : place] if place else (self.parts.thought or self.parts.answer)[-1:]
        return before or "\n"

    def _is_quoted(self, begin: int, end: int) -> bool:
        before = self._char_before(begin)
        return before in QUOTES and self._held[end : end + 1] == before

    def _is_on_edge(self, begin: int, end: int) -> bool:
        """Whether a mark begins or ends a line, as one does that ends a thought without a beginning."""
        line = self._held[:begin].rpartition("\n")[2] if "\n" in self._held[:begin] else self._line_before(begin)
        return not self._is_fenced and (not line.strip() or self._held[end : end + 1] == "\n")

    def _line_before(self, begin: int) -> str:
        return self.parts.answer.rpartition("\n")[2] + self._held[:begin]

    def _blanks(self) -> tuple[int, str]:
        """How many blanks what is held begins with, and what follows them."""
        text = self._held.lstrip()
        return len(self._held) - len(text), text


def split_thought(text: str, rules: ThoughtRules) -> Parts:
    """A whole text in its parts."""
    splitter = ThoughtSplitter(rules)
    splitter.push(text)
    return splitter.end()


def _mark_at(text: str, marks: Iterable[str]) -> str | None:
    return max((mark for mark in marks if text.startswith(mark)), key=len, default=None)


def _may_begin(text: str, marks: Iterable[str]) -> bool:
    """Whether `text` is the beginning of one of the marks, or nothing yet."""
    return any(mark.startswith(text) for mark in marks)


def _num_uncertain(text: str, format: ThoughtFormat) -> int:
    """How many characters at the end of `text` may be the beginning of a mark or of a fence."""
    fence = FENCE_BEGUN.search(text[-MAX_FENCE_CHARS:])
    return max(held_back(text, (*format.open, *format.close)), len(fence[0]) if fence else 0)
