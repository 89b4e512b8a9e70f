"""The words of choices, by which a browser tells them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping


def told_apart(names: Mapping[str, str]) -> dict[str, str]:
    """The words for each key of `names`: its name, and the key where another one has the same name.

    Two choices with the same words are one for a browser: to open a page would choose the other one.
    """
    counts, words = Counter(names.values()), dict[str, str]()
    for key, name in names.items():
        word = f"{name} ({key})" if key and counts[name] > 1 else name
        while word in words:
            word = f"{word} ({key})"
        words[word] = key
    return {key: word for word, key in words.items()}
