"""From a checkpoint's files to transformers' own model, every tensor accounted for.

transformers' loader is not used: it leaves a missing matrix at random values with a warning, and has no progress.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from accelerate import init_empty_weights
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from core.checkpoint.checkpoint import Checkpoint
from core.checkpoint.computed import COMPUTED
from core.checkpoint.containers.registry import required_tensors
from core.checkpoint.experts import ROUTER, expert_matrix
from core.checkpoint.layers import LAYER
from core.checkpoint.quantization import QuantizedMatrix
from core.checkpoint.settled import settle
from core.checkpoint.tied_head import has_own_head
from core.common.errors import CheckpointError, EngineError
from core.memory.expert_shapes import expert_groups
from core.memory.kernels.cpu import DENSE
from core.memory.kernels.spec import KernelSpec
from core.memory.matrix_groups import MatrixGroup, merged_matrices
from core.memory.model_shape import ModelShape
from core.worker.model import attention, own_attention
from core.worker.model.backends.base import KernelBackend
from core.worker.model.backends.dense import DenseBackend
from core.worker.model.backends.registry import make_backend
from core.worker.model.device_map import DeviceMap, add_device_hooks, embedding_name
from core.worker.model.expert_stacks import ExpertStack, find_stacks
from core.worker.model.fixed_rope import settle_rope
from core.worker.model.matrix_tensors import GroupTensors, MatrixTensors, SeparateTensors, drop_zero_bias
from core.worker.model.merged_linear import make_slices
from core.worker.model.model_config import read_config
from core.worker.model.recurrent_layers import kept_dtype, replace_recurrent_layers
from core.worker.model.repack import REPACKED, repack

log = logging.getLogger(__name__)
CPU = torch.device("cpu")


def load_model(
    checkpoint: Checkpoint,
    shape: ModelShape,
    kernel: KernelSpec,
    device_map: DeviceMap,
    dtype: torch.dtype,
    max_rows: int,
    on_bytes: Callable[[int], None],
    context_tokens: int = 0,
) -> PreTrainedModel:
    """The model with every weight at its place; `on_bytes` hears how many bytes each tensor had.

    `shape.is_merged` keeps matrices that share their input as one. `context_tokens` decides the rope of a model that
    has several; 0 takes the one for short texts.

    Raises EngineError for an architecture that cannot run here, CheckpointError where the files do not hold exactly
    the model that the configuration describes.
    """
    checkpoint = checkpoint if checkpoint.settled else settle(checkpoint)
    model = build_empty(checkpoint, dtype, context_tokens)
    check_names(checkpoint, model)
    backends = {device: make_backend(kernel, dtype, device) for device in device_map.devices}
    shapes = [matrix for matrix, _ in shape.matrices]
    for backend in backends.values():
        backend.reserve(shapes, max_rows)
    try:
        read_weights(model, checkpoint, backends, device_map, on_bytes, shape.is_merged)
    except (SafetensorError, OSError) as error:
        raise CheckpointError("corrupt_weights", folder=checkpoint.name, file=str(error)) from error
    put_buffers(model, device_map)
    add_device_hooks(model, device_map)
    return model.eval().requires_grad_(False)


def build_empty(checkpoint: Checkpoint, dtype: torch.dtype, context_tokens: int) -> PreTrainedModel:
    """The model's modules with no memory behind their weights."""
    config = read_config(checkpoint, context_tokens)
    settled = checkpoint.settled
    if settled is not None and settled.notes:
        log.warning("%s is not as its configuration says: %s", checkpoint.name, ", ".join(settled.notes))
    if has_own_head(checkpoint.tensors, checkpoint.matrices, checkpoint.repeated):
        config.tie_word_embeddings = False
    elif checkpoint.repeated:
        config.tie_word_embeddings = True
    is_own = config.model_type in own_attention.FAMILIES
    try:
        with init_empty_weights(include_buffers=False):
            model = AutoModelForCausalLM.from_config(
                config,
                dtype=dtype,
                attn_implementation=own_attention.BUILT_AS if is_own else attention.register(),
                trust_remote_code=False,
            )
        own_attention.replace_own_attention(model)
        replace_recurrent_layers(model)
        settle_rope(model, context_tokens)
        return model
    except (ValueError, ImportError, AttributeError, TypeError) as error:
        raise EngineError("architecture", model=checkpoint.name, architecture=checkpoint.architecture) from error


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


def read_weights(
    model: PreTrainedModel,
    checkpoint: Checkpoint,
    backends: Mapping[torch.device, KernelBackend],
    device_map: DeviceMap,
    on_bytes: Callable[[int], None],
    is_merged: bool,
) -> None:
    """Put every tensor into the model, in the order of the files; a matrix is made as soon as it is whole."""
    embedding, first = embedding_name(model), backends[device_map.first]
    # What goes to several devices is read to where none of them is; what is packed otherwise is packed anew there.
    is_repacked = any(matrix.format.packing in REPACKED for matrix in checkpoint.matrices.values())
    reading_device = CPU if device_map.is_split or is_repacked else first.reading_device
    merge = merged_matrices if is_merged else expert_groups
    groups = {name: group for group in merge(checkpoint, first.spec.merges_permuted) for name in group.sizes}
    parts = {name: (one, part) for one in checkpoint.matrices.values() for part, name in one.tensors.items()}
    stacks = find_stacks(model, checkpoint)
    full_precision = kept_in_float32(model)
    waiting: dict[str, GroupTensors] = {}
    tied = tied_names(model)
    for name, read in read_tensors(checkpoint, reading_device, on_bytes):
        backend = backends[device_map.of(name, embedding)]
        one = expert_matrix(name)
        stack = stacks.get(one.stack) if one is not None else None
        if name in parts:
            matrix, part = parts[name]
            if part == "shape":
                check_stored_shape(checkpoint, matrix, name, read)
                continue
            group = groups.get(matrix.name)
            key = matrix.name if group is None else next(iter(group.sizes))
            if key not in waiting:
                waiting[key] = collect(checkpoint, backend, matrix, group)
            tensor = repack(matrix.format, part, read).to(backend.reading_device)
            if waiting[key].put(matrix.name, part, tensor):
                members = waiting.pop(key).members()
                drop_zero_bias(members)
                if stack is None:
                    put_matrix(model, backend, members, key, group)
                elif stack.put(group.sizes if group else [key], members):
                    put_module(model, stack.name, stack.make(backend))
        elif one is not None and stack is not None:
            if stack.put_plain(one, read.to(backend.device, backend.dtype)):
                put_module(model, stack.name, stack.make(backend))
        elif name not in tied:
            is_kept = full_precision is not None and full_precision.search(name)
            put_tensor(model, name, read.to(backend.device), torch.float32 if is_kept else backend.dtype)
    model.tie_weights()


def check_stored_shape(checkpoint: Checkpoint, matrix: QuantizedMatrix, name: str, stored: torch.Tensor) -> None:
    """Raise CheckpointError where a matrix's shape, stored as numbers, is not that of its tensors."""
    found, wanted = stored.flatten().tolist(), [matrix.out_features, matrix.in_features]
    if found != wanted:
        raise CheckpointError("weight_shape", folder=checkpoint.name, name=name, found=str(found), wanted=str(wanted))


def collect(
    checkpoint: Checkpoint, backend: KernelBackend, matrix: QuantizedMatrix, group: MatrixGroup | None
) -> GroupTensors:
    if group is None:
        return SeparateTensors([matrix])
    return backend.collect(group, [checkpoint.matrices[name] for name in group.sizes])


def put_matrix(
    model: PreTrainedModel, backend: KernelBackend, members: list[MatrixTensors], name: str, group: MatrixGroup | None
) -> None:
    """Put the matrix `name`, or the slices of its whole `group`, into the model; a router's as it was before it was
    quantized."""
    if ROUTER.search(name):
        dense = DenseBackend(DENSE, backend.dtype, CPU).make([members[0].to(CPU)])
        for part, tensor in dense.named_parameters():
            put_tensor(model, f"{name}.{part}", tensor.to(backend.device), backend.dtype)
        return
    module = backend.make(members)
    for one, part in (make_slices(module, group) if group else {name: module}).items():
        put_module(model, one, part)


def kept_in_float32(model: PreTrainedModel) -> re.Pattern[str] | None:
    """The tensors that the model's class computes in float32 whatever the others are in, such as a router's biases."""
    names = getattr(model, "_keep_in_fp32_modules_strict", None)
    return re.compile("|".join(rf"(?:^|\.){re.escape(name)}(?:$|\.)" for name in names)) if names else None


def put_buffers(model: PreTrainedModel, device_map: DeviceMap) -> None:
    """Move what a model works out for itself, such as the rotary frequencies: only weights began without memory.

    Outside of the layers such things are asked for before the first one.
    """
    for owner, module in model.named_modules():
        layer = LAYER.match(f"{owner}.")
        device = device_map.first if layer is None else device_map.of_layer(int(layer[1]))
        for name, buffer in module._buffers.items():
            if buffer is not None and not buffer.is_meta and buffer.device != device:
                module._buffers[name] = buffer.to(device)


def read_tensors(
    checkpoint: Checkpoint, device: torch.device, on_bytes: Callable[[int], None]
) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor on `device`, in the order in which its bytes lie on disk."""
    order = sorted(checkpoint.tensors.items(), key=lambda item: (item[1].file, item[1].begin))
    for file in sorted({tensor.file for tensor in checkpoint.tensors.values()}):
        with safe_open(checkpoint.folder / file, framework="pt", device=str(device)) as source:
            for name, info in order:
                if info.file == file:
                    yield name, source.get_tensor(checkpoint.stored_name(name))
                    on_bytes(info.num_bytes)


def put_module(model: PreTrainedModel, name: str, module: nn.Module) -> None:
    owner, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(owner), attribute, module)


def put_tensor(model: PreTrainedModel, name: str, tensor: torch.Tensor, dtype: torch.dtype) -> None:
    owner_name, _, attribute = name.rpartition(".")
    owner = model.get_submodule(owner_name)
    if tensor.is_floating_point():
        tensor = tensor.to(kept_dtype(name, dtype, tensor.device))
    if attribute in owner._buffers:
        owner._buffers[attribute] = tensor
    else:
        owner._parameters[attribute] = nn.Parameter(tensor, requires_grad=False)
