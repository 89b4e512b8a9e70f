"""The command `adapters`: lists the LoRA adapters on disk, for all models or for one, and deletes one."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from cli.download import size_text
from core.checkpoint.adapter_folders import list_adapters, listed_adapter
from core.common.paths import adapters_dir
from core.common.terminal import Terminal, table, width
from core.common.values import printable
from core.library.adapters import FoundAdapter, find_adapters, read_for_all
from core.library.maintenance import delete_adapter
from core.library.scan import find, folder_of, scan
from core.quantize.needed import require_unneeded

COLUMNS = ("name", "rank", "size", "base", "state")
NO_VALUE = "-"
# So wide are the names of the models that can have an adapter; more of them stand below the table, none is cut.
MODELS_COLUMNS = 32


def add_arguments(parser: ArgumentParser, terminal: Terminal) -> None:
    parser.add_argument("model", metavar="MODEL", nargs="?", help=terminal.text("help_adapters_model"))
    parser.add_argument("--delete", metavar="NAME", help=terminal.text("help_adapters_delete"))
    parser.add_argument("--json", action="store_true", help=terminal.text("help_json"))


def run(arguments: Namespace, terminal: Terminal) -> int:
    """List the adapters with the models here that can have each; with a model, its own too, and whether it can."""
    out = terminal.to_stdout()
    if arguments.delete is not None:
        folder = listed_adapter(arguments.delete, folder_of(arguments.model) if arguments.model else None)
        require_unneeded(folder)
        delete_adapter(folder)
        if arguments.json:
            out.write_json({"deleted": {"name": folder.name, "folder": str(folder)}})
        else:
            terminal.say("adapters_deleted", folder=printable(str(folder)))
        return 0
    found = find_adapters(find(arguments.model)) if arguments.model else of_all_models()
    if arguments.json:
        out.write_json({"adapters": [as_object(one) for one in found]})
        return 0
    if not found:
        out.say("adapters_none", folder=str(adapters_dir()))
        return 0
    head = [out.text(f"adapters_{name}") for name in COLUMNS]
    for line in table([head, *(row(one, out) for one in found)], left=(0, 3, 4), shrinking=(0, 3)):
        out.write(line)
    for one in found:
        if one.error is not None:
            out.write(one.error.sentence(out.language))
        elif one.models and not fits_column(one.models):
            out.say("adapters_models", name=one.name, models=", ".join(one.models))
    if any(one.shape is not None and one.shape.changes_experts for one in found):
        out.say("adapters_of_experts")
    return 0


def of_all_models() -> list[FoundAdapter]:
    folders = list_adapters()
    models = [entry.checkpoint for entry in scan() if entry.checkpoint is not None] if folders else []
    return [read_for_all(folder, models) for folder in folders]


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
        "models": one.models and list(one.models),
        "error": one.error and str(one.error),
    }


def row(one: FoundAdapter, out: Terminal) -> list[str]:
    if one.shape is None:
        return [one.name, NO_VALUE, NO_VALUE, NO_VALUE, out.text("adapters_refused")]
    return [
        one.name, str(one.shape.rank), size_text(one.shape.num_bytes), one.shape.base_name or NO_VALUE, use(one, out),
    ]  # fmt: skip


def fits_column(models: tuple[str, ...]) -> bool:
    return width(", ".join(models)) <= MODELS_COLUMNS


def use(one: FoundAdapter, out: Terminal) -> str:
    """What is known of its use: by the model that was named, else by which of those here."""
    if one.models == ():
        return out.text("adapters_no_model")
    words = []
    if one.models:
        is_short = fits_column(one.models)
        words.append(", ".join(one.models) if is_short else out.text("adapters_count", count=len(one.models)))
    if one.is_of_other_base:
        words.append(out.text("adapters_other_base"))
    elif one.shape is not None and one.shape.changes_experts:
        words.append(out.text("adapters_with_room"))
    return "; ".join(words) or out.text("adapters_usable")
