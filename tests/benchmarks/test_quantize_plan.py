"""The benchmark that holds the plan of quantizing against what it took: the models that it makes can be quantized."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import quantize_plan
from core.quantize.source import read_plain

SMALL = {
    "model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "vocab_size": 512,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip


@pytest.mark.parametrize("tied", [False, True])
def test_a_random_model_is_one_that_can_be_quantized(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tied: bool
) -> None:
    monkeypatch.setitem(quantize_plan.SHAPES, "small", SMALL | {"tie_word_embeddings": tied})
    monkeypatch.setattr(quantize_plan, "TOKENS", 384)
    quantize_plan.make_plain(tmp_path / "model", "small", 2)
    found = read_plain(tmp_path / "model")
    assert (found.num_layers, len(found.matrices), len(found.files)) == (2, 14, 3)
    assert ("lm_head.weight" in found.tensors) is not tied


def test_the_room_of_a_folder_is_that_of_its_files(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b").write_bytes(b"12345")
    (tmp_path / "c").write_bytes(b"1")
    assert quantize_plan.used_bytes(tmp_path) == 6
