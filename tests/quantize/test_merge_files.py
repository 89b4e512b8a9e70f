"""Files that cannot be read or written while adapters are merged: told in words, and nothing half made stays as whole.

Each ended in the traceback of a library.
"""

from __future__ import annotations

import errno
import os
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError

from core.common.errors import DeckError
from core.quantize.child import merge as merging
from core.quantize.options import QuantizeOptions, merge_steps
from core.quantize.source import read_plain
from tests.support.checkpoints import WEIGHTS


def ignore(fraction: float, **more: int) -> None:
    """Nobody is told."""


def reason(plain: Path, adapter: Path, folder: Path) -> DeckError:
    with pytest.raises(DeckError) as raised:
        merging.merge(plain, QuantizeOptions(adapters=(adapter,)), folder, ignore)
    assert not folder.exists()
    return raised.value


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def remove(path: Path) -> None:
    path.unlink()


def spoil(path: Path) -> None:
    path.write_bytes(b"\xff" * path.stat().st_size)


@pytest.mark.parametrize(("damage", "key"), [(cut, "truncated"), (remove, "unreadable"), (spoil, "corrupt_weights")])
def test_a_source_that_is_damaged_after_its_header_was_read_is_told(
    plain: Path,
    adapter: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    damage: Callable[[Path], None],
    key: str,
) -> None:
    source = Path(shutil.copytree(plain, tmp_path / "source"))
    model = read_plain(source)
    steps = merge_steps(model, QuantizeOptions(adapters=(adapter,)))
    monkeypatch.setattr(merging, "read_plain", lambda folder: model)
    monkeypatch.setattr(merging, "merge_steps", lambda *_: steps)
    damage(source / WEIGHTS)
    error = reason(source, adapter, tmp_path / "merged")
    assert error.key == key and WEIGHTS in str(error)


@contextmanager
def files_up_to(size_bytes: int) -> Iterator[None]:
    """The system takes no larger file from this process."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_what_the_system_refuses_to_write_is_told(plain: Path, adapter: Path, tmp_path: Path) -> None:
    with files_up_to(100_000):
        error = reason(plain, adapter, tmp_path / "merged")
    assert error.key == "download_write" and WEIGHTS in str(error) and os.strerror(errno.EFBIG) in str(error)


def full_for_weights(*_: object, **__: Any) -> None:
    # So safetensors 0.8 says it on a full tmpfs.
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


def full_for_small_files(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    ("place", "fault"),
    [
        ("save_file", full_for_weights),
        ("shutil.copyfile", full_for_small_files),
        ("write_merged", full_for_small_files),
    ],
)
def test_a_full_disk_is_told(
    plain: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, fault: Callable[..., None]
) -> None:
    monkeypatch.setattr(f"core.quantize.child.merge.{place}", fault)
    error = reason(plain, adapter, tmp_path / "merged")
    assert error.key == "quantize_disk_full" and "is full" in str(error)
    monkeypatch.undo()
    assert merging.merge(plain, QuantizeOptions(adapters=(adapter,)), tmp_path / "merged", ignore).is_dir()
