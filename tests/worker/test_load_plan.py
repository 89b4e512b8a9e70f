"""Which kernel a load ends up with and where the model then lies, decided without a GPU; and the check of a kernel."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.numpy import load_file, save_file

from core.checkpoint.checkpoint import Checkpoint, read_checkpoint
from core.checkpoint.quantization import MatrixFormat
from core.checkpoint.settled import settle
from core.common.errors import EngineError
from core.engine.protocol import Load
from core.memory.device_memory import DeviceMemory
from core.memory.fit import check_fit
from core.memory.kernels.registry import kernel_named
from core.memory.kernels.spec import Device
from core.memory.load_plan import LoadPlan
from core.memory.matrix_groups import merged_matrices
from core.memory.sizes import MIB
from core.worker import plan_load as opening
from core.worker.kernels.nvrtc import CudaCodeError
from core.worker.model import kernel_check
from core.worker.model.backends.dense import DenseBackend
from core.worker.model.device_map import DeviceMap
from core.worker.model.kernel_check import check_kernel, reference_matrix
from core.worker.plan_load import plan_gpu_load
from tests.support.checkpoints import WEIGHTS, Recipe, make_checkpoint
from tests.support.preparation import Preparation

HOPPER = Device("cuda", (9, 0))
LARGE = DeviceMemory.empty("large", 80_000, (9, 0))
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("checkpoint")
    sizes = {"hidden": 2048, "intermediate": 4096, "num_heads": 16, "num_kv_heads": 16, "num_layers": 6}
    make_checkpoint(folder, Recipe(group_size=128, **sizes))
    return read_checkpoint(folder)


def ready(checkpoint: Checkpoint, cards: list[DeviceMemory], kernel: str | None = None) -> LoadPlan:
    command = Load(checkpoint.folder, 256, 1, kernel)
    return plan_gpu_load(checkpoint, cards, [HOPPER] * len(cards), command, lambda *_: None)


def test_a_kernel_that_fails_its_check_is_not_used(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    preparation = Preparation("llamadeck")
    monkeypatch.setattr(opening, "check_kernels", preparation)
    found = ready(checkpoint, [LARGE])
    assert (found.kernel.name, found.kernel_reason) == ("triton", "faster_refused")
    assert preparation.asked == ["llamadeck", "triton"]


def test_one_that_was_asked_for_is_not_replaced(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "check_kernels", Preparation("llamadeck"))
    with pytest.raises(EngineError) as caught:
        ready(checkpoint, [LARGE], "llamadeck")
    assert caught.value.key == "kernel_wrong"


def test_where_every_kernel_fails_the_load_is_refused(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "check_kernels", Preparation("llamadeck", "triton", "torch"))
    with pytest.raises(EngineError) as caught:
        ready(checkpoint, [LARGE])
    assert caught.value.key == "no_kernel"


def test_a_model_goes_where_it_fits(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine once took the first GPU, full or not."""
    monkeypatch.setattr(opening, "check_kernels", Preparation())
    full = replace(LARGE, others_mib=79_000)
    assert DeviceMap.of_plan(ready(checkpoint, [LARGE, replace(LARGE)])).devices == (torch.device("cuda", 0),)
    assert DeviceMap.of_plan(ready(checkpoint, [full, LARGE])).devices == (torch.device("cuda", 1),)


def test_what_no_gpu_has_room_for_is_split_by_layers(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "check_kernels", Preparation())
    refused = check_fit(checkpoint, [DeviceMemory.empty("tiny", 800, (9, 0))], 256, kernel="llamadeck")
    room_mib = int((refused.plan.total - refused.plan.weights / 3) / MIB)
    small = replace(LARGE, total_mib=room_mib, reserved_mib=0)
    found = ready(checkpoint, [small, replace(small)], "llamadeck")
    num_layers = DeviceMap.of_plan(found).num_layers
    assert DeviceMap.of_plan(found).devices == (torch.device("cuda", 0), torch.device("cuda", 1))
    assert sum(num_layers) == 6 and all(num_layers)
    assert found.is_captured and len(found.memory) == 2
    assert all(plan.total <= room_mib * MIB for plan in found.memory)


def test_each_tensor_has_its_place() -> None:
    first, last = torch.device("cuda", 0), torch.device("cuda", 1)
    places = DeviceMap((first, last), (2, 1))
    names = {
        "model.embed_tokens.weight": first,
        "model.layers.0.mlp.down_proj.qweight": first,
        "model.layers.1.input_layernorm.weight": first,
        "model.layers.2.self_attn.q_proj.scales": last,
        "model.norm.weight": last,
        "lm_head.weight": last,
    }
    assert {name: places.of(name, "model.embed_tokens") for name in names} == names
    alone = DeviceMap((last,))
    assert {alone.of(name, "model.embed_tokens") for name in names} == {last}


@pytest.mark.parametrize("one_order", [True, False])
def test_matrices_are_merged_where_their_inputs_come_in_one_order(tmp_path: Path, one_order: bool) -> None:
    make_checkpoint(tmp_path, Recipe(hidden=256, act_order=True, one_order=one_order))
    groups = merged_matrices(settle(read_checkpoint(tmp_path)), permuted=True)
    names = sorted(sorted(name.rpartition(".")[2] for name in group.sizes) for group in groups)
    assert names == ([["gate_proj", "up_proj"]] * 2 + [["k_proj", "q_proj", "v_proj"]] * 2 if one_order else [])


def test_matrices_that_name_no_order_are_merged(tmp_path: Path) -> None:
    """A load of such a file in act-order once ended with a KeyError."""
    make_checkpoint(tmp_path, Recipe(hidden=256, act_order=True))
    tensors = load_file(tmp_path / WEIGHTS)
    save_file({name: one for name, one in tensors.items() if not name.endswith(".g_idx")}, tmp_path / WEIGHTS)
    assert len(merged_matrices(settle(read_checkpoint(tmp_path)))) == 4


@pytest.mark.parametrize("quantization", [
    MatrixFormat(4, 32, False, True, "gptq"),
    MatrixFormat(4, 128, True, False, "gptq"),
    MatrixFormat(4, 64, False, False, "gptq_v2"),
    MatrixFormat(8, 128, False, True, "gptq"),
    MatrixFormat(3, -1, False, True, "gptq"),
    MatrixFormat(4, 32, False, False, "gptq_words"),
    MatrixFormat(4, 32, False, False, "awq"),
    MatrixFormat(4, 32, True, True, "pack_quantized"),
], ids=lambda one: f"{one.label}, {one.packing}")  # fmt: skip
def test_the_check_holds_a_kernel_against_the_matrix(quantization: MatrixFormat) -> None:
    check_kernel(kernel_named("dense"), quantization, torch.bfloat16, CPU)


def test_a_kernel_that_computes_something_else_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    quantization = MatrixFormat(4, 128, False, True, "gptq")
    tensors, dense = reference_matrix(quantization)
    monkeypatch.setattr(kernel_check, "reference_matrix", lambda _: (tensors, dense.roll(1, 1)))
    with pytest.raises(EngineError) as caught:
        check_kernel(kernel_named("dense"), quantization, torch.bfloat16, CPU)
    assert caught.value.key == "kernel_wrong"


def test_a_kernel_that_cannot_be_run_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise CudaCodeError("pack: CUDA's error 400")

    monkeypatch.setattr(DenseBackend, "make", fail)
    with pytest.raises(EngineError) as caught:
        check_kernel(kernel_named("dense"), MatrixFormat(4, 128, False, True, "gptq"), torch.bfloat16, CPU)
    assert caught.value.key == "kernel_code" and caught.value.params["why"] == "pack: CUDA's error 400"
