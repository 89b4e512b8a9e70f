"""Makes tiny checkpoints as other programs pack them, by the layouts alone: AWQ, AutoRound, compressed-tensors
and both versions of GPTQ, with settings of single modules."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from tests.support.checkpoints import WEIGHTS, Recipe, make_tokenizer, matrix_sizes, pack, plain_sizes, write_config

# Which output is in each nibble of an AWQ word, the lowest first.
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
ONES = {2: 0x55555555, 4: 0x11111111, 8: 0x01010101}
Tensors = dict[str, np.ndarray]


def make_packed(
    folder: Path,
    packing: str,
    recipe: Recipe | None = None,
    others: Mapping[str, Recipe | None] | None = None,
    quantization: Mapping[str, Any] | None = None,
    config: Mapping[str, Any] | None = None,
) -> Tensors:
    """Write a checkpoint into `folder`. Returns every matrix written out, [out, in] float32, by module name.

    packing: "gptq" (version 1, each field less one), "gptq_words" (whole words less one in each field), "gptq_v2",
    "auto_round" (version 1 without g_idx), "awq", "compressed", "compressed_bytes" (zero points as bytes). `others`:
    recipes of the modules whose names end so, None for one in 16 bit; "lm_head" may be among them. Asymmetric zero
    points may be 0.
    """
    recipe, others = recipe or Recipe(), others or {}
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(recipe.seed)
    tensors: Tensors = {}
    dense: Tensors = {}
    sizes = matrix_sizes(recipe) | {"lm_head": (recipe.hidden, recipe.vocabulary)}
    for name, (rows, columns) in sizes.items():
        own = next((one for ending, one in others.items() if name.endswith(ending)), recipe)
        if own is None or (name == "lm_head" and "lm_head" not in others):
            continue
        parts, dense[name] = _make_matrix(random, packing, own, rows, columns)
        tensors |= {f"{name}.{part}": value for part, value in parts.items()}
    plain = plain_sizes(recipe) | {f"{name}.weight": size[::-1] for name, size in sizes.items() if name not in dense}
    for name, shape in plain.items():
        if name.removesuffix(".weight") in dense:
            continue
        value = np.ones(shape) if name.endswith("norm.weight") else random.normal(0, 0.1, shape)
        tensors[name] = value.astype(np.float16)
    save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, folder / WEIGHTS)
    write_config(folder, recipe)
    written = json.loads((folder / "config.json").read_text())
    written["quantization_config"] = _describe(packing, recipe) | dict(quantization or {})
    (folder / "config.json").write_text(json.dumps(written | dict(config or {}), indent=2))
    make_tokenizer(folder, recipe.vocabulary)
    return dense


def _make_matrix(
    random: np.random.Generator, packing: str, recipe: Recipe, rows: int, columns: int
) -> tuple[Tensors, np.ndarray]:
    levels, size = 2**recipe.bits, rows if recipe.group_size < 0 else recipe.group_size
    groups = math.ceil(rows / size)
    codes = random.integers(0, levels, (rows, columns), dtype=np.int64)
    scales = (random.uniform(0.5, 1.5, (groups, columns)) / (levels * math.sqrt(rows))).astype(np.float16)
    zeros: np.ndarray = np.full((groups, columns), levels // 2)
    if not recipe.symmetric:
        zeros = random.integers(0, levels, (groups, columns), dtype=np.int64)
    g_idx = np.arange(rows, dtype=np.int32) // size
    if recipe.act_order:
        g_idx = random.permutation(g_idx)
    dense = scales[g_idx].astype(np.float32) * (codes - zeros[g_idx])
    if packing == "awq":
        return {"qweight": pack_awq(codes), "qzeros": pack_awq(zeros), "scales": scales}, dense.T
    if packing.startswith("compressed"):
        parts = _compress(recipe, codes, zeros, scales, g_idx)
        if packing == "compressed_bytes" and not recipe.symmetric:
            parts["weight_zero_point"] = (zeros.T - levels // 2).astype(np.int8)
        return parts, dense.T
    parts = {
        "qweight": pack(codes, recipe.bits),
        "qzeros": pack_zeros(zeros, recipe.bits, packing),
        "scales": scales,
        "g_idx": g_idx,
    }
    if packing == "auto_round":
        del parts["g_idx"]
    return parts, dense.T


def pack_zeros(zeros: np.ndarray, bits: int, packing: str) -> np.ndarray:
    """GPTQ's qzeros, int32 [groups, out * bits / 32]."""
    if packing == "gptq_v2":
        return pack(zeros.T, bits).T
    if packing == "gptq_words" and bits in ONES:
        return (pack(zeros.T, bits).T.view(np.uint32) - np.uint32(ONES[bits])).view(np.int32)
    return pack((zeros.T - 1) % 2**bits, bits).T


def pack_awq(values: np.ndarray) -> np.ndarray:
    """AWQ's words, int32 [rows, columns / 8]."""
    words = np.zeros((values.shape[0], values.shape[1] // 8), np.uint32)
    for nibble, column in enumerate(AWQ_ORDER):
        words |= values[:, column::8].astype(np.uint32) << np.uint32(4 * nibble)
    return words.view(np.int32)


def repack_as_awq(source: Path, target: Path) -> None:
    """Write the 4-bit checkpoint of gptqmodel in `source`, without act-order, into `target` as AWQ: the same numbers.

    gptqmodel takes a one from each field of a whole word of zero points.
    """
    target.mkdir()
    for path in source.iterdir():
        if path.suffix != ".safetensors" and path.name != "quantize_config.json":
            (target / path.name).symlink_to(path)
    tensors = load_file(source / WEIGHTS)
    for name in [name for name in tensors if name.endswith(".qweight")]:
        zeros = (tensors[name.replace("qweight", "qzeros")].view(np.uint32) + np.uint32(ONES[4])).view(np.int32)
        tensors[name] = pack_awq(unpack(tensors[name], 4))
        tensors[name.replace("qweight", "qzeros")] = pack_awq(unpack(zeros.T, 4).T)
        del tensors[name.replace("qweight", "g_idx")]
    save_file(tensors, target / WEIGHTS, metadata={"format": "pt"})
    config = json.loads((source / "config.json").read_text("utf-8"))
    described = {
        "quant_method": "awq",
        "bits": 4,
        "zero_point": True,
        "version": "gemm",
        "modules_to_not_convert": None,
    }
    config["quantization_config"] = described | {"group_size": config["quantization_config"]["group_size"]}
    (target / "config.json").unlink()
    (target / "config.json").write_text(json.dumps(config, indent=2), "utf-8")


def unpack(words: np.ndarray, bits: int) -> np.ndarray:
    """Int32 words [rows, columns] to values [rows * 32 / bits, columns], for 2, 4 and 8 bit."""
    shifts = np.arange(0, 32, bits, dtype=np.uint32)[None, :, None]
    values = (words.view(np.uint32)[:, None, :] >> shifts) & np.uint32(2**bits - 1)
    return values.reshape(-1, words.shape[1]).astype(np.int64)


def _compress(recipe: Recipe, codes: np.ndarray, zeros: np.ndarray, scales: np.ndarray, g_idx: np.ndarray) -> Tensors:
    parts = {
        "weight_packed": pack(codes, recipe.bits).T,
        "weight_scale": scales.T,
        "weight_shape": np.array(codes.T.shape, np.int64),
    }
    if not recipe.symmetric:
        parts["weight_zero_point"] = pack(zeros.T, recipe.bits)
    if recipe.act_order:
        parts["weight_g_idx"] = g_idx
    return parts


def _describe(packing: str, recipe: Recipe) -> dict[str, Any]:
    bits, size, symmetric = recipe.bits, recipe.group_size, recipe.symmetric
    if packing == "awq":
        return {"quant_method": "awq", "bits": bits, "group_size": size, "zero_point": True, "version": "gemm"}
    if packing == "auto_round":
        layout = {"packing_format": "auto_round:auto_gptq", "quant_method": "auto-round", "data_type": "int"}
        return layout | {"bits": bits, "group_size": size, "sym": symmetric}
    if packing.startswith("compressed"):
        strategy = {"strategy": "channel"} if size < 0 else {"strategy": "group", "group_size": size}
        order = "group" if recipe.act_order else None
        weights = {"num_bits": bits, "type": "int", "symmetric": symmetric, "actorder": order, **strategy}
        group = {"targets": ["Linear"], "weights": weights, "input_activations": None, "output_activations": None}
        names = {"quant_method": "compressed-tensors", "format": "pack-quantized", "ignore": ["lm_head"]}
        return names | {"quantization_status": "compressed", "config_groups": {"group_0": group}}
    found = {"quant_method": "gptq", "bits": bits, "group_size": size, "desc_act": recipe.act_order, "sym": symmetric}
    if packing == "gptq_words":
        found["meta"] = {"quantizer": ["gptqmodel:7.6.0"]}
    return found | {"checkpoint_format": "gptq_v2" if packing == "gptq_v2" else "gptq"}
