"""The tensors that the classes of families have, from core/checkpoint/family_tensors.csv.

transformers cannot be asked before a load: the table was written from its classes (tests/support/family_tensors.py).
What it says is said by the load too, once everything is downloaded.
"""

from __future__ import annotations

import csv
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from core.checkpoint.computed import COMPUTED
from core.checkpoint.experts import expert_matrix
from core.checkpoint.judgement import family_name
from core.checkpoint.layer_halves import layer_halves
from core.checkpoint.layers import LAYER
from core.checkpoint.quantization import QuantizedMatrix
from core.checkpoint.text_config import text_config

TABLE = Path(__file__).with_name("family_tensors.csv")
NUMBER = re.compile(r"(?<=\.)[0-9]+(?=\.)")


@dataclass(frozen=True, slots=True)
class FamilyTensors:
    """Names with "*" for the number of a layer: what each model of a family has, and what any of them has.

    halves: what each layer has besides that is "attention" or "recurrent", "dense" or "sparse".
    """

    needed: frozenset[str]
    known: frozenset[str]
    halves: Mapping[str, frozenset[str]]


@cache
def family_tensors() -> Mapping[str, FamilyTensors]:
    """What is known of each family, by its `model_type`."""
    lines = [line for line in TABLE.read_text("utf-8").splitlines() if not line.startswith("#")]
    halves: dict[str, dict[str, frozenset[str]]] = defaultdict(dict)
    whole: dict[str, tuple[frozenset[str], frozenset[str]]] = {}
    for row in csv.DictReader(lines):
        needed = frozenset(row["needed"].split())
        for name in row["families"].split():
            if row["layers"]:
                halves[name][row["layers"]] = needed
            else:
                whole[name] = needed, needed | frozenset(row["known"].split())
    return {name: FamilyTensors(*tensors, halves[name]) for name, tensors in whole.items()}


def missing_weights(
    config: Mapping[str, Any], tensors: Collection[str], matrices: Mapping[str, QuantizedMatrix], num_layers: int
) -> Iterator[str]:
    """The weights that every model of the family has and these files lack, by the names that they have unquantized."""
    family = family_tensors().get(family_name(config))
    found = {*tensors, *(f"{name}.weight" for name in matrices)}
    for name in family.needed if family else ():
        numbered = (name.replace("*", str(number)) for number in range(num_layers)) if "*" in name else [name]
        yield from (one for one in numbered if one not in found)


def unquantized(tensors: Collection[str], matrices: Mapping[str, QuantizedMatrix]) -> list[str]:
    """The names that files with these tensors would have without codes. A bias is one beside codes too."""
    parts = {part for one in matrices.values() for part in one.tensors.values() if not part.endswith(".bias")}
    return [*(name for name in tensors if name not in parts), *(f"{name}.weight" for name in matrices)]


def told_halves(config: Mapping[str, Any], num_layers: int) -> list[tuple[str, str]]:
    """The two halves of each layer, of families whose layers differ. Empty for others, and where the configuration does
    not tell."""
    family = family_tensors().get(family_name(config))
    return (layer_halves(text_config(config), num_layers) or []) if family and family.halves else []


def unlike_halves(
    config: Mapping[str, Any], names: Iterable[str], layers: Sequence[tuple[str, str]]
) -> tuple[list[str], list[str]]:
    """The weights that layers lack by their kind, and those that lie in layers of another kind, as experts in one that
    the configuration makes dense. By the names of the class.

    names: from unquantized(). layers: from told_halves().
    """
    family = family_tensors().get(family_name(config))
    if family is None or not layers:
        return [], []
    found: dict[int, set[str]] = defaultdict(set)
    for name in names:
        if (layer := LAYER.match(name)) is not None:
            found[int(layer[1])].add(_class_name(name))
    missing, foreign = list[str](), list[str]()
    for number, halves in enumerate(layers):
        needed = frozenset[str]().union(*(family.halves.get(half, ()) for half in halves))
        others = frozenset[str]().union(*(names for half, names in family.halves.items() if half not in halves))
        missing += [name.replace("*", str(number)) for name in needed - found[number]]
        foreign += [name.replace("*", str(number)) for name in (others - needed) & found[number]]
    return missing, foreign


def unknown_weights(
    config: Mapping[str, Any], tensors: Collection[str], matrices: Mapping[str, QuantizedMatrix]
) -> Iterator[str]:
    """The tensors that no model of the family has a place for; of a matrix its codes."""
    family = family_tensors().get(family_name(config))
    if family is None:
        return
    parts = {name for matrix in matrices.values() for name in matrix.tensors.values()}
    for name in tensors:
        if name not in parts and _class_name(name) not in family.known and not COMPUTED.search(name):
            yield name
    for name, matrix in matrices.items():
        if _class_name(f"{name}.weight") not in family.known:
            yield matrix.tensors["codes"]


def _class_name(name: str) -> str:
    """What the table calls the tensor `name`; those of single experts are parts of one."""
    one = expert_matrix(name)
    if one is not None and one.part in ("weight", "bias"):
        stacked = "down_proj" if one.projection == "down_proj" else "gate_up_proj"
        name = f"{one.stack}.{stacked}" + ("_bias" if one.part == "bias" else "")
    return NUMBER.sub("*", name)
