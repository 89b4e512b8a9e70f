"""Families that the plan promises: gptqmodel knows each, and what it quantizes is what the plan counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from gptqmodel.models.auto import SUPPORTED_MODELS

from core.checkpoint.checkpoint import read_checkpoint
from core.checkpoint.families import families
from core.common.errors import CheckpointError
from core.quantize.child import gptq, perplexity
from core.quantize.child.class_check import check_tensors
from core.quantize.families import KNOWN
from core.quantize.job_file import JobFile
from core.quantize.options import QuantizeOptions
from core.quantize.plan import result_checkpoint
from core.quantize.source import read_plain
from tests.support.plain_models import EXPERTS, VOCABULARY, make_plain, make_plain_with_pictures

OPTIONS = QuantizeOptions(8, 32)
FOUR: dict[str, Any] = {"num_local_experts": 4, "num_experts_per_tok": 2}
MAMBA: dict[str, Any] = {"mamba_n_heads": 4, "mamba_d_head": 32, "mamba_d_state": 32, "mamba_n_groups": 1}
# What each of them was: refused by a class of transformers that had changed, or left with its experts in 16 bit.
ODD: dict[str, dict[str, Any]] = {
    "ernie4_5_moe": {"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 64, "moe_num_shared_experts": 1,
                     "moe_layer_start_index": 1, "moe_layer_end_index": 1},
    "falcon_h1": {"mamba_d_ssm": 128, **MAMBA, "head_dim": 32, "ssm_multipliers": [0.9, 1.1, 0.8, 1.2, 0.7]},
    "glm4_moe": {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "n_shared_experts": 1,
                 "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1, "head_dim": 32},
    "granitemoe": FOUR,
    "granitemoehybrid": {**FOUR, **MAMBA, "shared_intermediate_size": 64, "layer_types": ["mamba", "attention"]},
    "lfm2_moe": {**EXPERTS, "num_hidden_layers": 3, "num_dense_layers": 1,
                 "layer_types": ["conv", "full_attention", "conv"]},
    "minimax_m2": {**FOUR, "head_dim": 32},
}  # fmt: skip
MROPE: dict[str, Any] = {"rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e4}}
# Text and pictures.
PICTURES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "mistral3": ({"model_type": "mistral", "head_dim": 32},
                 {"model_type": "pixtral", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1,
                  "num_attention_heads": 2, "image_size": 28, "patch_size": 14}),
    "qwen2_5_vl": (MROPE, {"depth": 1, "hidden_size": 32, "num_heads": 2, "out_hidden_size": 64,
                           "intermediate_size": 64, "patch_size": 14}),
}  # fmt: skip


NULL: dict[str, Any] = {"head_dim": None}
# What config.json says otherwise.
WRITTEN: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "qwen2": ({}, NULL),
    "qwen3": ({"head_dim": 16}, NULL),
    # Resized without its configuration, or announced and never made.
    "llama": ({}, {"vocab_size": VOCABULARY - 8, "pad_token_id": VOCABULARY}),
    "mistral": ({}, {"vocab_size": VOCABULARY + 64, "pad_token_id": -1}),
    # The text part alone, under the name of the whole.
    "qwen3_5_text": ({"layer_types": ["linear_attention", "full_attention"], "head_dim": 16,
                      "linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 32,
                      "linear_value_head_dim": 32}, {"model_type": "qwen3_5"}),
}  # fmt: skip


def ignore(fraction: float, **more: int) -> None:
    """Nobody is told."""


def test_the_families_are_those_of_gptqmodel_that_run_here() -> None:
    running = {family.name for family in families().values() if family.runs}
    assert running & set(SUPPORTED_MODELS) - {"llama4_text"} == KNOWN


def test_a_family_that_gptqmodel_lacks_is_refused_before_anything_begins(tmp_path: Path) -> None:
    """The plan promised it, and the job failed after the libraries had been loaded."""
    with pytest.raises(CheckpointError) as raised:
        read_plain(make_plain(tmp_path / "model", "olmo"))
    assert raised.value.key == "quantize_family" and "olmo" in raised.value.sentence("en")


@pytest.mark.slow
@pytest.mark.parametrize("family", ODD)
def test_a_family_is_quantized_as_its_plan_says(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_quantizing(make_plain(tmp_path / "model", family, **ODD[family]), tmp_path, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("family", PICTURES)
def test_the_text_part_of_a_model_with_pictures_is_quantized(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without what makes pictures fit, which wants packages that nobody has here."""
    check_quantizing(make_plain_with_pictures(tmp_path / "model", family, *PICTURES[family]), tmp_path, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("family", WRITTEN)
def test_a_source_is_quantized_whose_config_is_not_as_its_class_writes_it(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A load took them; quantizing ended in an error of the libraries, or found weights missing that no file needs."""
    sizes, written = WRITTEN[family]
    source = make_plain(tmp_path / "model", family, **sizes)
    path = source / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | written), "utf-8")
    check_quantizing(source, tmp_path, monkeypatch)


def check_quantizing(source: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In 8 bit, which loses next to nothing."""
    # gptqmodel keeps a log in the current folder, and wants two workers for its queues.
    monkeypatch.chdir(folder)
    monkeypatch.setenv("GPTQMODEL_CPU_WORKERS", "2")
    (folder / "work").mkdir()
    check_tensors(source, "made")
    before = perplexity.measure(source, "cpu", ignore)
    gptq.quantize(source, JobFile("made", source, OPTIONS), folder / "work", folder / "out", ignore)
    found = read_checkpoint(folder / "out")
    found.require_runs()
    assert set(found.matrices) == set(result_checkpoint(read_plain(source), OPTIONS).matrices)
    for language, after in perplexity.measure(folder / "out", "cpu", ignore).items():
        assert after == pytest.approx(before[language], rel=0.01)
