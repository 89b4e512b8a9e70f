"""From tokens to text as they come: never half a character, never past a stop string; knows no model.

Text that might become a stop string is held back until it does or does not.
"""

from __future__ import annotations

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream


class TextStream:
    """Turns one answer's tokens into pieces of text. `stopped` is set once a stop string came."""

    def __init__(self, tokenizer: Tokenizer, stop: tuple[str, ...]) -> None:
        self._tokenizer = tokenizer
        self._decoder = DecodeStream(skip_special_tokens=True)
        self._stop = stop
        self._held = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """The text that is certain now that `token` came; empty while a character or a stop string is incomplete."""
        self._held += self._decoder.step(self._tokenizer, token) or ""
        first = min((at for at in (self._held.find(text) for text in self._stop) if at >= 0), default=-1)
        if first >= 0:
            self.stopped = True
            return self._release(first, drop_rest=True)
        return self._release(len(self._held) - held_back(self._held, self._stop))

    def flush(self) -> str:
        """What was held back, when the answer ends for another reason."""
        return self._release(len(self._held))

    def _release(self, length: int, drop_rest: bool = False) -> str:
        text, rest = self._held[:length], self._held[length:]
        self._held = "" if drop_rest else rest
        return text


def held_back(text: str, stop: tuple[str, ...]) -> int:
    """How many last characters of `text` may be the beginning of a stop string."""
    longest = max((len(word) for word in stop), default=0) - 1
    for length in range(min(longest, len(text)), 0, -1):
        if any(word.startswith(text[-length:]) for word in stop):
            return length
    return 0
