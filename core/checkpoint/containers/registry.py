"""The containers that quantized matrices come in; a container is how a quantizer lays them out in files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any, Protocol

from core.checkpoint.containers.auto_round import AutoRoundContainer
from core.checkpoint.containers.awq import AwqContainer
from core.checkpoint.containers.compressed_tensors import CompressedTensorsContainer
from core.checkpoint.containers.gptq import GptqContainer
from core.checkpoint.headers import TensorInfo
from core.checkpoint.quantization import MatrixFormat, Packing, Part, QuantizedMatrix
from core.common.errors import CheckpointError
from core.common.values import quoted_json


class Container(Protocol):
    """Reads the quantization of a checkpoint from its configuration and headers; no I/O, any thread.

    `found` is the quantization's part of the configuration, `model` the name that sentences use. `endings` is how the
    names of a matrix's tensors end, `required` which of them each matrix has.
    """

    @property
    def packings(self) -> Collection[Packing]: ...

    @property
    def endings(self) -> Mapping[Part, str]: ...

    @property
    def required(self) -> Collection[Part]: ...

    def accepts(self, found: Mapping[str, Any]) -> bool: ...

    def read_format(self, model: str, found: Mapping[str, Any]) -> MatrixFormat:
        """The format that `found` describes. Raises CheckpointError for one that cannot run."""

    def read(self, model: str, format: MatrixFormat, tensors: Mapping[str, TensorInfo]) -> dict[str, QuantizedMatrix]:
        """Every quantized matrix by name, in the order of `tensors`; each has the bits and the group size of its own
        shapes, `format` in all else. Raises CheckpointError for shapes that contradict one another."""


FLOATS, WORDS, INDEXES = ("F16", "BF16", "F32"), ("I32", "U32"), ("I32", "I64")
# The types that each tensor of a matrix may have. Older releases of compressed-tensors stored zero points as bytes.
TYPES: dict[Part, tuple[str, ...]] = {
    "codes": WORDS,
    "zeros": WORDS,
    "scales": FLOATS,
    "input_groups": INDEXES,
    "bias": FLOATS,
    "shape": INDEXES,
}
# What vLLM 0.32 reads beside the containers here (its model_executor/layers/quantization).
VLLM_METHODS = frozenset(("fp8", "fbgemm_fp8", "fp_quant", "modelopt", "mxfp4", "quark", "torchao"))
# GptqContainer takes what names no method, so it comes last.
CONTAINERS: tuple[Container, ...] = (
    AutoRoundContainer(),
    AwqContainer(),
    CompressedTensorsContainer(),
    GptqContainer(),
)


def read_format(model: str, found: object) -> MatrixFormat:
    """What `found` in the configuration of `model` says. Raises CheckpointError for what cannot run."""
    if not isinstance(found, dict):
        raise CheckpointError("not_quantized", folder=model)
    return find_container(model, found).read_format(model, found)


def find_container(model: str, found: Mapping[str, Any]) -> Container:
    """What reads the quantization `found`, of which a part is enough. Raises CheckpointError where nothing does."""
    for container in CONTAINERS:
        if container.accepts(found):
            return container
    method = quoted_json(found.get("quant_method")).lower()
    if method in VLLM_METHODS:
        raise CheckpointError("other_quantization_vllm", folder=model, method=method)
    raise CheckpointError("other_quantization", folder=model, method=method)


def packed_as(format: MatrixFormat, tensors: Mapping[str, TensorInfo]) -> MatrixFormat:
    """`format` with the packing of the tensors where they are AWQ's under the name of GPTQ, or the other way round.

    Both have the same names. AWQ packs outputs into a word, GPTQ inputs: only there codes have a column an output.
    """
    columns = {
        (tensors[name].shape[1:], scales.shape[1:])
        for name in tensors
        if name.endswith(".qweight") and (scales := tensors.get(name.removesuffix("qweight") + "scales")) is not None
    }
    if format.packing == "awq" and columns and all(codes == scales for codes, scales in columns):
        return replace(format, packing="gptq")
    is_awq = all(codes and scales == (codes[0] * 8,) for codes, scales in columns)
    if format.packing in GptqContainer.packings and columns and is_awq:
        return replace(format, packing="awq", bits=4)
    return format


def container_of(format: MatrixFormat) -> Container:
    return next(one for one in CONTAINERS if format.packing in one.packings)


def read_matrices(model: str, format: MatrixFormat, tensors: Mapping[str, TensorInfo]) -> dict[str, QuantizedMatrix]:
    """Every quantized matrix by name. Raises CheckpointError where the shapes of its tensors contradict one another."""
    matrices = container_of(format).read(model, format, tensors)
    for matrix in matrices.values():
        for part, name in matrix.tensors.items():
            dtype = tensors[name].dtype
            if dtype not in TYPES[part] and not (dtype == "I8" and part == "zeros" and "shape" in matrix.tensors):
                raise CheckpointError("tensor_type", folder=model, tensor=name, dtype=dtype)
    return matrices


def has_matrices(format: MatrixFormat, tensors: Mapping[str, TensorInfo]) -> bool:
    ending = container_of(format).endings["codes"]
    return any(name.endswith(ending) for name in tensors)


def required_tensors(matrix: QuantizedMatrix) -> set[str]:
    """The names of the tensors that `matrix` needs, there or not."""
    container = container_of(matrix.format)
    return {matrix.name + container.endings[part] for part in container.required}


def commonest_format(stated: MatrixFormat, matrices: Collection[QuantizedMatrix]) -> MatrixFormat:
    """How most of `matrices` are quantized."""
    counts = Counter(matrix.format for matrix in matrices)
    return max(counts, key=lambda format: counts[format], default=stated)
