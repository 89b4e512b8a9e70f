"""Plain matrices in oneDNN's layout: the same numbers to the bit, and what they cannot stand in for stays."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from core.worker.model import packed_linear
from core.worker.model.packed_linear import PackedLinear, pack_linears

IDS = torch.tensor([[5, 9, 77, 301, 12]])
pytestmark = pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="oneDNN does not multiply bfloat16 on this CPU"
)


@pytest.fixture(autouse=True)
def multiplies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_linear, "multiplies_bfloat16", lambda: True)


def small_model(tied: bool, dtype: torch.dtype = torch.bfloat16) -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(hidden_size=256, intermediate_size=512, num_hidden_layers=1, num_attention_heads=4,
                         num_key_value_heads=1, vocab_size=1000, attention_bias=True,
                         tie_word_embeddings=tied)  # fmt: skip
    return LlamaForCausalLM(config).to(dtype).eval()


def packed_names(model: Any) -> set[str]:
    return {name for name, module in model.named_modules() if isinstance(module, PackedLinear)}


@pytest.mark.parametrize("tied", [False, True])
def test_a_model_says_the_same_to_the_bit(tied: bool) -> None:
    model = small_model(tied)
    with torch.inference_mode():
        wanted, embedding = model(IDS).logits, model.get_input_embeddings().weight.clone()
        # Key and value have 64 outputs: too few.
        assert pack_linears(model) == 6
        assert torch.equal(model(IDS).logits, wanted)
    assert packed_names(model) == {
        "lm_head", *(f"model.layers.0.{name}" for name in ("self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj",
                                                           "mlp.up_proj", "mlp.down_proj"))
    }  # fmt: skip
    assert torch.equal(model.get_input_embeddings().weight, embedding)


def test_rows_of_any_number_are_multiplied_alike() -> None:
    linear = nn.Linear(384, 1001).bfloat16()
    packed = PackedLinear(linear)
    for count in (1, 3, 7, 40, 300):
        rows = torch.randn(count, 384).bfloat16()
        assert torch.equal(packed.multiply_rows(rows), linear(rows))
    assert packed(torch.zeros(2, 3, 384).bfloat16()).shape == (2, 3, 1001)


class OtherLinear(nn.Linear):
    """Does more than its product."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input) + 1


def test_what_is_no_plain_matrix_of_bfloat16_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    assert pack_linears(small_model(True, torch.float32)) == 0
    model = small_model(True)
    model.model.layers[0].mlp.up_proj = OtherLinear(256, 512).bfloat16()
    assert pack_linears(model) == 5 and isinstance(model.model.layers[0].mlp.up_proj, OtherLinear)


def test_a_product_that_rounds_otherwise_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_linear, "computes_the_same", lambda packed, linear: linear.out_features != 1000)
    model = small_model(True)
    assert pack_linears(model) == 5 and "lm_head" not in packed_names(model)


def test_a_cpu_without_such_products_keeps_them_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_linear, "multiplies_bfloat16", lambda: False)
    assert pack_linears(small_model(True)) == 0
