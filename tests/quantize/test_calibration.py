"""The texts that ship, a person's own file, and rows of tokens."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from core.common.errors import InputError
from core.quantize.calibration import (
    CHINESE,
    HELD_OUT,
    NUM_ROWS,
    ROW_TOKENS,
    check_calibration,
    make_rows,
    parse_dialogue,
    read_file,
    require_enough,
    row_tokens,
    shipped_set,
)


def letters(text: str) -> list[int]:
    return [ord(letter) for letter in text]


def words(text: str) -> list[int]:
    """About as many as a real tokenizer makes of it."""
    return [0] * (len(text) // 4 if not CHINESE.search(text) else len(text) // 2)


def test_the_set_that_ships_mixes_languages_code_and_dialogues() -> None:
    found = shipped_set()
    assert set(found.texts) == {"en", "zh", "code"}
    assert len(found.dialogues) > 20
    assert any(CHINESE.search(text) for turns in found.dialogues for _, text in turns)
    assert {role for turns in found.dialogues for role, _ in turns} == {"user", "assistant"}
    assert all(turns[0][0] == "user" for turns in found.dialogues)
    assert all(texts and all(texts) for texts in found.texts.values())
    assert any("def " in text for text in found.texts["code"])


def test_the_set_that_ships_fills_the_rows_of_a_cpu() -> None:
    found = shipped_set()
    dialogues = ["".join(text for _, text in turns) for turns in found.dialogues]
    rows = make_rows([dialogues, *found.texts.values()], words, ROW_TOKENS, NUM_ROWS["cpu"])
    assert len(rows) == NUM_ROWS["cpu"]


def test_held_out_texts_are_in_no_text_of_the_set() -> None:
    found = shipped_set()
    everything = "\n".join([*(text for texts in found.texts.values() for text in texts),
                            *(text for turns in found.dialogues for _, text in turns)])  # fmt: skip
    for path in HELD_OUT.values():
        paragraphs = [part for part in path.read_text("utf-8").split("\n\n") if part.strip()]
        assert len(paragraphs) > 5
        assert not [part for part in paragraphs if part.strip()[:30] in everything]


def test_dialogues_lose_the_name_of_the_model_that_they_were_written_for() -> None:
    text = "<|im_start|>system\nYou are X<|im_end|>\n<|im_start|>user\nHi\nthere<|im_end|>\n<|im_start|>assistant\nHo"
    assert parse_dialogue(text) == (("user", "Hi\nthere"), ("assistant", "Ho"))


def test_rows_take_turns_between_kinds() -> None:
    rows = make_rows([["aaaa", "aaaa"], ["bbbbbbbb"], []], letters, 4, 3)
    assert rows == [letters("aaaa"), letters("bbbb"), letters("aaaa")]


def test_what_is_left_of_a_kind_is_a_row_if_it_is_long_enough() -> None:
    assert [len(row) for row in make_rows([["a" * 140]], letters, 100, 9)] == [100, 40]
    assert [len(row) for row in make_rows([["a" * 110]], letters, 100, 9)] == [100]


@pytest.mark.parametrize(("longest", "length"), [(64, 64), (8192, 512), (None, 512), (True, 512), (0, 512)])
def test_rows_are_no_longer_than_the_context(longest: object, length: int) -> None:
    assert row_tokens({"max_position_embeddings": longest}) == length


def test_an_own_file_is_read_by_paragraphs_or_lines_of_json(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\ufeffone\nstill one\n\n\ntwo\n", "utf-8")
    assert read_file(tmp_path / "a.txt") == ("one\nstill one", "two")
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n\n{"text": "two"}\n')
    assert read_file(tmp_path / "a.jsonl") == ("one", "two")


def test_a_line_of_json_ends_where_the_file_says_so(tmp_path: Path) -> None:
    """Texts of web pages hold U+2028, which JSON need not escape: the file was refused as damaged. Half a character
    ended the job in the tokenizer."""
    path = tmp_path / "A.JSONL"
    path.write_bytes('{"text": "one\u2028still \x85 one"}\r\n{"text": "\\ud83dtwo"}\r\n'.encode())
    assert read_file(path) == ("one\u2028still \x85 one", "?two")


@pytest.mark.parametrize(
    ("name", "content", "key"),
    [
        ("a.txt", b"only three words", "calibration_short"),
        ("a.txt", b"", "calibration_short"),
        ("a.txt", b"\xff\xfe\x00", "calibration_encoding"),
        ("a.jsonl", b'{"text": 1}', "calibration_line"),
        ("a.jsonl", b"[" * 100_000, "calibration_line"),
        ("missing.txt", None, "calibration_file"),
        ("..", None, "calibration_file"),
    ],
)
def test_files_that_cannot_be_calibrated_on_are_refused(
    tmp_path: Path, name: str, content: bytes | None, key: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as raised:
        require_enough(tmp_path / name, letters)
    assert raised.value.key == key


def test_before_there_is_a_tokenizer_a_file_is_refused_that_is_too_short_for_every_one(tmp_path: Path) -> None:
    """A repository of gigabytes was fetched, and then the file refused."""
    (tmp_path / "a.txt").write_text("word " * 400)
    with pytest.raises(InputError) as raised:
        check_calibration(tmp_path / "a.txt", None)
    assert (raised.value.key, raised.value.params["count"]) == ("calibration_bytes", 1999)
    (tmp_path / "a.txt").write_text("word " * 500)
    check_calibration(tmp_path / "a.txt", None)


def test_a_pipe_and_a_device_are_no_files_to_calibrate_on(tmp_path: Path) -> None:
    """Both were read for ever."""
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(InputError) as raised:
            read_file(path)
        assert raised.value.key == "calibration_file"


def test_a_long_text_becomes_tokens_only_as_far_as_is_needed(tmp_path: Path) -> None:
    """The page looks at it whenever something else was chosen."""
    (tmp_path / "a.txt").write_text("word " * 1_000_000)
    asked: list[int] = []
    require_enough(tmp_path / "a.txt", lambda text: [asked.append(len(text))] and letters(text))
    assert asked == [50_000]


def test_a_long_enough_file_is_enough(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("word " * 1000)
    require_enough(tmp_path / "a.txt", letters)
