"""Writes random-weight GPTQ checkpoints of real models' shapes (shapes.json), fast: real bytes, no meaning.

The names and shapes of the tensors are those of transformers' own class for the configuration; experts are by
themselves, as releases have them.
"""

from __future__ import annotations

import argparse
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from tests.support.checkpoints import WEIGHTS, input_of, make_tokenizer
from tests.support.family_checkpoints import expert_parts, has_experts

SHAPES: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_name("shapes.json").read_text("utf-8"))
# What releases call an expert's matrices.
RELEASED_EXPERTS = {"mixtral": {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}}
# The words of every matrix come from one block, each beginning elsewhere: drawing 35 GB takes minutes.
BLOCK_BYTES = 64 * 2**20


@dataclass(frozen=True, slots=True)
class Quantization:
    """How the layers' matrices are quantized."""

    bits: int = 4
    group_size: int = 128
    act_order: bool = False
    # Patterns of the modules that stay in 16 bit.
    kept: tuple[str, ...] = ()

    def as_config(self) -> dict[str, Any]:
        config = {"bits": self.bits, "group_size": self.group_size, "desc_act": self.act_order, "sym": True,
                  "quant_method": "gptq"}  # fmt: skip
        return config | ({"dynamic": {f"-:.*{one}.*": {} for one in self.kept}} if self.kept else {})

    def takes(self, name: str, module: Any) -> bool:
        """Whether the matrix `name` of a layer is quantized: most are, but not those of a few outputs."""
        is_text = ".layers." in name and "visual." not in name
        return is_text and module.out_features % 64 == 0 and not self.keeps(name)

    def keeps(self, name: str) -> bool:
        return any(re.search(one, name) for one in self.kept)


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of the file; `in_features` are those of its matrix, 0 for what is not quantized."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    in_features: int = 0

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * (4 if self.dtype == "I32" else 2)


def make_random_model(folder: Path, config: dict[str, Any], quantization: Quantization, hollow: bool = False) -> None:
    """Write the checkpoint of `config` into `folder`.

    `hollow`: all weights but their zero points are zeros, holes in the file: the same memory, and no time or room.
    """
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    block = random.integers(0, 2**63, BLOCK_BYTES // 8, dtype=np.int64).view(np.uint8)
    model = make_empty(config)
    tensors = list(list_tensors(model, config, quantization))
    header: dict[str, dict[str, Any]] = {}
    offset = 0
    for tensor in tensors:
        offsets = [offset, offset + tensor.num_bytes]
        header[tensor.name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": offsets}
        offset += tensor.num_bytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with (folder / WEIGHTS).open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + offset)
        for tensor in tensors:
            if not hollow or tensor.name.endswith((".qzeros", ".g_idx")):
                file.seek(8 + len(text) + header[tensor.name]["data_offsets"][0])
                write_tensor(file, tensor, quantization, block, random)
    config = config | {"torch_dtype": "float16", "bos_token_id": 1, "eos_token_id": 2}
    config["architectures"] = [type(model).__name__]
    config |= {"quantization_config": quantization.as_config()}
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    make_tokenizer(folder, 512)


def make_empty(config: dict[str, Any]) -> Any:
    """transformers' model of `config`, without memory."""
    import torch
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoModelForImageTextToText

    made = CONFIG_MAPPING[config["model_type"]].from_dict(dict(config))
    makers: Any = AutoModelForImageTextToText if hasattr(made, "vision_config") else AutoModelForCausalLM
    with torch.device("meta"):
        return makers.from_config(made)


def list_tensors(model: Any, config: dict[str, Any], quantization: Quantization) -> Iterator[Tensor]:
    """Every tensor, layer after layer: the linear modules and experts of layers are quantized, all else is not."""
    import torch

    tied = set(model._tied_weights_keys or ()) if config.get("tie_word_embeddings") else set()
    for module_name, module in model.named_modules():
        name = released(module_name, config)
        if has_experts(module):
            for expert, (projection, weight, _) in expert_parts(module):
                owner = f"{name}.{expert}.{RELEASED_EXPERTS.get(config['model_type'], {}).get(projection, projection)}"
                yield from list_matrix(owner, weight.shape[1], weight.shape[0], quantization)
            continue
        is_quantized = isinstance(module, torch.nn.Linear) and quantization.takes(name, module)
        if is_quantized:
            yield from list_matrix(name, module.in_features, module.out_features, quantization)
        for own, parameter in module.named_parameters(recurse=False):
            whole = f"{name}.{own}" if name else own
            if whole not in tied and not (is_quantized and own == "weight"):
                yield Tensor(whole, "F16", tuple(parameter.shape))


def released(name: str, config: dict[str, Any]) -> str:
    """What a release calls the module `name` of transformers' class."""
    return name.replace(".mlp", ".block_sparse_moe") if config["model_type"] == "mixtral" else name


def list_matrix(name: str, rows: int, columns: int, quantization: Quantization) -> Iterator[Tensor]:
    groups = 1 if quantization.group_size < 0 else -(-rows // quantization.group_size)
    yield Tensor(f"{name}.qweight", "I32", (rows * quantization.bits // 32, columns), rows)
    yield Tensor(f"{name}.qzeros", "I32", (groups, columns * quantization.bits // 32), rows)
    yield Tensor(f"{name}.scales", "F16", (groups, columns), rows)
    yield Tensor(f"{name}.g_idx", "I32", (rows,), rows)


def write_tensor(
    file: IO[bytes], tensor: Tensor, quantization: Quantization, block: np.ndarray, random: np.random.Generator
) -> None:
    """The bytes of one tensor; scales keep the values of every layer near one."""
    count, bits = math.prod(tensor.shape), quantization.bits
    part = tensor.name.rpartition(".")[2] if tensor.in_features else ""
    if part == "qweight":
        begin, left = int(random.integers(0, BLOCK_BYTES // 8)) * 4, count * 4
        while left:
            piece = block[begin : begin + left]
            file.write(piece.data)
            begin, left = 0, left - piece.size
    elif part == "qzeros":
        # A zero of half the range, stored less one, in every field of the word.
        zero = sum((2 ** (bits - 1) - 1) << shift for shift in range(0, 32, bits))
        file.write(np.full(count, zero, np.uint32).data)
    elif part == "scales":
        file.write(np.full(count, 0.5 / (2**bits * tensor.in_features**0.5), np.float16).data)
    elif part == "g_idx":
        groups = np.arange(count, dtype=np.int32) // (count if quantization.group_size < 0 else quantization.group_size)
        # As quantized: matrices that share an input have its order in common.
        order = np.random.default_rng(list(input_of(tensor.name.removesuffix(".g_idx")).encode()))
        file.write((order.permutation(groups) if quantization.act_order else groups).data)
    elif tensor.name.endswith("norm.weight"):
        file.write(np.ones(count, np.float16).data)
    else:
        file.write((random.random(count, np.float32) - 0.5).astype(np.float16).data)


def with_layers(config: dict[str, Any], count: int | None) -> dict[str, Any]:
    """`config` with another number of layers, where one is given."""
    if count is None:
        return config
    if "text_config" in config:
        return config | {"text_config": with_layers(config["text_config"], count)}
    return config | {"num_hidden_layers": count}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--group-size", type=int, default=128)
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--act-order", action="store_true")
    parser.add_argument("--keep", nargs="*", default=[], metavar="PATTERN", help="modules that stay in 16 bit")
    parser.add_argument("--hollow", action="store_true", help="zeros for weights, which take no room on disk")
    parser.add_argument("--layers", type=int, help="fewer layers than the real model has")
    options = parser.parse_args()
    config = with_layers(SHAPES[options.shape], options.layers)
    quantization = Quantization(options.bits, options.group_size, options.act_order, tuple(options.keep))
    make_random_model(options.folder, config, quantization, options.hollow)


if __name__ == "__main__":
    main()
