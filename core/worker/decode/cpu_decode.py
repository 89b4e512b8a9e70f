"""Decodes one token for each of some slots on a CPU: the model's own operations with little Python between them.

For a small model Python takes most of a token's time. A model is recognized by its modules, whatever its family, and
uses this pass only if it gives the same logits and cache as the model's own pass, to the bit.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.functional import embedding, linear, scaled_dot_product_attention, silu
from transformers import PreTrainedModel

from core.worker.model.attention import pack_by_key, unpack_by_key
from core.worker.model.backends.aten_int4 import CpuInt4Linear
from core.worker.model.kv_cache import SlotCache
from core.worker.model.merged_linear import MergedLinearSlice
from core.worker.model.model_runner import ModelRunner
from core.worker.model.packed_linear import PackedLinear

log = logging.getLogger(__name__)
# The modules of a layer, its attention and its MLP. A model with any other module keeps its own pass.
LAYER_PARTS = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
PROJECTIONS = ("q_proj", "k_proj", "v_proj")
ATTENTION_PARTS = {*PROJECTIONS, "o_proj", "q_norm", "k_norm"}
MLP_PARTS = {"gate_proj", "up_proj", "down_proj", "act_fn"}
# Tokens on which both passes are compared, and how many of them are decoded one by one.
NUM_SAMPLES = 12
NUM_DECODED = 4

Function = Callable[[torch.Tensor], torch.Tensor]
# Half of what Tensor.to takes.
CASTS: dict[torch.dtype, Function] = {
    torch.bfloat16: torch.Tensor.bfloat16, torch.float16: torch.Tensor.half, torch.float32: torch.Tensor.float
}  # fmt: skip


@dataclass(slots=True)
class _Layer:
    """A layer's operations. `qkv` gives query, key and value side by side, `gate_up` gate and up."""

    norm: Function
    qkv: Function
    query_norm: Function | None
    key_norm: Function | None
    output: Function
    mlp_norm: Function
    gate_up: Function
    down: Function
    scaling: float


class FastDecodePass:
    """A model's forward pass for one new token a slot, over the slots' cache.

    Raises AttributeError, TypeError or NotImplementedError for a model with other modules.
    """

    def __init__(self, model: PreTrainedModel, cache: SlotCache) -> None:
        refuse_config(model.config)
        body: Any = model.base_model
        shapes = {keys.shape for keys in cache.keys.values()}
        if len(body.layers) != len(cache.keys) or len(shapes) != 1:
            raise NotImplementedError("layers without a cache of their own, or of several shapes")
        if cache.bits != 16:
            raise NotImplementedError(f"keys and values in {cache.bits} bit")
        self._embeddings: torch.Tensor = model.get_input_embeddings().weight
        self._rotary = body.rotary_emb
        self._layers = [_read_layer(layer) for layer in body.layers]
        self._norm = _norm(body.norm)
        self._head = _head(model.get_output_embeddings(), body.norm.weight.shape[0])
        _, num_kv_heads, _, self._head_dim = shapes.pop()
        # Where the values begin among the heads, and the keys among those before.
        self._last_heads = (-num_kv_heads,)
        # By layer, of all slots; and of each slot: to make a view takes longer than an addition.
        self._caches = list(zip(cache.keys.values(), cache.values.values(), strict=True))
        rows = [slice(slot, slot + 1) for slot in range(cache.num_slots)]
        self._slot_caches = [[(keys[row], values[row]) for keys, values in self._caches] for row in rows]

    def forward(self, slots: Sequence[int], tokens: Sequence[int], positions: Sequence[int]) -> torch.Tensor:
        """Logits [slots, vocabulary] of the tokens after `tokens`, one of each slot, at `positions`. Or several of one
        slot, at positions that follow one another: each sees those before it."""
        hidden = embedding(torch.tensor(tokens), self._embeddings)
        cos, sin = self._angles(hidden, positions)
        places = list(zip(slots, positions, strict=True))
        columns = torch.tensor(slots), slice(None), torch.tensor(positions)
        for number, layer in enumerate(self._layers):
            query, key, value = self._heads(layer, layer.norm(hidden), cos, sin)
            self._write(number, key, value, places, columns)
            hidden = layer.output(self._attend(number, layer, query, places)).add_(hidden)
            gate, up = layer.gate_up(layer.mlp_norm(hidden)).chunk(2, -1)
            hidden = layer.down(silu(gate).mul_(up)).add_(hidden)
        return self._head(self._norm(hidden))

    def _angles(self, hidden: torch.Tensor, positions: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """RoPE's cos and sin of every slot, [slots, 1, head dim]; sin's first half negated, for `_attend`."""
        cos, sin = self._rotary(hidden, torch.tensor([positions]))
        half = self._head_dim // 2
        if cos.shape[-1] != self._head_dim:
            raise NotImplementedError("RoPE on a part of a head")
        sin = torch.cat((-sin[..., :half], sin[..., half:]), -1)
        return cos[0].unsqueeze(1), sin[0].unsqueeze(1)

    def _heads(
        self, layer: _Layer, hidden: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Query, key and value of every row, [rows, heads, head dim], the first two turned by RoPE."""
        heads = layer.qkv(hidden).view(hidden.shape[0], -1, self._head_dim)
        rotated, value = heads.tensor_split(self._last_heads, 1)
        if layer.query_norm is not None and layer.key_norm is not None:
            query, key = rotated.tensor_split(self._last_heads, 1)
            rotated = torch.cat((layer.query_norm(query), layer.key_norm(key)), 1)
        rotated = (rotated * cos).add_(rotated.roll(self._head_dim // 2, -1).mul_(sin))
        query, key = rotated.tensor_split(self._last_heads, 1)
        return query, key, value

    def _write(
        self,
        number: int,
        key: torch.Tensor,
        value: torch.Tensor,
        places: list[tuple[int, int]],
        columns: tuple[torch.Tensor, slice, torch.Tensor],
    ) -> None:
        """Put the rows' keys and values, [rows, heads, head dim], into the cache at `places`, (slot, position) each.
        columns: the same as one index, which a copy for a single row is faster than."""
        if len(places) == 1:
            ((slot, position),) = places
            keys, values = self._slot_caches[slot][number]
            keys.select(2, position).copy_(key)
            values.select(2, position).copy_(value)
            return
        keys, values = self._caches[number]
        keys[columns] = key
        values[columns] = value

    def _attend(self, number: int, layer: _Layer, query: torch.Tensor, places: list[tuple[int, int]]) -> torch.Tensor:
        """[rows, heads * head dim]. Each row by itself, over its own length: its result then does not depend on the
        other slots, nor on what follows."""
        keys, _ = self._caches[number]
        packed = pack_by_key(query.unsqueeze(2), keys.shape[1])
        outputs = []
        for row, (slot, position) in zip(packed.split(1), places, strict=True):
            keys, values = self._slot_caches[slot][number]
            key, value = keys.narrow(2, 0, position + 1), values.narrow(2, 0, position + 1)
            outputs.append(scaled_dot_product_attention(row, key, value, scale=layer.scaling))
        return unpack_by_key(outputs[0] if len(outputs) == 1 else torch.cat(outputs), query.shape[1])


def make_fast_decode(model: PreTrainedModel, runner: ModelRunner) -> FastDecodePass | None:
    """A fast pass over the runner's cache; None where the model has none. Overwrites the cache's first slot."""
    try:
        fast = FastDecodePass(model, runner.cache)
        is_same = is_equal(fast, runner)
    except (AttributeError, TypeError, ValueError, RuntimeError) as error:
        log.info("no fast decode: %s", error)
        return None
    if not is_same:
        log.info("no fast decode: it computes something else than %s", type(model).__name__)
        return None
    return fast


def is_equal(fast: FastDecodePass, runner: ModelRunner) -> bool:
    """Whether both passes give the same logits after a short text and leave the same cache, to the bit."""
    count = min(NUM_SAMPLES, runner.cache.context_tokens)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(runner.vocabulary, (count,), generator=generator).tolist()
    num_read = max(0, count - NUM_DECODED)
    if num_read:
        read = torch.tensor([tokens[:num_read]]), torch.arange(num_read).unsqueeze(0)
        runner.forward(*read, 0, num_read)
    for position in range(num_read, count):
        place = torch.tensor([[position]])
        wanted = runner.forward(torch.tensor([[tokens[position]]]), place, 0, position + 1)
        kept = [tensor[0, :, position].clone() for tensor in runner.cache.tensors]
        got = fast.forward([0], [tokens[position]], [position])
        written = [tensor[0, :, position] for tensor in runner.cache.tensors]
        if not torch.equal(wanted, got) or not all(map(torch.equal, kept, written)):
            return False
    return True


def refuse_config(config: Any) -> None:
    """Raise NotImplementedError for what a short text does not show: a sliding window, capped scores."""
    if getattr(config, "sliding_window", None) or "sliding_attention" in (getattr(config, "layer_types", None) or ()):
        raise NotImplementedError("a sliding window")
    if getattr(config, "attn_logit_softcapping", None) is not None:
        raise NotImplementedError("capped scores")


def _read_layer(layer: Any) -> _Layer:
    attention, mlp = layer.self_attn, layer.mlp
    for module, parts in ((layer, LAYER_PARTS), (attention, ATTENTION_PARTS), (mlp, MLP_PARTS)):
        others = {name for name, _ in module.named_children()} - parts
        if others:
            raise NotImplementedError(f"{type(module).__name__} with {', '.join(sorted(others))}")
    is_normed = hasattr(attention, "q_norm")
    return _Layer(
        norm=_norm(layer.input_layernorm),
        qkv=_side_by_side([getattr(attention, name) for name in PROJECTIONS]),
        query_norm=_norm(attention.q_norm) if is_normed else None,
        key_norm=_norm(attention.k_norm) if is_normed else None,
        output=_matrix(attention.o_proj),
        mlp_norm=_norm(layer.post_attention_layernorm),
        gate_up=_side_by_side([mlp.gate_proj, mlp.up_proj]),
        down=_matrix(mlp.down_proj),
        scaling=attention.scaling,
    )


def _norm(module: Any) -> Function:
    weight: torch.Tensor = module.weight
    # A number of Python's becomes a tensor for each operation.
    eps = torch.tensor(getattr(module, "variance_epsilon", getattr(module, "eps", None)))
    size = torch.tensor(float(weight.shape[0]))

    def norm(x: torch.Tensor) -> torch.Tensor:
        # What torch.rms_norm computes, in fewer operations; rounded before the product with the weight, as in
        # transformers' models.
        wide = x.float()
        scale = wide.square().sum(-1, True).div_(size).add_(eps).rsqrt_()
        return CASTS[x.dtype](wide * scale).mul_(weight)

    return norm


def _side_by_side(modules: list[nn.Module]) -> Function:
    """The outputs of several matrices for the same input, side by side."""
    first = modules[0]
    if isinstance(first, MergedLinearSlice):
        return _matrix(first.merged)
    functions = [_matrix(module) for module in modules]
    return lambda x: torch.cat([function(x) for function in functions], -1)


def _matrix(module: nn.Module) -> Function:
    if isinstance(module, CpuInt4Linear | PackedLinear):
        return module.multiply_rows
    if isinstance(module, nn.Linear):
        weight, bias = module.weight, module.bias
        return lambda x: linear(x, weight, bias)
    raise NotImplementedError(f"matrices as {type(module).__name__}")


def _head(module: Any, size: int) -> Function:
    """The model's head. A plain one takes torch.mv for one row, about 1.5 times as fast, if that rounds alike."""
    function = _matrix(module)
    if not isinstance(module, nn.Linear) or module.bias is not None:
        return function
    weight = module.weight
    sample = torch.randn((1, size), generator=torch.Generator().manual_seed(0)).to(weight.dtype)
    if not torch.equal(torch.mv(weight, sample[0]), function(sample)[0]):
        return function
    return lambda x: torch.mv(weight, x[0]).unsqueeze(0) if x.shape[0] == 1 else function(x)
