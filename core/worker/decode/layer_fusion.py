"""Puts FusedDecoderLayer and FusedHead in place of a model's own modules, each only where it computes the same.

A layer's mixer and its MLP are recognized by their modules, whatever the family. The model itself runs the layer once,
and the outputs are compared. Where one of the two parts is not to be had in few kernels, the other one still is.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from core.worker.decode.delta_rule import FusedDeltaNet, find_delta_matrices
from core.worker.decode.fused_attention import (
    FusedAttention,
    find_attention_matrices,
    find_head_kind,
    find_head_norm,
)
from core.worker.decode.fused_decoder_layer import FusedDecoderLayer, FusedHead
from core.worker.decode.fused_experts import FusedExperts, find_expert_modules, find_rule
from core.worker.decode.fused_mlp import FusedDenseMlp, find_mlp_matrices
from core.worker.decode.graph_cache import AttentionSpec, GraphCache
from core.worker.decode.layer_parts import LayerPart, PlainMixer, PlainMlp
from core.worker.kernels.decode_attention import HEAD_DIMS, DecodeKernels, HeadKind
from core.worker.kernels.dense_small_batch import can_multiply_dense
from core.worker.kernels.packed_small_batch import PackedLinear
from core.worker.kernels.router_kernel import RoutingRule

log = logging.getLogger(__name__)
# Of the output's norm: rounding in another order over one layer stays below.
TOLERANCES = {torch.float16: 0.005, torch.bfloat16: 0.03}


@dataclass(slots=True)
class LayerCall:
    """One call of a layer: its input, its other arguments, its output; and a recurrent layer's states before it."""

    hidden: torch.Tensor
    kwargs: dict[str, Any]
    output: Any = None
    states: Sequence[torch.Tensor] = ()


@contextmanager
def record_layer_calls(layers: Sequence[nn.Module], cache: GraphCache) -> Iterator[dict[int, LayerCall]]:
    """Record how the model calls `layers` over `cache` inside the `with` block; the last call of each, by index."""
    calls: dict[int, LayerCall] = {}
    hooks = []
    for index, layer in enumerate(layers):

        def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], index: int = index) -> None:
            hidden = (args[0] if args else kwargs["hidden_states"]).clone()
            calls[index] = LayerCall(hidden, kwargs, states=cache.copy_states(index_of(layers[index])))

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
    """Put a FusedHead in place of the model's head; whether it is there, now or from an earlier try."""
    head = model.get_output_embeddings()
    if isinstance(head, FusedHead):
        return True
    # GPUs that have one take the other.
    if not any(isinstance(module, PackedLinear) for module in model.modules()):
        return False
    if not isinstance(head, nn.Linear) or not can_multiply_dense(head):
        return False
    name = next(name for name, module in model.named_modules() if module is head)
    put(model, name, FusedHead(head))
    return True


class MixerMaker:
    """Makes the mixers of a model's layers; those with the same heads share their kernels."""

    def __init__(self, cache: GraphCache) -> None:
        self._cache = cache
        self._kernels: dict[tuple[object, ...], DecodeKernels] = {}

    def make(self, layer: nn.Module, call: LayerCall) -> list[LayerPart]:
        """The ways to run the mixer of `layer` on its own, the fastest first."""
        matrices = find_attention_matrices(layer)
        norm, attention = getattr(layer, "input_layernorm", None), getattr(layer, "self_attn", None)
        made: list[LayerPart] = []
        if delta := find_delta_matrices(layer):
            made.append(FusedDeltaNet(delta, self._cache.delta_rule(delta.layer)))
        index = index_of(layer)
        spec = self._cache.attention_specs.get(index)
        angles = call.kwargs.get("position_embeddings")
        if matrices and spec and spec.dim in HEAD_DIMS and attention and isinstance(angles, tuple):
            of_heads = find_head_norm(attention, spec.dim)
            kind = of_heads and find_head_kind(matrices, spec, angles[0].shape[-1], of_heads)
            if of_heads and kind:
                kernels = self._kernels_for(spec, kind, call.hidden)
                made.append(FusedAttention(matrices, kernels, spec, index, of_heads))
        recurrent = getattr(layer, "linear_attn", None)
        if isinstance(norm, nn.Module) and isinstance(attention, nn.Module):
            made.append(PlainMixer(norm, attention))
        if isinstance(norm, nn.Module) and isinstance(recurrent, nn.Module):
            made.append(PlainMixer(norm, recurrent))
        return made

    def _kernels_for(self, spec: AttentionSpec, kind: HeadKind, hidden: torch.Tensor) -> DecodeKernels:
        key = (hidden.dtype, hidden.device, spec.heads, kind)
        if key not in self._kernels:
            self._kernels[key] = DecodeKernels(
                hidden.dtype,
                spec.heads,
                spec.dim,
                self._cache.num_rows,
                hidden.device,
                kind=kind,
                bits=self._cache.bits,
            )
        return self._kernels[key]


def index_of(layer: nn.Module) -> int:
    """The number of a decoder layer, as its mixer knows it; -1 where it does not."""
    mixer = getattr(layer, "self_attn", getattr(layer, "linear_attn", None))
    return int(getattr(mixer, "layer_idx", -1))


class MlpMaker:
    """Makes the MLPs of a model's layers. Routers mostly choose alike, so each is tried with the last one's rule."""

    def __init__(self) -> None:
        self._rule: RoutingRule | None = None

    def make(self, layer: nn.Module) -> list[LayerPart]:
        """The ways to run the MLP of `layer` on its own, the fastest first."""
        norm, mlp = getattr(layer, "post_attention_layernorm", None), getattr(layer, "mlp", None)
        matrices, experts = find_mlp_matrices(layer), find_expert_modules(layer)
        made: list[LayerPart] = [FusedDenseMlp(matrices)] if matrices else []
        if experts:
            self._rule = find_rule(experts, self._rule)
            made += [FusedExperts(experts, self._rule)] if self._rule else []
        if isinstance(norm, nn.Module) and isinstance(mlp, nn.Module):
            made.append(PlainMlp(norm, mlp))
        return made


def fuse_layers(model: PreTrainedModel, cache: GraphCache, run_decode: Callable[[], object]) -> int:
    """Put a FusedDecoderLayer in place of each decoder layer of `model` that has a part in few kernels; how many. A
    layer stays as it is where no such pair of parts computes the same. `run_decode` runs one decode step of some slots
    over `cache`."""
    for name, module in list(model.named_modules()):
        if isinstance(module, FusedDecoderLayer):
            put(model, name, module.layer)
    finders = (find_attention_matrices, find_mlp_matrices, find_expert_modules, find_delta_matrices)
    found = [name for name, module in model.named_modules() if any(find(module) for find in finders)]
    layers = [model.get_submodule(name) for name in found]
    if not layers:
        return 0
    with record_layer_calls(layers, cache) as calls:
        run_decode()
    # Layers whose number is not known are -1.
    last = model.config.get_text_config().num_hidden_layers - 1
    mixers, mlps, fused = MixerMaker(cache), MlpMaker(), dict[str, FusedDecoderLayer]()
    for place, (name, layer) in enumerate(zip(found, layers, strict=True)):
        call = calls.get(place)
        if call is None or not isinstance(call.output, torch.Tensor):
            continue
        cache.use_targets_on(call.hidden.device)
        with torch.cuda.device_of(call.hidden):
            one = fuse_layer(layer, call, cache, mixers, mlps)
        if one is None:
            log.info("layer %d is not fused", place)
        else:
            one.is_last = index_of(layer) == last
            fused[name] = one
    for name, one in fused.items():
        put(model, name, one)
    return len(fused)


def fuse_layer(
    layer: nn.Module, call: LayerCall, cache: GraphCache, mixers: MixerMaker, mlps: MlpMaker
) -> FusedDecoderLayer | None:
    """The fastest pair of parts that computes what `layer` did in `call`."""
    for parts in product(mixers.make(layer, call), mlps.make(layer)):
        one = FusedDecoderLayer(layer, *parts)
        cache.restore_states(index_of(layer), call.states)
        if any(part.is_fused for part in parts) and computes(one, call):
            return one
    return None


def computes(layer: FusedDecoderLayer, call: LayerCall) -> bool:
    """Whether `layer` computes what the model's own did in `call`."""
    got = layer(call.hidden, **{name: value for name, value in call.kwargs.items() if name != "hidden_states"})
    return is_close(got, call.output)


def fuse_prefill(model: PreTrainedModel, run_prefill: Callable[[], object]) -> int:
    """Let all fused layers of `model` prefill in a few kernels too; how many. 0 if any of them computes something else.
    `run_prefill` runs the prefill of one chunk."""
    layers = [module for module in model.modules() if isinstance(module, FusedDecoderLayer)]
    if not layers or not all(layer.can_prefill() for layer in layers):
        return 0
    is_right: dict[int, bool] = {}
    states: Sequence[torch.Tensor] = ()

    def before(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal states
        cache = kwargs.get("past_key_values")
        states = cache.copy_states(index_of(layer)) if isinstance(cache, GraphCache) else ()

    # Layer by layer: the inputs and outputs of all layers together take more memory than the plan has.
    def compare(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        assert isinstance(layer, FusedDecoderLayer)
        layer.prefills = True
        if states:
            kwargs["past_key_values"].restore_states(index_of(layer), states)
        got = layer.forward(*args, **kwargs)
        layer.prefills = False
        place = layers.index(layer)
        is_right[place] = is_right.get(place, True) and is_close(got, output)
        if not is_right[place]:
            log.info("layer %d does not prefill in few kernels", place)

    hooks = [layer.register_forward_pre_hook(before, with_kwargs=True) for layer in layers]
    hooks += [layer.register_forward_hook(compare, with_kwargs=True) for layer in layers]
    try:
        run_prefill()
    finally:
        for hook in hooks:
            hook.remove()
    if len(is_right) < len(layers) or not all(is_right.values()):
        return 0
    for layer in layers:
        # From here on: they were compared over all rows.
        layer.prefills, layer.reads_few = True, layer.is_last
    return len(layers)


def put(model: PreTrainedModel, name: str, module: nn.Module) -> None:
    owner, _, attribute = name.rpartition(".")
    model.get_submodule(owner)._modules[attribute] = module


def is_close(got: torch.Tensor, wanted: torch.Tensor) -> bool:
    """Whether two results of a layer are equal but for rounding."""
    difference = float((got.float() - wanted.float()).norm() / wanted.float().norm())
    log.debug("differs by %g", difference)
    return difference <= TOLERANCES.get(got.dtype, 0.0)
