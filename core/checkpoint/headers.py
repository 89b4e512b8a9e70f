"""The files in a model's folder, read without trust: small JSON files and the headers of safetensors files.

Whatever is wrong is a CheckpointError with a sentence.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

from core.common.errors import CheckpointError
from core.common.files import regular_size
from core.common.plain_json import load_json
from core.common.values import is_whole, printable

# A header lists every tensor of a file, an index those of all files: of Qwen3-Coder-Next, whose 48 layers have 512
# experts each, 295,000 in 27 MB. A header has eight or nine values for each.
MAX_HEADER_BYTES, MAX_HEADER_VALUES = 50_000_000, 4_000_000
MAX_CONFIG_BYTES = 10_000_000
# An index has a line for each tensor of all files: 190,000 of MiniMax-M2's experts, in 18 MB.
INDEX_SUFFIX = ".safetensors.index.json"
DTYPE_BYTES = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2,
               "U16": 2, "I8": 1, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1}  # fmt: skip
# More than any model's tensors have; a product over more could take for ever.
MAX_DIMENSIONS = 8


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor: safetensors' name of its type, its shape, and where its bytes lie in the file.

    `stored_name`: what the file calls it, where the model's class calls it otherwise.
    """

    file: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int
    stored_name: str | None = None

    @property
    def num_bytes(self) -> int:
        return self.end - self.begin


def max_json_bytes(name: str) -> int:
    """The most that a JSON file called `name` may have."""
    return MAX_HEADER_BYTES if name.endswith(INDEX_SUFFIX) else MAX_CONFIG_BYTES


def read_text(path: Path) -> str | None:
    """The text in a small file, or None where there is no such file."""
    folder, name = path.parent.name, printable(path.name)
    try:
        if regular_size(path) > max_json_bytes(path.name):
            raise CheckpointError("config_too_large", file=name, folder=folder)
        return path.read_text("utf-8")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise unreadable(path, error) from error
    except UnicodeDecodeError as error:
        raise CheckpointError("bad_json", file=name, folder=folder) from error


def read_json(path: Path) -> dict[str, Any] | None:
    """The JSON object in a small file, or None where there is no such file."""
    text = read_text(path)
    if text is None:
        return None
    try:
        value = load_json(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError("bad_json", file=printable(path.name), folder=path.parent.name) from error
    if not isinstance(value, dict):
        raise CheckpointError("bad_json", file=printable(path.name), folder=path.parent.name)
    return value


def read_header(path: Path) -> dict[str, TensorInfo]:
    """Every tensor of a safetensors file by name. The file is checked against its header, to the byte.

    Layout: 8 bytes little-endian length, a JSON header of that length, then the tensors' bytes without a gap
    (https://github.com/huggingface/safetensors#format).
    """
    folder, name = path.parent.name, printable(path.name)
    try:
        size = regular_size(path)
        with path.open("rb") as file:
            start = file.read(8)
            header_bytes = struct.unpack("<Q", start)[0] if len(start) == 8 else size
            if not 2 <= header_bytes <= min(size - 8, MAX_HEADER_BYTES):
                raise CheckpointError("corrupt_weights", folder=folder, file=name)
            header = load_header(file.read(header_bytes))
        tensors, end = parse_header(path.name, header, 8 + header_bytes)
    except OSError as error:
        raise unreadable(path, error) from error
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise CheckpointError("corrupt_weights", folder=folder, file=name) from error
    if end > size:
        raise CheckpointError("truncated", folder=folder, file=name, actual=size, expected=end)
    if end < size:
        raise CheckpointError("corrupt_weights", folder=folder, file=name)
    return tensors


def load_header(data: bytes) -> dict[str, Any]:
    """A safetensors header as it is; raises as parse_header does."""
    header: dict[str, Any] = load_json(data.decode("utf-8"), MAX_HEADER_VALUES)
    return header


def parse_header(file: str, header: dict[str, Any], data_begin: int) -> tuple[dict[str, TensorInfo], int]:
    """The tensors that a safetensors header lists, and where their bytes end, counted from the file's start.

    ValueError, TypeError, KeyError or AttributeError for what safetensors itself would refuse.
    """
    metadata = header.get("__metadata__") or {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("the metadata are not texts by name")
    tensors = {name: parse_entry(file, entry, data_begin) for name, entry in header.items() if name != "__metadata__"}
    end = data_begin
    for tensor in sorted(tensors.values(), key=attrgetter("begin", "end")):
        if tensor.begin != end:
            raise ValueError(f"tensors overlap or leave a gap at {end}")
        end = tensor.end
    return tensors, end


def parse_entry(file: str, entry: dict[str, Any], data_begin: int) -> TensorInfo:
    """One tensor of a header; raises as parse_header does."""
    shape, (begin, end) = entry["shape"], entry["data_offsets"]
    if len(shape) > MAX_DIMENSIONS or not all(map(_is_size, (*shape, begin, end))):
        raise ValueError("sizes and offsets are whole numbers, and not negative")
    info = TensorInfo(file, entry["dtype"], tuple(shape), data_begin + begin, data_begin + end)
    if info.num_bytes != math.prod(shape) * DTYPE_BYTES[info.dtype]:
        raise ValueError("a tensor does not have the bytes of its shape")
    return info


def _is_size(number: object) -> bool:
    return is_whole(number) and number >= 0


def unreadable(path: Path, error: OSError) -> CheckpointError:
    return CheckpointError("unreadable", file=printable(str(path)), why=error.strerror or str(error))
