"""Families that do not run are refused by their configuration, each in words of its own; what runs passes."""

from __future__ import annotations

from typing import Any

import pytest
from transformers.activations import ACT2FN
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from core.checkpoint.checkpoint import Checkpoint, make_checkpoint
from core.checkpoint.families import families
from core.checkpoint.headers import TensorInfo
from core.checkpoint.judgement import ACTIVATIONS, ROPE_KINDS, is_served_by_vllm, judge, short_reason
from core.checkpoint.quantization import MatrixFormat
from core.common.errors import DeckError
from core.memory.fit import check_fit

PLAIN = "model.layers.0.self_attn.q_proj.qweight"
MLA = {"kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128}
REFUSED: list[tuple[dict[str, Any], str, str]] = [
    # Each expert's matrices by themselves, of a class that has those of a layer in another way.
    ({"model_type": "llama4_text"}, "model.layers.0.feed_forward.experts.17.up_proj.qweight", "family_moe"),
    ({"model_type": "dbrx", "num_local_experts": 32}, PLAIN, "family_moe"),
    ({"model_type": "new_moe", "n_routed_experts": 64, "auto_map": {"AutoModel": "a.B"}}, PLAIN,
     "family_moe_elsewhere"),
    ({"model_type": "kimi_linear", "layer_types": ["linear_attention", "full_attention"]}, PLAIN, "family_recurrent"),
    ({"model_type": "qwen3_next", "layer_types": ["mamba", "full_attention"]}, PLAIN, "family_recurrent"),
    ({"model_type": "jamba", "layer_types": ["mamba", "attention"]}, PLAIN, "family_recurrent"),
    ({"model_type": "mamba2"}, PLAIN, "family_recurrent"),
    ({"model_type": "deepseek_v3", **MLA}, PLAIN, "family_mla"),
    ({"model_type": "minicpm3", **MLA}, PLAIN, "family_mla"),
    ({"model_type": "glm4_moe_lite", **MLA}, PLAIN, "family_mla"),
    # Keys and values are of one length, but its class keeps what they are made from.
    ({"model_type": "glm4_moe_lite", **MLA, "v_head_dim": 192}, PLAIN, "family_mla"),
    ({"model_type": "glm4v", "vision_config": {}, "text_config": {"model_type": "glm4v_text"}},
     "model.language_model.layers.0.mlp.up_proj.qweight", "family_vision"),
    ({"model_type": "mllama", "vision_config": {}}, PLAIN, "family_vision"),
    ({"model_type": "baichuan", "auto_map": {"AutoModelForCausalLM": "modeling_baichuan.B"}}, PLAIN,
     "family_code"),
    ({"model_type": "never_heard_of", "auto_map": {"AutoModelForCausalLM": "m.M"}}, PLAIN, "family_code"),
    ({"model_type": "gpt_neo", "num_layers": 24}, PLAIN, "family_unknown_elsewhere"),
    ({"model_type": "ctrl", "n_head": 32}, PLAIN, "family_unknown"),
    ({"model_type": "llama5"}, PLAIN, "family_unknown_elsewhere"),
    ({"model_type": "qwen2_audio", "audio_config": {}, "text_config": {"model_type": "qwen2"}},
     "audio_tower.layers.0.fc1.weight", "family_sound"),
    ({"model_type": "new_vlm", "vision_config": {}, "llm_config": {"model_type": "qwen2"}}, PLAIN,
     "family_vision_elsewhere"),
    ({"model_type": "bert", "architectures": ["BertForMaskedLM"]}, PLAIN, "family_encoder"),
    ({"model_type": "llama", "architectures": ["LlamaForSequenceClassification"]}, PLAIN, "family_encoder"),
    ({"model_type": "qwen2", "architectures": ["Qwen2Model"]}, PLAIN, "family_encoder"),
    ({"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]}, PLAIN, "family_seq2seq"),
    ({"model_type": "llama", "rope_scaling": {"rope_type": "spiral"}}, PLAIN, "rope_kind"),
    ({"model_type": "llama", "rope_scaling": {"type": 7}}, PLAIN, "rope_kind"),
    ({"model_type": "gemma3_text", "rope_parameters": {"full_attention": {"rope_type": "x"}}}, PLAIN, "rope_kind"),
    ({"model_type": "llama", "hidden_act": "wavy"}, PLAIN, "activation"),
    ({"model_type": "llama", "hidden_act": ["silu"]}, PLAIN, "activation"),
    ({"hidden_size": 64}, PLAIN, "family_untold"),
    ({"model_type": ["llama"], "layer_types": 5, "num_experts": "many", "auto_map": 1}, PLAIN, "family_untold"),
    ({"model_type": "minimax_m3_vl_text", "num_hidden_layers": 2,
      "sparse_attention_config": {"sparse_attention_freq": [0, 1]}}, PLAIN, "family_layers"),
    ({"model_type": "llama4_text", "layer_types": ["chunked_attention", "full_attention"]}, PLAIN, "family_layers"),
]  # fmt: skip
RUNS: list[tuple[dict[str, Any], str]] = [
    ({"model_type": "llama"}, PLAIN),
    ({"model_type": "gpt_neox"}, "gpt_neox.layers.0.attention.query_key_value.qweight"),
    ({"model_type": "bloom", "n_head": 32}, "transformer.h.0.mlp.dense_h_to_4h.qweight"),
    ({"model_type": "RefinedWebModel", "auto_map": {"AutoModelForCausalLM": "modelling_RW.RWForCausalLM"}},
     "transformer.h.0.mlp.dense_h_to_4h.qweight"),
    ({"model_type": "phi3", "auto_map": {"AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM"}}, PLAIN),
    ({"model_type": "gemma2", "layer_types": ["sliding_attention", "full_attention"], "num_hidden_layers": 2}, PLAIN),
    ({"model_type": "llama", "rope_scaling": {"type": "linear", "factor": 2.0}, "hidden_act": "silu"}, PLAIN),
    ({"model_type": "gemma3_text", "rope_parameters": {"sliding_attention": {"rope_type": "default"}}}, PLAIN),
    ({"model_type": "llama", "rope_scaling": None, "layer_types": 5, "num_experts": "many", "auto_map": 1}, PLAIN),
    # The text part of a family with pictures, with the other part beside it or as a file of its own.
    ({"model_type": "gemma3", "vision_config": {}, "text_config": {"model_type": "gemma3_text"}},
     "language_model.model.layers.0.mlp.up_proj.qweight"),
    ({"model_type": "gemma3", "vision_config": {}, "text_config": {"model_type": "gemma3_text"}}, PLAIN),
    ({"model_type": "qwen2_vl", "vision_config": {}}, "visual.blocks.0.attn.qkv.weight"),
    ({"model_type": "qwen3_moe", "num_experts": 128}, "model.layers.0.mlp.experts.17.up_proj.qweight"),
    ({"model_type": "mixtral"}, "model.layers.0.block_sparse_moe.experts.0.w1.qweight"),
    ({"model_type": "gpt_oss", "num_local_experts": 32}, "model.layers.0.mlp.experts.31.gate_proj.qweight"),
    # All experts of a layer in one tensor.
    ({"model_type": "qwen3_moe", "num_experts": 4}, "model.layers.0.mlp.experts.gate_up_proj"),
    ({"model_type": "qwen3_next", "layer_types": ["full_attention", "full_attention"], "num_hidden_layers": 2}, PLAIN),
    ({"model_type": "qwen3_next", "full_attention_interval": 4}, PLAIN),
    ({"model_type": "qwen3_5", "vision_config": {}, "text_config": {"model_type": "qwen3_5_text"}},
     "model.visual.blocks.0.attn.qkv.weight"),
    ({"model_type": "lfm2", "layer_types": ["conv", "full_attention"], "num_hidden_layers": 2}, PLAIN),
    ({"model_type": "granitemoehybrid", "layer_types": ["mamba", "attention"], "num_hidden_layers": 2}, PLAIN),
    ({"model_type": "falcon_h1"}, PLAIN),
    ({"model_type": "gemma4", "vision_config": {}, "audio_config": {}, "text_config": {"model_type": "gemma4_text"}},
     "model.audio_tower.layers.0.lconv1d.linear_start.weight"),
]  # fmt: skip


def checkpoint_of(config: dict[str, Any], tensor: str) -> Checkpoint:
    info = TensorInfo("model.safetensors", "I32", (4, 32), 0, 512)
    format = MatrixFormat(4, 32, is_permuted=False, is_symmetric=True, packing="gptq")
    return make_checkpoint("a-model", config, format, {PLAIN: info, tensor: info})


@pytest.mark.parametrize(("config", "tensor", "key"), REFUSED)
def test_what_cannot_run_is_refused_by_its_kind(config: dict[str, Any], tensor: str, key: str) -> None:
    with pytest.raises(DeckError) as caught:
        checkpoint_of(config, tensor).require_runs()
    assert caught.value.key == key
    for language in ("en", "zh"):
        sentence = caught.value.sentence(language)
        assert "a-model" in sentence and "ownload it again" not in sentence and "重新下载" not in sentence
        assert "{" not in sentence
        assert (
            not key.startswith("family_")
            or key in ("family_untold", "family_encoder")
            or config["model_type"] in sentence
        )


@pytest.mark.parametrize(("config", "tensor"), RUNS)
def test_what_a_load_could_run_is_not_refused(config: dict[str, Any], tensor: str) -> None:
    checkpoint_of(config, tensor).require_runs()


def test_the_verdict_names_the_family_before_a_number_that_it_calls_otherwise() -> None:
    """It once said that num_attention_heads is None, and to download the model again."""
    with pytest.raises(DeckError) as caught:
        check_fit(checkpoint_of({"model_type": "ctrl", "n_head": 32}, PLAIN), [])
    assert caught.value.key == "family_unknown"


@pytest.mark.parametrize(
    ("told", "key"),
    [
        ({"model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"]}, None),
        ({"model_type": "dbrx"}, "family_moe"),
        ({"model_type": "gemma4_text", "enable_moe_block": True}, "family_moe"),
        ({"model_type": "qwen3_5"}, None),
        ({"model_type": "qwen3_next"}, None),
        ({"model_type": "mamba2"}, "family_recurrent"),
        ({"model_type": "deepseek_v3"}, "family_moe"),
        ({"model_type": "qwen2"}, None),
        ({"architectures": ["LlamaForCausalLM"]}, None),
        ({"quantization_config": {"bits": 4}}, None),
        ({}, None),
    ],
)
def test_a_part_of_a_configuration_is_judged_as_far_as_it_goes(told: dict[str, Any], key: str | None) -> None:
    """What a search tells of each model has the family and the quantization alone."""
    error = judge("a-model", told)
    assert (error and error.key) == key


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"model_type": "grok-1", "num_local_experts": 8}, "moe"),
        ({"model_type": "deepseek_v2", "n_routed_experts": 64, **MLA}, "mla"),
        ({"model_type": "longcat_flash", "n_routed_experts": 128}, "moe"),
        ({"model_type": "kimi_k2", "n_routed_experts": 384, "auto_map": {"AutoConfig": "c.D"}, **MLA}, "mla"),
        ({"model_type": "llama4", "vision_config": {}, "text_config": {"model_type": "llama4_text"}}, "moe"),
        ({"model_type": "dbrx", "ffn_config": {"moe_num_experts": 16}}, "moe"),
        ({"model_type": "jamba", "mamba_d_state": 16}, "recurrent"),
        ({"model_type": "lfm2", "conv_L_cache": 3}, "recurrent"),
        ({"model_type": "nemotron_h", "hybrid_override_pattern": "M-M*"}, "recurrent"),
        ({"model_type": "phi4mm", "auto_map": {"AutoConfig": "c.P"}, "audio_processor": {}}, "vision"),
        ({"model_type": "internvl_chat", "vision_config": {}, "llm_config": {"model_type": "qwen2"}}, "vision"),
        ({"model_type": "gemma3n", "text_config": {"model_type": "gemma3n_text"}, "vision_config": {}}, "vision"),
        ({"model_type": "qwen2_5_omni", "thinker_config": {"audio_config": {}}}, "vision"),
        ({"model_type": "chatglm", "auto_map": {"AutoConfig": "c.C"}, "num_layers": 28}, "code"),
        ({"model_type": "qwen", "architectures": ["QWenLMHeadModel"], "auto_map": {"AutoConfig": "c.Q"}}, "code"),
        ({"model_type": "whisper", "is_encoder_decoder": True}, "seq2seq"),
        ({"model_type": "qwen2", "architectures": ["Qwen2ForRewardModel"]}, "encoder"),
    ],
)
def test_the_releases_of_today_have_their_reason_in_a_word(config: dict[str, Any], reason: str) -> None:
    """As their own config.json describes them, before a header is read."""
    error = judge("a-model", config)
    assert error is not None and short_reason(error) == reason


def test_vllm_is_started_for_nothing_that_needs_a_repositorys_code() -> None:
    served = {
        name: is_served_by_vllm({"model_type": name}) for name in ("qwen3_moe", "internvl_chat", "qwen", "t5", "?")
    }
    assert served == {"qwen3_moe": True, "internvl_chat": False, "qwen": False, "t5": False, "?": None}


def test_the_table_knows_every_family_that_transformers_writes_text_with() -> None:
    assert set(families()) >= set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def test_a_family_that_runs_is_one_that_transformers_has() -> None:
    running = {name for name, family in families().items() if family.runs and family.kind != "vision"}
    assert running <= set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def test_ropes_and_activations_are_those_of_transformers() -> None:
    assert set(ROPE_INIT_FUNCTIONS) <= ROPE_KINDS
    assert set(ACT2FN) == ACTIVATIONS
