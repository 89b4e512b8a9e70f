"""The command `adapters`: lists the LoRA adapters on disk, for all models or for one, and deletes one."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from cli.download import size_text
from core.checkpoint.adapter_folders import list_adapters, shared_adapter
from core.common.paths import adapters_dir
from core.common.terminal import Terminal, table
from core.common.values import printable
from core.library.adapters import FoundAdapter, find_adapters, read_alone
from core.library.maintenance import delete_adapter
from core.library.scan import find
from core.quantize.needed import require_unneeded

COLUMNS = ("name", "rank", "size", "base", "state")
NO_VALUE = "-"


def add_arguments(parser: ArgumentParser, terminal: Terminal) -> None:
    parser.add_argument("model", metavar="MODEL", nargs="?", help=terminal.text("help_adapters_model"))
    parser.add_argument("--delete", metavar="NAME", help=terminal.text("help_adapters_delete"))
    parser.add_argument("--json", action="store_true", help=terminal.text("help_json"))


def run(arguments: Namespace, terminal: Terminal) -> int:
    """List the adapters; with a model, its own too, and whether it can have each."""
    if arguments.delete is not None:
        folder = shared_adapter(arguments.delete)
        require_unneeded(folder)
        delete_adapter(folder)
        terminal.say("adapters_deleted", folder=printable(str(folder)))
        return 0
    out = terminal.to_stdout()
    found = find_adapters(find(arguments.model)) if arguments.model else list(map(read_alone, list_adapters()))
    if arguments.json:
        out.write_json({"adapters": [as_object(one) for one in found]})
        return 0
    if not found:
        out.say("adapters_none", folder=str(adapters_dir()))
        return 0
    head = [out.text(f"adapters_{name}") for name in COLUMNS]
    for line in table([head, *(row(one, out) for one in found)], left=(0, 3, 4)):
        out.write(line)
    for one in found:
        if one.error is not None:
            out.write(one.error.sentence(out.language))
    if any(one.shape is not None and one.shape.changes_experts for one in found):
        out.say("adapters_of_experts")
    return 0


def as_object(one: FoundAdapter) -> dict[str, object]:
    """One adapter for programs; what is not known is null."""
    return {
        "name": one.name,
        "folder": str(one.folder),
        "rank": one.shape and one.shape.rank,
        "size_bytes": one.shape and one.shape.num_bytes,
        "base": (one.shape and one.shape.base_name) or None,
        "changes_experts": one.shape and one.shape.changes_experts,
        "is_of_other_base": one.is_of_other_base,
        "error": one.error and str(one.error),
    }


def row(one: FoundAdapter, out: Terminal) -> list[str]:
    if one.shape is None:
        return [one.name, NO_VALUE, NO_VALUE, NO_VALUE, out.text("adapters_refused")]
    usable = "adapters_with_room" if one.shape.changes_experts else "adapters_usable"
    state = "adapters_other_base" if one.is_of_other_base else usable
    return [
        one.name, str(one.shape.rank), size_text(one.shape.num_bytes), one.shape.base_name or NO_VALUE, out.text(state),
    ]  # fmt: skip
