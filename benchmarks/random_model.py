"""Writes random-weight GPTQ checkpoints of Llama-2's real shapes, fast: real bytes, no meaning."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tests.support.checkpoints import Recipe, input_of, make_tokenizer, matrix_sizes, plain_sizes, write_config

LLAMA2 = {
    "7B": Recipe(hidden=4096, intermediate=11008, num_layers=32, num_heads=32, num_kv_heads=32),
    "13B": Recipe(hidden=5120, intermediate=13824, num_layers=40, num_heads=40, num_kv_heads=40),
    "70B": Recipe(hidden=8192, intermediate=28672, num_layers=80, num_heads=64, num_kv_heads=8),
}
VOCABULARY = 32000
CONTEXT_TOKENS = 4096
# The words of every matrix come from one block, each beginning elsewhere: drawing 35 GB takes minutes.
BLOCK_BYTES = 64 * 2**20


def make_random_model(folder: Path, recipe: Recipe, hollow: bool = False) -> None:
    """Like the tests' maker, but with random words for codes, written as they are made.

    `hollow`: all weights but their zero points are zeros, holes in the file: the same memory, and no time or room.
    """
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(recipe.seed)
    block = random.integers(0, 2**63, BLOCK_BYTES // 8, dtype=np.int64).view(np.uint8)
    specs = list(tensor_specs(recipe))
    header: dict[str, dict[str, Any]] = {}
    offset = 0
    for name, dtype, shape in specs:
        num_bytes = math.prod(shape) * (4 if dtype == "I32" else 2)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + num_bytes]}
        offset += num_bytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        if hollow:
            file.truncate(8 + len(text) + offset)
            for name, _, shape in specs:
                if name.endswith(".qzeros"):
                    file.seek(8 + len(text) + header[name]["data_offsets"][0])
                    write_tensor(file, name, shape, recipe, block, random)
            specs = []
        for name, _, shape in specs:
            write_tensor(file, name, shape, recipe, block, random)
    write_config(folder, recipe)
    make_tokenizer(folder, 512)


def tensor_specs(recipe: Recipe) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """Name, type and shape of every tensor, layer after layer as checkpoints are written."""
    for name, (rows, columns) in matrix_sizes(recipe).items():
        groups = 1 if recipe.group_size < 0 else -(-rows // recipe.group_size)
        yield f"{name}.qweight", "I32", (rows * recipe.bits // 32, columns)
        yield f"{name}.qzeros", "I32", (groups, columns * recipe.bits // 32)
        yield f"{name}.scales", "F16", (groups, columns)
        yield f"{name}.g_idx", "I32", (rows,)
    for name, shape in plain_sizes(recipe).items():
        yield name, "F16", shape


def write_tensor(file, name, shape, recipe, block, random) -> None:  # type: ignore[no-untyped-def]
    """The bytes of one tensor; scales keep the values of every layer near one."""
    count = math.prod(shape)
    if name.endswith(".qweight"):
        begin, left = int(random.integers(0, BLOCK_BYTES // 8)) * 4, count * 4
        while left:
            piece = block[begin : begin + left]
            file.write(piece.data)
            begin, left = 0, left - piece.size
    elif name.endswith(".qzeros"):
        # A zero of half the range, stored less one, in every field of the word.
        zero = sum((2 ** (recipe.bits - 1) - 1) << shift for shift in range(0, 32, recipe.bits))
        file.write(np.full(count, zero, np.uint32).data)
    elif name.endswith(".scales"):
        rows = recipe.intermediate if "down_proj" in name else recipe.hidden
        file.write(np.full(count, 0.5 / (2**recipe.bits * rows**0.5), np.float16).data)
    elif name.endswith(".g_idx"):
        size = count if recipe.group_size < 0 else recipe.group_size
        groups = np.arange(count, dtype=np.int32) // size
        # As quantized: matrices that share an input have its order in common.
        order = np.random.default_rng(list(input_of(name.removesuffix(".g_idx")).encode()))
        file.write((order.permutation(groups) if recipe.act_order else groups).data)
    elif name.endswith("norm.weight"):
        file.write(np.ones(count, np.float16).data)
    else:
        file.write((random.random(count, np.float32) - 0.5).astype(np.float16).data)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("size", choices=LLAMA2)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--group-size", type=int, default=128)
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--act-order", action="store_true")
    parser.add_argument("--hollow", action="store_true", help="zeros for weights, which take no room on disk")
    parser.add_argument("--layers", type=int, help="fewer layers than the real model has")
    options = parser.parse_args()
    recipe = replace(
        LLAMA2[options.size],
        bits=options.bits,
        group_size=options.group_size,
        act_order=options.act_order,
        num_layers=options.layers or LLAMA2[options.size].num_layers,
        context_tokens=CONTEXT_TOKENS,
        vocabulary=VOCABULARY,
    )
    make_random_model(options.folder, recipe, options.hollow)


if __name__ == "__main__":
    main()
