"""The bytes that a single token stands for. A token may be half a character, which no text can say."""

from __future__ import annotations

import json
import re
from functools import cached_property

from tokenizers import Tokenizer

BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
# Sentencepiece's mark of a space.
SPACE = "\u2581"


class TokenBytes:
    """The bytes of each token of one tokenizer, as its decoder makes them, a special token's as it is written."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def of(self, token: int) -> bytes:
        """Empty where the vocabulary has no such token."""
        if token in self._added:
            return self._added[token].encode("utf-8", "replace")
        piece = self._tokenizer.id_to_token(token)
        if piece is None:
            return b""
        if self._is_byte_level:
            return b"".join(_byte_of(letter) for letter in piece)
        if found := BYTE.fullmatch(piece):
            return bytes([int(found[1], 16)])
        return piece.replace(SPACE, " ").encode("utf-8", "replace")

    @cached_property
    def _added(self) -> dict[int, str]:
        return {token: one.content for token, one in self._tokenizer.get_added_tokens_decoder().items()}

    @cached_property
    def _is_byte_level(self) -> bool:
        decoder = self._tokenizer.decoder
        if decoder is None:
            return False
        state = decoder.__getstate__()
        return "ByteLevel" in json.dumps(json.loads(state if isinstance(state, str) else bytes(state)))


def _letters() -> dict[str, int]:
    """GPT-2's letters for the 256 bytes: themselves where they can be seen, the others from U+0100 on."""
    seen = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in seen]
    return {chr(byte): byte for byte in seen} | {chr(256 + place): byte for place, byte in enumerate(hidden)}


LETTERS = _letters()


def _byte_of(letter: str) -> bytes:
    return bytes([LETTERS[letter]]) if letter in LETTERS else letter.encode("utf-8", "replace")
