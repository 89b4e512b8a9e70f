"""Writes random-weight GGUF files of real Llamas' shapes (shapes.json), fast, for llama.cpp beside our own engine.

`python -m benchmarks.random_gguf SHAPE FOLDER`. Formats are those of llama.cpp's own Q4_0 files: the last matrix in
Q6_K, norms in float32, all else in Q4_0. There is no tokenizer.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np

from benchmarks.random_model import BLOCK_BYTES, SHAPES, pieces, placed, with_layers, write_weights

FILE = "model.gguf"
MOSTLY_Q4_0 = 2  # LLAMA_FTYPE_MOSTLY_Q4_0
NORM_EPS = 1e-5


@dataclass(frozen=True, slots=True)
class Format:
    """Blocks of `num_weights`, each `num_bytes` long with a float16 scale at `scale_at`. The 16 bytes from `ones_at`
    on, scales of a block's parts, are ones. `spread`: the standard deviation of random codes."""

    num_weights: int
    num_bytes: int
    scale_at: int
    spread: float
    ones_at: int | None = None


# ggml's block_q4_0 and block_q6_K.
FORMATS = {"Q4_0": Format(32, 18, 0, 4.6), "Q6_K": Format(256, 210, 208, 18.5, 192), "F32": Format(1, 4, 0, 0.0)}
# Of weights: it keeps the values of every layer near one, as in our own random models.
DEVIATION = 0.14


@dataclass(frozen=True, slots=True)
class Tensor:
    """`shape`: rows, then what one row has."""

    name: str
    format: str
    shape: tuple[int, ...]

    @property
    def num_blocks(self) -> int:
        return int(np.prod(self.shape)) // FORMATS[self.format].num_weights

    @property
    def num_bytes(self) -> int:
        return self.num_blocks * FORMATS[self.format].num_bytes


def make_random_gguf(folder: Path, config: dict[str, Any]) -> None:
    """Write FILE for the Llama of `config` into `folder`; config.json comes last, so that a folder that has one is
    whole."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").unlink(missing_ok=True)
    tensors = list(list_tensors(config))
    begin = write_header(folder / FILE, config, tensors)
    write_weights(folder / FILE, placed(begin, tensors), content_of)
    (folder / "config.json").write_text(json.dumps(config))


def list_tensors(config: dict[str, Any]) -> Iterator[Tensor]:
    hidden, intermediate = config["hidden_size"], config["intermediate_size"]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    dim = head_dim(config)
    yield Tensor("token_embd.weight", "Q4_0", (config["vocab_size"], hidden))
    matrices = {"attn_q": (heads * dim, hidden), "attn_k": (kv_heads * dim, hidden), "attn_v": (kv_heads * dim, hidden),
                "attn_output": (hidden, heads * dim), "ffn_gate": (intermediate, hidden),
                "ffn_up": (intermediate, hidden), "ffn_down": (hidden, intermediate)}  # fmt: skip
    for layer in range(config["num_hidden_layers"]):
        for norm in ("attn_norm", "ffn_norm"):
            yield Tensor(f"blk.{layer}.{norm}.weight", "F32", (hidden,))
        for name, shape in matrices.items():
            yield Tensor(f"blk.{layer}.{name}.weight", "Q4_0", shape)
    yield Tensor("output_norm.weight", "F32", (hidden,))
    yield Tensor("output.weight", "Q6_K", (config["vocab_size"], hidden))


def head_dim(config: dict[str, Any]) -> int:
    return int(config.get("head_dim", config["hidden_size"] // config["num_attention_heads"]))


def write_header(path: Path, config: dict[str, Any], tensors: Sequence[Tensor]) -> int:
    """Write all but the tensors' bytes; the place of the first of these. Each tensor ends where the next may begin."""
    from gguf import GGMLQuantizationType, GGUFWriter

    writer = GGUFWriter(path, "llama")
    writer.add_file_type(MOSTLY_Q4_0)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("no_vocab")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_dimension_count(head_dim(config))
    writer.add_layer_norm_rms_eps(NORM_EPS)
    for one in tensors:
        assert one.num_bytes % writer.data_alignment == 0, one
        kind = GGMLQuantizationType[one.format]
        writer.add_tensor_info(one.name, one.shape, np.dtype(np.float32), one.num_bytes, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    begin: int = writer.ggml_pad(writer.fout[0].tell(), writer.data_alignment)
    writer.close()
    with path.open("r+b") as file:
        file.truncate(begin + sum(one.num_bytes for one in tensors))
    return begin


def content_of(tensor: Tensor) -> Iterator[np.ndarray]:
    """Random blocks, each tensor's beginning elsewhere; norms are ones. May be called by several threads."""
    if tensor.format == "F32":
        yield np.ones(tensor.num_blocks, np.float32)
    else:
        yield from pieces(random_blocks(tensor.format, tensor.shape[1]), crc32(tensor.name.encode()), tensor.num_blocks)


@cache
def random_blocks(name: str, in_features: int) -> np.ndarray:
    """Blocks of matrices with that many inputs, an element each."""
    form = FORMATS[name]
    count = BLOCK_BYTES // form.num_bytes
    blocks = np.random.default_rng(0).integers(0, 256, (count, form.num_bytes), np.uint8)
    if form.ones_at is not None:
        blocks[:, form.ones_at : form.ones_at + 16] = 1
    scale = np.array([DEVIATION / in_features**0.5 / form.spread], np.float16)
    blocks[:, form.scale_at : form.scale_at + 2] = scale.view(np.uint8)
    return blocks.reshape(-1).view(f"V{form.num_bytes}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shape", choices=[name for name, one in SHAPES.items() if one["model_type"] == "llama"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, help="fewer layers than the real model has")
    options = parser.parse_args()
    make_random_gguf(options.folder, with_layers(SHAPES[options.shape], options.layers))


if __name__ == "__main__":
    main()
