"""An adapter's copies of its base's tensors, held against the base: the same ones are passed over, others refused."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from core.checkpoint.adapters import NO_BASE, AdapterShape, faults_of_adapter
from core.checkpoint.base_copies import BaseCopy
from core.checkpoint.headers import TensorInfo, unreadable
from core.checkpoint.low_rank import LowRank
from core.checkpoint.same_numbers import NUMPY, are_same, read_pieces
from core.checkpoint.tied_head import EMBEDDINGS, HEADS, has_own_head
from core.common.errors import CheckpointError
from core.common.values import printable


def require_same_copies(
    adapter: AdapterShape,
    base: str,
    matrices: Mapping[str, LowRank],
    tensors: Mapping[str, TensorInfo],
    quantized: Collection[str] = (),
    folder: Path | None = None,
) -> None:
    """Raise CheckpointError for a copy that is not what `base` has there.

    matrices: what the adapter changes, by the base's names; quantized: the base's quantized matrices; folder: where its
    files lie. Without a folder, or before the adapter is fetched, types and shapes alone are compared.
    """
    changed = {matrix.name: name for name, matrix in matrices.items()}
    can_read = folder is not None and bool(adapter.copies) and adapter.weights.is_file()
    for copy in adapter.copies:
        module = changed.get(copy.module) or _find_module(copy, tensors, quantized)
        own = tensors.get(f"{module}.{copy.part}")
        if own is None or own.dtype not in NUMPY or copy.tensor.dtype not in NUMPY:
            raise CheckpointError("adapter_copy_unknown", adapter=adapter.name, base=base, name=_name(copy))
        if own.shape != copy.tensor.shape:
            if copy.module not in changed and own.shape[1:] == copy.tensor.shape[1:]:
                raise CheckpointError("adapter_resized", adapter=adapter.name, base=base, name=_name(copy),
                                      found=copy.tensor.shape[0], own=own.shape[0])  # fmt: skip
            raise _differs("adapter_base_copy", adapter, base, copy)
        if folder is not None and can_read and not _is_same(adapter, copy, folder / own.file, own):
            key = "adapter_base_copy" if copy.module in changed else "adapter_own_layer"
            raise _differs(key, adapter, base, copy)


def _find_module(copy: BaseCopy, tensors: Mapping[str, TensorInfo], quantized: Collection[str]) -> str | None:
    """The base's module for the embedding or the head that `copy` is of; None where it has none, or several."""
    if copy.own_name in tensors:
        return copy.module
    # The head of a tied model is its embedding.
    is_head = copy.is_head and has_own_head(tensors, quantized)
    endings = HEADS if is_head else EMBEDDINGS
    found = [name for name, one in tensors.items() if name.endswith(endings) and len(one.shape) == 2]
    return found[0].removesuffix(".weight") if len(found) == 1 else None


def _is_same(adapter: AdapterShape, copy: BaseCopy, file: Path, own: TensorInfo) -> bool:
    """Whether the copy has the base's numbers. Files that did not change are compared once."""
    with faults_of_adapter(adapter.path):
        mark = _mark(adapter.weights)
    return _are_same(adapter.path, adapter.weights, copy.tensor, file, own, mark, _mark(file))


def _mark(file: Path) -> tuple[int, int]:
    """What changes with the file."""
    try:
        status = file.stat()
    except OSError as error:
        raise unreadable(file, error) from error
    return status.st_size, status.st_mtime_ns


@lru_cache(1024)
def _are_same(
    folder: Path,
    weights: Path,
    copy: TensorInfo,
    file: Path,
    own: TensorInfo,
    mark: tuple[int, int],
    own_mark: tuple[int, int],
) -> bool:
    """The marks only say that nothing has changed since."""
    return are_same(_adapters_pieces(folder, weights, copy), read_pieces(file, own))


def _adapters_pieces(folder: Path, weights: Path, copy: TensorInfo) -> Iterator[Any]:
    with faults_of_adapter(folder):
        yield from read_pieces(weights, copy)


def _differs(key: str, adapter: AdapterShape, base: str, copy: BaseCopy) -> CheckpointError:
    trained_on = adapter.base_name or NO_BASE
    return CheckpointError(key, adapter=adapter.name, base=base, trained_on=trained_on, name=_name(copy))


def _name(copy: BaseCopy) -> str:
    return printable(copy.own_name)
