"""Whether a checkpoint's files hold exactly the tensors, of the shapes, that a model has a place for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from core.checkpoint.checkpoint import Checkpoint
from core.checkpoint.computed import COMPUTED
from core.checkpoint.containers.registry import required_tensors
from core.checkpoint.experts import ROUTER, expert_matrix
from core.checkpoint.quantization import QuantizedMatrix
from core.common.errors import CheckpointError
from core.worker.model.expert_stacks import ExpertStack, find_stacks


def check_names(checkpoint: Checkpoint, model: PreTrainedModel) -> None:
    """Raise CheckpointError unless the files hold exactly the tensors that the model needs."""
    stacks = find_stacks(model, checkpoint)
    sizes = matrix_features(checkpoint, model, stacks)
    needed = set(model.state_dict())
    packed: set[str] = set()
    for stack in stacks.values():
        needed -= stack.stacked
        needed |= stack.needed(checkpoint.matrices)
    for name, matrix in checkpoint.matrices.items():
        needed.discard(f"{name}.weight")
        needed |= required_tensors(matrix)
        packed |= set(matrix.tensors.values())
    tied = tied_names(model)
    found = set(checkpoint.tensors) - tied
    missing = sorted(name for name in needed - found - tied if not COMPUTED.search(name))
    unexpected = sorted(found - needed - packed)
    if missing:
        raise CheckpointError("missing_weight", folder=checkpoint.name, name=missing[0], count=len(missing))
    if unexpected:
        raise CheckpointError("unexpected_weight", folder=checkpoint.name, name=unexpected[0], count=len(unexpected))
    plain = found - packed
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if name in plain}
    for stack in stacks.values():
        wanted |= dict(stack.shapes(plain))
    for name, matrix in checkpoint.matrices.items():
        rows, columns = sizes[name]
        wanted[matrix.tensors["codes"]] = codes_shape(checkpoint, matrix, rows, columns)
        if "bias" in matrix.tensors:
            wanted[matrix.tensors["bias"]] = (columns,)
    check_shapes(checkpoint, wanted)


def matrix_features(
    checkpoint: Checkpoint, model: PreTrainedModel, stacks: Mapping[str, ExpertStack]
) -> dict[str, tuple[int, int]]:
    """How many inputs and outputs the model has each quantized matrix with. Raises CheckpointError "unexpected_weight"
    for one that it has no place for."""
    modules = dict(model.named_modules())
    found = {}
    for name, matrix in checkpoint.matrices.items():
        one = expert_matrix(name)
        stack = stacks.get(one.stack) if one is not None else None
        if one is not None and stack is not None and one.number < stack.num_experts:
            found[name] = stack.features(one)
        elif isinstance(module := modules.get(name), (nn.Linear, Conv1D)) or is_router(name, module):
            found[name] = features_of(module)
        else:
            raise CheckpointError("unexpected_weight", folder=checkpoint.name, name=matrix.tensors["codes"], count=1)
    return found


def is_router(name: str, module: nn.Module | None) -> bool:
    """Whether the matrix `name` chooses experts and its `module` has it as its own weight."""
    return ROUTER.search(name) is not None and getattr(getattr(module, "weight", None), "ndim", 0) == 2


def features_of(module: Any) -> tuple[int, int]:
    """How many inputs and outputs a matrix has. GPT-2's are written as [in, out]."""
    sides: tuple[int, int] = tuple(module.weight.shape)
    return sides if isinstance(module, Conv1D) else sides[::-1]


def tied_names(model: PreTrainedModel) -> set[str]:
    """The weights that are another weight under a second name, where this model's configuration ties them."""
    if not getattr(model.config, "tie_word_embeddings", False):
        return set()
    return set(model._tied_weights_keys or ())


def codes_shape(checkpoint: Checkpoint, matrix: QuantizedMatrix, rows: int, columns: int) -> tuple[int, ...]:
    """The shape of the codes of a matrix [rows, columns]. Raises CheckpointError for rows that fill no whole words."""
    words = -(-rows * matrix.format.bits // 32)
    shape = (columns, words) if matrix.format.packing == "pack_quantized" else (words, columns)
    if matrix.format.packing == "awq":
        shape = (rows, -(-columns * matrix.format.bits // 32))
    codes = matrix.tensors["codes"]
    if checkpoint.tensors[codes].shape == shape and matrix.in_features != rows:
        raise CheckpointError("padded_inputs", folder=checkpoint.name, name=codes, inputs=rows)
    return shape


def check_shapes(checkpoint: Checkpoint, wanted: Mapping[str, tuple[int, ...]]) -> None:
    for name, shape in sorted(wanted.items()):
        found = checkpoint.tensors[name].shape
        if found != shape:
            raise CheckpointError(
                "weight_shape", folder=checkpoint.name, name=name, found=str(list(found)), wanted=str(list(shape))
            )


def check_stored_shape(checkpoint: Checkpoint, matrix: QuantizedMatrix, name: str, stored: torch.Tensor) -> None:
    """Raise CheckpointError where a matrix's shape, stored as numbers, is not that of its tensors."""
    found, wanted = stored.flatten().tolist(), [matrix.out_features, matrix.in_features]
    if found != wanted:
        raise CheckpointError("weight_shape", folder=checkpoint.name, name=name, found=str(found), wanted=str(wanted))
