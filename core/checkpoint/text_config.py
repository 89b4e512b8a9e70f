"""The language model's part of a config.json under the names and with the defaults that transformers gives it.

Families call their sizes by names of their own, and releases leave out what is their class's default. transformers
cannot be asked here, because only the worker may import it: tests/checkpoint/test_text_config.py holds these tables
against it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from core.checkpoint.expert_counts import untold_counts
from core.common.values import is_whole

# Families with pictures whose text part runs by itself, and the family that the text is of unless `text_config` says.
PICTURE_FAMILIES = {
    "aya_vision": "cohere2",
    "cohere2_vision": "cohere2",
    "gemma3": "gemma3_text",
    "gemma4": "gemma4_text",
    "idefics2": "mistral",
    "idefics3": "llama",
    "internvl": "qwen2",
    "llava": "llama",
    "llava_next": "llama",
    "llava_next_video": "llama",
    "llava_onevision": "qwen2",
    "mistral3": "mistral",
    "ovis2": "qwen2",
    "qwen2_5_vl": "qwen2_5_vl_text",
    "qwen2_vl": "qwen2_vl_text",
    "qwen3_5": "qwen3_5_text",
    "qwen3_5_moe": "qwen3_5_moe_text",
    "qwen3_vl": "qwen3_vl_text",
    "qwen3_vl_moe": "qwen3_vl_moe_text",
    "smolvlm": "llama",
    "video_llama_3": "qwen2",
    "video_llava": "llama",
    "vipllava": "llama",
}
# Text parts that compute what a plain family does, as long as there are no pictures: all three numbers of a position
# are then one.
SAME_AS = {"qwen2_vl_text": "qwen2", "qwen2_5_vl_text": "qwen2", "qwen3_vl_text": "qwen3",
           "qwen3_vl_moe_text": "qwen3_moe"}  # fmt: skip
# The first Falcons' names for themselves. Only the larger has the newer decoder, and does not say so.
FALCONS: dict[str, dict[str, Any]] = {
    "RefinedWeb": {"new_decoder_architecture": True},
    "RefinedWebModel": {},
}

QUANTIZATIONS = ("quantization_config", "compression_config")
# Our names of the sizes, and a family's own.
NAMES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
         "intermediate_size", "vocab_size", "max_position_embeddings", "tie_word_embeddings")  # fmt: skip
_GPT2 = {
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "intermediate_size": "n_inner",
    "max_position_embeddings": "n_positions",
}
OWN_NAMES: dict[str, dict[str, str]] = {
    "bloom": {
        "hidden_size": "n_embed",
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
        "max_position_embeddings": "seq_length",
    },
    "codegen": _GPT2,
    "falcon": {
        "hidden_size": "n_embed",
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
        "intermediate_size": "ffn_hidden_size",
    },
    "gpt2": _GPT2,
    "gpt_bigcode": _GPT2,
    "gptj": _GPT2,
    "lfm2": {"intermediate_size": "block_ff_dim"},
    "mpt": {
        "hidden_size": "d_model",
        "num_hidden_layers": "n_layers",
        "num_attention_heads": "n_heads",
        "max_position_embeddings": "max_seq_len",
    },
    "opt": {"intermediate_size": "ffn_dim"},
}
# What a class has where config.json is silent, in the order of NAMES. "-": it follows from the other sizes, or there is
# none. BLOOM's seq_length is what it was trained with; its class knows no limit.
_DEFAULTS = """
bamba           4096   32  32  8   -  14336  128000 262144 0
bloom           64     2   8   -   -  -      250880 2048   1
codegen         4096   28  16  -   -  -      50400  2048   0
cohere          8192   40  64  -   -  22528  256000 8192   1
cohere2         8192   40  64  -   128 22528 256000 8192   1
ernie4_5_moe    2560   28  20  4   -  12288  103424 131072 1
falcon          4544   32  71  -   -  -      65024  2048   1
falcon_h1       4096   32  32  8   -  14336  128000 8192   0
gemma           3072   28  16  16  256 24576 256000 8192   1
gemma2          2304   26  8   4   256 9216  256000 8192   1
gemma3_text     2304   26  8   4   256 9216  262208 131072 1
glm4_moe        4096   46  96  8   -  10944  151552 131072 0
gemma4_text     2304   30  8   4   256 9216  262144 131072 1
gpt2            768    12  12  -   -  -      50257  1024   1
gpt_bigcode     768    12  12  -   -  -      50257  1024   1
gpt_neox        6144   44  64  -   -  24576  50432  2048   0
gpt_oss         2880   36  64  8   64 2880   201088 131072 0
gptj            4096   28  16  -   -  -      50400  2048   0
granitemoe      4096   32  32  32  -  11008  32000  2048   0
granitemoeshared 4096  32  32  32  -  11008  32000  2048   0
granitemoehybrid 4096  32  32  -   -  11008  32000  2048   0
lfm2            2560   32  32  8   -  12288  65536  128000 1
lfm2_moe        2048   32  32  8   -  7168   65536  128000 1
llama           4096   32  32  -   -  11008  32000  2048   0
minimax_m2      3072   62  48  8   128 1536  200064 196608 0
ministral3      4096   34  32  8   128 14336 131072 262144 0
mistral         4096   32  32  8   -  14336  32000  131072 0
mixtral         4096   32  32  8   -  14336  32000  131072 0
mpt             2048   24  16  -   -  -      50368  2048   1
olmoe           2048   16  16  16  -  2048   50304  4096   0
opt             768    12  12  -   -  3072   50272  2048   1
phi3            3072   32  32  -   -  8192   32064  4096   0
phimoe          4096   32  32  8   -  6400   32064  131072 0
qwen2           4096   32  32  32  -  22016  151936 32768  0
qwen2_5_vl_text 8192   80  64  8   -  29568  152064 32768  0
qwen2_moe       2048   24  16  16  -  5632   151936 32768  0
qwen2_vl_text   8192   80  64  8   -  29568  152064 32768  0
qwen3           4096   32  32  32  128 22016 151936 32768  0
qwen3_5_moe_text 2048  40  16  2   256 -     248320 32768  0
qwen3_5_text    4096   32  16  4   256 12288 248320 32768  0
qwen3_moe       2048   24  32  4   -  6144   151936 32768  0
qwen3_next      2048   48  16  2   256 5632  151936 32768  0
qwen3_vl_moe_text 2048 24  16  16 128 5632   151936 128000 1
qwen3_vl_text   4096   32  32  32  128 22016 151936 128000 0
"""

# Families whose layers are of two kinds, and how many attend where `layer_types` is left out: one in so many.
ATTENTION_INTERVALS = {"qwen3_5_text": 4, "qwen3_5_moe_text": 4, "qwen3_next": 4}
MAX_LAYERS = 4096

# Families that never share key and value heads, whatever their configuration says.
ALL_HEADS = frozenset(("bloom", "codegen", "gpt2", "gpt_neox", "gptj", "mpt", "opt"))


def _read_defaults() -> dict[str, dict[str, Any]]:
    rows = (line.split() for line in _DEFAULTS.split("\n") if line)
    found = {family: {name: int(value) for name, value in zip(NAMES, values, strict=True) if value != "-"}
             for family, *values in rows}  # fmt: skip
    return {family: {**sizes, "tie_word_embeddings": bool(sizes["tie_word_embeddings"])}
            for family, sizes in found.items()}  # fmt: skip


DEFAULTS = _read_defaults()


def quantization_of(config: Mapping[str, Any]) -> Any:
    """What a config.json says of its quantization, of any kind; None for nothing.

    Some programs say it of the language model alone, and compressed-tensors once called it otherwise.
    """
    text = config.get("text_config")
    parts = (config, text if isinstance(text, dict) else {})
    return next((part[name] for name in QUANTIZATIONS for part in parts if part.get(name)), None)


def has_pictures_left_out(config: Mapping[str, Any]) -> bool:
    """Whether the model has a part for pictures beside the text part, which alone runs here."""
    family = config.get("model_type")
    return isinstance(family, str) and family in PICTURE_FAMILIES


def text_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The language model's part of a config.json, under transformers' own names and with its class's defaults.

    `model_type` is the family that runs it. `tie_word_embeddings` is false for the text part of a model with pictures:
    there the file tells by whether it holds a head. A value may be of any kind, as the file has it.
    """
    text = named_config(config)
    family = text.get("model_type")
    if not isinstance(family, str):
        return text
    text = DEFAULTS.get(family, {}) | untold_counts(family, text) | text
    text["model_type"] = SAME_AS.get(family, family)
    heads = _kv_heads(family, text)
    if heads is not None:
        text["num_key_value_heads"] = heads
    if text.get("layer_types") is None and (kinds := _layer_kinds(family, text)) is not None:
        text["layer_types"] = kinds
    return text


def named_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """What config.json itself says of the language model, under transformers' own names."""
    part, outer = config.get("text_config"), config.get("model_type")
    text = dict(part if isinstance(part, dict) else config)
    if isinstance(outer, str) and has_pictures_left_out(config):
        named = text.get("model_type")
        family = PICTURE_FAMILIES[outer] if named in (None, "", outer) else named
        text |= {"model_type": family, "tie_word_embeddings": False}
    family = text.get("model_type")
    if not isinstance(family, str):
        return text
    if family in FALCONS:
        text = FALCONS[family] | text | {"model_type": "falcon"}
        family = "falcon"
    for name, own in OWN_NAMES.get(family, {}).items():
        if text.get(own) is not None:
            text.setdefault(name, text[own])
    return text


def has_distance_bias(text: Mapping[str, Any]) -> bool:
    """Whether scores lose something for each token of distance (ALiBi, arXiv 2108.12409)."""
    family = text.get("model_type")
    return family in ("bloom", "mpt") or (family == "falcon" and bool(text.get("alibi")))


def has_capped_scores(text: Mapping[str, Any]) -> bool:
    """Whether scores are kept below a bound (arXiv 2408.00118), as Gemma 2's are unless it says otherwise."""
    usual = 50.0 if text.get("model_type") in ("gemma2", "vaultgemma") else None
    return text.get("attn_logit_softcapping", usual) is not None


def _layer_kinds(family: str, text: Mapping[str, Any]) -> list[str] | None:
    """The kind of each layer of families that name one number for all; None for all others."""
    count = text.get("num_hidden_layers")
    if not is_whole(count) or not 0 < count <= MAX_LAYERS:
        return None
    if family in ATTENTION_INTERVALS:
        interval = text.get("full_attention_interval", ATTENTION_INTERVALS[family])
        if not is_whole(interval) or interval < 1:
            return None
        return ["linear_attention" if (index + 1) % interval else "full_attention" for index in range(count)]
    if family == "falcon_h1":
        return ["hybrid"] * count
    if family == "bamba":
        attending = text.get("attn_layer_indices")
        attending = attending if isinstance(attending, list) else []
        return ["full_attention" if index in attending else "linear_attention" for index in range(count)]
    if family == "granitemoehybrid":
        return ["linear_attention"] * count
    if family == "minimax_m3_vl_text":
        # A layer with an indexer does not run: it is told by its kind.
        settings = text.get("sparse_attention_config")
        flags = settings.get("sparse_attention_freq") if isinstance(settings, dict) else None
        return ["minimax_m3_sparse" if one else "full_attention" for one in flags] if isinstance(flags, list) else None
    if family == "lfm2" and isinstance(attending := text.get("full_attn_idxs"), list):
        return ["full_attention" if index in attending else "conv" for index in range(count)]
    return None


def _kv_heads(family: str, text: Mapping[str, Any]) -> Any:
    """The key and value heads of families that have a switch for them; None for all others."""
    if family in ALL_HEADS:
        return text["num_attention_heads"]
    if family == "gpt_bigcode":
        return 1 if text.get("multi_query", True) else text.get("num_key_value_heads") or text["num_attention_heads"]
    if family == "falcon":
        if text.get("new_decoder_architecture", False):
            return text.get("num_kv_heads") or text.get("n_head_kv") or text["num_attention_heads"]
        return 1 if text.get("multi_query", True) else text["num_attention_heads"]
    return None
