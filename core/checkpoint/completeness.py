"""Whether files hold the weights that a load asks for, as far as names tell: before a download no model class is asked.

The layers of a dense model are alike, so what most of them have and one lacks is missing there.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from core.checkpoint.containers.registry import required_tensors
from core.checkpoint.families import families
from core.checkpoint.judgement import family_name
from core.checkpoint.layers import LAYER
from core.checkpoint.quantization import QuantizedMatrix
from core.checkpoint.text_config import has_pictures_left_out
from core.checkpoint.tied_head import EMBEDDINGS, has_own_head
from core.common.errors import CheckpointError

# Kinds of families whose layers differ from one another, and a family whose first layer has one norm less.
UNEVEN_KINDS, UNEVEN_FAMILIES = ("experts", "recurrent"), ("modernbert-decoder",)


def refuse_missing(
    model: str,
    config: Mapping[str, Any],
    tensors: Collection[str],
    matrices: Mapping[str, QuantizedMatrix],
    num_layers: int,
) -> CheckpointError | None:
    """Why the files of `model` cannot be loaded, or None where the names of `tensors` give no reason.

    "missing_weight" for what a matrix, a layer or the model lacks, "quantized_embedding" for one that is packed.
    """
    for name in matrices:
        if f"{name}.weight".endswith(EMBEDDINGS):
            return CheckpointError("quantized_embedding", folder=model, name=name)
    missing = sorted({*_missing_parts(tensors, matrices), *_missing_in_layers(config, tensors, matrices, num_layers)})
    missing = missing or sorted(_missing_ends(config, tensors, matrices))
    return CheckpointError("missing_weight", folder=model, name=missing[0], count=len(missing)) if missing else None


def _missing_parts(tensors: Collection[str], matrices: Mapping[str, QuantizedMatrix]) -> Iterator[str]:
    for matrix in matrices.values():
        yield from required_tensors(matrix) - set(tensors)


def _missing_in_layers(
    config: Mapping[str, Any], tensors: Collection[str], matrices: Mapping[str, QuantizedMatrix], num_layers: int
) -> Iterator[str]:
    if not _is_even(config):
        return
    found: dict[str, set[int]] = defaultdict(set)
    starts: Counter[str] = Counter()
    for name in _weights(tensors, matrices):
        if (match := LAYER.match(name)) is not None:
            found[name[match.end() :]].add(int(match[1]))
            starts[name[: match.start(1)]] += 1
    if len(starts) != 1:
        return
    (start,) = starts
    for ending, numbers in found.items():
        if 2 * len(numbers) > num_layers > len(numbers):
            yield from (f"{start}{number}.{ending}" for number in range(num_layers) if number not in numbers)


def _missing_ends(
    config: Mapping[str, Any], tensors: Collection[str], matrices: Mapping[str, QuantizedMatrix]
) -> Iterator[str]:
    """What lies before and after the layers, of the families that name them as Llama does."""
    if not _is_even(config) or not any(name.startswith("model.layers.") for name in tensors):
        return
    if not any(name.endswith(EMBEDDINGS) for name in tensors):
        yield "model.embed_tokens.weight"
    # A model with pictures says nothing of its text part's head; the file tells.
    is_untied = config.get("tie_word_embeddings") is False and not has_pictures_left_out(config)
    if is_untied and not has_own_head(tensors, matrices):
        yield "lm_head.weight"


def _is_even(config: Mapping[str, Any]) -> bool:
    family = families().get(family_name(config))
    return family is not None and family.kind not in UNEVEN_KINDS and family.name not in UNEVEN_FAMILIES


def _weights(tensors: Collection[str], matrices: Mapping[str, QuantizedMatrix]) -> Iterator[str]:
    """The weights by the names that they would have unquantized. Biases may be zeros that only some layers have."""
    parts = {name for matrix in matrices.values() for name in matrix.tensors.values()}
    yield from (name for name in tensors if name.endswith(".weight") and name not in parts)
    yield from (f"{name}.weight" for name in matrices)
