"""A SentencePiece model as a tokenizer of the tokenizers library, with the ids that SentencePiece itself gives.

SentencePiece joins, of all neighbours whose union is a piece, those whose union has the highest score. A list of merges
in the order of the scores does the same.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from core.tokenizer.special_tokens import SpecialTokens, put_added_tokens, set_opening

SPACE = "▁"
UNIGRAM, BPE = 1, 2
# Kinds of pieces, as sentencepiece_model.proto numbers them.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
# Longer than any piece: trainers stop at 16 characters, and all ways to cut a piece in two are tried.
MAX_PIECE_CHARS = 256
# Symbols that an author defined to mark a chat's turns; others, such as line breaks and tags, are text.
MARKUP = re.compile(r"<\|.+\|>|<(start|end)_of_\w+>|\[/?[A-Z_]{3,}\]")
# Classes that put no <s> before a text unless their settings ask for it.
WITHOUT_OPENING = frozenset(("BaichuanTokenizer", "YiTokenizer", "T5Tokenizer"))


def convert_sentencepiece(data: bytes, tokens: SpecialTokens) -> Tokenizer:
    """The tokenizer of the model that is `data`. Raises ValueError, or what protobuf raises, for what is none."""
    proto = _parse(data)
    trainer, spec, pieces, config = proto.trainer_spec, proto.normalizer_spec, proto.pieces, tokens.config
    names = _names(pieces, tokens)
    is_unigram = trainer.model_type == UNIGRAM
    symbols = [name for name, piece in zip(names, pieces, strict=True) if piece.type == USER_DEFINED]
    words = [] if is_unigram else [name for name in symbols if not _is_special(name, tokens)]
    tokenizer = Tokenizer(_unigram(proto, names) if is_unigram else _pairs(proto, names, tokens, bool(words)))
    has_prefix = spec.add_dummy_prefix and config.get("add_prefix_space") is not False
    # LlamaTokenizer put a space before every text between special tokens, until its setting `legacy` was false.
    is_legacy = config.get("legacy") is not False
    tokenizer.normalizer = normalizers.Sequence(list(_normalizers(spec, has_prefix and is_legacy)))
    splitters = list(_pre_tokenizers(words, has_prefix and not is_legacy))
    if splitters:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(splitters)
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if has_prefix else steps)
    special = [
        AddedToken(name, special=True, normalized=False)
        for name, piece in zip(names, pieces, strict=True)
        if piece.type in (CONTROL, UNKNOWN) or (piece.type == USER_DEFINED and _is_special(name, tokens))
    ]
    put_added_tokens(tokenizer, special, tokens)
    begins = config.get("add_bos_token", config.get("tokenizer_class") not in WITHOUT_OPENING)
    if begins is True and 0 <= trainer.bos_id < len(names):
        set_opening(tokenizer, tokens.roles.get("bos_token") or names[trainer.bos_id])
    return tokenizer


def _parse(data: bytes) -> Any:
    # Both take a while to import, and newer checkpoints need neither.
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    description: Any = importlib.import_module("sentencepiece.sentencepiece_model_pb2")
    proto = description.ModelProto()
    try:
        proto.ParseFromString(data)
    except DecodeError as error:
        raise ValueError("it is no SentencePiece model") from error
    names = {piece.piece for piece in proto.pieces}
    if proto.trainer_spec.model_type not in (UNIGRAM, BPE) or len(names) != len(proto.pieces) or not names:
        raise ValueError("it is no SentencePiece model of pairs or of words")
    if proto.trainer_spec.treat_whitespace_as_suffix or any(piece.type == UNUSED for piece in proto.pieces):
        raise ValueError("its SentencePiece model uses settings that are not known here")
    if max(map(len, names)) > MAX_PIECE_CHARS:
        raise ValueError(f"a piece has more than {MAX_PIECE_CHARS} characters")
    return proto


def _names(pieces: Any, tokens: SpecialTokens) -> list[str]:
    """The pieces by number, with those that the small files call otherwise, as fine-tuned models do."""
    names = [piece.piece for piece in pieces]
    taken = set(names)
    for number, token in tokens.added.items():
        if number < len(names) and token.content not in taken:
            names[number] = token.content
            taken.add(token.content)
    return names


def _is_special(name: str, tokens: SpecialTokens) -> bool:
    return name in tokens.special or MARKUP.fullmatch(name) is not None


def _pairs(proto: Any, names: list[str], tokens: SpecialTokens, has_words: bool) -> models.BPE:
    vocabulary = {name: number for number, name in enumerate(names)}
    for number, token in tokens.added.items():
        vocabulary.setdefault(token.content, number)
    unknown = next((name for name, piece in zip(names, proto.pieces, strict=True) if piece.type == UNKNOWN), None)
    return models.BPE(
        vocab=vocabulary,
        merges=list(_merges(proto.pieces, names)),
        unk_token=unknown,
        fuse_unk=True,
        byte_fallback=proto.trainer_spec.byte_fallback,
        # Symbols that stand alone after the splitting are taken whole; no merge makes them.
        ignore_merges=has_words,
    )


def _merges(pieces: Any, names: list[str]) -> Iterator[tuple[str, str]]:
    """Every way to make a piece of two others, the best piece first."""
    scores = {name: piece.score for name, piece in zip(names, pieces, strict=True) if piece.type == NORMAL}
    # Equal scores stay in the order of the vocabulary.
    for name in sorted(scores, key=lambda name: -scores[name]):
        for cut in range(1, len(name)):
            left, right = name[:cut], name[cut:]
            if left in scores and right in scores:
                yield left, right


def _unigram(proto: Any, names: list[str]) -> models.Unigram:
    unknown = next((number for number, piece in enumerate(proto.pieces) if piece.type == UNKNOWN), None)
    normal: list[float] = [piece.score for piece in proto.pieces if piece.type == NORMAL] or [0.0]

    def score(name: str, piece: Any) -> float:
        if piece.type == USER_DEFINED:
            # SentencePiece prefers what an author defined to everything else.
            return len(name) * max(normal) - 0.1
        # The name of a byte may stand in a text, where its letters are meant.
        return len(name) * min(normal) - 1 if piece.type == BYTE else float(piece.score)

    scores = [(name, score(name, piece)) for name, piece in zip(names, proto.pieces, strict=True)]
    return models.Unigram(scores, unknown, proto.trainer_spec.byte_fallback)


def _normalizers(spec: Any, has_prefix: bool) -> Iterator[Any]:
    if spec.precompiled_charsmap:
        yield normalizers.Precompiled(spec.precompiled_charsmap)
    if spec.remove_extra_whitespaces:
        yield normalizers.Strip(left=True, right=True)
        yield normalizers.Replace(Regex(" {2,}"), " ")
    if has_prefix:
        yield normalizers.Prepend(SPACE)
    yield normalizers.Replace(" ", SPACE)


def _pre_tokenizers(words: list[str], has_prefix: bool) -> Iterator[Any]:
    if has_prefix:
        # A text that begins with a space gets no other one: there transformers differs from SentencePiece as well.
        yield pre_tokenizers.Metaspace(SPACE, prepend_scheme="first", split=False)
    if words:
        # The longest symbol that fits, as SentencePiece takes it.
        pattern = "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))
        yield pre_tokenizers.Split(Regex(pattern), "isolated")
