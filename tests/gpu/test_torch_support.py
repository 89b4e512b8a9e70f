"""Why torch cannot use a GPU that the driver lists, and what is said of it: before a load, and by the engine itself."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from core.checkpoint.checkpoint import read_checkpoint
from core.common.errors import DeckError, GpuUseError
from core.engine.protocol import Load
from core.engine.runner import Runner
from core.gpu.cuda_driver import CudaDriver, ask_cuda, ask_cuda_apart, cuda_version
from core.gpu.snapshot import Gpu, GpuSnapshot
from core.gpu.torch_support import (
    InstalledTorch,
    find_gpu_error,
    has_code,
    has_nvidia_gpu,
    installed_torch,
    names_of,
    usable_gpus,
    visible_gpus,
)
from core.memory.device_memory import DeviceMemory
from core.memory.kernels.spec import Device
from core.worker import gpu_check
from core.worker import plan_load as opening
from core.worker.gpu_check import known_torch, look
from core.worker.plan_load import find_devices, plan_gpu_load
from tests.support.checkpoints import Recipe, make_checkpoint
from tests.support.preparation import Preparation

if TYPE_CHECKING:
    from tests.support.nvml_standin import Standin

pytest_plugins = ("tests.support.nvml_standin",)

A40 = Gpu(0, uuid="GPU-a4000000-0001", name="NVIDIA A40", total_mib=46068, free_mib=45000, compute_capability=(8, 6))
OTHER_A40 = replace(A40, index=1, uuid="GPU-a4000000-0002")
MIG = replace(A40, mig_index=0, mig_enabled=True, uuid="MIG-10000000-0001", name="NVIDIA H100 80GB HBM3 MIG 3g.40gb")
# What pip picks by itself, and the builds for older drivers.
CU130 = InstalledTorch("2.11.0+cu130", "13.0")
CU128 = InstalledTorch("2.8.0+cu128", "12.8")
CU126 = InstalledTorch("2.11.0+cu126", "12.6")
CPU_BUILD = InstalledTorch("2.13.0+cpu", None)
WORKS = CudaDriver(0, num_gpus=1, cuda="13.0")
NOWHERE = Path("/nowhere")
LOAD_S = 240.0


def seen(*gpus: Gpu, driver: str = "580.159.03", cuda: str = "13.0") -> GpuSnapshot:
    return GpuSnapshot(0.0, driver, cuda, gpus or (A40,))


def card(name: str, *capability: int) -> Gpu:
    return replace(A40, name=name, compute_capability=(capability[0], capability[1]))


def failed(code: int, name: str = "CUDA_ERROR") -> CudaDriver:
    return CudaDriver(code, name, 0, "13.0")


# What people report of rented and own machines: the situation, and what the sentence must name.
REPORTS: dict[str, tuple[GpuSnapshot, InstalledTorch, CudaDriver | None, dict[str, str], str, tuple[str, ...]]] = {
    "a rented A40, driver 535, and pip's own torch": (
        seen(driver="535.104.05", cuda="12.2"), CU130, None, {}, "gpu_driver_old",
        ("NVIDIA A40", "535.104.05", "12.2", "13.0", "580 or later", "./llamadeck run")),
    "the same, asked of CUDA itself, which starts": (
        seen(driver="535.104.05", cuda="12.2"), CU130, CudaDriver(0, "", 1, "12.2"), {}, "gpu_driver_old", ("12.2",)),
    "a GTX 1050 Ti with driver 470": (
        seen(card("NVIDIA GeForce GTX 1050 Ti", 6, 1), driver="470.223.02", cuda="11.4"), CU126, None, {},
        "gpu_driver_too_old", ("470.223.02", "11.4", "older than 525")),
    "Torch not compiled with CUDA enabled": (
        seen(), CPU_BUILD, None, {}, "gpu_cpu_build", ("2.13.0+cpu", "NVIDIA A40")),
    "CUDA_VISIBLE_DEVICES left empty by a launcher": (
        seen(), CU130, failed(100), {"CUDA_VISIBLE_DEVICES": ""}, "gpu_hidden", ("“”", "--cpu")),
    "CUDA_VISIBLE_DEVICES=-1 in a tutorial": (
        seen(), CU130, None, {"CUDA_VISIBLE_DEVICES": "-1"}, "gpu_hidden", ("“-1”",)),
    "CUDA_VISIBLE_DEVICES=1 on a machine with one GPU": (
        seen(), CU130, failed(100), {"CUDA_VISIBLE_DEVICES": "1"}, "gpu_hidden", ("“1”", "./llamadeck gpus")),
    "an image for CUDA 12 over another driver: error 803": (
        seen(), CU128, failed(803), {}, "gpu_cuda_mismatch", ("803", "580.159.03", "cuda-compat")),
    "a GTX 1650 and an image with cuda-compat: error 804": (
        seen(card("NVIDIA GeForce GTX 1650", 7, 5)), CU128, failed(804), {}, "gpu_cuda_compat",
        ("804", "LD_LIBRARY_PATH")),
    "an H200 whose fabric manager does not run: error 802": (
        seen(card("NVIDIA H200", 9, 0), driver="580.126.09"), CU130, failed(802), {}, "gpu_cuda_not_ready",
        ("802", "580.126.09", "fabricmanager")),
    "a laptop after a suspend: error 999": (
        seen(), CU130, failed(999), {}, "gpu_cuda_unknown", ("999", "nvidia_uvm", "/dev/nvidia-uvm")),
    "a container with the driver's tools alone": (
        seen(), CU130, CudaDriver(None), {}, "gpu_no_libcuda", ("libcuda.so.1", "NVIDIA_DRIVER_CAPABILITIES")),
    "the stub of a CUDA image in LD_LIBRARY_PATH": (seen(), CU130, failed(34), {}, "gpu_cuda_stub", ("34", "stubs")),
    "a container that lost its devices": (
        seen(), CU130, failed(100), {}, "gpu_cuda_none", ("NVIDIA A40", "--gpus all")),
    "a GPU with errors in its memory": (
        seen(), CU130, failed(214, "CUDA_ERROR_ECC_UNCORRECTABLE"), {}, "gpu_cuda_failed",
        ("214", "CUDA_ERROR_ECC_UNCORRECTABLE", "nvidia-smi")),
    "a V100 with torch for CUDA 13": (
        seen(card("Tesla V100-SXM2-32GB", 7, 0)), CU130, None, {}, "gpu_older_than_torch",
        ("7.0", "2.11.0+cu130", "CUDA 12.6")),
    "a GTX 1050 with torch 2.8 for CUDA 12.8": (
        seen(card("NVIDIA GeForce GTX 1050", 6, 1), driver="550.163.01", cuda="12.4"),
        replace(CU128, architectures=("sm_70", "sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120")),
        CudaDriver(0, "", 1, "12.4"), {}, "gpu_older_than_torch", ("6.1", "2.8.0+cu128")),
    "an RTX 5090 with a host's torch for CUDA 12.4": (
        seen(card("NVIDIA GeForce RTX 5090", 12, 0), driver="570.124.06", cuda="12.8"),
        InstalledTorch("2.8.0+cu124", "12.4"), None, {}, "gpu_newer_than_torch", ("12.0", "12.8", "2.8.0+cu124")),
    "an A100 with MIG on and nothing cut": (
        seen(replace(A40, error=DeckError("gpu_mig_empty", index=0, name="NVIDIA A100"))), CU130, failed(100), {},
        "gpu_mig_empty", ("MIG", "nvidia-smi mig -cgi")),
    "a GPU that fell off the bus": (
        seen(replace(A40, error=DeckError("gpu_lost", index=0, name="NVIDIA A40"))), CU130, None, {}, "gpu_lost",
        ("bus", "Restart")),
    "a pod on a host with driver 570, whose owner cannot update it": (
        seen(driver="570.195.03", cuda="12.8"), InstalledTorch("2.9.1+cu130", "13.0"), None, {}, "gpu_driver_old",
        ("570.195.03", "580", "where you cannot")),
    "three GPUs under WSL: error 2": (
        seen(driver="526.98", cuda="12.0"), CU126, replace(failed(2, "CUDA_ERROR_OUT_OF_MEMORY"), cuda="12.0"), {},
        "gpu_cuda_failed", ("2", "CUDA_ERROR_OUT_OF_MEMORY")),
    "a driver that was updated beneath its module": (
        GpuSnapshot(0.0, error=DeckError("gpu_version_mismatch")), CU130, None, {}, "gpu_version_mismatch",
        ("Restart the machine",)),
}  # fmt: skip


@pytest.mark.parametrize("report", REPORTS.values(), ids=REPORTS)
def test_what_people_report_has_a_sentence_of_its_own(report: tuple[Any, ...]) -> None:
    snapshot, installed, driver, environment, key, named = report
    error = find_gpu_error(snapshot, installed, driver, environment, NOWHERE)
    assert error is not None and error.key == key
    for language in ("en", "zh"):
        sentence = error.sentence(language)
        assert "{" not in sentence and "?" not in sentence and "？" not in sentence
    assert [word for word in named if word not in error.sentence("en")] == []


FINE: dict[str, tuple[GpuSnapshot, InstalledTorch | None, CudaDriver | None, dict[str, str]]] = {
    "driver 535 with a build for CUDA 12.6": (seen(driver="535.104.05", cuda="12.2"), CU126, None, {}),
    "driver 535 with a library of cuda-compat, and CUDA says so": (
        seen(driver="535.104.05", cuda="12.2"), CU130, WORKS, {}),
    "a name for a GPU that only CUDA understands": (seen(), CU130, WORKS, {"CUDA_VISIBLE_DEVICES": "GPU-elsewhere"}),
    "an RTX 3060 with code for 8.6": (seen(), replace(CU130, architectures=("sm_86",)), WORKS, {}),
    "an RTX 4090 with code for 8.6": (
        seen(card("NVIDIA GeForce RTX 4090", 8, 9)), replace(CU130, architectures=("sm_75", "sm_86")), WORKS, {}),
    "a GPU newer than all, with code to compile": (
        seen(card("NVIDIA GB300", 13, 0)), replace(CU130, architectures=("sm_90", "compute_120")), WORKS, {}),
    "one lost GPU beside a good one": (
        seen(replace(A40, error=DeckError("gpu_lost", index=0, name="x")), OTHER_A40), CU130, None, {}),
    "no GPU": (GpuSnapshot(0.0, error=DeckError("gpu_none_found")), CPU_BUILD, None, {}),
    "no driver": (GpuSnapshot(0.0, error=DeckError("gpu_no_driver")), CPU_BUILD, None, {"CUDA_VISIBLE_DEVICES": ""}),
    "a driver that does not tell its CUDA": (seen(cuda=""), CU130, None, {}),
    "no torch yet": (seen(), None, None, {}),
}  # fmt: skip


@pytest.mark.parametrize("case", FINE.values(), ids=FINE)
def test_what_may_work_is_not_called_broken(case: tuple[Any, ...]) -> None:
    snapshot, installed, driver, environment = case
    assert find_gpu_error(snapshot, installed, driver, environment, NOWHERE) is None


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (None, [0, 1]), ("0", [0]), ("1,0", [1, 0]), ("", []), ("-1", []), ("0,-1,1", [0]), ("7", []), ("0,0", [0]),
        ("GPU-a4000000-0002", [1]), ("gpu-a4", []), ("GPU-", []), ("NoDevFiles", []), (" 1 ", [1]),
    ],
)  # fmt: skip
def test_cuda_shows_gpus_up_to_the_first_name_that_is_none(value: str | None, wanted: list[int]) -> None:
    environment = {} if value is None else {"CUDA_VISIBLE_DEVICES": value}
    assert [gpu.index for gpu in visible_gpus([A40, OTHER_A40], environment)] == wanted


def test_a_process_is_shown_one_instance_of_mig() -> None:
    """Three instances were once reckoned with as three GPUs that a model can be split over."""
    uncut = replace(A40, index=1, mig_enabled=True, error=DeckError("gpu_mig_empty", index=1, name="NVIDIA A100"))
    others = [replace(MIG, mig_index=index, uuid=f"MIG-10000000-000{index + 1}") for index in (1, 2)]
    assert visible_gpus([uncut, MIG, *others], {}) == [MIG]
    assert visible_gpus([MIG, *others], {"CUDA_VISIBLE_DEVICES": "MIG-10000000-0003"}) == [others[1]]
    assert visible_gpus([MIG, OTHER_A40], {}) == [OTHER_A40]


@pytest.mark.parametrize("value", ["MIG-10000000-0001", "0", "MIG-GPU-10000000-0000/1/0"])
def test_an_instance_of_mig_is_named_by_itself_or_by_its_gpu(value: str) -> None:
    assert visible_gpus([MIG], {"CUDA_VISIBLE_DEVICES": value}) == [MIG]


def test_only_what_torch_can_use_is_reckoned_with(monkeypatch: pytest.MonkeyPatch) -> None:
    old, lost = card("Tesla P40", 6, 1), replace(OTHER_A40, error=DeckError("gpu_lost", index=1, name="x"))
    assert usable_gpus([A40, old, lost, replace(A40, total_mib=None)], CU130) == [A40]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert usable_gpus([A40, OTHER_A40], CU130) == [OTHER_A40]


@pytest.mark.parametrize(
    ("architectures", "capability", "wanted"),
    [
        (("sm_80",), (8, 6), True), (("sm_86",), (8, 0), False), (("sm_90a",), (9, 0), True),
        (("sm_90a",), (9, 1), False), (("compute_70",), (7, 5), True), (("compute_90",), (8, 6), False),
        (("sm_120", "nonsense"), (12, 1), True), (("sm_100",), (12, 0), False), (("sm_103f",), (10, 3), True),
    ],
)  # fmt: skip
def test_code_runs_on_its_own_generation_and_what_is_compiled_later_on_newer_ones(
    architectures: tuple[str, ...], capability: tuple[int, int], wanted: bool
) -> None:
    assert has_code(replace(CU130, architectures=architectures), capability) is wanted


def test_names_are_counted() -> None:
    assert names_of([A40, OTHER_A40, card("Tesla P40", 6, 1)]) == "2 × NVIDIA A40 + Tesla P40"


def test_a_closed_device_is_named_with_whom_it_belongs_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of a user: one for whom the system refuses a file, as it does not for root."""
    for name in ("nvidiactl", "nvidia-uvm", "nvidia0"):
        (tmp_path / name).touch()
        (tmp_path / name).chmod(0o660)
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "nvidia-uvm")
    error = find_gpu_error(seen(), CU130, failed(304), {}, tmp_path)
    assert error is not None and error.key == "gpu_device_closed"
    assert str(tmp_path / "nvidia-uvm") in str(error) and "mode 660" in str(error)
    # Where CUDA starts all the same, and for a file that the driver makes when it is needed, there is nothing to say.
    assert find_gpu_error(seen(), CU130, WORKS, {}, tmp_path) is None
    (tmp_path / "nvidia-uvm").unlink()
    assert find_gpu_error(seen(), CU130, None, {}, tmp_path) is None


def test_a_card_without_its_driver_is_seen_on_the_bus(tmp_path: Path) -> None:
    for name, vendor, kind in (("a", "0x8086", "0x030000"), ("b", "0x10de", "0x040300")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "vendor").write_text(vendor + "\n")
        (tmp_path / name / "class").write_text(kind + "\n")
    assert not has_nvidia_gpu(tmp_path) and not has_nvidia_gpu(tmp_path / "nothing")
    (tmp_path / "b" / "class").write_text("0x030200\n")
    assert has_nvidia_gpu(tmp_path)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("__version__ = '2.11.0+cu130'\ncuda: Optional[str] = '13.0'\n", InstalledTorch("2.11.0+cu130", "13.0")),
        ('__version__ = "2.9.1"\ncuda = "12.8"\nhip = None\n', InstalledTorch("2.9.1", "12.8")),
        ("__version__ = '2.13.0+cpu'\ncuda: Optional[str] = None\n", InstalledTorch("2.13.0+cpu", None)),
        ("__version__ = '2.9.0+rocm6.4'\ncuda = None\nhip = '6.4'\n", InstalledTorch("2.9.0+rocm6.4", None)),
        ("", None),
    ],
)
def test_the_installed_torch_is_read_and_not_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, wanted: InstalledTorch | None
) -> None:
    folder = tmp_path / "torch"
    folder.mkdir()
    (folder / "__init__.py").write_text("raise AssertionError('imported')")
    (folder / "version.py").write_text(text)
    monkeypatch.delitem(__import__("sys").modules, "torch")
    monkeypatch.syspath_prepend(tmp_path)
    assert installed_torch() == wanted


def test_without_a_driver_cuda_says_that_it_is_not_there() -> None:
    """Here and in a process of its own the answer is the same, whatever this machine has."""
    assert ask_cuda_apart() == ask_cuda()
    assert cuda_version(12020) == "12.2" and cuda_version(0) is None and cuda_version(None) is None


# The engine itself --------------------------------------------------------------------------------------------------


@pytest.fixture
def cuda_torch(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """This process's torch says that it was built for CUDA 13."""
    monkeypatch.setattr(torch, "__version__", "2.13.0+cu130")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    flags = "sm_75 sm_80 sm_86 sm_90 sm_100 sm_120 compute_120"
    monkeypatch.setattr(torch._C, "_cuda_getArchFlags", lambda: flags, raising=False)
    return monkeypatch


def show(monkeypatch: pytest.MonkeyPatch, *capabilities: tuple[int, int]) -> None:
    """Let torch see GPUs of these compute capabilities."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(capabilities))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capabilities[index])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"GPU {index}")


@pytest.mark.parametrize(
    ("driver", "key"),
    [(failed(999), "gpu_cuda_unknown"), (CudaDriver(0, "", 1, "12.2"), "gpu_driver_old"), (WORKS, "gpu_unseen")],
)
def test_where_torch_shows_no_gpu_the_load_is_refused_with_the_reason(
    cuda_torch: pytest.MonkeyPatch, driver: CudaDriver, key: str
) -> None:
    show(cuda_torch)
    cuda_torch.setattr(gpu_check, "ask_cuda", lambda: driver)
    with pytest.raises(GpuUseError) as caught:
        find_devices(seen(driver="535.104.05", cuda="12.2") if key == "gpu_driver_old" else seen())
    assert caught.value.key == key


def test_a_gpu_that_torch_has_no_code_for_refuses_the_load(cuda_torch: pytest.MonkeyPatch) -> None:
    """CUDA shows it, and the first kernel would end with "no kernel image is available"."""
    show(cuda_torch, (6, 1))
    with pytest.raises(GpuUseError) as caught:
        find_devices(seen(card("Tesla P40", 6, 1)))
    assert caught.value.key == "gpu_older_than_torch" and "6.1" in str(caught.value)


def test_a_model_goes_to_a_gpu_that_torch_has_code_for(tmp_path: Path, cuda_torch: pytest.MonkeyPatch) -> None:
    show(cuda_torch, (6, 1), (8, 6))
    devices = find_devices(seen())
    assert [device.has_code for device in devices] == [False, True]
    checkpoint = read_checkpoint(make_checkpoint_folder(tmp_path))
    cuda_torch.setattr(opening, "check_kernels", Preparation())
    cards = [DeviceMemory.empty("old", 80_000, (6, 1)), DeviceMemory.empty("new", 24_000, (8, 6))]
    ready = plan_gpu_load(checkpoint, cards, devices, Load(tmp_path, 256, 1), lambda *_: None)
    assert [device.index for device in ready.devices] == [1]


def test_without_a_gpu_the_cpu_is_the_place(cuda_torch: pytest.MonkeyPatch) -> None:
    show(cuda_torch)
    assert find_devices(GpuSnapshot(0.0, error=DeckError("gpu_none_found"))) == [Device("cpu")]


def test_a_warm_worker_says_what_a_load_would_find_and_leaves_cuda_alone(cuda_torch: pytest.MonkeyPatch) -> None:
    show(cuda_torch)
    cuda_torch.setattr(gpu_check, "read_snapshot", seen)
    cuda_torch.setattr(gpu_check, "ask_cuda_apart", lambda: failed(802))
    cuda_torch.setattr(gpu_check, "ask_cuda", lambda: pytest.fail("CUDA was started"))
    prepared = look()
    assert prepared.torch == known_torch() and "sm_86" in (known_torch().architectures or ())
    assert prepared.gpu_error is not None and prepared.gpu_error.key == "gpu_cuda_not_ready"
    cuda_torch.setattr(gpu_check, "ask_cuda_apart", lambda: WORKS)
    assert look().gpu_error is None


def make_checkpoint_folder(folder: Path) -> Path:
    make_checkpoint(folder, Recipe(group_size=128, hidden=256, intermediate=512))
    return folder


@pytest.fixture
def runner() -> Iterator[Runner]:
    runner = Runner()
    yield runner
    runner.close()


@pytest.mark.skipif(torch.version.cuda is not None, reason="is about the CPU's build of torch")
def test_a_real_load_beside_a_gpu_is_refused_and_goes_to_the_cpu_by_choice(
    runner: Runner, tmp_path: Path, nvml_standin: Standin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It once said "Successfully loaded" on "CPU (1)", on a card that is rented by the hour."""
    nvml_standin.use("driver_535")
    nvml_standin.use_real_torch()
    for name, value in nvml_standin.environment().items():
        monkeypatch.setenv(name, value)
    make_checkpoint(tmp_path / "model")
    runner.warm_worker.start(idle_s=0.0)
    assert runner.warm_worker.wait(LOAD_S)
    told = runner.gpu_report
    assert told is not None and told.gpu_error is not None and told.gpu_error.key == "gpu_cpu_build"
    runner.load(tmp_path / "model")
    state = runner.wait_while_loading(LOAD_S)
    assert state.phase == "failed" and isinstance(state.error, GpuUseError)
    assert torch.__version__ in str(state.error) and "NVIDIA A40" in str(state.error)
    runner.load(tmp_path / "model", on_cpu=True)
    state = runner.wait_while_loading(LOAD_S)
    assert state.phase == "ready" and state.facts is not None
    assert state.facts.device.startswith("CPU")
