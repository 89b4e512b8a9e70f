"""From a chat's turns to the text that a model was trained on.

A checkpoint's own Jinja template is a stranger's program: it is rendered in a process of its own, within limits, and in
a sandbox there, as transformers does. The dashboard needs no torch for it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core.chat.chat_formats import BY_NAME, added_tokens, find_format
from core.chat.special_tokens import read_special_tokens
from core.chat.template_forms import TemplateForms
from core.chat.template_messages import ARGUMENT_FORMS, Turn, message_of, size_of, with_arguments
from core.chat.template_renderer import LIMITS, Size, TemplateRenderer, max_chars
from core.chat.thinking import switches_of
from core.checkpoint.headers import read_json, read_text
from core.common.errors import DeckError
from core.common.sandbox import LimitReached, SandboxError
from core.common.values import printable
from core.engine.thought import ThoughtRules, split_thought
from core.engine.thought_formats import FORMATS, THINK, ThoughtFormat
from core.engine.thought_formats import find_format as find_thought_format

# Where a template lies by itself; older checkpoints have it in tokenizer_config.json.
TEMPLATES = ("chat_template.jinja", "chat_template.json")
# Marks where a text is to continue. No template trims, splits or rewrites a character of private use.
OPEN_END = "\ue0c5\ue0d1"
# An answer that a template begins with a thought begins within so many characters of the prompt's end.
MAX_OPENED_CHARS = 128
# What of a question is looked for in a prompt: a template may trim it, write it as JSON, or in capitals.
WORD = re.compile(r"\w{1,200}")
MAX_SEARCHED_CHARS = 2000


class TemplateError(DeckError):
    """A checkpoint's chat template cannot be used for this chat."""


class TemplateLimitError(TemplateError):
    """A template was stopped at a limit; other forms of the same chat would not fare better."""


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """`source` is Jinja, or None for a checkpoint whose format nobody knows.

    `model` is whose template it is, for sentences. `special_tokens` are those beside the two, by their names. `format`
    names the one of chat_formats.py that stands in for a template that is not there; `stop` ends its answers.
    `thought_format` is how the model marks its thoughts, None where neither template nor tokens tell. `variables` are
    what a chat sets for the template, such as `enable_thinking`. `tools` may be called; where the checkpoint has a
    template of its own for that, it is `tool_source`.
    """

    source: str | None
    bos_token: str
    eos_token: str
    model: str = field(default="", compare=False)
    special_tokens: Mapping[str, str | list[str]] = field(default_factory=dict, compare=False)
    format: str = ""
    stop: tuple[str, ...] = ()
    thought_format: ThoughtFormat | None = field(default=None, compare=False)
    variables: Mapping[str, Any] = field(default_factory=dict, compare=False)
    tool_source: str | None = None
    tools: tuple[dict[str, Any], ...] = field(default=(), compare=False)

    @property
    def switches(self) -> frozenset[str]:
        """The variables with which the template lets one choose whether and how much the model thinks."""
        return switches_of(self.source or "")

    @property
    def has_own(self) -> bool:
        """Whether the checkpoint brings a template."""
        return self.source is not None and not self.format

    def render(self, turns: list[Turn]) -> str:
        """The prompt for the assistant's next turn, with its special tokens written out.

        Raises TemplateError when the template refuses these turns, with the template's own words.
        """
        return self._render(turns, add_generation_prompt=True)

    def render_open(self, turns: list[Turn]) -> tuple[str, str]:
        """The prompt that ends inside the last turn, after its text, and what the template would write next.

        Raises TemplateError as `render` does, and where the template leaves out the last turn's text.
        """
        *before, last = turns
        marked = Turn(role=last["role"], content=last["content"] + OPEN_END)
        text = self._render([*before, marked], add_generation_prompt=False)
        begin, _, after = text.rpartition(OPEN_END)
        return begin, after

    def render_begun(self, turns: list[Turn], start: str) -> str:
        """The prompt that an answer to `turns` was begun with, and then `start`, which the answer begins with.

        A template may write an answer that it was given in another way than it asks for one: without the thought that
        it begins itself, or with an empty thought before. An answer without a thought does not become one where the
        template begins a thought. Raises TemplateError.
        """
        refusal: TemplateError | None = None
        asked = opened = None
        try:
            asked = self.render(turns)
        except TemplateLimitError:
            raise
        except TemplateError as error:
            refusal = error
        try:
            opened, _ = self.render_open([*turns, Turn(role="assistant", content=start)])
        except TemplateLimitError:
            raise
        except TemplateError as error:
            refusal = refusal or error
        if asked is None:
            if opened is None:
                assert refusal is not None
                raise refusal
            return opened
        if thought := self.opened_thought(asked):
            if start.lstrip().startswith(thought.strip()):
                return asked.removesuffix(thought) + start.lstrip()
            format = self.thought_format or THINK
            if split_thought(start, ThoughtRules(format, may_lack_opening=True)).closing:
                # Older versions kept the thought in the answer, without what the template began it with.
                return asked + start
            if opened is not None and opened.endswith(start) and not self.opened_thought(opened.removesuffix(start)):
                return opened
            return asked.rstrip() + format.closing + start
        # Between the two a template may put no more than a space.
        if opened is not None and opened.startswith(asked) and opened[len(asked) :].strip() == start.strip():
            return opened
        return asked + start

    def opened_thought(self, prompt: str) -> str:
        """The beginning of an answer that the template wrote itself at the end of `prompt`, such as "<think>\\n"."""
        tail = prompt[-MAX_OPENED_CHARS:]
        for mark in (mark.strip() for one in FORMATS for mark in one.open):
            if tail.rstrip().endswith(mark) and mark in (self.source or ""):
                return tail[tail.rindex(mark) :]
        return ""

    def _render(self, turns: list[Turn], add_generation_prompt: bool) -> str:
        """The template's text, in which the last question's words are, or the open end's mark, else TemplateError."""
        if self.source is None:
            raise TemplateError("chat_format_unknown", model=printable(self.model) or "?")
        needed = _last_question(turns) if add_generation_prompt else OPEN_END
        refusal: TemplateError | None = None
        for as_parts in _forms.get(self.source, self._holds_mark):
            try:
                text = self._render_form(turns, add_generation_prompt, as_parts)
            except TemplateError as error:
                if not as_parts or isinstance(error, TemplateLimitError):
                    raise refusal or error from None
                refusal = error
                continue
            if _holds(text, needed):
                _forms.note(self.source, as_parts)
                return text
        if refusal is not None:
            raise refusal
        if needed == OPEN_END:
            raise TemplateError("chat_template_open")
        raise TemplateError("chat_template_question", model=printable(self.model) or "?")

    def _holds_mark(self, as_parts: bool) -> bool:
        try:
            return OPEN_END in self._render_form([Turn(role="user", content=OPEN_END)], True, as_parts)
        except TemplateLimitError:
            raise
        except TemplateError:
            return False

    def _render_form(self, turns: list[Turn], add_generation_prompt: bool, as_parts: bool) -> str:
        reshapes = ARGUMENT_FORMS if any(turn.get("tool_calls") for turn in turns) else ARGUMENT_FORMS[:1]
        refusal: TemplateError | None = None
        for reshape in reshapes:
            try:
                return self._render_values(turns, add_generation_prompt, as_parts, reshape)
            except TemplateLimitError:
                raise
            except TemplateError as error:
                refusal = refusal or error
        assert refusal is not None
        raise refusal

    def _render_values(
        self, turns: list[Turn], add_generation_prompt: bool, as_parts: bool, reshape: Callable[[Any], Any]
    ) -> str:
        assert self.source is not None
        messages = [message_of(turn, as_parts, self.source, self.thought_format) for turn in turns]
        messages = [with_arguments(message, reshape) for message in messages]
        values = {
            **self.variables,
            "messages": messages,
            "add_generation_prompt": add_generation_prompt,
            **self.special_tokens,
            "bos_token": self.bos_token,
            "eos_token": self.eos_token,
            # Templates ask "is not none", which what is left out would be.
            "tools": list(self.tools) or None,
            "documents": None,
        }
        size = size_of(turns, self.tools)
        try:
            return _renderer.render(self.source, values, size)
        except SandboxError as error:
            raise TemplateError("chat_template", why=printable(str(error))) from error
        except LimitReached as error:
            raise self._limit_error(error, size) from error

    def _limit_error(self, error: LimitReached, size: Size) -> TemplateLimitError:
        model = printable(self.model) or "?"
        match error.kind:
            case "time":
                return TemplateLimitError("chat_template_time", model=model, limit=f"{LIMITS.cpu_s:g}")
            case "memory":
                return TemplateLimitError("chat_template_memory", model=model, limit=LIMITS.memory_mib)
            case "output":
                return TemplateLimitError("chat_template_output", model=model, limit=f"{max_chars(size):,}")
            case "ended":
                return TemplateLimitError("chat_template_ended", model=model)
        return TemplateLimitError("chat_template_busy", model=model)


def read_template(folder: Path, chosen: str = "") -> ChatTemplate:
    """The chat template of the checkpoint in `folder`, from wherever its age keeps it.

    Where it has none, the format named `chosen`, else the one that its tokens or its name tell of.
    """
    config = read_json(folder / "tokenizer_config.json") or {}
    tokens = read_special_tokens(folder, config)
    sources = _read_sources(folder, config)
    source = sources.get("default") or next(iter(sources.values()), None)
    form = None if source else BY_NAME.get(chosen) or find_format(folder)
    return ChatTemplate(
        source=form.source if form else source,
        bos_token=str(tokens.pop("bos_token", "")),
        eos_token=str(tokens.pop("eos_token", "")),
        model=folder.name,
        special_tokens=tokens,
        format=form.name if form else "",
        stop=form.stop if form else (),
        thought_format=find_thought_format(source or "", added_tokens(folder)),
        tool_source=sources.get("tool_use"),
    )


def _read_sources(folder: Path, config: dict[str, Any]) -> dict[str, str]:
    """The checkpoint's templates by name: most have one, the one for a chat is called default, or comes first."""
    jinja, older = TEMPLATES
    found = read_text(folder / jinja) or config.get("chat_template")
    found = found or (read_json(folder / older) or {}).get("chat_template")
    entries = found if isinstance(found, list) else [{"name": "default", "template": found}]
    return {
        str(entry.get("name")): source
        for entry in entries
        if isinstance(entry, dict) and isinstance(source := entry.get("template"), str) and source.strip()
    }


def _last_question(turns: Sequence[Turn]) -> str:
    return next((turn["content"] for turn in reversed(turns) if turn["role"] == "user"), "")


def _holds(text: str, asked: str) -> bool:
    """Whether a prompt has the words that were asked, by the longest of them."""
    words = WORD.findall(asked[:MAX_SEARCHED_CHARS])
    probe = max(words, key=len, default=asked.strip()[:MAX_SEARCHED_CHARS])
    if probe in text:
        return True
    folded = text.casefold()
    return probe.casefold() in folded or json.dumps(probe)[1:-1].casefold() in folded


_renderer = TemplateRenderer()
_forms = TemplateForms()


def warm_renderer() -> None:
    """Have a process ready that renders, so that the first answer does not wait for it."""
    _renderer.warm()
