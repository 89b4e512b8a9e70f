"""The command `test`: runs every check; hands further arguments on to pytest."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from core.common.terminal import Terminal


def add_arguments(parser: ArgumentParser, terminal: Terminal) -> None:
    """Argparse answers --help itself: pytest would do so only after all the other checks."""
    parser.description = terminal.text("help_test")
    parser.add_argument("--quick", action="store_true", help=terminal.text("help_test_quick"))
    parser.add_argument("--coverage", action="store_true", help=terminal.text("help_test_coverage"))


def run(arguments: Namespace, terminal: Terminal) -> int:
    from tests import run as tests_run

    return tests_run.main(arguments.others, terminal, arguments.quick, arguments.coverage)
