"""Which files of a repository are fetched, and what no honest repository lists: refused before anything is written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.checkpoint.checkpoint import read_checkpoint
from core.checkpoint.weight_files import is_plain_name
from core.common.errors import CheckpointError, DeckError
from core.hub.manifest import read_manifest
from core.hub.queue import DownloadQueue
from core.hub.selection import check_names, is_small, select
from core.hub.source import RemoteFile
from tests.support.checkpoints import Recipe, make_checkpoint, split_into_shards, train_sentencepiece, write_index
from tests.support.hub_models import FOLDER, QUICK, REPO, WEIGHTS, hashes, make_model, source_at
from tests.support.hub_standin import HubStandin


@pytest.fixture
def origin(tmp_path: Path) -> Path:
    """Smaller than the others' one."""
    folder = tmp_path / "hub" / REPO / "main"
    make_model(folder, 1)
    return folder


def refusal(hub: HubStandin, tmp_path: Path) -> DeckError:
    """The error of a download, which has left nothing on disk and fetched no weights."""
    downloads = DownloadQueue(tmp_path / "models", lambda endpoint: None, QUICK)
    job = downloads.add(source_at(hub))
    assert job.wait(30)
    downloads.close()
    state = job.snapshot()
    assert state.phase == "failed" and state.error is not None
    assert list((tmp_path / "models").iterdir()) == []
    assert not [name for name in tmp_path.iterdir() if name.name not in ("models", "hub")]
    return state.error


def listed(path: str, size: int = 3, **more: Any) -> dict[str, Any]:
    return {"type": "file", "path": path, "size": size, "oid": "0" * 40} | more


def remote(name: str, size_bytes: int = 1) -> RemoteFile:
    return RemoteFile(name, size_bytes, None, None, f"/{name}")


@pytest.mark.parametrize(
    "path",
    ["../evil.json", "/etc/evil.json", "a/../../evil.json", "..\\evil.json", "a\nb.json", "\x00.json", "", "./x.json",
     "a//b.json", "\u202egpj.json", "x" * 300 + ".json", "\ud800.json"],
)  # fmt: skip
def test_a_name_that_leads_out_or_is_none_is_refused(hub: HubStandin, tmp_path: Path, path: str) -> None:
    hub.behaviour.listed = [listed(path)]
    assert refusal(hub, tmp_path).key == "hub_file_name"


def test_a_link_in_the_list_is_refused(hub: HubStandin, tmp_path: Path) -> None:
    hub.behaviour.listed = [listed("tokenizer.model", type="symlink")]
    assert refusal(hub, tmp_path).key == "hub_file_name"


def test_names_that_differ_only_in_case_are_refused(hub: HubStandin, tmp_path: Path) -> None:
    hub.behaviour.listed = [listed("Config.JSON")]
    assert refusal(hub, tmp_path).key == "hub_same_names"


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "README.md", "model.safetensors.index.json"])
def test_a_small_file_of_ten_gigabytes_is_refused(hub: HubStandin, tmp_path: Path, name: str) -> None:
    hub.behaviour.listed = [listed(name, 10_000_000_000)]
    error = refusal(hub, tmp_path)
    assert (error.key, error.params["size_mb"]) == ("hub_file_size", 10_000)


@pytest.mark.parametrize("size", [-1, 1.5, "3", None, True])
def test_a_size_that_is_none_is_no_answer_of_a_hub(hub: HubStandin, tmp_path: Path, size: Any) -> None:
    hub.behaviour.listed = [listed("x.json", size)]
    assert refusal(hub, tmp_path).key == "hub_answer"


@pytest.mark.parametrize("body", [b"", b"{}", b"[1]", b"nonsense", b'[{"type": "file"}]'])
def test_a_tree_that_is_none_is_said(hub: HubStandin, tmp_path: Path, body: bytes) -> None:
    hub.behaviour.bodies = {f"/tree/{hub.commit(REPO, 'main')}": body}
    assert refusal(hub, tmp_path).key == "hub_answer"


@pytest.mark.parametrize(
    ("files", "key"),
    [
        ([], "hub_no_config"),
        (["model.gguf"], "hub_no_config"),
        (["adapter_config.json", "adapter_model.safetensors"], "hub_not_adapter"),
        (["adapter_config.json", "adapter_model.safetensors", "config.json", "optimizer.pt"], "hub_not_adapter"),
        (["config.json", "model.gguf"], "hub_no_weights"),
        (["config.json", "pytorch_model.bin"], "not_quantized"),
    ],
)
def test_a_repository_of_another_kind_is_refused(
    hub: HubStandin, tmp_path: Path, origin: Path, files: list[str], key: str
) -> None:
    for path in origin.iterdir():
        path.unlink()
    for name in files or ["README.md"]:
        (origin / name).write_text("{}")
    assert refusal(hub, tmp_path).key == key


def test_a_model_with_an_adapter_beside_it_is_a_model(hub: HubStandin, tmp_path: Path, origin: Path) -> None:
    (origin / "adapter_config.json").write_text("{}")
    (origin / "adapter_model.safetensors").write_bytes(b"x")
    downloads = DownloadQueue(tmp_path / "models", lambda endpoint: None, QUICK)
    job = downloads.add(source_at(hub))
    assert job.wait(60)
    downloads.close()
    assert job.snapshot().error is None and WEIGHTS in [file.name for file in job.snapshot().files]


def test_a_quantized_repository_without_safetensors_is_refused(hub: HubStandin, tmp_path: Path, origin: Path) -> None:
    (origin / WEIGHTS).rename(origin / "model.bin")
    assert refusal(hub, tmp_path).key == "hub_only_pickled"


def test_an_index_that_leads_into_a_subfolder_is_refused(hub: HubStandin, tmp_path: Path, origin: Path) -> None:
    (origin / WEIGHTS).unlink()
    (origin / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "sub/x.safetensors"}}))
    assert refusal(hub, tmp_path).key == "hub_damaged"


def test_only_the_shards_of_the_index_are_fetched(hub: HubStandin, tmp_path: Path, origin: Path) -> None:
    shards = sorted(set(split_into_shards(origin).values()))
    (origin / "consolidated.safetensors").write_bytes(b"the same in another layout")
    (origin / "pytorch_model.bin.index.json").write_text("{}")
    found = read_manifest(source_at(hub), None)
    names = {file.name for file in found.files}
    assert names == set(hashes(origin)) - {"consolidated.safetensors", "pytorch_model.bin.index.json"}
    assert [file.name for file in found.files][-2:] == shards
    assert found.size_bytes == sum((origin / name).stat().st_size for name in names)
    assert found.checkpoint.quantization.bits == 4
    assert not (tmp_path / "models" / FOLDER).exists()


def without_an_index(origin: Path) -> None:
    split_into_shards(origin)
    (origin / "model.safetensors.index.json").unlink()


def with_a_stale_index(origin: Path) -> None:
    write_index(origin, {"x": "model-00001-of-00009.safetensors"})


def as_in_2023(origin: Path) -> None:
    """Two branches in one, no settings in config.json, and SentencePiece's model alone."""
    make_checkpoint(origin, Recipe(num_layers=1, old_layout=True))
    (origin / WEIGHTS).unlink()
    shutil.copy(next(origin.glob("*.safetensors")), origin / "other.safetensors")
    settings = json.loads((origin / "quantize_config.json").read_text())
    (origin / "quantize_config.json").write_text(json.dumps(settings | {"model_basename": "other"}))
    (origin / "tokenizer.json").unlink()
    train_sentencepiece(origin)


@pytest.mark.parametrize("change", [without_an_index, with_a_stale_index, as_in_2023])
def test_what_is_fetched_is_the_checkpoint_that_was_read(
    hub: HubStandin, tmp_path: Path, origin: Path, change: Callable[[Path], None]
) -> None:
    """One selection reads a repository for the verdict, fetches it, and reads the folder."""
    make_checkpoint(origin, Recipe(num_layers=1))
    change(origin)
    remote_one = read_manifest(source_at(hub), None).checkpoint
    downloads = DownloadQueue(tmp_path / "models", lambda endpoint: None, QUICK)
    assert downloads.add(source_at(hub)).wait(30)
    downloads.close()
    local = read_checkpoint(tmp_path / "models" / FOLDER)
    local.require_runs()
    assert replace(local, name=remote_one.name, path=None) == remote_one
    assert {tensor.file for tensor in local.tensors.values()} == {
        path.name for path in (tmp_path / "models" / FOLDER).glob("*.safetensors")
    }


@given(st.lists(st.text(max_size=12), max_size=6))
def test_whatever_is_selected_is_a_bare_name_in_one_folder(names: list[str]) -> None:
    try:
        check_names("x", names)
        chosen = select("x", [remote(name) for name in dict.fromkeys(names)], ["w.safetensors"])
    except CheckpointError:
        return
    assert all(is_plain_name(file.name) and not file.name.startswith(".") for file in chosen)
    assert len({file.name.casefold() for file in chosen}) == len(chosen)


@pytest.mark.parametrize(
    "name", ["a.bin", "b.pt", "c.gguf", "d.onnx", ".x.json", "sub/config.json", "e.py", "f.safetensors"]
)
def test_what_is_not_needed_is_not_small(name: str) -> None:
    assert not is_small(name)


def test_a_family_that_runs_nowhere_is_refused_before_a_file_is_listed_for_fetching(
    hub: HubStandin, tmp_path: Path, origin: Path
) -> None:
    """`download` once fetched it whole, and the load then refused it."""
    config = json.loads((origin / "config.json").read_text())
    (origin / "config.json").write_text(json.dumps(config | {"model_type": "falcon_mamba"}))
    error = refusal(hub, tmp_path)
    assert error.key == "family_recurrent" and "Another server" in str(error)
    assert not list(tmp_path.rglob("*.part*"))
