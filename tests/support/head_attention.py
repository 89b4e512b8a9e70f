"""Attention of new tokens with all that heads may have, written out: norms, RoPE on a part, gates, sinks."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from core.worker.kernels.decode_attention import NO_NORM, HeadKind, HeadNorm


@dataclass(frozen=True, slots=True)
class HeadCase:
    """heads: query heads and KV heads."""

    heads: tuple[int, int]
    kind: HeadKind
    offset: float = 0.0
    has_sinks: bool = False
    window: int = 2**30


CASES = {
    "plain": HeadCase((4, 2), HeadKind(64, 64)),
    "Qwen3: normed": HeadCase((4, 2), HeadKind(128, 128, is_normed=True)),
    "Qwen3.5: a quarter turned, normed, gated": HeadCase((6, 1), HeadKind(256, 64, True, True), offset=1.0),
    "gpt-oss: sinks in a window": HeadCase((8, 1), HeadKind(64, 64), has_sinks=True, window=50),
    "a part turned, gated, sinks": HeadCase((3, 1), HeadKind(64, 48, is_gated=True), has_sinks=True),
}


# Into how many blocks a head is split, and whether those read one another's shared memory.
SHARINGS: list[tuple[tuple[int, ...], bool]] = [((1,), False), ((4,), False), ((8,), True), ((2,), True)]


@dataclass(slots=True)
class HeadTokens:
    """New tokens of a case: qkv [tokens, features], their angles [tokens, rotary], norm and sinks."""

    case: HeadCase
    qkv: torch.Tensor
    cos: torch.Tensor
    sin: torch.Tensor
    norm: HeadNorm
    sinks: torch.Tensor | None

    def split(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Query and key after norm and RoPE, value, gate: each [heads, tokens, dim] in float32."""
        (num_heads, num_kv_heads), kind = self.case.heads, self.case.kind
        heads = self.qkv.view(len(self.qkv), -1, kind.dim).transpose(0, 1)
        queries, keys, values = heads.split([num_heads * kind.query_heads, num_kv_heads, num_kv_heads])
        gate = queries[1::2].float() if kind.is_gated else None
        query = self._turn(self._normed(queries[:: kind.query_heads], self.norm.query))
        return query, self._turn(self._normed(keys, self.norm.key)), values.float(), gate

    def _normed(self, heads: torch.Tensor, weight: torch.Tensor | None) -> torch.Tensor:
        if weight is None:
            return heads.float()
        normed = torch.nn.functional.rms_norm(heads.float(), (heads.shape[-1],), eps=self.norm.eps)
        return (normed * (weight.float() + self.norm.offset)).to(heads.dtype).float()

    def _turn(self, heads: torch.Tensor) -> torch.Tensor:
        rotary = self.case.kind.rotary
        first, second = heads[..., : rotary // 2], heads[..., rotary // 2 : rotary]
        turned = heads[..., :rotary] * self.cos.float() + torch.cat((-second, first), -1) * self.sin.float()
        return torch.cat((turned, heads[..., rotary:]), -1).to(self.qkv.dtype).float()

    def attended(
        self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, columns: torch.Tensor
    ) -> torch.Tensor:
        """query [heads, tokens, dim] at `columns` [tokens] over keys and values [kv heads, columns, dim] -> [heads,
        tokens, dim], before the gate."""
        each = len(query) // len(keys)
        keys, values = keys.float().repeat_interleave(each, 0), values.float().repeat_interleave(each, 0)
        back = columns[:, None] - torch.arange(keys.shape[1], device=columns.device)
        is_hidden = (back < 0) | (back >= self.case.window)
        scores = (query @ keys.transpose(1, 2) * query.shape[-1] ** -0.5).masked_fill(is_hidden, -torch.inf)
        if self.sinks is not None:
            scores = torch.cat((scores, self.sinks.float()[:, None, None].expand(-1, len(columns), 1)), -1)
        return scores.softmax(-1)[..., : keys.shape[1]] @ values


def make_tokens(case: HeadCase, num_tokens: int, dtype: torch.dtype, device: torch.device | None = None) -> HeadTokens:
    """The same for the same arguments, on any device."""
    random, kind, (num_heads, num_kv_heads) = torch.Generator().manual_seed(3), case.kind, case.heads

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=random, device="cpu").to(device, dtype)

    features = (num_heads * kind.query_heads + 2 * num_kv_heads) * kind.dim
    angle = (torch.rand((num_tokens, kind.rotary // 2), generator=random, device="cpu") * 6).repeat(1, 2)
    norm = HeadNorm(draw(kind.dim), draw(kind.dim), 1e-6, case.offset) if kind.is_normed else NO_NORM
    sinks = draw(num_heads) if case.has_sinks else None
    cos, sin = angle.cos().to(device, dtype), angle.sin().to(device, dtype)
    return HeadTokens(case, draw(num_tokens, features), cos, sin, norm, sinks)


def gated(attended: torch.Tensor, gate: torch.Tensor | None) -> torch.Tensor:
    return attended if gate is None else attended * gate.sigmoid()
