"""The starter model: builds it once, keeps the finished build in the cache, puts it among the models.

core/starter/quantize.py, in a process of its own, is what imports torch and quantizes.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from core.bootstrap.machine_faults import fault_in_log
from core.bootstrap.pip import DISK_FULL
from core.common.errors import StarterError
from core.common.files import remove, sha256_of, sync
from core.common.paths import ROOT, cache_dir, models_dir
from core.library.scan import is_model_folder
from core.starter import source as starter_source
from core.starter.files import (
    PARTIAL,
    check_space,
    disk_full,
    exclusive,
    os_errors_explained,
    remove_partials,
    sync_tree,
)
from core.starter.quantize import EXPECTED

NAME = "SmolLM2-135M-Instruct-GPTQ"
RECIPE = (ROOT / "core" / "starter" / "quantize.py", ROOT / "core" / "starter" / "starter_texts.txt")
MADE_WITH = ("gptqmodel", "transformers")
MANIFEST = "manifest.json"
# The most that lies on the disk at once while the starter is made, and the finished model.
BUILD_BYTES = 800 << 20
MODEL_BYTES = 130 << 20
# What each stage is of the whole, by its time on two cores.
SPANS = {
    "wait": (0.0, 0.0),
    "download": (0.0, 0.1),
    "read": (0.1, 0.28),
    "quantize": (0.28, 0.9),
    "check": (0.9, 0.98),
    "place": (0.98, 1.0),
}

Progress = Callable[[str, float], None]
# Gets an empty folder for its work, the folder to put the finished checkpoint into, and whom to report to.
Maker = Callable[[Path, Path, Progress], None]


class OverallProgress:
    """Turns the progress of a stage into that of the whole, which never goes back."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._reached = 0.0

    def __call__(self, stage: str, fraction: float) -> None:
        low, high = SPANS[stage]
        self._reached = max(self._reached, low + (high - low) * fraction)
        self._progress(stage, self._reached)

    def waits(self) -> None:
        """Another process is making or placing the same."""
        self("wait", 0.0)


def make_checkpoint(work: Path, folder: Path, report: Progress) -> None:
    """Download the source and let another process make the checkpoint from it. Raises StarterError."""
    check_space(work, BUILD_BYTES)
    source = starter_source.fetch(work, lambda fraction: report("download", fraction))
    command = [sys.executable, "-m", "core.starter.quantize", str(source), str(work), str(folder)]
    log = work.parent / "build.log"
    answer = run_build(command, log, report)
    check_answer(answer, log)
    shutil.copyfile(work / starter_source.LICENSE_NAME, folder / starter_source.LICENSE_NAME)
    log.unlink()


def check_answer(answer: str, log: Path) -> None:
    if EXPECTED not in answer:
        raise StarterError("starter_answer", expected=EXPECTED, answer=starter_source.short(answer), log=str(log))


def ensure_model(progress: Progress, make: Maker = make_checkpoint) -> Path | None:
    """Put the starter among the models unless there is one already; returns its folder, or None.

    `progress` gets a stage of SPANS and the fraction of the whole, 0 to 1. Raises StarterError.
    """
    with os_errors_explained(BUILD_BYTES):
        base = models_dir()
        if base.is_dir() and any(is_model_folder(path) and is_checkpoint(path) for path in base.iterdir()):
            return None
    return build(progress, make=make)


def build(progress: Progress, force: bool = False, make: Maker = make_checkpoint) -> Path:
    """Put the starter among the models, from the cache where it has one; returns its folder.

    `force`: make it anew and put it in the place of what is there. Raises StarterError.
    """
    overall, target = OverallProgress(progress), models_dir() / NAME
    if is_checkpoint(target) and not force:
        return target
    with os_errors_explained(BUILD_BYTES):
        source = cached(overall, force, make)
        target.parent.mkdir(parents=True, exist_ok=True)
        with exclusive(target.parent / f".{NAME}.lock", overall.waits):
            if force or not is_checkpoint(target):
                overall("place", 0.0)
                install(source, target)
    overall("place", 1.0)
    return target


def ensure_cached(progress: Progress, make: Maker = make_checkpoint) -> Path:
    """The starter's folder in the cache, made when it is missing or damaged: to read, not to change."""
    with os_errors_explained(BUILD_BYTES):
        return cached(OverallProgress(progress), False, make)


def cached(overall: OverallProgress, force: bool, make: Maker) -> Path:
    base = cache_dir() / "starter"
    base.mkdir(parents=True, exist_ok=True)
    entry = base / recipe_hash()
    with exclusive(base / ".lock", overall.waits):
        if force or not is_intact(entry):
            remove_partials(base, PARTIAL)
            make_cache_entry(entry, overall, make)
    return entry / NAME


def recipe_hash() -> str:
    """Names everything that a build is made from: the same name, the same model."""
    digest = hashlib.sha256(starter_source.GGUF_SHA256.encode())
    for package in MADE_WITH:
        digest.update(f" {package}=={version(package)}".encode())
    for path in RECIPE:
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]


def make_cache_entry(entry: Path, overall: OverallProgress, make: Maker) -> None:
    """Make the checkpoint and its manifest beside the cache's entries, and rename them into `entry`."""
    work = entry.parent / f"{PARTIAL}{os.getpid()}"
    folder = work / "entry" / NAME
    try:
        folder.parent.mkdir(parents=True)
        make(work, folder, overall)
        manifest = {path.name: [path.stat().st_size, sha256_of(path)] for path in sorted(folder.iterdir())}
        (work / "entry" / MANIFEST).write_text(json.dumps(manifest, indent=1), "utf-8")
        sync_tree(work / "entry")
        remove(entry)
        os.rename(work / "entry", entry)
        sync(entry.parent)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def is_intact(entry: Path) -> bool:
    """Whether every file of a cached build is there as it was made."""
    try:
        manifest: dict[str, Any] = json.loads((entry / MANIFEST).read_text("utf-8"))
        found = {path.name: [path.stat().st_size, sha256_of(path)] for path in (entry / NAME).iterdir()}
    except (OSError, ValueError):
        return False
    return found == manifest


def install(source: Path, target: Path) -> None:
    """Copy `source` beside `target` and rename it there; what is there goes."""
    prefix = f".{target.name}{PARTIAL}"
    remove_partials(target.parent, prefix)
    partial = target.with_name(f"{prefix}{os.getpid()}")
    try:
        partial.mkdir()
        check_space(partial, MODEL_BYTES)
        shutil.copytree(source, partial / "new", copy_function=shutil.copyfile)
        sync_tree(partial / "new")
        if os.path.lexists(target):
            os.rename(target, partial / "old")
        os.rename(partial / "new", target)
        sync(target.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def run_build(command: Sequence[str], log: Path, report: Progress) -> str:
    """Run core/starter/quantize.py; returns the finished model's answer. Raises StarterError.

    The process holds the other end of a pipe that closes when this one ends, and then ends as well.
    """
    environment = os.environ | {
        "CUDA_VISIBLE_DEVICES": "",
        "GPTQMODEL_CPU_WORKERS": "2",
        "HF_HUB_OFFLINE": "1",
    }
    answer: str | None = None
    with (
        open(log, "wb") as output,
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=output,
            cwd=ROOT,
            env=environment,
            start_new_session=True,
        ) as process,
    ):
        try:
            for message in messages(process.stdout or []):
                if "answer" in message:
                    answer = message["answer"]
                else:
                    report(message["stage"], message["fraction"])
        except BaseException:
            process.kill()
            raise
    if answer is None:
        raise build_failure(process.returncode, log)
    return answer


def messages(lines: Iterator[bytes] | Sequence[bytes]) -> Iterator[dict[str, Any]]:
    for line in lines:
        # A process that is killed may leave half a line.
        if line.endswith(b"\n"):
            yield json.loads(line)


def build_failure(returncode: int, log: Path) -> StarterError:
    if re.search(DISK_FULL, log.read_text("utf-8", errors="replace")):
        return disk_full(log.parent, BUILD_BYTES)
    if fault := fault_in_log(log.read_text("utf-8", errors="replace")):
        return StarterError(fault.key, **fault.params)
    how = signal.Signals(-returncode).name if returncode < 0 else f"exit code {returncode}"
    return StarterError("starter_died", how=how, log=str(log))


def is_checkpoint(folder: Path) -> bool:
    return (folder / "config.json").is_file()
