"""Setting up .venv: what it is made from, when it is finished, and real ones made of tiny local packages."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Literal

import pytest

from core.bootstrap.driver import Driver
from core.bootstrap.pip import failure_key
from core.bootstrap.stamp import PYTHON, Stamp, is_complete, mark_damaged, read_stamp, wanted_stamp, write_stamp
from core.bootstrap.torch_build import (
    INDEX,
    MIRROR_INDEX,
    MIRROR_LINKS,
    TorchBuild,
    TorchVersion,
    is_new_enough,
    pip_attempts,
    read_torch_version,
    requirements_for,
    runs_on,
    torch_pin,
    wheels_for,
)
from core.bootstrap.venv import can_update
from core.common.paths import ROOT
from tests.support.nvml_standin import Standin

pytest_plugins = ("tests.support.nvml_standin",)

NOWHERE = "http://127.0.0.1:9"
PYTHON_FOLDER = f"python{PYTHON}"
HOST = TorchBuild("host", "2.11.0", "/somewhere/site-packages", "2.11.0+cu130")
REQUIREMENTS = "# comment\nalpha==1.0\ntorch==1.0 # a reason\n"
BLOCKING_BACKEND = """
import os, zipfile
def build_wheel(folder, config_settings=None, metadata_directory=None):
    if os.path.exists(os.environ["GATE"]):
        open(os.environ["GATE"]).read()
    name = "slow-1.0-py3-none-any.whl"
    with zipfile.ZipFile(os.path.join(folder, name), "w") as wheel:
        wheel.writestr("slow.py", "")
        wheel.writestr("slow-1.0.dist-info/METADATA", "Metadata-Version: 2.1\\nName: slow\\nVersion: 1.0\\n")
        wheel.writestr("slow-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\\n")
        wheel.writestr("slow-1.0.dist-info/RECORD", "")
    return name
"""


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("2.8.0+cu128", True),
        ("2.11.0", True),
        ("3.0.0", True),
        ("2.7.1+cu126", False),
        ("2.8.0a0+34c6371d24.nv25.08", False),
        ("2.10.0a0+b558c986e8.nv25.11", True),
        ("unknown", False),
    ],
)
def test_only_torch_from_2_8_on_is_reused(version: str, expected: bool) -> None:
    assert is_new_enough(version) is expected


def make_torch(folder: Path, version: str, cuda: str | None, installed_as: str | None = None) -> None:
    """A torch that calls itself `version`, and that pip knows as `installed_as`, by itself the same."""
    (folder / "torch").mkdir(parents=True, exist_ok=True)
    (folder / "torch" / "__init__.py").write_text("")
    lines = [f"__version__ = '{version}'", "from typing import Optional", f"cuda: Optional[str] = {cuda!r}"]
    (folder / "torch" / "version.py").write_text("\n".join(lines) + "\nhip: Optional[str] = None\n")
    info = folder / f"torch-{installed_as or version}.dist-info"
    info.mkdir(exist_ok=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: torch\nVersion: {installed_as or version}\n")
    (info / "RECORD").write_text("torch/__init__.py,,\ntorch/version.py,,\n")


def test_a_cuda_build_is_told_from_a_cpu_build_without_importing_it(tmp_path: Path) -> None:
    make_torch(tmp_path / "gpu", "2.11.0+cu130", "13.0")
    make_torch(tmp_path / "cpu", "2.11.0+cpu", None)
    assert read_torch_version(tmp_path / "gpu") == TorchVersion("2.11.0+cu130", (13, 0))
    assert read_torch_version(tmp_path / "cpu") == TorchVersion("2.11.0+cpu", None)
    assert read_torch_version(tmp_path / "nothing") is None
    (tmp_path / "cpu" / "torch" / "version.py").write_text("git_version = 'abc'\n")
    assert read_torch_version(tmp_path / "cpu") is None


A40, VOLTA, BLACKWELL = (8, 6), (7, 0), (12, 0)


@pytest.mark.parametrize(
    ("cuda", "driver", "expected"),
    [
        ((13, 0), Driver((12, 2), "535.183.01", (A40,)), False),
        ((12, 8), Driver((12, 2), "535.183.01", (A40,)), True),
        ((12, 6), Driver((11, 4), "470.256.02", (A40,)), False),
        ((13, 2), Driver((13, 0), "580.65.06", (A40,)), True),
        ((12, 6), Driver((13, 0), "580.65.06", (A40,)), True),
        ((12, 6), Driver((13, 0), "580.65.06", (BLACKWELL,)), False),
        ((12, 8), Driver((12, 8), "570.86.10", (BLACKWELL,)), True),
        ((13, 0), Driver((13, 0), "580.65.06", (VOLTA,)), False),
        ((13, 0), Driver((13, 0), "580.65.06", (VOLTA, A40)), True),
        ((13, 0), Driver(), True),
    ],
    ids=str,
)
def test_a_driver_runs_its_own_major_version_and_older_ones_on_gpus_that_these_know(
    cuda: tuple[int, int], driver: Driver, expected: bool
) -> None:
    assert runs_on(cuda, driver) is expected


@pytest.mark.parametrize(
    ("driver", "expected"),
    [
        (Driver((12, 2), "535.183.01", (A40,)), ["cu126", "cu128"]),
        (Driver((12, 4), "550.54.15", (A40,)), ["cu126", "cu128"]),
        (Driver((12, 8), "570.86.10", (A40,)), ["cu126", "cu128"]),
        (Driver((12, 8), "570.86.10", (BLACKWELL,)), ["cu128"]),
        (Driver((13, 0), "580.65.06", (A40,)), ["", "cu130", "cu126", "cu128"]),
        (Driver((13, 0), "580.65.06", (BLACKWELL,)), ["", "cu130", "cu128"]),
        (Driver((13, 0), "580.65.06", (VOLTA,)), ["cu126"]),
        (Driver((13, 0), "580.65.06", (VOLTA, A40)), ["cu126", "", "cu130", "cu128"]),
        (Driver((13, 0), "580.65.06"), ["", "cu130", "cu126", "cu128"]),
        (Driver((11, 4), "470.256.02", (A40,)), []),
        (Driver((11, 4), "470.256.02", ((3, 5),)), []),
        (Driver(), ["cu126"]),
    ],
    ids=str,
)
def test_the_driver_and_its_gpus_decide_which_builds_can_be_asked_for(driver: Driver, expected: list[str]) -> None:
    assert [wheel.tag for wheel in wheels_for(driver)] == expected


def asked(driver: Driver | None, language: str = "en") -> list[list[str]]:
    return [arguments for _, arguments in pip_attempts("torch==2.13.0", driver, language, platform="linux")]


def test_under_a_new_driver_pip_is_asked_for_its_own_pick_first() -> None:
    assert asked(Driver((13, 0), "580.65.06", (A40,)))[:2] == [["torch==2.13.0"], ["torch==2.13.0+cu130"]]


def test_under_an_older_driver_each_place_is_asked_for_the_pinned_torch_before_an_older_one() -> None:
    own, official, mirrors, older, *_ = asked(Driver((12, 2), "535.183.01", (A40,)))
    assert own == ["torch==2.13.0+cu126"]
    assert official == [*own, "--retries", "1", "--extra-index-url", f"{INDEX}/cu126"]
    links = ["--find-links", f"{MIRROR_LINKS}/cu126/"]
    assert mirrors == [*own, "--retries", "1", "--extra-index-url", f"{MIRROR_INDEX}/cu126", *links]
    assert older == ["torch==2.11.0+cu128"]


@pytest.mark.parametrize("driver", [None, Driver((11, 4), "470.256.02", (A40,))], ids=["no GPU", "too old a driver"])
def test_where_no_cuda_build_can_run_the_cpus_is_asked_for_in_pips_own_sources_first(driver: Driver | None) -> None:
    cpu = "torch==2.13.0+cpu"
    assert asked(driver)[0] == [cpu]
    assert asked(driver)[1] == [cpu, "--retries", "1", "--extra-index-url", f"{INDEX}/cpu"]
    assert asked(driver)[-1] == ["torch==2.13.0"]


def test_who_reads_chinese_gets_the_mirrors_before_the_official_index() -> None:
    places = [arguments[4] for arguments in asked(None, "zh") if len(arguments) > 4]
    assert places == [f"{MIRROR_INDEX}/cpu", f"{INDEX}/cpu"]


def test_the_torch_that_is_there_takes_the_place_of_the_pin() -> None:
    assert torch_pin(REQUIREMENTS) == "torch==1.0"
    assert requirements_for(REQUIREMENTS, HOST) == "# comment\nalpha==1.0\ntorch==2.11.0 # a reason\n"


def test_requirements_name_torch_so_that_its_pin_is_found() -> None:
    assert torch_pin((ROOT / "requirements.txt").read_text("utf-8")).startswith("torch==2.")


@pytest.mark.parametrize(
    ("cuda", "driver", "expected"),
    [
        (None, None, True),
        (None, Driver((12, 2), "535.183.01", (A40,)), False),
        (None, Driver((11, 4), "470.256.02", (A40,)), True),
        ("13.0", Driver((13, 0), "580.65.06", (A40,)), True),
        ("13.0", Driver((12, 8), "570.86.10", (A40,)), False),
        ("13.0", Driver((12, 8), "570.86.10", (BLACKWELL,)), False),
        ("12.6", Driver((13, 0), "580.65.06", (A40,)), True),
        ("12.6", Driver((12, 8), "570.86.10", (BLACKWELL,)), False),
        ("13.0", Driver(), True),
        ("13.0", None, True),
    ],
    ids=str,
)
@pytest.mark.parametrize("source", ["pip", "host"])
def test_a_finished_venv_is_used_as_long_as_its_torch_runs_under_the_driver(
    tmp_path: Path, source: Literal["pip", "host"], cuda: str | None, driver: Driver | None, expected: bool
) -> None:
    make_torch(tmp_path, "2.11.0", cuda)
    build = TorchBuild(source, "2.11.0", str(tmp_path) if source == "host" else "", "2.11.0")
    if source == "host" and cuda is None:
        expected = False  # what was a CUDA build is another one now
    assert build.is_usable(driver, tmp_path) is expected


def test_a_host_torch_that_has_gone_or_changed_is_not_good(tmp_path: Path) -> None:
    build = TorchBuild("host", "2.11.0", str(tmp_path), "2.11.0+cu130")
    assert not build.is_usable(None, tmp_path)
    make_torch(tmp_path, "2.12.0+cu130", "13.0")
    assert not build.is_usable(None, tmp_path)
    make_torch(tmp_path, "2.11.0+cu130", "13.0")
    assert build.is_usable(None, tmp_path)


def add_python(venv: Path) -> None:
    (venv / "bin").mkdir(parents=True)
    (venv / "bin" / "python").touch()


@pytest.mark.parametrize("text", [None, "", "{", "[]", '{"python": "3.11"}', '{"torch": {"colour": "red"}}'])
def test_a_missing_or_broken_stamp_means_half_made(tmp_path: Path, text: str | None) -> None:
    add_python(tmp_path)
    if text is not None:
        (tmp_path / "llamadeck.json").write_text(text)
    assert read_stamp(tmp_path) is None


def test_a_stamp_holds_until_the_requirements_change_or_the_folder_moves(tmp_path: Path) -> None:
    project = tmp_path / "here"
    project.mkdir()
    add_python(project / ".venv")
    (project / "requirements.txt").write_text(REQUIREMENTS)
    assert not is_complete(project)
    write_stamp(project / ".venv", wanted_stamp(project, TorchBuild("pip")))
    assert is_complete(project)
    moved = project.rename(tmp_path / "there")
    assert not is_complete(moved)
    moved.rename(project)
    (project / "requirements.txt").write_text(REQUIREMENTS + "beta==1.0\n")
    assert not is_complete(project)


def test_a_venv_whose_python_was_removed_is_not_finished(tmp_path: Path) -> None:
    (tmp_path / "requirements.txt").write_text(REQUIREMENTS)
    add_python(tmp_path / ".venv")
    write_stamp(tmp_path / ".venv", wanted_stamp(tmp_path, TorchBuild("pip")))
    (tmp_path / ".venv" / "bin" / "python").unlink()
    assert not is_complete(tmp_path)


def test_pip_works_in_place_only_on_the_same_python_folder_and_torch(tmp_path: Path) -> None:
    (tmp_path / "requirements.txt").write_text(REQUIREMENTS)
    make_torch(tmp_path / "host", "2.11.0+cu130", "13.0", "2.11.0")
    host = TorchBuild("host", "2.11.0", str(tmp_path / "host"), "2.11.0+cu130")
    own, reused = wanted_stamp(tmp_path, TorchBuild("cpu")), wanted_stamp(tmp_path, host)
    assert can_update(own, tmp_path, None, None)
    assert can_update(reused, tmp_path, host, None)
    assert not can_update(None, tmp_path, None, None)
    assert not can_update(own, tmp_path, host, None)
    assert not can_update(reused, tmp_path, None, None)
    assert not can_update(own, tmp_path / "elsewhere", None, None)
    assert not can_update(Stamp(own.requirements, "2.7", own.root, own.torch), tmp_path, None, None)
    assert not can_update(reused, tmp_path, host, Driver((12, 8), "570.86.10"))


@pytest.mark.parametrize(
    ("log", "compiler", "key"),
    [
        ("OSError: [Errno 28] No space left on device", True, "setup_disk_full"),
        (
            "NewConnectionError: Failed to establish\nERROR: No matching distribution",
            True,
            "setup_no_network",
        ),
        ("ERROR: Failed building wheel for pypcre", False, "setup_no_compiler"),
        ("ERROR: Failed building wheel for pypcre", True, "setup_failed"),
        ("cache.c:1:10: fatal error: Python.h: No such file or directory", True, "setup_no_compiler"),
        ("ERROR: No matching distribution found for alpha==9", True, "setup_no_package"),
        ("ERROR: ResolutionImpossible", True, "setup_failed"),
    ],
)
def test_what_pip_wrote_becomes_one_sentence(log: str, compiler: bool, key: str) -> None:
    assert failure_key(log, compiler) == key


class Machine:
    """A copy of the command on a machine of its own: a bare Python, and a folder instead of an index."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "a clone"
        self.packages = folder / "packages"
        self.python = folder / "outer" / "bin" / "python3"
        self.gate = folder / "gate"
        self.packages.mkdir(parents=True)
        for name in ("cli", "core"):
            shutil.copytree(ROOT / name, self.root / name, ignore=shutil.ignore_patterns("__pycache__", "worker"))
        shutil.copytree(ROOT / "locales", self.root / "locales")
        shutil.copy(ROOT / "llamadeck", self.root)
        self.require(REQUIREMENTS)
        self.add_wheel("alpha", "1.0")
        self.add_wheel("torch", "1.0+cpu")
        # A virtual environment without packages: what this computer's own Python has must not show.
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "outer")], check=True)

    @property
    def outer_packages(self) -> Path:
        return next(self.python.parent.parent.glob("lib/python*/site-packages"))

    @property
    def environment(self) -> dict[str, str]:
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ}
        pip = {"PIP_NO_INDEX": "1", "PIP_NO_CACHE_DIR": "1", "PIP_CONFIG_FILE": os.devnull}
        ours = {"LLAMADECK_PYTHON": str(self.python), "GATE": str(self.gate), "LANG": "C.UTF-8"}
        return kept | pip | ours | {"PIP_FIND_LINKS": str(self.packages)}

    def require(self, text: str) -> None:
        (self.root / "requirements.txt").write_text(text)

    def add_wheel(self, name: str, version: str, *needs: str, text: str = "", file: str = "__init__") -> None:
        info = f"{name}-{version}.dist-info"
        with zipfile.ZipFile(self.packages / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"{name}/{file}.py", text)
            lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
            wheel.writestr(f"{info}/METADATA", "\n".join([*lines, *(f"Requires-Dist: {need}" for need in needs), ""]))
            wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            wheel.writestr(f"{info}/RECORD", "")

    def add_torch(self, version: str, cuda: str | None) -> None:
        self.add_wheel("torch", version, text=f"__version__ = {version!r}\ncuda = {cuda!r}\n", file="version")

    def require_a_slow_package(self) -> None:
        """Its build stops at the gate, a named pipe, until somebody opens the other end and closes it."""
        source = self.root / "slow"
        source.mkdir()
        system = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
        (source / "pyproject.toml").write_text(system + '[project]\nname = "slow"\nversion = "1.0"\n')
        (source / "backend.py").write_text(BLOCKING_BACKEND)
        self.require(REQUIREMENTS + "slow @ " + source.as_uri() + "\n")
        os.mkfifo(self.gate)

    def start(self, **variables: str) -> subprocess.Popen[str]:
        command = [str(self.python), "-m", "core.bootstrap.venv"]
        environment = self.environment | variables
        return subprocess.Popen(
            command, cwd=self.root, env=environment, stderr=subprocess.PIPE, text=True, encoding="utf-8"
        )

    def setup(self, **variables: str) -> tuple[int, str]:
        process = self.start(**variables)
        _, said = process.communicate()
        return process.returncode, said

    def inside(self, code: str) -> str:
        command = [str(self.root / ".venv" / "bin" / "python"), "-c", code]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_the_command_prepares_itself_and_then_brings_itself_up_to_date(machine: Machine, tmp_path: Path) -> None:
    """From another folder, through a symbolic link, with a space in the path."""
    link = tmp_path / "deck"
    link.symlink_to(machine.root / "llamadeck")

    def call() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(link), "--help"], cwd=tmp_path, env=machine.environment, capture_output=True, text=True
        )

    first = call()
    assert first.returncode == 0, first.stderr
    assert first.stdout.startswith("usage: llamadeck")
    second = call()
    assert (second.returncode, second.stderr) == (0, "")

    untouched = machine.root / ".venv" / "still the same"
    untouched.touch()
    machine.add_wheel("beta", "1.0")
    machine.require(REQUIREMENTS + "beta==1.0\n")
    third = call()
    assert third.returncode == 0, third.stderr
    assert machine.inside("import alpha, beta, torch; print('all there')") == "all there"
    assert untouched.exists()

    machine.require(REQUIREMENTS + "gamma==1.0\n")
    fourth = call()
    assert fourth.returncode == 1
    assert "No matching distribution found for gamma==1.0" in fourth.stderr
    assert "Traceback" not in fourth.stderr
    assert not is_complete(machine.root)


@pytest.mark.parametrize(
    ("built", "installed_as"),
    [
        ("2.11.0+cu130", "2.11.0"),  # PyPI's
        ("2.11.0+cu130", "2.11.0+cu130"),  # PyTorch's own index
        ("2.10.0a0+b558c986e8.nv25.08", "2.10.0a0+b558c986e8.nv25.8"),  # NVIDIA's containers
    ],
)
def test_a_cuda_torch_of_the_outer_python_is_used_and_left_alone(
    machine: Machine, built: str, installed_as: str
) -> None:
    """Also where the index has the same and a newer one, a package wants one, and pip.conf says to fetch all anew."""
    make_torch(machine.outer_packages, built, "13.0", installed_as)
    for version in ("2.9.1", "2.11.0", "2.11.0+cu130", "2.13.0"):
        machine.add_wheel("torch", version)
    machine.add_wheel("alpha", "1.0", "torch>=2.8")
    config = machine.root.parent / "pip.conf"
    config.write_text("[install]\nupgrade = true\nignore-installed = true\n")
    constraint = machine.root.parent / "constraint.txt"
    constraint.write_text("alpha==0.9\n")  # as NVIDIA's containers have one for their own packages
    code, said = machine.setup(PIP_CONFIG_FILE=str(config), PIP_CONSTRAINT=str(constraint))
    assert code == 0, said
    assert machine.inside("import torch; print(torch.__file__)").startswith(str(machine.outer_packages))
    assert machine.inside("import alpha; print(alpha.__file__)").startswith(str(machine.root))
    assert not list((machine.root / ".venv").rglob("torch-*.dist-info"))
    stamp = read_stamp(machine.root / ".venv")
    assert stamp and stamp.torch == TorchBuild("host", installed_as, str(machine.outer_packages), built)
    assert stamp.torch.is_usable(None, Path())
    shutil.rmtree(machine.outer_packages / "torch")
    assert not stamp.torch.is_usable(None, Path())


@pytest.mark.parametrize("installed_as", ["2.11.0", "2.11.0+cu130"])
def test_a_package_that_wants_another_torch_does_not_replace_the_hosts(machine: Machine, installed_as: str) -> None:
    make_torch(machine.outer_packages, "2.11.0+cu130", "13.0", installed_as)
    machine.add_wheel("torch", "2.12.0")
    machine.add_wheel("alpha", "1.0", "beta")
    machine.add_wheel("beta", "1.0", "torch>=2.12")
    code, said = machine.setup()
    assert code == 1
    assert f"torch=={installed_as}" in said
    assert not list((machine.root / ".venv").rglob("torch-*.dist-info"))
    assert not is_complete(machine.root)


def test_a_torch_whose_metadata_was_lost_is_not_reused(machine: Machine) -> None:
    """pip does not see it, and would fetch another on top."""
    make_torch(machine.outer_packages, "2.11.0+cu130", "13.0")
    next(machine.outer_packages.glob("torch-*")).joinpath("METADATA").unlink()
    code = "from core.bootstrap.torch_build import find_host_torch; print(find_host_torch())"
    command = [str(machine.python), "-c", code]
    found = subprocess.run(command, cwd=machine.root, env=machine.environment, capture_output=True, text=True)
    assert found.stdout.strip() == "None", found.stderr


def test_a_killed_setup_leaves_nothing_that_passes_for_finished(machine: Machine) -> None:
    """pip outlives the setup that started it; the next start waits for it instead of working beside it."""
    machine.require_a_slow_package()
    killed = machine.start()
    with machine.gate.open("w"):
        killed.send_signal(signal.SIGKILL)
        killed.communicate()
        assert read_stamp(machine.root / ".venv") is None
        next_start = machine.start()
        assert next_start.stderr is not None
        assert "Another start" in next_start.stderr.readline()
        machine.gate.unlink()
    _, said = next_start.communicate()
    assert next_start.returncode == 0, said
    assert "half-made" in said
    assert machine.inside("import alpha, slow, torch; print('all there')") == "all there"


def test_of_two_starts_at_once_one_works_and_the_other_waits(machine: Machine) -> None:
    machine.require_a_slow_package()
    first = machine.start()
    with machine.gate.open("w"):
        second = machine.start()
        assert second.stderr is not None
        assert "Another start" in second.stderr.readline()
    _, said = first.communicate()
    assert first.returncode == 0, said
    assert second.communicate()[1] == ""
    assert second.returncode == 0
    assert json.loads((machine.root / ".venv" / "llamadeck.json").read_text())["root"] == str(machine.root)


A40_UNDER = """
driver = {driver}
nvml = 12.{driver}
cuda = {cuda}
[gpu]
name = NVIDIA A40
capability = {capability}
"""


@pytest.mark.parametrize(
    ("driver", "cuda", "capability", "expected"),
    [
        ("535.183.01", "12020", "8 6", "2.13.0+cu126"),
        ("570.86.10", "12080", "12 0", "2.11.0+cu128"),
        ("470.256.02", "11040", "8 6", "2.13.0+cpu"),
    ],
)
def test_the_set_up_asks_for_the_torch_that_the_driver_runs(
    machine: Machine, nvml_standin: Standin, driver: str, cuda: str, capability: str, expected: str
) -> None:
    """The machine's own torch is one that the driver does not run."""
    make_torch(machine.outer_packages, "2.12.0+cu132", "13.2")
    for tag, built in (("cu126", "12.6"), ("cu130", "13.0"), ("cpu", None)):
        machine.add_torch(f"2.13.0+{tag}", built)
    machine.add_torch("2.13.0", "13.0")
    machine.add_torch("2.11.0+cu128", "12.8")
    machine.add_wheel("alpha", "1.0", "torch>=2.8")
    machine.require(REQUIREMENTS.replace("1.0 # a reason", "2.13.0"))
    nvml_standin.write(A40_UNDER.format(driver=driver, cuda=cuda, capability=capability))
    code, said = machine.setup(**nvml_standin.environment({}))
    assert code == 0, said
    stamp = read_stamp(machine.root / ".venv")
    assert stamp and stamp.torch.version == expected, said
    assert "2.12.0+cu132 of this machine's Python does not run here" in said
    assert ("Update the driver to 580" in said) is (driver == "470.256.02")
    code, said = machine.setup(**nvml_standin.environment({}))
    assert (code, said) == (0, "")


def test_a_driver_that_became_older_has_the_venv_made_anew_and_a_newer_one_does_not(
    machine: Machine, nvml_standin: Standin
) -> None:
    machine.add_torch("2.13.0+cu130", "13.0")
    machine.add_torch("2.13.0+cu126", "12.6")
    machine.require("torch==2.13.0\n")
    versions = []
    for driver, cuda in (("580.65.06", 13000), ("570.86.10", 12080), ("580.65.06", 13000)):
        nvml_standin.write(A40_UNDER.format(driver=driver, cuda=cuda, capability="8 6"))
        code, said = machine.setup(**nvml_standin.environment({}))
        assert code == 0, said
        stamp = read_stamp(machine.root / ".venv")
        assert stamp
        versions.append(stamp.torch.version)
    assert versions == ["2.13.0+cu130", "2.13.0+cu126", "2.13.0+cu126"]
    assert said == ""


def test_where_no_source_has_a_build_for_the_driver_the_sentence_says_what_to_do(
    machine: Machine, nvml_standin: Standin
) -> None:
    machine.add_torch("2.13.0", "13.0")
    machine.require("torch==2.13.0\n")
    nvml_standin.write(A40_UNDER.format(driver="535.183.01", cuda=12020, capability="8 6"))
    code, said = machine.setup(**nvml_standin.environment({}), http_proxy=NOWHERE, https_proxy=NOWHERE)
    assert code == 1
    assert "535.183.01" in said and "cu126" in said and "update the driver to 580" in said
    assert not is_complete(machine.root)


def test_a_venv_that_is_a_link_to_another_clones_is_left_alone(machine: Machine, tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "llamadeck.json").write_text("{}")
    (theirs / "llamadeck-owner").write_text(str(theirs))
    (machine.root / ".venv").symlink_to(theirs)
    code, said = machine.setup()
    assert code == 1
    assert str(theirs) in said and "Traceback" not in said
    assert sorted(path.name for path in theirs.iterdir()) == ["llamadeck-owner", "llamadeck.json"]


def test_a_venv_that_is_a_link_to_a_larger_disk_is_filled_and_made_anew_there(machine: Machine, tmp_path: Path) -> None:
    larger = tmp_path / "larger disk" / "venv"
    (machine.root / ".venv").symlink_to(larger)
    code, said = machine.setup()
    assert code == 0, said
    assert (larger / "llamadeck.json").exists()
    (larger / "llamadeck.json").unlink()
    code, said = machine.setup()
    assert code == 0, said
    assert (machine.root / ".venv").is_symlink()
    assert machine.inside("import alpha, torch; print('all there')") == "all there"


def test_packages_that_were_removed_from_a_finished_venv_are_put_back(machine: Machine) -> None:
    machine.add_wheel("beta", "2.0")
    machine.require(REQUIREMENTS + "beta==2.0\n")
    assert machine.setup()[0] == 0
    packages = machine.root / ".venv" / "lib" / PYTHON_FOLDER / "site-packages"
    untouched = machine.root / ".venv" / "still the same"
    untouched.touch()
    shutil.rmtree(packages / "alpha")
    for path in packages.glob("beta*"):
        shutil.rmtree(path)
    assert not is_complete(machine.root)
    code, said = machine.setup()
    assert code == 0, said
    assert "alpha, beta" in said
    assert machine.inside("import alpha, beta; print('all there')") == "all there"
    assert machine.setup() == (0, "")
    (packages / "beta" / "__init__.py").unlink()
    mark_damaged(machine.root / ".venv")  # as a command does that comes upon it
    code, said = machine.setup()
    assert code == 0, said
    assert "missing (beta)" in said
    assert (packages / "beta" / "__init__.py").exists()
    assert untouched.exists()
