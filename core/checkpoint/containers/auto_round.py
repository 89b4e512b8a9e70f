"""AutoRound's own export. It is one of two others' layouts, which its configuration names; often without g_idx."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from core.checkpoint.containers.awq import AwqContainer
from core.checkpoint.containers.gptq import GptqContainer
from core.checkpoint.containers.shapes import settings_of
from core.checkpoint.headers import TensorInfo
from core.checkpoint.quantization import MatrixFormat, Packing, Part, QuantizedMatrix
from core.common.errors import CheckpointError
from core.common.values import is_whole, quoted_json

METHODS = re.compile(r"(intel/)?auto[-_]?round")
# Layouts by their names, the first that is found counts. AutoRound's own GPTQ of before subtracts nothing from zeros.
LAYOUTS: tuple[tuple[re.Pattern[str], Packing | None], ...] = (
    (re.compile(r"llm_compressor|fp8|mx_?fp|nv_?fp|gguf|itrex"), None),
    (re.compile(r"awq"), "awq"),
    (re.compile(r"gptqmodel"), "gptq_v2"),
    (re.compile(r"gptq"), "gptq"),
    (re.compile(r"^auto_round(:(exllamav2|tritonv2).*)?$"), "gptq_v2"),
    (re.compile(r"^(auto|marlin)$"), "gptq"),
)
DEFAULT_LAYOUT = "auto_round:auto_gptq"
ROTATIONS = ("spinquant_config", "hadamard_config", "rotation_config")


class AutoRoundContainer:
    """Reads configurations; the tensors are those of AWQ and GPTQ, whose containers read them."""

    packings: tuple[Packing, ...] = ()
    endings: Mapping[Part, str] = {}
    required: tuple[Part, ...] = ()

    def accepts(self, found: Mapping[str, Any]) -> bool:
        return METHODS.fullmatch(quoted_json(found.get("quant_method")).lower()) is not None

    def read_format(self, model: str, found: Mapping[str, Any]) -> MatrixFormat:
        named = quoted_json(found.get("packing_format") or found.get("backend") or DEFAULT_LAYOUT).lower()
        packing = next((layout for pattern, layout in LAYOUTS if pattern.search(named)), None)
        data_type, act_bits = quoted_json(found.get("data_type") or "int").lower(), found.get("act_bits")
        if packing is None:
            raise CheckpointError("auto_round_layout", folder=model, layout=named)
        if not data_type.startswith("int"):
            raise CheckpointError("auto_round_layout", folder=model, layout=data_type)
        if is_whole(act_bits) and act_bits < 16:
            raise CheckpointError("activations_quantized", folder=model, setting=f"act_bits {act_bits}")
        if (rotation := next((key for key in ROTATIONS if found.get(key)), None)) is not None:
            raise CheckpointError("auto_round_layout", folder=model, layout=rotation)
        if packing == "awq":
            return AwqContainer().read_format(model, {**_numbers(found), "quant_method": "awq"})
        extra = dict(enumerate(settings_of(found.get("extra_config"))))
        stated = {**_numbers(found), "sym": found.get("sym", True), "dynamic": extra}
        return GptqContainer().read_format(model, {**stated, "checkpoint_format": packing})

    def read(self, model: str, format: MatrixFormat, tensors: Mapping[str, TensorInfo]) -> dict[str, QuantizedMatrix]:
        return {}


def _numbers(found: Mapping[str, Any]) -> dict[str, Any]:
    return {"bits": found.get("bits"), "group_size": found.get("group_size", -1)}
