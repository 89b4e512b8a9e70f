"""The commands `models`, `verify` and `delete`: what is on disk, whether it is right, and away with it."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from typing import Any

from cli.download import size_text
from core.common.errors import InputError
from core.common.paths import models_dir
from core.common.terminal import Terminal, table
from core.library.maintenance import delete, verify
from core.library.scan import FolderFacts, LibraryEntry, disk_usage, facts, folder_of, scan, size_bytes

DONE, FAILED = 0, 1
COLUMNS = ("name", "size", "quantization", "source", "revision")
UNTOLD = "-"
COMMIT_CHARS = 8


def run_models(known: Namespace, terminal: Terminal) -> int:
    """List what is in models/."""
    out = terminal.to_stdout()
    entries = scan()
    if known.json:
        out.write(json.dumps({"models": [as_object(entry) for entry in entries]}, ensure_ascii=False, indent=1))
        return DONE
    if not entries:
        out.say("models_none", folder=str(models_dir()))
        return DONE
    head = [out.text(f"models_{name}") for name in COLUMNS]
    for line in table([head, *map(row, entries)], left=(0, 2, 3, 4)):
        out.write(line)
    for entry in entries:
        if entry.error is not None:
            out.write(entry.error.sentence(out.language))
    usage = disk_usage()
    out.say("models_disk", used=size_text(usage.models_bytes), free=size_text(usage.free_bytes))
    return DONE


def facts_of(entry: LibraryEntry) -> FolderFacts:
    """Of a folder whose name is no text nothing is told: there is no way to name it."""
    folder = models_dir() / entry.name
    return facts(folder) if folder.exists() else FolderFacts(0, False, None)


def as_object(entry: LibraryEntry) -> dict[str, Any]:
    """One model for programs; what is not known is null."""
    found = facts_of(entry)
    record = found.record
    return {
        "name": entry.name,
        "size_bytes": found.size_bytes,
        "quantization": entry.checkpoint and entry.checkpoint.quantization.label,
        "is_link": found.is_link,
        "source": record and record.source.address.repo,
        "revision": record and record.source.address.revision,
        "commit": record and record.commit,
        "endpoint": record and record.source.endpoint,
        "error": entry.error and str(entry.error),
    }


def row(entry: LibraryEntry) -> list[str]:
    found = facts_of(entry)
    label = entry.checkpoint.quantization.label if entry.checkpoint else UNTOLD
    if found.record is None:
        return [entry.name, size_text(found.size_bytes), label, UNTOLD, UNTOLD]
    address = found.record.source.address
    revision = f"{address.revision} ({found.record.commit[:COMMIT_CHARS]})"
    return [entry.name, size_text(found.size_bytes), label, address.repo, revision]


def run_verify(known: Namespace, terminal: Terminal) -> int:
    """Check every byte of one model. The exit code is 1 where something is wrong."""
    name = known.name
    step = terminal.text("verify_step", name=name)
    found = verify(name, lambda done, total: terminal.step(step, done / total if total else 1.0))
    for problem in found.problems:
        terminal.error(problem)
    if not found.is_right:
        return FAILED
    out = terminal.to_stdout()
    if found.has_record:
        out.say("verify_right", name=name, size=size_text(found.checked_bytes))
    else:
        out.say("verify_structure", name=name)
    return DONE


def run_delete(known: Namespace, terminal: Terminal) -> int:
    """Delete one model, after a question where somebody can answer it."""
    folder = folder_of(known.name)
    size = size_text(size_bytes(folder))
    if not known.yes:
        if not sys.stdin.isatty():
            raise InputError("delete_unconfirmed", folder=str(folder))
        terminal.say("delete_question", folder=str(folder), size=size)
        if sys.stdin.readline().strip().lower() not in ("y", "yes", "是"):
            terminal.say("delete_kept")
            return FAILED
    delete(known.name)
    terminal.say("delete_done", folder=str(folder), size=size)
    return DONE
