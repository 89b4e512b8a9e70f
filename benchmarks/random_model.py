"""Writes random-weight GPTQ checkpoints of Llama-2's real shapes, quickly: real bytes, no meaning; knows no engine."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np

from tests.checkpoints import Recipe, make_tokenizer, matrix_sizes, plain_sizes, write_files

LLAMA2 = {
    "7B": Recipe(hidden=4096, intermediate=11008, num_layers=32, num_heads=32, num_kv_heads=32),
    "13B": Recipe(hidden=5120, intermediate=13824, num_layers=40, num_heads=40, num_kv_heads=40),
    "70B": Recipe(hidden=8192, intermediate=28672, num_layers=80, num_heads=64, num_kv_heads=8),
}


def make_random_model(folder: Path, recipe: Recipe) -> None:
    """Like the tests' maker, but the packed words themselves are random, so that 70B takes a minute, not a day."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(recipe.seed)
    tensors: dict[str, np.ndarray] = {}
    for name, (rows, columns) in matrix_sizes(recipe).items():
        group_size = rows if recipe.group_size < 0 else recipe.group_size
        groups = -(-rows // group_size)
        words = random.integers(0, 256, rows * recipe.bits // 8 * columns, dtype=np.uint8)
        g_idx = np.arange(rows, dtype=np.int32) // group_size
        scale = 1.0 / (2**recipe.bits * rows**0.5)
        # A zero of half the range, stored less one, in every field of the word.
        zero = sum((2 ** (recipe.bits - 1) - 1) << shift for shift in range(0, 32, recipe.bits))
        tensors |= {
            f"{name}.qweight": words.view(np.int32).reshape(-1, columns),
            f"{name}.qzeros": np.full((groups, columns * recipe.bits // 32), zero, np.uint32).view(np.int32),
            f"{name}.scales": np.full((groups, columns), scale, np.float16),
            f"{name}.g_idx": random.permutation(g_idx) if recipe.act_order else g_idx,
        }
    for name, shape in plain_sizes(recipe).items():
        is_norm = name.endswith("norm.weight")
        tensors[name] = (np.ones(shape) if is_norm else random.random(shape, np.float32) - 0.5).astype(np.float16)
    write_files(folder, recipe, tensors)
    make_tokenizer(folder, 512)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("size", choices=LLAMA2)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--group-size", type=int, default=128)
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--act-order", action="store_true")
    arguments = parser.parse_args()
    recipe = replace(
        LLAMA2[arguments.size],
        bits=arguments.bits,
        group_size=arguments.group_size,
        act_order=arguments.act_order,
        context_tokens=4096,
        vocabulary=32000,
    )
    make_random_model(arguments.folder, recipe)


if __name__ == "__main__":
    main()
