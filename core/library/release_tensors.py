"""The tensors of a release by its configuration, as gptqmodel writes them: enough for a verdict without a network."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from core.checkpoint.quantization import MatrixFormat

# Name, type and shape.
NamedTensor = tuple[str, str, tuple[int, ...]]
# (in, out) features by name.
Matrices = dict[str, tuple[int, int]]
# Matrices of fewer outputs stay in 16 bit: routers and the gates of recurrent layers.
MIN_OUTPUTS = 64
NORMED_HEADS = ("qwen3", "qwen3_moe", "qwen3_next", "qwen3_5_text", "qwen3_5_moe_text")
BIASED = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")


def list_tensors(config: Mapping[str, Any], format: MatrixFormat, kept: Sequence[str]) -> Iterator[NamedTensor]:
    """Every tensor of a model of the text family that `config` names. kept: patterns of the modules in 16 bit."""
    hidden = config["hidden_size"]
    yield "model.embed_tokens.weight", "F16", (config["vocab_size"], hidden)
    if not config["tie_word_embeddings"]:
        yield "lm_head.weight", "F16", (config["vocab_size"], hidden)
    yield "model.norm.weight", "F16", (hidden,)
    for number in range(config["num_hidden_layers"]):
        layer = f"model.layers.{number}"
        for norm in ("input_layernorm", "post_attention_layernorm"):
            yield f"{layer}.{norm}.weight", "F16", (hidden,)
        mixer = _recurrent if _is_recurrent(config, number) else _attention
        for part in (mixer, _mlp):
            matrices, others = part(config)
            for name, sides in matrices.items():
                is_kept = sides[1] < MIN_OUTPUTS or any(re.search(one, name) for one in kept)
                for own, dtype, shape in [("weight", "F16", sides[::-1])] if is_kept else _packed(sides, format):
                    yield f"{layer}.{name}.{own}", dtype, shape
                if config["model_type"] == "qwen2" and name in BIASED:
                    yield f"{layer}.{name}.bias", "F16", (sides[1],)
            for name, shape in others.items():
                yield f"{layer}.{name}", "F16", shape


def _is_recurrent(config: Mapping[str, Any], number: int) -> bool:
    kinds = config.get("layer_types")
    return kinds is not None and kinds[number] == "linear_attention"


def _packed(sides: tuple[int, int], format: MatrixFormat) -> list[NamedTensor]:
    rows, columns = sides
    groups = format.num_groups(rows)
    return [
        ("qweight", "I32", (rows * format.bits // 32, columns)),
        ("qzeros", "I32", (groups, columns * format.bits // 32)),
        ("scales", "F16", (groups, columns)),
        ("g_idx", "I32", (rows,)),
    ]


def _attention(config: Mapping[str, Any]) -> tuple[Matrices, dict[str, tuple[int, ...]]]:
    hidden, dim, family = config["hidden_size"], config["head_dim"], config["model_type"]
    queries, keys = config["num_attention_heads"] * dim, config["num_key_value_heads"] * dim
    # A gate for the output comes from the same matrix as the query.
    gated = 2 if config.get("layer_types") is not None else 1
    matrices = {"q_proj": (hidden, gated * queries), "k_proj": (hidden, keys), "v_proj": (hidden, keys),
                "o_proj": (queries, hidden)}  # fmt: skip
    norms = ("q_norm", "k_norm") if family in NORMED_HEADS else ()
    others: dict[str, tuple[int, ...]] = {f"self_attn.{norm}.weight": (dim,) for norm in norms}
    return {f"self_attn.{name}": sides for name, sides in matrices.items()}, others


def _recurrent(config: Mapping[str, Any]) -> tuple[Matrices, dict[str, tuple[int, ...]]]:
    """Gated DeltaNet."""
    hidden, value_heads, dim = config["hidden_size"], config["linear_num_value_heads"], config["linear_value_head_dim"]
    keys, values = config["linear_num_key_heads"] * config["linear_key_head_dim"], value_heads * dim
    if config["model_type"] == "qwen3_next":
        matrices = {"in_proj_qkvz": (hidden, 2 * keys + 2 * values), "in_proj_ba": (hidden, 2 * value_heads)}
    else:
        matrices = {"in_proj_qkv": (hidden, 2 * keys + values), "in_proj_z": (hidden, values),
                    "in_proj_b": (hidden, value_heads), "in_proj_a": (hidden, value_heads)}  # fmt: skip
    matrices["out_proj"] = (values, hidden)
    others = {"conv1d.weight": (2 * keys + values, 1, config["linear_conv_kernel_dim"]), "A_log": (value_heads,),
              "dt_bias": (value_heads,), "norm.weight": (dim,)}  # fmt: skip
    return (
        {f"linear_attn.{name}": sides for name, sides in matrices.items()},
        {f"linear_attn.{name}": shape for name, shape in others.items()},
    )


def _mlp(config: Mapping[str, Any]) -> tuple[Matrices, dict[str, tuple[int, ...]]]:
    hidden, num_experts = config["hidden_size"], config.get("num_experts", 0)
    if not num_experts:
        return _swiglu("mlp", hidden, config["intermediate_size"]), {}
    matrices: Matrices = {}
    for number in range(num_experts):
        matrices |= _swiglu(f"mlp.experts.{number}", hidden, config["moe_intermediate_size"])
    others: dict[str, tuple[int, ...]] = {"mlp.gate.weight": (num_experts, hidden)}
    if shared := config.get("shared_expert_intermediate_size", 0):
        matrices |= _swiglu("mlp.shared_expert", hidden, shared)
        others["mlp.shared_expert_gate.weight"] = (1, hidden)
    return matrices, others


def _swiglu(owner: str, hidden: int, size: int) -> Matrices:
    return {
        f"{owner}.gate_proj": (hidden, size),
        f"{owner}.up_proj": (hidden, size),
        f"{owner}.down_proj": (size, hidden),
    }
