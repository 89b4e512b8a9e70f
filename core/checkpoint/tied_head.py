"""The head of a model whose configuration says that it is the embedding.

Files may hold one all the same: most often the embedding again, sometimes a head of its own, which then counts.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from typing import Any

from core.checkpoint.headers import TensorInfo
from core.checkpoint.text_config import text_config
from core.checkpoint.weight_files import ModelFiles
from core.common.errors import CheckpointError

HEADS = ("lm_head.weight", "embed_out.weight")
EMBEDDINGS = ("embed_tokens.weight", "embed_in.weight", "wte.weight", "word_embeddings.weight")
# Two pieces of this are compared before a download; a load compares all.
PIECE_BYTES = 1 << 16


def says_tied(config: Mapping[str, Any]) -> bool:
    """Whether a configuration says that the head is the embedding."""
    return bool(text_config(config).get("tie_word_embeddings", config.get("tie_word_embeddings", False)))


def tied_pairs(config: Mapping[str, Any], tensors: Mapping[str, TensorInfo]) -> Iterator[tuple[str, str]]:
    """The names of each head in the files of a model that ties it, with an embedding of the same type and shape."""
    if not says_tied(config):
        return
    for head, one in tensors.items():
        if head.endswith(HEADS):
            for embedding, other in tensors.items():
                if embedding.endswith(EMBEDDINGS) and (one.dtype, one.shape) == (other.dtype, other.shape):
                    yield head, embedding


def repeated_heads(config: Mapping[str, Any], tensors: Mapping[str, TensorInfo], files: ModelFiles) -> frozenset[str]:
    """The heads that repeat the embedding, as far as two pieces of them tell. Asks `files` for a few KiB."""
    pairs = tied_pairs(config, tensors)
    try:
        return frozenset(
            head
            for head, embedding in pairs
            if all(_piece(files, tensors[head], part) == _piece(files, tensors[embedding], part) for part in (1, 2))
        )
    except CheckpointError:  # A mirror that sends no parts: then what is there counts.
        return frozenset()


def has_own_head(tensors: Collection[str], matrices: Collection[str], repeated: Collection[str] = ()) -> bool:
    """Whether files of these tensors and quantized matrices hold a head that is not one of those `repeated`."""
    found = {*tensors, *(f"{name}.weight" for name in matrices)}
    return any(name.endswith(HEADS) for name in found.difference(repeated))


def tied_head(tensors: Mapping[str, TensorInfo], matrices: Collection[str] = ()) -> dict[str, tuple[int, int]]:
    """The (in, out) features of the head of files that hold none, by its name: those of the embedding. Empty where they
    hold one. matrices: the quantized ones."""
    if has_own_head(tensors, matrices):
        return {}
    shapes = [one.shape for name, one in tensors.items() if name.endswith(EMBEDDINGS) and len(one.shape) == 2]
    return {"lm_head": (shapes[0][1], shapes[0][0])} if shapes else {}


def _piece(files: ModelFiles, tensor: TensorInfo, part: int) -> bytes:
    """What lies after `part` thirds of the tensor."""
    begin = tensor.begin + tensor.num_bytes * part // 3
    return files.read_bytes(replace(tensor, begin=begin), PIECE_BYTES)
