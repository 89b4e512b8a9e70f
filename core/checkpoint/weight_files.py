"""Which files of a folder or a repository are the model: the set that holds every tensor once.

An index, the numbers in the names of shards, one whole file, a name in quantize_config.json: each may say so, and each
may be wrong or left over from another copy of the model.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from core.checkpoint.headers import INDEX_SUFFIX, TensorInfo
from core.common.errors import CheckpointError
from core.common.values import printable

Tensors = Mapping[str, TensorInfo]
SUFFIX = ".safetensors"
MAIN_INDEX = "model" + INDEX_SUFFIX
# The codes of a quantized matrix, which no other model has: of GPTQ and AWQ, and of compressed-tensors.
CODES = (".qweight", ".weight_packed")
PICKLED = (".bin", ".pt")
QUANTIZED_NAME = re.compile(r"gptq|[2348]-?bit", re.IGNORECASE)
SHARD = re.compile(r"(?P<stem>.*?)[-_.]?(?P<number>[0-9]{1,6})-of-(?P<total>[0-9]{1,6})\.safetensors")


# What PEFT writes beside an adapter's weights, and how their names begin.
ADAPTER_CONFIG, ADAPTER_STEM = "adapter_config.json", "adapter_model"


class ModelFiles(Protocol):
    """The files at the top of a folder or a repository. Reading raises CheckpointError for what is damaged."""

    @property
    def name(self) -> str:
        """How sentences call the model."""

    @property
    def names(self) -> Collection[str]: ...

    def read_json(self, file: str) -> dict[str, Any] | None:
        """The object in a small file; None where there is no such file."""

    def read_header(self, file: str) -> dict[str, TensorInfo]: ...

    def read_bytes(self, tensor: TensorInfo, num_bytes: int) -> bytes:
        """The first `num_bytes` bytes of a tensor."""

    def error(self, key: str, **params: str | int) -> CheckpointError:
        """The error with this key, in words that fit where the files are."""


@dataclass(frozen=True, slots=True)
class WeightSet:
    """Files that may be the model. `stem` is their common name; `listed` the tensors that an index names, else None."""

    stem: str
    files: tuple[str, ...]
    listed: frozenset[str] | None = None


@dataclass(frozen=True, slots=True)
class Weights:
    """The files that are the model, and all tensors in them."""

    files: tuple[str, ...]
    tensors: dict[str, TensorInfo]


def find_weights(
    files: ModelFiles, read_base_name: Callable[[], str], fits_settings: Callable[[str, Tensors], bool] | None
) -> Weights:
    """The weights among `files`. `read_base_name` tells what the settings call them, or "".

    `fits_settings` tells whether tensors are those that the settings of the quantization describe; None where there are
    none. Raises CheckpointError where no set is whole, where several are and nothing tells which is meant, and
    "not_quantized" where there are no settings and an index tells that no matrix is quantized.
    """
    indexes = list(_indexes(files))
    sets = _whole_sets(files, indexes)
    if fits_settings is None and not (any(map(_may_be_quantized, sets)) if sets else _may_hide_codes(files)):
        raise files.error("not_quantized")
    if not sets:
        raise _nothing_whole(files, indexes)
    if len(sets) == 1:
        return _read(files, sets[0])
    base_name = read_base_name()
    sets.sort(key=lambda one: one.stem != base_name)
    first = sets[0]
    if (first.stem == base_name or first.listed) and _may_be_quantized(first):
        weights = _read(files, first)
        if has_codes(weights.tensors):
            return weights
    return _choose(files, list(_read_readable(files, sets)), fits_settings or (lambda *_: True))


def has_weights(names: Collection[str]) -> bool:
    """Whether any file may hold weights, in whatever form, or names such files: without one a model is incomplete."""
    return any(name.endswith((SUFFIX, INDEX_SUFFIX, *PICKLED)) for name in names)


def holds_adapter(names: Collection[str]) -> bool:
    """Whether the files are an adapter and no model: trainers put the base's config.json beside it, but no weights."""
    others = (name for name in names if not name.startswith(ADAPTER_STEM))
    return ADAPTER_CONFIG in names and not (
        "config.json" in names and any(name.endswith((SUFFIX, INDEX_SUFFIX)) for name in others)
    )


def has_codes(names: Collection[str]) -> bool:
    return any(name.endswith(CODES) for name in names)


def _may_hide_codes(files: ModelFiles) -> bool:
    """Whether there is no pickle, or one whose name speaks of a quantization."""
    pickles = [name for name in files.names if name.endswith(PICKLED)]
    return not pickles or any(QUANTIZED_NAME.search(name) for name in pickles)


def _may_be_quantized(one: WeightSet) -> bool:
    return one.listed is None or has_codes(one.listed)


def _read(files: ModelFiles, one: WeightSet) -> Weights:
    tensors: dict[str, TensorInfo] = {}
    for file in one.files:
        tensors |= files.read_header(file)
    return Weights(one.files, tensors)


def _read_readable(files: ModelFiles, sets: list[WeightSet]) -> Iterator[tuple[WeightSet, Weights]]:
    """Those sets that are no damaged left-over. Raises CheckpointError where all are damaged."""
    damaged: list[CheckpointError] = []
    for one in sets:
        try:
            yield one, _read(files, one)
        except CheckpointError as error:
            damaged.append(error)
    if len(damaged) == len(sets):
        raise damaged[0]


def _choose(
    files: ModelFiles, found: list[tuple[WeightSet, Weights]], fits_settings: Callable[[str, Tensors], bool]
) -> Weights:
    quantized = [(one, weights) for one, weights in found if has_codes(weights.tensors)]
    if not quantized:
        return found[0][1]
    parts = [weights for _, weights in quantized]
    if _are_disjoint(parts):
        return _joined(parts, [weights for _, weights in found if weights not in parts])
    fitting = [(one, weights) for one, weights in quantized if fits_settings(one.stem, weights.tensors)] or quantized
    if len({one.stem for one, _ in fitting}) > 1:
        first, second = sorted(one.files[0] for one, _ in fitting)[:2]
        raise files.error("several_weights", first=printable(first), second=printable(second))
    # A whole file beside its own shards: loaders of today look for the file first.
    return min((weights for _, weights in fitting), key=lambda weights: len(weights.files))


def _are_disjoint(found: list[Weights]) -> bool:
    return not any(a.tensors.keys() & b.tensors.keys() for a, b in itertools.combinations(found, 2))


def _joined(parts: list[Weights], others: list[Weights]) -> Weights:
    """Files of which each holds a part of the model, with those of `others` that hold the rest of it."""
    tensors = {name: tensor for one in parts for name, tensor in one.tensors.items()}
    files = {file for one in parts for file in one.files}
    owners = {name.split(".")[0] for name in tensors} | {"model", "transformer", "lm_head"}
    # The original of what is quantized is another model.
    taken = tensors.keys() | {name.rpartition(".")[0] + ".weight" for name in tensors if name.endswith(CODES)}
    for one in others:
        if not one.tensors.keys() & taken and {name.split(".")[0] for name in one.tensors} <= owners:
            tensors |= one.tensors
            files |= set(one.files)
    return Weights(tuple(sorted(files)), tensors)


def _whole_sets(files: ModelFiles, indexes: list[WeightSet | CheckpointError]) -> list[WeightSet]:
    """Every set of which no file is missing, and which is no part of another: those of an index first."""
    indexed = [one for one in indexes if isinstance(one, WeightSet) and one.files and not _missing(files, one)]
    numbered = [
        WeightSet(stem, tuple(sorted(shards.values())))
        for (stem, total), shards in _shards(files).items()
        if len(shards) == total and set(shards) in (set(range(1, total + 1)), set(range(total)))
    ]
    single = [
        WeightSet(name.removesuffix(SUFFIX), (name,)) for name in _weight_names(files) if not SHARD.fullmatch(name)
    ]
    found: list[WeightSet] = []
    for one in sorted([*indexed, *numbered, *single], key=lambda one: -len(one.files)):
        if not any(set(one.files) <= set(larger.files) for larger in found):
            found.append(one)
    order = [*indexed, *numbered, *single]
    return sorted(found, key=order.index)


def _weight_names(files: ModelFiles) -> list[str]:
    # What begins with a dot is a system's own, such as the "._" files of a Mac.
    return sorted(name for name in files.names if name.endswith(SUFFIX) and not name.startswith("."))


def _shards(files: ModelFiles) -> dict[tuple[str, int], dict[int, str]]:
    """The shards that are there by number, for each stem and how many there should be."""
    found: dict[tuple[str, int], dict[int, str]] = {}
    for name in _weight_names(files):
        if match := SHARD.fullmatch(name):
            found.setdefault((match["stem"], int(match["total"])), {})[int(match["number"])] = name
    return found


def _indexes(files: ModelFiles) -> Iterator[WeightSet | CheckpointError]:
    """What every index lists, the usual index first; an error for what is none or leads out of its folder."""
    found = [name for name in files.names if name.endswith(INDEX_SUFFIX) and not name.startswith(".")]
    for name in sorted(found, key=lambda name: (name != MAIN_INDEX, name)):
        try:
            weight_map = (files.read_json(name) or {}).get("weight_map")
        except CheckpointError as error:
            yield error
            continue
        if isinstance(weight_map, dict) and all(_is_weight_name(file) for file in weight_map.values()):
            shards = tuple(sorted(set(weight_map.values())))
            yield WeightSet(name.removesuffix(INDEX_SUFFIX), shards, frozenset(weight_map))
        else:
            yield files.error("bad_json", file=printable(name))


def _missing(files: ModelFiles, one: WeightSet) -> list[str]:
    return [file for file in one.files if file not in files.names]


def _nothing_whole(files: ModelFiles, indexes: list[WeightSet | CheckpointError]) -> CheckpointError:
    """What to say where no set is whole: which file is missing, if anything tells."""
    for one in indexes:
        if isinstance(one, CheckpointError):
            return one
        if missing := _missing(files, one):
            return files.error("missing_shard", file=printable(missing[0]), count=len(missing))
    for (_, total), shards in _shards(files).items():
        have = next(iter(shards.values()))
        match = SHARD.fullmatch(have)
        assert match is not None
        first = next((number for number in range(1, total + 1) if number not in shards), 0)
        name = have[: match.start("number")] + f"{first:0{len(match['number'])}}" + have[match.end("number") :]
        return files.error("missing_shard", file=printable(name), count=max(1, total - len(shards)))
    pickled = any(name.endswith(PICKLED) for name in files.names)
    return files.error("only_pickled" if pickled else "no_weights")


def _is_weight_name(name: object) -> bool:
    return is_plain_name(name) and str(name).endswith(SUFFIX)


def is_plain_name(name: object) -> bool:
    """Whether `name` is a file's bare name, which cannot lead out of its folder."""
    return isinstance(name, str) and name.isprintable() and name not in ("", "..") and Path(name).name == name
