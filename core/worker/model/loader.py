"""From a checkpoint's files to transformers' own model, every tensor accounted for; knows no cache and no request.

transformers' loader is not used: it leaves a missing matrix at random values with a warning, and has no progress.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from accelerate import init_empty_weights
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from core.checkpoint.checkpoint import Checkpoint
from core.checkpoint.layers import LAYER
from core.common.errors import CheckpointError, EngineError
from core.common.paths import model_name
from core.memory.kernels.spec import KernelSpec
from core.memory.matrix_groups import PARTS, MatrixGroup, mergeable_matrices, merged_matrices
from core.memory.model_shape import read_shape
from core.worker.model import attention
from core.worker.model.backends.gptqmodel import MatrixMaker, Tensors
from core.worker.model.device_map import Places, embedding_name, join
from core.worker.model.merged_linear import Members, Merging, make_parts

REQUIRED_PARTS = {"qweight", "qzeros", "scales"}
# Older transformers stored these; they follow from the configuration.
IGNORED = re.compile(r"(rotary_emb\.inv_freq|\.masked_bias)$")
KNOWN_LAYERS = {"full_attention", "sliding_attention"}


def load_model(
    checkpoint: Checkpoint,
    kernel: KernelSpec,
    places: Places,
    dtype: torch.dtype,
    max_rows: int,
    on_bytes: Callable[[int], None],
    merged: bool = False,
) -> PreTrainedModel:
    """The model with every weight at its place; `on_bytes` hears how many bytes each tensor had.

    `merged` keeps matrices that share their input as one.

    Raises EngineError for an architecture that cannot run here, CheckpointError where the files do not hold exactly
    the model that the configuration describes.
    """
    model = build_empty(checkpoint, dtype)
    matrices = quantized_names(checkpoint)
    check_names(checkpoint, model, matrices)
    makers = {device: MatrixMaker(kernel.name, checkpoint.quantization, dtype, device) for device in places.devices}
    shapes = {(matrix.in_features, matrix.out_features) for matrix, _ in read_shape(checkpoint, merged).matrices}
    for maker in makers.values():
        maker.reserve(shapes, max_rows)
    try:
        fill(model, checkpoint, matrices, makers, places, on_bytes, merged)
    except (SafetensorError, OSError) as error:
        raise CheckpointError("corrupt_weights", folder=checkpoint.name, file=str(error)) from error
    put_buffers(model, places)
    join(model, places)
    # The kernel keeps a bare pointer into it.
    model.kernel_scratch = [maker.scratch for maker in makers.values()]
    return model.eval().requires_grad_(False)


def build_empty(checkpoint: Checkpoint, dtype: torch.dtype) -> PreTrainedModel:
    """The model's modules with no memory behind their weights."""
    config = read_config(checkpoint.folder)
    is_softcapped = getattr(config, "attn_logit_softcapping", None) is not None
    try:
        with init_empty_weights(include_buffers=False):
            return AutoModelForCausalLM.from_config(
                config,
                dtype=dtype,
                attn_implementation="eager" if is_softcapped else attention.register(),
                trust_remote_code=False,
            )
    except (ValueError, ImportError, AttributeError, TypeError) as error:
        raise EngineError("architecture", model=checkpoint.name, architecture=checkpoint.architecture) from error


def read_config(folder: Path) -> PreTrainedConfig:
    """transformers' configuration of the model in `folder`, without its quantization, which is ours to apply."""
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # A family's code reads what strangers wrote, and raises anything.
        raise EngineError("architecture_unknown", model=model_name(folder), why=str(error).split("\n")[0]) from error
    config = config.get_text_config()
    unknown = set(getattr(config, "layer_types", None) or ()) - KNOWN_LAYERS
    if unknown:
        raise EngineError("layer_types", model=model_name(folder), types=", ".join(sorted(unknown)))
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    return config


def quantized_names(checkpoint: Checkpoint) -> set[str]:
    """The names of the modules whose matrices are quantized."""
    return {name.removesuffix(".qweight") for name in checkpoint.tensors if name.endswith(".qweight")}


def check_names(checkpoint: Checkpoint, model: PreTrainedModel, matrices: set[str]) -> None:
    """Raise CheckpointError unless the files hold exactly the tensors that the model needs."""
    modules = dict(model.named_modules())
    needed = set(model.state_dict())
    optional: set[str] = set()
    for name in matrices:
        if not isinstance(modules.get(name), nn.Linear):
            raise CheckpointError("unexpected_weight", folder=checkpoint.name, name=f"{name}.qweight", count=1)
        needed -= {f"{name}.weight", f"{name}.bias"}
        needed |= {f"{name}.{part}" for part in REQUIRED_PARTS}
        optional |= {f"{name}.g_idx", f"{name}.bias"}
        if modules[name].bias is not None:
            needed.add(f"{name}.bias")
    tied = tied_names(model)
    found = {name for name in checkpoint.tensors if not IGNORED.search(name)}
    missing = sorted(needed - found - tied)
    unexpected = sorted(found - needed - optional)
    if missing:
        raise CheckpointError("missing_weight", folder=checkpoint.name, name=missing[0], count=len(missing))
    if unexpected:
        raise CheckpointError("unexpected_weight", folder=checkpoint.name, name=unexpected[0], count=len(unexpected))
    check_shapes(checkpoint, model, found - optional - {f"{name}.{part}" for name in matrices for part in PARTS})
    for name in matrices:
        check_matrix(checkpoint, name, modules[name])


def tied_names(model: PreTrainedModel) -> set[str]:
    """The weights that are another weight under a second name, where this model's configuration ties them."""
    if not getattr(model.config, "tie_word_embeddings", False):
        return set()
    return set(model._tied_weights_keys or ())


def check_shapes(checkpoint: Checkpoint, model: PreTrainedModel, names: set[str]) -> None:
    wanted = model.state_dict()
    for name in sorted(names):
        if tuple(wanted[name].shape) != checkpoint.tensors[name].shape:
            raise CheckpointError("weight_shape", folder=checkpoint.name, name=name,
                                  found=str(list(checkpoint.tensors[name].shape)),
                                  wanted=str(list(wanted[name].shape)))  # fmt: skip


def check_matrix(checkpoint: Checkpoint, name: str, linear: nn.Linear) -> None:
    """The packed shapes must be those of the matrix at this bit width and group size."""
    bits, group_size = checkpoint.quantization.bits, checkpoint.quantization.group_size
    rows, columns = linear.in_features, linear.out_features
    groups = 1 if group_size < 0 else -(-rows // group_size)
    wanted = {
        "qweight": (-(-rows * bits // 32), columns),
        "qzeros": (groups, -(-columns * bits // 32)),
        "scales": (groups, columns),
        "g_idx": (rows,),
        "bias": (columns,),
    }
    for part, shape in wanted.items():
        tensor = checkpoint.tensors.get(f"{name}.{part}")
        if tensor is not None and tensor.shape != shape:
            raise CheckpointError("weight_shape", folder=checkpoint.name, name=f"{name}.{part}",
                                  found=str(list(tensor.shape)), wanted=str(list(shape)))  # fmt: skip


def fill(
    model: PreTrainedModel,
    checkpoint: Checkpoint,
    matrices: set[str],
    makers: dict[torch.device, MatrixMaker],
    places: Places,
    on_bytes: Callable[[int], None],
    merged: bool,
) -> None:
    """Put every tensor into the model, in the order of the files; a matrix is finished as soon as it is whole."""
    embedding, first = embedding_name(model), makers[places.first]
    own = first.kernel == "deck"
    # What goes to several devices is read to where none of them is.
    reading_device = torch.device("cpu") if places.is_split else first.reading_device
    found = same_order(checkpoint) if own else merged_matrices(checkpoint)
    groups = {name: group for group in found for name in group.sizes} if merged else {}
    merging = {id(group): Members(group) if own else Merging(group) for group in groups.values()}
    waiting = {name: num_parts(checkpoint, name) for name in matrices if name not in groups}
    parts: dict[str, Tensors] = {name: {} for name in waiting}
    tied = tied_names(model)
    for name, read in read_tensors(checkpoint, reading_device, on_bytes):
        owner, _, part = name.rpartition(".")
        maker = makers[places.of(name, embedding)]
        tensor = read.to(maker.reading_device)
        if owner in groups and part in PARTS:
            group = groups[owner]
            if merging[id(group)].put(owner, part, tensor):
                put_merged(model, group, make_group(maker, merging.pop(id(group))))
        elif owner in parts and part in PARTS:
            parts[owner][part] = tensor
            if len(parts[owner]) == waiting[owner]:
                put_module(model, owner, maker.make(drop_zero_bias(parts.pop(owner))))
        elif name not in tied and not IGNORED.search(name):
            put_tensor(model, name, tensor.to(maker.device), maker.dtype)
    model.tie_weights()


def same_order(checkpoint: Checkpoint) -> list[MatrixGroup]:
    """The groups of matrices that have their inputs in one order, as those have that were quantized on one input."""
    if not checkpoint.quantization.is_permuted:
        return merged_matrices(checkpoint)
    groups = mergeable_matrices(checkpoint)
    wanted = {f"{name}.g_idx" for group in groups for name in group.sizes}
    orders: dict[str, torch.Tensor] = {}
    for file in {info.file for name, info in checkpoint.tensors.items() if name in wanted}:
        with safe_open(checkpoint.folder / file, framework="pt") as source:
            orders |= {name: source.get_tensor(name) for name in wanted if checkpoint.tensors[name].file == file}
    return [group for group in groups if all_equal([orders[f"{name}.g_idx"] for name in group.sizes])]


def all_equal(tensors: Sequence[torch.Tensor]) -> bool:
    return all(torch.equal(tensor, tensors[0]) for tensor in tensors)


def make_group(maker: MatrixMaker, merging: Merging | Members) -> nn.Module:
    """The one module of a group whose tensors are all there."""
    if isinstance(merging, Merging):
        return maker.make(drop_zero_bias(merging.tensors))
    dropped = [drop_zero_bias(tensors) for tensors in merging.tensors]
    return maker.make_of(merging.tensors if any("bias" in tensors for tensors in dropped) else dropped)


def put_merged(model: PreTrainedModel, group: MatrixGroup, merged: nn.Module) -> None:
    for name, part in make_parts(merged, group).items():
        put_module(model, name, part)


def put_buffers(model: PreTrainedModel, places: Places) -> None:
    """Move what a model works out for itself, such as the rotary frequencies: only weights began without memory.

    Outside of the layers such things are asked for before the first one.
    """
    for owner, module in model.named_modules():
        layer = LAYER.match(f"{owner}.")
        device = places.first if layer is None else places.of_layer(int(layer[1]))
        for name, buffer in module._buffers.items():
            if buffer is not None and not buffer.is_meta and buffer.device != device:
                module._buffers[name] = buffer.to(device)


def num_parts(checkpoint: Checkpoint, name: str) -> int:
    return sum(f"{name}.{part}" in checkpoint.tensors for part in PARTS)


def read_tensors(
    checkpoint: Checkpoint, device: torch.device, on_bytes: Callable[[int], None]
) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor on `device`, in the order in which its bytes lie on disk."""
    order = sorted(checkpoint.tensors.items(), key=lambda item: (item[1].file, item[1].begin))
    for file in sorted({tensor.file for tensor in checkpoint.tensors.values()}):
        with safe_open(checkpoint.folder / file, framework="pt", device=str(device)) as source:
            for name, info in order:
                if info.file == file:
                    yield name, source.get_tensor(name)
                    on_bytes(info.num_bytes)


def drop_zero_bias(tensors: Tensors) -> Tensors:
    """auto-gptq wrote a bias of zeros for every matrix, also of models that have none; adding it costs a kernel."""
    bias = tensors.get("bias")
    if bias is not None and not bias.any():
        return {part: tensor for part, tensor in tensors.items() if part != "bias"}
    return tensors


def put_module(model: PreTrainedModel, name: str, module: nn.Module) -> None:
    owner, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(owner), attribute, module)


def put_tensor(model: PreTrainedModel, name: str, tensor: torch.Tensor, dtype: torch.dtype) -> None:
    owner_name, _, attribute = name.rpartition(".")
    owner = model.get_submodule(owner_name)
    tensor = tensor.to(dtype) if tensor.is_floating_point() else tensor
    if attribute in owner._buffers:
        owner._buffers[attribute] = tensor
    else:
        owner._parameters[attribute] = nn.Parameter(tensor, requires_grad=False)
