"""Tokens beside a tokenizer's own vocabulary, and which tokens are special, from the small files that name them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, processors

from core.checkpoint.headers import read_json
from core.checkpoint.tokenizer_files import ADDED_TOKENS, SPECIAL_TOKENS, TOKENIZER_CONFIG
from core.common.values import is_whole

ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
MAX_ID = 2**24
# How many numbers between two tokens may belong to none.
MAX_GAP = 1024
# Gemma 3 has 6,400.
MAX_ADDED = 20_000


@dataclass(frozen=True, slots=True)
class SpecialTokens:
    """`config` is tokenizer_config.json. `added` has the tokens with a number of their own, `special` the words of all
    that are special, `roles` the words for "bos_token" and the like where they are named."""

    config: Mapping[str, Any]
    added: Mapping[int, AddedToken]
    special: frozenset[str]
    roles: Mapping[str, str]


def read_special_tokens(folder: Path) -> SpecialTokens:
    """Raises CheckpointError for a file that is no JSON object."""
    config, named, numbers = (
        read_json(folder / name) or {} for name in (TOKENIZER_CONFIG, SPECIAL_TOKENS, ADDED_TOKENS)
    )
    # The first programs wrote an empty text for each of them.
    roles = [(role, word) for source in (named, config) for role in ROLES if (word := _word(source.get(role)))]
    others = {word for source in (named, config) for word in _words(source.get("additional_special_tokens"))}
    special = frozenset(word for _, word in roles) | others
    added = {number: _token(word, {}, word in special) for word, number in numbers.items() if _is_number(number)}
    described = config.get("added_tokens_decoder")
    for text, entry in (described if isinstance(described, dict) else {}).items():
        if text.isdecimal() and _is_number(number := int(text[:9])) and (word := _word(entry)):
            settings = entry if isinstance(entry, dict) else {}
            added[number] = _token(word, settings, settings.get("special") is True or word in special)
    return SpecialTokens(config, dict(sorted(added.items())), special, dict(roles))


def _is_number(value: object) -> bool:
    return is_whole(value) and 0 <= value < MAX_ID


def _token(word: str, settings: Mapping[str, Any], is_special: bool) -> AddedToken:
    sides = {name: settings.get(name) is True for name in ("lstrip", "rstrip", "single_word")}
    return AddedToken(word, special=is_special, normalized=False, **sides)


def _words(found: object) -> Iterator[str]:
    for one in found if isinstance(found, list) else []:
        if word := _word(one):
            yield word


def _word(found: object) -> str:
    """A token's text, which files write alone or with settings."""
    content = found.get("content") if isinstance(found, dict) else found
    return content if isinstance(content, str) else ""


def put_added_tokens(tokenizer: Tokenizer, special: list[AddedToken], tokens: SpecialTokens) -> None:
    """Let `tokenizer` find its `special` tokens in a text, and those of `tokens` at their own numbers."""
    entries = {token.content: token for token in special}
    size = tokenizer.get_vocab_size()
    for number, token in tokens.added.items():
        # What is in the vocabulary keeps its number; others get the next one that is free.
        if tokenizer.token_to_id(token.content) is None:
            if not size <= number <= size + MAX_GAP:
                raise ValueError(f"the token {token.content} has the number {number}, and there are {size} before it")
            for free in range(size, number):
                entries[f"<unused {free}>"] = AddedToken(f"<unused {free}>", normalized=False)
            size = number + 1
        entries.setdefault(token.content, token)
    for word in sorted(tokens.special):
        if word in entries or tokenizer.token_to_id(word) is not None:
            entries[word] = AddedToken(word, special=True, normalized=False)
    _add(tokenizer, entries.values())


def complete(tokenizer: Tokenizer, tokens: SpecialTokens) -> None:
    """Add what a tokenizer.json lacks of the tokens that the small files number on from its own, as fine-tuned models
    have them beside the tokenizer of the model that they were made of."""
    size, missing = tokenizer.get_vocab_size(), []
    for number, token in tokens.added.items():
        if number == size and tokenizer.token_to_id(token.content) is None:
            missing.append(token)
            size += 1
    _add(tokenizer, missing)


def _add(tokenizer: Tokenizer, entries: Collection[AddedToken]) -> None:
    # All at once: the library compares each with all others, and prepares its search anew for every call.
    if len(entries) > MAX_ADDED:
        raise ValueError(f"more than {MAX_ADDED} tokens are added")
    tokenizer.add_tokens(list(entries))


def set_opening(tokenizer: Tokenizer, word: str) -> None:
    """Put the token `word` before every text that is encoded with its special tokens."""
    number = tokenizer.token_to_id(word)
    if number is not None:
        tokenizer.post_processor = processors.TemplateProcessing([f"{word}:0", "$A:0"], special_tokens=[(word, number)])
