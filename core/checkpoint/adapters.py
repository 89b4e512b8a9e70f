"""A LoRA adapter in PEFT's format as data: which matrices it changes, by which rank and scale, and not a weight.

Reads adapter_config.json and the header of adapter_model.safetensors without trust. The tensors tell which matrices are
adapted, so target modules by name, by list, by pattern and as "all-linear" are all one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.checkpoint.checkpoint import FolderFiles
from core.checkpoint.headers import TensorInfo
from core.checkpoint.weight_files import ADAPTER_CONFIG, ModelFiles
from core.common.errors import CheckpointError
from core.common.paths import cached_repo
from core.common.values import is_whole, printable, quoted_json

WEIGHTS = "adapter_model.safetensors"
PICKLES = ("adapter_model.bin", "adapter_model.pt")
MAX_RANK = 256
# So much of what it calls its base is kept, the end with the name: a stranger's text may be of any length.
MAX_BASE_CHARS = 300
# `base_model.model.` is PEFT's own wrapper. Some trainers keep the adapter's name between the part and "weight".
TENSOR = re.compile(r"^(?:base_model\.model\.)?(?P<module>.+)\.lora_(?P<part>[AB])(?:\.[\w-]+)?\.weight$")
# Patterns of ranks come from strangers: names, dots and ends, and nothing that repeats, cannot take long to match.
PATTERN = re.compile(r"(?:[\w.$^-]|\\[.d])+")
MAX_PATTERNS, MAX_PATTERN_CHARS = 10_000, 300
# All others are for a matcher that needs a time in proportion to the text; to make one of a pattern may take longer.
MAX_OTHER_PATTERNS = 200
# What is added to a model's name without making another model of it: its form, and how it was quantized.
SAME_MODEL = re.compile(
    r"(?:[-_.](?:hf|unsloth|bnb|nf4|gptq|awq|gguf|fp8|fp16|bf16|int[48]|[2348]-?bit|[0-9]+g))+$", re.IGNORECASE
)
# What is beside the language model in one that sees or hears; its layers have the same names within.
TOWER = re.compile(r"(?:^|[._])(?:vision|visual|vit|image|audio|speech)(?:[._]|$)")
# Each pattern is held against each module, which pages do whenever they are drawn; so many take half a second.
MAX_MATCHES = 2_000_000
# Settings that make more of an adapter than B times A, with the name that people know each by.
VARIANTS = {
    "use_dora": "DoRA",
    "use_qalora": "QALoRA",
    "use_bdlora": "BD-LoRA",
    "alora_invocation_tokens": "aLoRA",
    "arrow_config": "Arrow",
    "kasa_config": "KaSA",
    "modules_to_save": "modules_to_save",
    "trainable_token_indices": "trainable_token_indices",
    "target_parameters": "target_parameters",
    "layer_replication": "layer_replication",
    "lora_bias": "lora_bias",
    "monteclora_config": "MonteCLoRA",
}
# Ways to begin a training that take something out of the base's own weights, unless they were converted afterwards.
CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


@dataclass(frozen=True, slots=True)
class LowRank:
    """What an adapter adds to the matrix of the module `name`: scale * B @ A.

    A is [rank, in_features], B is [out_features, rank].
    """

    name: str
    rank: int
    scale: float
    in_features: int
    out_features: int
    a_name: str
    b_name: str


@dataclass(frozen=True, slots=True)
class AdapterShape:
    """One adapter. `matrices` by module as the adapter names it; `base_name` is what it was trained on, or "".

    `is_transposed`: the base keeps its matrices as [in, out], as GPT-2 does.
    """

    name: str
    path: Path
    base_name: str
    matrices: Mapping[str, LowRank]
    num_bytes: int
    is_transposed: bool = False

    @property
    def rank(self) -> int:
        """The highest rank of its matrices."""
        return max(matrix.rank for matrix in self.matrices.values())

    @property
    def weights(self) -> Path:
        return self.path / WEIGHTS


def is_adapter(folder: Path) -> bool:
    return (folder / ADAPTER_CONFIG).is_file()


def read_adapter(folder: Path) -> AdapterShape:
    """The adapter in `folder`. Raises CheckpointError with the reason why it is none that can be used."""
    try:
        return read_adapter_files(FolderFiles(folder), folder)
    except CheckpointError as error:
        if error.key == "adapter_none":
            raise CheckpointError("adapter_none", folder=printable(str(folder))) from error
        raise


def read_adapter_files(files: ModelFiles, path: Path) -> AdapterShape:
    """The adapter whose files these are, wherever they lie; `path` is where they lie or will. Raises as
    `read_adapter`."""
    name = printable(files.name)
    config = files.read_json(ADAPTER_CONFIG)
    if config is None:
        raise files.error("adapter_none")
    _refuse_variants(name, config)
    if WEIGHTS not in files.names:
        pickle = next((file for file in PICKLES if file in files.names), None)
        raise CheckpointError(
            "adapter_pickled" if pickle else "adapter_no_weights", adapter=name, file=pickle or WEIGHTS
        )
    tensors = files.read_header(WEIGHTS)
    base = config.get("base_model_name_or_path")
    return AdapterShape(
        name=name,
        path=path,
        base_name=printable(" ".join(base.split())[-MAX_BASE_CHARS:]) if isinstance(base, str) else "",
        matrices=_matrices(name, config, tensors),
        num_bytes=sum(tensor.num_bytes for tensor in tensors.values()),
        is_transposed=config.get("fan_in_fan_out") is True,
    )


def _refuse_variants(name: str, config: Mapping[str, Any]) -> None:
    """Raise CheckpointError for an adapter that is more than two small matrices beside each large one."""
    kind = config.get("peft_type")
    if kind != "LORA":
        raise CheckpointError("adapter_kind", adapter=name, kind=quoted_json(kind))
    for key, called in VARIANTS.items():
        if config.get(key):
            raise CheckpointError("adapter_variant", adapter=name, variant=called)
    if config.get("bias", "none") != "none":
        raise CheckpointError("adapter_variant", adapter=name, variant=f"bias = {quoted_json(config['bias'])}")
    begun = config.get("init_lora_weights")
    if isinstance(begun, str) and begun.lower().startswith(CHANGES_BASE):
        raise CheckpointError("adapter_changed_base", adapter=name, way=quoted_json(begun))


def _matrices(name: str, config: Mapping[str, Any], tensors: Mapping[str, TensorInfo]) -> dict[str, LowRank]:
    parts: dict[str, dict[str, str]] = {}
    for tensor in tensors:
        match = TENSOR.match(tensor)
        if match is None:
            raise CheckpointError("adapter_tensor", adapter=name, tensor=printable(tensor))
        # A second tensor for one place would hide the first.
        if parts.setdefault(match["module"], {}).setdefault(match["part"], tensor) != tensor:
            raise CheckpointError("adapter_tensor", adapter=name, tensor=printable(tensor))
    if not parts:
        raise CheckpointError("adapter_empty", adapter=name)
    ranks, alphas = (_by_pattern(name, config, key, list(parts)) for key in ("rank_pattern", "alpha_pattern"))
    return {
        module: _matrix(name, config, module, found, tensors,
                        ranks.get(module, config.get("r")), alphas.get(module, config.get("lora_alpha")))
        for module, found in parts.items()
    }  # fmt: skip


def _matrix(
    name: str,
    config: Mapping[str, Any],
    module: str,
    found: Mapping[str, str],
    tensors: Mapping[str, TensorInfo],
    rank: Any,
    alpha: Any,
) -> LowRank:
    if len(found) != 2:
        raise CheckpointError("adapter_half", adapter=name, module=printable(module))
    a, b = tensors[found["A"]], tensors[found["B"]]
    if rank and not (a.num_bytes or b.num_bytes):
        raise CheckpointError("adapter_not_gathered", adapter=name, module=printable(module))
    if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != b.shape[1] or a.dtype[0] not in "BF":
        raise CheckpointError("adapter_shapes", adapter=name, module=printable(module), a=str(list(a.shape)),
                              b=str(list(b.shape)))  # fmt: skip
    if is_whole(rank) and rank == a.shape[0] > MAX_RANK:
        raise CheckpointError("adapter_rank_limit", adapter=name, module=printable(module), rank=rank, limit=MAX_RANK)
    if not is_whole(rank) or not 1 <= rank <= MAX_RANK or rank != a.shape[0]:
        raise CheckpointError("adapter_rank", adapter=name, module=printable(module), rank=quoted_json(rank),
                              found=a.shape[0], limit=MAX_RANK)  # fmt: skip
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not math.isfinite(alpha):
        raise CheckpointError("adapter_alpha", adapter=name, alpha=quoted_json(alpha))
    # PEFT: alpha / r; rsLoRA (arXiv 2312.03732): alpha / sqrt(r).
    scale = alpha / (math.sqrt(rank) if config.get("use_rslora") is True else rank)
    return LowRank(module, rank, scale, a.shape[1], b.shape[0], found["A"], found["B"])


def _by_pattern(name: str, config: Mapping[str, Any], key: str, modules: list[str]) -> dict[str, Any]:
    """Ranks or alphas of the modules that a pattern fits, the first one that does; PEFT holds each against the end of a
    module's name."""
    found = config.get(key) or {}
    if not isinstance(found, dict):
        raise CheckpointError("adapter_pattern", adapter=name, setting=key, pattern="?")
    others = [pattern for pattern in found if not PATTERN.fullmatch(pattern)]
    is_much = len(found) > MAX_PATTERNS or len(found) * len(modules) > MAX_MATCHES
    if is_much or len(others) > MAX_OTHER_PATTERNS:
        raise CheckpointError("adapter_patterns", adapter=name, setting=key, count=len(found), modules=len(modules))
    values: dict[str, Any] = {}
    for pattern, value in found.items():
        whole = rf"^(?:.*\.)?(?:{pattern})$"
        try:
            if len(pattern) > MAX_PATTERN_CHARS:
                raise ValueError("too long")
            fits = _match_any(whole, modules) if pattern in others else list(map(re.compile(whole).match, modules))
        except ValueError as error:
            raise CheckpointError("adapter_pattern", adapter=name, setting=key, pattern=quoted_json(pattern)) from error
        for module, does_fit in zip(modules, fits, strict=True):
            if does_fit:
                values.setdefault(module, value)
    return values


def _match_any(pattern: str, texts: list[str]) -> list[Any]:
    """Which of `texts` a pattern of a stranger's fits, by RE2: its time grows with the text and nothing else.

    Raises ValueError for a pattern that is none, or looks ahead or back.
    """
    # It takes long to import, and hardly any adapter needs it.
    import pyarrow
    from pyarrow import compute

    fits: list[Any] = compute.match_substring_regex(pyarrow.array(texts), pattern).to_pylist()
    return fits


def match_base(adapter: AdapterShape, base: str, sizes: Mapping[str, tuple[int, int]]) -> dict[str, LowRank]:
    """What `adapter` adds to each matrix of a base whose matrices have these (in, out) features, by the base's names.

    Names match from the layer's number on: releases and classes begin them differently. Raises CheckpointError where
    the base has no such matrix or one of another shape, which is a wrong base.
    """
    by_tail: dict[str, str | None] = {}
    for name in sizes:
        by_tail[_tail(name)] = None if _tail(name) in by_tail else name
    found: dict[str, LowRank] = {}
    for module, matrix in adapter.matrices.items():
        is_own = module in sizes or not TOWER.search(module)
        name = module if module in sizes else by_tail.get(_tail(module)) or ""
        # Of two modules for one matrix one would be lost.
        if not name or not is_own or name in found:
            raise CheckpointError("adapter_base_matrix", adapter=adapter.name, base=base, module=printable(module))
        if sizes[name] != (matrix.in_features, matrix.out_features):
            raise CheckpointError(
                "adapter_base_shape", adapter=adapter.name, base=base, module=printable(module),
                wanted=f"{matrix.in_features} x {matrix.out_features}", found="{} x {}".format(*sizes[name]),
            )  # fmt: skip
        found[name] = matrix
    return found


def is_other_base(adapter: AdapterShape, names: tuple[str, ...]) -> bool:
    """Whether the base that `adapter` names is called otherwise than all of `names`: a hint and no proof.

    A copy of the same model may have any name; that of a quantized one begins with the model's own.
    """
    wanted = _letters(SAME_MODEL.sub("", _base_title(adapter.base_name)))
    return bool(wanted) and not any(wanted in _letters(name) or _letters(name) in wanted for name in names if name)


def _base_title(base: str) -> str:
    """The name alone of what may be a repository, or a path on the trainer's machine, which may be a snapshot in
    Hugging Face's cache."""
    path = Path(base.replace("\\", "/"))
    return (cached_repo(path) or path.name).rpartition("/")[2]


def _tail(name: str) -> str:
    """A module's name from its layer's number on: "3.self_attn.q_proj"; the whole where there is no layer."""
    return name[match.start(1) :] if (match := re.search(r"\.([0-9]+\..*)$", name)) else name.rpartition(".")[2]


def _letters(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
