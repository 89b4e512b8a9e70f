"""A decoder layer's step for one new token a row, and for a piece of a prompt, in a few kernels; knows no family.

A layer is taken by what it has, and by what comes out: as the model itself calls it, the result must be the layer's
own. Everything else still goes through the layer.
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

from core.worker.decode.cuda_graphs import AttentionSpec, GraphCache
from core.worker.decode.fused_modules import FusedMlp, FusedNorm
from core.worker.kernels.decode_attention import MAX_QUERIES, MAX_ROW, DecodeKernels
from core.worker.kernels.packing import K_BLOCK
from core.worker.kernels.triton_ops import attend_prefill
from core.worker.kernels.w4_prefill import FusedDequantGemm
from core.worker.kernels.w4_small_batch import MAX_NORMED, MAX_SMALL_BATCH, FusedRmsNorm, W4Linear
from core.worker.model.merged_linear import MergedPart

log = logging.getLogger(__name__)
# Of the result's length: what each type rounds in another order over one layer stays below.
TOLERANCES = {torch.float16: 0.005, torch.bfloat16: 0.03}


@dataclass(frozen=True, slots=True)
class LayerMatrices:
    """The pieces of a decoder layer. `qkv` is one matrix, or one each for query, key and value."""

    before: FusedNorm
    qkv: tuple[W4Linear, ...]
    out: W4Linear
    between: FusedNorm
    both: W4Linear
    down: W4Linear


class FusedDecoderLayer(nn.Module):
    """Stands in for `layer`: decodes rows of one token in a few kernels, and prefills chunks where `prefills` is set.
    Everything else goes through `layer`."""

    def __init__(
        self, layer: nn.Module, parts: LayerMatrices, rows: DecodeKernels, asked: AttentionSpec, index: int
    ) -> None:
        super().__init__()
        self.layer = layer
        self._parts, self._kernels, self._asked, self._index = parts, rows, asked, index
        self.prefills = False

    def __getattr__(self, name: str) -> Any:
        """Models ask their layers for what they are, such as the kind of their attention."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("layer"), name)

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """[rows, tokens, hidden] -> the same shape."""
        cache = kwargs.get("past_key_values")
        rows, tokens = hidden_states.shape[:2]
        if isinstance(cache, GraphCache):
            if tokens == 1 and rows <= MAX_SMALL_BATCH:
                return self.decode(hidden_states[:, 0], kwargs["position_embeddings"], cache).unsqueeze(1)
            if self.prefills and rows == 1 and tokens >= FusedDequantGemm.min_rows:
                return self.prefill(hidden_states[0], kwargs["position_embeddings"], cache).unsqueeze(0)
        return self.layer(hidden_states, *args, **kwargs)

    def decode(
        self, hidden: torch.Tensor, angles: tuple[torch.Tensor, torch.Tensor], cache: GraphCache
    ) -> torch.Tensor:
        """[rows, hidden] -> [rows, hidden]."""
        parts, asked = self._parts, self._asked
        qkv = torch.empty(
            (hidden.shape[0], sum(one.out_features for one in parts.qkv)), dtype=hidden.dtype, device=hidden.device
        )
        begin = 0
        for one in parts.qkv:
            end = begin + one.out_features
            self._after_norm(one, hidden, parts.before, "none", out=qkv[:, begin:end])
            begin = end
        attended = self._kernels.attend(qkv, angles, cache.layer(self._index), cache.slots, cache.columns, asked.scale,
                                     asked.window, parts.out.inverse_permutation)  # fmt: skip
        hidden = parts.out.kernels.multiply(parts.out.matrix, attended, "residual", parts.out.bias, hidden)
        gated = self._after_norm(
            parts.both, hidden, parts.between, "swiglu", inverse_permutation=parts.down.inverse_permutation
        )
        return parts.down.kernels.multiply(parts.down.matrix, gated, "residual", parts.down.bias, hidden)

    def can_prefill(self) -> bool:
        """Whether its matrices multiply prompts from their codes."""
        return len(self._parts.qkv) == 1 and isinstance(self._parts.down.prefill_backend, FusedDequantGemm)

    def prefill(
        self, hidden: torch.Tensor, angles: tuple[torch.Tensor, torch.Tensor], cache: GraphCache
    ) -> torch.Tensor:
        """[tokens, hidden] of one chat -> [tokens, hidden]."""
        parts, gemm = self._parts, self._parts.down.prefill_backend
        assert isinstance(gemm, FusedDequantGemm)
        hidden = self._prefill_attention(gemm, hidden, angles, cache)
        # What a function of its own needs is gone when it ends, as the plan has it.
        gated = self._prefill_mlp(gemm, hidden)
        return gemm.multiply_swizzled(parts.down.matrix, gated, hidden.shape[0], parts.down.bias, hidden)

    def _prefill_attention(
        self,
        gemm: FusedDequantGemm,
        hidden: torch.Tensor,
        angles: tuple[torch.Tensor, torch.Tensor],
        cache: GraphCache,
    ) -> torch.Tensor:
        parts, asked, (keys, values) = self._parts, self._asked, cache.layer(self._index)
        qkv = self._prefill_normed(gemm, parts.qkv[0], hidden, parts.before)
        query = self._kernels.apply_rope_and_store_kv(qkv, angles, (keys, values), cache.slots, cache.columns)
        attended = attend_prefill(query, keys, values, cache.slots, cache.bounds, asked.scale, asked.window)
        arranged = gemm.permute_rows(parts.out.matrix, attended.view(hidden.shape[0], -1))
        return gemm.multiply_swizzled(parts.out.matrix, arranged, hidden.shape[0], parts.out.bias, hidden)

    def _prefill_mlp(self, gemm: FusedDequantGemm, hidden: torch.Tensor) -> torch.Tensor:
        both = self._prefill_normed(gemm, self._parts.both, hidden, self._parts.between)
        return gemm.swiglu_rows(self._parts.down.matrix, both, self._parts.down.inverse_permutation)

    def _prefill_normed(
        self, gemm: FusedDequantGemm, linear: W4Linear, hidden: torch.Tensor, norm: FusedNorm
    ) -> torch.Tensor:
        arranged = gemm.rmsnorm_rows(
            linear.matrix, hidden, FusedRmsNorm(norm.weight, linear.inverse_permutation, norm.eps)
        )
        return gemm.multiply_swizzled(linear.matrix, arranged, hidden.shape[0], linear.bias)

    def _after_norm(
        self, linear: W4Linear, hidden: torch.Tensor, norm: FusedNorm, epilogue: str, **more: torch.Tensor | None
    ) -> torch.Tensor:
        """A product of the normed rows; of one row in one kernel."""
        matrix, multiply = linear.matrix, linear.kernels.multiply
        if hidden.shape[0] == 1 and matrix.inputs <= MAX_NORMED:
            before = FusedRmsNorm(norm.weight, linear.inverse_permutation, norm.eps)
            return multiply(matrix, hidden, epilogue, linear.bias, norm=before, **more)
        normed, sums = self._kernels.norm(
            hidden, norm.weight, norm.eps, linear.kernels.inputs_per_group, linear.inverse_permutation
        )
        return multiply(matrix, normed, epilogue, linear.bias, sums=sums, **more)


class FusedHead(nn.Module):
    """The head for few rows in the same order of sums however gemm there are; many rows as before."""

    def __init__(self, head: nn.Linear, like: W4Linear) -> None:
        super().__init__()
        self.weight = head.weight
        self._kernels = like.kernels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[rows, tokens, hidden] -> [rows, tokens, vocabulary]."""
        rows = x.reshape(-1, x.shape[-1])
        if rows.shape[0] > MAX_SMALL_BATCH:
            return nn.functional.linear(x, self.weight)
        return self._kernels.multiply_head(self.weight, rows).view(*x.shape[:-1], -1)


def find_layer_matrices(layer: nn.Module) -> LayerMatrices | None:
    """The pieces of a decoder layer that is made as most are, of matrices for the engine's own kernel."""
    attention, mlp = getattr(layer, "self_attn", None), getattr(layer, "mlp", None)
    before, between = getattr(layer, "input_layernorm", None), getattr(layer, "post_attention_layernorm", None)
    out = getattr(attention, "o_proj", None)
    if not isinstance(before, FusedNorm) or not isinstance(between, FusedNorm) or not isinstance(out, W4Linear):
        return None
    qkv = matrices_of(attention)
    if (
        not qkv
        or before.weight.numel() > MAX_ROW
        or not isinstance(mlp, FusedMlp)
        or not isinstance(mlp.both, W4Linear)
        or not isinstance(mlp.down, W4Linear)
    ):
        return None
    return LayerMatrices(before, qkv, out, between, mlp.both, mlp.down)


def matrices_of(attention: nn.Module | None) -> tuple[W4Linear, ...]:
    """Query, key and value: one matrix where they are merged; none where they are made in another way, or where their
    inputs come in different orders."""
    found = [getattr(attention, name, None) for name in ("q_proj", "k_proj", "v_proj")]
    merged = [one.merged for one in found if isinstance(one, MergedPart)]
    if len(merged) == 3 and all(one is merged[0] for one in merged):
        found = merged[:1]
    plain = tuple(one for one in found if isinstance(one, W4Linear))
    is_equal = len(plain) == len(found) and (len(plain) == 1 or all(one.inverse_permutation is None for one in plain))
    return plain if is_equal else ()


@dataclass(slots=True)
class LayerCall:
    """One call of a layer: what it was given and what came out."""

    hidden: torch.Tensor
    kwargs: dict[str, Any]
    output: Any = None


@contextmanager
def record_layer_calls(layers: Sequence[nn.Module]) -> Iterator[dict[int, LayerCall]]:
    """Notes how the model calls its layers while the block runs, by the layer's place in `layers`."""
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
    """Put `FusedHead` in place of the model's head where that takes it."""
    head = model.get_output_embeddings()
    like = next((module for module in model.modules() if isinstance(module, W4Linear)), None)
    if like is None or not isinstance(head, nn.Linear) or head.bias is not None:
        return False
    if head.in_features % K_BLOCK or head.weight.dtype != like.matrix.scales.dtype:
        return False
    name = next(name for name, module in model.named_modules() if module is head)
    put(model, name, FusedHead(head, like))
    return True


def fuse_layers(model: PreTrainedModel, cache: GraphCache, run_decode: Callable[[], object]) -> int:
    """Replace the decoder layers that can be; how many were.

    `run_decode` runs the model for one new token of some slots, after a few others, over `cache`.
    """
    for name, module in list(model.named_modules()):
        if isinstance(module, FusedDecoderLayer):
            put(model, name, module.layer)
    found = {
        name: parts for name, module in model.named_modules() if (parts := find_layer_matrices(module)) is not None
    }
    layers = [model.get_submodule(name) for name in found]
    if not layers:
        return 0
    with record_layer_calls(layers) as calls:
        run_decode()
    rows: DecodeKernels | None = None
    fused: dict[str, FusedDecoderLayer] = {}
    for place, ((name, parts), layer) in enumerate(zip(found.items(), layers, strict=True)):
        seen, index = calls.get(place), int(getattr(layer.self_attn, "layer_idx", -1))
        asked = cache.attention_specs.get(index)
        if seen is None or asked is None or not isinstance(seen.output, torch.Tensor):
            return 0
        if asked.dim not in MAX_QUERIES or "position_embeddings" not in seen.kwargs:
            return 0
        rows = rows or DecodeKernels(seen.hidden.dtype, asked.heads, asked.dim, cache.num_slots, seen.hidden.device)
        one = FusedDecoderLayer(layer, parts, rows, asked, index)
        got = one(seen.hidden, **{name: value for name, value in seen.kwargs.items() if name != "hidden_states"})
        if not is_close(got, seen.output):
            log.info("layer %d is not fused", index)
            return 0
        fused[name] = one
    for name, one in fused.items():
        put(model, name, one)
    return len(fused)


def is_close(got: torch.Tensor, wanted: torch.Tensor) -> bool:
    difference = float((got.float() - wanted.float()).norm() / wanted.float().norm())
    log.debug("differs by %g", difference)
    return difference <= TOLERANCES.get(got.dtype, 0.0)


def fuse_prefill(model: PreTrainedModel, run_prefill: Callable[[], object]) -> int:
    """Let the layers that can be read pieces of prompts in a few kernels too; how many do.

    `run_prefill` runs the model for a piece of a prompt of some slot.
    """
    layers = [module for module in model.modules() if isinstance(module, FusedDecoderLayer)]
    if not layers or not all(layer.can_prefill() for layer in layers):
        return 0
    agrees: dict[int, bool] = {}

    # As each layer is called: what all of them take and give at once is more than the plan has room for.
    def compare(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        assert isinstance(layer, FusedDecoderLayer)
        layer.prefills = True
        got = layer.forward(*args, **kwargs)
        layer.prefills = False
        place = layers.index(layer)
        agrees[place] = agrees.get(place, True) and is_close(got, output)
        if not agrees[place]:
            log.info("layer %d does not read in few kernels", place)

    hooks = [layer.register_forward_hook(compare, with_kwargs=True) for layer in layers]
    try:
        run_prefill()
    finally:
        for hook in hooks:
            hook.remove()
    if len(agrees) < len(layers) or not all(agrees.values()):
        return 0
    for layer in layers:
        layer.prefills = True
    return len(layers)


def put(model: PreTrainedModel, name: str, module: nn.Module) -> None:
    owner, _, attribute = name.rpartition(".")
    model.get_submodule(owner)._modules[attribute] = module
