"""The choice of a kernel: what is chosen where and why, held against what gptqmodel's own classes say they take."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

from core.checkpoint.checkpoint import Checkpoint, read_checkpoint
from core.checkpoint.headers import TensorInfo
from core.checkpoint.quantization import MatrixFormat
from core.common.errors import CheckpointError, EngineError
from core.common.i18n import catalogue
from core.memory.kernels import registry
from core.memory.kernels.llamadeck import LLAMADECK
from core.memory.kernels.registry import KERNELS, able_kernels, choose_kernel, kernel_named
from core.memory.kernels.spec import Device, KernelSpec
from core.memory.model_shape import matrix_shapes, read_shape
from core.worker.kernels.packing import K_BLOCK, TILE
from core.worker.model.backends.gptqmodel import GptqmodelBackend
from core.worker.model.backends.registry import BACKENDS, make_backend
from core.worker.model.device_map import DeviceMap
from core.worker.model.loader import load_model
from tests.support.checkpoints import Recipe, make_checkpoint

AMPERE, TURING = Device("cuda", (8, 6)), Device("cuda", (7, 5))
BARE_TURING = Device("cuda", (7, 5), has_c_compiler=False)
CPU = Device("cpu")
LLAMA2_7B = ((4096, 4096), (4096, 11008), (11008, 4096))
FALCON_7B = ((4544, 4672), (4544, 18176), (18176, 4544))


def checkpoint(
    bits: int = 4,
    group_size: int = 128,
    act_order: bool = False,
    symmetric: bool = True,
    shapes: tuple[tuple[int, int], ...] = LLAMA2_7B,
) -> Checkpoint:
    """A checkpoint with matrices of the given (in, out) features and no files behind it."""
    tensors = {
        f"layers.{index}.qweight": TensorInfo("f", "I32", (rows * bits // 32, columns), 0, rows * columns * bits // 8)
        for index, (rows, columns) in enumerate(shapes)
    }
    quantization = MatrixFormat(bits, group_size, act_order, symmetric, "gptq")
    return Checkpoint("some", {}, quantization, tensors)


def sides_of(model: Checkpoint) -> set[tuple[int, int]]:
    return {(matrix.in_features, matrix.out_features) for matrix in matrix_shapes(model)}


def takes(kernel: KernelSpec, model: Checkpoint, device: Device) -> bool:
    return kernel in able_kernels(matrix_shapes(model), [device])


@pytest.mark.parametrize(
    ("model", "device", "wanted"),
    [
        (checkpoint(), AMPERE, ("llamadeck", "llamadeck")),
        (checkpoint(act_order=True, symmetric=False), AMPERE, ("llamadeck", "llamadeck")),
        (checkpoint(group_size=-1), AMPERE, ("llamadeck", "llamadeck")),
        (checkpoint(), TURING, ("triton", "triton")),
        (checkpoint(act_order=True, symmetric=False), TURING, ("triton", "triton")),
        (checkpoint(group_size=-1), TURING, ("triton", "triton")),
        (checkpoint(bits=8), AMPERE, ("llamadeck", "llamadeck")),
        (checkpoint(bits=8, symmetric=False), AMPERE, ("llamadeck", "llamadeck")),
        (checkpoint(bits=8, act_order=True, group_size=32), AMPERE, ("llamadeck", "llamadeck")),
        (checkpoint(bits=8, symmetric=False), TURING, ("triton", "triton")),
        (checkpoint(group_size=256), AMPERE, ("triton", "triton")),
        (checkpoint(bits=2), AMPERE, ("triton", "triton")),
        (checkpoint(bits=3), AMPERE, ("torch", "torch")),
        (checkpoint(), BARE_TURING, ("torch", "no_c_compiler")),
        (checkpoint(bits=3), BARE_TURING, ("torch", "torch")),
        (checkpoint(bits=8), Device("cuda", (7, 0)), ("triton", "triton")),
        (checkpoint(), Device("cuda", (6, 1)), ("torch", "torch")),
        (checkpoint(), CPU, ("aten_int4", "aten_int4")),
        (checkpoint(act_order=True, symmetric=False, group_size=32), CPU, ("aten_int4", "aten_int4")),
        (checkpoint(group_size=-1), CPU, ("dense", "dense")),
        (checkpoint(group_size=16), CPU, ("dense", "dense")),
        (checkpoint(bits=3), CPU, ("dense", "dense")),
    ],
)
def test_the_fastest_kernel_that_takes_a_model_is_chosen(
    model: Checkpoint, device: Device, wanted: tuple[str, str]
) -> None:
    kernel, reason = choose_kernel(model, device)
    assert (kernel.name, reason) == wanted


def test_without_a_c_compiler_nothing_is_left_to_triton() -> None:
    """Triton builds with one what launches its kernels. The load failed after the verdict had promised it."""
    bare = Device("cuda", (8, 6), has_c_compiler=False)
    assert choose_kernel(checkpoint(bits=2), bare) == (kernel_named("torch"), "no_c_compiler")
    assert choose_kernel(checkpoint(bits=3), bare) == (kernel_named("torch"), "torch")
    assert choose_kernel(checkpoint(), bare) == (kernel_named("llamadeck"), "llamadeck")


@pytest.mark.parametrize(
    ("compilers", "has_headers", "expected"), [((), True, False), (("gcc",), True, True), (("clang",), False, False)]
)
def test_a_c_compiler_counts_with_pythons_headers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, compilers: tuple[str, ...], has_headers: bool, expected: bool
) -> None:
    """Without them a compiler fails at what Triton gives it."""
    if has_headers:
        (tmp_path / "Python.h").touch()
    for name in compilers:
        (tmp_path / name).touch(mode=0o755)
    monkeypatch.setattr(registry.sysconfig, "get_path", lambda *_: str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    assert registry.has_c_compiler() == expected
    monkeypatch.setenv("CC", "gcc")
    assert registry.has_c_compiler() == expected


def test_every_reason_has_a_sentence() -> None:
    reasons = {kernel.name for kernel in KERNELS} | {"no_c_compiler", "asked_for", "leaner", "faster_refused"}
    for language in ("en", "zh"):
        assert {f"kernel.{reason}" for reason in reasons} <= set(catalogue(language))


def test_a_kernel_that_is_asked_for_is_taken(tmp_path: Path) -> None:
    kernel, reason = choose_kernel(checkpoint(), AMPERE, "triton")
    assert (kernel.name, reason) == ("triton", "asked_for")


def test_our_own_kernel_takes_every_layout_of_8_bit() -> None:
    for symmetric, act_order, group_size in itertools.product((False, True), (False, True), (-1, 32, 64, 128)):
        model = checkpoint(8, group_size, act_order, symmetric)
        assert choose_kernel(model, AMPERE) == (LLAMADECK, "llamadeck")


@pytest.mark.parametrize("name", ["aten_int4", "marlin", ""])
def test_a_kernel_that_cannot_run_here_is_refused_with_those_that_can(name: str) -> None:
    with pytest.raises(EngineError) as caught:
        choose_kernel(checkpoint(), AMPERE, name)
    assert caught.value.key == "kernel_refused"
    assert caught.value.params["able"] == "llamadeck, triton, torch"


@pytest.mark.parametrize("device", [AMPERE, CPU], ids=["cuda", "cpu"])
@pytest.mark.parametrize("group_size", [48, 8, 2048, 10**30])
def test_a_group_size_that_nothing_takes_is_refused_before_the_load(device: Device, group_size: int) -> None:
    """On a CPU the written-out form was taken to run everything; gptqmodel then refused in the middle of the load."""
    with pytest.raises(EngineError) as caught:
        choose_kernel(checkpoint(group_size=group_size), device)
    assert caught.value.key == "no_kernel"
    assert str(group_size) in str(caught.value.params["quantization"])


def test_a_last_group_that_is_shorter_needs_a_kernel_that_takes_it() -> None:
    """Falcon's 4544 inputs are 35 and a half groups of 128: most kernels want whole groups, and failed in the load."""
    falcon = checkpoint(shapes=FALCON_7B)
    assert choose_kernel(falcon, AMPERE)[0].name == "triton"
    # On a CPU these matrices alone are dequantized.
    assert choose_kernel(falcon, CPU)[0].name == "aten_int4"
    assert choose_kernel(checkpoint(shapes=FALCON_7B[:1]), CPU)[0].name == "dense"
    assert choose_kernel(checkpoint(group_size=64, shapes=FALCON_7B), AMPERE)[0].name == "llamadeck"


@pytest.mark.parametrize(
    "recipe",
    [Recipe(hidden=96, group_size=64), Recipe(intermediate=96, group_size=64), Recipe(group_size=128)],
    ids=["inputs", "only down_proj", "one group longer than the matrix"],
)
def test_a_model_with_a_shorter_last_group_loads_on_a_cpu(tmp_path: Path, recipe: Recipe) -> None:
    make_checkpoint(tmp_path, recipe)
    model = read_checkpoint(tmp_path)
    kernel, _ = choose_kernel(model, CPU)
    with torch.inference_mode():
        loaded = load_model(
            model, read_shape(model), kernel, DeviceMap((torch.device("cpu"),)), torch.bfloat16, 64, lambda _: None
        )
        assert torch.isfinite(loaded(torch.tensor([[5, 6, 7]])).logits).all()


def test_the_sides_of_every_matrix_are_read_from_its_packed_shape(tmp_path: Path) -> None:
    for bits in (2, 3, 4, 8):
        make_checkpoint(tmp_path / str(bits), Recipe(bits=bits))
        assert sides_of(read_checkpoint(tmp_path / str(bits))) == {(64, 64), (64, 32), (64, 128), (128, 64)}


def test_a_packed_matrix_of_an_odd_shape_is_refused() -> None:
    model = checkpoint()
    model.tensors["odd.qweight"] = TensorInfo("f", "I32", (4, 4, 4), 0, 256)
    with pytest.raises(CheckpointError) as caught:
        choose_kernel(model, AMPERE)
    assert caught.value.key == "remote_no_matrix"


SIDES = (64, 96, 128, 144, 192, 320, 4544, 4672)
COMBINATIONS = [
    checkpoint(bits, group_size, act_order, symmetric, ((rows, columns),))
    for bits, group_size, act_order, symmetric, rows, columns in itertools.product(
        (2, 3, 4, 8), (-1, 16, 32, 64, 128, 1024), (False, True), (False, True), SIDES, SIDES
    )
]


@pytest.mark.parametrize(
    "kernel", [kernel for kernel in KERNELS if kernel != LLAMADECK], ids=lambda kernel: kernel.name
)
def test_no_kernel_is_given_what_its_own_class_refuses(kernel: KernelSpec) -> None:
    device = Device(kernel.device, (9, 0))
    backend = make_backend(kernel, torch.float16, torch.device("cpu"))
    assert isinstance(backend, GptqmodelBackend)
    taken = [model for model in COMBINATIONS if takes(kernel, model, device)]
    assert taken
    for model in taken:
        ((rows, columns),) = sides_of(model)
        quantization = model.quantization
        is_taken, error = backend.linear_class._validate(
            bits=quantization.bits,
            group_size=quantization.group_size,
            desc_act=quantization.is_permuted,
            sym=quantization.is_symmetric,
            in_features=rows,
            out_features=columns,
            pack_dtype=torch.int32,
        )
        assert is_taken, (quantization, rows, columns, error)


def test_every_kernel_has_a_backend() -> None:
    assert set(BACKENDS) == {kernel.name for kernel in KERNELS}


def test_the_engines_own_kernel_is_given_whole_tiles_blocks_and_groups() -> None:
    taken = [model for model in COMBINATIONS if takes(kernel_named("llamadeck"), model, AMPERE)]
    assert taken
    for model in taken:
        ((rows, columns),) = sides_of(model)
        group_size = model.quantization.group_size
        assert columns % TILE == 0 and rows % K_BLOCK == 0
        assert group_size < 0 or (rows % group_size == 0 and group_size % 32 == 0)


def test_what_a_kernel_needs_of_the_gpu_is_asked() -> None:
    for name, capability in (("llamadeck", (7, 5)), ("triton", (6, 1))):
        assert not takes(kernel_named(name), checkpoint(), Device("cuda", capability))
        assert takes(kernel_named(name), checkpoint(), AMPERE)
