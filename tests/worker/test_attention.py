"""Attention of one token whose queries share keys, on a CPU."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from core.worker.model import attention
from core.worker.model.attention import attend_by_key


@pytest.mark.parametrize("has_products", [False, True], ids=["even rows", "rows as they are"])
@pytest.mark.parametrize("is_masked", [False, True], ids=["all", "masked"])
@pytest.mark.parametrize(("num_heads", "num_kv_heads"), [(14, 2), (8, 8), (8, 2)])
def test_queries_of_a_key_together_are_as_near_to_the_truth_as_one_by_one(
    num_heads: int, num_kv_heads: int, is_masked: bool, has_products: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "multiplies_bfloat16", lambda: has_products)
    generator = torch.Generator().manual_seed(0)
    cache = torch.randn((2, 2, num_kv_heads, 1024, 64), generator=generator).bfloat16()
    query = torch.randn((2, num_heads, 1, 64), generator=generator).bfloat16()
    for length in (1, 2, 33, 512, 700):
        key, value = cache.narrow(3, 0, length)
        mask = torch.rand((2, 1, 1, length), generator=generator) < 0.7 if is_masked else None
        if mask is not None:
            mask[..., 0] = True
        wanted = scaled_dot_product_attention(
            query.double(), key.double(), value.double(), attn_mask=mask, scale=0.2, enable_gqa=True
        )
        each = scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=0.2, enable_gqa=True)
        got = attend_by_key(query, key, value, 0.2, mask).view(2, num_heads, 1, 64)
        allowed = (each.double() - wanted).abs().mean() * 1.05
        assert (got.double() - wanted).abs().mean() <= allowed
