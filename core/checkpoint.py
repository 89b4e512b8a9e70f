"""A GPTQ checkpoint as data: its configuration and the shape of every tensor, never a weight; knows no GPU and no torch.

Reads a folder in any layout that GPTQ checkpoints have had: `model.safetensors`, `gptq_model-4bit-128g.safetensors`,
shards with an index; the quantization in `config.json` or in a `quantize_config.json` beside it.
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.errors import CheckpointError

BITS = (2, 3, 4, 8)
# A header lists every tensor of a file; 70B's is 0.3 MB. The format itself allows 100 MB.
MAX_HEADER_BYTES = 100_000_000
MAX_CONFIG_BYTES = 10_000_000
DTYPE_BYTES = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2,
               "I8": 1, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1}  # fmt: skip
# A context that configs leave out: what the first Llama had.
DEFAULT_CONTEXT_TOKENS = 2048


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor: safetensors' name of its type, its shape, and where its bytes lie (counted from the file's start)."""

    file: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def num_bytes(self) -> int:
        return self.end - self.begin


@dataclass(frozen=True, slots=True)
class Quantization:
    """How the matrices were quantized. `group_size` -1 is one group a column; `format` is "gptq" or "gptq_v2"."""

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
    """One model in its folder. `config` is the model's own config.json, with nothing added."""

    folder: Path
    config: dict[str, Any]
    quantization: Quantization
    tensors: dict[str, TensorInfo]

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def architecture(self) -> str:
        return str((self.config.get("architectures") or [self.config.get("model_type", "?")])[0])

    @property
    def size_bytes(self) -> int:
        """The bytes of all tensors, which is what a load reads."""
        return sum(tensor.num_bytes for tensor in self.tensors.values())

    @property
    def max_context_tokens(self) -> int:
        """The longest context that the model was made for."""
        text = self.config.get("text_config") or self.config
        value = text.get("max_position_embeddings")
        return value if isinstance(value, int) and value > 0 else DEFAULT_CONTEXT_TOKENS


def read_checkpoint(folder: Path) -> Checkpoint:
    """Read the checkpoint in `folder`. Raises CheckpointError with a sentence for whatever is wrong with it."""
    if not folder.is_dir():
        raise CheckpointError("no_folder", folder=str(folder))
    config = read_json(folder / "config.json")
    if config is None:
        raise CheckpointError("no_config", folder=folder.name)
    quantization = read_quantization(folder, config)
    tensors: dict[str, TensorInfo] = {}
    for file in weight_files(folder):
        tensors |= read_header(folder / file)
    if not any(name.endswith(".qweight") for name in tensors):
        raise CheckpointError("no_quantized_weights", folder=folder.name)
    return Checkpoint(folder, config, quantization, tensors)


def read_json(path: Path) -> dict[str, Any] | None:
    """The JSON object in a small file, or None where there is no such file."""
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise CheckpointError("config_too_large", file=path.name, folder=path.parent.name)
        value = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CheckpointError("unreadable", file=str(path), why=error.strerror or str(error)) from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError("bad_json", file=path.name, folder=path.parent.name) from error
    if not isinstance(value, dict):
        raise CheckpointError("bad_json", file=path.name, folder=path.parent.name)
    return value


def read_quantization(folder: Path, config: dict[str, Any]) -> Quantization:
    """The quantization from `config.json`, else from auto-gptq's older `quantize_config.json`."""
    found = config.get("quantization_config") or read_json(folder / "quantize_config.json")
    if not isinstance(found, dict):
        raise CheckpointError("not_quantized", folder=folder.name)
    method = str(found.get("quant_method", "gptq")).lower()
    if method != "gptq":
        raise CheckpointError("other_quantization", folder=folder.name, method=method)
    bits, group_size = found.get("bits"), found.get("group_size", -1)
    if bits not in BITS or isinstance(bits, bool):
        raise CheckpointError("bits", folder=folder.name, bits=str(bits))
    if not isinstance(group_size, int) or isinstance(group_size, bool) or not (group_size == -1 or group_size > 0):
        raise CheckpointError("group_size", folder=folder.name, group_size=str(group_size))
    format_name = str(found.get("checkpoint_format") or found.get("format") or "gptq").lower()
    if format_name not in ("gptq", "gptq_v2"):
        raise CheckpointError("format", folder=folder.name, format=format_name)
    return Quantization(
        bits=bits,
        group_size=group_size,
        act_order=bool(found.get("desc_act", False)),
        symmetric=bool(found.get("sym", True)),
        format=format_name,
    )


def weight_files(folder: Path) -> list[str]:
    """The names of the weight files: those that an index lists, else the one set of weights in the folder."""
    for index_path in sorted(folder.glob("*.safetensors.index.json")):
        index = read_json(index_path) or {}
        weight_map = index.get("weight_map")
        if not isinstance(weight_map, dict) or not all(is_plain_name(name) for name in weight_map.values()):
            raise CheckpointError("bad_json", file=index_path.name, folder=folder.name)
        shards = sorted(set(weight_map.values()))
        missing = [name for name in shards if not (folder / name).is_file()]
        if missing:
            raise CheckpointError("missing_shard", folder=folder.name, file=missing[0], count=len(missing))
        return shards
    files = sorted(path.name for path in folder.glob("*.safetensors"))
    if not files:
        pickled = any(folder.glob("*.bin")) or any(folder.glob("*.pt"))
        raise CheckpointError("only_pickled" if pickled else "no_weights", folder=folder.name)
    if len(files) > 1:
        raise CheckpointError("several_weights", folder=folder.name, first=files[0], second=files[1])
    return files


def is_plain_name(name: object) -> bool:
    """Whether `name` is a file's bare name, which cannot lead out of its folder."""
    return isinstance(name, str) and name not in ("", ".", "..") and Path(name).name == name


def read_header(path: Path) -> dict[str, TensorInfo]:
    """Every tensor of a safetensors file by name. The file is checked against its header, to the byte.

    Layout: 8 bytes little-endian length, then a JSON header of that length, then the tensors' bytes
    (https://github.com/huggingface/safetensors#format).
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
            header_bytes = struct.unpack("<Q", start)[0] if len(start) == 8 else size
            if not 2 <= header_bytes <= min(size - 8, MAX_HEADER_BYTES):
                raise CheckpointError("corrupt_weights", folder=path.parent.name, file=path.name)
            header = json.loads(file.read(header_bytes))
        tensors = parse_header(path.name, header, 8 + header_bytes)
    except OSError as error:
        raise CheckpointError("unreadable", file=str(path), why=error.strerror or str(error)) from error
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise CheckpointError("corrupt_weights", folder=path.parent.name, file=path.name) from error
    end = max((tensor.end for tensor in tensors.values()), default=8 + header_bytes)
    if end > size:
        raise CheckpointError("truncated", folder=path.parent.name, file=path.name, actual=size, expected=end)
    return tensors


def parse_header(file: str, header: dict[str, Any], data_begin: int) -> dict[str, TensorInfo]:
    """The tensors that a safetensors header lists; ValueError, TypeError or KeyError where it contradicts itself."""
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        begin, end = entry["data_offsets"]
        info = TensorInfo(file, entry["dtype"], tuple(entry["shape"]), data_begin + begin, data_begin + end)
        if not 0 <= begin <= end or info.num_bytes != math.prod(info.shape) * DTYPE_BYTES[info.dtype]:
            raise ValueError(f"{name} does not have the bytes of its shape")
        tensors[name] = info
    return tensors
