"""Qwen3.5-27B as data: its configuration and the names, types and shapes of its tensors, not a weight."""

from __future__ import annotations

import math
from typing import Any

from core.checkpoint.checkpoint import Checkpoint, make_checkpoint
from core.checkpoint.headers import TensorInfo
from core.checkpoint.quantization import MatrixFormat

HIDDEN, INTERMEDIATE, VOCABULARY, NUM_LAYERS, GROUP = 5120, 17408, 248320, 64, 128
PREFIX = "model.language_model."
TEXT: dict[str, Any] = {
    "model_type": "qwen3_5_text", "hidden_size": HIDDEN, "intermediate_size": INTERMEDIATE,
    "num_hidden_layers": NUM_LAYERS, "num_attention_heads": 24, "num_key_value_heads": 4, "head_dim": 256,
    "linear_num_key_heads": 16, "linear_num_value_heads": 48, "linear_key_head_dim": 128,
    "linear_value_head_dim": 128, "linear_conv_kernel_dim": 4, "full_attention_interval": 4,
    "max_position_embeddings": 262144, "vocab_size": VOCABULARY, "dtype": "bfloat16",
}  # fmt: skip
CONFIG: dict[str, Any] = {"model_type": "qwen3_5", "architectures": ["Qwen3_5ForConditionalGeneration"],
                          "text_config": TEXT, "vision_config": {}}  # fmt: skip


def qwen3_5_27b(is_whole: bool) -> Checkpoint:
    """`is_whole`: the attention's and the recurrent layers' large matrices are quantized as well, as the community has
    it; else the MLPs alone, as Qwen does."""
    tensors: dict[str, TensorInfo] = {}

    def add(name: str, dtype: str, *shape: int) -> None:
        num_bytes = (4 if dtype == "I32" else 2) * math.prod(shape)
        tensors[name] = TensorInfo("model.safetensors", dtype, shape, 0, num_bytes)

    def plain(name: str, *shape: int) -> None:
        add(f"{name}.weight", "BF16", *shape)

    def matrix(name: str, rows: int, columns: int, is_quantized: bool = is_whole) -> None:
        if not is_quantized:
            return plain(name, columns, rows)
        add(f"{name}.qweight", "I32", rows // 8, columns)
        add(f"{name}.qzeros", "I32", rows // GROUP, columns // 8)
        add(f"{name}.scales", "F16", rows // GROUP, columns)
        return add(f"{name}.g_idx", "I32", rows)

    for name in (f"{PREFIX}embed_tokens", "lm_head"):
        plain(name, VOCABULARY, HIDDEN)
    plain(f"{PREFIX}norm", HIDDEN)
    for index in range(NUM_LAYERS):
        layer = f"{PREFIX}layers.{index}"
        plain(f"{layer}.input_layernorm", HIDDEN)
        plain(f"{layer}.post_attention_layernorm", HIDDEN)
        for name in ("gate_proj", "up_proj"):
            matrix(f"{layer}.mlp.{name}", HIDDEN, INTERMEDIATE, is_quantized=True)
        matrix(f"{layer}.mlp.down_proj", INTERMEDIATE, HIDDEN, is_quantized=True)
        if index % 4 == 3:
            for name, rows, columns in (("q_proj", HIDDEN, 12288), ("k_proj", HIDDEN, 1024), ("v_proj", HIDDEN, 1024),
                                        ("o_proj", 6144, HIDDEN)):  # fmt: skip
                matrix(f"{layer}.self_attn.{name}", rows, columns)
            plain(f"{layer}.self_attn.q_norm", 256)
            plain(f"{layer}.self_attn.k_norm", 256)
            continue
        mixer = f"{layer}.linear_attn"
        for name, rows, columns in (("in_proj_qkv", HIDDEN, 10240), ("in_proj_z", HIDDEN, 6144),
                                    ("out_proj", 6144, HIDDEN)):  # fmt: skip
            matrix(f"{mixer}.{name}", rows, columns)
        plain(f"{mixer}.in_proj_a", 48, HIDDEN)
        plain(f"{mixer}.in_proj_b", 48, HIDDEN)
        plain(f"{mixer}.conv1d", 10240, 1, 4)
        plain(f"{mixer}.norm", 128)
        add(f"{mixer}.A_log", "BF16", 48)
        add(f"{mixer}.dt_bias", "BF16", 48)
    plain("mtp.fc", HIDDEN, 2 * HIDDEN)
    plain("model.visual.patch_embed.proj", 1152, 3, 2, 16, 16)
    return make_checkpoint("Qwen3.5-27B-GPTQ", CONFIG, MatrixFormat(4, GROUP, False, True, "gptq"), tensors)
