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

from core.worker.decode.cuda_graphs import Asked, CapturedCache
from core.worker.decode.fused_modules import FusedMlp, FusedNorm
from core.worker.kernels.decode_attention import MAX_QUERIES, MAX_ROW, RowKernels
from core.worker.kernels.packing import BLOCK
from core.worker.kernels.triton_ops import attend_chunk
from core.worker.kernels.w4_prefill import FromCodes
from core.worker.kernels.w4_small_batch import MAX_CODE_ROWS, MAX_NORMED, DeckLinear, Norm
from core.worker.model.merged_linear import MergedPart

log = logging.getLogger(__name__)
# Of the result's length: what each type rounds in another order over one layer stays below.
TOLERANCES = {torch.float16: 0.005, torch.bfloat16: 0.03}


@dataclass(frozen=True, slots=True)
class Parts:
    """The pieces of a decoder layer. `qkv` is one matrix, or one each for query, key and value."""

    before: FusedNorm
    qkv: tuple[DeckLinear, ...]
    out: DeckLinear
    between: FusedNorm
    both: DeckLinear
    down: DeckLinear


class FusedLayer(nn.Module):
    """In place of `layer`: rows of one token in a few kernels, and where it `reads` pieces of prompts; everything else
    through the layer itself."""

    def __init__(self, layer: nn.Module, parts: Parts, rows: RowKernels, asked: Asked, index: int) -> None:
        super().__init__()
        self.layer = layer
        self._parts, self._rows, self._asked, self._index = parts, rows, asked, index
        self.reads = False

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
        if isinstance(cache, CapturedCache):
            if tokens == 1 and rows <= MAX_CODE_ROWS:
                return self.step(hidden_states[:, 0], kwargs["position_embeddings"], cache).unsqueeze(1)
            if self.reads and rows == 1 and tokens >= FromCodes.least_rows:
                return self.read(hidden_states[0], kwargs["position_embeddings"], cache).unsqueeze(0)
        return self.layer(hidden_states, *args, **kwargs)

    def step(
        self, hidden: torch.Tensor, angles: tuple[torch.Tensor, torch.Tensor], cache: CapturedCache
    ) -> torch.Tensor:
        """[rows, hidden] -> [rows, hidden]."""
        parts, asked = self._parts, self._asked
        qkv = torch.empty(
            (hidden.shape[0], sum(one.out_features for one in parts.qkv)), dtype=hidden.dtype, device=hidden.device
        )
        begin = 0
        for one in parts.qkv:
            end = begin + one.out_features
            self._after_norm(one, hidden, parts.before, "plain", out=qkv[:, begin:end])
            begin = end
        attended = self._rows.attend(qkv, angles, cache.layer(self._index), cache.slots, cache.columns, asked.scale,
                                     asked.window, parts.out.places)  # fmt: skip
        hidden = parts.out.kernels.multiply(parts.out.matrix, attended, "added", parts.out.bias, hidden)
        gated = self._after_norm(parts.both, hidden, parts.between, "gated", places=parts.down.places)
        return parts.down.kernels.multiply(parts.down.matrix, gated, "added", parts.down.bias, hidden)

    def can_read(self) -> bool:
        """Whether its matrices multiply prompts from their codes."""
        return len(self._parts.qkv) == 1 and isinstance(self._parts.down.many, FromCodes)

    def read(
        self, hidden: torch.Tensor, angles: tuple[torch.Tensor, torch.Tensor], cache: CapturedCache
    ) -> torch.Tensor:
        """[tokens, hidden] of one chat -> [tokens, hidden]."""
        parts, many = self._parts, self._parts.down.many
        assert isinstance(many, FromCodes)
        hidden = self._read_attention(many, hidden, angles, cache)
        # What a function of its own needs is gone when it ends, as the plan has it.
        gated = self._read_gated(many, hidden)
        return many.multiply_arranged(parts.down.matrix, gated, hidden.shape[0], parts.down.bias, hidden)

    def _read_attention(
        self,
        many: FromCodes,
        hidden: torch.Tensor,
        angles: tuple[torch.Tensor, torch.Tensor],
        cache: CapturedCache,
    ) -> torch.Tensor:
        parts, asked, (keys, values) = self._parts, self._asked, cache.layer(self._index)
        qkv = self._read_normed(many, parts.qkv[0], hidden, parts.before)
        query = self._rows.turn(qkv, angles, (keys, values), cache.slots, cache.columns)
        attended = attend_chunk(query, keys, values, cache.slots, cache.bounds, asked.scale, asked.window)
        arranged = many.arrange(parts.out.matrix, attended.view(hidden.shape[0], -1))
        return many.multiply_arranged(parts.out.matrix, arranged, hidden.shape[0], parts.out.bias, hidden)

    def _read_gated(self, many: FromCodes, hidden: torch.Tensor) -> torch.Tensor:
        both = self._read_normed(many, self._parts.both, hidden, self._parts.between)
        return many.arrange_gated(self._parts.down.matrix, both, self._parts.down.places)

    def _read_normed(self, many: FromCodes, linear: DeckLinear, hidden: torch.Tensor, norm: FusedNorm) -> torch.Tensor:
        arranged = many.arrange_normed(linear.matrix, hidden, Norm(norm.weight, linear.places, norm.eps))
        return many.multiply_arranged(linear.matrix, arranged, hidden.shape[0], linear.bias)

    def _after_norm(
        self, linear: DeckLinear, hidden: torch.Tensor, norm: FusedNorm, finish: str, **more: torch.Tensor | None
    ) -> torch.Tensor:
        """A product of the normed rows; of one row in one kernel."""
        matrix, multiply = linear.matrix, linear.kernels.multiply
        if hidden.shape[0] == 1 and matrix.inputs <= MAX_NORMED:
            before = Norm(norm.weight, linear.places, norm.eps)
            return multiply(matrix, hidden, finish, linear.bias, norm=before, **more)
        normed, sums = self._rows.norm(hidden, norm.weight, norm.eps, linear.kernels.run, linear.places)
        return multiply(matrix, normed, finish, linear.bias, sums=sums, **more)


class FusedHead(nn.Module):
    """The head for few rows in the same order of sums however many there are; many rows as before."""

    def __init__(self, head: nn.Linear, like: DeckLinear) -> None:
        super().__init__()
        self.weight = head.weight
        self._kernels = like.kernels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[rows, tokens, hidden] -> [rows, tokens, vocabulary]."""
        rows = x.reshape(-1, x.shape[-1])
        if rows.shape[0] > MAX_CODE_ROWS:
            return nn.functional.linear(x, self.weight)
        return self._kernels.multiply_head(self.weight, rows).view(*x.shape[:-1], -1)


def find_parts(layer: nn.Module) -> Parts | None:
    """The pieces of a decoder layer that is made as most are, of matrices for the engine's own kernel."""
    attention, mlp = getattr(layer, "self_attn", None), getattr(layer, "mlp", None)
    before, between = getattr(layer, "input_layernorm", None), getattr(layer, "post_attention_layernorm", None)
    out = getattr(attention, "o_proj", None)
    if not isinstance(before, FusedNorm) or not isinstance(between, FusedNorm) or not isinstance(out, DeckLinear):
        return None
    qkv = matrices_of(attention)
    if (
        not qkv
        or before.weight.numel() > MAX_ROW
        or not isinstance(mlp, FusedMlp)
        or not isinstance(mlp.both, DeckLinear)
        or not isinstance(mlp.down, DeckLinear)
    ):
        return None
    return Parts(before, qkv, out, between, mlp.both, mlp.down)


def matrices_of(attention: nn.Module | None) -> tuple[DeckLinear, ...]:
    """Query, key and value: one matrix where they are merged; none where they are made in another way, or where their
    inputs come in different orders."""
    found = [getattr(attention, name, None) for name in ("q_proj", "k_proj", "v_proj")]
    merged = [one.merged for one in found if isinstance(one, MergedPart)]
    if len(merged) == 3 and all(one is merged[0] for one in merged):
        found = merged[:1]
    plain = tuple(one for one in found if isinstance(one, DeckLinear))
    is_alike = len(plain) == len(found) and (len(plain) == 1 or all(one.places is None for one in plain))
    return plain if is_alike else ()


@dataclass(slots=True)
class Seen:
    """One call of a layer: what it was given and what came out."""

    hidden: torch.Tensor
    kwargs: dict[str, Any]
    output: Any = None


@contextmanager
def watched(layers: Sequence[nn.Module]) -> Iterator[dict[int, Seen]]:
    """Notes how the model calls its layers while the block runs, by the layer's place in `layers`."""
    calls: dict[int, Seen] = {}
    hooks = []
    for index, layer in enumerate(layers):

        def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], index: int = index) -> None:
            calls[index] = Seen((args[0] if args else kwargs["hidden_states"]).clone(), kwargs)

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
    like = next((module for module in model.modules() if isinstance(module, DeckLinear)), None)
    if like is None or not isinstance(head, nn.Linear) or head.bias is not None:
        return False
    if head.in_features % BLOCK or head.weight.dtype != like.matrix.scales.dtype:
        return False
    name = next(name for name, module in model.named_modules() if module is head)
    put(model, name, FusedHead(head, like))
    return True


def fuse_layers(model: PreTrainedModel, cache: CapturedCache, run_step: Callable[[], object]) -> int:
    """Replace the decoder layers that can be; how many were.

    `run_step` runs the model for one new token of some slots, after a few others, over `cache`.
    """
    for name, module in list(model.named_modules()):
        if isinstance(module, FusedLayer):
            put(model, name, module.layer)
    found = {name: parts for name, module in model.named_modules() if (parts := find_parts(module)) is not None}
    layers = [model.get_submodule(name) for name in found]
    if not layers:
        return 0
    with watched(layers) as calls:
        run_step()
    rows: RowKernels | None = None
    fused: dict[str, FusedLayer] = {}
    for place, ((name, parts), layer) in enumerate(zip(found.items(), layers, strict=True)):
        seen, index = calls.get(place), int(getattr(layer.self_attn, "layer_idx", -1))
        asked = cache.asked.get(index)
        if seen is None or asked is None or not isinstance(seen.output, torch.Tensor):
            return 0
        if asked.dim not in MAX_QUERIES or "position_embeddings" not in seen.kwargs:
            return 0
        rows = rows or RowKernels(seen.hidden.dtype, asked.heads, asked.dim, cache.num_slots, seen.hidden.device)
        one = FusedLayer(layer, parts, rows, asked, index)
        got = one(seen.hidden, **{name: value for name, value in seen.kwargs.items() if name != "hidden_states"})
        if not is_alike(got, seen.output):
            log.info("layer %d is not fused", index)
            return 0
        fused[name] = one
    for name, one in fused.items():
        put(model, name, one)
    return len(fused)


def is_alike(got: torch.Tensor, wanted: torch.Tensor) -> bool:
    difference = float((got.float() - wanted.float()).norm() / wanted.float().norm())
    log.debug("differs by %g", difference)
    return difference <= TOLERANCES.get(got.dtype, 0.0)


def fuse_reading(model: PreTrainedModel, run_read: Callable[[], object]) -> int:
    """Let the layers that can be read pieces of prompts in a few kernels too; how many do.

    `run_read` runs the model for a piece of a prompt of some slot.
    """
    layers = [module for module in model.modules() if isinstance(module, FusedLayer)]
    if not layers or not all(layer.can_read() for layer in layers):
        return 0
    agrees: dict[int, bool] = {}

    # As each layer is called: what all of them take and give at once is more than the plan has room for.
    def compare(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        assert isinstance(layer, FusedLayer)
        layer.reads = True
        got = layer.forward(*args, **kwargs)
        layer.reads = False
        place = layers.index(layer)
        agrees[place] = agrees.get(place, True) and is_alike(got, output)
        if not agrees[place]:
            log.info("layer %d does not read in few kernels", place)

    hooks = [layer.register_forward_hook(compare, with_kwargs=True) for layer in layers]
    try:
        run_read()
    finally:
        for hook in hooks:
            hook.remove()
    if len(agrees) < len(layers) or not all(agrees.values()):
        return 0
    for layer in layers:
        layer.reads = True
    return len(layers)


def put(model: PreTrainedModel, name: str, module: nn.Module) -> None:
    owner, _, attribute = name.rpartition(".")
    model.get_submodule(owner)._modules[attribute] = module
