"""Prepares .venv, under the system's Python: standard library only.

The stamp of core/bootstrap/stamp.py is removed first and written last. A .venv without one is half-made, and is made
anew: nobody can tell what it lacks.
"""

from __future__ import annotations

import fcntl
import importlib.metadata
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from core.bootstrap.driver import OLDEST_DRIVERS, Driver, read_driver
from core.bootstrap.pip import InstallError, pip_install, run_step
from core.bootstrap.stamp import (
    DAMAGED,
    PYTHON,
    REQUIREMENTS,
    STAMP,
    Stamp,
    is_complete,
    list_packages,
    missing_packages,
    read_stamp,
    site_packages,
    wanted_stamp,
    write_stamp,
)
from core.bootstrap.torch_build import (
    TorchBuild,
    as_installed,
    find_host_torch,
    pip_attempts,
    requirements_for,
    torch_pin,
    wheels_for,
)
from core.common.errors import DeckError
from core.common.output import exit_code_of
from core.common.paths import ROOT
from core.common.terminal import Terminal

CONSTRAINTS, LOCK = "constraints.txt", ".venv.lock"
# By which path a virtual environment was made.
OWNER_FILE = "llamadeck-owner"
NAMES_SHOWN = 5


def can_update(stamp: Stamp | None, root: Path, host: TorchBuild | None, driver: Driver | None) -> bool:
    """Whether pip can bring a finished .venv up to date, instead of making it anew."""
    if stamp is None or (stamp.python, stamp.root) != (PYTHON, str(root)):
        return False
    if not stamp.torch.is_usable(driver, site_packages(root / ".venv")):
        return False
    return stamp.torch == host if host else stamp.torch.source != "host"


@contextmanager
def lock(root: Path, terminal: Terminal) -> Iterator[int]:
    """One setup at a time. pip inherits the lock, so it also covers a pip whose setup was killed."""
    descriptor = os.open(root / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            terminal.say("setup_wait")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)


def prepare(root: Path, terminal: Terminal) -> None:
    """Make .venv, or bring it up to date, unless it is complete. Raises DeckError or OSError."""
    with lock(root, terminal) as lock_fd:
        if is_complete(root):
            return
        venv, driver, host = root / ".venv", read_driver(), find_host_torch()
        require_own_venv(venv)
        if host and driver and not host.is_usable(driver, Path(host.folder)):
            terminal.say("setup_host_torch_driver", torch=host.built, **driver_params(driver))
            host = None
        old = read_stamp(venv)
        (venv / STAMP).unlink(missing_ok=True)
        builder = Builder(root, host, driver, terminal, lock_fd)
        torch = builder.update(old) if old and can_update(old, root, host, driver) else builder.make()
        write_stamp(venv, wanted_stamp(root, torch, list_packages(venv)))
        terminal.say("setup_done")


def require_own_venv(venv: Path) -> None:
    """Raise DeckError where `venv` is a link to a folder that was not filled through it, such as another clone's.

    A link to a larger disk is fine.
    """
    if not venv.is_symlink():
        return
    target = Path(os.path.realpath(venv))
    target.mkdir(parents=True, exist_ok=True)
    stamp, owner = read_stamp(venv), target / OWNER_FILE
    is_own = stamp is not None and stamp.root == str(venv.parent)
    is_own = is_own or (owner.is_file() and owner.read_text("utf-8", "replace") == str(venv))
    if not is_own and set(os.listdir(target)) - {LOCK}:
        raise DeckError("setup_venv_link", path=str(venv), target=str(target))


def make_venv(venv: Path, terminal: Terminal, inherited_fds: Sequence[int] = ()) -> None:
    """An empty virtual environment, whatever was in it before. Raises DeckError, OSError."""
    require_own_venv(venv)
    # Python's venv empties what a link leads to, and then refuses to fill it.
    command = [sys.executable, "-m", "venv", "--clear", os.path.realpath(venv)]
    run_step(command, terminal.text("setup_step_venv"), terminal, inherited_fds)
    (venv / OWNER_FILE).write_text(str(venv), "utf-8")


def broken_packages(venv: Path) -> list[tuple[str, str]]:
    """Name and version of what is installed there and lacks files that it came with."""
    found = []
    for package in importlib.metadata.distributions(path=[str(site_packages(venv))]):
        files = [file for file in package.files or () if file.suffix != ".pyc"]
        if not all(os.path.lexists(str(package.locate_file(file))) for file in files):
            found.append((package.metadata["Name"], package.version))
    return found


def driver_params(driver: Driver) -> dict[str, str]:
    """How sentences name a driver."""
    return {
        "driver": driver.version or "?",
        "cuda": "{}.{}".format(*driver.cuda) if driver.cuda else "?",
        "needed": str(OLDEST_DRIVERS[13]),
        "oldest": str(OLDEST_DRIVERS[12]),
    }


@dataclass(frozen=True, slots=True)
class Builder:
    """Fills .venv; `host` is the torch to reuse, `lock_fd` the lock that the processes it starts inherit."""

    root: Path
    host: TorchBuild | None
    driver: Driver | None
    terminal: Terminal
    lock_fd: int

    @property
    def venv(self) -> Path:
        return self.root / ".venv"

    def make(self) -> TorchBuild:
        """An empty .venv, then everything."""
        self.terminal.say("setup_again" if self.venv.exists() else "setup_first")
        try:
            import ensurepip  # noqa: F401  Debian ships Python without it, and a .venv without pip is no use
        except ImportError:
            raise DeckError("setup_no_venv", version=PYTHON) from None
        make_venv(self.venv, self.terminal, [self.lock_fd])
        return self.install()

    def update(self, old: Stamp) -> TorchBuild:
        """Install into .venv as it is; where the old and the new packages are at odds, make it anew."""
        broken = broken_packages(self.venv)
        missing = sorted(missing_packages(self.venv, old) | {name for name, _ in broken})
        if missing or old.requirements == DAMAGED:
            self.terminal.say("setup_repair", names=", ".join(missing[:NAMES_SHOWN]) or "?")
        else:
            self.terminal.say("setup_update")
        try:
            torch = self.install()
            if broken:
                # pip takes them for installed.
                wanted = [f"{name}=={version}" for name, version in broken]
                self.pip("setup_step_repair", ["--force-reinstall", "--no-deps", *wanted])
            return torch
        except InstallError as error:
            if error.key != "setup_failed":
                raise
            return self.make()

    def install(self) -> TorchBuild:
        requirements = (self.root / REQUIREMENTS).read_text("utf-8")
        torch = self.reuse_torch(self.host) if self.host else self.install_torch(torch_pin(requirements))
        wanted, constraints = self.venv / REQUIREMENTS, self.venv / CONSTRAINTS
        wanted.write_text(requirements_for(requirements, torch), "utf-8")
        # pip shall fail rather than fetch another torch, where a package asks for another than the one that is there.
        constraints.write_text(f"torch=={torch.version}\n", "utf-8")
        self.pip("setup_step_packages", ["-r", str(wanted), "-c", str(constraints)])
        return torch

    def reuse_torch(self, host: TorchBuild) -> TorchBuild:
        """Put the folder that holds the machine's torch behind .venv's own packages.

        --system-site-packages would not do: a Python that is itself in a virtual environment passes on only
        what the Python underneath has.
        """
        path = site_packages(self.venv) / "llamadeck-torch.pth"
        path.write_text(f"{host.folder}\n", "utf-8")
        self.terminal.say("setup_host_torch", version=host.built)
        return host

    def install_torch(self, pin: str) -> TorchBuild:
        """The first build that can be had and runs here. Raises InstallError."""
        self.report_driver()
        attempts = pip_attempts(pin, self.driver, self.terminal.language)
        failed = InstallError("setup_failed", "")
        for number, (torch, arguments) in enumerate(attempts):
            try:
                self.pip("setup_step_torch", arguments)
            except InstallError as error:
                failed = error
                # Without a network to pip's own sources no other place helps.
                if error.key == "setup_disk_full" or (error.key == "setup_no_network" and number == 0 and self.driver):
                    raise
                continue
            found = as_installed(torch, site_packages(self.venv))
            if self.driver is None or found.is_usable(self.driver, site_packages(self.venv)):
                return found
            failed = InstallError("setup_no_package", "")
        if self.driver is None or failed.key == "setup_failed":
            raise failed
        tags = " / ".join(dict.fromkeys(wheel.tag for wheel in wheels_for(self.driver) if wheel.tag))
        told = driver_params(self.driver)
        raise InstallError(
            "setup_no_build",
            failed.log,
            tags=tags,
            driver=told["driver"],
            cuda=told["cuda"],
            needed=told["needed"],
        )

    def report_driver(self) -> None:
        """Which build is taken for which driver, and why none is."""
        if self.driver is None:
            return
        wheels, told = wheels_for(self.driver), driver_params(self.driver)
        if not wheels:
            self.terminal.say("setup_no_cuda", **told)
        elif self.driver.cuda is None:
            self.terminal.say("setup_driver_silent", build="{}.{}".format(*wheels[0].cuda), **told)
        else:
            self.terminal.say("setup_driver", build="{}.{}".format(*wheels[0].cuda), **told)

    def pip(self, title: str, arguments: Sequence[str]) -> None:
        python = self.venv / "bin" / "python"
        pip_install(python, arguments, self.terminal.text(title), self.terminal, [self.lock_fd])


def main() -> int:
    """Exit code 0 when .venv is complete."""
    terminal = Terminal()
    try:
        prepare(ROOT, terminal)
    except InstallError as error:
        terminal.write(error.last_lines())
        terminal.error(error)
    except DeckError as error:
        terminal.error(error)
    except OSError as error:
        reason = error.strerror or str(error)
        terminal.error(DeckError("setup_os_error", path=str(error.filename or ROOT), reason=reason))
    except KeyboardInterrupt:
        terminal.say("setup_stopped")
    else:
        return 0
    return 1


if __name__ == "__main__":
    sys.exit(exit_code_of(main, lambda error: None))
