"""What configurations of other programs say: what is read, and what is refused by its name."""

from __future__ import annotations

from typing import Any

import pytest

from core.checkpoint.containers.registry import read_format, read_matrices
from core.checkpoint.headers import TensorInfo
from core.checkpoint.quantization import MatrixFormat
from core.common.errors import CheckpointError

GROUP = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 128}


def compressed(group: dict[str, Any] | None = None, **settings: Any) -> dict[str, Any]:
    groups = {"group_0": {"targets": ["Linear"], "weights": GROUP, "input_activations": None} | (group or {})}
    return {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": groups} | settings


def weights(**changes: Any) -> dict[str, Any]:
    return compressed({"weights": GROUP | changes})


def auto_round(**settings: Any) -> dict[str, Any]:
    return {"quant_method": "auto-round", "bits": 4, "group_size": 128, "sym": True, "data_type": "int"} | settings


def gptq(**settings: Any) -> dict[str, Any]:
    return {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": True} | settings


AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"}
GPTQ_4 = MatrixFormat(4, 128, False, True, "gptq")
AWQ_4 = MatrixFormat(4, 128, False, False, "awq")
COMPRESSED_4 = MatrixFormat(4, 128, False, True, "pack_quantized")
READ: list[tuple[dict[str, Any], MatrixFormat]] = [
    (gptq(), GPTQ_4),
    (gptq(meta={"quantizer": "gptqmodel:2.2.0"}), MatrixFormat(4, 128, False, True, "gptq_words")),
    (gptq(meta={"quantizer": ["optimum:1.24", "gptqmodel:7.6.0"]}), MatrixFormat(4, 128, False, True, "gptq_words")),
    (gptq(meta={"quantizer": ["intel/auto-round:0.5"]}), GPTQ_4),
    (gptq(meta="gptqmodel"), GPTQ_4),
    (gptq(dynamic={"-:.*": {}, "+:.*k_proj.*": {"desc_act": True}}), MatrixFormat(4, 128, True, True, "gptq")),
    (gptq(dynamic={".*up.*": {"sym": False}}), MatrixFormat(4, 128, False, False, "gptq")),
    (gptq(dynamic=[1]), GPTQ_4),
    (gptq(quant_method="gptq_marlin"), GPTQ_4),
    (gptq(quant_method="GPTQModel", checkpoint_format="gptqmodel"), GPTQ_4),
    (gptq(checkpoint_format="gptq_marlin"), GPTQ_4),
    (auto_round(), GPTQ_4),
    (auto_round(quant_method="intel/auto-round", packing_format="auto_round:auto_gptq"), GPTQ_4),
    (auto_round(quant_method="autoround", backend="auto_round:gptq:exllamav2"), GPTQ_4),
    (auto_round(packing_format="auto_round:gptqmodel"), MatrixFormat(4, 128, False, True, "gptq_v2")),
    (auto_round(packing_format="auto_round"), MatrixFormat(4, 128, False, True, "gptq_v2")),
    (auto_round(packing_format="auto_round:auto_awq", sym=False), AWQ_4),
    (auto_round(backend="awq:marlin"), AWQ_4),
    (auto_round(extra_config={"a": {"bits": 16}, "b": {"sym": False}}), MatrixFormat(4, 128, False, False, "gptq")),
    (AWQ, AWQ_4),
    (AWQ | {"version": "GEMM"}, AWQ_4),
    ({"zero_point": True, "q_group_size": 128, "w_bit": 4, "version": "GEMM"}, AWQ_4),
    (compressed(), COMPRESSED_4),
    (compressed(kv_cache_scheme={"num_bits": 8, "type": "float"}), COMPRESSED_4),
    (weights(actorder="group"), MatrixFormat(4, 128, True, True, "pack_quantized")),
    (weights(actorder="weight"), COMPRESSED_4),
    (weights(strategy="channel", group_size=None), MatrixFormat(4, -1, False, True, "pack_quantized")),
    (weights(num_bits=8, symmetric=False), MatrixFormat(8, 128, False, False, "pack_quantized")),
    (compressed(sparsity_config={"format": "dense"}, kv_cache_scheme=None), COMPRESSED_4),
    (compressed({"format": "pack-quantized"}, format="mixed-precision"), COMPRESSED_4),
]  # fmt: skip
REFUSED: list[tuple[dict[str, Any], str, str]] = [
    (AWQ | {"version": "gemv"}, "awq_layout", "gemv"),
    (AWQ | {"version": "gemv_fast"}, "awq_layout", "gemv_fast"),
    (AWQ | {"version": "llm-awq"}, "awq_layout", "llm-awq"),
    (AWQ | {"version": "marlin"}, "awq_layout", "marlin"),
    (AWQ | {"bits": 3}, "awq_bits", "3"),
    (auto_round(packing_format="auto_round:auto_awq", bits=8), "awq_bits", "8"),
    (auto_round(packing_format="auto_round:llm_compressor"), "auto_round_layout", "auto_round:llm_compressor"),
    (auto_round(packing_format="auto_round:fp8_static"), "auto_round_layout", "auto_round:fp8_static"),
    (auto_round(data_type="mx_fp"), "auto_round_layout", "mx_fp"),
    (auto_round(act_bits=8), "activations_quantized", "act_bits 8"),
    (auto_round(spinquant_config={"r1": True}), "auto_round_layout", "spinquant_config"),
    (compressed(format="float-quantized"), "compressed_format", "float-quantized"),
    (compressed(format="int-quantized"), "compressed_format", "int-quantized"),
    (compressed(format="nvfp4-pack-quantized"), "compressed_format", "nvfp4-pack-quantized"),
    (compressed(format=None), "compressed_format", "-"),
    (compressed({"format": "float-quantized"}, format="mixed-precision"), "compressed_format", "float-quantized"),
    (compressed({"input_activations": {"num_bits": 8}}), "activations_quantized", "input_activations"),
    (weights(type="float"), "compressed_setting", "type float"),
    (weights(num_bits=6), "compressed_setting", "num_bits 6"),
    (weights(strategy="block"), "compressed_setting", "strategy block"),
    (compressed(config_groups={}), "compressed_setting", "config_groups"),
    (compressed({"weights": None}), "compressed_setting", "config_groups"),
    (weights(group_size="many"), "group_size", "many"),
    (gptq(pack_dtype="int16"), "format", "pack_dtype int16"),
    (gptq(checkpoint_format="marlin"), "format", "marlin"),
    ({"quant_method": "fp8"}, "other_quantization_vllm", "fp8"),
]


@pytest.mark.parametrize(("found", "wanted"), READ)
def test_what_a_program_wrote_is_read(found: dict[str, Any], wanted: MatrixFormat) -> None:
    assert read_format("m", found) == wanted


@pytest.mark.parametrize(("found", "key", "named"), REFUSED)
def test_what_cannot_run_is_refused_by_its_name(found: dict[str, Any], key: str, named: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        read_format("m", found)
    assert caught.value.key == key and named in map(str, caught.value.params.values())


def packed(codes: tuple[int, ...], scales: tuple[int, ...], **others: tuple[int, ...]) -> dict[str, TensorInfo]:
    shapes = {"weight_packed": codes, "weight_scale": scales, **others}
    return {
        f"m.{name}": TensorInfo("f", "F16" if name == "weight_scale" else "I32", shape, 0, 0)
        for name, shape in shapes.items()
    }


def test_inputs_that_fill_no_whole_words_are_refused_before_a_download() -> None:
    with pytest.raises(CheckpointError) as caught:
        read_matrices("m", MatrixFormat(4, 12, False, True, "pack_quantized"), packed((64, 5), (64, 3)))
    assert (caught.value.key, caught.value.params["inputs"]) == ("padded_inputs", 36)


def test_codes_of_three_bits_that_are_ten_in_a_word_are_refused() -> None:
    with pytest.raises(CheckpointError) as caught:
        read_matrices("m", MatrixFormat(3, 128, False, True, "pack_quantized"), packed((64, 410), (64, 32)))
    assert caught.value.key == "compressed_setting"


def test_groups_of_matrices_with_other_bits_are_told_by_their_shapes() -> None:
    format = MatrixFormat(4, 32, False, True, "pack_quantized")
    grouped = read_matrices("m", format, packed((64, 32), (64, 4)))["m"]
    assert (grouped.format.bits, grouped.in_features) == (8, 128)
    asymmetric = read_matrices("m", format, packed((64, 32), (64, 1), weight_zero_point=(16, 1)))["m"]
    assert (asymmetric.format.bits, asymmetric.format.group_size, asymmetric.in_features) == (8, -1, 128)
