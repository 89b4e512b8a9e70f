"""From a chat's turns to the text that a model was trained on.

A checkpoint's own Jinja template is a stranger's program: it is rendered in a process of its own, within limits, and in
a sandbox there, as transformers does. The dashboard needs no torch for it.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypedDict

from core.checkpoint.headers import read_json, read_text
from core.common.errors import DeckError
from core.common.sandbox import LimitReached, Sandbox, SandboxError, SandboxLimits
from core.common.values import printable

LLAMA2_BOS, LLAMA2_EOS = "<s>", "</s>"
# A real template takes 0.2 ms and 1 MiB for a short chat, 20 ms and 10 MiB for 1,000 messages, 0.5 s for 10,000.
LIMITS = SandboxLimits(cpu_s=1.5, memory_mib=512, wait_s=20.0)
MAX_PROCESSES = 4
# A prompt may have so many characters of the template's own, and so many for each turn. A template may write a text
# twice, or as JSON, where one character takes 12.
MAX_OWN_CHARS, MAX_TURN_CHARS, MAX_GROWTH = 2**18, 2**10, 16
# Larger chats have a process of their own, so that a short one does not wait for them.
LARGE_TURNS, LARGE_CHARS = 200, 100_000
# After a template reached a limit, chats as large as that one are refused for this long; kept for so many templates.
PAUSE_S, MAX_PAUSED = 60.0, 16
# Marks where a text is to continue. No template trims, splits or rewrites a character of private use.
OPEN_END = "\ue0c5\ue0d1"


class Turn(TypedDict):
    """One message as a chat template reads it."""

    role: Literal["system", "user", "assistant"]
    content: str


# How many turns a chat has, and how many characters.
Size = tuple[int, int]


class TemplateError(DeckError):
    """A checkpoint's chat template cannot be used for this chat."""


class TemplateLimitError(TemplateError):
    """A template was stopped at a limit; other forms of the same chat would not fare better."""


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """`source` is Jinja, or None for a checkpoint that has no template: then Llama-2's own format is used.

    `model` is whose template it is, for sentences.
    """

    source: str | None
    bos_token: str
    eos_token: str
    model: str = field(default="", compare=False)

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
        begin, mark, after = text.rpartition(OPEN_END)
        if not mark:
            raise TemplateError("chat_template_open")
        return begin, after

    def _render(self, turns: list[Turn], add_generation_prompt: bool) -> str:
        if self.source is None:
            return render_llama2(turns)
        values = {
            "messages": [turn | {"content": printable(turn["content"])} for turn in turns],
            "add_generation_prompt": add_generation_prompt,
            "bos_token": self.bos_token,
            "eos_token": self.eos_token,
            # Templates ask "is not none", which what is left out would be.
            "tools": None,
            "documents": None,
        }
        size = _size(turns)
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
                return TemplateLimitError("chat_template_output", model=model, limit=f"{_max_chars(size):,}")
            case "ended":
                return TemplateLimitError("chat_template_ended", model=model)
        return TemplateLimitError("chat_template_busy", model=model)


def read_template(folder: Path) -> ChatTemplate:
    """The chat template of the checkpoint in `folder`, from wherever its age keeps it."""
    config = read_json(folder / "tokenizer_config.json") or {}
    special = read_json(folder / "special_tokens_map.json") or {}
    return ChatTemplate(
        source=_read_source(folder, config),
        bos_token=_token_text(config.get("bos_token") or special.get("bos_token")),
        eos_token=_token_text(config.get("eos_token") or special.get("eos_token")),
        model=folder.name,
    )


def render_llama2(turns: list[Turn]) -> str:
    """Llama-2's chat format: the system text inside the first question, each exchange between <s> and </s>.

    Source: Meta's reference, `chat_completion` in llama/generation.py.
    """
    system = "".join(turn["content"] for turn in turns if turn["role"] == "system")
    spoken = [turn for turn in turns if turn["role"] != "system"]
    if spoken and spoken[0]["role"] == "assistant":
        # A greeting: the format begins with a question, and keeps the system text in it.
        spoken = [Turn(role="user", content=""), *spoken]
    text, head = "", f"<<SYS>>\n{system}\n<</SYS>>\n\n" if system else ""
    for turn in spoken:
        if turn["role"] == "user":
            text += f"{LLAMA2_BOS}[INST] {(head + turn['content']).strip()} [/INST]"
            head = ""
        else:
            text += f" {turn['content'].strip()} {LLAMA2_EOS}"
    return text


def _read_source(folder: Path, config: dict[str, Any]) -> str | None:
    found = read_text(folder / "chat_template.jinja") or config.get("chat_template")
    found = found or (read_json(folder / "chat_template.json") or {}).get("chat_template")
    if isinstance(found, list):
        # Several templates by name: the one for a chat is called default, or comes first.
        entries = [entry for entry in found if isinstance(entry, dict)]
        entries.sort(key=lambda entry: entry.get("name") != "default")
        found = entries[0].get("template") if entries else None
    return found if isinstance(found, str) and found.strip() else None


def _token_text(token: object) -> str:
    """Older tokenizers write a special token as an object with its text in `content`."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else ""


class _Renderer:
    """The processes that render, and which chats they could not.

    What was stopped at a limit is not tried again for a while with a chat as large or larger: else each message, and
    each look at a page that counts tokens, would wait for the limit.
    """

    def __init__(self, limits: SandboxLimits = LIMITS) -> None:
        self._sandbox = Sandbox("core.chat.template_child", limits, MAX_PROCESSES)
        self._lock = threading.Lock()
        self._paused: OrderedDict[str, tuple[Size, float, LimitReached]] = OrderedDict()

    def render(self, source: str, values: dict[str, Any], size: Size) -> str:
        """Raises LimitReached, or SandboxError with the template's words."""
        num_turns, num_chars = size
        key = (source, num_turns > LARGE_TURNS or num_chars > LARGE_CHARS)
        self._check(source, size)
        try:
            return self._sandbox.ask(key, source, values, _max_chars(size), lambda: self._check(source, size))
        except LimitReached as error:
            # A process that had no turn says nothing about the chat.
            if error.kind != "busy":
                self._pause(source, size, error)
            raise

    def warm(self) -> None:
        """Have a process ready for the first chat."""
        with suppress(LimitReached):  # The first chat says it.
            self._sandbox.warm()

    def close(self) -> None:
        self._sandbox.close()

    def _check(self, source: str, size: Size) -> None:
        with self._lock:
            least, until_s, error = self._paused.get(source, ((0, 0), 0.0, None))
        if error is not None and time.monotonic() < until_s and size[0] >= least[0] and size[1] >= least[1]:
            raise LimitReached(error.kind)

    def _pause(self, source: str, size: Size, error: LimitReached) -> None:
        with self._lock:
            self._paused[source] = (size, time.monotonic() + PAUSE_S, error)
            self._paused.move_to_end(source)
            while len(self._paused) > MAX_PAUSED:
                self._paused.popitem(last=False)


_renderer = _Renderer()


def warm_renderer() -> None:
    """Have a process ready that renders, so that the first answer does not wait for it."""
    _renderer.warm()


def _size(turns: Sequence[Turn]) -> Size:
    return len(turns), sum(len(turn["role"]) + len(turn["content"]) for turn in turns)


def _max_chars(size: Size) -> int:
    num_turns, num_chars = size
    return MAX_OWN_CHARS + num_turns * MAX_TURN_CHARS + num_chars * MAX_GROWTH
