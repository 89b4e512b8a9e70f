"""The command `models`: lists the models in models/ and those in Hugging Face's cache."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from typing import Any

from cli.download import size_text
from core.common.errors import CheckpointError
from core.common.paths import COMMIT_CHARS, model_name, models_dir
from core.common.terminal import Terminal, table
from core.library.hf_cache import cache_folder, cached_snapshots
from core.library.scan import FolderFacts, LibraryEntry, disk_usage, facts, scan

COLUMNS = ("name", "size", "quantization", "source", "revision")
NO_VALUE = "-"


def add_arguments(parser: ArgumentParser, terminal: Terminal) -> None:
    parser.add_argument("--json", action="store_true", help=terminal.text("help_json"))


def run(arguments: Namespace, terminal: Terminal) -> int:
    """List all models on disk."""
    out = terminal.to_stdout()
    entries = scan()
    try:
        cached_snapshots()
    except CheckpointError as error:
        terminal.error(error)
    if arguments.json:
        out.write_json({"models": [as_object(entry) for entry in entries]})
        return 0
    if not entries:
        out.say("models_none", folder=str(models_dir()))
        return 0
    head = [out.text(f"models_{name}") for name in COLUMNS]
    for line in table([head, *map(row, entries)], left=(0, 2, 3, 4)):
        out.write(line)
    for entry in entries:
        if entry.error is not None:
            out.write(entry.error.sentence(out.language))
    if any(entry.is_cached for entry in entries):
        out.say("models_cached", folder=str(cache_folder()))
    usage = disk_usage()
    out.say("models_disk", used=size_text(usage.models_bytes), free=size_text(usage.free_bytes))
    return 0


def facts_of(entry: LibraryEntry) -> FolderFacts:
    """Of a folder whose name is no text nothing is told: there is no way to name it."""
    is_named = entry.name == model_name(entry.folder)
    return facts(entry.folder) if is_named and entry.folder.exists() else FolderFacts(0, False, None)


def as_object(entry: LibraryEntry) -> dict[str, Any]:
    """One model for programs; what is not known is null."""
    found = facts_of(entry)
    record = found.record
    return {
        "name": entry.name,
        "size_bytes": found.size_bytes,
        "quantization": entry.checkpoint and entry.checkpoint.quantization_label,
        "is_link": found.is_link,
        "is_cached": entry.is_cached,
        "source": record and record.source.address.repo,
        "revision": record and record.source.address.revision,
        "commit": record and record.commit,
        "endpoint": record and record.source.endpoint,
        "error": entry.error and str(entry.error),
    }


def row(entry: LibraryEntry) -> list[str]:
    found = facts_of(entry)
    label = entry.checkpoint.quantization_label if entry.checkpoint else NO_VALUE
    if found.record is None:
        return [entry.name, size_text(found.size_bytes), label, NO_VALUE, NO_VALUE]
    address = found.record.source.address
    revision = f"{address.revision} ({found.record.commit[:COMMIT_CHARS]})"
    return [entry.name, size_text(found.size_bytes), label, address.repo, revision]
