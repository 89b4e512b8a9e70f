"""The commands `characters` and `character`: a whole collection in and out, and one sentence for all bad input."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from core.common.paths import ROOT
from core.personas.cards import read_path
from core.personas.formats import read_card, write_card
from tests.support.cards import PICTURE, V2, V3, WEBUI, png_card


class Command:
    """The command line in a process of its own, in a folder of its own, with characters of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.characters = folder / "characters"
        self.environment = os.environ | {
            "LLAMADECK_CHARACTERS": str(self.characters),
            "PYTHONPATH": str(ROOT),
            "LC_ALL": "C.UTF-8",
        }

    def bytes(self, *arguments: str, **changes: str) -> tuple[int, bytes, str]:
        run = subprocess.run(
            [sys.executable, "-m", "cli.main", *arguments],
            cwd=self.folder,
            env=self.environment | changes,
            capture_output=True,
        )
        said = run.stderr.decode()
        assert "Traceback" not in said
        return run.returncode, run.stdout, said.strip()

    def __call__(self, *arguments: str, **changes: str) -> tuple[int, str, str]:
        code, out, said = self.bytes(*arguments, **changes)
        return code, out.decode().strip(), said


@pytest.fixture
def command(tmp_path: Path) -> Command:
    return Command(tmp_path)


@pytest.fixture
def full(command: Command) -> Command:
    """With the V3 card of the tests and a file of text-generation-webui."""
    (command.folder / "rosa.png").write_bytes(png_card(V3, "ccv3"))
    (command.folder / "Chen.yaml").write_text(WEBUI)
    code, out, said = command("character", "import", "rosa.png", "Chen.yaml")
    assert (code, out) == (0, "")
    assert said == "Rosa: added as Rosa.yaml.\nChen: added as Chen.yaml."
    return command


def test_what_was_imported_is_listed(full: Command) -> None:
    code, out, said = full("characters")
    assert (code, said) == (0, "")
    assert [line.split()[0] for line in out.splitlines()] == ["Name", "Chen", "Rosa"]
    code, out, _ = full("characters", "--json")
    rosa = {"name": "Rosa", "file": "Rosa.yaml", "picture": "Rosa.png", "tags": ["Garden", "bees"], "creator": "me",
            "greetings": 3, "error": None}  # fmt: skip
    assert json.loads(out)["characters"][1] == rosa


def test_no_characters_are_none(command: Command) -> None:
    assert command("characters") == (0, "There are no characters yet.", "")
    assert json.loads(command("characters", "--json")[1]) == {"characters": []}
    assert command("characters", LC_ALL="zh_CN.UTF-8")[1] == "还没有角色。"


def test_a_broken_file_is_listed_with_its_sentence(full: Command) -> None:
    (full.characters / "bad.yaml").write_text("- a")
    code, out, said = full("characters")
    assert code == 0 and "bad.yaml" in out
    assert said.startswith("llamadeck: bad.yaml holds a list")
    found = json.loads(full("characters", "--json")[1])["characters"]
    assert [bool(one["error"]) for one in found] == [True, False, False]


@pytest.mark.parametrize(("kind", "name"), [("yaml", "Rosa.yaml"), ("json", "Rosa.json"), ("png", "Rosa.png"),
                                            ("v2", "Rosa.json")])  # fmt: skip
def test_an_export_holds_all_of_the_card(full: Command, kind: str, name: str) -> None:
    code, out, said = full("character", "export", "rosa", "--format", kind)
    assert (code, out, said) == (0, "", f"Rosa: written to {name}.")
    assert write_card(read_path(full.folder / name).character, 3) == V3
    if kind == "json":
        assert json.loads((full.folder / name).read_text()) == V3
    if kind == "png":
        assert read_path(full.folder / name).picture == PICTURE


def test_an_export_goes_where_it_is_told(full: Command) -> None:
    (full.folder / "there").mkdir()
    for out, path in (("there", "there/Chen.yaml"), ("x.png", "x.png"), ("new/y.yaml", "new/y.yaml")):
        kind = "png" if out.endswith("png") else "yaml"
        assert full("character", "export", "Chen", "--format", kind, "--out", out)[0] == 0
        assert read_path(full.folder / path).character.name == "Chen"
    code, written, said = full.bytes("character", "export", "Chen", "--out", "-")
    assert (code, said) == (0, "")
    assert written == (full.folder / "there/Chen.yaml").read_bytes()


def test_an_export_writes_over_a_file_only_where_it_was_named(full: Command) -> None:
    (full.folder / "Rosa.yaml").write_text("mine")
    code, _, said = full("character", "export", "Rosa")
    assert code == 2 and "Rosa.yaml is there already" in said
    assert (full.folder / "Rosa.yaml").read_text() == "mine"
    assert full("character", "export", "Rosa", "--out", "Rosa.yaml")[0] == 0


def test_the_good_files_are_imported_and_the_bad_ones_said(command: Command) -> None:
    (command.folder / "a.json").write_text(json.dumps(V2))
    (command.folder / "b.png").write_bytes(PICTURE)
    (command.folder / "c.yaml").write_text("- a")
    (command.folder / "d.yaml").write_text(WEBUI)
    code, _, said = command("character", "import", "a.json", "b.png", "c.yaml", "none.png", "d.yaml")
    assert code == 1
    lines = said.splitlines()
    assert [line.startswith("llamadeck: ") for line in lines] == [False, True, True, True, False]
    assert all(file in line for file, line in zip(("b.png", "c.yaml", "none.png"), lines[1:4], strict=True))
    assert sorted(path.name for path in command.characters.iterdir()) == ["Chen.yaml", "Rosa.yaml"]


def test_nothing_to_import_is_bad_input(full: Command) -> None:
    code, _, said = full("character", "import", "rosa.png")
    assert code == 2 and "already a character called Rosa" in said
    assert full("character", "import", "none.png")[0] == 2


def test_a_newer_card_is_imported_and_said(command: Command) -> None:
    (command.folder / "a.json").write_text(json.dumps(V3 | {"spec_version": "3.5"}))
    code, _, said = command("character", "import", "a.json")
    assert code == 0 and "version 3.5" in said


@pytest.mark.parametrize(
    ("arguments", "quoted"),
    [
        (["character"], "ACTION"),
        (["character", "fly"], "'fly'"),
        (["character", "import"], "FILE"),
        (["character", "export", "Nobody"], "“Nobody”"),
        (["character", "export", "../../etc/passwd"], "../../etc/passwd"),
        (["character", "export", "Chen", "--format", "docx"], "docx is no format"),
        (["characters", "x"], "x"),
    ],
)
def test_bad_input_ends_with_exit_code_2_and_names_the_value(
    command: Command, arguments: list[str], quoted: str
) -> None:
    code, out, said = command(*arguments)
    assert (code, out) == (2, "")
    assert quoted in said


def test_a_folder_that_cannot_be_written_is_a_failure(full: Command) -> None:
    code, _, said = full("character", "export", "Chen", "--out", "/proc/none/x.yaml")
    assert code == 1 and "/proc/none/x.yaml could not be written" in said


def test_the_round_trip_of_a_collection_loses_nothing(full: Command) -> None:
    assert read_path(full.characters / "Rosa.yaml").character == read_card(V3)


def test_a_second_card_of_a_name_has_a_way_in(full: Command) -> None:
    code, _, said = full("character", "import", "rosa.png")
    assert code == 2 and "--keep-both" in said
    code, _, said = full("character", "import", "--keep-both", "rosa.png")
    assert (code, said) == (0, "Rosa (2): added as Rosa (2).yaml.")
