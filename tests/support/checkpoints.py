"""Makes GPTQ checkpoints of any size with random weights, in every layout that the wild has.

The packing is real, so that what a kernel computes can be held against the matrices written out. The same maker
serves the tests (two layers) and the benchmarks (Llama-2's own shapes).
"""

from __future__ import annotations

import io
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

WEIGHTS = "model.safetensors"
TEXT = [
    "The quick brown fox jumps over the lazy dog and runs into the quiet forest.",
    "What is the capital of France? The capital of France is Paris.",
    "user assistant system [INST] [/INST] Hello, how are you today? I am well, thank you.",
    "你好，世界。今天天气很好，我们去公园散步吧。",
]


@dataclass(frozen=True, slots=True)
class Recipe:
    """What to make. The defaults are the smallest Llama that every CPU kernel takes."""

    bits: int = 4
    group_size: int = 32
    act_order: bool = False
    symmetric: bool = True
    hidden: int = 64
    intermediate: int = 128
    num_layers: int = 2
    num_heads: int = 4
    num_kv_heads: int = 2
    context_tokens: int = 256
    vocabulary: int = 384
    model_type: str = "llama"
    # Matrices of one layer that share an input have its order in common, as they have when they were quantized on it.
    one_order: bool = False
    # How auto-gptq wrote in 2023: the file's name, quantize_config.json alone, zero biases, no num_key_value_heads.
    old_layout: bool = False
    seed: int = 0


def make_checkpoint(folder: Path, recipe: Recipe | None = None) -> dict[str, np.ndarray]:
    """Write a checkpoint into `folder`. Returns every matrix written out, [out, in] float32, by module name."""
    recipe = recipe or Recipe()
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(recipe.seed)
    tensors: dict[str, np.ndarray] = {}
    dense: dict[str, np.ndarray] = {}
    for name, (rows, columns) in matrix_sizes(recipe).items():
        parts, dense[name] = make_matrix(random, recipe, rows, columns, input_of(name))
        tensors |= {f"{name}.{part}": value for part, value in parts.items()}
    for name, shape in plain_sizes(recipe).items():
        value = np.ones(shape) if name.endswith("norm.weight") else random.normal(0, 0.5, shape)
        tensors[name] = value.astype(np.float16)
    write_files(folder, recipe, tensors)
    make_tokenizer(folder, recipe.vocabulary)
    return dense


def matrix_sizes(recipe: Recipe) -> dict[str, tuple[int, int]]:
    """(in, out) features of every quantized matrix of a Llama by module name."""
    head_dim = recipe.hidden // recipe.num_heads
    kv = (recipe.num_heads if recipe.old_layout else recipe.num_kv_heads) * head_dim
    inside = {
        "self_attn.q_proj": (recipe.hidden, recipe.hidden),
        "self_attn.k_proj": (recipe.hidden, kv),
        "self_attn.v_proj": (recipe.hidden, kv),
        "self_attn.o_proj": (recipe.hidden, recipe.hidden),
        "mlp.gate_proj": (recipe.hidden, recipe.intermediate),
        "mlp.up_proj": (recipe.hidden, recipe.intermediate),
        "mlp.down_proj": (recipe.intermediate, recipe.hidden),
    }
    return {f"model.layers.{i}.{name}": size for i in range(recipe.num_layers) for name, size in inside.items()}


def plain_sizes(recipe: Recipe) -> dict[str, tuple[int, ...]]:
    """The shapes of what is not quantized."""
    norms = ("input_layernorm", "post_attention_layernorm")
    layers = {f"model.layers.{i}.{norm}.weight": (recipe.hidden,) for i in range(recipe.num_layers) for norm in norms}
    return {
        "model.embed_tokens.weight": (recipe.vocabulary, recipe.hidden),
        "model.norm.weight": (recipe.hidden,),
        "lm_head.weight": (recipe.vocabulary, recipe.hidden),
        **layers,
    }


def input_of(name: str) -> str:
    """What a matrix is multiplied with: query, key and value have one input, gate and up another."""
    owner, _, own = name.rpartition(".")
    return owner + {"o_proj": ".attended", "down_proj": ".gated"}.get(own, "")


def make_matrix(
    random: np.random.Generator, recipe: Recipe, rows: int, columns: int, its_input: str = ""
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """One matrix of random codes: its packed parts, and the matrix that they stand for, [columns, rows]."""
    levels = 2**recipe.bits
    group_size = rows if recipe.group_size < 0 else recipe.group_size
    groups = math.ceil(rows / group_size)
    codes = random.integers(0, levels, (rows, columns), dtype=np.int64)
    scales = (random.uniform(0.5, 1.5, (groups, columns)) / (levels * math.sqrt(rows))).astype(np.float16)
    zeros: np.ndarray = np.full((groups, columns), levels // 2)
    if not recipe.symmetric:
        zeros = random.integers(1, levels, (groups, columns), dtype=np.int64)
    g_idx: np.ndarray = np.arange(rows, dtype=np.int32) // group_size
    if recipe.act_order:
        by = np.random.default_rng(list(its_input.encode())) if recipe.one_order else random
        g_idx = by.permutation(g_idx).astype(np.int32)
    dense = scales[g_idx].astype(np.float32) * (codes - zeros[g_idx])
    parts = {
        "qweight": pack(codes, recipe.bits),
        # Version 1 of the format stores each zero less one.
        "qzeros": pack((zeros - 1).T, recipe.bits).T.copy(),
        "scales": scales,
        "g_idx": g_idx,
    }
    if recipe.old_layout:
        parts["bias"] = np.zeros(columns, np.float16)
    return parts, dense.T


def pack(codes: np.ndarray, bits: int) -> np.ndarray:
    """Codes [rows, columns] to int32 words [rows * bits / 32, columns]: little end first, across words at 3 bit."""
    rows, columns = codes.shape
    planes = (codes[:, None, :] >> np.arange(bits)[None, :, None]) & 1
    stream = planes.reshape(rows * bits // 32, 32, columns).astype(np.uint64)
    words: np.ndarray = (stream << np.arange(32, dtype=np.uint64)[None, :, None]).sum(axis=1)
    return words.astype(np.uint32).view(np.int32)


def write_files(folder: Path, recipe: Recipe, tensors: dict[str, np.ndarray]) -> None:
    write_config(folder, recipe)
    old_name = f"gptq_model-{recipe.bits}bit-{recipe.group_size}g.safetensors"
    name = old_name if recipe.old_layout else WEIGHTS
    save_file(tensors, folder / name, metadata={"format": "pt"})


def split_into_shards(folder: Path) -> dict[str, str]:
    """Replace the one weight file by two with an index, as large models have it. Returns the index's map."""
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    names = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    weight_map = {name: names[number % 2] for number, name in enumerate(tensors)}
    for shard in names:
        save_file({name: tensors[name] for name, file in weight_map.items() if file == shard}, folder / shard)
    write_index(folder, weight_map)
    return weight_map


def write_index(folder: Path, weight_map: Any, name: str = "model.safetensors.index.json") -> None:
    (folder / name).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))


def write_config(folder: Path, recipe: Recipe) -> None:
    quantization = {
        "bits": recipe.bits,
        "group_size": recipe.group_size,
        "desc_act": recipe.act_order,
        "sym": recipe.symmetric,
        "quant_method": "gptq",
    }
    config: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": recipe.model_type,
        "hidden_size": recipe.hidden,
        "intermediate_size": recipe.intermediate,
        "num_hidden_layers": recipe.num_layers,
        "num_attention_heads": recipe.num_heads,
        "num_key_value_heads": recipe.num_kv_heads,
        "max_position_embeddings": recipe.context_tokens,
        "vocab_size": recipe.vocabulary,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": "float16",
        "quantization_config": quantization,
    }
    if recipe.old_layout:
        del config["quantization_config"], config["num_key_value_heads"]
        (folder / "quantize_config.json").write_text(json.dumps(quantization))
    (folder / "config.json").write_text(json.dumps(config, indent=2))


def make_tokenizer(folder: Path, vocabulary: int) -> None:
    """A byte-level BPE tokenizer, trained on a few sentences; every byte has a token, so any text goes through."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<unk>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def train_sentencepiece(folder: Path, **settings: Any) -> None:
    """A tokenizer.model of a few hundred pieces, trained on the same sentences."""
    import sentencepiece  # Takes a while, and few tests need it.

    written = io.BytesIO()
    defaults = {"vocab_size": 400, "character_coverage": 1.0, "hard_vocab_limit": False, "minloglevel": 2}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT * 20), model_writer=written, **(defaults | settings)
    )
    (folder / "tokenizer.model").write_bytes(written.getvalue())


def make_chat_checkpoint(folder: Path, context_tokens: int, template: str = TEMPLATE) -> Path:
    """A checkpoint that was taught to chat: `folder`, which holds it then."""
    make_checkpoint(folder, Recipe(context_tokens=context_tokens))
    (folder / "chat_template.jinja").write_text(template, "utf-8")
    return folder
