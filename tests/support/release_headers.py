"""The tensors of well-known releases by name, type and shape, without a weight: enough for a verdict."""

from __future__ import annotations

from typing import Any

from core.checkpoint.checkpoint import Checkpoint, make_checkpoint
from core.checkpoint.containers.registry import read_format
from core.checkpoint.headers import TensorInfo

GPTQ: dict[str, Any] = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": True}
# config.json of Qwen/Qwen3-30B-A3B-GPTQ-Int4, as far as it counts here.
QWEN3_30B_A3B: dict[str, Any] = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "moe_intermediate_size": 768,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 48,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "max_position_embeddings": 40960,
    "vocab_size": 151936,
    "tie_word_embeddings": False,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "norm_topk_prob": True,
    "rope_theta": 1000000.0,
    "torch_dtype": "bfloat16",
}
# config.json of Mixtral-8x7B-Instruct-v0.1-GPTQ.
MIXTRAL_8X7B: dict[str, Any] = {
    "architectures": ["MixtralForCausalLM"],
    "model_type": "mixtral",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 32768,
    "vocab_size": 32000,
    "tie_word_embeddings": False,
    "rope_theta": 1000000.0,
    "torch_dtype": "bfloat16",
}


def moe_release(config: dict[str, Any]) -> Checkpoint:
    """A release of `config` in GPTQ, 4 bit, group 128: attention and every expert's matrices; the rest in 16 bit."""
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    dim = config.get("head_dim", hidden // heads)
    kv = config["num_key_value_heads"] * dim
    is_mixtral = config["model_type"] == "mixtral"
    owner = "block_sparse_moe" if is_mixtral else "mlp"
    names = ("w1", "w3", "w2") if is_mixtral else ("gate_proj", "up_proj", "down_proj")
    size = config.get("moe_intermediate_size", config["intermediate_size"])
    num_experts = config.get("num_experts", config.get("num_local_experts"))
    matrices = {"self_attn.q_proj": (hidden, heads * dim), "self_attn.k_proj": (hidden, kv),
                "self_attn.v_proj": (hidden, kv), "self_attn.o_proj": (heads * dim, hidden)}  # fmt: skip
    for expert in range(num_experts):
        for name, sides in zip(names, ((hidden, size), (hidden, size), (size, hidden)), strict=True):
            matrices[f"{owner}.experts.{expert}.{name}"] = sides
    norms = {"input_layernorm": hidden, "post_attention_layernorm": hidden}
    if config["model_type"].startswith("qwen3"):
        norms |= {"self_attn.q_norm": dim, "self_attn.k_norm": dim}
    table = ("BF16", (config["vocab_size"], hidden))
    shapes = {"model.embed_tokens.weight": table, "lm_head.weight": table, "model.norm.weight": ("BF16", (hidden,))}
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        for name, (rows, columns) in matrices.items():
            groups = rows // GPTQ["group_size"]
            shapes |= {
                f"{prefix}.{name}.qweight": ("I32", (rows // 8, columns)),
                f"{prefix}.{name}.qzeros": ("I32", (groups, columns // 8)),
                f"{prefix}.{name}.scales": ("F16", (groups, columns)),
                f"{prefix}.{name}.g_idx": ("I32", (rows,)),
            }
        shapes |= {f"{prefix}.{name}.weight": ("BF16", (count,)) for name, count in norms.items()}
        shapes[f"{prefix}.{owner}.gate.weight"] = ("BF16", (num_experts, hidden))
    return make_checkpoint("release", config, read_format("release", GPTQ), _lay_out(shapes))


def _lay_out(shapes: dict[str, tuple[str, tuple[int, ...]]]) -> dict[str, TensorInfo]:
    found, begin = {}, 0
    for name, (dtype, shape) in shapes.items():
        size = 4 if dtype == "I32" else 2
        for side in shape:
            size *= side
        found[name] = TensorInfo("model.safetensors", dtype, shape, begin, begin + size)
        begin += size
    return found
