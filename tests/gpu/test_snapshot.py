"""GPU snapshots, read by the real nvidia-ml-py from a stand-in library in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from core.gpu.snapshot import process_name, short_command

if TYPE_CHECKING:
    from tests.support.nvml_standin import Probe, Standin

pytest_plugins = ("tests.support.nvml_standin",)


def test_an_idle_gpu_is_read_whole(probe: Probe) -> None:
    snapshot = probe.snapshot()
    assert (snapshot["driver_version"], snapshot["cuda_version"]) == ("580.159.03", "13.0")
    assert snapshot["error"] is None
    assert snapshot["gpus"] == [
        {
            "index": 0,
            "mig_index": None,
            "uuid": "GPU-a4000000-0000-4000-8000-000000000001",
            "name": "NVIDIA A40",
            "total_mib": 46068,
            "free_mib": 45458,
            "used_mib": 0,
            "reserved_mib": 610,
            "utilization_percent": 0,
            "temperature_c": 31,
            "power_w": 22.84,
            "power_limit_w": 300.0,
            "sm_clock_mhz": 210,
            "memory_clock_mhz": 405,
            "fan_percent": 0,
            "pcie_generation": 1,
            "pcie_width": 16,
            "ecc_enabled": True,
            "mig_enabled": None,
            "compute_capability": [8, 6],
            "processes": [],
            "error": None,
        }
    ]


def test_two_gpus_stand_in_nvmls_order_with_their_processes(nvml_standin: Standin, probe: Probe) -> None:
    nvml_standin.use("two_4090")
    desktop, full = probe.snapshot()["gpus"]
    assert [desktop["index"], full["index"]] == [0, 1]
    assert (full["total_mib"], full["used_mib"], full["free_mib"]) == (24564, 23551, 500)
    listed = [(entry["pid"], entry["used_mib"], entry["kind"]) for entry in desktop["processes"]]
    assert listed == [(999999902, 211, "both"), (999999901, 190, "graphics")]
    listed = [(entry["pid"], entry["used_mib"], entry["kind"]) for entry in full["processes"]]
    assert listed == [
        (999999903, 18200, "compute"),
        (999999904, 5100, "compute"),
        (999999905, None, "compute"),
    ]


def test_a_process_that_runs_here_has_its_name(nvml_standin: Standin, probe: Probe) -> None:
    nvml_standin.write(f"[gpu]\nname = NVIDIA A40\ntotal = 46068\ncompute = {os.getpid()}:900 999999901:7\n")
    ours, gone = probe.snapshot()["gpus"][0]["processes"]
    assert ours["name"] == process_name(os.getpid())
    assert gone["name"] is None


def test_what_a_gpu_does_not_support_is_none(nvml_standin: Standin, probe: Probe) -> None:
    nvml_standin.use("half_supported")
    (gpu,) = probe.snapshot()["gpus"]
    answered = {key for key, value in gpu.items() if value not in (None, [])}
    assert gpu["error"] is None
    assert answered == {
        *("index", "uuid", "name", "total_mib", "free_mib", "used_mib"),
        *("temperature_c", "pcie_generation", "compute_capability"),
    }


def test_without_the_second_memory_call_the_reserve_counts_as_used(nvml_standin: Standin, probe: Probe) -> None:
    nvml_standin.use("half_supported")
    (gpu,) = probe.snapshot()["gpus"]
    assert (gpu["used_mib"], gpu["free_mib"], gpu["reserved_mib"]) == (200, 24251, None)


def test_a_gpu_without_memory_of_its_own_still_shows(nvml_standin: Standin, probe: Probe) -> None:
    nvml_standin.write("[gpu]\nname = NVIDIA GB10\ntotal = !3\ntemperature = 40\n")
    (gpu,) = probe.snapshot()["gpus"]
    assert (gpu["name"], gpu["total_mib"], gpu["temperature_c"], gpu["error"]) == (
        "NVIDIA GB10",
        None,
        40,
        None,
    )


def test_broken_gpus_say_so_and_the_others_still_show(nvml_standin: Standin, probe: Probe) -> None:
    nvml_standin.use("lost_gpu")
    snapshot = probe.snapshot()
    lost, unpowered, well = snapshot["gpus"]
    assert snapshot["error"] is None
    assert lost["error"] == {"key": "gpu_lost", "params": {"index": 0, "name": "NVIDIA GPU"}}
    assert unpowered["error"]["key"] == "gpu_no_power"
    assert unpowered["name"] == "NVIDIA GeForce RTX 3090"
    assert (well["index"], well["free_mib"], well["error"]) == (2, 23100, None)


@pytest.mark.parametrize(
    ("code", "key"),
    [(4, "gpu_device_no_permission"), (16, "gpu_reset_required"), (999, "gpu_unreadable")],
)
def test_a_gpu_that_cannot_be_opened_says_why(nvml_standin: Standin, probe: Probe, code: int, key: str) -> None:
    nvml_standin.write(f"[gpu]\nhandle = !{code}\n")
    (gpu,) = probe.snapshot()["gpus"]
    assert gpu["error"]["key"] == key


def test_a_gpu_that_is_lost_while_we_watch_keeps_its_name(nvml_standin: Standin, probe: Probe) -> None:
    assert probe.snapshot()["gpus"][0]["temperature_c"] == 31
    nvml_standin.write("[gpu]\nhandle = !15\n")
    (gpu,) = probe.snapshot()["gpus"]
    assert gpu["error"] == {"key": "gpu_lost", "params": {"index": 0, "name": "NVIDIA A40"}}


def test_a_name_of_stray_bytes_is_none(nvml_standin: Standin, probe: Probe) -> None:
    """Under WSL some drivers named the GPU in bytes that are no UTF-8, and nvidia-ml-py raised for it."""
    nvml_standin.write("[gpu]\nname = \xf8\xff\ntotal = 8192\n", encoding="latin-1")
    (gpu,) = probe.snapshot()["gpus"]
    assert (gpu["name"], gpu["total_mib"]) == (None, 8192)


def test_mig_instances_stand_in_place_of_their_gpu(nvml_standin: Standin, probe: Probe) -> None:
    nvml_standin.use("mig")
    *instances, uncut = probe.snapshot()["gpus"]
    assert [(gpu["index"], gpu["mig_index"], gpu["total_mib"], gpu["free_mib"]) for gpu in instances] == [
        (0, 0, 40448, 28396),
        (0, 1, 20096, 20079),
        (0, 2, 9984, 9975),
    ]
    assert [gpu["name"].split()[-1] for gpu in instances] == ["3g.40gb", "2g.20gb", "1g.10gb"]
    assert {gpu["uuid"][:4] for gpu in instances} == {"MIG-"}
    assert {gpu["temperature_c"] for gpu in instances} == {37}
    assert [entry["pid"] for entry in instances[0]["processes"]] == [999999911]
    assert (uncut["index"], uncut["error"]["key"]) == (1, "gpu_mig_empty")


def test_readings_follow_the_gpu(nvml_standin: Standin, probe: Probe) -> None:
    before = probe.snapshot()["gpus"]
    nvml_standin.use("two_4090")
    after = probe.snapshot()["gpus"]
    assert [gpu["name"] for gpu in before] == ["NVIDIA A40"]
    assert [gpu["utilization_percent"] for gpu in after] == [4, 97]


@pytest.mark.parametrize(
    ("scenario", "key"),
    [
        ("init_rc = 9", "gpu_driver_not_loaded"),
        ("init_rc = 18", "gpu_version_mismatch"),
        ("init_rc = 4", "gpu_no_permission"),
        ("init_rc = 999", "gpu_driver_failed"),
        ("driver = 580.159.03", "gpu_none_found"),
    ],
)
def test_a_driver_that_does_not_start_is_said(nvml_standin: Standin, probe: Probe, scenario: str, key: str) -> None:
    nvml_standin.write(scenario)
    snapshot = probe.snapshot()
    assert (snapshot["gpus"], snapshot["error"]["key"]) == ([], key)


@pytest.mark.parametrize("name", ["driver_not_loaded", "version_mismatch"])
def test_a_driver_that_comes_up_later_is_found(nvml_standin: Standin, probe: Probe, name: str) -> None:
    nvml_standin.use(name)
    assert probe.snapshot()["gpus"] == []
    nvml_standin.use("idle_a40")
    assert [gpu["name"] for gpu in probe.snapshot()["gpus"]] == ["NVIDIA A40"]


def test_a_driver_that_stops_answering_is_started_anew(nvml_standin: Standin, probe: Probe) -> None:
    assert len(probe.snapshot()["gpus"]) == 1
    nvml_standin.write("count = !1\ninit_rc = 9\n")
    assert probe.snapshot()["error"]["key"] == "gpu_driver_failed"
    assert probe.snapshot()["error"]["key"] == "gpu_driver_not_loaded"
    nvml_standin.use("idle_a40")
    assert len(probe.snapshot()["gpus"]) == 1
    assert probe.close() == 0


def test_no_driver_is_said(no_nvml: Standin, start_probe: Callable[[Mapping[str, str]], Probe]) -> None:
    probe = start_probe(no_nvml.environment())
    snapshot = probe.snapshot()
    assert (snapshot["gpus"], snapshot["error"]["key"]) == ([], "gpu_no_driver")
    assert probe.close() == 0


@pytest.mark.parametrize(
    ("module", "key"),
    [("raise ImportError('no module')", "gpu_package_missing"), ("nvmlInit = None", "gpu_package_wrong")],
)
def test_a_missing_or_foreign_pynvml_module_is_said(
    nvml_standin: Standin,
    start_probe: Callable[[Mapping[str, str]], Probe],
    tmp_path: Path,
    module: str,
    key: str,
) -> None:
    (tmp_path / "pynvml.py").write_text(module, "utf-8")
    probe = start_probe(nvml_standin.environment() | {"PYTHONPATH": str(tmp_path)})
    snapshot = probe.snapshot()
    assert (snapshot["gpus"], snapshot["error"]["key"]) == ([], key)
    assert probe.close() == 0


def test_many_threads_read_the_same(nvml_standin: Standin) -> None:
    code = (
        "from concurrent.futures import ThreadPoolExecutor\n"
        "from core.gpu.snapshot import read_snapshot\n"
        "with ThreadPoolExecutor(8) as pool:\n"
        "    snapshots = list(pool.map(lambda _: read_snapshot(), range(64)))\n"
        "print(len({(snapshot.error, snapshot.gpus) for snapshot in snapshots}), snapshots[0].gpus[0].name)\n"
    )
    assert nvml_standin.run(code) == "1 NVIDIA A40"


@pytest.mark.parametrize(
    ("command", "name"),
    [
        (
            "/usr/bin/python3.12 -m vllm.entrypoints.openai.api_server --api-key secret",
            "python3.12 -m vllm.entrypoints.openai.api_server",
        ),
        ("python -c from_multiprocessing_spawn", "python"),
        ("python", "python"),
        ("python -m", "python"),
        ("/home/me/train.py --token secret", "train.py"),
        ("", ""),
    ],
)
def test_a_command_is_told_in_short_and_without_its_secrets(command: str, name: str) -> None:
    assert short_command(command.split(" ")) == name


def test_a_command_in_one_word_is_cut_at_its_options() -> None:
    """Chrome writes its whole command line into the first word."""
    assert short_command(["/opt/google/chrome --type=gpu-process --dir=/a/b", ""]) == "chrome"


def test_a_process_is_named_in_printable_letters(tmp_path: Path) -> None:
    script = tmp_path / "tra\x1bin.py"
    script.write_text("print(flush=True)\ninput()\n", "utf-8")
    with subprocess.Popen(
        ["python3", str(script)], executable=sys.executable, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout
        process.stdout.readline()
        assert process_name(process.pid) == "python3 train.py"
        process.communicate(b"\n")
