"""Can this engine run a checkpoint? The one answer, from config.json and the names of the tensors, before a download.

The pages, the commands, a download and the worker all ask here. A part of a config.json is enough, such as a search
tells: what it leaves out is taken from the family. Only what no load could run is refused.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from core.checkpoint.expert_counts import COUNTS
from core.checkpoint.families import Family, families
from core.checkpoint.recurrent import MAMBA_FAMILIES
from core.checkpoint.text_config import text_config
from core.common.errors import CheckpointError, DeckError
from core.common.values import is_whole, quoted_json

ATTENTION_LAYERS = frozenset(("full_attention", "sliding_attention", "attention"))
RECURRENT_LAYERS = frozenset(("linear_attention", "mamba", "mamba2", "conv", "recurrent", "hybrid", "hybrid_sliding"))
# Families whose classes have their experts in another way than all others: only files that have those of a layer in one
# tensor fit them.
STACKED_FAMILIES = frozenset(("jetmoe", "llama4_text"))
# Families whose recurrent layers run here, by the kind of those layers.
RUNNING_LAYERS = {
    "linear_attention": frozenset(("qwen3_5_text", "qwen3_5_moe_text", "qwen3_next", *MAMBA_FAMILIES)),
    "conv": frozenset(("lfm2", "lfm2_moe")),
    **{kind: frozenset(MAMBA_FAMILIES) for kind in ("mamba", "hybrid")},
}
VISION, SOUND = ("vision_config", "visual", "vit_config"), ("audio_config", "audio_processor", "speech_config")
# Ways to turn queries and keys by their place: those of transformers, what Qwen2-VL calls its own, and the name that
# longrope had in the first Phi-3.
ROPE_KINDS = frozenset(("default", "linear", "dynamic", "yarn", "longrope", "llama3", "proportional", "mrope", "su"))
# Names of transformers' functions between the matrices of an MLP.
ACTIVATIONS = frozenset(
    """
    gelu gelu_10 gelu_accurate gelu_fast gelu_new gelu_python gelu_python_tanh gelu_pytorch_tanh hardswish laplace
    leaky_relu linear mish prelu quick_gelu relu relu2 relu6 sigmoid silu sqrtsoftplus swish tanh xielu
    """.split()
)
ACTIVATION_NAMES = ("hidden_act", "hidden_activation", "activation_function")
# What a model has in place of a head that writes text, by the ending of its class's name.
OTHER_HEADS = re.compile(
    r"(For[A-Za-z]*(Classification|Regression|QuestionAnswering|MaskedLM|Embedding|Reward)|Model)$"
)
TEXT_HEADS = re.compile(r"LMHeadModel$|^(ChatGLM|Aquila|RefinedWeb)Model$")
SHORT_REASONS = ("moe", "recurrent", "mla", "layers", "vision", "sound", "unknown", "encoder", "seq2seq", "code")
QUANTIZATION_ERRORS = ("not_quantized", "no_quantized_weights", "other_quantization", "other_quantization_vllm",
                       "format", "bits", "group_size")  # fmt: skip
# A tensor of one expert alone, and one of another part than a language model by itself has.
EXPERT = re.compile(r"\.experts\.[0-9]+\.")
OTHER_PART = re.compile(r"(model\.)?(visual|vision_tower|vision_model|audio_tower|language_model)\.")


def judge(model: str, config: Mapping[str, Any], tensors: Collection[str] | None = None) -> CheckpointError | None:
    """Why `model` cannot run here, or None where its `config` gives no reason.

    `tensors`: the names of its tensors, None where they are not known; they settle what families do in several ways.
    """
    text = text_config(config)
    family = families().get(family_name(config))
    if family is None:
        named = text.get("model_type")
        family = families().get(named) if isinstance(named, str) else None
    return next(_refusals(model, config, text, family, tensors), None)


def is_served_by_vllm(config: Mapping[str, Any]) -> bool | None:
    """Whether vLLM serves the family without code of its repository; None where that is not known."""
    named = (config.get("model_type"), family_name(config))
    known = [families()[name] for name in named if isinstance(name, str) and name in families()]
    if not known:
        return False if config.get("auto_map") else None
    if known[0].kind == "code" or known[0].needs_code_in_vllm:
        return False
    return any(family.is_served_by_vllm for family in known)


def require_runs(model: str, config: Mapping[str, Any], tensors: Collection[str] | None = None) -> None:
    """Raise what judge() finds."""
    if (error := judge(model, config, tensors)) is not None:
        raise error


def short_reason(error: DeckError) -> str:
    """Why a model cannot run in a word or two: a name in the section "refusal" of the locale files."""
    kind = error.key.removeprefix("family_").removesuffix("_elsewhere")
    if error.key.startswith("family_") and kind in SHORT_REASONS:
        return kind
    if error.key in ("not_quantized_moe", "not_quantized_family", *QUANTIZATION_ERRORS):
        return "quantization"
    return "adapter" if error.key.startswith(("adapter_", "hub_adapter_")) else "other"


def family_name(config: Mapping[str, Any]) -> str:
    """The `model_type` that decides: that of the language model where the model has several parts; "" for none."""
    text = text_config(config)
    named = text.get("model_type") or config.get("model_type")
    return named if isinstance(named, str) else ""


def _refusals(
    model: str,
    config: Mapping[str, Any],
    text: Mapping[str, Any],
    family: Family | None,
    tensors: Collection[str] | None,
) -> Iterator[CheckpointError]:
    """Every reason that is found, the one to tell first: of a model with pictures the text part could run alone."""
    whole = _whole(config)
    is_served = any(one is not None and one.is_served_by_vllm for one in (whole, family))
    kind, runs = family.kind if family else "", family is not None and family.runs

    def refusal(key: str, **params: str) -> CheckpointError:
        way = "" if is_served else "_elsewhere"
        named = config.get("model_type") or text.get("model_type") or architecture_name(config)
        return CheckpointError(f"family_{key}{way}", model=model, family=quoted_json(named), **params)

    running = {kind for kind, names in RUNNING_LAYERS.items() if family is not None and family.name in names}
    layers = _layer_kinds(text) - running
    if layers & RECURRENT_LAYERS or (kind == "recurrent" and not _layer_kinds(text)):
        yield refusal("recurrent")
    if _is_mla(text) or (kind == "latent" and not runs):
        yield refusal("mla")
    if not runs and _has_experts(text, kind, tensors):
        yield refusal("moe")
    # Gemma 4's mixture has its experts beside a dense MLP.
    if text.get("enable_moe_block") is True:
        yield refusal("moe")
    if family is not None and family.name in STACKED_FAMILIES and _has_single_experts(tensors):
        yield refusal("moe")
    if layers - ATTENTION_LAYERS:
        yield refusal("layers", types=", ".join(sorted(layers - ATTENTION_LAYERS)))
    if (other := _other_part(config, whole, runs, tensors)) is not None:
        yield refusal(other)
    if kind == "seq2seq" or config.get("is_encoder_decoder") is True:
        yield CheckpointError("family_seq2seq", model=model, family=quoted_json(config.get("model_type") or kind))
    head = architecture_name(config)
    if kind == "encoder" or (OTHER_HEADS.search(head) and not TEXT_HEADS.search(head)):
        yield CheckpointError("family_encoder", model=model, architecture=head)
    if family is None and not family_name(config):
        if tensors is not None:
            yield CheckpointError("family_untold", model=model)
    elif not runs:
        is_code = kind == "code" or (family is None and bool(config.get("auto_map")))
        named = quoted_json(family_name(config))
        yield CheckpointError("family_code", model=model, family=named) if is_code else refusal("unknown")
    for name in _rope_kinds(text):
        if name not in ROPE_KINDS:
            yield CheckpointError("rope_kind", model=model, kind=name)
    for key in ACTIVATION_NAMES:
        if (value := text.get(key)) is not None and quoted_json(value) not in ACTIVATIONS:
            yield CheckpointError("activation", model=model, name=key, value=quoted_json(value))


def architecture_name(config: Mapping[str, Any]) -> str:
    """The class that the files were saved from, else the family; "?" for neither."""
    named = config.get("architectures")
    if isinstance(named, list) and named:
        return quoted_json(named[0])
    return quoted_json(config.get("model_type", "?"))


def _whole(config: Mapping[str, Any]) -> Family | None:
    named = config.get("model_type")
    return families().get(named) if isinstance(named, str) else None


def _other_part(
    config: Mapping[str, Any], whole: Family | None, runs: bool, tensors: Collection[str] | None
) -> str | None:
    """ "vision" or "sound" where the model is more than a language model and that part is not left out of its files."""
    if whole is not None and whole.runs:
        return None
    has_vision = any(isinstance(config.get(name), dict) for name in VISION)
    has_sound = any(isinstance(config.get(name), dict) for name in SOUND)
    kind = whole.kind if whole is not None else ""
    has_part = tensors is None or not runs or any(OTHER_PART.match(name) for name in tensors)
    if not has_part:
        return None
    if kind == "vision" or has_vision:
        return "vision"
    if kind == "sound" or has_sound:
        return "sound"
    return "vision" if tensors is not None and any(OTHER_PART.match(name) for name in tensors) else None


def _layer_kinds(text: Mapping[str, Any]) -> frozenset[str]:
    kinds = text.get("layer_types")
    return frozenset(map(quoted_json, kinds)) if isinstance(kinds, list) else frozenset()


def _has_experts(text: Mapping[str, Any], kind: str, tensors: Collection[str] | None) -> bool:
    if tensors is not None and _has_single_experts(tensors):
        return True
    counts = [count for name in COUNTS if is_whole(count := text.get(name))]
    return any(count > 1 for count in counts) or (kind == "experts" and not counts)


def _has_single_experts(tensors: Collection[str] | None) -> bool:
    """Whether each expert's matrices are by themselves; where names are not known, as files usually have them."""
    return tensors is None or any(EXPERT.search(name) for name in tensors)


def _is_mla(text: Mapping[str, Any]) -> bool:
    """Whether keys and values come from a shared latent vector and have lengths of their own (DeepSeek's MLA)."""
    key, rope, value = text.get("qk_nope_head_dim"), text.get("qk_rope_head_dim"), text.get("v_head_dim")
    if not text.get("kv_lora_rank") or not (is_whole(key) and is_whole(rope) and is_whole(value)):
        return False
    return key + rope != value


def _rope_kinds(text: Mapping[str, Any]) -> Iterator[str]:
    """The kinds of rotary embedding that the configuration names: one for all layers, or one for each kind of them."""
    for name in ("rope_scaling", "rope_parameters"):
        found = text.get(name)
        if isinstance(found, dict):
            inner = [one for one in found.values() if isinstance(one, dict) and ({"rope_type", "type"} & set(one))]
            for one in inner or [found]:
                kind = one.get("rope_type") or one.get("type")
                if kind is not None:
                    yield quoted_json(kind)
