"""The documents name files that are there, and the picture of the parts is the one that the table makes."""

import re
from pathlib import Path

import pytest

from core.common.paths import ROOT
from tests import arrows

DOCUMENTS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted(
    (ROOT / "docs").glob("*.md")
)
PLACES = "cli|core|ui|pages|tests|docs|benchmarks|locales|deploy"
# What only looks like a file of the tree: a place for something that a reader is to make.
PATH = re.compile(rf"`((?:{PLACES})/[\w./{{}},*-]*)`")
LINK = re.compile(r"\]\((?!https?:|#)([^)#]+)")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_file_that_a_document_names_is_there(document: Path) -> None:
    text = document.read_text("utf-8")
    named = [name for name in PATH.findall(text) if not re.search("NAME|Name", name)]
    assert [name for name in named if not any(ROOT.glob(name.rstrip("/")))] == []
    assert [link for link in LINK.findall(text) if not (document.parent / link).exists()] == []


def test_the_picture_of_the_parts_is_the_tables() -> None:
    assert f"```mermaid\n{arrows.mermaid()}\n```" in (ROOT / "docs" / "architecture.md").read_text("utf-8"), (
        "put what `python -m tests.arrows --mermaid` prints into docs/architecture.md"
    )
