"""tokenizer.model alone, as models of 2023 have it: the ids are SentencePiece's own, for any text."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from core.common.errors import CheckpointError
from core.tokenizer.read import read_tokenizer
from tests.support.checkpoints import make_tokenizer, train_sentencepiece

LLAMA = {"model_type": "bpe", "byte_fallback": True, "normalization_rule_name": "identity",
         "remove_extra_whitespaces": False, "split_digits": True}  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    "Llama": LLAMA,
    "Gemma": LLAMA | {"add_dummy_prefix": False},
    "without bytes": LLAMA | {"byte_fallback": False},
    "normalized": {"model_type": "bpe", "normalization_rule_name": "nmt_nfkc"},
    "with symbols": LLAMA | {"user_defined_symbols": ["\n\n", "<h1>", "  ", "    "]},
    "words": {"model_type": "unigram", "normalization_rule_name": "nmt_nfkc"},
    "words and bytes": LLAMA | {"model_type": "unigram", "user_defined_symbols": ["<h1>"]},
}
TEXTS = st.text(
    st.sampled_from("abcdefghijklmnopqrstuvwxyz      HTW.,'0123456789\n\t<h1>▁你好天气é\u3000ﬁ\U0001f600"), max_size=60
)
Models = Callable[[str], Path]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """The folder of a model of a kind, trained when it is first asked for."""
    made: dict[str, Path] = {}

    def folder_of(kind: str) -> Path:
        if kind not in made:
            made[kind] = tmp_path_factory.mktemp("models")
            train_sentencepiece(made[kind], **KINDS[kind])
        return made[kind]

    return folder_of


def ids(tokenizer: Tokenizer, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False).ids)


def with_settings(models: Models, folder: Path, files: dict[str, Any], kind: str = "Llama") -> Tokenizer:
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.model").write_bytes((models(kind) / "tokenizer.model").read_bytes())
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    return read_tokenizer(folder)


@pytest.mark.parametrize("kind", KINDS)
def test_the_ids_are_those_of_sentencepiece(models: Models, kind: str) -> None:
    own = sentencepiece.SentencePieceProcessor(model_file=str(models(kind) / "tokenizer.model"))
    tokenizer = read_tokenizer(models(kind))

    @settings(max_examples=60, deadline=None)
    @example("Hello, how are you today?")
    @example("  two  spaces and a tab\there  ")
    @example("数字 123 你好")
    @example("[INST] Hi [/INST]\n\n\n")
    @given(TEXTS)
    def check(text: str) -> None:
        assert ids(tokenizer, text) == own.encode(text)

    check()


def test_the_name_of_a_byte_in_a_text_is_letters(models: Models) -> None:
    text = "<0x0A> is no line break"
    own = sentencepiece.SentencePieceProcessor(model_file=str(models("Llama") / "tokenizer.model"))
    assert ids(read_tokenizer(models("Llama")), text) == own.encode(text)


@pytest.mark.parametrize("kind", ["Llama", "Gemma", "words and bytes", "with symbols"])
def test_what_is_decoded_is_what_was_encoded(models: Models, kind: str) -> None:
    tokenizer = read_tokenizer(models(kind))
    for text in ("Hello, how are you?", " two  spaces", "数字 123\n\n好", "tab\there <h1>"):
        assert tokenizer.decode(ids(tokenizer, text)) == text


def test_special_tokens_are_found_in_a_text_and_a_space_goes_before_what_follows(models: Models) -> None:
    """As LlamaTokenizer read chats in 2023: what stands between special tokens is a text of its own."""
    own = sentencepiece.SentencePieceProcessor(model_file=str(models("Llama") / "tokenizer.model"))
    tokenizer = read_tokenizer(models("Llama"))
    assert ids(tokenizer, "<s>[INST] Hi [/INST] Hello </s>") == [1, *own.encode("[INST] Hi [/INST] Hello "), 2]
    assert tokenizer.decode([1, *own.encode("Hi there"), 2]) == "Hi there"


def test_later_settings_put_the_space_before_the_first_text_alone(models: Models, tmp_path: Path) -> None:
    own = sentencepiece.SentencePieceProcessor(model_file=str(models("Llama") / "tokenizer.model"))
    tokenizer = with_settings(models, tmp_path / "m", {"tokenizer_config.json": {"legacy": False}})
    assert ids(tokenizer, "Hello") == own.encode("Hello")
    assert tokenizer.encode("<s>Hello", add_special_tokens=False).tokens[:2] == ["<s>", "H"]
    assert ids(tokenizer, "Hi<s> Hello") == [*own.encode("Hi"), 1, *own.encode("Hello")]


@pytest.mark.parametrize(
    ("config", "opening"),
    [
        (None, ["<s>"]),
        ({"tokenizer_class": "LLaMATokenizer", "bos_token": "", "eos_token": ""}, ["<s>"]),
        ({"tokenizer_class": "LlamaTokenizerFast", "add_bos_token": True}, ["<s>"]),
        ({"tokenizer_class": "LlamaTokenizer", "add_bos_token": False}, []),
        ({"tokenizer_class": "BaichuanTokenizer", "auto_map": {"AutoTokenizer": ["x.py", None]}}, []),
        ({"bos_token": {"content": "</s>"}}, ["</s>"]),
    ],
)
def test_what_begins_a_text_follows_from_the_class_and_its_settings(
    models: Models, tmp_path: Path, config: dict | None, opening: list[str]
) -> None:
    files = {} if config is None else {"tokenizer_config.json": config}
    encoded = with_settings(models, tmp_path / "m", files).encode("Hi")
    special = [
        token for token, is_special in zip(encoded.tokens, encoded.special_tokens_mask, strict=True) if is_special
    ]
    assert special == opening


def test_added_tokens_have_their_own_numbers(models: Models, tmp_path: Path) -> None:
    size = read_tokenizer(models("Llama")).get_vocab_size()
    files = {
        "added_tokens.json": {"[PAD]": size, "<|im_start|>": size + 1, "<|im_end|>": size + 2},
        "special_tokens_map.json": {"pad_token": "[PAD]", "additional_special_tokens": ["<|im_end|>"]},
    }
    for kind in ("Llama", "words"):
        tokenizer = with_settings(models, tmp_path / kind, files, kind)
        found = ids(tokenizer, "<|im_start|>Hi<|im_end|>")
        assert (found[0], found[-1]) == (size + 1, size + 2)
        assert tokenizer.decode(found).startswith("<|im_start|>") and "<|im_end|>" not in tokenizer.decode(found)


def test_newer_settings_name_tokens_with_their_numbers(models: Models, tmp_path: Path) -> None:
    size = read_tokenizer(models("Llama")).get_vocab_size()
    entries = {
        "1": {"content": "<s>", "special": True},
        "7": {"content": "<|user|>", "special": True},
        str(size): {"content": "<|over|>", "special": True, "lstrip": True},
        "nine": {"content": "no number"},
        "9" * 30: {"content": "too large"},
    }
    tokenizer = with_settings(models, tmp_path / "m", {"tokenizer_config.json": {"added_tokens_decoder": entries}})
    assert ids(tokenizer, "<s><|user|><|over|>") == [1, 7, size]


def test_a_model_file_beside_a_tokenizer_of_a_later_library_is_read(models: Models, tmp_path: Path) -> None:
    newer = {"version": "9.0", "model": {"type": "Quantum"}}
    tokenizer = with_settings(models, tmp_path / "m", {"tokenizer.json": newer})
    assert ids(tokenizer, "Hi") == ids(read_tokenizer(models("Llama")), "Hi")
    (tmp_path / "m" / "tokenizer.model").unlink()
    with pytest.raises(CheckpointError) as caught:
        read_tokenizer(tmp_path / "m")
    assert caught.value.key == "tokenizer"
    for language in ("en", "zh"):
        assert "again" not in caught.value.sentence(language) and "重新" not in caught.value.sentence(language)


@pytest.mark.parametrize(
    "content",
    [b"", b"\x00" * 100, b"IQ== 0\nIg== 1\n", b"version https://git-lfs.github.com/spec/v1", b"\xff" * 1000],
    ids=["empty", "zeros", "tiktoken", "pointer", "noise"],
)
def test_a_file_that_is_no_model_is_refused_in_words(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        read_tokenizer(tmp_path)
    assert caught.value.key == "tokenizer" and "Error" not in str(caught.value)


@pytest.mark.parametrize("numbers", [{"a": -1}, {"a": 10**12}, {"a": 2**23}, {"a": "7"}, {"a": None}, {"": 400}])
def test_absurd_numbers_of_added_tokens_do_no_harm(models: Models, tmp_path: Path, numbers: dict) -> None:
    tokenizer = with_settings(models, tmp_path / "m", {"added_tokens.json": numbers})
    assert ids(tokenizer, "Hello") == ids(read_tokenizer(models("Llama")), "Hello")


def test_a_tokenizer_of_the_model_before_its_fine_tuning_gets_the_added_tokens(tmp_path: Path) -> None:
    """The tokenizer.json of the base model beside the added_tokens.json of the chat model."""
    make_tokenizer(tmp_path, 384)
    size = read_tokenizer(tmp_path).get_vocab_size()
    added = {"<|im_end|>": size + 1, "<|im_start|>": size, "<s>": 1, "<|far|>": size + 90}
    (tmp_path / "added_tokens.json").write_text(json.dumps(added))
    (tmp_path / "special_tokens_map.json").write_text('{"eos_token": "<|im_end|>"}')
    tokenizer = read_tokenizer(tmp_path)
    assert ids(tokenizer, "<s><|im_start|><|im_end|>") == [1, size, size + 1]
    assert tokenizer.decode([size, size + 1]) == "<|im_start|>"
    (tmp_path / "tokenizer_config.json").write_text("{")
    assert read_tokenizer(tmp_path).get_vocab_size() == size


def test_thousands_of_added_tokens_take_no_time_and_more_are_refused(models: Models, tmp_path: Path) -> None:
    size = read_tokenizer(models("Llama")).get_vocab_size()
    numbers = {f"<extra {number}>": size + number for number in range(6000)}
    assert ids(with_settings(models, tmp_path / "m", {"added_tokens.json": numbers}), "<extra 5999>") == [size + 5999]
    numbers = {f"<extra {number}>": size + number for number in range(30_000)}
    with pytest.raises(CheckpointError):
        with_settings(models, tmp_path / "n", {"added_tokens.json": numbers})
