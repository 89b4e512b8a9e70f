"""Writes random-weight GPTQ checkpoints of real models' shapes (shapes.json), fast: real bytes, no meaning.

The names and shapes of the tensors are those of transformers' own class for the configuration; experts are by
themselves, as releases have them.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar
from zlib import crc32

import numpy as np

from tests.support.checkpoints import WEIGHTS, input_of, make_tokenizer
from tests.support.family_checkpoints import expert_parts, has_experts

SHAPES: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_name("shapes.json").read_text("utf-8"))
# What releases call an expert's matrices.
RELEASED_EXPERTS = {"mixtral": {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}}
# The words of every matrix come from one block, each beginning elsewhere: drawing 35 GB takes minutes.
BLOCK_BYTES = 64 * 2**20
# What is written at a time, by how many threads, and of how many pieces a call of the system takes.
RUN_BYTES, MOST_THREADS, MOST_BUFFERS = 64 * 2**20, 12, 1000
# The tokens of the tokenizer.
NUM_TOKENS = 512
# What a hollow model has whole, and how many rows of each stripe of larger matrices in its layers: some of every head.
WHOLE_BYTES, STRIPE_ROWS, WRITTEN_ROWS = 4 * 2**20, 128, 16


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


class Stored(Protocol):
    """What takes a place in a file."""

    @property
    def name(self) -> str: ...

    @property
    def num_bytes(self) -> int: ...


One = TypeVar("One", bound=Stored)


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of the file, or some rows of it; `in_features` are those of its matrix, 0 for what is not quantized.
    `begin`: how many elements of the tensor come before."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    in_features: int = 0
    begin: int = 0

    @property
    def element_bytes(self) -> int:
        return 4 if self.dtype == "I32" else 2

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.element_bytes

    def rows(self, first: int, count: int) -> Tensor:
        shape = (min(count, self.shape[0] - first), *self.shape[1:])
        return replace(self, shape=shape, begin=first * math.prod(self.shape[1:]))


def make_random_model(folder: Path, config: dict[str, Any], quantization: Quantization, hollow: bool = False) -> None:
    """Write the checkpoint of `config` into `folder`; config.json comes last, so that a folder that has one is whole.

    `hollow`: what is large is holes in the file: the same memory, and little time and room. All layers compute with
    numbers still, see `written_parts`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").unlink(missing_ok=True)
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
    parts: Iterable[tuple[int, Tensor]] = placed(8 + len(text), tensors)
    if hollow:
        parts = [found for place, tensor in parts for found in written_parts(place, tensor)]
    write_weights(folder / WEIGHTS, parts, Content(quantization, hollow).of)
    config = config | {"torch_dtype": "float16", "bos_token_id": 1, "eos_token_id": 2}
    config["architectures"] = [type(model).__name__]
    config |= {"quantization_config": quantization.as_config()}
    make_tokenizer(folder, NUM_TOKENS)
    (folder / "config.json").write_text(json.dumps(config, indent=2))


def placed(begin: int, tensors: Iterable[One]) -> Iterator[tuple[int, One]]:
    """Each tensor with its place, one after the other from the byte `begin` on."""
    for tensor in tensors:
        yield begin, tensor
        begin += tensor.num_bytes


def written_parts(place: int, tensor: Tensor) -> Iterator[tuple[int, Tensor]]:
    """What a hollow model has of `tensor`, which lies at `place`; the rest of it is zeros.

    Codes are holes: with their zero point they are numbers all the same. Routers, norms and scales are whole, so that
    rows choose different experts, and no output of a layer is zero: nothing can be compared with that. Embeddings have
    the rows of the tokenizer's tokens. The part for pictures is not loaded.
    """
    if tensor.name.endswith(".qweight") or "visual." in tensor.name:
        return
    if tensor.in_features or tensor.num_bytes <= WHOLE_BYTES:
        parts = [tensor]
    elif ".layers." in tensor.name:
        parts = [tensor.rows(first, WRITTEN_ROWS) for first in range(0, tensor.shape[0], STRIPE_ROWS)]
    else:
        parts = [tensor.rows(0, NUM_TOKENS)]
    for part in parts:
        yield place + part.begin * part.element_bytes, part


def write_weights(
    path: Path, parts: Iterable[tuple[int, One]], content_of: Callable[[One], Iterator[np.ndarray]]
) -> None:
    """Write `parts`, each at its place, in the order of the file, with some threads: one of them fills no disk."""
    descriptor = os.open(path, os.O_WRONLY)

    def write(place: int, some: list[One]) -> None:
        buffers = [piece for tensor in some for piece in content_of(tensor)]
        for first in range(0, len(buffers), MOST_BUFFERS):
            place += write_buffers(descriptor, buffers[first : first + MOST_BUFFERS], place)

    try:
        with ThreadPoolExecutor(min(MOST_THREADS, os.cpu_count() or 1)) as pool:
            written = []
            for place, some in runs(parts):
                written.append(pool.submit(write, place, some))
            for one in written:
                one.result()
    finally:
        os.close(descriptor)


def runs(parts: Iterable[tuple[int, One]]) -> Iterator[tuple[int, list[One]]]:
    """What is written at a time: neighbours of about RUN_BYTES together, with the place of the first."""
    begin, some, size = 0, list[One](), 0
    for place, one in parts:
        if some and (place > begin + size or size >= RUN_BYTES):
            yield begin, some
            some, size = [], 0
        if not some:
            begin = place
        some.append(one)
        size += one.num_bytes
    if some:
        yield begin, some


def write_buffers(descriptor: int, buffers: Sequence[np.ndarray], place: int) -> int:
    """Write all of `buffers` at `place`; the bytes that they are. A call may take fewer, of what is large."""
    size = sum(one.nbytes for one in buffers)
    written = os.pwritev(descriptor, [one.data for one in buffers], place)
    if written < size:
        rest = np.concatenate([one.reshape(-1).view(np.uint8) for one in buffers])
        while written < size:
            written += os.pwrite(descriptor, rest[written:].data, place + written)
    return size


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


class Content:
    """The bytes of tensors; what many of them have in common is made once. May be asked by several threads."""

    def __init__(self, quantization: Quantization, hollow: bool = False) -> None:
        self._quantization, self._hollow = quantization, hollow
        random = np.random.default_rng(0)
        self._words = random.integers(0, 2**63, BLOCK_BYTES // 8, dtype=np.int64).view(np.int32)
        halves = (random.random(BLOCK_BYTES // 2, np.float32) - 0.5).astype(np.float16)
        self._halves = {1.0: halves}
        self._constants: dict[tuple[float, int], np.ndarray] = {}

    def of(self, tensor: Tensor) -> Iterator[np.ndarray]:
        """Scales keep the values of every layer near one, of matrices in 16 bit too.

        Hollow models have scales of either sign: where all codes of a matrix are the same, sums over its outputs would
        grow from layer to layer, and be beyond half precision.
        """
        count, bits = math.prod(tensor.shape), self._quantization.bits
        begin = crc32(tensor.name.encode()) + tensor.begin
        part = tensor.name.rpartition(".")[2] if tensor.in_features else ""
        if part == "qweight":
            yield from pieces(self._words, begin, count)
        elif part == "qzeros":
            # A zero of half the range, stored less one, in every field of the word.
            yield self._full(sum((2 ** (bits - 1) - 1) << shift for shift in range(0, 32, bits)), count, np.uint32)
        elif part == "scales":
            most = 0.5 / (2**bits * tensor.in_features**0.5)
            if self._hollow:
                yield from pieces(self._halves_of(2 * most), begin, count)
            else:
                yield self._full(most, count, np.float16)
        elif part == "g_idx":
            yield self._order(tensor.name, count)
        elif tensor.name.endswith("norm.weight"):
            yield self._full(1.0, count, np.float16)
        else:
            is_matrix = len(tensor.shape) == 2 and ".layers." in tensor.name
            yield from pieces(self._halves_of(0.5 / tensor.shape[1] ** 0.5 if is_matrix else 1.0), begin, count)

    def _halves_of(self, spread: float) -> np.ndarray:
        """Numbers from -spread / 2 to spread / 2."""
        if spread not in self._halves:
            self._halves[spread] = (self._halves[1.0] * np.float32(spread)).astype(np.float16)
        return self._halves[spread]

    def _full(self, value: float, count: int, dtype: type[np.generic]) -> np.ndarray:
        key = value, count
        if key not in self._constants:
            self._constants[key] = np.full(count, value, dtype)
        return self._constants[key]

    def _order(self, name: str, count: int) -> np.ndarray:
        size = self._quantization.group_size
        if (0.5, count) not in self._constants:
            self._constants[0.5, count] = np.arange(count, dtype=np.int32) // (count if size < 0 else size)
        groups = self._constants[0.5, count]
        if not self._quantization.act_order:
            return groups
        # As quantized: matrices that share an input have its order in common.
        seed = list(input_of(name.removesuffix(".g_idx")).encode())
        return np.random.default_rng(seed).permutation(groups)


def pieces(block: np.ndarray, begin: int, count: int) -> Iterator[np.ndarray]:
    """`count` elements of `block` from about `begin` on, which goes on at its beginning."""
    begin %= block.size
    while count:
        piece = block[begin : begin + count]
        yield piece
        begin, count = 0, count - piece.size


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
    parser.add_argument("--hollow", action="store_true", help="holes for what is large, which take no room on disk")
    parser.add_argument("--layers", type=int, help="fewer layers than the real model has")
    options = parser.parse_args()
    config = with_layers(SHAPES[options.shape], options.layers)
    quantization = Quantization(options.bits, options.group_size, options.act_order, tuple(options.keep))
    make_random_model(options.folder, config, quantization, options.hollow)


if __name__ == "__main__":
    main()
