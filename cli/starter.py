"""The command `starter`: builds the starter model, or takes the finished build."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from core.common.terminal import Terminal
from core.starter import build as starter


def add_arguments(parser: ArgumentParser, terminal: Terminal) -> None:
    """None."""


def run(arguments: Namespace, terminal: Terminal) -> int:
    path = starter.build(terminal.steps("starter"))
    terminal.say("starter_done", path=str(path))
    return 0
