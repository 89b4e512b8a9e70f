"""Newer chat models worth a look, from core/library/recommended.csv, and the best of them for a card."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, Literal

from core.checkpoint.checkpoint import SIZE_BYTES, Checkpoint, make_checkpoint
from core.checkpoint.experts import expert_matrix
from core.checkpoint.headers import DTYPE_BYTES, TensorInfo
from core.checkpoint.layers import Experts
from core.checkpoint.quantization import MatrixFormat
from core.common.errors import DeckError
from core.library.catalogue import listed_format
from core.library.release_tensors import list_tensors
from core.memory.cache_choice import EVERY_CHAT_FULL, CacheChoice
from core.memory.cpu_fit import READING_TOKENS_S, CpuReport, check_cpu_fit
from core.memory.device_memory import DeviceMemory
from core.memory.fit import check_fit
from core.memory.fit_report import FitReport
from core.memory.model_shape import LayerWeights, ModelShape, read_shape
from core.memory.sizes import HALF_BYTES, round_to_block

TABLE = Path(__file__).with_name("recommended.csv")
ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen3_5_moe_text": "Qwen3_5MoeForCausalLM",
    "qwen3_5_text": "Qwen3_5ForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "qwen3_next": "Qwen3NextForCausalLM",
}
# Of Gated DeltaNet layers, in all releases so far: the size of a head, the convolution's width, and that every so many
# layers one has full attention.
DELTA_HEAD_DIM, CONV_WIDTH, FULL_ATTENTION_INTERVAL = 128, 4, 4
# A model that thinks before it answers needs about this much for one question.
MIN_CONTEXT_TOKENS = 7500
# How many stand for all, where a verdict is wanted alone.
FEW_EXPERTS = 2
ReasonAgainst = Literal["no_kernel", "too_large", "short_context", "slow", "slow_context", "slow_steps"]
Verdict = FitReport | CpuReport | DeckError


@dataclass(frozen=True, slots=True, eq=False)
class RecommendedModel:
    """One repository. `billions` counts the parameters; `on_modelscope`: under the same name there too.

    `config`: what its config.json says of the sizes of its text part. `kept`: patterns of the modules in 16 bit.
    """

    repo: str
    billions: float
    license_name: str
    on_modelscope: bool
    config: dict[str, Any]
    quantization: MatrixFormat
    kept: tuple[str, ...] = ()


@cache
def recommended_models() -> tuple[RecommendedModel, ...]:
    """The whole list, the best first."""
    lines = TABLE.read_text("utf-8").splitlines()
    return tuple(_model(row) for row in csv.DictReader(line for line in lines if not line.startswith("#")))


@cache
def known_checkpoint(model: RecommendedModel) -> Checkpoint:
    """`model` as the checkpoint that a download would be, as far as its sizes are known without a network.

    Takes seconds where there are many experts.
    """
    return _make_checkpoint(model)


@cache
def sized_checkpoint(model: RecommendedModel) -> Checkpoint:
    """For verdicts: `model` with two experts a layer, and with the shape and size that it has with all of them.

    A hundred thousand tensors would take seconds, and all experts of a layer are alike.
    """
    experts = model.config.get("num_experts", 0)
    if experts <= FEW_EXPERTS:
        return known_checkpoint(model)
    few = {"num_experts": FEW_EXPERTS, "num_experts_per_tok": 1}
    checkpoint = _make_checkpoint(replace(model, config=model.config | few))
    for is_merged in (False, True):
        checkpoint.derived[ModelShape, is_merged] = _with_experts(
            read_shape(checkpoint, is_merged), experts, model.config["num_experts_per_tok"]
        )
    checkpoint.derived[SIZE_BYTES] = _size_bytes(checkpoint, experts)
    return checkpoint


def _size_bytes(few: Checkpoint, num_experts: int) -> int:
    """The bytes of all tensors with `num_experts` in place of FEW_EXPERTS."""
    of_one = [one for name, one in few.tensors.items() if (its := expert_matrix(name)) and its.number == 0]
    # A router has a row for each expert.
    routers = [one for name, one in few.tensors.items() if name.endswith(".mlp.gate.weight")]
    each = sum(one.num_bytes for one in of_one) + sum(one.num_bytes for one in routers) // FEW_EXPERTS
    return few.size_bytes + (num_experts - FEW_EXPERTS) * each


def _with_experts(shape: ModelShape, num_experts: int, chosen: int) -> ModelShape:
    """`shape`, which was read with FEW_EXPERTS, with `num_experts` in each layer, `chosen` for each token."""
    layers = [
        (replace(layer, mlp=replace(layer.mlp, num_experts=num_experts, experts_per_token=chosen)), count)
        for layer, count in shape.layers
        if isinstance(layer.mlp, Experts)
    ]
    assert len(layers) == len(shape.layers), "a mixture in each layer"
    of_few = dict(shape.expert_matrices)
    of_all = {one: count // FEW_EXPERTS * num_experts for one, count in of_few.items()}
    others = {one: count - of_few.get(one, 0) for one, count in shape.matrices}
    routers, router = shape.num_layers, FEW_EXPERTS * shape.hidden
    plain = list(shape.plain_elements)
    for _ in range(routers):
        plain[plain.index(router)] = num_experts * shape.hidden
    matrices = {one: others.get(one, 0) + of_all.get(one, 0) for one, _ in shape.matrices}
    in_layer = {one: count // shape.num_layers for one, count in of_few.items()}
    more_bytes = [round_to_block(count * shape.hidden * HALF_BYTES) for count in (FEW_EXPERTS, num_experts)]
    weights = [
        LayerWeights(
            tuple((one, count + in_layer.get(one, 0) // FEW_EXPERTS * (num_experts - FEW_EXPERTS))
                  for one, count in layer.matrices),
            layer.plain_bytes + more_bytes[1] - more_bytes[0],
        )
        for layer in shape.layer_weights
    ]  # fmt: skip
    return replace(shape, layers=tuple(layers), matrices=tuple(matrices.items()), layer_weights=tuple(weights),
                   expert_matrices=tuple(of_all.items()), plain_elements=tuple(plain))  # fmt: skip


def _make_checkpoint(model: RecommendedModel) -> Checkpoint:
    tensors: dict[str, TensorInfo] = {}
    begin = 0
    for name, dtype, shape in list_tensors(model.config, model.quantization, model.kept):
        end = begin + math.prod(shape) * DTYPE_BYTES[dtype]
        tensors[name] = TensorInfo("model.safetensors", dtype, shape, begin, end)
        begin = end
    return make_checkpoint(model.repo, model.config, model.quantization, tensors)


@dataclass(frozen=True, slots=True)
class Wish:
    """What the models are to do: how many chats at once, by which kernel, with how much context; 0 is the usual one."""

    context_tokens: int = 0
    num_chats: int = 1
    kernel: str | None = None
    cache: CacheChoice = EVERY_CHAT_FULL

    @property
    def least_tokens(self) -> int:
        """The context that a model has to have room for to be the best: what was asked for, else a long answer's, as
        far as a chat can have that of all chats' tokens."""
        pool_tokens = self.cache.pool_tokens
        return self.context_tokens or min(MIN_CONTEXT_TOKENS, pool_tokens or MIN_CONTEXT_TOKENS)


ONE_CHAT = Wish()


def verdicts_for(
    devices: tuple[DeviceMemory, ...], wish: Wish = ONE_CHAT
) -> tuple[tuple[RecommendedModel, Verdict], ...]:
    """Every model of the list with its verdict for `devices`, none for the CPU."""
    # What is free of a CPU's memory changes from one look to the next.
    return _gpu_verdicts(devices, wish) if devices else _verdicts(devices, wish)


@lru_cache(maxsize=8)
def _gpu_verdicts(devices: tuple[DeviceMemory, ...], wish: Wish) -> tuple[tuple[RecommendedModel, Verdict], ...]:
    return _verdicts(devices, wish)


def _verdicts(devices: tuple[DeviceMemory, ...], wish: Wish) -> tuple[tuple[RecommendedModel, Verdict], ...]:
    return tuple((model, _verdict(model, devices, wish)) for model in recommended_models())


def best_of(
    verdicts: Iterable[tuple[RecommendedModel, Verdict]], least_tokens: int = MIN_CONTEXT_TOKENS
) -> RecommendedModel | None:
    """The first that fits with room for `least_tokens` and is quick with them: on a GPU by captured steps, on a CPU no
    slower than people read. None where none fits.

    Where none is such: on a CPU the fastest; on a GPU one whose load is quick before a slow one, of these one with the
    room before one without, of these the first.
    """
    fitting = [(model, report) for model, report in verdicts if not isinstance(report, DeckError) and report.fits]
    for model, report in fitting:
        if reason_against(report, least_tokens) is None:
            return model
    on_cpu = [(report.tokens_per_s, model) for model, report in fitting if isinstance(report, CpuReport)]
    if on_cpu:
        return max(on_cpu, key=lambda one: one[0])[1]
    on_gpu = [(model, report) for model, report in fitting if isinstance(report, FitReport)]
    return max(on_gpu, key=lambda one: (not one[1].is_slow, one[1].max_context >= least_tokens), default=(None,))[0]


def next_larger(
    verdicts: Sequence[tuple[RecommendedModel, Verdict]], best: RecommendedModel
) -> tuple[RecommendedModel, Verdict] | None:
    """The model with its verdict that would have been the best before `best`, of those with more parameters."""
    places = [model for model, _ in verdicts]
    larger = [one for one in verdicts[: places.index(best)] if one[0].billions > best.billions]
    return larger[-1] if larger else None


def reason_against(report: Verdict, least_tokens: int = MIN_CONTEXT_TOKENS) -> ReasonAgainst | None:
    """Why a model is not the one to recommend, or None where it could be."""
    if isinstance(report, DeckError):
        return "no_kernel"
    if not report.fits:
        return "too_large"
    if report.max_context < least_tokens:
        return "short_context"
    if isinstance(report, CpuReport):
        return "slow" if report.tokens_per_s < READING_TOKENS_S else None
    if report.quick_context is None:
        return "slow_steps"
    return "slow_context" if report.quick_context < least_tokens else None


def _verdict(model: RecommendedModel, devices: tuple[DeviceMemory, ...], wish: Wish) -> Verdict:
    checkpoint, asked = sized_checkpoint(model), (wish.context_tokens, wish.num_chats, wish.kernel)
    try:
        if not devices:
            return check_cpu_fit(checkpoint, *asked, cache_bits=wish.cache.bits)
        return check_fit(checkpoint, devices, *asked, cache=wish.cache)
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
        **_experts(row),
        **_recurrent_layers(row),
    }
    return RecommendedModel(
        repo=row["repo"],
        billions=float(row["billions"]),
        license_name=row["license"],
        on_modelscope=row["modelscope"] == "yes",
        config=config,
        quantization=listed_format(row),
        kept=tuple((row["kept"] or "").split()),
    )


def _experts(row: dict[str, str]) -> dict[str, Any]:
    if not row["experts"]:
        return {}
    return {
        "num_experts": int(row["experts"]),
        "num_experts_per_tok": int(row["chosen"]),
        "moe_intermediate_size": int(row["expert_size"]),
        "shared_expert_intermediate_size": int(row["shared_size"] or 0),
        "norm_topk_prob": True,
    }


def _recurrent_layers(row: dict[str, str]) -> dict[str, Any]:
    if not row["value_heads"]:
        return {}
    places = range(1, int(row["layers"]) + 1)
    return {
        "layer_types": [
            "linear_attention" if place % FULL_ATTENTION_INTERVAL else "full_attention" for place in places
        ],
        "linear_num_key_heads": int(row["key_heads"]),
        "linear_num_value_heads": int(row["value_heads"]),
        "linear_key_head_dim": DELTA_HEAD_DIM,
        "linear_value_head_dim": DELTA_HEAD_DIM,
        "linear_conv_kernel_dim": CONV_WIDTH,
    }
