"""Puts FusedDecoderLayer and FusedHead in place of a model's own modules, each only where it computes the same.

A layer is recognized by its modules, whatever its family. The model itself runs it once, and the outputs are compared.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from core.worker.decode.fused_decoder_layer import FusedDecoderLayer, FusedHead, LayerMatrices
from core.worker.decode.fused_modules import FusedMlp, FusedNorm
from core.worker.decode.graph_cache import GraphCache
from core.worker.kernels.decode_attention import MAX_QUERIES, MAX_ROW, DecodeKernels
from core.worker.kernels.packed_small_batch import PackedLinear
from core.worker.kernels.packing import K_BLOCK
from core.worker.model.merged_linear import MergedLinearSlice

log = logging.getLogger(__name__)
# Of the output's norm: rounding in another order over one layer stays below.
TOLERANCES = {torch.float16: 0.005, torch.bfloat16: 0.03}


def find_layer_matrices(layer: nn.Module) -> LayerMatrices | None:
    """The matrices of a decoder layer with the usual modules, all of them PackedLinear; None for any other layer."""
    attention, mlp = getattr(layer, "self_attn", None), getattr(layer, "mlp", None)
    input_norm, mlp_norm = getattr(layer, "input_layernorm", None), getattr(layer, "post_attention_layernorm", None)
    out = getattr(attention, "o_proj", None)
    if (
        not isinstance(input_norm, FusedNorm)
        or not isinstance(mlp_norm, FusedNorm)
        or not isinstance(out, PackedLinear)
    ):
        return None
    qkv = matrices_of(attention)
    if (
        not qkv
        or input_norm.weight.numel() > MAX_ROW
        or not isinstance(mlp, FusedMlp)
        or not isinstance(mlp.gate_up, PackedLinear)
        or not isinstance(mlp.down, PackedLinear)
    ):
        return None
    return LayerMatrices(input_norm, qkv, out, mlp_norm, mlp.gate_up, mlp.down)


def matrices_of(attention: nn.Module | None) -> tuple[PackedLinear, ...]:
    """The merged matrix of query, key and value, or the three; () for other modules, or where three permute inputs."""
    found = [getattr(attention, name, None) for name in ("q_proj", "k_proj", "v_proj")]
    merged = [one.merged for one in found if isinstance(one, MergedLinearSlice)]
    if len(merged) == 3 and all(one is merged[0] for one in merged):
        found = merged[:1]
    plain = tuple(one for one in found if isinstance(one, PackedLinear))
    takes_same_rows = len(plain) == 1 or all(one.inverse_permutation is None for one in plain)
    return plain if len(plain) == len(found) and takes_same_rows else ()


@dataclass(slots=True)
class LayerCall:
    """One call of a layer: its input, its other arguments, its output."""

    hidden: torch.Tensor
    kwargs: dict[str, Any]
    output: Any = None


@contextmanager
def record_layer_calls(layers: Sequence[nn.Module]) -> Iterator[dict[int, LayerCall]]:
    """Record how the model calls `layers` inside the `with` block; the last call of each, by index."""
    calls: dict[int, LayerCall] = {}
    hooks = []
    for index, layer in enumerate(layers):

        def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], index: int = index) -> None:
            calls[index] = LayerCall((args[0] if args else kwargs["hidden_states"]).clone(), kwargs)

        def after(_: nn.Module, args: tuple[Any, ...], output: Any, index: int = index) -> None:
            calls[index].output = output.clone() if isinstance(output, torch.Tensor) else output

        hooks.append(layer.register_forward_pre_hook(before, with_kwargs=True))
        hooks.append(layer.register_forward_hook(after))
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


def fuse_head(model: PreTrainedModel) -> bool:
    """Put a FusedHead in place of the model's head; False where it does not take that head."""
    head = model.get_output_embeddings()
    like = next((module for module in model.modules() if isinstance(module, PackedLinear)), None)
    if like is None or not isinstance(head, nn.Linear) or head.bias is not None:
        return False
    if head.in_features % K_BLOCK or head.weight.dtype != like.matrix.scales.dtype:
        return False
    name = next(name for name, module in model.named_modules() if module is head)
    put(model, name, FusedHead(head, like))
    return True


def fuse_layers(model: PreTrainedModel, cache: GraphCache, run_decode: Callable[[], object]) -> int:
    """Put a FusedDecoderLayer in place of each decoder layer of `model`; how many. 0 if any of them computes something
    else. `run_decode` runs one decode step of some slots over `cache`."""
    for name, module in list(model.named_modules()):
        if isinstance(module, FusedDecoderLayer):
            put(model, name, module.layer)
    found = {
        name: matrices
        for name, module in model.named_modules()
        if (matrices := find_layer_matrices(module)) is not None
    }
    layers = [model.get_submodule(name) for name in found]
    if not layers:
        return 0
    with record_layer_calls(layers) as calls:
        run_decode()
    kernels: DecodeKernels | None = None
    fused: dict[str, FusedDecoderLayer] = {}
    for place, ((name, matrices), layer) in enumerate(zip(found.items(), layers, strict=True)):
        call, index = calls.get(place), int(getattr(layer.self_attn, "layer_idx", -1))
        spec = cache.attention_specs.get(index)
        if call is None or spec is None or not isinstance(call.output, torch.Tensor):
            return 0
        if spec.dim not in MAX_QUERIES or "position_embeddings" not in call.kwargs:
            return 0
        kernels = kernels or DecodeKernels(call.hidden.dtype, spec.heads, spec.dim, cache.num_slots, call.hidden.device)
        one = FusedDecoderLayer(layer, matrices, kernels, spec, index)
        got = one(call.hidden, **{name: value for name, value in call.kwargs.items() if name != "hidden_states"})
        if not is_close(got, call.output):
            log.info("layer %d is not fused", index)
            return 0
        fused[name] = one
    for name, one in fused.items():
        put(model, name, one)
    return len(fused)


def fuse_prefill(model: PreTrainedModel, run_prefill: Callable[[], object]) -> int:
    """Let all fused layers of `model` prefill in a few kernels too; how many. 0 if any of them computes something else.
    `run_prefill` runs the prefill of one chunk."""
    layers = [module for module in model.modules() if isinstance(module, FusedDecoderLayer)]
    if not layers or not all(layer.can_prefill() for layer in layers):
        return 0
    is_right: dict[int, bool] = {}

    # Layer by layer: the inputs and outputs of all layers together take more memory than the plan has.
    def compare(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        assert isinstance(layer, FusedDecoderLayer)
        layer.prefills = True
        got = layer.forward(*args, **kwargs)
        layer.prefills = False
        place = layers.index(layer)
        is_right[place] = is_right.get(place, True) and is_close(got, output)
        if not is_right[place]:
            log.info("layer %d does not prefill in few kernels", place)

    hooks = [layer.register_forward_hook(compare, with_kwargs=True) for layer in layers]
    try:
        run_prefill()
    finally:
        for hook in hooks:
            hook.remove()
    if len(is_right) < len(layers) or not all(is_right.values()):
        return 0
    for layer in layers:
        layer.prefills = True
    return len(layers)


def put(model: PreTrainedModel, name: str, module: nn.Module) -> None:
    owner, _, attribute = name.rpartition(".")
    model.get_submodule(owner)._modules[attribute] = module


def is_close(got: torch.Tensor, wanted: torch.Tensor) -> bool:
    """Whether two results of a layer are equal but for rounding."""
    difference = float((got.float() - wanted.float()).norm() / wanted.float().norm())
    log.debug("differs by %g", difference)
    return difference <= TOLERANCES.get(got.dtype, 0.0)
