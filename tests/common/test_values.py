"""How strangers' texts are quoted: what would change a terminal or the text around is seen and does nothing."""

from __future__ import annotations

import io
import json

import pytest

from core.common.errors import InputError
from core.common.terminal import Terminal, table, width
from core.common.values import plain_number, quoted_json, quoted_text, without_controls

HARMLESS = ["你好，世界 𠮷", "👩‍👩‍👧 🏴󠁧󠁢󠁥󠁮󠁧󠁿 ✌️", "می‌خواهم", "שלום", "a\tb\nc", "é ﷽ ก\u200bข"]
# Moves the cursor, is another terminal's code for the same, turns what follows round, sets the window's title.
EVIL = ["\x1b[2K\rdone", "\x9b2Jx", "\u202egpj.exe", "\u2066x\u2069", "\x1b]0;x\x07", "a\x08b", "x\u2028y", "\x7f"]


@pytest.mark.parametrize("text", HARMLESS)
def test_joined_letters_and_emoji_stay(text: str) -> None:
    assert without_controls(text) == text == quoted_text(text) == quoted_json(text)


@pytest.mark.parametrize("text", EVIL)
def test_no_control_reaches_a_line_a_table_or_a_sentence(text: str) -> None:
    stream = io.StringIO()
    terminal = Terminal("en", stream)
    terminal.write(text)
    for line in table([[text, "1"], ["name", "22"]]):
        terminal.write(line)
    terminal.error(InputError("adapter_unknown", name=text, folder=text))
    for said in (stream.getvalue(), quoted_text(text), quoted_json(text)):
        assert "\ufffd" in said and said.replace("\n", "").isprintable()


@pytest.mark.parametrize("text", [*EVIL, *HARMLESS])
def test_json_loses_nothing_and_shows_no_control(text: str) -> None:
    stream = io.StringIO()
    Terminal("en", stream).write_json({"name": text, "more": [1, None]})
    assert json.loads(stream.getvalue()) == {"name": text, "more": [1, None]}
    assert without_controls(stream.getvalue()) == stream.getvalue()


def test_colours_of_other_programs_are_left_out() -> None:
    assert without_controls("\x1b[1;31mERROR\x1b[0m: x") == "ERROR: x"


def test_a_row_is_one_line_and_columns_stay_aligned() -> None:
    lines = table([["a\nb\tc", "x"], ["e\u0301\u200d", "y"], ["你", "z"]], left=(0, 1))
    assert lines[0] == "a b c  x" and [width(line) for line in lines] == [8, 8, 8]


@pytest.mark.parametrize(("value", "number"), [("8", 8), (" -1 ", -1), (8.0, 8), (8.5, 8.5), (True, True), ("x", "x")])
def test_whole_numbers_are_numbers_however_they_are_written(value: object, number: object) -> None:
    assert plain_number(value) == number and type(plain_number(value)) is type(number)
