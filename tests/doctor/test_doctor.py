"""The doctor: each check on a machine that is well and on one that is not, and the command as it is typed."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from cli.doctor import line
from core.common.i18n import LANGUAGES
from core.common.paths import ROOT
from core.doctor import environment_checks as environment
from core.doctor import machine_checks as machine
from core.doctor import security_checks as security
from core.doctor.check_result import CheckResult
from core.gpu.cuda_driver import CudaDriver
from core.gpu.snapshot import Gpu, GpuSnapshot, read_snapshot
from core.standby.settings import COMMAND, set_idle_minutes
from tests.support.dashboard import free_port


def verdict(result: CheckResult) -> tuple[str, str]:
    """The status and the sentence's key; the sentence is there in both languages, with all its values."""
    for language in LANGUAGES:
        assert "{" not in result.text(language) and result.text(language) != result.key
    return result.status, result.key.partition(".")[2]


def fake_python(folder: Path, script: str) -> str:
    path = folder / "python"
    path.write_text(f"#!/bin/sh\n{script}\n", "utf-8")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(("version", "expected"), [((3, 11), ("ok", "python_ok")), ((3, 10), ("fail", "python_old"))])
def test_python(version: tuple[int, int], expected: tuple[str, str]) -> None:
    assert verdict(machine.check_python(version)) == expected


def test_a_foreign_venv_is_said(tmp_path: Path) -> None:
    assert verdict(machine.check_venv(tmp_path)) == ("warn", "venv_other")


def test_a_driver_and_none() -> None:
    gpu = Gpu(index=0, uuid="x", name="NVIDIA A40")
    assert verdict(machine.check_driver(GpuSnapshot(0.0, "580.1", "13.0", (gpu,)))) == ("ok", "driver_ok")
    assert verdict(machine.check_driver(GpuSnapshot(0.0))) == ("warn", "gpu_none_found")


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ('["2.13.0", "12.8", false]', ("ok", "torch_cpu")),
        ('["2.13.0+cpu", null, false]', ("ok", "torch_cpu")),
        ("nonsense", ("fail", "torch_broken")),
        ("", ("fail", "torch_broken")),
    ],
)
def test_torch_without_a_gpu(tmp_path: Path, said: str, expected: tuple[str, str]) -> None:
    assert verdict(machine.check_torch(GpuSnapshot(0.0), fake_python(tmp_path, f"echo '{said}'"))) == expected


@pytest.mark.parametrize(
    ("said", "driver", "expected"),
    [
        ('["2.13.0+cpu", null, false]', CudaDriver(0, "", 1, "12.2"), ("fail", "gpu_cpu_build")),
        ('["2.13.0+cu130", "13.0", false]', CudaDriver(0, "", 1, "12.2"), ("fail", "gpu_driver_old")),
        ('["2.13.0+cu126", "12.6", false]', CudaDriver(803), ("fail", "gpu_cuda_mismatch")),
        ('["2.13.0+cu126", "12.6", false]', CudaDriver(0, "", 1, "12.2"), ("fail", "torch_no_gpu")),
        ('["2.8.0+cu128", "12.8", true, "sm_90", "sm_120"]', None, ("fail", "gpu_older_than_torch")),
        # Whether the driver is too old, torch knows best.
        ('["2.13.0+cu130", "13.0", true, "sm_80"]', None, ("ok", "torch_gpu")),
    ],
)
def test_why_torch_cannot_use_a_gpu_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, driver: CudaDriver | None, expected: tuple[str, str]
) -> None:
    gpu = Gpu(0, name="NVIDIA A40", total_mib=46068, compute_capability=(8, 6))
    monkeypatch.setattr(machine, "ask_cuda_apart", lambda: driver)
    python = fake_python(tmp_path, f"echo '{said}'")
    assert verdict(machine.check_torch(GpuSnapshot(0.0, "535.1", "12.2", (gpu,)), python)) == expected


def test_a_torch_that_cannot_be_imported_is_quoted(tmp_path: Path) -> None:
    python = fake_python(tmp_path, "echo 'Traceback' >&2; echo 'ImportError: libcudart.so.12' >&2; exit 1")
    result = machine.check_torch(GpuSnapshot(0.0), python)
    assert verdict(result) == ("fail", "torch_broken") and "libcudart" in result.text("en")
    assert verdict(machine.check_torch(GpuSnapshot(0.0), "/no/such/python")) == ("fail", "torch_broken")


@pytest.mark.parametrize(
    ("has_gpu", "is_there", "key"),
    [(False, False, "compiler_not_needed"), (True, False, "compiler_none"), (True, True, "compiler_ok")],
)
def test_a_compiler_is_told_of_and_never_asked_for(has_gpu: bool, is_there: bool, key: str) -> None:
    assert verdict(machine.check_compiler(has_gpu, is_there)) == ("ok", key)


def test_kernels(tmp_path: Path) -> None:
    assert verdict(machine.check_kernels(False, tmp_path)) == ("ok", "kernels_not_needed")
    assert verdict(machine.check_kernels(True, tmp_path / "nothing")) == ("ok", "kernels_none")
    (tmp_path / "0a1b.cubin").touch()
    assert verdict(machine.check_kernels(True, tmp_path)) == ("ok", "kernels_ok")


def test_disks(tmp_path: Path) -> None:
    check = environment.check_disk
    assert verdict(check("data", tmp_path / "not" / "yet", "X", 1)) == ("ok", "disk_ok")
    assert verdict(check("data", tmp_path, "X", 2**62)) == ("warn", "disk_low")
    assert verdict(check("data", Path("/proc/here"), "X", 1)) == ("fail", "disk_readonly")


@pytest.mark.parametrize(("kib", "expected"), [(8 * 2**20, ("ok", "memory_ok")), (2**20, ("warn", "memory_low"))])
def test_memory(kib: int, expected: tuple[str, str]) -> None:
    assert verdict(environment.check_memory(kib * 1024)) == expected


def test_ports() -> None:
    assert verdict(environment.check_port("127.0.0.1", free_port())) == ("ok", "port_free")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        taken.settimeout(0)
        taken.listen(0)
        result = environment.check_port("no.such.host.invalid", taken.getsockname()[1])
    assert result.status == "fail"


@pytest.mark.parametrize(
    ("minutes", "command", "expected"),
    [
        (0, "no-such-program", []),
        (30, "true", [("ok", "doctor.idle_ok")]),
        (30, "sh -c 'exit 0'", [("ok", "doctor.idle_ok")]),
        (30, "no-such-program now", [("fail", "doctor.idle_missing")]),
        (30, "(sleep 1; true)", [("ok", "doctor.idle_ok")]),
        (30, "'", [("ok", "doctor.idle_ok")]),
    ],
)
def test_the_command_of_idleness_has_to_be_there(
    minutes: int, command: str, expected: list[tuple[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing else ends what costs money."""
    monkeypatch.setenv("LLAMADECK_DATA", str(tmp_path))
    monkeypatch.setenv(COMMAND, command)
    set_idle_minutes("command", minutes)
    assert [(one.status, one.key) for one in environment.check_idle()] == expected


def test_a_hub_that_does_not_answer_is_a_warning() -> None:
    assert verdict(environment.check_hub(f"http://127.0.0.1:{free_port()}")) == ("warn", "hub_none")
    assert verdict(environment.check_hub("nonsense")) == ("warn", "hub_endpoint")


@pytest.mark.parametrize(("told", "expected"), [("", []), ("nonsense", [("fail", "public_url")])])
def test_a_public_address(told: str, expected: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMADECK_PUBLIC_URLS", told)
    assert [verdict(one) for one in environment.check_public()] == expected


def test_a_public_address_leads_here_or_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMADECK_PUBLIC_URLS", f"http://127.0.0.1:{free_port()}/deck/, https://deck.example.org")
    asked: list[str] = []

    def answer(url: str) -> tuple[int, bytes]:
        asked.append(url)
        return (401, b"Sign in first.\n") if "/deck/" in url else (200, b"<html>")

    monkeypatch.setattr(environment, "_ask", answer)
    found = [verdict(one) for one in environment.check_public()]
    assert found == [("ok", "public_ok"), ("warn", "public_none")]
    assert [url.partition("//")[2].partition("/")[2] for url in asked] == ["deck/_stcore/health", "_stcore/health"]


def test_access(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMADECK_DATA", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert verdict(security.check_access("127.0.0.1")) == ("ok", "access_loopback")
    assert verdict(security.check_access("0.0.0.0")) == ("fail", "access_open")
    monkeypatch.setenv("LLAMADECK_PASSWORD", "correct horse")
    assert verdict(security.check_access("0.0.0.0")) == ("ok", "access_password")
    (tmp_path / ".streamlit").mkdir()
    secrets = tmp_path / ".streamlit" / "secrets.toml"
    names = ("redirect_uri", "client_id", "client_secret", "server_metadata_url")
    whole = "[auth]\n" + "".join(f'{name} = "x"\n' for name in names) + 'cookie_secret = "%s"\n'
    secrets.write_text(whole % ("x" * 32), "utf-8")
    assert verdict(security.check_access("0.0.0.0")) == ("warn", "access_nobody")
    secrets.write_text(whole % ("x" * 32) + '[access]\nallow = ["*"]\n', "utf-8")
    assert verdict(security.check_access("0.0.0.0")) == ("warn", "access_everybody")
    secrets.write_text(whole % ("x" * 32) + '[access]\nallow = ["ann@example.org"]\n', "utf-8")
    assert verdict(security.check_access("0.0.0.0")) == ("ok", "access_people")
    secrets.write_text(whole % "short", "utf-8")
    assert verdict(security.check_access("0.0.0.0")) == ("ok", "access_password")


def test_secrets_that_others_can_read(tmp_path: Path) -> None:
    path = tmp_path / "access.json"
    path.touch(0o600)
    assert verdict(security.check_secrets([path, tmp_path / "none"])) == ("ok", "secrets_ok")
    path.chmod(0o640)
    assert verdict(security.check_secrets([path])) == ("fail", "secrets_open")


def test_a_damaged_file_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMADECK_DATA", str(tmp_path))
    assert [result.check for result in security.check_security("127.0.0.1")] == ["access", "secrets"]
    (tmp_path / "keys.json").write_text('{"keys": [', "utf-8")
    result = list(security.check_security("127.0.0.1"))[-1]
    assert verdict(result) == ("fail", "file_problem")
    assert str(tmp_path / "keys.json") in result.text("zh") and "line 1" in result.text("en")


def test_lines_are_aligned_in_both_languages() -> None:
    result = machine.check_compiler(False, False)
    assert line(result, "en") == "ok    Compiler        None is needed without a GPU."
    assert line(result, "zh") == "正常  编译器          没有显卡时不需要。"


def call(tmp_path: Path, *arguments: str, **changed: str) -> subprocess.CompletedProcess[str]:
    places = {name: str(tmp_path) for name in ("LLAMADECK_MODELS", "LLAMADECK_DATA", "XDG_CACHE_HOME", "HOME")}
    environment = os.environ | places | {"HF_ENDPOINT": f"http://127.0.0.1:{free_port()}", "LC_ALL": "C"} | changed
    command = [sys.executable, "-m", "cli.main", "doctor", "--port", str(free_port()), *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, encoding="utf-8")


def test_the_command_is_lines_and_its_exit_code_says_whether_it_would_start(tmp_path: Path) -> None:
    well = call(tmp_path)
    assert (well.returncode, well.stderr) == (0, "")
    assert len(well.stdout.splitlines()) == 14
    open_to_all = call(tmp_path, "--host", "0.0.0.0", "--json", LC_ALL="zh_CN.UTF-8")
    checks = json.loads(open_to_all.stdout)["checks"]
    assert open_to_all.returncode == 1
    assert [check["check"] for check in checks if check["status"] == "fail"] == ["access"]
    assert all(check["text"] for check in checks)


def test_a_machine_without_a_driver_can_be_asked() -> None:
    assert machine.check_driver(read_snapshot()).status in ("ok", "warn")
