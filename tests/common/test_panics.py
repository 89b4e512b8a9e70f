"""What a library written in Rust panics at: tokenizers that can be read and fail with some text, or cannot be read."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from core.chat.tokens import TokenizerError, read_counter
from core.common.errors import CheckpointError
from core.common.panics import LibraryPanic, panics_as_errors
from core.tokenizer.read import read_tokenizer
from tests.support.checkpoints import make_checkpoint
from tests.support.damaged import TOO_HARD, Damage, charsmap, damage, giving_up, special, stripping

UNREADABLE: dict[str, Damage] = {
    "no charsmap": charsmap(""),
    "half a charsmap": charsmap("AAE="),
    "a charsmap that is no base64": charsmap("你好"),
    "a charsmap longer than it is": charsmap("/////w=="),
    "no model": lambda tokenizer: tokenizer.update(model={}),
    "a model of another kind": lambda tokenizer: tokenizer["model"].update(type="Oracle"),
    "merges of what is not there": lambda tokenizer: tokenizer["model"].update(merges=["qq zz"]),
    "a number for a text": lambda tokenizer: tokenizer.update(added_tokens=[{"id": -1, "content": 5}]),
}


@pytest.fixture
def made(tmp_path: Path) -> Path:
    make_checkpoint(tmp_path / "Odd-7B")
    return tmp_path / "Odd-7B"


@pytest.mark.parametrize("change", UNREADABLE.values(), ids=UNREADABLE.keys())
@pytest.mark.parametrize("read", [read_counter, read_tokenizer])
def test_a_tokenizer_that_cannot_be_read_is_said(made: Path, read: Callable[[Path], object], change: Damage) -> None:
    damage(made, change)
    with pytest.raises(CheckpointError) as caught:
        read(made)
    assert caught.value.key == "tokenizer" and "Odd-7B" in str(caught.value)
    assert len(str(caught.value.params["why"])) > 5


def test_a_tokenizer_that_fails_with_its_first_text_is_said(made: Path) -> None:
    """It is asked at once what it puts before a text."""
    damage(made, special([3], []))
    with pytest.raises(CheckpointError):
        read_counter(made)


def test_a_text_that_a_tokenizer_cannot_take_is_said_and_the_next_one_is_counted(made: Path) -> None:
    damage(made, giving_up)
    counter = read_counter(made)
    for read in (counter.count, counter.encode):
        with pytest.raises(TokenizerError) as caught:
            read(TOO_HARD)
        assert "Odd-7B" in caught.value.sentence("zh") and "retry-limit" in str(caught.value)
    assert counter.count("hello") == len(counter.encode("hello") or [])


def test_tokens_that_a_tokenizer_cannot_write_are_said(made: Path) -> None:
    damage(made, stripping(0, 1))
    counter = read_counter(made)
    with pytest.raises(TokenizerError):
        counter.decode([])


def test_a_pipe_in_a_tokenizers_place_is_not_waited_for(made: Path) -> None:
    (made / "tokenizer.json").unlink()
    os.mkfifo(made / "tokenizer.json")
    with pytest.raises(CheckpointError):
        read_counter(made)


def test_everything_else_passes_as_it_is() -> None:
    for error in (KeyboardInterrupt(), SystemExit(), ValueError("x"), MemoryError()):
        with pytest.raises(type(error)) as caught, panics_as_errors():
            raise error
        assert caught.value is error
    panic = type("PanicException", (BaseException,), {})
    with pytest.raises(LibraryPanic, match="^first$"), panics_as_errors():
        raise panic("first\nsecond")
