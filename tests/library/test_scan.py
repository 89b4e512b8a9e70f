"""The folders under models/: each is an entry, whatever is in it, and none takes the others with it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from core.common.errors import CheckpointError, InputError
from core.library.scan import find, scan
from tests.support.checkpoints import Recipe, make_checkpoint


def make(folder: Path) -> None:
    make_checkpoint(folder, Recipe(num_layers=1))


def test_no_folder_of_models_is_an_empty_library(models: Path) -> None:
    assert scan() == []
    models.rmdir()
    assert scan() == []


def test_models_come_by_name_whatever_its_case(models: Path) -> None:
    for name in ("beta", "Alpha", "模型", "alpha-2", "Zeta"):
        make(models / name)
    entries = scan()
    assert [entry.name for entry in entries] == ["Alpha", "alpha-2", "beta", "Zeta", "模型"]
    assert all(entry.checkpoint is not None and entry.error is None for entry in entries)


def test_files_and_unfinished_folders_are_no_models(models: Path) -> None:
    make(models / ".building-x")
    (models / "README.md").write_text("x")
    (models / "link").symlink_to(models / "nowhere")
    assert scan() == []


def test_a_linked_folder_is_a_model(models: Path, tmp_path: Path) -> None:
    make(tmp_path / "elsewhere")
    (models / "linked").symlink_to(tmp_path / "elsewhere")
    assert [entry.name for entry in scan() if entry.checkpoint] == ["linked"]


def test_a_broken_folder_is_an_entry_that_says_why_and_hides_no_other(models: Path) -> None:
    make(models / "whole")
    make(models / "cut")
    with (models / "cut" / "model.safetensors").open("ab") as file:
        file.truncate(5000)
    (models / "empty").mkdir()
    (models / "list").mkdir()
    (models / "list" / "config.json").write_text("[]")
    errors = {entry.name: entry.error.key if entry.error else None for entry in scan()}
    assert errors == {"cut": "truncated", "empty": "no_config", "list": "bad_json", "whole": None}


def test_a_folder_whose_name_is_no_text_is_an_entry_that_can_be_shown(models: Path) -> None:
    """A name that is no UTF-8 cannot be sent to a browser; the whole page would have failed."""
    make(models / "whole")
    os.mkdir(os.path.join(os.fsencode(models), b"bad\xff"))
    entries = scan()
    assert [entry.name for entry in entries] == ["bad?", "whole"]
    assert entries[0].error is not None and entries[0].error.key == "folder_name"
    assert all(entry.name.encode() for entry in entries)


def test_a_file_in_the_librarys_place_is_said_in_words(models: Path) -> None:
    models.rmdir()
    models.write_text("not a folder")
    with pytest.raises(CheckpointError) as caught:
        scan()
    assert caught.value.key == "unreadable"


def test_a_model_is_found_by_its_name(models: Path) -> None:
    make(models / "Llama-2-7B-Chat-GPTQ")
    assert find("Llama-2-7B-Chat-GPTQ").folder == models / "Llama-2-7B-Chat-GPTQ"


def test_an_unknown_name_is_answered_with_near_ones(models: Path) -> None:
    for name in ("Llama-2-7B-Chat-GPTQ", "Llama-2-13B-Chat-GPTQ", "SmolLM2-135M-Instruct-GPTQ"):
        make(models / name)
    with pytest.raises(InputError) as caught:
        find("llama-2-7b-chat-gptq")
    assert str(caught.value.params["near"]).startswith("Llama-2-7B-Chat-GPTQ")
    with pytest.raises(InputError) as caught:
        find("?")
    assert str(caught.value.params["near"]).count(", ") == 2


def test_in_an_empty_library_it_is_said_how_to_get_a_model(models: Path) -> None:
    """It was asked once whether "-" was meant."""
    with pytest.raises(InputError) as caught:
        find("any")
    assert caught.value.key == "unknown_model_of_none" and caught.value.params == {"name": "any"}
    assert "./llamadeck download" in caught.value.sentence("zh")


@pytest.mark.parametrize("name", ["", ".", "..", "../models", "/etc", "whole/", ".hidden", "nul\0"])
def test_no_name_leads_out_of_the_library(models: Path, name: str) -> None:
    make(models / "whole")
    make(models / ".hidden")
    with pytest.raises(InputError):
        find(name)


def test_a_broken_model_that_is_asked_for_says_what_is_wrong(models: Path) -> None:
    (models / "empty").mkdir()
    with pytest.raises(CheckpointError) as caught:
        find("empty")
    assert caught.value.key == "no_config"
