"""What a machine's driver can run, read through a stand-in for its library, by nvidia-smi, or not at all."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from core.bootstrap import driver
from core.bootstrap.driver import Driver, cuda_of, has_gpu, read_driver
from tests.support.nvml_standin import Standin

pytest_plugins = ("tests.support.nvml_standin",)

READ = """
import dataclasses, json, pathlib
from core.bootstrap.driver import read_driver
found = read_driver(pathlib.Path({devices!r}))
print(json.dumps(found and dataclasses.asdict(found)))
"""
SMI = """#!/bin/sh
[ "$1" = "--query-gpu=compute_cap" ] && printf '8.6\\n9.0\\n[N/A]\\n' && exit
cat <<'END'
+-----------------------------------------------------------------------------------------+
| NVIDIA-SMI 550.54.15              Driver Version: 550.54.15      CUDA {what}Version: 12.4     |
+-----------------------------------------------------------------------------------------+
END
"""


def read(standin: Standin, devices: str = "/nowhere") -> Driver | None:
    found = json.loads(standin.run(READ.format(devices=devices)))
    if found is None:
        return None
    capabilities = tuple((major, minor) for major, minor in found["capabilities"])
    return Driver(found["cuda"] and tuple(found["cuda"]), found["version"], capabilities)


def test_the_drivers_library_tells_its_cuda_its_version_and_the_gpus(nvml_standin: Standin) -> None:
    assert read(nvml_standin) == Driver((13, 0), "580.159.03", ((8, 6),))
    nvml_standin.use("two_4090")
    found = read(nvml_standin)
    assert found is not None and found.capabilities == ((8, 9), (8, 9))


def test_a_lost_gpu_does_not_hide_what_the_driver_runs(nvml_standin: Standin) -> None:
    nvml_standin.use("lost_gpu")
    found = read(nvml_standin)
    assert found is not None and found.cuda is not None


@pytest.mark.parametrize(
    ("said", "expected"),
    [("535.183.01", (12, 0)), ("580.65.06", (13, 0)), ("470.256.02", (11, 0)), ("390.157", None), ("", None)],
)
def test_a_driver_that_does_not_tell_its_cuda_is_known_by_its_number(
    nvml_standin: Standin, said: str, expected: tuple[int, int] | None
) -> None:
    assert cuda_of(said) == expected
    nvml_standin.write(f"driver = {said or '!3'}\ncuda = !3\n[gpu]\nname = GPU\ncapability = !3\n")
    found = read(nvml_standin)
    assert found is not None
    assert (found.version, found.capabilities) == (said, ())
    assert found.cuda == expected or expected is None


def test_a_driver_without_gpus_is_no_gpu(nvml_standin: Standin) -> None:
    nvml_standin.write("driver = 535.183.01\ncuda = 12020\n")
    assert read(nvml_standin) is None


@pytest.mark.parametrize("scenario", ["driver_not_loaded", "version_mismatch"])
def test_a_driver_that_does_not_start_is_no_gpu_without_a_device_and_a_silent_one_with(
    nvml_standin: Standin, tmp_path: Path, scenario: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    nvml_standin.use(scenario)
    assert read(nvml_standin) is None
    (tmp_path / "nvidia0").touch()
    assert read(nvml_standin, str(tmp_path)) is not None


@pytest.mark.parametrize("what", ["", "UMD "])
def test_nvidia_smi_is_asked_where_the_library_is_missing(
    no_nvml: Standin, tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    smi = tmp_path / "nvidia-smi"
    smi.write_text(SMI.format(what=what))
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert read(no_nvml) == Driver((12, 4), "550.54.15", ((8, 6), (9, 0)))


def test_a_broken_nvidia_smi_still_means_a_gpu(
    no_nvml: Standin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    smi = tmp_path / "nvidia-smi"
    smi.write_text(
        '#!/bin/sh\necho "NVIDIA-SMI has failed because it couldn\'t communicate with the NVIDIA driver."\nexit 9\n'
    )
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    found = read(no_nvml)
    assert found is not None and (found.version, found.capabilities) == ("", ())


CUDA_LIBRARY = """
int cuDriverGetVersion(int *out) { *out = 12080; return 0; }
int cuInit(unsigned flags) { return flags; }
int cuDeviceGetCount(int *out) { *out = 2; return 0; }
int cuDeviceComputeCapability(int *major, int *minor, int device) { *major = 12; *minor = device; return 0; }
"""


def test_a_container_that_has_cudas_library_alone_tells_by_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nvml_library: Path
) -> None:
    """NVIDIA_DRIVER_CAPABILITIES=compute leaves out NVML and nvidia-smi."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    assert compiler is not None  # nvml_library needs one, too
    (tmp_path / "cuda.c").write_text(CUDA_LIBRARY)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", tmp_path / "libcuda.so", tmp_path / "cuda.c"], check=True)
    (tmp_path / "nvidia0").touch()
    monkeypatch.setattr(driver, "NVML", "libnothing-like-nvml.so.1")
    monkeypatch.setattr(driver, "CUDA", str(tmp_path / "libcuda.so"))
    monkeypatch.setenv("PATH", "/nowhere")
    assert read_driver(tmp_path) == Driver((12, 8), "", ((12, 0), (12, 1)))


def test_windows_own_folder_is_searched_under_wsl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root's PATH lacks it there, and the loader may find a stub."""
    monkeypatch.setattr(driver, "WSL", tmp_path)
    monkeypatch.setattr(driver, "NVML", "libnothing-like-nvml.so.1")
    monkeypatch.setenv("PATH", "/nowhere")
    assert not has_gpu(tmp_path / "dev")
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho 'Driver Version: 551.86 CUDA Version: 12.4'\n")
    smi.chmod(0o755)
    assert read_driver(tmp_path / "dev") == Driver((12, 4), "551.86")
