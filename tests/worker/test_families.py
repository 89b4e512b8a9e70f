"""Families of all kinds compute what transformers' class does: in pieces, and chats of different lengths at once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoModelForImageTextToText

from core.checkpoint.checkpoint import read_checkpoint
from core.checkpoint.headers import TensorInfo
from core.checkpoint.tensor_names import name_tensors
from core.checkpoint.text_config import PICTURE_FAMILIES
from core.memory.model_shape import read_shape
from core.worker.model.model_config import plain_text_config
from tests.support.family_checkpoints import VOCABULARY, make_family_checkpoint
from tests.support.family_checks import (
    CONTEXT,
    SIZES,
    TOLERANCE,
    assert_close,
    check_family,
    check_two_chats,
    load,
    prefill,
    reference,
)

pytestmark = pytest.mark.slow

GPT: dict[str, Any] = {"n_embd": 64, "n_head": 4, "n_layer": 2, "n_positions": CONTEXT, "vocab_size": VOCABULARY,
                       "rotary_dim": 8}  # fmt: skip
BLOOM: dict[str, Any] = {"hidden_size": 64, "n_head": 4, "n_layer": 2, "vocab_size": VOCABULARY}
FALCON = {name: value for name, value in SIZES.items() if name != "num_key_value_heads"}
MPT: dict[str, Any] = {"d_model": 64, "n_heads": 4, "n_layers": 2, "max_seq_len": CONTEXT, "vocab_size": VOCABULARY}
OPT: dict[str, Any] = {**SIZES, "ffn_dim": 128, "word_embed_proj_dim": 64}
OLD: dict[str, dict[str, Any]] = {
    "gpt_neox": {"model_type": "gpt_neox", **SIZES},
    "gpt_neox without parallel residual": {"model_type": "gpt_neox", **SIZES, "use_parallel_residual": False},
    "gpt2": {"model_type": "gpt2", **GPT},
    "gpt_bigcode": {"model_type": "gpt_bigcode", **GPT},
    "gpt_bigcode with all heads": {"model_type": "gpt_bigcode", **GPT, "multi_query": False,
                                   "num_key_value_heads": 4},
    "gptj": {"model_type": "gptj", **GPT},
    "codegen": {"model_type": "codegen", **GPT},
    "opt": {"model_type": "opt", **OPT},
    "gemma2": {"model_type": "gemma2", **SIZES, "head_dim": 16, "sliding_window": 24, "attn_logit_softcapping": 2.0,
               "query_pre_attn_scalar": 16},
    "falcon 7B": {"model_type": "falcon", **FALCON},
    "falcon 40B": {"model_type": "falcon", **FALCON, "new_decoder_architecture": True, "num_kv_heads": 2},
    "falcon rw": {"model_type": "falcon", **FALCON, "multi_query": False, "alibi": True, "parallel_attn": False,
                  "bias": True},
    "bloom": {"model_type": "bloom", **BLOOM},
    "bloom with six heads": {"model_type": "bloom", **BLOOM, "hidden_size": 96, "n_head": 6},
    "mpt": {"model_type": "mpt", **MPT},
    "mpt with six heads, clipped": {"model_type": "mpt", **MPT, "d_model": 96, "n_heads": 6,
                                    "attn_config": {"clip_qkv": 0.5}},
}  # fmt: skip
# Heads of two sizes. Of the larger models the full layers' keys are their values too. The smaller ones' last layers
# read earlier layers' keys and values, and each layer has an embedding of its own.
GEMMA4: dict[str, Any] = {"model_type": "gemma4_text", **SIZES, "head_dim": 16, "global_head_dim": 32,
                          "sliding_window": 24, "num_hidden_layers": 4, "tie_word_embeddings": True,
                          "layer_types": ["sliding_attention", "full_attention"] * 2}  # fmt: skip
# Its scores are not divided by anything, so that the last bit of a weight counts.
GEMMA4_TOLERANCE = 0.02
ATTENTION_KINDS: dict[str, dict[str, Any]] = {
    "gemma4 31B": {**GEMMA4, "attention_k_eq_v": True, "num_global_key_value_heads": 1,
                   "hidden_size_per_layer_input": 0, "final_logit_softcapping": 30.0},
    "gemma4 E4B": {**GEMMA4, "num_kv_shared_layers": 2, "hidden_size_per_layer_input": 32,
                   "vocab_size_per_layer_input": VOCABULARY, "use_double_wide_mlp": True},
    # transformers writes a config.json in which no layer has numbers of its own.
    "gemma4 with heads of one size": {**GEMMA4, "global_head_dim": 16, "hidden_size_per_layer_input": 0},
    "granite_swa": {"model_type": "granite_swa", **SIZES, "sliding_window": 24, "pad_token_id": 0,
                    "layer_types": ["full_attention", "sliding_attention"]},
}  # fmt: skip
VISION: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
                          "image_size": 28, "patch_size": 14}  # fmt: skip
QWEN_VISION: dict[str, Any] = {"depth": 1, "hidden_size": 32, "embed_dim": 32, "num_heads": 2, "out_hidden_size": 64,
                               "intermediate_size": 64, "patch_size": 14, "deepstack_visual_indexes": [0]}  # fmt: skip
MROPE: dict[str, Any] = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}
TOKENS = dict.fromkeys(("image_token_id", "image_token_index", "video_token_id", "boi_token_id"), VOCABULARY - 5)


def picture_family(name: str, text: str, vision: str, **more: Any) -> dict[str, Any]:
    return {
        "model_type": name,
        "text_config": {"model_type": text, **SIZES, **more},
        "vision_config": {"model_type": vision, **VISION},
        "tie_word_embeddings": more.get("tie_word_embeddings", False),
        **TOKENS,
    }


def qwen(name: str, text: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"model_type": name, "text_config": {**SIZES, **text}, "vision_config": QWEN_VISION, **TOKENS, **more}


def as_released(name: str) -> str:
    """Of the releases of 2024: the whole language model behind one prefix."""
    if name.startswith("lm_head"):
        return f"language_model.{name}"
    return name.replace("model.language_model.", "language_model.model.").replace("model.vision", "vision")


def as_qwen2(name: str) -> str:
    return name.replace("model.language_model.", "model.").replace("model.visual.", "visual.")


def unchanged(name: str) -> str:
    return name


Rename = Callable[[str], str]
PICTURES: dict[str, tuple[dict[str, Any], Rename]] = {
    "gemma3": (picture_family("gemma3", "gemma3_text", "siglip_vision_model", head_dim=16, sliding_window=24,
                              layer_types=["sliding_attention", "full_attention"], tie_word_embeddings=True),
               as_released),
    "gemma4": (picture_family("gemma4", "gemma4_text", "gemma4_vision", head_dim=16, global_head_dim=32,
                              sliding_window=24, layer_types=["sliding_attention", "full_attention"],
                              hidden_size_per_layer_input=0, tie_word_embeddings=True), unchanged),
    "mistral3": (picture_family("mistral3", "mistral", "pixtral", head_dim=32), unchanged),
    "llava": (picture_family("llava", "llama", "clip_vision_model"), as_released),
    "llava_next": (picture_family("llava_next", "mistral", "clip_vision_model", sliding_window=None), unchanged),
    "internvl": (picture_family("internvl", "qwen2", "internvl_vision"), as_released),
    "idefics3": (picture_family("idefics3", "llama", "idefics3_vision"), unchanged),
    "smolvlm": (picture_family("smolvlm", "llama", "smolvlm_vision", tie_word_embeddings=True), unchanged),
    "qwen2_vl": (qwen("qwen2_vl", {"rope_parameters": MROPE}), as_qwen2),
    "qwen2_5_vl": (qwen("qwen2_5_vl", {"rope_parameters": MROPE}, tie_word_embeddings=True), unchanged),
    "qwen3_vl": (qwen("qwen3_vl", {"rope_parameters": {**MROPE, "mrope_interleaved": True}, "head_dim": 16}),
                 unchanged),
}  # fmt: skip


@pytest.mark.parametrize("config", OLD.values(), ids=OLD.keys())
def test_an_old_family_computes_what_its_class_does(tmp_path: Path, config: dict[str, Any]) -> None:
    model = make_family_checkpoint(tmp_path / "model", config)
    check_family(tmp_path / "model", model)


@pytest.mark.parametrize("config", ATTENTION_KINDS.values(), ids=ATTENTION_KINDS.keys())
def test_heads_of_two_sizes_shared_keys_and_sinks_compute_what_their_class_does(
    tmp_path: Path, config: dict[str, Any]
) -> None:
    model = make_family_checkpoint(tmp_path / "model", config)
    is_gemma4 = config["model_type"] == "gemma4_text"
    check_family(tmp_path / "model", model, tolerance=GEMMA4_TOLERANCE if is_gemma4 else TOLERANCE)


@pytest.mark.parametrize(("config", "rename"), PICTURES.values(), ids=PICTURES.keys())
def test_the_text_part_of_a_family_with_pictures_computes_what_the_whole_does(
    tmp_path: Path, config: dict[str, Any], rename: Rename
) -> None:
    model = make_family_checkpoint(tmp_path / "model", config, rename)
    checkpoint = read_checkpoint(tmp_path / "model")
    assert checkpoint.is_without_pictures
    assert not any("vis" in name for name in checkpoint.tensors)
    is_gemma4 = config["model_type"] == "gemma4"
    check_family(tmp_path / "model", model, tolerance=GEMMA4_TOLERANCE if is_gemma4 else TOLERANCE)


def test_a_falcon_of_2023_runs_by_the_name_that_it_had_then(tmp_path: Path) -> None:
    falcon = {"hidden_size": 64, "n_layer": 2, "n_head": 4, "n_head_kv": 2, "vocab_size": VOCABULARY, "bias": False,
              "alibi": False, "auto_map": {"AutoModelForCausalLM": "modelling_RW.RWForCausalLM"}}  # fmt: skip
    written = {"model_type": "RefinedWeb", "architectures": ["RWForCausalLM"], **falcon}
    model = make_family_checkpoint(tmp_path / "model", OLD["falcon 40B"], written=written)
    check_family(tmp_path / "model", model)


DELTA: dict[str, Any] = {"head_dim": 16, "num_hidden_layers": 4, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
                         "linear_key_head_dim": 16, "linear_value_head_dim": 32}  # fmt: skip
MAMBA: dict[str, Any] = {"mamba_n_heads": 8, "mamba_n_groups": 2, "mamba_d_state": 16, "mamba_d_head": "auto",
                         "mamba_chunk_size": 32}  # fmt: skip
RECURRENT: dict[str, dict[str, Any]] = {
    "qwen3_5": qwen("qwen3_5", {"model_type": "qwen3_5_text", **DELTA,
                                "rope_parameters": {**MROPE, "mrope_section": [1, 1, 0]}}),
    "qwen3_5_text": {"model_type": "qwen3_5_text", **SIZES, **DELTA, "full_attention_interval": 2},
    "qwen3_next without experts": {"model_type": "qwen3_next", **SIZES, **DELTA, "num_experts": 0},
    "lfm2": {"model_type": "lfm2", **SIZES, "num_hidden_layers": 3, "full_attn_idxs": [1], "conv_bias": True,
             "block_auto_adjust_ff_dim": False},
    "bamba": {"model_type": "bamba", **SIZES, **MAMBA, "attn_layer_indices": [1]},
    "granitemoehybrid": {"model_type": "granitemoehybrid", **SIZES, **MAMBA, "layer_types": ["mamba", "attention"],
                         "num_local_experts": 0, "shared_intermediate_size": 128, "residual_multiplier": 0.5,
                         "position_embedding_type": "rope"},
    "granitemoehybrid that never attends": {"model_type": "granitemoehybrid", **SIZES, **MAMBA, "num_local_experts": 0,
                                            "shared_intermediate_size": 128},
    "granitemoehybrid with experts": {"model_type": "granitemoehybrid", **SIZES, **MAMBA,
                                      "layer_types": ["mamba", "attention"], "num_local_experts": 4,
                                      "shared_intermediate_size": 128},
    "falcon_h1": {"model_type": "falcon_h1", **SIZES, **MAMBA, "mamba_d_ssm": 64, "ssm_in_multiplier": 0.7,
                  "ssm_multipliers": [0.9, 1.1, 0.8, 1.2, 0.7], "ssm_out_multiplier": 1.3,
                  "attention_in_multiplier": 0.9, "key_multiplier": 0.8},
    "falcon_h1 with a norm": {"model_type": "falcon_h1", **SIZES, **MAMBA, "mamba_d_ssm": None, "mamba_rms_norm": True,
                              "mamba_norm_before_gate": False},
}  # fmt: skip


@pytest.mark.parametrize("config", RECURRENT.values(), ids=RECURRENT.keys())
def test_a_family_with_recurrent_layers_computes_what_its_class_does(tmp_path: Path, config: dict[str, Any]) -> None:
    model = make_family_checkpoint(tmp_path / "model", config)
    check_family(tmp_path / "model", model)


LONGROPE: dict[str, Any] = {
    "short_factor": [1.0 + place / 10 for place in range(8)],
    "long_factor": [1.5 * (place + 1) for place in range(8)],
    "original_max_position_embeddings": 64,
}
PHI3: dict[str, Any] = {"model_type": "phi3", **SIZES, "original_max_position_embeddings": 64, "pad_token_id": 0}
PHI3_WRITTEN: dict[str, Any] = {**PHI3, "rope_theta": 10000.0}


@pytest.mark.parametrize("kind", ["longrope", "su"])
def test_longrope_has_one_set_of_factors_by_the_context_of_the_load(tmp_path: Path, kind: str) -> None:
    """A long chat and a short one, a prompt in pieces, and an answer that crosses the original length: one set each."""
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, **LONGROPE}
    old = {"type": kind, **{name: value for name, value in LONGROPE.items() if "factor" in name}}
    written = {**PHI3_WRITTEN, "rope_scaling": old} if kind == "su" else None
    model: Any = make_family_checkpoint(tmp_path / "model", {**PHI3, "rope_parameters": rope}, written=written)
    rotary = model.model.rotary_emb
    short, scaling = rotary.inv_freq.clone(), rotary.attention_scaling
    assert read_checkpoint(tmp_path / "model").context_limits.usual_tokens == 64
    # The reference has one set of factors for all lengths.
    rotary.rope_type = "default"
    with torch.inference_mode():
        runner = load(tmp_path / "model", context_tokens=64)
        assert_close(prefill(runner, 0, list(range(9, 60))), reference(model, list(range(9, 60)))[-1])
        rotary.inv_freq = 1.0 / (torch.tensor(LONGROPE["long_factor"]) * 10000.0 ** (torch.arange(0, 16, 2) / 16))
        assert not torch.equal(rotary.inv_freq, short) and scaling > 1
        check_two_chats(load(tmp_path / "model"), model)


def test_dynamic_ntk_has_one_base_by_the_context_of_the_load(tmp_path: Path) -> None:
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    config = {"model_type": "llama", **SIZES, "max_position_embeddings": 64, "rope_parameters": rope}
    model: Any = make_family_checkpoint(tmp_path / "model", config)
    limits = read_checkpoint(tmp_path / "model").context_limits
    assert (limits.usual_tokens, limits.longest_tokens, limits.extension) == (64, 128, "dynamic")
    with torch.inference_mode():
        short = list(range(9, 60))
        assert_close(prefill(load(tmp_path / "model", context_tokens=64), 0, short), reference(model, short)[-1])
        rotary = model.model.rotary_emb
        rotary.rope_type = "default"
        # theta * (factor * context / original - factor + 1) ** (size / (size - 2))
        rotary.inv_freq = 1.0 / ((10000.0 * 3.0 ** (16 / 14)) ** (torch.arange(0, 16, 2) / 16))
        check_two_chats(load(tmp_path / "model"), model)


def test_yarn_is_switched_on_by_a_context_beyond_the_usual_one(tmp_path: Path) -> None:
    config = {"model_type": "qwen3", **SIZES, "head_dim": 16, "max_position_embeddings": 40960}
    model: Any = make_family_checkpoint(tmp_path / "model", config)
    with torch.inference_mode():
        check_two_chats(load(tmp_path / "model", context_tokens=40960), model)
        theta = model.config.rope_parameters["rope_theta"]
        yarn = {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 32768, "rope_theta": theta}
        changed = type(model.config).from_dict({**model.config.to_dict(), "rope_parameters": yarn})
        model.model.rotary_emb = type(model.model.rotary_emb)(changed)
        check_two_chats(load(tmp_path / "model", context_tokens=65536), model)


def test_qwen2_vl_as_it_was_released_has_its_sizes_beside_those_of_the_pictures(tmp_path: Path) -> None:
    """No `text_config`, and the rope's kind is "mrope"."""
    config, rename = PICTURES["qwen2_vl"]
    rope = {"rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]}, "rope_theta": 10000.0}
    written = {"model_type": "qwen2_vl", "architectures": ["Qwen2VLForConditionalGeneration"], **SIZES, **rope,
               "vision_config": QWEN_VISION, "tie_word_embeddings": False, "use_sliding_window": False,
               "sliding_window": 32768, "max_window_layers": 2, "rms_norm_eps": 1e-5}  # fmt: skip
    config = {**config, "text_config": {**config["text_config"], "rms_norm_eps": 1e-5}}
    model = make_family_checkpoint(tmp_path / "model", config, rename, written)
    check_family(tmp_path / "model", model)


def test_a_text_part_saved_under_the_name_of_the_whole_has_its_sizes_beside_it(tmp_path: Path) -> None:
    """The class looked for them in "text_config", and took its own: the verdict was right, the load had other sizes."""
    text = RECURRENT["qwen3_5_text"]
    written = text | {"model_type": "qwen3_5", "architectures": ["Qwen3_5ForCausalLM"]}
    model = make_family_checkpoint(tmp_path / "model", text, written=written)
    assert not read_checkpoint(tmp_path / "model").is_without_pictures
    check_family(tmp_path / "model", model)


def test_a_null_in_place_of_the_size_of_a_head_is_as_good_as_none(tmp_path: Path) -> None:
    """Falcon-H1's class multiplied with it."""
    written = RECURRENT["falcon_h1"] | {"architectures": ["FalconH1ForCausalLM"], "head_dim": None}
    model = make_family_checkpoint(tmp_path / "model", RECURRENT["falcon_h1"], written=written)
    check_family(tmp_path / "model", model)


def test_gemma3_as_it_was_released_leaves_out_what_its_class_has(tmp_path: Path) -> None:
    """Eight heads of 256, four for keys and values, a window for five layers of six, and another rope in the sixth."""
    named = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 6, "sliding_window": 24,
             "max_position_embeddings": CONTEXT, "vocab_size": VOCABULARY,
             "rope_scaling": {"factor": 8.0, "rope_type": "linear"}}  # fmt: skip
    text = {"model_type": "gemma3_text", **named}
    whole = {"model_type": "gemma3", "text_config": text, "vision_config": PICTURES["gemma3"][0]["vision_config"]}
    model = make_family_checkpoint(tmp_path / "model", whole, as_released, whole)
    for heads in read_shape(read_checkpoint(tmp_path / "model")).attentions:
        assert (heads.num_heads, heads.num_kv_heads, heads.head_dim) == (8, 4, 256)
    check_family(tmp_path / "model", model)


@pytest.mark.parametrize("family", sorted(PICTURE_FAMILIES))
def test_the_tensors_of_every_family_with_pictures_are_named_as_its_text_class_has_them(family: str) -> None:
    found = CONFIG_MAPPING[family]()
    if family == "aya_vision":
        found.vision_config.num_attention_heads = 16  # Its class's own do not divide its size.
    text = found.get_text_config()
    text.num_hidden_layers = 1
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:1]
    with torch.device("meta"):
        whole = AutoModelForImageTextToText.from_config(found).state_dict()
        alone = AutoModelForCausalLM.from_config(plain_text_config(text)).state_dict()
    tensors = {name: TensorInfo("f", "F16", tuple(tensor.shape), 0, 0) for name, tensor in whole.items()}
    named = name_tensors({"model_type": family, "vision_config": {}}, tensors)
    assert {name: tensor.shape for name, tensor in named.items()} == {
        name: tuple(tensor.shape) for name, tensor in alone.items()
    }
