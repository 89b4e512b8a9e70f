"""The command `bench`: measures a model's speed; benchmarks/bench.py has its arguments."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from core.common.terminal import Terminal


def add_arguments(parser: ArgumentParser, terminal: Terminal) -> None:
    parser.description = terminal.text("help_bench")


def run(arguments: Namespace, terminal: Terminal) -> int:
    from benchmarks import bench

    return bench.main(arguments.others, terminal)
