"""Prepares .venv, under the system's Python, when nothing is installed yet; knows no model and no page.

The stamp of core/stamp.py goes first and comes last, so a .venv without one is half-made. It is made anew,
for nobody can tell what is missing in it.
"""

from __future__ import annotations

import fcntl
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from core.errors import DeckError
from core.pip_install import InstallError, pip_install, run_step
from core.settings import ROOT
from core.stamp import (
    PYTHON,
    REQUIREMENTS,
    STAMP,
    Stamp,
    is_complete,
    read_stamp,
    wanted_stamp,
    write_stamp,
)
from core.terminal import Terminal
from core.torch_build import (
    TorchBuild,
    find_host_torch,
    has_gpu,
    host_pin,
    pip_attempts,
    requirements_for,
    torch_pin,
)

CONSTRAINTS = "constraints.txt"


def can_update(stamp: Stamp | None, root: Path, host: TorchBuild | None) -> bool:
    """Whether pip can bring a finished .venv up to date, instead of making it anew."""
    if stamp is None or (stamp.python, stamp.root) != (PYTHON, str(root)):
        return False
    return stamp.torch == host if host else stamp.torch.source != "host"


@contextmanager
def lock(root: Path, terminal: Terminal) -> Iterator[int]:
    """One setup at a time. pip inherits the lock, so it also covers a pip whose setup was killed."""
    descriptor = os.open(root / ".venv.lock", os.O_RDWR | os.O_CREAT, 0o644)
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
    with lock(root, terminal) as held:
        if is_complete(root):
            return
        venv, host = root / ".venv", find_host_torch()
        old = read_stamp(venv)
        (venv / STAMP).unlink(missing_ok=True)
        builder = Builder(root, host, terminal, held)
        torch = builder.update() if can_update(old, root, host) else builder.make()
        write_stamp(venv, wanted_stamp(root, torch))
        terminal.say("setup_done")


@dataclass(frozen=True, slots=True)
class Builder:
    """Fills .venv; `host` is the torch to reuse, `held` the lock that the processes it starts inherit."""

    root: Path
    host: TorchBuild | None
    terminal: Terminal
    held: int

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
        command = [sys.executable, "-m", "venv", "--clear", str(self.venv)]
        run_step(command, self.terminal.text("setup_step_venv"), self.terminal, [self.held])
        return self.install()

    def update(self) -> TorchBuild:
        """Install into .venv as it is; where the old and the new packages are at odds, make it anew."""
        self.terminal.say("setup_update")
        try:
            return self.install()
        except InstallError as error:
            if error.key != "setup_failed":
                raise
            return self.make()

    def install(self) -> TorchBuild:
        requirements = (self.root / REQUIREMENTS).read_text("utf-8")
        torch = self.reuse_torch(self.host) if self.host else self.install_torch(torch_pin(requirements))
        wanted = self.venv / REQUIREMENTS
        wanted.write_text(requirements_for(requirements, torch), "utf-8")
        self.pip("setup_step_packages", ["-r", str(wanted), *self.hold(torch)])
        return torch

    def hold(self, torch: TorchBuild) -> list[str]:
        """What makes pip fail, instead of fetching another torch, where a package asks for another than the host's."""
        if torch.source != "host":
            return []
        constraints = self.venv / CONSTRAINTS
        constraints.write_text(f"{host_pin(torch)}\n", "utf-8")
        return ["-c", str(constraints)]

    def reuse_torch(self, host: TorchBuild) -> TorchBuild:
        """Put the folder that holds the machine's torch behind .venv's own packages.

        --system-site-packages would not do: a Python that is itself in a virtual environment passes on only
        what the Python underneath has.
        """
        path = self.venv / "lib" / f"python{PYTHON}" / "site-packages" / "llamadeck-torch.pth"
        path.write_text(f"{host.folder}\n", "utf-8")
        self.terminal.say("setup_host_torch", version=host.built)
        return host

    def install_torch(self, pin: str) -> TorchBuild:
        *tries, (last, last_arguments) = pip_attempts(pin, has_gpu())
        for torch, arguments in tries:
            try:
                self.pip("setup_step_torch", arguments)
                return torch
            except InstallError as error:
                if error.key == "setup_disk_full":
                    raise
                if error.key == "setup_no_network":
                    break
        self.pip("setup_step_torch", last_arguments)
        return last

    def pip(self, title: str, arguments: Sequence[str]) -> None:
        python = self.venv / "bin" / "python"
        pip_install(python, arguments, self.terminal.text(title), self.terminal, [self.held])


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
    sys.exit(main())
