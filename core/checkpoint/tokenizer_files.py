"""The files that a tokenizer is read from, by name: core/tokenizer reads them."""

from __future__ import annotations

from collections.abc import Collection

TOKENIZER = "tokenizer.json"
# SentencePiece's own models.
MODELS = ("tokenizer.model", "spiece.model")
# GPT-2's pair.
VOCABULARY, MERGES = "vocab.json", "merges.txt"
# What names single tokens, beside any of those.
TOKENIZER_CONFIG, SPECIAL_TOKENS, ADDED_TOKENS = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
# Of tiktoken and of Mistral, which are not read.
OTHER_KINDS = (".tiktoken", "tekken.json")


def has_tokenizer(names: Collection[str]) -> bool:
    """Whether a folder with these files has a tokenizer of a kind that is read."""
    return any(name in names for name in (TOKENIZER, *MODELS)) or (VOCABULARY in names and MERGES in names)


def other_tokenizer(names: Collection[str]) -> str:
    """A file in which the model has its tokenizer in a way that is not read; "" where there is none."""
    return min((name for name in names if name.endswith(OTHER_KINDS)), default="")
