"""From a checkpoint's files to transformers' own model, every tensor accounted for.

transformers' loader is not used: it leaves a missing matrix at random values with a warning, and has no progress.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping

import torch
from accelerate import init_empty_weights
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from core.checkpoint.checkpoint import Checkpoint
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
from core.worker.model.expert_stacks import find_stacks
from core.worker.model.fixed_rope import settle_rope
from core.worker.model.matrix_tensors import GroupTensors, MatrixTensors, SeparateTensors, drop_zero_bias
from core.worker.model.merged_linear import make_slices
from core.worker.model.model_config import read_config
from core.worker.model.recurrent_layers import kept_dtype, replace_recurrent_layers
from core.worker.model.repack import REPACKED, repack
from core.worker.model.tensor_check import check_names, check_stored_shape, tied_names

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
    untie_head(model, device_map)
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


def untie_head(model: PreTrainedModel, device_map: DeviceMap) -> None:
    """Give a head that is the embedding a copy of it on the last device, where the layers end."""
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if device_map.is_split and head is not None and head.weight is embedding.weight:
        head.weight = nn.Parameter(embedding.weight.to(device_map.last), requires_grad=False)


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
    """Make `tensor` the weight or buffer `name`; in `dtype` where it is no integer and its layer keeps no other."""
    owner_name, _, attribute = name.rpartition(".")
    owner = model.get_submodule(owner_name)
    if tensor.is_floating_point():
        tensor = tensor.to(kept_dtype(name, dtype, tensor.device))
    if attribute in owner._buffers:
        owner._buffers[attribute] = tensor
    else:
        owner._parameters[attribute] = nn.Parameter(tensor, requires_grad=False)
