"""TheBloke's Llama-2 repositories and their branches as checkpoints, without the network.

The branches and their sizes come from core/library/catalogue.csv, a checkpoint's tensors from Llama-2's shapes.
auto-gptq stored a matrix of [in, out] features at b bits, with G scale groups, as:
qweight int32 [in * b / 32, out], qzeros int32 [G, out * b / 32], scales float16 [G, out], g_idx int32 [in],
bias float16 [out] of zeros.
"""

from __future__ import annotations

import csv
import difflib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from core.checkpoint.checkpoint import Checkpoint, make_checkpoint
from core.checkpoint.headers import DTYPE_BYTES, TensorInfo
from core.checkpoint.quantization import MatrixFormat
from core.common.errors import InputError
from core.common.values import quoted_text
from core.hub.address import Address, parse_address

TABLE = Path(__file__).with_name("catalogue.csv")
WEIGHTS_FILE = "model.safetensors"
NUM_SUGGESTIONS = 3
# Spelled as the Hub does: "Chat" and "chat" both occur there.
REPOSITORIES = {
    "7B": ("TheBloke/Llama-2-7B-Chat-GPTQ", "TheBloke/Llama-2-7B-GPTQ"),
    "13B": ("TheBloke/Llama-2-13B-chat-GPTQ", "TheBloke/Llama-2-13B-GPTQ"),
    "70B": ("TheBloke/Llama-2-70B-Chat-GPTQ", "TheBloke/Llama-2-70B-GPTQ"),
}
VOCABULARY = 32000
CONTEXT_TOKENS = 4096
HEAD_DIM = 128
# safetensors lays tensors of the largest type first, then by name.
DTYPE_ORDER = {"F32": 0, "I32": 1, "F16": 2}

Tensors = Iterator[tuple[str, str, tuple[int, ...]]]


@dataclass(frozen=True, slots=True)
class Architecture:
    """The numbers of one size of Llama-2."""

    hidden: int
    intermediate: int
    num_layers: int
    num_heads: int
    num_kv_heads: int


# meta-llama's config.json of Llama-2-7b-hf, -13b-hf and -70b-hf.
ARCHITECTURES = {
    "7B": Architecture(4096, 11008, 32, 32, 32),
    "13B": Architecture(5120, 13824, 40, 40, 40),
    "70B": Architecture(8192, 28672, 80, 64, 8),
}


@dataclass(frozen=True, slots=True)
class CatalogueEntry:
    """One branch. `published` is its size as people can read it on the Hub; `published_from` as in catalogue.csv."""

    repo: str
    branch: str
    size: str
    quantization: MatrixFormat
    file_bytes: int
    published: str
    published_from: str

    @property
    def name(self) -> str:
        """As find() takes it: "repo" for the main branch, "repo:branch" for the others."""
        return str(Address(self.repo, self.branch))


@cache
def entries() -> tuple[CatalogueEntry, ...]:
    """Every branch of every repository: by size, chat before base, each in the table's order."""
    lines = TABLE.read_text("utf-8").splitlines()
    rows = list(csv.DictReader(line for line in lines if not line.startswith("#")))
    return tuple(
        _entry(repo, row)
        for size, repos in REPOSITORIES.items()
        for repo in repos
        for row in rows
        if row["size"] == size
    )


def find(text: str, revision: str | None = None) -> CatalogueEntry:
    """The entry that `text` names: "owner/name", the bare name, "repo:branch" or a pasted address, in any case.

    Raises InputError "unknown_catalogue" or "unknown_branch" with near names, "two_revisions" for a contradiction.
    """
    address = parse_address(text, revision)
    wanted = address.repo.casefold()
    found = [entry for entry in entries() if wanted in (entry.repo.casefold(), _short(entry.repo))]
    if not found:
        names = {_short(entry.repo): entry.repo for entry in entries()}
        raise InputError("unknown_catalogue", name=quoted_text(address.repo), near=_near(_short(wanted), names))
    branches = {entry.branch.casefold(): entry for entry in found}
    entry = branches.get(address.revision.casefold())
    if entry is None:
        near = _near(address.revision.casefold(), {key: entry.branch for key, entry in branches.items()})
        raise InputError("unknown_branch", repo=found[0].repo, branch=quoted_text(address.revision), near=near)
    return entry


@cache
def checkpoint(entry: CatalogueEntry) -> Checkpoint:
    """`entry` as the checkpoint that a download would be; header and tensors add up to its file's size."""
    return make_checkpoint(entry.name, config(entry), entry.quantization, _tensors(entry))


def config(entry: CatalogueEntry) -> dict[str, Any]:
    """What the repository's config.json says about the model's size."""
    model = ARCHITECTURES[entry.size]
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": model.hidden,
        "intermediate_size": model.intermediate,
        "max_position_embeddings": CONTEXT_TOKENS,
        "num_attention_heads": model.num_heads,
        "num_hidden_layers": model.num_layers,
        "num_key_value_heads": model.num_kv_heads,
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
        "vocab_size": VOCABULARY,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


def listed_format(row: Mapping[str, str]) -> MatrixFormat:
    """The quantization in a row of a table of models: GPTQ, with symmetric groups."""
    return MatrixFormat(
        bits=int(row["bits"]),
        group_size=int(row["group_size"]),
        is_permuted=row["act_order"] == "yes",
        is_symmetric=True,
        packing="gptq",
    )


def _entry(repo: str, row: dict[str, str]) -> CatalogueEntry:
    return CatalogueEntry(
        repo=repo,
        branch=row["branch"],
        size=row["size"],
        quantization=listed_format(row),
        file_bytes=int(row["file_bytes"]),
        published=f"{row['published_gb']} GB",
        published_from=row["published_from"],
    )


def _short(repo: str) -> str:
    return repo.casefold().rpartition("/")[2]


def _near(wanted: str, names: dict[str, str]) -> str:
    """The names that are spelled most like `wanted`; `names` has them by their spelling in lower case."""
    near = difflib.get_close_matches(wanted[:100], names, NUM_SUGGESTIONS, cutoff=0.3)
    return ", ".join(names[key] for key in near or list(names)[:NUM_SUGGESTIONS])


def _tensors(entry: CatalogueEntry) -> dict[str, TensorInfo]:
    listed = sorted(_list_tensors(entry), key=lambda tensor: (DTYPE_ORDER[tensor[1]], tensor[0]))
    sizes = [math.prod(shape) * DTYPE_BYTES[dtype] for _, dtype, shape in listed]
    begin = entry.file_bytes - sum(sizes)
    tensors: dict[str, TensorInfo] = {}
    for (name, dtype, shape), num_bytes in zip(listed, sizes, strict=True):
        tensors[name] = TensorInfo(WEIGHTS_FILE, dtype, shape, begin, begin + num_bytes)
        begin += num_bytes
    return tensors


def _list_tensors(entry: CatalogueEntry) -> Tensors:
    """Name, type and shape of every tensor in the file."""
    model = ARCHITECTURES[entry.size]
    yield "model.embed_tokens.weight", "F16", (VOCABULARY, model.hidden)
    yield "model.norm.weight", "F16", (model.hidden,)
    yield "lm_head.weight", "F16", (VOCABULARY, model.hidden)
    for number in range(model.num_layers):
        layer = f"model.layers.{number}"
        yield f"{layer}.input_layernorm.weight", "F16", (model.hidden,)
        yield f"{layer}.post_attention_layernorm.weight", "F16", (model.hidden,)
        yield f"{layer}.self_attn.rotary_emb.inv_freq", "F32", (HEAD_DIM // 2,)
        for matrix, (rows, columns) in _matrices(model).items():
            yield from _parts(f"{layer}.{matrix}", rows, columns, entry.quantization)


def _matrices(model: Architecture) -> dict[str, tuple[int, int]]:
    """(in, out) features of the quantized matrices of one layer."""
    kv = model.num_kv_heads * HEAD_DIM
    return {
        "self_attn.q_proj": (model.hidden, model.hidden),
        "self_attn.k_proj": (model.hidden, kv),
        "self_attn.v_proj": (model.hidden, kv),
        "self_attn.o_proj": (model.hidden, model.hidden),
        "mlp.gate_proj": (model.hidden, model.intermediate),
        "mlp.up_proj": (model.hidden, model.intermediate),
        "mlp.down_proj": (model.intermediate, model.hidden),
    }


def _parts(name: str, rows: int, columns: int, quantization: MatrixFormat) -> Tensors:
    bits, group_size = quantization.bits, quantization.group_size
    groups = 1 if group_size < 0 else math.ceil(rows / group_size)
    yield f"{name}.qweight", "I32", (rows * bits // 32, columns)
    yield f"{name}.qzeros", "I32", (groups, columns * bits // 32)
    yield f"{name}.scales", "F16", (groups, columns)
    yield f"{name}.g_idx", "I32", (rows,)
    yield f"{name}.bias", "F16", (columns,)
