"""The finished checkpoint from what gptqmodel wrote: in the source's own types, names and configuration."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from core.checkpoint.headers import read_header
from core.checkpoint.weight_files import MAIN_INDEX, SUFFIX
from core.common.errors import CheckpointError
from core.quantize.child.weights import FUSED, PARTS
from core.starter.quantize import write_json

# gptqmodel writes these anew, transformers' newest way; readers of every version know the originals.
NOT_COPIED = ("config.json", "quantize_config.json", "README.md")
SMALL = (".json", ".jinja", ".model", ".txt")
LEGAL = ("LICEN", "NOTICE", "USE_POLICY")


def write_checkpoint(
    source: Path, packed: Path, config: dict[str, Any], settings: dict[str, Any], dtype: torch.dtype, out: Path
) -> None:
    """Write gptqmodel's weights in `packed` into `out`, with the source's configuration, tokenizer and licence.

    Scales become float16, all else that is float32 becomes `dtype`. The weights in `packed` go, file by file.
    """
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    originals = {name for path in source.glob(f"*{SUFFIX}") for name in read_header(path)}
    headers = {path: read_header(path) for path in sorted(packed.glob(f"*{SUFFIX}"))}
    places = {name: path for path, header in headers.items() for name in header}
    fused = fused_parts(originals, places)
    taken = {part for parts in fused.values() for part in parts[1:]}
    first = {parts[0]: name for name, parts in fused.items()}
    weight_map: dict[str, str] = {}
    for path, header in headers.items():
        tensors: dict[str, torch.Tensor] = {}
        for name in header:
            if name in first:
                tensors[first[name]] = _joined(first[name], [_read(places[part], part) for part in fused[first[name]]])
            elif name not in taken:
                tensors[name] = _read(path, name)
        tensors = {name: in_type(name, value, dtype) for name, value in tensors.items()}
        if tensors:
            save_file(tensors, out / path.name, metadata={"format": "pt"})
            # safetensors lets only the owner read it.
            (out / path.name).chmod(0o644)
            weight_map |= dict.fromkeys(tensors, path.name)
    shutil.rmtree(packed)
    if len(headers) > 1:
        write_json(out / MAIN_INDEX, {"metadata": {}, "weight_map": weight_map})
    for path in sorted(source.iterdir()):
        is_wanted = path.suffix in SMALL or path.name.upper().startswith(LEGAL)
        is_other = path.name.startswith(".") or path.name in NOT_COPIED or path.name.endswith(".index.json")
        if path.is_file() and is_wanted and not is_other:
            shutil.copyfile(path, out / path.name)
    write_json(out / "config.json", config | {"quantization_config": settings})
    write_json(out / "quantize_config.json", settings)


def fused_parts(originals: set[str], places: dict[str, Path]) -> dict[str, tuple[str, ...]]:
    """What gptqmodel took apart and the family's class has as one, by the whole's name: "….gate_up_proj.qweight"."""
    found = {}
    for name in originals:
        owner, _, own = name.removesuffix(".weight").rpartition(".")
        parts = FUSED.get(own, ())
        if parts and f"{owner}.{parts[0]}.qweight" in places:
            for ending in (*PARTS, ".bias"):
                names = tuple(f"{owner}.{part}{ending}" for part in parts)
                if names[0] in places:
                    found[f"{owner}.{own}{ending}"] = names
    return found


def _joined(name: str, parts: list[torch.Tensor]) -> torch.Tensor:
    """Side by side along the outputs, which is exact; the order of the inputs must be one."""
    if not name.endswith(".g_idx"):
        return torch.cat(parts, dim=-1)
    if not all(torch.equal(part, parts[0]) for part in parts):
        raise CheckpointError("quantize_orders", name=name.removesuffix(".g_idx"))
    return parts[0]


def _read(path: Path, name: str) -> torch.Tensor:
    with safe_open(path, "pt") as opened:
        value: torch.Tensor = opened.get_tensor(name)
        return value


def in_type(name: str, value: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    if value.dtype != torch.float32:
        return value
    return value.to(torch.float16 if name.endswith(".scales") else dtype).contiguous()
