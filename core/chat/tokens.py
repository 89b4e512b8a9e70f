"""How many tokens a text is for a model, without torch."""

from __future__ import annotations

import hashlib
import json
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from tokenizers import Tokenizer

from core.common.errors import CheckpointError, DeckError, InputError
from core.common.files import Versions, file_versions
from core.common.panics import panics_as_errors, why_of
from core.common.values import printable
from core.tokenizer.read import FILES, read_tokenizer

# An estimate is rather too high: a prompt cut a little early is answered, one that is too long is not.
BYTES_PER_TOKEN = 3
# The counts of this many texts are kept, by the texts' digests: the texts would be hundreds of megabytes.
MAX_KNOWN, DIGEST_BYTES = 8192, 16
# All replacements of a tokenizer together may turn one character into this many. A hostile file can write ten for
# each, ten times over, which would end a page at the first long word. Real tokenizers put one in the place of one.
MAX_GROWTH = 64
# A quarter of a million tokens, the most that a request can hold, have a few megabytes of text. One token of a
# stranger's may be a megabyte, and the library ends the process where it finds no memory.
MAX_DECODED_CHARS = 64 * 2**20
Result = TypeVar("Result")


class TokenizerError(DeckError):
    """A model's tokenizer cannot take a text, or the tokens of one."""


class TokenCounter:
    """Counts as the engine does: special tokens that are written out are one token each, none is added.

    `opening` is what the tokenizer puts before a text that has no template, such as "<s>". `is_exact` is False for a
    model without a tokenizer: then the count is an upper estimate. `model` is whose tokenizer it is, for sentences.
    All raise TokenizerError where the tokenizer fails.
    """

    def __init__(self, tokenizer: Tokenizer | None, model: str = "") -> None:
        self._tokenizer = tokenizer
        self._model = model
        self.is_exact = tokenizer is not None
        self.opening = _opening(tokenizer) if tokenizer else ""
        self._lock = threading.Lock()
        self._known: OrderedDict[bytes, int] = OrderedDict()

    def count(self, text: str) -> int:
        """The tokens of `text`; by an estimate where there is no tokenizer. Counts of the last texts are kept."""
        digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=DIGEST_BYTES).digest()
        with self._lock:
            count = self._known.pop(digest, None)
        if count is None:
            count = self._count(text)
        with self._lock:
            self._known[digest] = count
            if len(self._known) > MAX_KNOWN:
                self._known.popitem(last=False)
        return count

    def encode(self, text: str) -> list[int] | None:
        """The tokens that `count` counts; None where that is an estimate."""
        return None if self._tokenizer is None else self._ids(text)

    def decode(self, tokens: Sequence[int]) -> str | None:
        """The text of `tokens`, with the special ones; None without a tokenizer. Raises InputError."""
        if self._tokenizer is None:
            return None
        tokenizer = self._tokenizer
        last = tokenizer.get_vocab_size() - 1
        if not all(0 <= token <= last for token in tokens):
            raise InputError("prompt_token", limit=last)
        written = (len(tokenizer.id_to_token(token) or "") * count for token, count in Counter(tokens).items())
        if sum(written) > MAX_DECODED_CHARS:
            why = f"more than {MAX_DECODED_CHARS:,} characters"
            raise TokenizerError("tokenizer_text", model=printable(self._model) or "?", why=why)
        return self._guarded(lambda: str(tokenizer.decode(list(tokens), skip_special_tokens=False)))

    def _count(self, text: str) -> int:
        if self._tokenizer is None:
            return -(-len(printable(text).encode()) // BYTES_PER_TOKEN)
        return len(self._ids(text))

    def _ids(self, text: str) -> list[int]:
        assert self._tokenizer is not None
        encode = self._tokenizer.encode_batch_fast
        # As a batch: `encode` holds Python's lock, and with it every page, for the seconds that megabytes of text take.
        (found,) = self._guarded(lambda: encode([printable(text)], add_special_tokens=False))
        return list(found.ids)

    def _guarded(self, work: Callable[[], Result]) -> Result:
        """A file that can be read may still hold what fails with some texts, and some libraries panic at them."""
        try:
            with panics_as_errors():
                return work()
        except Exception as error:  # The tokenizer library raises bare exceptions.
            raise TokenizerError("tokenizer_text", model=printable(self._model) or "?", why=why_of(error)) from error


def read_counter(folder: Path) -> TokenCounter:
    """The counter of the model in `folder`, read once. Raises CheckpointError for a tokenizer that cannot be read."""
    return _read(folder, file_versions(folder, FILES))


@lru_cache(4)
def _read(folder: Path, seen: Versions) -> TokenCounter:
    """`seen` changes with any file that the tokenizer is read from."""
    try:
        with panics_as_errors():
            tokenizer = read_tokenizer(folder)
            _check_growth(tokenizer)
            return TokenCounter(tokenizer, folder.name)
    except CheckpointError as error:
        if error.key == "tokenizer_missing":
            return TokenCounter(None)
        raise
    except Exception as error:  # The tokenizer library raises bare exceptions, and panics.
        raise CheckpointError("tokenizer", folder=printable(folder.name), why=printable(why_of(error))) from error


def _check_growth(tokenizer: Tokenizer) -> None:
    """Raises ValueError for a tokenizer whose replacements make far more of a text than it is."""
    for part in (tokenizer.normalizer, tokenizer.decoder):
        growth = 1
        # The library tells what a part is made of by its state for pickling; the vocabulary is not in it.
        for content in () if part is None else _replacements(json.loads(part.__getstate__())):
            growth *= max(1, len(content))
            if growth > MAX_GROWTH:
                raise ValueError("its replacements make far more of a text than it is")


def _replacements(part: Any) -> Iterator[str]:
    """What is put in the place of something else, anywhere in a part of a tokenizer."""
    if isinstance(part, dict):
        if part.get("type") == "Replace" and isinstance(part.get("content"), str):
            yield part["content"]
        for inner in part.values():
            yield from _replacements(inner)
    elif isinstance(part, list):
        for inner in part:
            yield from _replacements(inner)


def _opening(tokenizer: Tokenizer) -> str:
    """The special tokens that the tokenizer puts before any text."""
    encoded = tokenizer.encode("x")
    opening = ""
    for token, is_special in zip(encoded.tokens, encoded.special_tokens_mask, strict=True):
        if not is_special:
            break
        opening += token
    return opening
