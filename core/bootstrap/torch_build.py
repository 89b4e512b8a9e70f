"""Which build of torch .venv gets: the machine's own, one for its driver, or the CPU's. Imports no torch."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from core.bootstrap.driver import Driver, Version

INDEX = "https://download.pytorch.org/whl"
# What people in China use in its place: one is an index as pip knows them, the other a page of links.
MIRROR_INDEX, MIRROR_LINKS = "https://mirror.nju.edu.cn/pytorch/whl", "https://mirrors.aliyun.com/pytorch-wheels"


@dataclass(frozen=True, slots=True)
class Wheel:
    """A build that PyTorch publishes under `tag`, of `version`, where that is not the one that is pinned.

    `capabilities`: of the oldest and the newest GPUs that it has kernels for. Without a tag it is PyPI's.
    """

    tag: str
    cuda: Version
    capabilities: tuple[Version, Version]
    version: str = ""


# By preference, for the pinned torch 2.13. The last one that has CUDA 12.8, and with it kernels for Blackwell under a
# driver before 580, is 2.11. https://github.com/pytorch/pytorch/blob/main/RELEASE.md tells what there is.
WHEELS = (
    Wheel("", (13, 0), ((7, 5), (99, 0))),
    Wheel("cu130", (13, 0), ((7, 5), (99, 0))),
    Wheel("cu126", (12, 6), ((5, 0), (9, 9))),
    Wheel("cu128", (12, 8), ((7, 5), (12, 9)), "2.11.0"),
)
# What runs under the most drivers, for one that does not tell.
WIDEST = WHEELS[2]


@dataclass(frozen=True, slots=True)
class TorchBuild:
    """Where the torch of a finished .venv comes from.

    "host": the torch in the site-packages `folder` of the Python that made the .venv; "cpu": a CPU build; "pip": what
    pip picks by itself, or a build for this machine's driver. `version` is that of its metadata, which is what pip goes
    by, `built` that of torch/version.py: the latter often has a "+cu130" that the other lacks.
    """

    source: Literal["host", "cpu", "pip"]
    version: str = ""
    folder: str = ""
    built: str = ""

    def is_usable(self, driver: Driver | None, packages: Path) -> bool:
        """Whether a .venv that was made with this build can still be used; `packages`: its own site-packages."""
        found = read_torch_version(Path(self.folder) if self.source == "host" else packages)
        if self.source == "host" and (found is None or found.built != self.built or found.cuda is None):
            return False
        if driver is None or found is None:
            return True
        return runs_on(found.cuda, driver) if found.cuda else not wheels_for(driver)


@dataclass(frozen=True, slots=True)
class TorchVersion:
    """What torch/version.py says: `cuda` is None in a CPU build."""

    built: str
    cuda: Version | None


def find_host_torch() -> TorchBuild | None:
    """A CUDA build of torch >= 2.8 that the running Python sees, found without the seconds of an import."""
    import importlib.metadata  # slow, and the check at every start goes without

    try:
        torch = importlib.metadata.distribution("torch")
    except importlib.metadata.PackageNotFoundError:
        return None
    folder = Path(str(torch.locate_file(""))).resolve()
    found, version = read_torch_version(folder), torch.metadata["Version"]  # which is None where the metadata was lost
    if found is None or found.cuda is None or not version or not is_new_enough(version):
        return None
    return TorchBuild("host", version, str(folder), found.built)


def as_installed(asked: TorchBuild, packages: Path) -> TorchBuild:
    """What pip installed into a site-packages folder when it was `asked`."""
    import importlib.metadata

    version = next((one.version for one in importlib.metadata.distributions(name="torch", path=[str(packages)])), "")
    found = read_torch_version(packages)
    return replace(asked, version=version, built=found.built if found else "")


def read_torch_version(folder: Path) -> TorchVersion | None:
    """The torch in a site-packages folder; None where there is none, or none that tells its version."""
    try:
        text = (folder / "torch" / "version.py").read_text("utf-8")
    except OSError:
        return None
    values = dict(re.findall(r"^(__version__|cuda)\b[^=\n]*=\s*['\"]?(.*?)['\"]?\s*$", text, re.MULTILINE))
    if not values.get("__version__"):
        return None
    cuda = re.match(r"(\d+)\.(\d+)", values.get("cuda", ""))
    return TorchVersion(values["__version__"], (int(cuda[1]), int(cuda[2])) if cuda else None)


def runs_on(cuda: Version, driver: Driver) -> bool:
    """Whether a build for `cuda` runs under `driver`, on one of its GPUs at least.

    A driver runs every build for its own major version of CUDA and for older ones. CUDA 13 left out the GPUs before
    Turing, and Blackwell needs 12.8. What is not told is taken to be in order.
    """
    if driver.cuda is not None and cuda[0] > driver.cuda[0]:
        return False
    oldest, newest = (7, 5) if cuda[0] >= 13 else (0, 0), (99, 0) if cuda >= (12, 8) else (9, 9)
    return not driver.capabilities or any(oldest <= one <= newest for one in driver.capabilities)


def wheels_for(driver: Driver) -> list[Wheel]:
    """Those of WHEELS that run under `driver`, best first: on the most of its GPUs, then by preference."""
    if driver.cuda is None and not driver.capabilities:
        return [WIDEST]

    def num_gpus(wheel: Wheel) -> int:
        return sum(wheel.capabilities[0] <= one <= wheel.capabilities[1] for one in driver.capabilities)

    running = [wheel for wheel in WHEELS if runs_on(wheel.cuda, driver)]
    if driver.capabilities:
        running = [wheel for wheel in running if num_gpus(wheel)]
    return sorted(running, key=num_gpus, reverse=True)


def is_new_enough(version: str) -> bool:
    """Whether this is torch >= 2.8, which gptqmodel needs; a pre-release comes before its release."""
    match = re.match(r"(\d+)\.(\d+)(?:\.\d+)*(a|b|rc|\.dev)?", version)
    return match is not None and (int(match[1]), int(match[2]), match[3] is None) >= (2, 8, True)


def pip_attempts(
    pin: str, driver: Driver | None, language: str = "en", platform: str = sys.platform
) -> list[tuple[TorchBuild, list[str]]]:
    """What to ask pip for, in turn, until one works; `pin` is that of requirements.txt, as in "torch==2.13.0".

    On Linux plain pip picks a CUDA build of several GB. Without a GPU the CPU's build does as well.
    """
    if platform != "linux":
        return [(TorchBuild("pip"), [pin])]
    wheels = wheels_for(driver) if driver else []
    attempts = [(TorchBuild("pip"), arguments) for wheel in wheels for arguments in pip_sources(pin, wheel, language)]
    if attempts:
        return attempts
    cpu = Wheel("cpu", (0, 0), ((0, 0), (0, 0)))
    return [
        *((TorchBuild("cpu"), arguments) for arguments in pip_sources(pin, cpu, language)),
        (TorchBuild("pip"), [pin]),
    ]


def pip_sources(pin: str, wheel: Wheel, language: str) -> list[list[str]]:
    """Where to get `wheel`: from pip's own sources first, for a mirror or a folder may have it."""
    if not wheel.tag:
        return [[pin]]
    wanted = f"torch=={wheel.version}+{wheel.tag}" if wheel.version else f"{pin}+{wheel.tag}"
    official = ["--extra-index-url", f"{INDEX}/{wheel.tag}"]
    mirrors = ["--extra-index-url", f"{MIRROR_INDEX}/{wheel.tag}", "--find-links", f"{MIRROR_LINKS}/{wheel.tag}/"]
    elsewhere = [mirrors, official] if language == "zh" else [official, mirrors]
    return [[wanted], *([wanted, "--retries", "1", *place] for place in elsewhere)]


def torch_pin(requirements: str) -> str:
    """The pin of torch in the text of requirements.txt, as in "torch==2.13.0"."""
    match = re.search(r"^torch==[^\s;#]+", requirements, re.MULTILINE)
    if not match:
        raise ValueError("requirements.txt does not pin torch with ==")
    return match[0]


def requirements_for(requirements: str, torch: TorchBuild) -> str:
    """The text of requirements.txt, its pin of torch set to the build that is there: pip leaves that alone."""
    return requirements.replace(torch_pin(requirements), f"torch=={torch.version}", 1)
