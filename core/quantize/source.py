"""What is quantized: a checkpoint whose weights are floating point numbers of 16 or 32 bit, read as data.

In config.json, safetensors and a tokenizer; or in Meta's original format, which is converted first.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from core.checkpoint.checkpoint import QUANTIZE_CONFIGS, FolderFiles, remote_advice
from core.checkpoint.completeness import refuse_unlike
from core.checkpoint.computed import is_computed
from core.checkpoint.headers import TensorInfo, read_json
from core.checkpoint.judgement import architecture_name, family_name, require_runs
from core.checkpoint.layers import count_layers, read_number
from core.checkpoint.settings import plain_settings
from core.checkpoint.tensor_names import name_tensors
from core.checkpoint.text_config import quantization_of, text_config
from core.checkpoint.tokenizer_files import has_tokenizer
from core.checkpoint.weight_files import PICKLED, SUFFIX, ModelFiles, find_weights, has_codes
from core.common.errors import CheckpointError, InputError
from core.common.values import is_whole, printable, quoted_json, quoted_value
from core.quantize.families import require_known

PLAIN_DTYPES = ("F32", "F16", "BF16")
META_PARAMS, META_TOKENIZERS = "params.json", ("tokenizer.model",)
# What params.json of the first Llamas leaves to the tokenizer.
META_VOCABULARY, HALF_BYTES = 32000, 2
# Files name no layer beyond.
MAX_META_LAYERS = 10_000
META_WEIGHTS = re.compile(r"consolidated\.[0-9]{2}\.pth")
# A matrix of a layer, or of one of its experts: what gptqmodel quantizes. Routers and gates of one number stay plain.
LAYER_MATRIX = re.compile(r"\.(layers|h|blocks)\.[0-9]+\..*[^.]+\.weight$")
KEPT_PLAIN = re.compile(
    r"(norm|layernorm|ln_[0-9a-z]+|embed\w*|router|conv1d|conv|in_proj_(a|b|ba)|shared_expert_gate|g_proj|"
    r"\.(mlp|moe|ffn|feed_forward|block_sparse_moe)\.gate(\.wg)?)\.weight$"
)
# Together experts of a layer in one tensor, which gptqmodel takes apart.
STACKED = re.compile(r"(.*\.experts)\.(gate_up_proj|gate_proj|up_proj|down_proj)$")


@dataclass(frozen=True)
class PlainModel:
    """A model before it is quantized. `tensors` have the names of transformers' class."""

    name: str
    folder: Path | None
    config: dict[str, Any]
    tensors: dict[str, TensorInfo]
    files: tuple[str, ...]

    @property
    def family(self) -> str:
        return family_name(self.config)

    @property
    def architecture(self) -> str:
        return architecture_name(self.config)

    @property
    def num_layers(self) -> int:
        return read_number(self.name, text_config(self.config), "num_hidden_layers")

    @property
    def hidden(self) -> int:
        return read_number(self.name, text_config(self.config), "hidden_size")

    @property
    def size_bytes(self) -> int:
        return sum(tensor.num_bytes for tensor in self.tensors.values())

    @cached_property
    def matrices(self) -> Mapping[str, tuple[int, int]]:
        """(in, out) features of every matrix that will be quantized, by its module's name."""
        return dict(_matrices(self.config, self.tensors))

    @cached_property
    def linears(self) -> Mapping[str, tuple[int, int]]:
        """(in, out) features of every matrix that an adapter may change: also the head and routers."""
        return {
            name.removesuffix(".weight"): _features(tensor.shape, self.is_turned(name))
            for name, tensor in self.tensors.items()
            if name.endswith(".weight") and len(tensor.shape) == 2
        }

    def is_turned(self, name: str) -> bool:
        """Whether the matrix in the tensor `name` lies as [in, out]: those of GPT-2's layers do, its head does not."""
        return is_turned(self.config) and LAYER_MATRIX.search(name) is not None

    @property
    def has_stacked_experts(self) -> bool:
        """Whether its files have the experts of a layer together in one tensor."""
        return any(len(tensor.shape) == 3 and STACKED.match(name) for name, tensor in self.tensors.items())


def is_meta_format(folder: Path) -> bool:
    """Whether `folder` holds a model as Meta gives it out, in files of pickles, and in no other format."""
    try:
        names = FolderFiles(folder).names
    except CheckpointError:
        return False
    return META_PARAMS in names and "config.json" not in names and any(map(META_WEIGHTS.fullmatch, names))


def read_plain(folder: Path) -> PlainModel:
    """The model in `folder`. Raises InputError where there is none, CheckpointError with the reason why it cannot be
    quantized."""
    if not folder.is_dir():
        raise InputError("quantize_no_folder", folder=printable(str(folder)))
    files = FolderFiles(folder)
    # Whoever names a path knows it by the whole of it.
    if "config.json" not in files.names:
        raise InputError("quantize_no_config", folder=printable(str(folder)))
    return plain_model(files, folder)


def plain_model(files: ModelFiles, folder: Path | None = None) -> PlainModel:
    """The model that `files` are, on disk or at a hub. Raises as read_plain does."""
    config = files.read_json("config.json")
    if config is None:
        raise files.error("quantize_no_config")
    described = [files.read_json(name) for name in QUANTIZE_CONFIGS if name in files.names]
    settings = plain_settings(quantization_of(config) or next(filter(None, described), None))
    if settings:
        method = settings.get("quant_method", "gptq") if isinstance(settings, dict) else settings
        raise files.error("quantize_already", method=quoted_json(method))
    if not any(name.endswith(SUFFIX) for name in files.names) and any(name.endswith(PICKLED) for name in files.names):
        raise files.error("quantize_pickled")
    weights = find_weights(files, lambda: "", lambda *_: True)
    if has_codes(weights.tensors):
        raise files.error("quantize_already", method="gptq")
    tensors = {name: tensor for name, tensor in weights.tensors.items() if not is_computed(name, tensor)}
    for name, tensor in tensors.items():
        if name.endswith(".weight") and tensor.dtype not in PLAIN_DTYPES:
            raise files.error("quantize_dtype", name=printable(name), dtype=tensor.dtype)
    require_runs(files.name, config, tensors)
    require_known(files, config)
    if not has_tokenizer(files.names):
        raise files.error("tokenizer_missing")
    model = PlainModel(files.name, folder, config, name_tensors(config, tensors), weights.files)
    if not model.matrices:
        raise files.error("quantize_nothing", family=quoted_json(model.family))
    with remote_advice(folder):
        num_layers = count_layers(files.name, config, model.tensors)
    if (unlike := refuse_unlike(files.name, config, model.tensors, {}, num_layers)) is not None:
        raise unlike
    return model


def meta_model(folder: Path) -> PlainModel:
    """What params.json and the sizes of the files tell of a model in Meta's format. Raises CheckpointError.

    The widths of its MLP are in its pickles alone; here they follow from the bytes that are left for them.
    """
    params = require_meta(folder)
    hidden, layers, heads = params["dim"], params["n_layers"], params["n_heads"]
    kv_features = hidden // heads * (params.get("n_kv_heads") or heads)
    vocabulary = params["vocab_size"] if params["vocab_size"] > 0 else META_VOCABULARY
    elements = sum(path.stat().st_size for path in folder.iterdir() if META_WEIGHTS.fullmatch(path.name)) // HALF_BYTES
    attention = 2 * hidden * (hidden + kv_features)
    left = elements - 2 * vocabulary * hidden - layers * attention
    intermediate = max(1, round(left / (3 * layers * hidden) / 32)) * 32
    config = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": hidden, "vocab_size": vocabulary,
        "num_hidden_layers": layers, "num_attention_heads": heads, "intermediate_size": intermediate,
        "num_key_value_heads": params.get("n_kv_heads") or heads,
    }  # fmt: skip
    shapes = {"model.embed_tokens": (vocabulary, hidden), "model.norm": (hidden,), "lm_head": (vocabulary, hidden)}
    for layer in range(layers):
        sides = {
            "self_attn.q_proj": (hidden, hidden), "self_attn.k_proj": (kv_features, hidden),
            "self_attn.v_proj": (kv_features, hidden), "self_attn.o_proj": (hidden, hidden),
            "mlp.gate_proj": (intermediate, hidden), "mlp.up_proj": (intermediate, hidden),
            "mlp.down_proj": (hidden, intermediate),
            "input_layernorm": (hidden,), "post_attention_layernorm": (hidden,),
        }  # fmt: skip
        shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in sides.items()}
    tensors = {
        f"{name}.weight": TensorInfo("", "BF16", shape, 0, HALF_BYTES * math.prod(shape))
        for name, shape in shapes.items()
    }
    return PlainModel(folder.name, folder, config, tensors, ())


def _is_count(value: object) -> bool:
    return is_whole(value) and value > 0


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < math.inf


# Whether a value of params.json is one that a Llama can have. What is left out or null has a default.
META_NUMBERS: dict[str, Callable[[object], bool]] = {
    "dim": _is_count,
    "n_layers": lambda value: is_whole(value) and 0 < value <= MAX_META_LAYERS,
    "n_heads": _is_count,
    "n_kv_heads": lambda value: value is None or _is_count(value),
    # The first Llamas leave the vocabulary to the tokenizer, as -1.
    "vocab_size": is_whole,
    "rope_theta": lambda value: value is None or _is_number(value),
    "norm_eps": lambda value: value is None or _is_number(value),
}


def require_meta(folder: Path) -> dict[str, Any]:
    """What params.json says of a model in Meta's format. Raises CheckpointError where a part is missing or wrong."""
    params = read_json(folder / META_PARAMS) or {}
    for key, is_right in META_NUMBERS.items():
        value = params.get(key)
        if not is_right(value):
            raise CheckpointError("meta_params", folder=printable(folder.name), setting=key, value=quoted_value(value))
    if not any((folder / name).is_file() for name in META_TOKENIZERS):
        raise CheckpointError("meta_tokenizer", folder=printable(folder.name))
    numbers = sorted(int(path.name[13:15]) for path in folder.iterdir() if META_WEIGHTS.fullmatch(path.name))
    if numbers != list(range(len(numbers))):
        missing = next(number for number in range(len(numbers) + 1) if number not in numbers)
        raise CheckpointError(
            "missing_shard", folder=printable(folder.name), file=f"consolidated.{missing:02}.pth", count=1
        )
    return params


def _matrices(config: Mapping[str, Any], tensors: Mapping[str, TensorInfo]) -> Iterator[tuple[str, tuple[int, int]]]:
    turned = is_turned(config)
    for name, tensor in tensors.items():
        if len(tensor.shape) == 3 and (match := STACKED.match(name)):
            for expert in range(tensor.shape[0]):
                yield from _of_expert(f"{match[1]}.{expert}", match[2], *tensor.shape[1:])
        elif len(tensor.shape) == 2 and LAYER_MATRIX.search(name) and not KEPT_PLAIN.search(name):
            yield name.removesuffix(".weight"), _features(tensor.shape, turned)


def _of_expert(expert: str, own: str, outputs: int, inputs: int) -> Iterator[tuple[str, tuple[int, int]]]:
    """gptqmodel takes the experts of a layer apart, and gate and up too."""
    if own == "gate_up_proj":
        yield from ((f"{expert}.{part}", (inputs, outputs // 2)) for part in ("gate_proj", "up_proj"))
    else:
        yield f"{expert}.{own}", (inputs, outputs)


def is_turned(config: Mapping[str, Any]) -> bool:
    """Whether matrices of layers lie as [in, out]."""
    return family_name(config) in ("gpt2",)


def _features(shape: tuple[int, ...], turned: bool) -> tuple[int, int]:
    return (shape[0], shape[1]) if turned else (shape[1], shape[0])
