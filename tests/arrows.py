"""Which part of the program may import which: the table, what the files really import, and the table as a picture.

`python -m tests.arrows --mermaid` prints the picture. tests/test_arrows.py holds files, table and picture equal.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1]
# A part is a package, a folder of one, or one file. Each may import itself, "common" and the parts beside its name.
# Nothing stands above what imports it.
ARROWS = {
    "cli": "access bootstrap checkpoint doctor gpu hub library memory personas quantize remote server standby starter"
    " vllm benchmarks tests",
    "serve": "access api chat library remote server standby ui.server ui.shared",
    "Home": "ui ui.chat ui.download ui.settings ui.shared",
    "pages": "chat ui.characters ui.chat ui.download ui.load ui.monitor ui.settings ui.shared",
    "ui": "library memory ui.chat ui.load ui.monitor ui.shared",
    "ui.download": "checkpoint hub library memory quantize ui.load ui.shared",
    "ui.monitor": "engine gpu memory ui.load ui.shared",
    "ui.load": "checkpoint engine gpu library memory remote ui.shared",
    "ui.characters": "chat personas ui.shared",
    "ui.chat": "checkpoint chat documents engine library memory personas ui.load ui.shared",
    "ui.settings": "access doctor library standby ui.server ui.shared",
    "ui.shared": "access chat engine gpu hub library memory personas quantize remote standby starter",
    "ui.server": "access bootstrap",
    "api": "access chat checkpoint engine library personas standby",
    "doctor": "access bootstrap chat gpu hub memory personas remote server standby",
    "chat": "checkpoint documents engine personas tokenizer",
    "remote": "engine memory",
    "standby": "engine library memory",
    "quantize.child": "chat checkpoint quantize starter tokenizer worker.kernels worker.model",
    "quantize": "bootstrap checkpoint engine hub library memory starter tokenizer",
    "worker": "bootstrap checkpoint engine gpu memory tokenizer worker.decode worker.kernels worker.model",
    "worker.decode": "engine memory worker.kernels worker.model",
    "worker.model": "checkpoint memory worker.kernels",
    "worker.kernels": "checkpoint memory",
    "engine": "gpu memory",
    "starter": "bootstrap library",
    "library": "checkpoint hub memory",
    "vllm": "bootstrap checkpoint memory",
    "memory": "checkpoint gpu",
    "hub": "checkpoint",
    "tokenizer": "checkpoint",
    "gpu": "bootstrap",
    "access": "",
    "bootstrap": "",
    "checkpoint": "",
    "documents": "",
    "personas": "",
    "server": "",
    "common": "",
}
# They use what they measure or test.
FREE = ("benchmarks", "tests")
SOURCES = (*FREE, "cli", "core", "pages", "ui", "Home", "serve")
# Only these may import what computes, and only these what draws.
TORCH = ("torch", "transformers", "gptqmodel", "optimum", "accelerate", "triton")
TORCH_PLACES = ("core.worker", "core.starter.quantize", "core.quantize.child", *FREE)
STREAMLIT_PLACES = ("Home", "serve", "pages", "ui", *FREE)
# Each is the program of a process of its own, started by its name; an import would run it in the wrong one.
STARTED_BY_NAME = ("core.worker.main", "core.chat.template_child", "core.personas.pattern_child",
                   "core.documents.reading_child", "core.quantize.child.main", "ui.server.start")  # fmt: skip
Import = tuple[str, str]


def is_within(module: str, packages: tuple[str, ...]) -> bool:
    return any(module == package or module.startswith(package + ".") for package in packages)


@cache
def modules() -> Mapping[str, Path]:
    """Every file of the program by the name that an import gives it."""
    paths = [path for name in SOURCES for path in (ROOT / f"{name}.py", *(ROOT / name).rglob("*.py")) if path.is_file()]
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in paths}


@cache
def imports() -> frozenset[Import]:
    """Every import as (module, imported module), wherever in a file it stands; of other people's packages as well."""
    return frozenset((name, target) for name, path in modules().items() for target in _targets(path.read_text("utf-8")))


def _targets(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in modules() else node.module or "" for name in names)


def part(module: str) -> str:
    """The part of the table, or of FREE, that a module of ours belongs to."""
    name = module.removeprefix("core.")
    while name not in ARROWS and name not in FREE:
        name = name.rpartition(".")[0]
        if not name:
            raise ValueError(f"{module} belongs to no part: add its package to ARROWS in tests/arrows.py")
    return name


def used() -> Mapping[tuple[str, str], list[Import]]:
    """Which arrows the files need, each with the imports that need it."""
    arrows: dict[tuple[str, str], list[Import]] = {}
    for name, target in sorted(imports()):
        if target in modules() and (arrow := (part(name), part(target)))[0] != arrow[1]:
            arrows.setdefault(arrow, []).append((name, target))
    return {arrow: found for arrow, found in arrows.items() if arrow[0] not in FREE and arrow[1] != "common"}


def allowed() -> set[tuple[str, str]]:
    return {(name, target) for name, targets in ARROWS.items() for target in targets.split()}


def order() -> list[str]:
    """All parts, each after everything that it imports; graphlib.CycleError where there is a circle."""
    return list(TopologicalSorter({name: targets.split() for name, targets in ARROWS.items()}).static_order())


def mermaid() -> str:
    """The table as a picture. An arrow that follows from two others is left out; so is "common", which all use."""
    below: dict[str, set[str]] = {}
    lines = []
    for name in order():
        targets = set(ARROWS.get(name, "").split())
        below[name] = targets.union(*(below[target] for target in targets))
        drawn = targets - set().union(*(below[target] for target in targets)) - set(FREE)
        lines += [f"    {name} --> {target}" for target in sorted(drawn)]
    return "\n".join(["graph TD", *reversed(lines)])


if __name__ == "__main__":
    if sys.argv[1:] != ["--mermaid"]:
        sys.exit("usage: python -m tests.arrows --mermaid")
    print(mermaid())
