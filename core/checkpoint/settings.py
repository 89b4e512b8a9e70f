"""The settings of a quantization as older programs wrote them: under other names, in part, or not at all.

Then the shapes of the tensors tell them. With a matrix of [in, out] features at b bits and G scale groups: qweight
[in * b / 32, out], qzeros [G, out * b / 32], scales [G, out], g_idx [in].
"""

from __future__ import annotations

import math
import re
import struct
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from core.checkpoint.containers.gptq import names_gptq
from core.checkpoint.headers import TensorInfo
from core.checkpoint.quantization import BITS
from core.checkpoint.weight_files import ModelFiles, Tensors
from core.common.values import plain_number

# What GPTQ-for-LLaMa and text-generation-webui called them.
OLDER_NAMES = {
    "wbits": "bits",
    "w_bits": "bits",
    "weight_bits": "bits",
    "groupsize": "group_size",
    "act_order": "desc_act",
    "act-order": "desc_act",
    "symmetric": "sym",
}
FILE_NAMES = ("model_file_base_name", "model_basename", "model_base_name")
SIZES = ("bits", "group_size")
# What some programs write as texts, of all containers' settings.
NUMBERS = frozenset((*SIZES, "w_bit", "q_group_size", "num_bits", "act_bits"))
SWITCHES = frozenset(("desc_act", "sym", "symmetric", "zero_point"))
# How deep they lie: compressed-tensors has "config_groups", a group's name, "weights".
MODULE_LEVELS = 3
# As in "4bit-128g.compat.no-act-order" and "gptq-4bit-128g-actorder_True".
ORDER_IN_NAME = re.compile(r"(?P<no>no[-_.]?)?act[-_.]?order(_(?P<value>true|false))?(?![a-z])", re.IGNORECASE)
# The group sizes that people choose.
POWERS = tuple(2**power for power in range(3, 13))
# More than an order of inputs takes; of zeros, enough to tell.
MAX_READ_BYTES = 2**20


def plain_settings(found: object) -> Any:
    """`found` with the names of today, numbers and switches that are none of text, and without what it leaves open."""
    if not isinstance(found, dict):
        return found
    found = _named(_untexted(found))
    renamed = {OLDER_NAMES.get(name, name): value for name, value in found.items() if name not in OLDER_NAMES}
    older = {OLDER_NAMES[name]: value for name, value in found.items() if name in OLDER_NAMES}
    return {name: value for name, value in (older | renamed).items() if value is not None or name not in SIZES}


def _named(found: dict[str, Any]) -> dict[str, Any]:
    """`found` with the method that only its producer tells: NVIDIA's ModelOpt names none in its older files."""
    producer = found.get("producer")
    if not isinstance(producer, dict) or not producer.get("name") or found.get("quant_method"):
        return found
    return found | {"quant_method": producer["name"]}


def _untexted(found: Mapping[str, Any], levels: int = MODULE_LEVELS) -> dict[str, Any]:
    """`found` with the number 4 for "4" and for 4.0, true for "true", also in the settings of single modules."""
    return {name: _plain_value(OLDER_NAMES.get(name, name), value, levels) for name, value in found.items()}


def _plain_value(name: str, value: object, levels: int) -> Any:
    if isinstance(value, dict):
        return _untexted(value, levels - 1) if levels else value
    if name in NUMBERS:
        return plain_number(value)
    if name in SWITCHES and isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    return value


def lacks_sizes(settings: object) -> bool:
    """Whether these are no settings, or GPTQ's without the bits or the size of a group."""
    if not settings:
        return True
    if not isinstance(settings, dict) or not names_gptq(settings):
        return False
    if "w_bit" in settings:  # AutoAWQ's own, which name no method.
        return False
    return any(name not in settings for name in SIZES)


def base_name(settings: object) -> str:
    """What the settings call the file with the weights, without its suffix; "" where they do not say."""
    named = (settings.get(name) for name in FILE_NAMES) if isinstance(settings, dict) else ()
    return next((name.removesuffix(".safetensors") for name in named if isinstance(name, str)), "")


def fits(settings: Mapping[str, Any], stem: str, tensors: Tensors) -> bool:
    """Whether GPTQ's tensors have the bits and the size of a group that `settings` say, and the file that is called
    `stem` the order of inputs, as far as its name tells."""
    order, wanted = ORDER_IN_NAME.search(stem), settings.get("desc_act")
    if order is not None and isinstance(wanted, bool):
        is_permuted = not (order["no"] or (order["value"] or "").lower() == "false")
        if is_permuted != wanted:
            return False
    sizes = sizes_by_shapes(tensors)
    return sizes is None or sizes == (settings.get("bits"), settings.get("group_size", -1))


def first_layout(tensors: Tensors) -> str | None:
    """A tensor in the way that GPTQ-for-LLaMa stored zero points until 2023-03, unpacked; None where there is none."""
    matrices = (name.removesuffix(".qweight") for name in tensors if name.endswith(".qweight"))
    zeros = (f"{name}.zeros" for name in matrices if f"{name}.qzeros" not in tensors)
    return next((name for name in zeros if name in tensors), None)


def settings_by_tensors(files: ModelFiles, tensors: Tensors) -> dict[str, Any]:
    """Settings as quantize_config.json would say them; empty where the tensors are not GPTQ's.

    Symmetry and the order of the inputs are read from one matrix: such files were made with one setting for all.
    """
    sizes = sizes_by_shapes(tensors)
    if sizes is None:
        return {}
    bits, group_size = sizes
    return {
        "quant_method": "gptq",
        "bits": bits,
        "group_size": group_size,
        "desc_act": group_size > 0 and _is_permuted(files, tensors, group_size),
        **_zeros_settings(files, tensors),
    }


def sizes_by_shapes(tensors: Tensors) -> tuple[int, int] | None:
    """Bits and group size of most matrices, -1 for no groups; None where they are none of GPTQ's."""
    found = list(_matrices(tensors))
    if not found:
        return None
    (bits, _), *_ = Counter(matrix.bits for matrix in found).most_common(1)
    finest = max(found, key=lambda matrix: matrix.num_groups)
    # The last group may be shorter than the others, so that several sizes make one number of groups.
    sizes = [-1, *POWERS, max(1, finest.in_features // finest.num_groups)]
    group_size = max(sizes, key=lambda size: sum(matrix.has_groups_of(size) for matrix in found))
    return bits, group_size


@dataclass(frozen=True, slots=True)
class _Matrix:
    name: str
    bits: int
    in_features: int
    num_groups: int

    def has_groups_of(self, size: int) -> bool:
        return self.num_groups == (1 if size < 0 else math.ceil(self.in_features / size))


def _matrices(tensors: Tensors) -> Iterator[_Matrix]:
    """The matrices that have GPTQ's shapes at a number of bits that GPTQ has."""
    for codes, info in tensors.items():
        name = codes.removesuffix(".qweight")
        zeros, scales, order = (tensors.get(name + ending) for ending in (".qzeros", ".scales", ".g_idx"))
        if name == codes or zeros is None or scales is None:
            continue
        shapes = (info.shape, zeros.shape, scales.shape)
        if any(len(shape) != 2 or 0 in shape for shape in shapes) or scales.shape[1] != info.shape[1]:
            continue
        bits = zeros.shape[1] * 32 // scales.shape[1]
        if order is not None and len(order.shape) == 1 and order.shape[0] > 0:
            bits = info.shape[0] * 32 // order.shape[0]
        if bits in BITS:
            yield _Matrix(name, bits, info.shape[0] * 32 // bits, scales.shape[0])


def _is_permuted(files: ModelFiles, tensors: Tensors, group_size: int) -> bool:
    """Whether the inputs of a group lie apart, read from the order of one matrix."""
    matrix = max(_matrices(tensors), key=lambda matrix: matrix.num_groups)
    order = tensors.get(matrix.name + ".g_idx")
    if order is None:
        return False
    groups = _words(files, order)
    return any(group != number // group_size for number, group in enumerate(groups))


def _zeros_settings(files: ModelFiles, tensors: Tensors) -> dict[str, Any]:
    """Symmetry and format by the zero points of one matrix: the symmetric ones are all half of the levels."""
    matrix = next(_matrices(tensors))
    words = _words(files, tensors[matrix.name + ".qzeros"])
    half = 2 ** (matrix.bits - 1)
    for packing, stored in (("gptq", half - 1), ("gptq_v2", half)):
        if words == _repeated(stored, matrix.bits, len(words)):
            return {"sym": True, "checkpoint_format": packing}
    return {"sym": False}


def _repeated(value: int, bits: int, num_words: int) -> tuple[int, ...]:
    """The 32-bit words of a stream that is `value` over and over, the lowest bits first."""
    stream = sum(value << (bits * place) for place in range(32))
    period = [stream >> (32 * word) & 0xFFFFFFFF for word in range(bits)]
    return tuple(period[word % bits] for word in range(num_words))


def _words(files: ModelFiles, tensor: TensorInfo) -> tuple[int, ...]:
    data = files.read_bytes(tensor, MAX_READ_BYTES)
    return struct.unpack(f"<{len(data) // 4}I", data[: len(data) // 4 * 4])
