"""Newer chat models worth a look, from core/library/recommended.csv, and the best of them for a card."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, Literal

from core.checkpoint.checkpoint import Checkpoint, make_checkpoint
from core.checkpoint.headers import DTYPE_BYTES, TensorInfo
from core.checkpoint.quantization import MatrixFormat
from core.common.errors import DeckError
from core.library.catalogue import listed_format
from core.memory.cpu_fit import READING_TOKENS_S, CpuReport, check_cpu_fit
from core.memory.device_memory import DeviceMemory
from core.memory.fit import FitReport, check_fit

TABLE = Path(__file__).with_name("recommended.csv")
ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
# A model that thinks before it answers needs this much for one question.
MIN_CONTEXT_TOKENS = 8192
ReasonAgainst = Literal["no_kernel", "too_large", "short_context", "slow"]
Verdict = FitReport | CpuReport | DeckError


@dataclass(frozen=True, slots=True, eq=False)
class RecommendedModel:
    """One repository. `billions` counts the parameters; `on_modelscope`: under the same name there too.

    `config`: what its config.json says of its sizes.
    """

    repo: str
    billions: float
    license_name: str
    on_modelscope: bool
    config: dict[str, Any]
    quantization: MatrixFormat


@cache
def recommended_models() -> tuple[RecommendedModel, ...]:
    """The whole list, the best first."""
    lines = TABLE.read_text("utf-8").splitlines()
    return tuple(_model(row) for row in csv.DictReader(line for line in lines if not line.startswith("#")))


@cache
def known_checkpoint(model: RecommendedModel) -> Checkpoint:
    """`model` as the checkpoint that a download would be, as far as its sizes are known without a network."""
    tensors: dict[str, TensorInfo] = {}
    begin = 0
    for name, dtype, shape in _list_tensors(model.config, model.quantization):
        end = begin + math.prod(shape) * DTYPE_BYTES[dtype]
        tensors[name] = TensorInfo("model.safetensors", dtype, shape, begin, end)
        begin = end
    return make_checkpoint(model.repo, model.config, model.quantization, tensors)


def verdicts_for(devices: tuple[DeviceMemory, ...]) -> tuple[tuple[RecommendedModel, Verdict], ...]:
    """Every model of the list with its verdict for `devices`, none for the CPU: one chat with the usual context."""
    # What is free of a CPU's memory changes from one look to the next.
    return _gpu_verdicts(devices) if devices else _verdicts(devices)


@lru_cache(maxsize=8)
def _gpu_verdicts(devices: tuple[DeviceMemory, ...]) -> tuple[tuple[RecommendedModel, Verdict], ...]:
    return _verdicts(devices)


def _verdicts(devices: tuple[DeviceMemory, ...]) -> tuple[tuple[RecommendedModel, Verdict], ...]:
    return tuple((model, _verdict(model, devices)) for model in recommended_models())


def best_of(verdicts: Iterable[tuple[RecommendedModel, Verdict]]) -> RecommendedModel | None:
    """The first that fits with room for a long answer, and on a CPU is no slower than people read; else the fastest on
    a CPU, the first on a GPU that fits. None where none does."""
    fitting = [(model, report) for model, report in verdicts if not isinstance(report, DeckError) and report.fits]
    for model, report in fitting:
        if reason_against(report) is None:
            return model
    on_cpu = [(report.tokens_per_s, model) for model, report in fitting if isinstance(report, CpuReport)]
    if on_cpu:
        return max(on_cpu, key=lambda one: one[0])[1]
    return fitting[0][0] if fitting else None


def next_larger(
    verdicts: Sequence[tuple[RecommendedModel, Verdict]], best: RecommendedModel
) -> tuple[RecommendedModel, Verdict] | None:
    """The model with its verdict that would have been the best before `best`, of those with more parameters."""
    places = [model for model, _ in verdicts]
    larger = [one for one in verdicts[: places.index(best)] if one[0].billions > best.billions]
    return larger[-1] if larger else None


def reason_against(report: Verdict) -> ReasonAgainst | None:
    """Why a model is not the one to recommend, or None where it could be."""
    if isinstance(report, DeckError):
        return "no_kernel"
    if not report.fits:
        return "too_large"
    if report.max_context < MIN_CONTEXT_TOKENS:
        return "short_context"
    return "slow" if isinstance(report, CpuReport) and report.tokens_per_s < READING_TOKENS_S else None


def _verdict(model: RecommendedModel, devices: tuple[DeviceMemory, ...]) -> Verdict:
    try:
        return check_fit(known_checkpoint(model), devices) if devices else check_cpu_fit(known_checkpoint(model))
    except DeckError as error:
        return error


def _model(row: dict[str, str]) -> RecommendedModel:
    config = {
        "architectures": [ARCHITECTURES[row["family"]]],
        "model_type": row["family"],
        "hidden_act": "silu",
        "hidden_size": int(row["hidden"]),
        "intermediate_size": int(row["intermediate"]),
        "num_hidden_layers": int(row["layers"]),
        "num_attention_heads": int(row["heads"]),
        "num_key_value_heads": int(row["kv_heads"]),
        "head_dim": int(row["head_dim"]),
        "vocab_size": int(row["vocabulary"]),
        "tie_word_embeddings": row["tied"] == "yes",
        "max_position_embeddings": int(row["context"]),
    }
    return RecommendedModel(
        repo=row["repo"],
        billions=float(row["billions"]),
        license_name=row["license"],
        on_modelscope=row["modelscope"] == "yes",
        config=config,
        quantization=listed_format(row),
    )


def _list_tensors(config: dict[str, Any], format: MatrixFormat) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """Name, type and shape of every tensor of a Llama, Mistral or Qwen as gptqmodel writes it."""
    hidden, wide, family = config["hidden_size"], config["intermediate_size"], config["model_type"]
    queries = config["num_attention_heads"] * config["head_dim"]
    keys = config["num_key_value_heads"] * config["head_dim"]
    matrices = {
        "self_attn.q_proj": (hidden, queries),
        "self_attn.k_proj": (hidden, keys),
        "self_attn.v_proj": (hidden, keys),
        "self_attn.o_proj": (queries, hidden),
        "mlp.gate_proj": (hidden, wide),
        "mlp.up_proj": (hidden, wide),
        "mlp.down_proj": (wide, hidden),
    }
    yield "model.embed_tokens.weight", "F16", (config["vocab_size"], hidden)
    if not config["tie_word_embeddings"]:
        yield "lm_head.weight", "F16", (config["vocab_size"], hidden)
    yield "model.norm.weight", "F16", (hidden,)
    for number in range(config["num_hidden_layers"]):
        layer = f"model.layers.{number}"
        for norm in ("input_layernorm", "post_attention_layernorm"):
            yield f"{layer}.{norm}.weight", "F16", (hidden,)
        for norm in ("q_norm", "k_norm") if family == "qwen3" else ():
            yield f"{layer}.self_attn.{norm}.weight", "F16", (config["head_dim"],)
        for name, (rows, columns) in matrices.items():
            groups = format.num_groups(rows)
            yield f"{layer}.{name}.qweight", "I32", (rows * format.bits // 32, columns)
            yield f"{layer}.{name}.qzeros", "I32", (groups, columns * format.bits // 32)
            yield f"{layer}.{name}.scales", "F16", (groups, columns)
            yield f"{layer}.{name}.g_idx", "I32", (rows,)
            if family == "qwen2" and name in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"):
                yield f"{layer}.{name}.bias", "F16", (columns,)
