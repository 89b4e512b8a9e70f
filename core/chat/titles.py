"""A title for a chat, proposed from the first thing that a person said in it.

Its words are the person's own: that takes no time and no model, and gives the same title every time.
"""

from __future__ import annotations

import re

MAX_TITLE_CHARS = 48
# Shorter sentences ("Hi!") say too little to find a chat by: the next one is taken along.
MIN_SENTENCE_CHARS = 12
# A Chinese character says about as much as half an English word.
WIDE = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")
FENCE = re.compile(r"```.*?(?:```|\Z)", re.DOTALL)
MARKS = re.compile(r"^[\s#>*+\-`_~|=]+|[*`]+", re.MULTILINE)
SENTENCE = re.compile(r"[^.!?。！？…]+(?:[.!?…]+(?=\s|$)|[。！？]+|[.!?…]+)?")


def propose_title(text: str) -> str:
    """The beginning of `text` on one line, without Markdown's marks: a sentence, or as many words as fit."""
    words = _plain(FENCE.sub(" ", text)) or _plain(text) or " ".join(text.split())
    title = ""
    for sentence in SENTENCE.findall(words) or [words]:
        title += sentence
        if _width(title.strip()) >= MIN_SENTENCE_CHARS or len(title) > MAX_TITLE_CHARS:
            break
    return shortened(title.strip() or words)


def shortened(text: str, limit: int = MAX_TITLE_CHARS) -> str:
    """`text` of at most `limit` characters, cut between words where there are any."""
    if len(text) <= limit:
        return text
    cut = text[: limit - 1]
    at_word = cut.rpartition(" ")[0]
    return (at_word if len(at_word) > limit // 2 else cut).rstrip(" ,;:、，；：") + "…"


def _plain(text: str) -> str:
    return " ".join(MARKS.sub(" ", text).split())


def _width(text: str) -> int:
    return len(text) + 2 * len(WIDE.findall(text))
