"""GPT-2's pair of files as a tokenizer: vocab.json has the tokens, merges.txt what is joined, in its order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from core.checkpoint.tokenizer_files import VOCABULARY
from core.common.values import is_whole, quoted_json
from core.tokenizer.special_tokens import SpecialTokens, put_added_tokens, set_opening

# How Qwen cuts a text into words: as GPT-4 does, but each digit alone.
QWEN_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN = frozenset(("Qwen2Tokenizer", "Qwen2TokenizerFast"))
GPT2 = frozenset(
    """
    GPT2Tokenizer GPT2TokenizerFast CodeGenTokenizer CodeGenTokenizerFast GPTNeoXTokenizer GPTNeoXTokenizerFast
    RobertaTokenizer RobertaTokenizerFast
    """.split()
)
# The families whose files leave the class out, by the beginning of `model_type`.
QWEN_FAMILIES = ("qwen2", "qwen3")


def convert_byte_level(
    vocabulary: Mapping[str, Any], merges: str, tokens: SpecialTokens, config: Mapping[str, Any]
) -> Tokenizer:
    """The tokenizer of these files; `config` is config.json. Raises ValueError for what is none, or of an unknown
    class: each class cuts a text into words in a way of its own."""
    if not vocabulary or not all(is_whole(number) and number >= 0 for number in vocabulary.values()):
        raise ValueError(f"{VOCABULARY} is no vocabulary")
    named = tokens.config.get("tokenizer_class")
    is_qwen = named in QWEN if named else str(config.get("model_type")).startswith(QWEN_FAMILIES)
    if named and not is_qwen and named not in GPT2:
        raise ValueError(f"its class {quoted_json(named)} is not known here")
    known = dict(vocabulary)
    for number, token in tokens.added.items():
        known.setdefault(token.content, number)
    tokenizer = Tokenizer(models.BPE(vocab=known, merges=list(_pairs(merges))))
    has_space = tokens.config.get("add_prefix_space") is True
    if is_qwen:
        tokenizer.normalizer = normalizers.NFC()
        words = pre_tokenizers.Split(Regex(QWEN_WORDS), "isolated")
        bytes_alone = pre_tokenizers.ByteLevel(add_prefix_space=has_space, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, bytes_alone])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=has_space)
    tokenizer.decoder = decoders.ByteLevel()
    put_added_tokens(tokenizer, [], tokens)
    if tokens.config.get("add_bos_token") is True and "bos_token" in tokens.roles:
        set_opening(tokenizer, tokens.roles["bos_token"])
    return tokenizer


def _pairs(merges: str) -> Iterator[tuple[str, str]]:
    for line in merges.splitlines():
        left, _, right = line.partition(" ")
        if right and not line.startswith("#version"):
            yield left, right
