"""Which build of torch .venv gets: the machine's own, the CPU's or pip's pick; never imports torch."""

from __future__ import annotations

import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

CPU_INDEX = "https://download.pytorch.org/whl/cpu"


@dataclass(frozen=True, slots=True)
class TorchBuild:
    """Where the torch of a finished .venv comes from.

    "host": the torch in the site-packages `folder` of the Python that made the .venv, `version` by its metadata, which
    is what pip goes by, and `built` by its own torch/version.py: that one often has a "+cu130" that the other lacks;
    "cpu": a CPU build, taken because no GPU was there; "pip": what pip picks by itself.
    """

    source: Literal["host", "cpu", "pip"]
    version: str = ""
    folder: str = ""
    built: str = ""

    def is_good(self, gpu: bool) -> bool:
        """Whether a .venv that was made with this build can still be used; `gpu`: a GPU is there now."""
        if self.source == "host":
            return cuda_torch_in(Path(self.folder)) == self.built != ""
        return not (self.source == "cpu" and gpu)


def has_gpu(devices: Path = Path("/dev")) -> bool:
    return any(devices.glob("nvidia*")) or shutil.which("nvidia-smi") is not None


def find_host_torch() -> TorchBuild | None:
    """A CUDA build of torch >= 2.8 that the running Python sees, found without the seconds of an import."""
    import importlib.metadata  # slow, and the check at every start goes without

    try:
        torch = importlib.metadata.distribution("torch")
    except importlib.metadata.PackageNotFoundError:
        return None
    folder = Path(str(torch.locate_file(""))).resolve()
    built, version = cuda_torch_in(folder), torch.metadata["Version"]  # which is None where the metadata was lost
    if not built or not version or not is_new_enough(version):
        return None
    return TorchBuild("host", version, str(folder), built)


def cuda_torch_in(folder: Path) -> str | None:
    """The version of the torch in a site-packages folder when it is a CUDA build."""
    try:
        text = (folder / "torch" / "version.py").read_text("utf-8")
    except OSError:
        return None
    values = dict(re.findall(r"^(__version__|cuda)\b[^=\n]*=\s*(.+?)\s*$", text, re.MULTILINE))
    is_cuda = values.get("cuda", "None") != "None"
    return values.get("__version__", "").strip("'\"") or None if is_cuda else None


def is_new_enough(version: str) -> bool:
    """Whether this is torch >= 2.8, which gptqmodel needs; a pre-release comes before its release."""
    match = re.match(r"(\d+)\.(\d+)(?:\.\d+)*(a|b|rc|\.dev)?", version)
    return match is not None and (int(match[1]), int(match[2]), match[3] is None) >= (2, 8, True)


def pip_attempts(requirement: str, gpu: bool, platform: str = sys.platform) -> list[tuple[TorchBuild, list[str]]]:
    """What to ask pip for, in turn, until one works; `requirement` is the pin, as in "torch==2.13.0".

    On Linux plain pip picks a CUDA build of several GB. Without a GPU the CPU's build does as well; pip's own
    sources come first, because a mirror may have it.
    """
    plain = (TorchBuild("pip"), [requirement])
    if gpu or platform != "linux":
        return [plain]
    cpu = TorchBuild("cpu")
    return [
        (cpu, [f"{requirement}+cpu"]),
        (cpu, [f"{requirement}+cpu", "--extra-index-url", CPU_INDEX]),
        plain,
    ]


def torch_pin(requirements: str) -> str:
    """The pin of torch in the text of requirements.txt, as in "torch==2.13.0"."""
    match = re.search(r"^torch==[^\s;#]+", requirements, re.MULTILINE)
    if not match:
        raise ValueError("requirements.txt does not pin torch with ==")
    return match[0]


def requirements_for(requirements: str, torch: TorchBuild) -> str:
    """The text of requirements.txt, its pin of torch set to a build that is reused: pip leaves that alone."""
    if torch.source != "host":
        return requirements
    return requirements.replace(torch_pin(requirements), host_pin(torch), 1)


def host_pin(torch: TorchBuild) -> str:
    return f"torch=={torch.version}"
