"""From tokens to text as they come: never half a character, never past a stop string.

Text that might become a stop string is held back until it does or does not.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from typing import Protocol

from tokenizers import Tokenizer

# What decoding makes of bytes that are no character, or not one yet.
BROKEN = "\N{REPLACEMENT CHARACTER}"
# This many tokens wait for the rest of a character before `_shorten` looks whether they can still become one.
MAX_WAITING = 8
# A character has four bytes at the most, so that its last byte comes after three tokens that hold the others.
MAX_UNFINISHED = 3


class TokenDecoder:
    """Turns tokens into whole characters, one token at a time.

    The tokenizers library's own DecodeStream raises when a character is followed by bytes that never become one.
    """

    def __init__(self, tokenizer: Tokenizer, before: list[int]) -> None:
        """`before` are the tokens right before the first one, where the text goes on from them."""
        self._tokenizer = tokenizer
        # The tokens of the last piece, then those that wait for the rest of a character. How a token is written
        # depends on whether something comes before it, so the last piece is decoded along.
        self._tokens = list(before)
        self._num_done = len(before)
        self._done = tokenizer.decode(before)
        # How many broken characters came before what waits. They are given out once something whole follows.
        self._num_broken = 0

    def push(self, token: int) -> str:
        """The further text now that `token` came; empty while a character is incomplete."""
        self._tokens.append(token)
        text = self._further_text()
        if not text or text.endswith(BROKEN):
            is_long = len(self._tokens) - self._num_done > MAX_WAITING
            return self._shorten() if is_long else ""
        self._tokens = self._tokens[self._num_done :]
        self._num_done = len(self._tokens)
        self._done = self._tokenizer.decode(self._tokens)
        return self._after_broken(text)

    def flush(self) -> str:
        """What waits at the end, without the character that never became whole."""
        return self._after_broken(self._further_text().rstrip(BROKEN))

    def restart(self) -> str:
        """`flush`; the next token begins a text of its own, as one does after a mark."""
        text = self.flush()
        self._tokens, self._num_done, self._done, self._num_broken = [], 0, "", 0
        return text

    def _shorten(self) -> str:
        """Keep only the waiting tokens that may still become a character, and give out what is certain.

        Else each token of a run that never becomes one would be decoded together with all before it.
        """
        done, waiting = self._tokens[: self._num_done], self._tokens[self._num_done :]
        # Special tokens and those that the tokenizer does not know say nothing, between the bytes of a character too.
        silent = _silent_tokens(self._tokenizer, waiting)
        waiting = [token for token in waiting if token not in silent]
        self._tokens = done + waiting
        if len(waiting) <= MAX_WAITING:
            return ""
        text = self._further_text()
        self._tokens = waiting[-MAX_UNFINISHED - 1 :]
        self._num_done = 1
        # The tail ends with the same bytes, and so with as many broken characters, however it begins.
        tail = self._tokenizer.decode(self._tokens)
        num_held = min(_num_broken_at_end(text), _num_broken_at_end(tail))
        self._done = tail[: len(tail) - num_held]
        certain = text[: len(text) - num_held]
        num_broken = _num_broken_at_end(certain)
        given_out = self._after_broken(certain[: len(certain) - num_broken])
        self._num_broken += num_broken
        return given_out

    def _after_broken(self, text: str) -> str:
        """`text` with the broken characters that came before it, if it is any."""
        if not text:
            return ""
        broken, self._num_broken = self._num_broken, 0
        return BROKEN * broken + text

    def _further_text(self) -> str:
        text = self._tokenizer.decode(self._tokens)
        if text.startswith(self._done):
            return text[len(self._done) :]
        # A run of byte tokens is decoded as a whole: one broken character would take back those before it.
        return self._tokenizer.decode(self._tokens[self._num_done :])


def _num_broken_at_end(text: str) -> int:
    return len(text) - len(text.rstrip(BROKEN))


def _silent_tokens(tokenizer: Tokenizer, tokens: list[int]) -> set[int]:
    """Which of `tokens` decoding leaves out wherever they stand."""
    added = tokenizer.get_added_tokens_decoder()
    return {
        token for token in tokens if tokenizer.id_to_token(token) is None or (token in added and added[token].special)
    }


class Splitter(Protocol):
    """Finds the thought in a growing text; see core/engine/thought.py."""

    @property
    def is_thinking(self) -> bool: ...

    @property
    def is_settled(self) -> bool:
        """Whether all that follows is the answer."""
        ...

    @property
    def closing(self) -> str:
        """What ends the thought where it is now."""
        ...

    def push(self, text: str) -> None: ...


def special_in(tokenizer: Tokenizer, texts: tuple[str, ...]) -> dict[int, str]:
    """The special tokens that stand in `texts`, with what each says."""
    added = tokenizer.get_added_tokens_decoder().items()
    special = {token: one.content for token, one in added if one.special and one.content}
    return {token: content for token, content in special.items() if any(content in text for text in texts)}


class StopFilter:
    """Lets a text through up to the first stop string, which is then `stop`; holds its end back while it may become
    one."""

    def __init__(self, stop: tuple[str, ...]) -> None:
        self._stop, self._held = tuple(sorted(stop)), ""
        # No stop string is empty.
        self.stop = ""

    @property
    def stopped(self) -> bool:
        return bool(self.stop)

    def push(self, text: str) -> str:
        """The text that is certain now that `text` came."""
        self._held += text
        if (found := find_stop(self._held, self._stop)) is not None:
            begin, end = found
            certain, self.stop, self._held = self._held[:begin], self._held[begin:end], ""
            return certain
        num_certain = len(self._held) - held_back(self._held, self._stop)
        certain, self._held = self._held[:num_certain], self._held[num_certain:]
        return certain

    def flush(self) -> str:
        """What was held back, where the text ends without a stop string."""
        text, self._held = self._held, ""
        return text


class TextStream:
    """Turns one answer's tokens into pieces of text. `stopped` is set once a stop string came.

    `shown` are texts of special tokens, which decoding would leave out, by the token. With a `splitter` no stop string
    is looked for in a thought: it may well try a line with a name, as those that end an answer. Nor is one in the text
    of the first `num_unstopped` tokens.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        stop: tuple[str, ...],
        before: list[int] | None = None,
        shown: Mapping[int, str] | None = None,
        splitter: Splitter | None = None,
        num_unstopped: int = 0,
    ) -> None:
        self._decoder, self._filter, self._shown = TokenDecoder(tokenizer, before or []), StopFilter(stop), shown or {}
        self._splitter, self._num_unstopped = splitter, num_unstopped

    @property
    def stopped(self) -> bool:
        return self._filter.stopped

    @property
    def stop(self) -> str:
        """The stop string that came; "" for none."""
        return self._filter.stop

    @property
    def is_thinking(self) -> bool:
        return self._splitter is not None and self._splitter.is_thinking

    @property
    def closing(self) -> str:
        """What ends the thought where it is now; empty where there is none."""
        return self._splitter.closing if self._splitter is not None else ""

    def push(self, token: int) -> str:
        """The text that is certain now that `token` came; empty while a character or a stop string is incomplete."""
        self._num_unstopped -= 1
        if token in self._shown:
            return self._filtered(self._decoder.restart() + self._shown[token])
        return self._filtered(self._decoder.push(token))

    def flush(self) -> str:
        """What was held back, when the answer ends for another reason."""
        return self._filtered(self._decoder.flush()) + self._filter.flush()

    def _filtered(self, text: str) -> str:
        push = self._push_unstopped if self._num_unstopped >= 0 else self._filter.push
        if self._splitter is None:
            return push(text)
        was_thinking = self._splitter.is_thinking
        self._splitter.push(text)
        is_thinking = self._splitter.is_thinking
        if self._splitter.is_settled:
            self._splitter = None
        return self._filter.flush() + text if was_thinking or is_thinking else push(text)

    def _push_unstopped(self, text: str) -> str:
        return self._filter.flush() + text


def find_stop(text: str, stop: tuple[str, ...]) -> tuple[int, int] | None:
    """Where the stop string begins and ends that is complete first. How the text was cut into pieces has no
    influence."""
    found = [(begin + len(word), begin) for word in stop if (begin := text.find(word)) >= 0]
    if not found:
        return None
    end, begin = min(found)
    return begin, end


def held_back(text: str, stop: tuple[str, ...]) -> int:
    """How many characters at the end of `text` may be the beginning of a stop string."""
    # In order, those that begin with a text stand together.
    stop = tuple(sorted(stop))
    longest = max((len(word) for word in stop), default=0) - 1
    for length in range(min(longest, len(text)), 0, -1):
        end = text[-length:]
        place = bisect_left(stop, end)
        if place < len(stop) and stop[place].startswith(end):
            return length
    return 0
