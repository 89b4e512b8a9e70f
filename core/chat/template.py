"""From a chat's turns to the text that a model was trained on; knows no tokenizer, no engine and no page.

A checkpoint's own Jinja template is rendered in a sandbox, as transformers does, so that the dashboard needs no torch.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, TypedDict

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

from core.errors import DeckError
from core.model_files import printable, read_json, read_text

LLAMA2_BOS, LLAMA2_EOS = "<s>", "</s>"
MAX_WHY_CHARS = 200
# Stands where a text is to grow on: no template trims, splits or writes otherwise a character of private use.
OPEN_END = "\ue0c5\ue0d1"
# What a template can raise beside its own refusal: it is a program that a checkpoint's author wrote.
TEMPLATE_FAULTS = (
    jinja2.TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
)


class Turn(TypedDict):
    """One message as a chat template reads it."""

    role: Literal["system", "user", "assistant"]
    content: str


class TemplateError(DeckError):
    """A checkpoint's chat template cannot be used for this chat."""


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """`source` is Jinja, or None for a checkpoint that has no template: then Llama-2's own format is used."""

    source: str | None
    bos_token: str
    eos_token: str

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
        try:
            return _compile(self.source).render(
                messages=turns,
                add_generation_prompt=add_generation_prompt,
                bos_token=self.bos_token,
                eos_token=self.eos_token,
                # Templates ask "is not none", which what is left out would be.
                tools=None,
                documents=None,
            )
        except TEMPLATE_FAULTS as error:
            why = str(error) or type(error).__name__
            raise TemplateError("chat_template", why=printable(why[:MAX_WHY_CHARS])) from error


def read_template(folder: Path) -> ChatTemplate:
    """The chat template of the checkpoint in `folder`, from wherever its age keeps it."""
    config = read_json(folder / "tokenizer_config.json") or {}
    special = read_json(folder / "special_tokens_map.json") or {}
    return ChatTemplate(
        source=_read_source(folder, config),
        bos_token=_token_text(config.get("bos_token") or special.get("bos_token")),
        eos_token=_token_text(config.get("eos_token") or special.get("eos_token")),
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


class _Generation(jinja2.ext.Extension):
    """`{% generation %}` marks the assistant's words for training; for a prompt its body is rendered as it is."""

    tags = {"generation"}

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


@lru_cache(16)
def _compile(source: str) -> jinja2.Template:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = _now
    return environment.from_string(source)


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own filter escapes for HTML, which would change what the model reads."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


def _now(pattern: str) -> str:
    return datetime.now().strftime(pattern)
