"""A model's tokenizer from whichever files it has, without transformers: dashboard and worker read the same one.

Newer checkpoints have tokenizer.json. Those of 2023 have a SentencePiece model in tokenizer.model alone, or GPT-2's
pair of vocab.json and merges.txt; both are converted.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

from tokenizers import Tokenizer

from core.checkpoint.headers import MAX_CONFIG_BYTES, read_json
from core.checkpoint.tokenizer_files import (
    ADDED_TOKENS,
    MERGES,
    MODELS,
    SPECIAL_TOKENS,
    TOKENIZER,
    TOKENIZER_CONFIG,
    VOCABULARY,
)
from core.common.errors import CheckpointError
from core.common.files import regular_size
from core.common.panics import panics_as_errors, why_of
from core.common.values import printable
from core.tokenizer.byte_level import convert_byte_level
from core.tokenizer.sentencepiece_model import convert_sentencepiece
from core.tokenizer.special_tokens import complete, read_special_tokens

log = logging.getLogger(__name__)
# The largest vocabularies, of 260,000 tokens, take 35 MB.
MAX_TOKENIZER_BYTES = 256 * 2**20
# SentencePiece's own models have up to 5 MB.
MAX_MODEL_BYTES = 32 * 2**20
FILES = (TOKENIZER, *MODELS, VOCABULARY, MERGES, ADDED_TOKENS, SPECIAL_TOKENS, TOKENIZER_CONFIG, "config.json")


def read_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of the model in `folder`. It neither cuts nor fills: a prompt is taken as it is.

    Raises CheckpointError where there is none, or none that can be read.
    """
    readers: list[tuple[tuple[str, ...], Callable[[Path], Tokenizer]]] = [
        ((TOKENIZER,), _read_file),
        *(((name,), partial(_read_sentencepiece, name=name)) for name in MODELS),
        ((VOCABULARY, MERGES), _read_byte_level),
    ]
    found = [read for names, read in readers if all(_is_there(folder, name) for name in names)]
    if not found:
        raise CheckpointError("tokenizer_missing", folder=printable(folder.name))
    for read in found[:-1]:
        try:
            return _guarded(folder, read)
        except CheckpointError as error:
            # Such as a tokenizer.json of a later library beside the model that it was made from.
            log.warning("another of its tokenizer files is read: %s", error)
    return _guarded(folder, found[-1])


def _guarded(folder: Path, read: Callable[[Path], Tokenizer]) -> Tokenizer:
    try:
        with panics_as_errors():
            tokenizer = read(folder)
            tokenizer.no_truncation()
            tokenizer.no_padding()
            return tokenizer
    except CheckpointError:
        raise
    except Exception as error:  # The libraries raise bare exceptions for files that they cannot read.
        raise CheckpointError("tokenizer", folder=printable(folder.name), why=printable(why_of(error))) from error


def _read_file(folder: Path) -> Tokenizer:
    check_size(folder / TOKENIZER, MAX_TOKENIZER_BYTES)
    tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
    with suppress(CheckpointError):  # The small files only add to it.
        complete(tokenizer, read_special_tokens(folder))
    return tokenizer


def _read_sentencepiece(folder: Path, name: str) -> Tokenizer:
    check_size(folder / name, MAX_MODEL_BYTES)
    return convert_sentencepiece((folder / name).read_bytes(), read_special_tokens(folder))


def _read_byte_level(folder: Path) -> Tokenizer:
    for name in (VOCABULARY, MERGES):
        check_size(folder / name, MAX_CONFIG_BYTES)
    vocabulary, config = read_json(folder / VOCABULARY), read_json(folder / "config.json")
    merges = (folder / MERGES).read_text("utf-8")
    return convert_byte_level(vocabulary or {}, merges, read_special_tokens(folder), config or {})


def check_size(path: Path, limit: int) -> None:
    """Raise CheckpointError for a file that is larger than `limit` or cannot be read."""
    try:
        size = regular_size(path)
    except OSError as error:
        why = error.strerror or str(error)
        raise CheckpointError("tokenizer", folder=printable(path.parent.name), why=why) from error
    if size > limit:
        raise CheckpointError("config_too_large", file=path.name, folder=printable(path.parent.name))


def _is_there(folder: Path, name: str) -> bool:
    """Whether `name` is in the folder in any form: whatever else is wrong with it is said when it is read."""
    path = folder / name
    return path.exists() or path.is_symlink()
