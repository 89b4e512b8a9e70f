"""The command `verify`: checks every byte of one model."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from cli.download import size_text
from core.common.terminal import Terminal
from core.library.maintenance import verify


def add_arguments(parser: ArgumentParser, terminal: Terminal) -> None:
    parser.add_argument("name", metavar="NAME", help=terminal.text("help_model_name"))


def run(arguments: Namespace, terminal: Terminal) -> int:
    """Check every byte of one model. The exit code is 1 where something is wrong."""
    name = arguments.name
    step = terminal.text("verify_step", name=name)
    found = verify(name, lambda done, total: terminal.step(step, done / total if total else 1.0))
    for problem in found.problems:
        terminal.error(problem)
    if not found.is_right:
        return 1
    out = terminal.to_stdout()
    if found.has_record:
        out.say("verify_right", name=name, size=size_text(found.checked_bytes))
    else:
        out.say("verify_structure", name=name)
    return 0
