"""A LoRA adapter in PEFT's format as data: which matrices it changes, by which rank and scale, and not a weight.

Reads adapter_config.json and the header of adapter_model.safetensors without trust. The tensors tell which matrices are
adapted, so target modules by name, by list, by pattern and as "all-linear" are all one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from core.checkpoint.adapter_numbers import first_not_finite
from core.checkpoint.adapter_patterns import ModuleSettings
from core.checkpoint.base_copies import BaseCopy, require_outside, split_copies
from core.checkpoint.checkpoint import FolderFiles
from core.checkpoint.expert_adapters import expand_stack, experts_by_stack, stack_features
from core.checkpoint.headers import TensorInfo
from core.checkpoint.low_rank import LowRank, StackedLowRank, stacked_parameters
from core.checkpoint.tensor_names import name_module
from core.checkpoint.weight_files import ADAPTER_CONFIG, ModelFiles
from core.common.errors import CheckpointError
from core.common.paths import cached_repo
from core.common.values import is_whole, plain_number, printable, quoted_json, quoted_value, without_controls

WEIGHTS = "adapter_model.safetensors"
PICKLES = ("adapter_model.bin", "adapter_model.pt")
MAX_RANK = 256
# How safetensors' names of floating point numbers begin; "BOOL" is none.
FLOATS = ("F", "BF")
# So much of what it calls its base is kept, the end with the name: a stranger's text may be of any length.
MAX_BASE_CHARS = 300
# What a sentence says for the base of one that names none.
NO_BASE = "-"
# `base_model.model.` is PEFT's own wrapper. Some trainers keep the adapter's name between the part and "weight".
TENSOR = re.compile(r"^(?:base_model\.model\.)?(?P<module>.+)\.lora_(?P<part>[AB])(?:\.[\w-]+)?\.weight$")
# What PEFT adds to a table of tokens, which is no matrix times an input.
EMBEDDING = re.compile(r"^(?:base_model\.model\.)?(?P<module>.+)\.lora_embedding_[AB](?:\.[\w-]+)?$")
# A matrix of one expert, whatever a release calls it.
SINGLE_EXPERT = re.compile(r"\.experts\.[0-9]+\.")
# All experts of a layer, or a parameter of them.
ALL_EXPERTS = re.compile(r"\.experts(?:\.[a-z]\w*)*$")
# PEFT's version, and the one since which A and B of all experts of a layer have their own places.
VERSION, UNSWAPPED_SINCE = re.compile(r"([0-9]{1,4})\.([0-9]{1,4})\.([0-9]{1,4})"), (0, 19, 1)
# What is added to a model's name without making another model of it: its form, and how it was quantized.
SAME_MODEL = re.compile(
    r"(?:[-_.](?:hf|unsloth|bnb|nf4|gptq|awq|gguf|fp8|fp16|bf16|int[48]|[2348]-?bit|[0-9]+g))+$", re.IGNORECASE
)
# What is beside the language model in one that sees or hears; its layers have the same names within.
TOWER = re.compile(r"(?:^|[._])(?:vision|visual|vit|image|audio|speech)(?:[._]|$)")
# What can be wrong with a file of any kind. Of an adapter's it is told in words of its own: nobody fetches a model anew
# for it, and only by these words the API knows whose file it is.
FILE_FAULTS = ("unreadable", "bad_json", "config_too_large", "corrupt_weights", "truncated")
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
    "layer_replication": "layer_replication",
    "lora_bias": "lora_bias",
    "monteclora_config": "MonteCLoRA",
}
# Ways to begin a training that take something out of the base's own weights, unless they were converted afterwards.
CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
# So many of the adapters in a folder are named.
MAX_INNER = 3


@dataclass(frozen=True, slots=True)
class AdapterShape:
    """One adapter. `matrices` by module, and `stacks` by parameter, as the adapter names them; `base_name` is what it
    was trained on, or "". `copies` are what its file holds of the base's embedding and head.
    """

    name: str
    path: Path
    base_name: str
    matrices: Mapping[str, LowRank]
    stacks: Mapping[str, StackedLowRank]
    num_bytes: int
    copies: tuple[BaseCopy, ...] = ()

    @property
    def rank(self) -> int:
        """The highest rank of its matrices."""
        ranks = [one.rank for one in self.matrices.values()]
        return max(ranks + [one.rank for one in self.stacks.values()])

    @property
    def changes_experts(self) -> bool:
        """Whether it changes single experts of a mixture."""
        return bool(self.stacks) or any(SINGLE_EXPERT.search(name) for name in self.matrices)

    @property
    def weights(self) -> Path:
        return self.path / WEIGHTS


def is_adapter(folder: Path) -> bool:
    return (folder / ADAPTER_CONFIG).is_file()


def inner_adapters(folder: Path) -> list[str]:
    """The folders of adapters in `folder`, which is none itself: PEFT makes one for each adapter that has a name."""
    if is_adapter(folder):
        return []
    try:
        return sorted(path.name for path in folder.iterdir() if not path.name.startswith(".") and is_adapter(path))
    except (OSError, ValueError):  # The second for a name that no path can have.
        return []


def read_adapter(folder: Path) -> AdapterShape:
    """The adapter in `folder`. Raises CheckpointError with the reason why it is none that can be used, as far as that
    is told without its numbers."""
    require_outer(folder)
    with faults_of_adapter(folder):
        return read_adapter_files(FolderFiles(folder), folder)


def require_outer(folder: Path) -> None:
    """Raise CheckpointError "adapter_deeper" for a folder that is no adapter, and has some in it."""
    if inner := inner_adapters(folder):
        named = ", ".join(map(printable, inner[:MAX_INNER])) + (", …" if len(inner) > MAX_INNER else "")
        raise CheckpointError("adapter_deeper", adapter=printable(folder.name), inner=named, first=printable(inner[0]))


def read_sound_adapter(folder: Path) -> AdapterShape:
    """As `read_adapter`, with a look at every number: what is offered must work when it is used."""
    adapter = read_adapter(folder)
    require_numbers(adapter)
    return adapter


def require_numbers(adapter: AdapterShape) -> None:
    """Raise CheckpointError where numbers of the adapter are none (NaN or infinite). Reads its file, unless that has
    not changed since the last time."""
    with faults_of_adapter(adapter.path):
        tensor = first_not_finite(adapter.weights)
    if tensor is not None:
        match = TENSOR.match(tensor)
        module = printable(match["module"] if match else tensor)
        raise CheckpointError("adapter_nan", adapter=adapter.name, module=module)


@contextmanager
def faults_of_adapter(folder: Path) -> Iterator[None]:
    """Raises what is wrong with any file in words for adapters."""
    try:
        yield
    except CheckpointError as error:
        if error.key == "adapter_none":
            raise CheckpointError("adapter_none", folder=printable(str(folder))) from error
        if error.key in FILE_FAULTS:
            raise CheckpointError(f"adapter_{error.key}", **error.params) from error
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
    copies, others = split_copies(tensors)
    found = _matrices(name, config, others)
    matrices = {one.name: one for one in found if isinstance(one, LowRank)}
    require_outside(name, copies, matrices)
    return AdapterShape(
        name=name,
        path=path,
        base_name=_base_name(config.get("base_model_name_or_path")),
        matrices=matrices,
        stacks={one.name: one for one in found if isinstance(one, StackedLowRank)},
        num_bytes=sum(tensor.num_bytes for tensor in tensors.values()),
        copies=tuple(copies),
    )


def _base_name(said: object) -> str:
    return without_controls(printable(" ".join(said.split())[-MAX_BASE_CHARS:])) if isinstance(said, str) else ""


def _refuse_variants(name: str, config: Mapping[str, Any]) -> None:
    """Raise CheckpointError for an adapter that is more than two small matrices beside each large one."""
    kind = config.get("peft_type")
    if kind != "LORA":
        raise CheckpointError("adapter_kind", adapter=name, kind=quoted_json(kind))
    if not isinstance(config.get("use_rslora") or False, bool):
        value = quoted_value(config["use_rslora"])
        raise CheckpointError("adapter_setting", adapter=name, setting="use_rslora", value=value)
    for key, called in VARIANTS.items():
        if config.get(key):
            raise CheckpointError("adapter_variant", adapter=name, variant=called)
    if (config.get("bias") or "none") != "none":
        raise CheckpointError("adapter_variant", adapter=name, variant=f"bias = {quoted_value(config['bias'])}")
    begun = config.get("init_lora_weights")
    if isinstance(begun, str) and begun.lower().startswith(CHANGES_BASE):
        raise CheckpointError("adapter_changed_base", adapter=name, way=quoted_json(begun))


def _matrices(
    name: str, config: Mapping[str, Any], tensors: Mapping[str, TensorInfo]
) -> list[LowRank | StackedLowRank]:
    parts: dict[str, dict[str, str]] = {}
    for tensor in tensors:
        match = TENSOR.match(tensor)
        if match is None and (embedding := EMBEDDING.match(tensor)) is not None:
            raise CheckpointError("adapter_embedding", adapter=name, module=printable(embedding["module"]))
        if match is None:
            raise CheckpointError("adapter_tensor", adapter=name, tensor=printable(tensor))
        # A second tensor for one place would hide the first.
        if parts.setdefault(match["module"], {}).setdefault(match["part"], tensor) != tensor:
            raise CheckpointError("adapter_tensor", adapter=name, tensor=printable(tensor))
    if not parts:
        raise CheckpointError("adapter_empty", adapter=name)
    targets = config.get("target_parameters")
    texts = [one for one in targets if isinstance(one, str)] if isinstance(targets, list) else []
    stacked = stacked_parameters(texts, parts)
    if (untold := next((module for module, parameter in stacked.items() if parameter is None), None)) is not None:
        raise CheckpointError("adapter_parameter", adapter=name, module=printable(untold))
    # Patterns speak of parameters.
    names = {module: stacked.get(module) or module for module in parts}
    settings = ModuleSettings.read(name, config, list(names.values()))
    return [_matrix(settings, names[module], found, tensors, module in stacked) for module, found in parts.items()]


def _matrix(
    settings: ModuleSettings,
    module: str,
    found: Mapping[str, str],
    tensors: Mapping[str, TensorInfo],
    is_stacked: bool,
) -> LowRank | StackedLowRank:
    name, config = settings.adapter, settings.config
    if len(found) != 2:
        raise CheckpointError("adapter_half", adapter=name, module=printable(module))
    a, b = tensors[found["A"]], tensors[found["B"]]
    setting, said = settings.rank(module)
    rank = plain_number(said)
    if rank and not (a.num_bytes or b.num_bytes):
        raise CheckpointError("adapter_not_gathered", adapter=name, module=printable(module))
    if not is_stacked and ALL_EXPERTS.search(module) and _are_of_many(a, b, rank):
        raise CheckpointError("adapter_foreign_experts", adapter=name, module=printable(module))
    for tensor in found.values():
        if not tensors[tensor].dtype.startswith(FLOATS):
            dtype = tensors[tensor].dtype
            raise CheckpointError("adapter_dtype", adapter=name, tensor=printable(tensor), dtype=dtype)
    if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != b.shape[1]:
        raise CheckpointError("adapter_shapes", adapter=name, module=printable(module), a=str(list(a.shape)),
                              b=str(list(b.shape)))  # fmt: skip
    num_experts = _num_experts(a.shape[0], rank) if is_stacked else 1
    if is_whole(rank) and rank * num_experts == a.shape[0] and rank > MAX_RANK:
        raise CheckpointError("adapter_rank_limit", adapter=name, module=printable(module), rank=rank, limit=MAX_RANK)
    if not is_whole(rank) or not 1 <= rank <= MAX_RANK or rank * num_experts != a.shape[0]:
        key = "adapter_rank_experts" if is_stacked else "adapter_rank"
        raise CheckpointError(key, adapter=name, module=printable(module), rank=quoted_value(said), setting=setting,
                              found=a.shape[0], limit=MAX_RANK)  # fmt: skip
    # PEFT: alpha / r; rsLoRA (arXiv 2312.03732): alpha / sqrt(r).
    scale = settings.alpha(module) / (math.sqrt(rank) if config.get("use_rslora") else rank)
    sizes = rank, scale, a.shape[1], b.shape[0], found["A"], found["B"]
    if is_stacked:
        return StackedLowRank(module, *sizes, num_experts, may_be_swapped=_version(config) < UNSWAPPED_SINCE)
    return LowRank(module, *sizes)


def _are_of_many(a: TensorInfo, b: TensorInfo, rank: Any) -> bool:
    """Whether these may be the matrices of several experts, in a way that is not PEFT's."""
    return len(a.shape) == len(b.shape) == 3 or (len(a.shape) == 2 and _num_experts(a.shape[0], rank) > 1)


def _version(config: Mapping[str, Any]) -> tuple[int, ...]:
    """Of the PEFT that wrote the adapter; (0,) where it does not say: those before 0.18 did not."""
    said = config.get("peft_version")
    match = VERSION.match(said) if isinstance(said, str) else None
    return tuple(map(int, match.groups())) if match else (0,)


def _num_experts(rows: int, rank: Any) -> int:
    """Of how many experts A's rows are; 1 where they are no multiple of the rank."""
    return rows // rank if is_whole(rank) and rank > 0 and rows and rows % rank == 0 else 1


def with_class_names(adapter: AdapterShape, config: Mapping[str, Any]) -> AdapterShape:
    """`adapter` with what the class that runs `config` calls the matrices of its experts, whatever releases call
    them."""
    matrices = {name_module(config, name): matrix for name, matrix in adapter.matrices.items()}
    # Two modules of one name would hide one of them.
    return replace(adapter, matrices=matrices) if len(matrices) == len(adapter.matrices) else adapter


def match_base(
    adapter: AdapterShape, base: str, sizes: Mapping[str, tuple[int, int]], takes_turns: bool = False
) -> dict[str, LowRank]:
    """What `adapter` adds to each matrix of a base whose matrices have these (in, out) features, by the base's names.
    takes_turns: outputs of gate and up take turns in the class's own tensor for both.

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
        if not name or not is_own:
            raise _wrong_base("adapter_base_matrix", adapter, base, module)
        if sizes[name] != (matrix.in_features, matrix.out_features):
            wanted, found_sizes = f"{matrix.in_features} x {matrix.out_features}", "{} x {}".format(*sizes[name])
            raise _wrong_base("adapter_base_shape", adapter, base, module, wanted=wanted, found=found_sizes)
        if name in found:
            raise _twice(adapter, base, name)
        found[name] = matrix
    return found | _match_stacks(adapter, base, sizes, takes_turns, found)


def _match_stacks(
    adapter: AdapterShape,
    base: str,
    sizes: Mapping[str, tuple[int, int]],
    takes_turns: bool,
    others: Mapping[str, LowRank],
) -> dict[str, LowRank]:
    """What the adapter adds to all experts of layers, matrix by matrix. others: what it adds one by one."""
    found: dict[str, LowRank] = {}
    stacks = experts_by_stack(sizes) if adapter.stacks else {}
    by_tail: dict[str, str | None] = {}
    for name in stacks:
        by_tail[_tail(name)] = None if _tail(name) in by_tail else name
    for parameter, stacked in adapter.stacks.items():
        is_own = stacked.stack in stacks or not TOWER.search(parameter)
        name = stacked.stack if stacked.stack in stacks else by_tail.get(_tail(stacked.stack)) or ""
        if not name or not is_own:
            raise _wrong_base("adapter_base_matrix", adapter, base, parameter)
        ways = expand_stack(stacked, stacks[name], sizes, takes_turns)
        if len(ways) > 1:
            raise CheckpointError("adapter_experts_layout", adapter=adapter.name, module=printable(parameter))
        if not ways:
            raise _wrong_base(
                "adapter_base_experts", adapter, base, parameter, count=stacked.num_experts,
                wanted=f"{stacked.in_features} x {stacked.out_features}", found=len(stacks[name]),
                own="{} x {}".format(*stack_features(stacked, stacks[name], sizes)),
            )  # fmt: skip
        (expanded,) = ways
        if (double := next((one for one in expanded if one in others or one in found), None)) is not None:
            raise _twice(adapter, base, double)
        found |= expanded
    return found


def _wrong_base(key: str, adapter: AdapterShape, base: str, module: str, **sizes: str | int) -> CheckpointError:
    """`base` has no such matrix, or one of other sizes; the adapter's own word for its base says which model has."""
    trained_on = adapter.base_name or NO_BASE
    return CheckpointError(
        key, adapter=adapter.name, base=base, trained_on=trained_on, module=printable(module), **sizes
    )


def _twice(adapter: AdapterShape, base: str, module: str) -> CheckpointError:
    """Two modules of the adapter are for one matrix: one of them would be lost."""
    return CheckpointError("adapter_twice", adapter=adapter.name, base=base, module=printable(module))


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
