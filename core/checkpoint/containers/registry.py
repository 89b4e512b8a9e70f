"""The containers that quantized matrices come in; a container is how a quantizer lays them out in files."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Protocol

from core.checkpoint.containers.gptq import GptqContainer
from core.checkpoint.headers import TensorInfo
from core.checkpoint.quantization import MatrixFormat, Packing, QuantizedMatrix
from core.common.errors import CheckpointError
from core.common.values import quoted_json


class Container(Protocol):
    """Reads the quantization of a checkpoint from its configuration and headers; no I/O, any thread.

    `found` is the quantization's part of the configuration, `model` the name that sentences use.
    """

    @property
    def packings(self) -> Collection[Packing]: ...

    def accepts(self, found: Mapping[str, Any]) -> bool: ...

    def read_format(self, model: str, found: Mapping[str, Any]) -> MatrixFormat:
        """The format that `found` describes. Raises CheckpointError for one that cannot run."""

    def read(self, model: str, format: MatrixFormat, tensors: Mapping[str, TensorInfo]) -> dict[str, QuantizedMatrix]:
        """Every quantized matrix by name, in the order of `tensors`. Raises CheckpointError for shapes of another."""


CONTAINERS: tuple[Container, ...] = (GptqContainer(),)


def read_format(model: str, found: object) -> MatrixFormat:
    """What `found` in the configuration of `model` says. Raises CheckpointError for what cannot run."""
    if not isinstance(found, dict):
        raise CheckpointError("not_quantized", folder=model)
    for container in CONTAINERS:
        if container.accepts(found):
            return container.read_format(model, found)
    raise CheckpointError("other_quantization", folder=model, method=quoted_json(found.get("quant_method")).lower())


def read_matrices(model: str, format: MatrixFormat, tensors: Mapping[str, TensorInfo]) -> dict[str, QuantizedMatrix]:
    """Every quantized matrix by name. Raises CheckpointError where a tensor's shape contradicts `format`."""
    container = next(one for one in CONTAINERS if format.packing in one.packings)
    return container.read(model, format, tensors)
