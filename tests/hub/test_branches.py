"""All branches of a repository, read from the stand-ins of the Hub and of ModelScope."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.fit import find_checkpoint
from core.checkpoint.adapters import WEIGHTS
from core.checkpoint.checkpoint import read_checkpoint
from core.common.errors import DeckError, InputError
from core.hub.address import Address, parse_modelscope
from core.hub.branches import Branch, BranchReader
from core.hub.metadata import open_client
from core.hub.modelscope import list_files
from core.hub.queue import DownloadQueue
from core.hub.source import Source
from tests.support.adapters import write_adapter
from tests.support.checkpoints import Recipe, make_checkpoint
from tests.support.hub_standin import HubStandin
from tests.support.modelscope_standin import ModelScopeStandin

REPO = "some/tiny-GPTQ"
FINE = "gptq-4bit-32g-actorder_True"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "served"
    for branch, recipe in {"main": Recipe(num_layers=1), FINE: Recipe(num_layers=1, act_order=True)}.items():
        make_checkpoint(folder / REPO / branch, recipe)
    return folder


@pytest.fixture
def hub(root: Path) -> Iterator[HubStandin]:
    with HubStandin(root) as standin:
        yield standin


@pytest.fixture
def modelscope(root: Path) -> Iterator[ModelScopeStandin]:
    (root / REPO / "main").rename(root / REPO / "master")
    with ModelScopeStandin(root) as standin:
        yield standin


def at(hub: HubStandin, revision: str = "main", repo: str = REPO) -> Source:
    return Source(Address(repo, revision), hub.url)


def on_modelscope(server: ModelScopeStandin, revision: str = "main", repo: str = REPO) -> Source:
    return Source(Address(repo, revision), server.url, "modelscope")


def read(source: Source, token: str | None = None) -> tuple[Branch, ...]:
    return BranchReader().read(source, token)


def refusal(source: Source, token: str | None = None) -> DeckError:
    with pytest.raises(DeckError) as caught:
        read(source, token)
    assert "{" not in str(caught.value)
    return caught.value


def test_every_branch_is_the_checkpoint_in_its_folder(hub: HubStandin, root: Path) -> None:
    main, fine = read(at(hub))
    assert (main.name, fine.name) == ("main", FINE)
    for branch in (main, fine):
        made = read_checkpoint(root / REPO / branch.name)
        assert branch.checkpoint is not None and branch.checkpoint.tensors == made.tensors
        assert branch.checkpoint.quantization == made.quantization
    assert fine.checkpoint is not None and fine.checkpoint.name == f"{REPO}:{FINE}"


def test_a_branch_that_is_no_checkpoint_is_a_line_with_its_reason(hub: HubStandin, root: Path) -> None:
    folder = root / REPO / "gguf"
    folder.mkdir()
    (folder / "model.gguf").write_bytes(b"x")
    branches = {branch.name: branch for branch in read(at(hub))}
    error = branches["gguf"].error
    assert error is not None and error.key == "hub_no_config"
    assert branches["main"].checkpoint is not None


def test_a_branch_read_before_is_not_read_again_while_its_commit_stays(hub: HubStandin) -> None:
    reader = BranchReader()
    first = reader.read(at(hub))
    hub.requests.clear()
    assert reader.read(at(hub)) == first
    assert not [path for path in hub.paths if "/resolve/" in path]


def test_a_commit_that_is_named_stands_before_the_branches(hub: HubStandin) -> None:
    commit = hub.commit(REPO, FINE)
    branches = read(at(hub, commit))
    assert [branch.name for branch in branches] == [commit, "main", FINE]
    assert branches[0].checkpoint is not None and branches[0].checkpoint.quantization.is_permuted


def test_a_branch_that_is_not_there_is_a_line_with_near_names(hub: HubStandin) -> None:
    wrong = read(at(hub, "gptq-4bit-32g"))[0]
    assert wrong.error is not None and FINE in str(wrong.error)


def test_a_gated_repository_says_so_beside_every_branch(hub: HubStandin) -> None:
    hub.behaviour.gated, hub.behaviour.tokens, hub.behaviour.accepted = {REPO}, {"hf_ok"}, {"hf_ok"}
    errors = [branch.error for branch in read(at(hub))]
    assert [error.key for error in errors if error] == ["hub_gated", "hub_gated"]
    assert all(branch.checkpoint for branch in read(at(hub), "hf_ok"))


def test_what_is_not_there_or_down_is_a_sentence(hub: HubStandin) -> None:
    assert refusal(at(hub, repo="some/nothing")).key == "hub_unknown_repo"
    assert isinstance(refusal(at(hub, repo="../x")), InputError)
    hub.close()
    assert refusal(at(hub)).key == "hub_unreachable"


@pytest.mark.parametrize("body", [b"[]", b'{"branches": 5}', b'{"branches": [3, {"name": 4}]}'])
def test_refs_that_are_none_leave_the_branch_that_was_asked_for(hub: HubStandin, body: bytes) -> None:
    hub.behaviour.bodies[f"{REPO}/refs"] = body
    if body == b"[]":
        assert refusal(at(hub)).key == "hub_answer"
    else:
        assert [branch.name for branch in read(at(hub))] == ["main"]


# ModelScope ----------------------------------------------------------------------------------------------------------


def test_a_repository_on_modelscope_is_the_same_checkpoint(modelscope: ModelScopeStandin, root: Path) -> None:
    master, fine = read(on_modelscope(modelscope))
    assert (master.name, fine.name) == ("master", FINE)
    assert master.checkpoint is not None
    assert master.checkpoint.tensors == read_checkpoint(root / REPO / "master").tensors


@pytest.mark.parametrize("tells_commits", [True, False])
def test_modelscopes_files_come_with_size_sha256_and_a_pinned_address(
    modelscope: ModelScopeStandin, root: Path, tells_commits: bool
) -> None:
    modelscope.tells_commits = tells_commits
    (root / REPO / "master" / "sub folder").mkdir()
    (root / REPO / "master" / "sub folder" / "a b.txt").write_text("x")
    with open_client(None) as client:
        commit, files = list_files(client, on_modelscope(modelscope))
        assert commit == (modelscope.commit(REPO, "master") if tells_commits else "master")
        for file in files:
            data = (root / REPO / "master" / file.name).read_bytes()
            assert (file.size_bytes, file.sha256) == (len(data), hashlib.sha256(data).hexdigest())
            assert client.get(modelscope.url + file.url_path).content == data
    assert "sub folder/a b.txt" in [file.name for file in files]


def test_a_branch_that_modelscope_has_not_is_a_sentence_with_those_it_has(modelscope: ModelScopeStandin) -> None:
    with open_client(None) as client, pytest.raises(InputError) as caught:
        list_files(client, on_modelscope(modelscope, "v9"))
    assert "v9" in str(caught.value) and "master" in str(caught.value)


def test_adapters_below_the_top_are_told_with_their_folders(
    hub: HubStandin, modelscope: ModelScopeStandin, root: Path
) -> None:
    for name in "abcd":
        folder = root / "me" / "run" / "main" / name
        folder.mkdir(parents=True)
        (folder / "adapter_config.json").write_text("{}")
    (root / "me" / "run" / "master").symlink_to(root / "me" / "run" / "main")
    for source in (Source(Address("me/run", "main"), hub.url), on_modelscope(modelscope, repo="me/run")):
        error = read(source)[0].error
        assert error is not None and (error.key, error.params["folders"]) == ("hub_adapter_folders", "a, b, c, …")


def test_a_repository_that_modelscope_has_not_is_a_sentence(modelscope: ModelScopeStandin) -> None:
    assert refusal(on_modelscope(modelscope, repo="some/nothing")).key == "hub_unknown_repo"


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("https://modelscope.cn/models/Qwen/Qwen3-8B", Address("Qwen/Qwen3-8B", "main")),
        ("www.modelscope.cn/models/a/b/files?x=1", Address("a/b", "main")),
        ("https://www.modelscope.cn/models/a/b/resolve/v1.0/config.json", Address("a/b", "v1.0")),
        ("https://huggingface.co/a/b", None),
        ("https://www.modelscope.cn/models/a/b/file/view/master/config.json?status=1", Address("a/b", "main")),
        ("https://www.modelscope.cn/models/a/b/file/view/feature/x/config.json", Address("a/b", "feature/x")),
        ("https://www.modelscope.cn/models/a/b/tree/feature/x", Address("a/b", "feature/x")),
        ("https://modelscope.cn/models/a/b/files?version=v2.0", Address("a/b", "v2.0")),
        ("https://modelscope.cn/models/a/b/summary#top", Address("a/b", "main")),
        ("https://www.modelscope.cn/a/b.git", Address("a/b", "main")),
        ("modelscope.ai/models/a/b/", Address("a/b", "main")),
        ("https://www.modelscope.cn/datasets/a/b", None),
        ("https://modelscope.cn.evil.org/models/a/b", None),
        ("a/b", None),
    ],
)
def test_an_address_copied_from_modelscope_is_known_as_one(text: str, address: Address | None) -> None:
    assert parse_modelscope(text) == address


def test_the_verdict_reads_a_page_of_modelscope(
    modelscope: ModelScopeStandin, monkeypatch: pytest.MonkeyPatch, root: Path
) -> None:
    monkeypatch.setattr("core.hub.source.MODELSCOPE", modelscope.url)
    found = find_checkpoint(f"https://www.modelscope.cn/models/{REPO}", None)
    assert found.name == REPO and found.quantization.bits == 4


def test_a_model_is_downloaded_from_modelscope_and_is_the_same(
    modelscope: ModelScopeStandin, root: Path, tmp_path: Path
) -> None:
    downloads = DownloadQueue(tmp_path / "models", lambda _: None)
    job = downloads.add(on_modelscope(modelscope))
    assert job.wait(30) and job.snapshot().phase == "done"
    downloads.close()
    for file in (root / REPO / "master").iterdir():
        assert (tmp_path / "models" / "some_tiny-GPTQ" / file.name).read_bytes() == file.read_bytes()


def test_a_branch_with_an_adapter_is_one_and_a_refused_one_says_why(hub: HubStandin, root: Path) -> None:
    model = root / REPO / "main"
    folder = write_adapter(root / REPO / "lora", model, rank=4, base="meta/tiny")
    shutil.copy(model / "config.json", folder)
    (write_adapter(root / REPO / "pickled", model) / WEIGHTS).rename(root / REPO / "pickled" / "adapter_model.bin")
    found = {branch.name: branch for branch in read(at(hub))}
    adapter = found["lora"].adapter
    assert adapter is not None and (adapter.rank, adapter.base_name) == (4, "meta/tiny")
    assert found["lora"].checkpoint is None and found["main"].checkpoint is not None
    error = found["pickled"].error
    assert found["pickled"].adapter is None and error is not None and error.key == "adapter_pickled"
