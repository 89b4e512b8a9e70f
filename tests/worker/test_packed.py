"""Layouts of other programs, and settings of single modules: each computes what its packing stands for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from core.checkpoint.checkpoint import Checkpoint, read_checkpoint
from core.checkpoint.quantization import MatrixFormat
from core.checkpoint.settled import settle
from core.memory.kernels.llamadeck import LLAMADECK, split_kv_bytes
from core.memory.kernels.registry import able_kernels, choose_kernel
from core.memory.kernels.spec import Device
from core.memory.model_shape import read_shape
from core.worker.model.backends import llamadeck
from core.worker.model.backends.aten_int4 import CpuInt4Linear
from core.worker.model.backends.llamadeck import LlamadeckBackend
from core.worker.model.device_map import DeviceMap
from core.worker.model.loader import load_model
from core.worker.model.matrix_tensors import MatrixTensors
from core.worker.model.model_runner import ModelRunner
from core.worker.model.repack import PIECE_ROWS, middle_zeros, repack, to_fields
from tests.support.checkpoints import Recipe, pack
from tests.support.packed import make_packed, pack_awq
from tests.support.reference import reference_logits

CPU = torch.device("cpu")
TOKENS = torch.tensor([[5, 300, 17, 42, 260, 9, 101]])
# As in test_loader.py: bfloat16's rounding over two layers.
TOLERANCE = 0.08


def dequantize(checkpoint: Checkpoint, name: str) -> torch.Tensor:
    """The matrix as any kernel gets it, [out, in] float32."""
    matrix = checkpoint.matrices[name]
    with safe_open(checkpoint.folder / "model.safetensors", framework="pt") as source:
        parts = {
            part: repack(matrix.format, part, source.get_tensor(stored))
            for part, stored in matrix.tensors.items()
            if part != "shape"
        }
    one = MatrixTensors.from_parts(matrix.format, parts)
    assert (one.in_features, one.out_features) == (matrix.in_features, matrix.out_features)
    bits = matrix.format.bits
    codes = to_fields(one.codes.t().contiguous(), bits)[:, : one.in_features].float()
    words = one.zeros
    if words is None:
        words = middle_zeros(matrix.format, one.scales.shape[0], one.out_features, CPU)
    zeros = to_fields(words, bits)[:, : one.out_features].float()
    size = one.in_features if matrix.format.group_size < 0 else matrix.format.group_size
    groups = torch.arange(one.in_features) // size if one.input_groups is None else one.input_groups.long()
    return (codes - zeros[groups].t()) * one.scales.float()[groups].t()


def assert_exact(folder: Path, dense: dict[str, np.ndarray]) -> Checkpoint:
    checkpoint = settle(read_checkpoint(folder))
    assert set(checkpoint.matrices) == set(dense)
    for name, wanted in dense.items():
        assert torch.equal(dequantize(checkpoint, name), torch.from_numpy(wanted.copy())), name
    return checkpoint


def run(folder: Path) -> tuple[Any, torch.Tensor]:
    """The loaded model and its logits after TOKENS."""
    checkpoint = settle(read_checkpoint(folder))
    kernel, _ = choose_kernel(checkpoint, Device("cpu"))
    shape = read_shape(checkpoint, merged=True)
    with torch.inference_mode():
        model = load_model(checkpoint, shape, kernel, DeviceMap((CPU,)), torch.bfloat16, 64, lambda _: None)
        slots = ModelRunner(model, num_slots=1, context_tokens=32)
        return model, slots.forward(TOKENS, torch.arange(7).unsqueeze(0), 0, 7).float()


def assert_computes(folder: Path, dense: dict[str, np.ndarray]) -> torch.nn.Module:
    model, got = run(folder)
    wanted = reference_logits(folder, dense, TOKENS)
    assert (got - wanted).abs().max() < TOLERANCE * wanted.std()
    found: torch.nn.Module = model
    return found


LAYOUTS: dict[str, tuple[str, Recipe]] = {
    "awq": ("awq", Recipe(symmetric=False)),
    "awq, symmetric, no groups": ("awq", Recipe(group_size=-1)),
    "auto-round": ("auto_round", Recipe()),
    "auto-round, 2 bit": ("auto_round", Recipe(bits=2)),
    "compressed": ("compressed", Recipe()),
    "compressed, asymmetric": ("compressed", Recipe(symmetric=False)),
    "compressed, channel": ("compressed", Recipe(group_size=-1)),
    "compressed, channel, asymmetric": ("compressed", Recipe(group_size=-1, symmetric=False)),
    "compressed, act-order": ("compressed", Recipe(act_order=True, symmetric=False)),
    "compressed, bytes of zeros": ("compressed_bytes", Recipe(symmetric=False)),
    "compressed, 8 bit, bytes of zeros": ("compressed_bytes", Recipe(bits=8, symmetric=False)),
    "compressed, 3 bit": ("compressed", Recipe(bits=3, symmetric=False)),
    "compressed, 8 bit": ("compressed", Recipe(bits=8)),
    "compressed, 8 bit, channel": ("compressed", Recipe(bits=8, group_size=-1)),
    "words of zeros": ("gptq_words", Recipe(symmetric=False)),
    "fields of zeros": ("gptq", Recipe(symmetric=False)),
    "version 2": ("gptq_v2", Recipe(symmetric=False)),
    "words of zeros, 2 bit": ("gptq_words", Recipe(bits=2, symmetric=False)),
    "words of zeros, 3 bit": ("gptq_words", Recipe(bits=3, symmetric=False)),
    "words of zeros, 8 bit": ("gptq_words", Recipe(bits=8, symmetric=False)),
    "fields of zeros, 3 bit": ("gptq", Recipe(bits=3, symmetric=False)),
    "fields of zeros, 8 bit": ("gptq", Recipe(bits=8, symmetric=False)),
}


@pytest.mark.parametrize(("packing", "recipe"), LAYOUTS.values(), ids=LAYOUTS.keys())
def test_every_layout_gives_its_matrices_to_the_bit(tmp_path: Path, packing: str, recipe: Recipe) -> None:
    checkpoint = assert_exact(tmp_path / "m", make_packed(tmp_path / "m", packing, recipe))
    formats = {matrix.format for matrix in checkpoint.matrices.values()}
    assert {(one.bits, one.is_symmetric, one.is_permuted) for one in formats} == {
        (recipe.bits, recipe.symmetric, recipe.act_order)
    }


def test_an_awq_matrix_of_more_than_a_piece_is_packed_anew_whole() -> None:
    codes = np.random.default_rng(0).integers(0, 16, (PIECE_ROWS + 24, 16))
    words = repack(MatrixFormat(4, 8, False, False, "awq"), "codes", torch.from_numpy(pack_awq(codes)))
    assert torch.equal(words, torch.from_numpy(pack(codes, 4)))


@pytest.mark.parametrize(("packing", "said"), [("awq", "gptq"), ("gptq", "awq")])
def test_shapes_tell_awq_from_gptq_whatever_the_label_says(tmp_path: Path, packing: str, said: str) -> None:
    recipe = Recipe(symmetric=False)
    assert_exact(
        tmp_path / "m",
        make_packed(tmp_path / "m", packing, recipe, None, {"quant_method": said, "checkpoint_format": None}),
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["awq", "auto-round", "compressed, act-order", "compressed, 8 bit, channel"])
def test_a_model_in_another_layout_computes_the_same(tmp_path: Path, name: str) -> None:
    packing, recipe = LAYOUTS[name]
    assert_computes(tmp_path / "m", make_packed(tmp_path / "m", packing, recipe))


MIXES: dict[str, dict[str, Recipe | None]] = {
    "8 bit in one": {"down_proj": Recipe(bits=8)},
    "2 and 3 bit": {"layers.0.mlp.up_proj": Recipe(bits=2), "k_proj": Recipe(bits=3)},
    "no groups in one": {"layers.1.self_attn.o_proj": Recipe(group_size=-1)},
    "q unlike k and v": {"q_proj": Recipe(group_size=64)},
    "16 bit in one": {"o_proj": None, "layers.0.self_attn.v_proj": None},
    "asymmetric in one": {"gate_proj": Recipe(symmetric=False)},
    "act-order in one": {"k_proj": Recipe(act_order=True)},
    "a head of 8 bit": {"lm_head": Recipe(bits=8)},
}


@pytest.mark.slow
@pytest.mark.parametrize("others", MIXES.values(), ids=MIXES.keys())
def test_modules_with_settings_of_their_own_compute_as_they_say(
    tmp_path: Path, others: dict[str, Recipe | None]
) -> None:
    dynamic = {rf"+:.*{ending}.*": settings(recipe) for ending, recipe in others.items() if recipe is not None}
    dynamic |= {f"-:.*{ending}.*": {} for ending, recipe in others.items() if recipe is None}
    dense = make_packed(tmp_path / "m", "gptq", Recipe(hidden=128), others, {"dynamic": dynamic})
    assert_exact(tmp_path / "m", dense)
    model = assert_computes(tmp_path / "m", dense)
    # Single modules of another kind do not cost the others their kernel.
    assert any(isinstance(module, CpuInt4Linear) for module in model.modules())


@pytest.mark.parametrize("others", [{}, {"lm_head": Recipe(bits=8)}], ids=["16 bit", "8 bit"])
def test_a_tied_models_own_head_is_used(tmp_path: Path, others: dict[str, Recipe | None]) -> None:
    """The head in such a file was dropped in silence, and the model wrote nonsense."""
    dense = make_packed(tmp_path / "m", "gptq", Recipe(), others)
    untied = reference_logits(tmp_path / "m", dense, TOKENS)
    config = tmp_path / "m" / "config.json"
    config.write_text(config.read_text().replace('"tie_word_embeddings": false', '"tie_word_embeddings": true'))
    model, got = run(tmp_path / "m")
    assert (got - untied).abs().max() < TOLERANCE * untied.std()
    assert model.lm_head is not model.model.embed_tokens


def test_a_head_that_repeats_the_embedding_is_no_second_one(tmp_path: Path) -> None:
    make_packed(tmp_path / "m", "gptq", config={"tie_word_embeddings": True})
    tensors = load_file(tmp_path / "m" / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    save_file(tensors, tmp_path / "m" / "model.safetensors")
    model, _ = run(tmp_path / "m")
    assert model.lm_head.weight is model.model.embed_tokens.weight


def settings(recipe: Recipe) -> dict[str, Any]:
    return {
        "bits": recipe.bits,
        "group_size": recipe.group_size,
        "sym": recipe.symmetric,
        "desc_act": recipe.act_order,
    }


def test_matrices_of_several_group_sizes_have_a_plan_and_a_prefill_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Our kernels are compiled for one way in which matrices are quantized; a model may have several."""
    make_packed(tmp_path / "one", "gptq", Recipe(hidden=128))
    make_packed(tmp_path / "two", "gptq", Recipe(hidden=128), {"down_proj": Recipe(group_size=64)})
    one, two = (read_shape(read_checkpoint(tmp_path / name), merged=True) for name in ("one", "two"))
    assert LLAMADECK in able_kernels([matrix for matrix, _ in two.matrices], [Device("cuda", (8, 0))])
    attention = split_kv_bytes(one, 1)
    shared = LLAMADECK.scratch_bytes(one, (9, 0), 512, 1) - attention
    assert LLAMADECK.scratch_bytes(two, (9, 0), 512, 1) - attention == 2 * shared
    made: list[object] = []
    monkeypatch.setattr(llamadeck, "make_prefill_backend", lambda *variant: made.append(variant))
    backend = LlamadeckBackend(LLAMADECK, torch.float16, CPU)
    backend.reserve([matrix for matrix, _ in two.matrices], 512)
    assert len(set(made)) == len(made) == 2
