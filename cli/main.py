"""The command line inside .venv: lists the commands, and turns errors into exit codes."""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from importlib import import_module

from core.bootstrap.machine_faults import explain_faults
from core.common.errors import DeckError, InputError
from core.common.output import OutputError, exit_code_of
from core.common.terminal import Terminal

# In the order of --help. Each is a module in cli/ with add_arguments(parser, terminal) and
# run(arguments, terminal) -> exit code.
COMMANDS = (
    "run", "starter", "fit", "gpus", "characters", "character", "download", "quantize", "models", "adapters", "verify",
    "delete", "password", "doctor", "scale", "test", "bench",
)  # fmt: skip
# These hand further arguments on, as `arguments.others`.
WITH_OTHERS = ("test", "bench")


def main(words: Sequence[str]) -> int:
    """The exit code: 0 done, 1 failed, 2 bad input (argparse ends the process with 2 by itself)."""
    terminal = Terminal()
    try:
        return run(words, terminal)
    except DeckError as error:
        terminal.error(error)
        return 2 if isinstance(error, InputError) else 1
    except KeyboardInterrupt:
        terminal.say("stopped")
        return 1


def run(words: Sequence[str], terminal: Terminal) -> int:
    """Parse `words` and run their command. Imports the module of that command alone: others take long to import."""
    name = next((word for word in words if word in COMMANDS), None)
    command = import_module(f"cli.{name}") if name else None
    parser = ArgumentParser(prog="llamadeck", description=terminal.text("about"), allow_abbrev=False)
    parsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for each in COMMANDS:
        about = terminal.text(f"help_{each}")
        # The benchmark has a --help of its own.
        each_parser = parsers.add_parser(each, help=about, add_help=each != "bench", allow_abbrev=False)
        if command and each == name:
            command.add_arguments(each_parser, terminal)
    arguments, others = parser.parse_known_args(words)
    if others and name not in WITH_OTHERS:
        parser.error(f"unrecognized arguments: {' '.join(others)}")
    arguments.others = others
    assert command, "argparse wants a command"
    code: int = command.run(arguments, terminal)
    return code


def say_unwritten(error: OutputError) -> None:
    Terminal().error(DeckError("output_failed", reason=error.reason))


if __name__ == "__main__":
    sys.exit(exit_code_of(lambda: explain_faults(lambda: main(sys.argv[1:])), say_unwritten))
