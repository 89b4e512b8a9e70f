"""Models on disk: verified to the byte, deleted without following a link, imported whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from core.common.errors import CheckpointError, DeckError, InputError
from core.hub.address import Address
from core.hub.record import FILE, Record, read_record, write_record
from core.hub.source import RemoteFile, Source
from core.library.fingerprint import fingerprint
from core.library.maintenance import delete, delete_adapter, import_folder, verify
from core.library.scan import disk_usage, facts, find, free_bytes, scan
from tests.support.adapters import write_adapter
from tests.support.checkpoints import Recipe, make_checkpoint
from tests.support.hub_models import WEIGHTS, hashes

SOURCE = Source(Address("some/tiny-GPTQ", "main"), "https://hub.invalid")


def make(folder: Path) -> Path:
    make_checkpoint(folder, Recipe(num_layers=1))
    return folder


def make_recorded(folder: Path) -> Path:
    make(folder)
    sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
    files = tuple(RemoteFile(name, sizes[name], sha256, None, "/x") for name, sha256 in hashes(folder).items())
    write_record(folder, Record(SOURCE, "c" * 40, files))
    return folder


def quiet(done: int, total: int) -> None:
    """Nobody looks at the progress."""


def test_a_right_model_is_verified_with_its_progress(models: Path) -> None:
    folder = make_recorded(models / "tiny")
    seen: list[tuple[int, int]] = []
    found = verify("tiny", lambda done, total: seen.append((done, total)))
    size = sum(path.stat().st_size for path in folder.iterdir() if path.name != FILE)
    assert found.is_right and found.has_record and found.checked_bytes == size
    assert seen == sorted(seen) and seen[-1] == (size, size)


@pytest.mark.parametrize(
    ("change", "key"), [("flip", "verify_wrong"), ("cut", "verify_wrong"), ("gone", "verify_missing")]
)
def test_a_damaged_model_is_found_out(models: Path, change: str, key: str) -> None:
    path = make_recorded(models / "tiny") / WEIGHTS
    data = path.read_bytes()
    if change == "gone":
        path.unlink()
    else:
        path.write_bytes(data[:-1] if change == "cut" else data[:-1] + bytes([data[-1] ^ 1]))
    found = verify("tiny", quiet)
    assert [(problem.key, problem.params["file"]) for problem in found.problems] == [(key, WEIGHTS)]


def test_of_a_model_without_a_record_the_structure_is_checked(models: Path) -> None:
    path = make(models / "tiny") / WEIGHTS
    found = verify("tiny", quiet)
    assert found.is_right and not found.has_record
    with path.open("ab") as file:
        file.truncate(path.stat().st_size - 1)
    assert [problem.key for problem in verify("tiny", quiet).problems] == ["truncated"]


def test_a_verification_can_be_ended(models: Path) -> None:
    make_recorded(models / "tiny")

    def end(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        verify("tiny", end)


def test_a_deleted_model_is_gone_and_others_stay(models: Path) -> None:
    make(models / "tiny")
    make(models / "other")
    (models / ".deleting-old-1").mkdir()
    delete("tiny")
    assert [path.name for path in models.iterdir()] == ["other"]


def test_a_broken_model_is_deleted_too(models: Path) -> None:
    (models / "broken").mkdir()
    delete("broken")
    assert list(models.iterdir()) == []


def test_a_name_as_long_as_a_disk_has_it_is_deleted(models: Path) -> None:
    """It was to get a longer one first."""
    (models / ("n" * 255)).mkdir()
    delete("n" * 255)
    assert list(models.iterdir()) == []


def test_a_folder_with_a_link_to_nothing_is_told_from_a_changed_one(models: Path, tmp_path: Path) -> None:
    """It looked like a folder that is not there, whatever was in it."""
    (models / "tiny").mkdir()
    (models / "tiny" / "README.md").symlink_to(tmp_path / "gone")
    before = fingerprint(models / "tiny")
    (models / "tiny" / "config.json").write_text("{}")
    assert () != before != fingerprint(models / "tiny")


def test_of_a_linked_model_only_the_link_is_deleted(models: Path, tmp_path: Path) -> None:
    make(tmp_path / "elsewhere")
    (models / "linked").symlink_to(tmp_path / "elsewhere")
    before = hashes(tmp_path / "elsewhere")
    delete("linked")
    assert list(models.iterdir()) == []
    assert hashes(tmp_path / "elsewhere") == before


def test_what_a_link_inside_of_a_model_points_to_stays(models: Path, tmp_path: Path) -> None:
    make(models / "tiny")
    outside = make(tmp_path / "outside")
    (models / "tiny" / "more").symlink_to(outside)
    before = hashes(outside)
    delete("tiny")
    assert hashes(outside) == before


@pytest.mark.parametrize("kind", ["a link to a folder", "a link to nothing", "a file"])
def test_a_leftover_that_is_no_folder_goes_and_what_it_leads_to_stays(models: Path, tmp_path: Path, kind: str) -> None:
    """It must not end every further deletion either."""
    outside, leftover = make(tmp_path / "outside"), models / ".deleting-old-1"
    before = hashes(outside)
    if kind == "a file":
        leftover.touch()
    else:
        leftover.symlink_to(outside if kind == "a link to a folder" else tmp_path / "nothing")
    make(models / "tiny")
    delete("tiny")
    assert list(models.iterdir()) == []
    assert hashes(outside) == before


def test_an_import_is_not_written_where_a_leftover_link_leads(models: Path, tmp_path: Path) -> None:
    outside = make(tmp_path / "outside")
    before = hashes(outside)
    (models / ".importing-source").symlink_to(outside)
    import_folder(make(tmp_path / "source"), lambda done, total: None)
    assert [path.name for path in models.iterdir()] == ["source"]
    assert hashes(outside) == before


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../precious", "/etc", ".hidden", "tiny/", "tiny/..", "nul\0", "tiny/x"]
)
def test_no_name_deletes_anything_else(models: Path, tmp_path: Path, name: str) -> None:
    make(models / "tiny")
    make(models / ".hidden")
    make(tmp_path / "precious")
    with pytest.raises(InputError):
        delete(name)
    assert sorted(os.listdir(models)) == [".hidden", "tiny"] and (tmp_path / "precious").is_dir()


@pytest.mark.parametrize("link", [False, True])
def test_a_folder_is_imported(models: Path, tmp_path: Path, link: bool) -> None:
    source = make(tmp_path / "mine")
    (source / "sub").mkdir()
    seen = [(0, 1)]
    assert import_folder(source, lambda done, total: seen.append((done, total)), link) == "mine"
    assert facts(models / "mine").is_link == link
    assert find("mine").quantization.bits == 4
    assert link or hashes(models / "mine") == hashes_of_files(source)
    assert link or seen[-1][0] == seen[-1][1] > 0


def hashes_of_files(folder: Path) -> dict[str, str]:
    (folder / "sub").rmdir()
    return hashes(folder)


def test_an_import_that_ends_early_leaves_nothing(models: Path, tmp_path: Path) -> None:
    make(tmp_path / "mine")

    def end(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        import_folder(tmp_path / "mine", end)
    assert list(models.iterdir()) == []


def test_what_is_no_model_or_has_a_taken_name_is_not_imported(models: Path, tmp_path: Path) -> None:
    make(tmp_path / "mine")
    make(models / "mine")
    with pytest.raises(InputError) as caught:
        import_folder(tmp_path / "mine", quiet)
    assert caught.value.key == "import_name"
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "empty", tmp_path / "missing", Path("/"), Path("")):
        with pytest.raises(CheckpointError):
            import_folder(path, quiet)
    assert [entry.name for entry in scan()] == ["mine"]


def test_the_facts_of_a_folder(models: Path) -> None:
    folder = make_recorded(models / "tiny")
    found = facts(folder)
    assert found.record is not None and found.record.source == SOURCE
    assert found.size_bytes == sum(path.stat().st_size for path in folder.iterdir())
    assert disk_usage().models_bytes == found.size_bytes
    assert disk_usage().free_bytes <= disk_usage().total_bytes
    adapter = write_adapter(models.parent / "adapters" / "pirate", folder)
    assert disk_usage().adapters_bytes == sum(path.stat().st_size for path in adapter.iterdir())


def test_a_library_that_is_not_there_yet_takes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMADECK_MODELS", str(tmp_path / "no" / "models"))
    assert disk_usage().models_bytes == disk_usage().adapters_bytes == 0 < disk_usage().free_bytes
    assert free_bytes(tmp_path / "no" / "adapters") > 0


def test_an_adapter_is_deleted_at_once_and_of_a_linked_one_the_link(models: Path, tmp_path: Path) -> None:
    model, adapters = make(models / "tiny"), models.parent / "adapters"
    own, origin = write_adapter(adapters / "own", model), write_adapter(tmp_path / "elsewhere", model)
    linked = adapters / "linked"
    linked.symlink_to(origin)
    for folder in (own, linked):
        delete_adapter(folder)
    assert list(adapters.iterdir()) == [] and origin.is_dir()


def test_an_adapter_in_a_linked_model_is_not_this_librarys(models: Path, tmp_path: Path) -> None:
    theirs = write_adapter(make(tmp_path / "theirs") / "poet", tmp_path / "theirs")
    (models / "tiny").symlink_to(tmp_path / "theirs")
    with pytest.raises(InputError) as caught:
        delete_adapter(models / "tiny" / "poet")
    assert caught.value.key == "delete_adapter_elsewhere" and str(theirs) in str(caught.value)
    assert theirs.is_dir()


def test_a_record_comes_back_as_it_was_written(tmp_path: Path) -> None:
    files = (RemoteFile("a.json", 3, None, "0" * 40, "/a"), RemoteFile("b", 0, None, None, "/b"))
    record = Record(Source(Address("a/b", "x/y"), "https://hub.invalid", "modelscope"), "c", files)
    write_record(tmp_path, record)
    assert read_record(tmp_path) == record


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"files": [{"name": "../x"}]}', "{" * 5000, "\x00", '{"kind": []}'])
def test_a_record_that_is_none_is_as_if_it_were_not_there(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE).write_text(text)
    assert read_record(tmp_path) is None


def test_an_unreadable_library_is_said(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path / "mine")
    monkeypatch.setenv("LLAMADECK_MODELS", str(tmp_path / "file" / "models"))
    (tmp_path / "file").write_text("")
    with pytest.raises(DeckError) as caught:
        import_folder(tmp_path / "mine", quiet)
    assert caught.value.key == "download_write"
