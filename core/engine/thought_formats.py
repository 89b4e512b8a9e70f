"""How models mark what they think before they answer.

A format's marks are those of its models' chat templates, vLLM's reasoning parsers and the models' cards.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class ThoughtFormat:
    """The marks around a thought; the first of each is the one that is written, the others are read as well.

    `answer` may stand before an answer, `answer_end` after it.
    """

    name: str
    open: tuple[str, ...]
    close: tuple[str, ...]
    answer: tuple[str, ...] = ()
    answer_end: tuple[str, ...] = ()

    @property
    def marks(self) -> tuple[str, ...]:
        return (*self.open, *self.close, *self.answer, *self.answer_end)

    @property
    def closing(self) -> str:
        """What ends a thought that was cut off, up to the first word of the answer."""
        close, answer = self.close[0], self.answer[0] if self.answer else ""
        # Channels and their like are written without blanks.
        return close + answer if "|>" in close else f"\n{close}\n\n{answer}"

    @cached_property
    def openings(self) -> re.Pattern[str]:
        """The beginning of a thought, however often it is written."""
        return re.compile(rf"(?:\s*(?:{'|'.join(map(re.escape, self.open))}))+")

    @cached_property
    def event(self) -> re.Pattern[str]:
        """What matters inside of a thought: a fence of code, or a mark."""
        marks = "|".join(re.escape(mark) for mark in (*self.open, *self.close))
        return re.compile(rf"(?P<fence>(?:\A|\n)[ \t]{{0,40}}(?:```|~~~))|{marks}")


def _tags(name: str, **more: tuple[str, ...]) -> ThoughtFormat:
    return ThoughtFormat(name, (f"<{name}>",), (f"</{name}>",), **more)


# Qwen3, QwQ, DeepSeek-R1, EXAONE 4, GLM-4.5, SmolLM3, Phi-4-reasoning, Nemotron, LFM2.5 and most others.
THINK = _tags("think")
# In this order a template's source and a tokenizer's tokens are looked through; THINK comes after them all.
FORMATS: tuple[ThoughtFormat, ...] = (
    # gpt-oss: each message has a channel.
    ThoughtFormat("channels", ("<|channel|>analysis<|message|>",), ("<|end|>",),
                  ("<|start|>assistant<|channel|>final<|message|>", "<|channel|>final<|message|>")),
    # Gemma 4
    ThoughtFormat("channel", ("<|channel>thought\n", "<|channel>thought"), ("<channel|>",)),
    # Magistral, Ministral 3 Reasoning
    ThoughtFormat("[THINK]", ("[THINK]",), ("[/THINK]",)),
    # Kimi
    ThoughtFormat("◁think▷", ("◁think▷",), ("◁/think▷",)),
    # Command A Reasoning
    ThoughtFormat("START_THINKING", ("<|START_THINKING|>",), ("<|END_THINKING|>",), ("<|START_RESPONSE|>",),
                  ("<|END_RESPONSE|>",)),
    # Seed-OSS
    _tags("seed:think"),
    # Granite 3.2; Granite 3.3 has tags.
    ThoughtFormat("Granite", ("Here is my thought process:", "Here's my thought process:"),
                  ("Here is my response:", "Here's my response:")),
    _tags("think", answer=("<response>",), answer_end=("</response>",)),
    # Hunyuan
    _tags("think", answer=("<answer>",), answer_end=("</answer>",)),
    # EXAONE Deep
    _tags("thought"),
    THINK,
    _tags("thinking"),
    _tags("reasoning"),
)  # fmt: skip


def find_format(source: str, tokens: Iterable[str] = ()) -> ThoughtFormat | None:
    """The format whose marks a chat template names, else the one whose marks are tokens; None where neither tells.

    A template may write a mark in two pieces, such as '<|channel|>' + 'final': one of each kind is enough.
    """
    known = set(tokens)
    for one in FORMATS:
        if (
            (not one.answer or _marks_answers(source, one))
            and any(mark in source for mark in one.close)
            and any(mark.strip() in source for mark in one.open)
        ):
            return one
    # DeepSeek-R1's first templates name the end alone.
    for one in FORMATS:
        if not one.answer and any(mark in source or mark in known for mark in one.close):
            return one
    return None


def _marks_answers(source: str, format: ThoughtFormat) -> bool:
    """Whether a template tells of the marks around an answer. Tags alone may be around something else, such as
    MiniMax's results of tools: they count where both stand side by side, or the first is a text of its own."""
    pairs = (f"{begin}{end}" for begin, end in zip(format.answer, format.answer_end, strict=False))
    texts = (f"{quote}{mark}{quote}" for mark in format.answer for quote in "\"'")
    is_tag = format.answer[0].strip("<>").isalpha()
    return any(mark in source for mark in ((*pairs, *texts) if is_tag else format.answer))
