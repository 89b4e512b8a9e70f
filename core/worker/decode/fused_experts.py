"""The experts of a decoder layer in a few kernels: norm and router, gate and up, down and the residual sum.

A router is recognized by its modules, whatever its family, and its rule by what it gives for a few rows.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch
from torch import nn

from core.worker.decode.fused_modules import FusedMlp, FusedNorm
from core.worker.decode.graph_cache import GraphCache
from core.worker.decode.layer_parts import LayerArguments
from core.worker.kernels import step_ops
from core.worker.kernels.dense_small_batch import can_multiply_dense, dense_kernels_for
from core.worker.kernels.packed_experts import PackedExperts
from core.worker.kernels.packed_small_batch import MAX_SHORT_PROMPT, MAX_SMALL_BATCH, PackedLinear
from core.worker.kernels.routed_pairs import Added
from core.worker.kernels.router_kernel import (
    MAX_CHOSEN,
    MAX_EXPERTS,
    MAX_SIZE,
    Routed,
    RouterWeights,
    RoutingRule,
    router_kernels_for,
)

log = logging.getLogger(__name__)
# Of the mean weight: half precision rounds some logits another way, where their sums have another order. NUM_SAMPLES:
# rows that a rule is tried with.
TOLERANCE, NUM_SAMPLES = 0.01, 64
# The share of rows whose experts may differ: logits in half precision are often equal, and either is the next best.
SHARE_OF_TIES = 0.25


@dataclass(frozen=True, slots=True)
class ExpertModules:
    """A layer's norm, router and experts, and the expert that all tokens go through beside them, if there is one; its
    gate [1, hidden], if it has one."""

    norm: FusedNorm
    router: nn.Module
    experts: PackedExperts
    shared: nn.Module | None
    gate: nn.Linear | None

    @property
    def chosen(self) -> int:
        return int(self.router.top_k)

    def weights(self) -> RouterWeights:
        weight = self.router.weight
        assert isinstance(weight, torch.Tensor)
        bias = getattr(self.router, "e_score_correction_bias", None)
        if bias is None:
            bias = getattr(getattr(self.router, "moe_statics", None), "e_score_correction_bias", None)
        flat = bias.detach().float().flatten() if isinstance(bias, torch.Tensor) else None
        return RouterWeights(self.norm.before(None), weight, flat, self.gate.weight[0] if self.gate else None)


def find_expert_modules(layer: nn.Module) -> ExpertModules | None:
    """Those of a decoder layer with experts, all of them in our kernels; None for any other layer."""
    block, norm = getattr(layer, "mlp", None), getattr(layer, "post_attention_layernorm", None)
    block = getattr(layer, "block_sparse_moe", None) if block is None else block
    experts, router = getattr(block, "experts", None), getattr(block, "gate", getattr(block, "router", None))
    weight, chosen = getattr(router, "weight", None), getattr(router, "top_k", None)
    if not isinstance(norm, FusedNorm) or not isinstance(experts, PackedExperts) or not isinstance(router, nn.Module):
        return None
    if not isinstance(weight, torch.Tensor) or weight.dtype != norm.weight.dtype or not isinstance(chosen, int):
        return None
    num_experts, size = weight.shape
    if size > MAX_SIZE or size % 64 or num_experts > MAX_EXPERTS or chosen > MAX_CHOSEN:
        return None
    if getattr(router, "bias", None) is not None or int(getattr(router, "num_group", None) or 1) > 1:
        return None
    shared = getattr(block, "shared_expert", getattr(block, "shared_experts", None))
    gate = getattr(block, "shared_expert_gate", None)
    if gate is not None and (not isinstance(gate, nn.Linear) or gate.bias is not None or gate.out_features != 1):
        return None
    return ExpertModules(norm, router, experts, shared, gate)


def find_rule(modules: ExpertModules, likely: RoutingRule | None = None) -> RoutingRule | None:
    """The rule by which the router chooses: `likely` if it does, else the nearest; None where none is near."""
    weights = modules.weights()
    shape = NUM_SAMPLES, weights.router.shape[1]
    sample = torch.randn(shape, generator=torch.Generator("cpu").manual_seed(0))
    x = sample.to(weights.router.device, weights.router.dtype)
    outputs = modules.router(modules.norm(x.unsqueeze(0)).squeeze(0))
    if not isinstance(outputs, tuple) or len(outputs) != 3:
        return None
    _, wanted, ids = outputs
    if wanted.shape != (NUM_SAMPLES, modules.chosen) or ids.shape != wanted.shape:
        return None
    if likely is not None and difference(modules, x, likely, wanted, ids) <= TOLERANCE:
        return likely
    by_difference = {difference(modules, x, rule, wanted, ids): rule for rule in rules(modules.router)}
    least = min(by_difference)
    if least <= TOLERANCE:
        return by_difference[least]
    log.info("the router %s chooses in another way", type(modules.router).__name__)
    return None


def difference(
    modules: ExpertModules, x: torch.Tensor, rule: RoutingRule, wanted: torch.Tensor, ids: torch.Tensor
) -> float:
    """How far the weights that `rule` gives rows `x` are from `wanted` on average, as a share of those; infinity where
    it chooses other experts."""
    got = _route(modules, x, rule)
    others = (got.ids.sort().values != ids.sort().values).any(-1).float().mean()
    if float(others) > SHARE_OF_TIES:
        return float("inf")
    off = (got.weights.sort().values - wanted.float().sort().values).abs()
    return float(off.mean() / wanted.float().abs().mean())


def rules(router: Any) -> Iterator[RoutingRule]:
    """The rules that there are, with the numbers of `router`; those that round most first."""
    scale = getattr(router, "routed_scaling_factor", None) or 1.0
    least_sum = getattr(router, "norm_min", None) or 1e-20
    for is_sigmoid, is_normalized in product((False, True), (True, False)):
        for rounds_logits, rounds_weights in ((True, True), (True, False), (False, True), (False, False)):
            rule = RoutingRule(is_sigmoid, is_normalized, rounds_logits, rounds_weights)
            yield replace(rule, scale=float(scale), least_sum=float(least_sum))


def _route(modules: ExpertModules, x: torch.Tensor, rule: RoutingRule) -> Routed:
    weights = modules.weights()
    kernels = router_kernels_for(x.dtype, *weights.router.shape, x.device)
    return kernels.route(x, weights, rule, modules.chosen)


class FusedExperts:
    """The MLP (a LayerPart) of a layer, where a router chooses experts."""

    is_fused = True

    def __init__(self, modules: ExpertModules, rule: RoutingRule) -> None:
        self._modules, self._rule, self._weights = modules, rule, modules.weights()

    def can_prefill(self) -> bool:
        return True

    def decode(self, hidden: torch.Tensor, arguments: LayerArguments) -> torch.Tensor:
        cache = arguments.get("past_key_values")
        return self._run(hidden, True, cache.columns if isinstance(cache, GraphCache) else None)

    def prefill(self, hidden: torch.Tensor, arguments: LayerArguments) -> torch.Tensor:
        return self._run(hidden, False)

    def _run(self, hidden: torch.Tensor, is_step: bool, columns: torch.Tensor | None = None) -> torch.Tensor:
        modules, kernels = self._modules, router_kernels_for(hidden.dtype, *self._weights.router.shape, hidden.device)
        routed = kernels.route(hidden, self._weights, self._rule, modules.chosen, columns)
        shared = None
        if modules.shared is not None:
            shared = multiply_mlp(modules.shared, routed.normed, MAX_SMALL_BATCH if is_step else MAX_SHORT_PROMPT)
        added = Added(hidden, shared, routed.gates)
        return modules.experts.multiply(routed.normed, routed.ids, routed.weights, added, is_step)


def multiply_mlp(mlp: nn.Module, x: torch.Tensor, few_rows: int) -> torch.Tensor:
    """x [rows, size] through an MLP; of up to `few_rows` in two or three kernels where it is one of ours, or has no
    more than three plain matrices."""
    if x.shape[0] <= few_rows:
        gate_up, down = getattr(mlp, "gate_up", None), getattr(mlp, "down", None)
        if (
            isinstance(mlp, FusedMlp)
            and isinstance(gate_up, PackedLinear)
            and isinstance(down, PackedLinear)
            and gate_up.inverse_permutation is None
        ):
            gated = gate_up.kernels.multiply(
                gate_up.matrix, x, "swiglu", gate_up.bias, inverse_permutation=down.inverse_permutation
            )
            return down.kernels.multiply(down.matrix, gated, "none", down.bias)
        linears = [getattr(mlp, name, None) for name in ("gate_proj", "up_proj", "down_proj")]
        plain = [one.weight for one in linears if isinstance(one, nn.Linear) and can_multiply_dense(one)]
        if len(plain) == len(linears):
            kernels = dense_kernels_for(x.dtype, x.device)
            return kernels.multiply(plain[2:], step_ops.swiglu(kernels.multiply(plain[:2], x)))
    out: torch.Tensor = mlp(x)
    return out
