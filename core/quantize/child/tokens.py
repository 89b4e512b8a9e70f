"""Texts as rows of tokens, with the tokenizer and the chat template of the model itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from core.chat.template import TemplateError, read_template
from core.chat.template_messages import Turn
from core.checkpoint.headers import read_json
from core.quantize.answer import BEGINNING, QUESTION
from core.quantize.calibration import NUM_ROWS, Dialogue, make_rows, read_file, row_tokens, shipped_set
from core.tokenizer.read import read_tokenizer


def encoder(folder: Path) -> Callable[[str], list[int]]:
    """Makes tokens of a text as the model in `folder` does. Raises CheckpointError."""
    tokenizer = read_tokenizer(folder)

    def encode(text: str) -> list[int]:
        ids: list[int] = tokenizer.encode(text).ids
        return ids

    return encode


def first_prompt(folder: Path) -> tuple[str, str]:
    """What the model in `folder` is asked first, and how its template puts that. One without a template goes on with
    a sentence."""
    try:
        return QUESTION, read_template(folder).render([Turn(role="user", content=QUESTION)])
    except TemplateError:
        return BEGINNING, BEGINNING


def calibration_rows(folder: Path, own_file: Path | None, device: str) -> list[list[int]]:
    """The rows of tokens to calibrate the model in `folder` on. Raises CheckpointError, InputError."""
    encode, template = encoder(folder), read_template(folder)

    def render(dialogue: Dialogue) -> str:
        turns = [Turn(role=role, content=text) for role, text in dialogue]  # type: ignore[typeddict-item]
        try:
            return "".join(template.render_open(turns))
        except TemplateError:
            # Without a template a model has seen dialogues as plain lines.
            return "\n".join(f"{role}: {text}" for role, text in dialogue) + "\n"

    length = row_tokens(read_json(folder / "config.json") or {})
    count = NUM_ROWS[device.partition(":")[0]]
    if own_file is not None:
        return make_rows([read_file(own_file)], encode, length, count)
    shipped = shipped_set()
    dialogues = list(map(render, shipped.dialogues))
    return make_rows([dialogues, *shipped.texts.values()], encode, length, count)
