"""Models before they are quantized, of real shapes and random weights: as files, or as no more than their shapes."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from benchmarks.random_model import SHAPES, make_empty, with_layers
from core.checkpoint.headers import TensorInfo
from core.checkpoint.layers import LAYER
from core.quantize.source import PlainModel
from tests.support.checkpoints import make_tokenizer

# What a tokenizer of a few sentences can have; calibration needs no more.
TOKENS = 4096
BYTES = 2
# One of them fills no disk.
THREADS = 4


def plain_shape(model: str, num_layers: int | None = None) -> PlainModel:
    """The model called `model` in benchmarks/shapes.json in bfloat16, without a file."""
    config = described(model, num_layers)
    tensors = {name: TensorInfo("", "BF16", shape, 0, BYTES * math.prod(shape)) for name, shape in shapes_of(config)}
    return PlainModel(model, None, config, tensors, ())


def described(model: str, num_layers: int | None) -> dict[str, Any]:
    """Its config.json."""
    config = with_layers(SHAPES[model], num_layers)
    tokens = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "torch_dtype": "bfloat16"}
    return config | tokens | {"architectures": [type(make_empty(config)).__name__]}


def shapes_of(config: dict[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    for name, value in make_empty(config).state_dict().items():
        if name != "lm_head.weight" or not config.get("tie_word_embeddings"):
            yield name, tuple(value.shape)


def make_plain(folder: Path, model: str, num_layers: int | None = None) -> None:
    """The same as files, one a layer; config.json comes last, so that a folder that has one is whole."""
    config = described(model, num_layers)
    folder.mkdir(parents=True, exist_ok=True)
    layers: defaultdict[str, dict[str, tuple[int, ...]]] = defaultdict(dict)
    for name, shape in shapes_of(config):
        match = LAYER.match(name)
        layers[match[1] if match else "ends"][name] = shape
    weight_map: dict[str, str] = {}
    # A GPU draws the numbers of a 7B in seconds, a CPU in minutes.
    device = "cuda" if torch.cuda.is_available() else "cpu"

    def write(number: int, shapes: dict[str, tuple[int, ...]]) -> None:
        tensors = {name: random_tensor(shape, device) for name, shape in shapes.items()}
        save_file(tensors, folder / files[number], metadata={"format": "pt"})

    files = [f"model-{number + 1:05}-of-{len(layers):05}.safetensors" for number in range(len(layers))]
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(write, range(len(layers)), layers.values()))
    for file, shapes in zip(files, layers.values(), strict=True):
        weight_map |= dict.fromkeys(shapes, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    make_tokenizer(folder, TOKENS)
    (folder / "config.json").write_text(json.dumps(config, indent=1))


def random_tensor(shape: tuple[int, ...], device: str) -> torch.Tensor:
    """On the CPU. Norms are ones; matrices keep the size of what goes through them."""
    if len(shape) == 1:
        return torch.ones(shape, dtype=torch.bfloat16)
    return (torch.randn(shape, device=device) / math.sqrt(shape[-1])).bfloat16().cpu()
