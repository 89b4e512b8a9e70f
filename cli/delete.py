"""The command `delete`: deletes one model from models/."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace

from cli.download import size_text
from core.common.errors import InputError
from core.common.terminal import Terminal
from core.library.maintenance import delete, folder_to_delete
from core.library.scan import size_bytes
from core.quantize.needed import require_unneeded


def add_arguments(parser: ArgumentParser, terminal: Terminal) -> None:
    parser.add_argument("name", metavar="NAME", help=terminal.text("help_model_name"))
    parser.add_argument("--yes", action="store_true", help=terminal.text("help_delete_yes"))


def run(arguments: Namespace, terminal: Terminal) -> int:
    """Delete one model, after a question where somebody can answer it."""
    folder = folder_to_delete(arguments.name)
    require_unneeded(folder)
    size = size_text(size_bytes(folder))
    if not arguments.yes:
        if not sys.stdin.isatty():
            raise InputError("delete_unconfirmed", folder=str(folder))
        terminal.say("delete_question", folder=str(folder), size=size)
        if sys.stdin.readline().strip().lower() not in ("y", "yes", "是"):
            terminal.say("delete_kept")
            return 1
    delete(arguments.name)
    terminal.say("delete_done", folder=str(folder), size=size)
    return 0
