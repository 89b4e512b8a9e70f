"""A Llama in Meta's original format as a checkpoint of transformers: renamed, its shards joined, its heads reordered.

transformers' own conversion comes with its sources and not with its package; this follows the same layout
(https://github.com/meta-llama/llama-models, models/llama3/model.py). Files of pickles are read by
torch.load(weights_only=True), which makes tensors alone of them.
"""

from __future__ import annotations

import base64
import errno
import math
import os
import pickle
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from core.checkpoint.headers import unreadable
from core.common.errors import CheckpointError
from core.quantize.source import META_WEIGHTS, require_meta
from core.starter.quantize import write_json

# Meta's name of a matrix, ours, and along which side its shards lie; None: every shard has the whole.
NAMES: dict[str, tuple[str, int | None]] = {
    "attention.wq": ("self_attn.q_proj", 0),
    "attention.wk": ("self_attn.k_proj", 0),
    "attention.wv": ("self_attn.v_proj", 0),
    "attention.wo": ("self_attn.o_proj", 1),
    "feed_forward.w1": ("mlp.gate_proj", 0),
    "feed_forward.w2": ("mlp.down_proj", 1),
    "feed_forward.w3": ("mlp.up_proj", 0),
    "attention_norm": ("input_layernorm", None),
    "ffn_norm": ("post_attention_layernorm", None),
}
LAYER = re.compile(r"layers\.([0-9]{1,4})\.(.+)\.weight")
# Llama 3's words, and the specials of 3 and 3.1 that have names; all others are reserved ones.
LLAMA3_VOCABULARY, NUM_SPECIALS = 128256, 256
LLAMA3_SPECIALS = tuple(
    f"<|{name}|>"
    for name in """
    begin_of_text end_of_text reserved_special_token_0 reserved_special_token_1 finetune_right_pad_id step_id
    start_header_id end_header_id eom_id eot_id python_tag
    """.split()
)
Tensors = dict[str, torch.Tensor]
Shape = tuple[int, ...]


def convert(source: Path, folder: Path, report: Callable[..., None]) -> Path:
    """Write the model in `source` as a checkpoint into `folder`, whole or not at all. Raises CheckpointError."""
    if folder.is_dir():
        return folder
    params = require_meta(source)
    shards = [load(path) for path in sorted(source.iterdir()) if META_WEIGHTS.fullmatch(path.name)]
    own_shapes = [{name: value.shape for name, value in shard.items()} for shard in shards]
    if any(one != own_shapes[0] for one in own_shapes):
        raise CheckpointError("meta_shards", folder=source.name)
    check_shapes(source.name, shards, params)
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    num_layers, vocabulary, intermediate = params["n_layers"], 0, 0
    weight_map: dict[str, str] = {}
    for number, (file, tensors) in enumerate(parts(shards, params)):
        save_file(tensors, partial / file, metadata={"format": "pt"})
        (partial / file).chmod(0o644)
        weight_map |= dict.fromkeys(tensors, file)
        for name, value in tensors.items():
            vocabulary = value.shape[0] if name == "model.embed_tokens.weight" else vocabulary
            intermediate = value.shape[0] if name.endswith("mlp.gate_proj.weight") else intermediate
        report((number + 1) / (num_layers + 1))
    index = {"metadata": {}, "weight_map": weight_map}
    write_json(partial / "model.safetensors.index.json", index)
    is_tied = "lm_head.weight" not in weight_map
    write_json(partial / "config.json", make_config(params, vocabulary, intermediate, is_tied))
    write_tokenizer(source, partial)
    for path in source.iterdir():
        if path.is_file() and path.name.upper().startswith(("LICEN", "NOTICE", "USE_POLICY")):
            shutil.copyfile(path, partial / path.name)
    os.rename(partial, folder)
    return folder


def load(path: Path) -> Tensors:
    """The tensors of one file, mapped and not read. Raises CheckpointError for what is more or less than tensors."""
    try:
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        if isinstance(found, dict) and all(isinstance(value, torch.Tensor) for value in found.values()):
            return {name: value for name, value in found.items() if name != "rope.freqs"}
    # torch's own sentences advise to read the file in a way that runs what is in it.
    except pickle.UnpicklingError as error:
        raise CheckpointError("meta_pickle", file=path.name) from error
    except Exception as error:  # What a pickle of a stranger raises has no end of kinds.
        # A file that ends too early cannot be mapped.
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise unreadable(path, error) from error
        raise CheckpointError("meta_weights", file=path.name) from error
    raise CheckpointError("meta_pickle", file=path.name)


def check_shapes(model: str, shards: list[Tensors], params: dict[str, Any]) -> None:
    """Raises CheckpointError where the files together are not the Llama that params.json tells of.

    Names do not tell that the last files are missing; shapes do.
    """
    if params["dim"] % (2 * params["n_heads"]):
        raise CheckpointError("meta_params", folder=model, setting="n_heads", value=params["n_heads"])
    wanted, count = shapes(shards, params), len(shards)
    for name, value in shards[0].items():
        if (match := LAYER.fullmatch(name)) and int(match[1]) >= params["n_layers"]:
            raise CheckpointError("meta_layers", folder=model, layer=int(match[1]) + 1, count=params["n_layers"])
        if match and name not in wanted:
            raise CheckpointError("meta_tensor", folder=model, name=name)
        # Without a weight's name it is a table of angles, as the first Llamas have in each layer.
        if (whole := wanted.get(name)) is None:
            continue
        axis = split_axis(name, value.shape, params["dim"])
        found = times(value.shape, axis, count)
        if found == whole:
            continue
        total = count * math.prod(whole) // max(1, math.prod(found))
        if total > count and times(value.shape, axis, total) == whole:
            raise CheckpointError("meta_missing", folder=model, name=name, found=str(list(found)),
                                  wanted=str(list(whole)), count=count, total=total,
                                  last=f"consolidated.{total - 1:02}.pth")  # fmt: skip
        raise CheckpointError("meta_shapes", folder=model, name=name, found=str(list(found)), wanted=str(list(whole)))
    # A head that is the embedding may be left out.
    if lacking := [name for name in wanted if name not in shards[0] and name != "output.weight"]:
        raise CheckpointError("meta_layer", folder=model, name=lacking[0])


def shapes(shards: list[Tensors], params: dict[str, Any]) -> dict[str, Shape]:
    """The shape of every tensor of the whole model. What params.json does not tell is taken from the files."""
    hidden, heads = params["dim"], params["n_heads"]
    kv_features = hidden // heads * (params.get("n_kv_heads") or heads)

    def first_side(name: str) -> Shape:
        shape = shards[0][name].shape if name in shards[0] else ()
        return times(shape, split_axis(name, shape, hidden), len(shards))[:1]

    intermediate = first_side("layers.0.feed_forward.w1.weight")
    vocabulary = (params["vocab_size"],) if params["vocab_size"] > 0 else first_side("tok_embeddings.weight")
    of_layer: dict[str, Shape] = {
        "attention.wq": (hidden, hidden),
        "attention.wk": (kv_features, hidden),
        "attention.wv": (kv_features, hidden),
        "attention.wo": (hidden, hidden),
        "feed_forward.w1": (*intermediate, hidden),
        "feed_forward.w2": (hidden, *intermediate),
        "feed_forward.w3": (*intermediate, hidden),
        "attention_norm": (hidden,),
        "ffn_norm": (hidden,),
    }
    ends = {"tok_embeddings": (*vocabulary, hidden), "norm": (hidden,), "output": (*vocabulary, hidden)}
    layers = {
        f"layers.{layer}.{name}": shape for layer in range(params["n_layers"]) for name, shape in of_layer.items()
    }
    return {f"{name}.weight": shape for name, shape in (ends | layers).items()}


def split_axis(name: str, shape: Shape, hidden: int) -> int | None:
    """Along which side the shards of a tensor lie; None: every shard has the whole."""
    if name == "tok_embeddings.weight":
        # Llama 1 and 2 cut the embedding along its width, Llama 3 along its words.
        return int(shape[-1:] != (hidden,))
    if name == "output.weight":
        return 0
    match = LAYER.fullmatch(name)
    return NAMES.get(match[2], ("", None))[1] if match else None


def times(shape: Shape, axis: int | None, count: int) -> Shape:
    """The shape of `count` shards together."""
    return tuple(size * count if number == axis else size for number, size in enumerate(shape))


def parts(shards: list[Tensors], params: dict[str, Any]) -> Iterator[tuple[str, Tensors]]:
    """One file a layer, and one for the embedding, the norm and the head: no more than a layer is in memory at once."""
    num_layers = params["n_layers"]
    for layer in range(num_layers):
        found: Tensors = {}
        for name in shards[0]:
            match = LAYER.fullmatch(name)
            if match is None or int(match[1]) != layer:
                continue
            ours, axis = NAMES[match[2]]
            value = joined(shards, name, axis)
            if ours.endswith(("q_proj", "k_proj")):
                heads = params["n_heads"] if ours.endswith("q_proj") else params.get("n_kv_heads") or params["n_heads"]
                value = reordered(value, heads)
            found[f"model.layers.{layer}.{ours}.weight"] = value.contiguous().clone()
        yield f"model-{layer + 1:05}-of-{num_layers + 1:05}.safetensors", found
    ends: Tensors = {}
    for name, ours in (("tok_embeddings", "model.embed_tokens"), ("norm", "model.norm"), ("output", "lm_head")):
        if f"{name}.weight" in shards[0]:
            axis = split_axis(f"{name}.weight", shards[0][f"{name}.weight"].shape, params["dim"])
            ends[f"{ours}.weight"] = joined(shards, f"{name}.weight", axis).contiguous().clone()
    head = ends.get("lm_head.weight")
    if head is not None and torch.equal(head, ends["model.embed_tokens.weight"]):
        del ends["lm_head.weight"]
    yield f"model-{num_layers + 1:05}-of-{num_layers + 1:05}.safetensors", ends


def joined(shards: list[Tensors], name: str, axis: int | None) -> torch.Tensor:
    return shards[0][name] if axis is None else torch.cat([shard[name] for shard in shards], dim=axis)


def reordered(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """[heads * head_dim, in]: Meta turns neighbouring pairs of a head, transformers its two halves."""
    rows, columns = weight.shape
    return weight.view(heads, rows // heads // 2, 2, columns).transpose(1, 2).reshape(rows, columns)


def make_config(params: dict[str, Any], vocabulary: int, intermediate: int, is_tied: bool) -> dict[str, Any]:
    """config.json from params.json; the length of the context, which that leaves out, follows from the release."""
    heads, is_third = params["n_heads"], vocabulary >= LLAMA3_VOCABULARY
    theta, scaled = params.get("rope_theta") or 10000.0, bool(params.get("use_scaled_rope"))
    config: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": False,
        "mlp_bias": False,
        "hidden_act": "silu",
        "hidden_size": params["dim"],
        "intermediate_size": intermediate,
        "num_hidden_layers": params["n_layers"],
        "num_attention_heads": heads,
        "num_key_value_heads": params.get("n_kv_heads") or heads,
        "vocab_size": vocabulary,
        "rms_norm_eps": params.get("norm_eps") or 1e-5,
        "rope_theta": theta,
        "max_position_embeddings": context_tokens(params, is_third),
        "tie_word_embeddings": is_tied,
        "torch_dtype": "bfloat16" if is_third else "float16",
        "bos_token_id": 128000 if is_third else 1,
        "eos_token_id": [128001, 128008, 128009] if is_third and scaled else 128001 if is_third else 2,
    }
    if scaled:
        # The small models of 3.2 were extended four times as far as those of 3.1.
        factor = 32.0 if params["dim"] <= 3072 else 8.0
        config["rope_scaling"] = {
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        }
    return config


def context_tokens(params: dict[str, Any], is_third: bool) -> int:
    if is_third:
        return 131072 if params.get("use_scaled_rope") else 8192
    if (params.get("rope_theta") or 10000.0) >= 1e6:
        return 16384  # Code Llama.
    # Llama 2's norms have 1e-5; of the first release the smaller models have 1e-6.
    return 4096 if (params.get("norm_eps") or 1e-5) >= 1e-5 else 2048


def write_tokenizer(source: Path, folder: Path) -> None:
    """tokenizer.model as it is where it is SentencePiece's; that of Llama 3 is a list of words, which is converted."""
    path = source / "tokenizer.model"
    data = path.read_bytes()
    words = data.split(b"\n", 1)[0].split()
    if len(words) != 2 or not words[1].isdigit():
        shutil.copyfile(path, folder / path.name)
        settings = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>",
                    "add_bos_token": True, "add_eos_token": False, "legacy": False}  # fmt: skip
        write_json(folder / "tokenizer_config.json", settings)
        return
    convert_tiktoken(path, folder)
    end = "<|eot_id|>"
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|begin_of_text|>", "eos_token": end,
                "clean_up_tokenization_spaces": True}  # fmt: skip
    write_json(folder / "tokenizer_config.json", settings)


def convert_tiktoken(path: Path, folder: Path) -> None:
    """Llama 3's words as tokenizer.json, by transformers' own converter. Raises CheckpointError."""
    from tokenizers import processors
    from transformers.convert_slow_tokenizer import TikTokenConverter

    ranks = read_words(path)

    class Converter(TikTokenConverter):
        """Reads the file without the package tiktoken."""

        @staticmethod
        def load_tiktoken_bpe(tiktoken_url: str) -> dict[bytes, int]:
            return ranks

    num_reserved = NUM_SPECIALS - len(LLAMA3_SPECIALS)
    reserved = [f"<|reserved_special_token_{number + 2}|>" for number in range(num_reserved)]
    tokenizer = Converter(vocab_file=str(path), extra_special_tokens=[*LLAMA3_SPECIALS, *reserved]).converted()
    begin = LLAMA3_SPECIALS[0]
    opening = processors.TemplateProcessing(
        single=f"{begin} $A", pair=f"{begin} $A $B", special_tokens=[(begin, tokenizer.token_to_id(begin))]
    )
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), opening])
    tokenizer.save(str(folder / "tokenizer.json"))


def read_words(path: Path) -> dict[bytes, int]:
    """Each word in base64 and its number, a line a word. Raises CheckpointError."""
    try:
        pairs = (line.split() for line in path.read_bytes().splitlines())
        return {base64.b64decode(word, validate=True): int(number) for word, number in pairs}
    except (OSError, ValueError) as error:
        raise CheckpointError("meta_words", file=path.name) from error
