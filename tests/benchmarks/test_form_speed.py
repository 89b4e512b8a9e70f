"""What grammars and log-probabilities cost: that all of it runs over a tiny model, and what stands in the cells."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from benchmarks import form_speed
from benchmarks.deadline import Deadline
from benchmarks.figures import Figures
from benchmarks.form_speed import ONE_CHAT, Extent, FormEngine, Found, measure, table, with_words, write_tokenizer
from core.checkpoint.checkpoint import read_checkpoint
from tests.support.checkpoints import WEIGHTS, Recipe, make_checkpoint


def test_a_tokenizer_has_as_many_tokens_as_were_asked_for_and_gives_texts_back(tmp_path: Path) -> None:
    write_tokenizer(tmp_path / "tokenizer.json", 5000)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    text = "Ein Fuchs, 一只狐狸, a fox {\n}"
    tokens = tokenizer.encode(text).ids
    assert tokenizer.get_vocab_size() == 5000 and tokenizer.decode(tokens) == text
    assert tokenizer.token_to_id("</s>") == 2 and len(tokens) < len(text.encode())


def test_everything_is_measured_over_one_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMADECK_CPU", "1")
    make_checkpoint(tmp_path / "tiny", Recipe(num_layers=1, context_tokens=256))
    extent = Extent(prompt_tokens=16, one_tokens=24, many_tokens=32, num_chats=4, num_forms=1, rounds=(2, 1))
    figures = Figures("Forms")
    found = measure(read_checkpoint(tmp_path / "tiny"), FormEngine, extent, figures, Deadline.after(600.0))
    assert {name: len(rates) for name, rates in found.one.items()} == dict.fromkeys(ONE_CHAT, 2)
    assert {name: len(rates) for name, rates in found.many.items()} == {"free": 1, "others": 1, "JSON": 1}
    assert all(rate > 0 for rates in found.one.values() for rate in rates)
    assert figures.median("one chat: JSON", "tokens/s of a chat") and figures.median("one chat: JSON", "% of free")


def test_the_table_holds_shares_against_what_is_wanted() -> None:
    one = {"free": [100.0, 110.0, 90.0], "JSON": [92.0], "log-probabilities": [99.0], "5 likeliest": [94.0]}
    found = Found(one, {"free": [50.0], "others": [49.0], "JSON": [48.0]})
    assert found.shares() == pytest.approx(
        {"JSON": 0.92, "log-probabilities": 0.99, "5 likeliest": 0.94, "others": 0.98}
    )
    lines = table(found).splitlines()
    assert "| one chat: free | 100.0 |  |  |" in lines and "| one chat: JSON | 92.0 | 92.0% | 90% |" in lines
    assert "| many chats: others | 49.0 | 98.0% | 95% |" in lines
    assert set(form_speed.TARGETS) == set(found.shares())


def test_what_was_measured_is_shown_though_the_many_chats_ended_too_early() -> None:
    found = Found({"free": [100.0], "JSON": [92.0]}, {"free": [0.0], "others": [0.0], "JSON": [0.0]})
    assert found.shares() == {"JSON": pytest.approx(0.92)}
    assert "| many chats: others | 0.0 |  |  |" in table(found)


def test_a_model_has_its_files_once_and_two_tokenizers(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "tiny", Recipe(num_layers=1))
    before = (tmp_path / "tiny" / "tokenizer.json").read_text()
    for _ in range(2):
        folder = with_words(tmp_path / "tiny", tmp_path / "words")
    assert (folder / WEIGHTS).samefile(tmp_path / "tiny" / WEIGHTS)
    vocabulary = json.loads((folder / "config.json").read_text())["vocab_size"]
    assert Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size() == vocabulary
    assert (tmp_path / "tiny" / "tokenizer.json").read_text() == before
