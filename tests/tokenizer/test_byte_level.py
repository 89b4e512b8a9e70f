"""vocab.json with merges.txt alone: the ids are those of the tokenizer.json that transformers makes of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import GPT2Tokenizer, Qwen2Tokenizer

from core.common.errors import CheckpointError
from core.tokenizer.read import read_tokenizer
from tests.support.checkpoints import TEXT

CLASSES = {"GPT2Tokenizer": GPT2Tokenizer, "Qwen2Tokenizer": Qwen2Tokenizer}
LETTERS = "abcdefghijklmnopqrstuvwxyz     THW.,'0123456789\n\t你好天气e\u0301"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with vocab.json and merges.txt."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|endoftext|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=alphabet, special_tokens=special, show_progress=False
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    folder = tmp_path_factory.mktemp("pair")
    tokenizer.model.save(str(folder))
    return folder


def make(folder: Path, pair: Path, files: dict[str, Any]) -> Path:
    folder.mkdir()
    for path in pair.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize("name", CLASSES)
def test_the_ids_are_those_of_the_class(pair: Path, tmp_path: Path, name: str) -> None:
    folder = make(tmp_path / "m", pair, {"tokenizer_config.json": {"tokenizer_class": name}})
    own = CLASSES[name].from_pretrained(folder, local_files_only=True)
    tokenizer = read_tokenizer(folder)

    @settings(max_examples=100, deadline=None)
    @example("Hello, how are you today? I'm 1234 years\n\n  old")
    @given(st.text(st.sampled_from(LETTERS), max_size=60))
    def check(text: str) -> None:
        found = tokenizer.encode(text, add_special_tokens=False).ids
        assert found == own.encode(text, add_special_tokens=False)
        assert tokenizer.decode(found) == own.decode(found, clean_up_tokenization_spaces=False)

    check()


@pytest.mark.parametrize(("family", "num_digits"), [("qwen2", 4), ("gpt2", 1)])
def test_without_a_class_the_family_says_how_a_text_is_cut(
    pair: Path, tmp_path: Path, family: str, num_digits: int
) -> None:
    folder = make(tmp_path / "m", pair, {"config.json": {"model_type": family}})
    merges = (folder / "merges.txt").read_text() + "1 2\n12 3\n123 4\n"
    (folder / "merges.txt").write_text(merges)
    vocabulary = json.loads((folder / "vocab.json").read_text())
    vocabulary |= {text: len(vocabulary) + number for number, text in enumerate(("12", "123", "1234"))}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    assert len(read_tokenizer(folder).encode("1234").ids) == num_digits


def test_added_and_special_tokens_are_found_and_a_text_may_begin_with_one(pair: Path, tmp_path: Path) -> None:
    size = len(json.loads((pair / "vocab.json").read_text()))
    files = {
        "added_tokens.json": {"<|im_start|>": size, "<|im_end|>": size + 1},
        "special_tokens_map.json": {"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>"},
        "tokenizer_config.json": {"tokenizer_class": "GPT2Tokenizer", "add_bos_token": True},
    }
    tokenizer = read_tokenizer(make(tmp_path / "m", pair, files))
    found = tokenizer.encode("<|im_start|>Hi<|im_end|>").ids
    assert (found[0], found[1], found[-1]) == (tokenizer.token_to_id("<|endoftext|>"), size, size + 1)
    assert tokenizer.decode(found) == "<|im_start|>Hi"


@pytest.mark.parametrize(
    ("files", "shown"),
    [
        ({"tokenizer_config.json": {"tokenizer_class": "QWenTokenizer"}}, "QWenTokenizer"),
        ({"vocab.json": {"a": "b"}}, "vocab.json"),
        ({"vocab.json": {}}, "vocab.json"),
        ({"vocab.json": []}, "vocab.json"),
    ],
)
def test_another_class_or_a_damaged_vocabulary_is_refused_in_words(
    pair: Path, tmp_path: Path, files: dict[str, Any], shown: str
) -> None:
    with pytest.raises(CheckpointError, match=shown):
        read_tokenizer(make(tmp_path / "m", pair, files))


def test_a_folder_without_a_tokenizer_says_so(pair: Path, tmp_path: Path) -> None:
    folder = make(tmp_path / "m", pair, {})
    (folder / "merges.txt").unlink()
    with pytest.raises(CheckpointError) as caught:
        read_tokenizer(folder)
    assert caught.value.key == "tokenizer_missing"
