"""Adapters as trainers publish them: each is understood as PEFT understands it, or refused in words.

What is in them was found in public adapters and in reports about them; PEFT itself makes them here, of a tiny model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from core.checkpoint.adapters import VARIANTS, WEIGHTS, match_base, read_adapter
from core.checkpoint.weight_files import ADAPTER_CONFIG
from core.common.errors import CheckpointError
from core.quantize.source import read_plain
from tests.support.plain_models import change_json, make_adapter, make_plain

# A trainer's pattern of a language model's matrices, whatever its class calls them.
PARTS = "(?:self_attn|attention|attn|mlp|feed_forward|ffn|dense)"
ANY_TEXT = (
    rf"(?:.*?(?:language|text).*?{PARTS}.*?(?:k_proj|v_proj|q_proj|o_proj).*?)"
    rf"|(?:\bmodel\.layers\.[\d]{{1,}}\.{PARTS}\.(?:(?:k_proj|q_proj|up_proj)))"
)
RIGHT: dict[str, dict[str, Any]] = {
    "a pattern of layers and of names in rank_pattern": {
        "r": 8,
        "rank_pattern": {r".*\.layers\.1\..*(q_proj|k_proj|v_proj|o_proj)$": 3},
        "alpha_pattern": {r".*\.layers\.1\..*(q_proj|k_proj|v_proj|o_proj)$": 128},
    },
    "of two patterns the first": {"rank_pattern": {r"layers\.\d+\.self_attn\.(q|k)_proj": 5, "q_proj": 2}},
    "a pattern that also fits parts of names": {"alpha_pattern": {"proj": 3, "_proj": 4, ".*q_proj": 5}},
    "target_modules as a pattern": {"target_modules": ANY_TEXT},
    "one layer": {"target_modules": ["q_proj", "down_proj"], "layers_to_transform": [1], "layers_pattern": "layers"},
    "all but some": {"target_modules": "all-linear", "exclude_modules": r".*\.(k_proj|gate_proj)"},
    "rsLoRA with a broken alpha": {"use_rslora": True, "lora_alpha": 12.5, "r": 7},
    "begun by numbers that change no base": {"init_lora_weights": "orthogonal", "r": 4},
    "dropout and bias none": {"lora_dropout": 0.1, "bias": "none", "task_type": "CAUSAL_LM"},
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_plain(tmp_path_factory.mktemp("plain") / "Tiny-1M")


def check_as_peft(base: Path, folder: Path) -> None:
    """Each matrix that PEFT changes is known, with what PEFT adds to it; and no other."""
    model: Any = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), folder)
    wanted = {
        name.removeprefix("base_model.model."): module.get_delta_weight("default")
        for name, module in model.named_modules()
        if hasattr(module, "get_delta_weight") and "default" in module.lora_A
    }
    adapter, plain = read_adapter(folder), read_plain(base)
    matched, tensors = match_base(adapter, plain.name, plain.linears), load_file(folder / WEIGHTS)
    assert matched.keys() == wanted.keys()
    for name, matrix in matched.items():
        delta = matrix.scale * (tensors[matrix.b_name].float() @ tensors[matrix.a_name].float())
        is_turned = plain.is_turned(f"{name}.weight")
        torch.testing.assert_close(delta.T if is_turned else delta, wanted[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("settings", RIGHT.values(), ids=RIGHT.keys())
def test_what_trainers_write_is_what_peft_reads(plain: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    check_as_peft(plain, make_adapter(plain, tmp_path / "adapter", **settings))


def test_a_base_that_lies_the_other_way_round(tmp_path: Path) -> None:
    """GPT-2's matrices are [in, out]: fan_in_fan_out."""
    sizes = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64, "vocab_size": 384}
    base = make_plain(tmp_path / "gpt2", "gpt2", **sizes)
    check_as_peft(base, make_adapter(base, tmp_path / "a", target_modules=["c_attn", "c_fc"], fan_in_fan_out=True))


@pytest.mark.parametrize(
    ("settings", "key", "said"),
    [
        ({"modules_to_save": ["embed_tokens", "lm_head"]}, "adapter_variant", "modules_to_save"),
        ({"trainable_token_indices": {"embed_tokens": [0, 1]}}, "adapter_variant", "trainable_token_indices"),
        ({"lora_bias": True}, "adapter_variant", "lora_bias"),
        ({"bias": "lora_only"}, "adapter_variant", "bias"),
        ({"target_modules": ["q_proj", "embed_tokens"]}, "adapter_embedding", "embed_tokens"),
        ({"target_modules": ["lm_head", "embed_tokens"]}, "adapter_embedding", "embed_tokens"),
        ({"use_dora": True}, "adapter_variant", "DoRA"),
        ({"layer_replication": [[0, 2], [1, 2]]}, "adapter_variant", "layer_replication"),
        ({"init_lora_weights": "pissa"}, "adapter_changed_base", "pissa"),
        ({"init_lora_weights": "olora"}, "adapter_changed_base", "olora"),
    ],
    ids=lambda value: "" if isinstance(value, dict) else value,
)  # fmt: skip
def test_what_is_more_than_two_matrices_is_refused_in_words(
    plain: Path, tmp_path: Path, settings: dict[str, Any], key: str, said: str
) -> None:
    with pytest.raises(CheckpointError) as raised:
        read_adapter(make_adapter(plain, tmp_path / "adapter", **({"target_modules": ["q_proj"]} | settings)))
    assert raised.value.key == key and said in str(raised.value)


def rename(change: Callable[[str], str], **more: torch.Tensor) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        tensors = {change(name): value for name, value in load_file(folder / WEIGHTS).items()}
        save_file(tensors | more, folder / WEIGHTS)

    return damage


def test_the_adapters_name_may_stand_in_its_tensors(plain: Path, tmp_path: Path) -> None:
    folder = make_adapter(plain, tmp_path / "adapter", target_modules=["q_proj"])
    rename(lambda name: name.replace(".weight", ".ranking.weight"))(folder)
    assert len(match_base(read_adapter(folder), "base", read_plain(plain).linears)) == 2


WHOLE_MODEL = {"base_model.model.model.layers.0.self_attn.q_proj.weight": torch.zeros(2, 2)}
DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "saved with the model beside it": (rename(str, **WHOLE_MODEL), "adapter_tensor"),
    "AdaLoRA": (lambda folder: change_json(folder / ADAPTER_CONFIG, peft_type="ADALORA"), "adapter_kind"),
    "layers of what sees, named as those that write": (
        rename(lambda name: name.replace("model.model.", "model.vision_tower.vision_model.encoder.")),
        "adapter_base_matrix",
    ),
    "two for one matrix": (
        rename(lambda name: name.replace("model.model.layers.1", "model.model.language_model.layers.0")),
        "adapter_twice",
    ),
}


@pytest.mark.parametrize(("damage", "key"), DAMAGES.values(), ids=DAMAGES.keys())
def test_odd_files_are_refused_in_words(plain: Path, tmp_path: Path, damage: Callable[[Path], None], key: str) -> None:
    folder = make_adapter(plain, tmp_path / "adapter", target_modules=["q_proj"])
    damage(folder)
    with pytest.raises(CheckpointError) as raised:
        match_base(read_adapter(folder), "base", read_plain(plain).linears)
    assert raised.value.key == key and str(raised.value).endswith(".")


# What a setting of PEFT's means for an adapter that is only used: nothing, or nothing but what its tensors say already.
MEANS_NOTHING = {
    "task_type", "auto_mapping", "peft_version", "revision", "inference_mode", "target_modules", "exclude_modules",
    "lora_dropout", "layers_to_transform", "layers_pattern", "megatron_config", "megatron_core", "loftq_config",
    "eva_config", "corda_config", "lora_ga_config", "velora_config", "qalora_group_size", "runtime_config",
    "ensure_weight_tying", "fan_in_fan_out",
}  # fmt: skip
READ = {"peft_type", "base_model_name_or_path", "r", "lora_alpha", "bias", "use_rslora",
        "init_lora_weights", "rank_pattern", "alpha_pattern", "target_parameters"}  # fmt: skip


def test_every_setting_that_peft_has_is_known() -> None:
    """One that a new release brings and nobody looked at would be left out without a word."""
    assert {field.name for field in dataclasses.fields(LoraConfig)} == MEANS_NOTHING | READ | set(VARIANTS)
