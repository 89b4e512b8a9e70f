"""Models in a cache that huggingface_hub itself made: found, verified, never changed, whatever else lies there."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import constants, snapshot_download
from safetensors.numpy import save_file

from core.common.errors import CheckpointError, InputError
from core.hub.address import Address
from core.hub.source import Source
from core.library.hf_cache import cached_snapshots, is_snapshot_of
from core.library.maintenance import delete, import_folder, verify
from core.library.scan import facts, find, locate, scan
from tests.support.checkpoints import Recipe, make_checkpoint
from tests.support.hub_standin import HubStandin

REPO, OTHER, BRANCH = "some/tiny-GPTQ", "some/full", "gptq-8bit"
WEIGHTS = "model.safetensors"


@pytest.fixture
def hub(tmp_path: Path, no_proxy: None) -> Iterator[HubStandin]:
    make_checkpoint(tmp_path / "hub" / REPO / "main", Recipe(num_layers=1))
    make_checkpoint(tmp_path / "hub" / REPO / BRANCH, Recipe(num_layers=1, bits=8))
    make_checkpoint(tmp_path / "hub" / OTHER / "main", Recipe(num_layers=1))
    (tmp_path / "hub" / OTHER / "main" / "config.json").write_text('{"model_type": "llama"}')
    save_file({"x.weight": np.ones((2, 2), np.float16)}, tmp_path / "hub" / OTHER / "main" / WEIGHTS)
    with HubStandin(tmp_path / "hub") as standin:
        yield standin


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("LLAMADECK_MODELS", str(tmp_path / "models"))
    return tmp_path / "cache"


def fetch(hub: HubStandin, cache: Path, repo: str = REPO, revision: str = "main") -> Path:
    """What `hf download` does; returns the snapshot's folder."""
    return Path(snapshot_download(repo, revision=revision, endpoint=hub.url, cache_dir=cache, token=False))


def contents(folder: Path) -> dict[str, str]:
    """Every file and link below `folder`, with what is in it."""
    paths = [path for path in sorted(folder.rglob("*")) if not path.is_dir()]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def test_gptq_models_are_found_and_others_left_out(hub: HubStandin, cache: Path) -> None:
    snapshot = fetch(hub, cache)
    fetch(hub, cache, OTHER)
    (entry,) = scan()
    assert entry.folder == snapshot and entry.is_cached and entry.checkpoint is not None
    assert entry.name == entry.checkpoint.name == f"some_tiny-GPTQ@{hub.commit(REPO, 'main')[:8]}"
    assert find(entry.name).folder == locate(entry.name) == snapshot
    found = facts(snapshot)
    assert found.size_bytes == sum(path.stat().st_size for path in (hub.root / REPO / "main").iterdir())
    assert found.record is not None and found.record.commit == hub.commit(REPO, "main")
    assert found.record.source.address == Address(REPO, "main")


def test_every_revision_of_a_repository_is_a_model(hub: HubStandin, cache: Path) -> None:
    main, branch = fetch(hub, cache), fetch(hub, cache, revision=BRANCH)
    commit = hub.commit(REPO, BRANCH)
    assert cached_snapshots() == {main: Address(REPO, "main"), branch: Address(REPO, BRANCH)}
    assert {entry.checkpoint.quantization.bits for entry in scan() if entry.checkpoint} == {4, 8}
    for revision, folder in (("main", main), (BRANCH, branch), (commit, branch)):
        assert is_snapshot_of(folder, Source(Address(REPO, revision), hub.url))
    assert not is_snapshot_of(main, Source(Address(REPO, BRANCH), hub.url))
    assert not is_snapshot_of(main, Source(Address(REPO, "main"), hub.url, "modelscope"))
    hub.behaviour.num_pushes = 1
    newer = fetch(hub, cache)
    assert cached_snapshots()[newer] == Address(REPO, "main")
    assert cached_snapshots()[main] == Address(REPO, main.name)


def test_every_byte_is_verified_by_the_names_of_the_blobs(hub: HubStandin, cache: Path) -> None:
    snapshot = fetch(hub, cache)
    (entry,) = scan()
    found = verify(entry.name, lambda done, total: None)
    assert found.is_right and found.has_record and found.checked_bytes == facts(snapshot).size_bytes
    with (snapshot / WEIGHTS).resolve().open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"!")
    (problem,) = verify(entry.name, lambda done, total: None).problems
    assert problem.key == "verify_wrong" and problem.params["file"] == WEIGHTS


def test_a_cache_without_links_is_read_and_not_called_verified(
    hub: HubStandin, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on Windows and on some network drives, where huggingface_hub copies."""
    monkeypatch.setattr("huggingface_hub.file_download.are_symlinks_supported", lambda *_: False)
    snapshot = fetch(hub, cache)
    assert not (snapshot / WEIGHTS).is_symlink()
    (entry,) = scan()
    found = verify(entry.name, lambda done, total: None)
    assert found.is_right and not found.has_record


def test_nothing_in_the_cache_is_ever_changed(hub: HubStandin, cache: Path, tmp_path: Path) -> None:
    snapshot = fetch(hub, cache)
    before = contents(cache)
    (entry,) = scan()
    with pytest.raises(InputError) as caught:
        delete(entry.name)
    assert caught.value.key == "delete_cached" and f"hf cache rm model/{REPO}" in str(caught.value)
    verify(entry.name, lambda done, total: None)
    copied = import_folder(snapshot, lambda done, total: None)
    assert not any(path.is_symlink() for path in (tmp_path / "models" / copied).iterdir())
    assert find(copied).folder == tmp_path / "models" / copied
    assert contents(cache) == before


@pytest.mark.parametrize("damage", ["weights", "config", "blob", "ref", "snapshots", "junk"])
def test_what_is_broken_takes_nothing_else_with_it(hub: HubStandin, cache: Path, damage: str) -> None:
    whole = fetch(hub, cache)
    shutil.copytree(whole.parents[1], cache / "models--any--broken", symlinks=True)
    broken = cache / "models--any--broken" / "snapshots" / whole.name
    match damage:
        case "weights":
            (broken / WEIGHTS).unlink()
        case "config":
            (broken / "config.json").unlink()
            (broken / "config.json").write_text("[]")
        case "blob":
            (broken / WEIGHTS).resolve().unlink()
        case "ref":
            (cache / "models--any--broken" / "refs" / "main").write_text("0" * 40)
        case "snapshots":
            shutil.rmtree(broken.parent)
            broken.parent.write_text("no folder")
        case "junk":
            shutil.rmtree(broken.parents[1])
            (cache / "models--").mkdir()
            (cache / "models--any--empty").mkdir()
            (cache / "datasets--some--data").mkdir()
            (cache / "version.txt").write_text("1")
    assert [entry.folder for entry in scan()] == [whole]


def test_a_download_that_was_cut_is_no_model(hub: HubStandin, cache: Path) -> None:
    snapshot = fetch(hub, cache)
    blob = (snapshot / WEIGHTS).resolve()
    blob.rename(blob.with_name(blob.name + ".incomplete"))
    (snapshot / WEIGHTS).unlink()
    assert scan() == []


@pytest.mark.parametrize("damage", ["loop", "ref"])
def test_a_cache_that_cannot_be_read_is_said_and_models_are_shown(
    hub: HubStandin, cache: Path, tmp_path: Path, damage: str
) -> None:
    make_checkpoint(tmp_path / "models" / "own", Recipe(num_layers=1))
    if damage == "loop":
        cache.symlink_to(cache)
    else:
        ref = fetch(hub, cache).parents[1] / "refs" / "main"
        ref.write_bytes(b"\xff")
    with pytest.raises(CheckpointError) as caught:
        cached_snapshots()
    assert str(cache) in str(caught.value)
    assert [entry.name for entry in scan()] == ["own"]


def test_no_cache_and_a_file_in_its_place_are_no_models(cache: Path) -> None:
    assert cached_snapshots() == {}
    cache.write_text("no folder")
    assert cached_snapshots() == {}


def test_the_cache_is_read_anew_only_when_it_changes(
    hub: HubStandin, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch(hub, cache)
    first = cached_snapshots()
    assert cached_snapshots() is first
    fetch(hub, cache, revision=BRANCH)
    assert len(cached_snapshots()) == 2


def test_without_a_model_in_the_cache_little_is_imported(tmp_path: Path) -> None:
    (tmp_path / "cache" / "datasets--some--data").mkdir(parents=True)
    code = "import sys; from core.library.scan import scan; assert scan() == []; print(*sys.modules)"
    environment = os.environ | {"HF_HUB_CACHE": str(tmp_path / "cache"), "LLAMADECK_MODELS": str(tmp_path / "none")}
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert not {"httpx2", "huggingface_hub.utils", "yaml"} & set(found.stdout.split())
