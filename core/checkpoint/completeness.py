"""Whether files hold the weights that a load asks for and no others, as far as names tell: before a download no model
class is asked.

Of each family a table tells. Layers of one kind are alike, so what most of them have and one lacks is missing there.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from core.checkpoint.containers.registry import required_tensors
from core.checkpoint.expert_counts import COUNTS
from core.checkpoint.experts import count_experts, expert_matrix, first_name, missing_experts
from core.checkpoint.families import families
from core.checkpoint.family_tensors import (
    family_tensors,
    missing_weights,
    told_halves,
    unknown_weights,
    unlike_halves,
    unquantized,
)
from core.checkpoint.judgement import family_name
from core.checkpoint.layers import LAYER
from core.checkpoint.quantization import QuantizedMatrix
from core.checkpoint.text_config import has_pictures_left_out, text_config
from core.checkpoint.tied_head import EMBEDDINGS, has_own_head
from core.common.errors import CheckpointError
from core.common.values import is_whole

# Kinds of families whose layers differ from one another, and families of other kinds: the first layer has one norm
# less, or some layers' keys are their values too, or an earlier layer's.
UNEVEN_KINDS, UNEVEN_FAMILIES = ("experts", "recurrent"), ("modernbert-decoder", "gemma4_text")

HEAD = "lm_head.weight"
# No layer has more experts, and no more that are missing are counted: a stranger's names could make any number.
MAX_EXPERTS, MAX_MISSING = 1 << 14, 100_000


def refuse_unlike(
    model: str,
    config: Mapping[str, Any],
    tensors: Collection[str],
    matrices: Mapping[str, QuantizedMatrix],
    num_layers: int,
) -> CheckpointError | None:
    """Why the files of `model` cannot be loaded, or None where the names of `tensors` give no reason.

    "config_experts" for layers of more experts than the configuration says,
    "missing_weight" for what a matrix, a layer or the model lacks, "unexpected_weight" for what the family has no place
    for, "quantized_embedding" for one that is packed.
    """
    for name in matrices:
        if f"{name}.weight".endswith(EMBEDDINGS):
            return CheckpointError("quantized_embedding", folder=model, name=name)
    names, halves = unquantized(tensors, matrices), told_halves(config, num_layers)
    if (surplus := _more_experts(model, config, names)) is not None:
        return surplus
    # Biases may be zeros that only some layers have.
    weights = [name for name in names if name.endswith(".weight")]
    lacking, foreign = unlike_halves(config, names, halves)
    missing = {*_missing_parts(tensors, matrices), *lacking}
    missing |= set(_missing_in_layers(weights, list(_alike(config, halves, num_layers))))
    missing |= set(missing_weights(config, tensors, matrices, num_layers))
    missing |= set(islice(missing_experts(_num_experts(config), weights), MAX_MISSING))
    missing |= set(_missing_head(config, tensors, matrices))
    if missing:
        return CheckpointError("missing_weight", folder=model, name=min(missing), count=len(missing))
    unknown = {*unknown_weights(config, tensors, matrices), *foreign}
    if unknown:
        return CheckpointError("unexpected_weight", folder=model, name=min(unknown), count=len(unknown))
    return None


def _missing_parts(tensors: Collection[str], matrices: Mapping[str, QuantizedMatrix]) -> Iterator[str]:
    found = frozenset(tensors)
    for matrix in matrices.values():
        yield from required_tensors(matrix) - found


def _missing_in_layers(weights: Iterable[str], alike: Sequence[set[int]]) -> Iterator[str]:
    found: dict[str, set[int]] = defaultdict(set)
    starts: Counter[str] = Counter()
    for name in weights if alike else ():
        if (match := LAYER.match(name)) is not None and expert_matrix(name) is None:
            found[name[match.end() :]].add(int(match[1]))
            starts[name[: match.start(1)]] += 1
    if len(starts) != 1:
        return
    (start,) = starts
    for layers in alike:
        for ending, numbers in found.items():
            if 2 * len(layers & numbers) > len(layers):
                yield from (f"{start}{number}.{ending}" for number in layers - numbers)


def _alike(config: Mapping[str, Any], halves: Sequence[tuple[str, str]], num_layers: int) -> Iterator[set[int]]:
    """The numbers of layers that have the same weights; none where that is not known. halves: from told_halves()."""
    if _is_even(config):
        yield set(range(num_layers))
    for kind in set(halves):
        yield {number for number, one in enumerate(halves) if one == kind}


def _missing_head(
    config: Mapping[str, Any], tensors: Collection[str], matrices: Mapping[str, QuantizedMatrix]
) -> Iterator[str]:
    """The head, of the families that name it as Llama does. A model with pictures says nothing of its text part's
    head; the file tells."""
    family = family_tensors().get(family_name(config))
    is_untied = config.get("tie_word_embeddings") is False and not has_pictures_left_out(config)
    has_layers = any(name.startswith("model.layers.") for name in tensors)
    is_named_so = _is_even(config) or (family is not None and HEAD in family.known)
    if is_untied and has_layers and is_named_so and not has_own_head(tensors, matrices):
        yield HEAD


def _more_experts(model: str, config: Mapping[str, Any], names: Iterable[str]) -> CheckpointError | None:
    count, found = _num_experts(config), max(count_experts(names).values(), default=0)
    if count is None or found <= count:
        return None
    name = first_name(text_config(config), COUNTS) or COUNTS[0]
    return CheckpointError("config_experts", folder=model, name=name, value=count, found=found)


def _num_experts(config: Mapping[str, Any]) -> int | None:
    """How many experts a layer has; None where the configuration tells no number that can be, or several."""
    text = text_config(config)
    counts = {text[name] for name in COUNTS if is_whole(text.get(name))}
    return counts.pop() if len(counts) == 1 and 0 < min(counts) < MAX_EXPERTS else None


def _is_even(config: Mapping[str, Any]) -> bool:
    family = families().get(family_name(config))
    return family is not None and family.kind not in UNEVEN_KINDS and family.name not in UNEVEN_FAMILIES
