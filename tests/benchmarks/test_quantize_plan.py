"""The benchmark that holds the plan of quantizing against what it took: the models that it makes can be quantized."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import plain_model, quantize_plan
from core.quantize.options import QuantizeOptions
from core.quantize.source import read_plain

SMALL = {
    "model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "vocab_size": 512,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip


@pytest.mark.parametrize("tied", [False, True])
def test_a_random_model_is_one_that_can_be_quantized(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tied: bool
) -> None:
    monkeypatch.setitem(plain_model.SHAPES, "small", SMALL | {"tie_word_embeddings": tied})
    monkeypatch.setattr(plain_model, "TOKENS", 384)
    plain_model.make_plain(tmp_path / "model", "small", 2)
    found = read_plain(tmp_path / "model")
    assert (found.num_layers, len(found.matrices), len(found.files)) == (2, 14, 3)
    assert ("lm_head.weight" in found.tensors) is not tied


def test_a_job_is_watched_layer_by_layer_and_ended_at_its_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the CPU, by gptqmodel itself; the second is given no time at all."""
    monkeypatch.setitem(plain_model.SHAPES, "small", SMALL | {"tie_word_embeddings": False})
    monkeypatch.setattr(plain_model, "TOKENS", 384)
    monkeypatch.setenv("LLAMADECK_MODELS", str(tmp_path / "models"))
    options = QuantizeOptions(group_size=64)
    row = quantize_plan.measure(tmp_path, "small", 2, options, "cpu", 540.0, False)
    assert (row.said, row.layers, row.all_layers) == ("", 2, 3)
    assert row.taken["ram"] > 100 and row.taken["result"] >= 0 and row.stages_s["quantize"] > 0
    assert row.scaled_s > 0
    assert not (tmp_path / "random-small-2").exists()
    ended = quantize_plan.measure(tmp_path, "small", 2, options, "cpu", 0.0, False)
    assert "ended after" in ended.said
    lines = quantize_plan.table([row, ended]).splitlines()
    assert lines[2].startswith("| small | 2 of 3 |") and lines[4].startswith("small: ended after")


def test_a_time_is_scaled_by_the_layers_it_was_taken_of() -> None:
    row = quantize_plan.Row("x", 8, 32, "cpu", "", 1.0, {}, took_s=50.0, layer_s=3.0)
    row.stages_s = {"before": 4.0, "quantize": 34.0, "after": 6.0}
    # 32 layers of 3 s, four times the 10 s of reading, and 16 s once.
    assert quantize_plan.scaled_s(row) == 32 * 3 + 4 * 10 + 16


@pytest.mark.parametrize(("planned", "taken", "held"), [(1000, 1001, False), (1000, 1000, True), (1080, 1000, False)])
def test_a_plan_is_held_from_above(planned: int, taken: int, held: bool) -> None:
    assert quantize_plan.is_held(planned, taken) is held


def test_the_room_of_a_folder_is_that_of_its_files(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b").write_bytes(b"12345")
    (tmp_path / "c").write_bytes(b"1")
    assert quantize_plan.used_bytes(tmp_path) == 6
