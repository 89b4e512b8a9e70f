"""A GPTQ checkpoint as data: its configuration and the shapes of its tensors, not a weight; knows no GPU.

A checkpoint need not be on disk: core/hub/metadata.py reads one from the Hub, core/library/catalogue.py knows
some by heart. Reads a folder in any layout that GPTQ checkpoints have had: `model.safetensors`,
`gptq_model-4bit-128g.safetensors`, shards with an index; the quantization in `config.json` or in a
`quantize_config.json` beside it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.checkpoint.headers import TensorInfo, read_header, read_json
from core.common.errors import CheckpointError
from core.common.values import is_whole, printable, quoted_json

BITS = (2, 3, 4, 8)
QUANTIZE_CONFIG = "quantize_config.json"
# What families call their longest context, and what the first Llama had, for a config that leaves it out.
CONTEXT_NAMES = ("max_position_embeddings", "n_positions", "max_seq_len")
DEFAULT_CONTEXT_TOKENS = 2048


@dataclass(frozen=True, slots=True)
class Quantization:
    """How the matrices were quantized. `group_size` -1: one group a column; `format`: "gptq" or "gptq_v2"."""

    bits: int
    group_size: int
    act_order: bool
    symmetric: bool
    format: str

    @property
    def label(self) -> str:
        group = "no groups" if self.group_size < 0 else f"group {self.group_size}"
        return f"{self.bits} bit, {group}" + (", act-order" if self.act_order else "")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One model. `config` is its own config.json, with nothing added; `path` is None for one that is not on disk."""

    name: str
    config: dict[str, Any]
    quantization: Quantization
    tensors: dict[str, TensorInfo]
    path: Path | None = None

    @property
    def folder(self) -> Path:
        """The folder with its files. Raises CheckpointError for a checkpoint that is not on disk."""
        if self.path is None:
            raise CheckpointError("not_on_disk", name=self.name)
        return self.path

    @property
    def architecture(self) -> str:
        named = self.config.get("architectures")
        if isinstance(named, list) and named:
            return quoted_json(named[0])
        return quoted_json(self.config.get("model_type", "?"))

    @property
    def size_bytes(self) -> int:
        """The bytes of all tensors, which is what a load reads."""
        return sum(tensor.num_bytes for tensor in self.tensors.values())

    @property
    def max_context_tokens(self) -> int:
        """The longest context that the model was made for."""
        text = self.config.get("text_config")
        config = text if isinstance(text, dict) else self.config
        values = (config.get(name) for name in CONTEXT_NAMES)
        return next((value for value in values if is_whole(value) and value > 0), DEFAULT_CONTEXT_TOKENS)


def read_checkpoint(folder: Path) -> Checkpoint:
    """Read the checkpoint in `folder`. Raises CheckpointError, whose sentence says what is wrong with it."""
    if not os.path.isdir(folder):
        raise CheckpointError("no_folder", folder=printable(str(folder)))
    if printable(folder.name) != folder.name:
        raise CheckpointError("folder_name", folder=printable(folder.name))
    config = read_json(folder / "config.json")
    if config is None:
        raise CheckpointError("no_config", folder=folder.name)
    quantization = read_quantization(folder, config)
    tensors: dict[str, TensorInfo] = {}
    for file in weight_files(folder):
        tensors |= read_header(folder / file)
    if not any(name.endswith(".qweight") for name in tensors):
        raise CheckpointError("no_quantized_weights", folder=folder.name)
    return Checkpoint(folder.name, config, quantization, tensors, folder)


def read_quantization(folder: Path, config: dict[str, Any]) -> Quantization:
    """The quantization from `config.json`, else from auto-gptq's older `quantize_config.json`."""
    return parse_quantization(folder.name, config.get("quantization_config") or read_json(folder / QUANTIZE_CONFIG))


def parse_quantization(name: str, found: object) -> Quantization:
    """What `found` in the configuration of the model `name` says. Raises CheckpointError for what cannot run."""
    if not isinstance(found, dict):
        raise CheckpointError("not_quantized", folder=name)
    method = quoted_json(found.get("quant_method") or "gptq").lower()
    if method != "gptq":
        raise CheckpointError("other_quantization", folder=name, method=method)
    bits, group_size = found.get("bits"), found.get("group_size", -1)
    if not is_whole(bits) or bits not in BITS:
        raise CheckpointError("bits", folder=name, bits=quoted_json(bits))
    if not is_whole(group_size) or not (group_size == -1 or group_size > 0):
        raise CheckpointError("group_size", folder=name, group_size=quoted_json(group_size))
    format_name = quoted_json(found.get("checkpoint_format") or found.get("format") or "gptq").lower()
    if format_name not in ("gptq", "gptq_v2"):
        raise CheckpointError("format", folder=name, format=format_name)
    return Quantization(
        bits=bits,
        group_size=group_size,
        act_order=bool(found.get("desc_act", False)),
        # Anything but true: there are kernels that take both, and one that computes nonsense for the asymmetric.
        symmetric=found.get("sym", True) is True,
        format=format_name,
    )


def weight_files(folder: Path) -> list[str]:
    """The names of the weight files: those that an index lists, else the one set of weights in the folder."""
    for index_path in sorted(folder.glob("*.safetensors.index.json")):
        shards = parse_index(read_json(index_path) or {})
        if shards is None:
            raise CheckpointError("bad_json", file=printable(index_path.name), folder=folder.name)
        missing = [name for name in shards if not os.path.isfile(folder / name)]
        if missing:
            raise CheckpointError("missing_shard", folder=folder.name, file=missing[0], count=len(missing))
        return shards
    files = sorted(path.name for path in folder.glob("*.safetensors"))
    if not files:
        pickled = any(folder.glob("*.bin")) or any(folder.glob("*.pt"))
        raise CheckpointError("only_pickled" if pickled else "no_weights", folder=folder.name)
    if len(files) > 1:
        first, second = printable(files[0]), printable(files[1])
        raise CheckpointError("several_weights", folder=folder.name, first=first, second=second)
    return files


def parse_index(index: dict[str, Any]) -> list[str] | None:
    """The names of the shards that an index lists, or None where it is no index or leads out of its folder."""
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not all(is_plain_name(name) for name in weight_map.values()):
        return None
    return sorted(set(weight_map.values()))


def is_plain_name(name: object) -> bool:
    """Whether `name` is a file's bare name, which cannot lead out of its folder."""
    return isinstance(name, str) and name.isprintable() and name not in ("", "..") and Path(name).name == name
