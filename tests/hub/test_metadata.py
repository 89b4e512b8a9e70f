"""A checkpoint read from a stand-in of the Hub: the same as from the folder, by few and small requests."""

from __future__ import annotations

import json
import socket
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from huggingface_hub import HfApi, hf_hub_download, hf_hub_url
from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.utils import validate_repo_id
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from core.checkpoint.checkpoint import Checkpoint, read_checkpoint
from core.common.errors import CheckpointError, DeckError, InputError
from core.hub import branches
from core.hub.address import Address, check_address
from core.hub.endpoints import checked_endpoint
from core.hub.metadata import FIRST_BYTES, MAX_HEADER_BYTES, file_size
from core.hub.source import Source
from tests.support.checkpoints import Recipe, make_checkpoint, split_into_shards, write_index
from tests.support.hub_standin import HubStandin

REPO = "some/tiny-GPTQ"
BRANCH = "gptq-4bit-32g-actorder_True"
WEIGHTS = "model.safetensors"


@pytest.fixture
def origin(tmp_path: Path) -> Path:
    """A checkpoint without a filling."""
    folder = tmp_path / "hub" / REPO / "main"
    make_checkpoint(folder, Recipe(num_layers=1))
    return folder


def read_remote(repo: str, revision: str = "main", endpoint: str | None = None, token: str | None = None) -> Checkpoint:
    return branches.read_remote(Source(Address(repo, revision), checked_endpoint(endpoint)), token)


def refusal(hub: HubStandin, repo: str = REPO, revision: str = "main", token: str | None = None) -> DeckError:
    with pytest.raises(DeckError) as caught:
        read_remote(repo, revision, hub.url, token)
    assert "{" not in str(caught.value)
    return caught.value


def change_config(folder: Path, **changes: Any) -> None:
    """Set keys of config.json; `...` takes one out."""
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({name: value for name, value in config.items() if value is not ...}))


def write_weights(folder: Path, header: bytes, data_bytes: int = 0) -> None:
    """A weight file of a header and a hole, which takes no room on disk."""
    with (folder / WEIGHTS).open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + data_bytes)


def large_header(data_bytes: int, padding: int = 0) -> bytes:
    entry = {"dtype": "I32", "shape": [data_bytes // 4, 1], "data_offsets": [0, data_bytes]}
    return json.dumps({"model.layers.0.mlp.up_proj.qweight": entry}).encode() + b" " * padding


# What is there -------------------------------------------------------------------------------------------------------


def test_a_repository_is_the_same_checkpoint_as_its_folder(hub: HubStandin, origin: Path) -> None:
    local = read_checkpoint(origin)
    assert read_remote(REPO, endpoint=hub.url) == replace(local, name=REPO, path=None)


def test_another_branch_is_read_and_named(hub: HubStandin, tmp_path: Path) -> None:
    other = tmp_path / "hub" / REPO / BRANCH
    make_checkpoint(other, Recipe(num_layers=1, act_order=True))
    found = read_remote(REPO, BRANCH, hub.url)
    assert found == replace(read_checkpoint(other), name=f"{REPO}:{BRANCH}", path=None)
    assert found.quantization.is_permuted


def test_a_branch_with_a_slash_is_read(hub: HubStandin, tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "hub" / REPO / "refs%2Fpr%2F1", Recipe(num_layers=1, bits=8))
    assert read_remote(REPO, "refs/pr/1", hub.url).quantization.bits == 8


def test_the_layout_of_2023_is_read(hub: HubStandin, tmp_path: Path) -> None:
    old = tmp_path / "hub" / "some" / "old" / "main"
    make_checkpoint(old, Recipe(num_layers=1, old_layout=True))
    assert read_remote("some/old", endpoint=hub.url) == replace(read_checkpoint(old), name="some/old", path=None)


def test_shards_are_found_by_their_index(hub: HubStandin, origin: Path) -> None:
    shards = sorted(set(split_into_shards(origin).values()))
    assert read_remote(REPO, endpoint=hub.url) == replace(read_checkpoint(origin), name=REPO, path=None)
    (origin / shards[1]).unlink()
    assert refusal(hub).params["file"] == shards[1]


def test_the_endpoint_comes_from_the_environment(hub: HubStandin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", f"{hub.url}/")
    assert read_remote(REPO).name == REPO


# What it costs -------------------------------------------------------------------------------------------------------


def test_three_requests_are_enough_and_all_after_the_first_name_its_commit(hub: HubStandin) -> None:
    read_remote(REPO, endpoint=hub.url)
    commit = hub.commit(REPO, "main")
    assert hub.paths == [
        f"/api/models/{REPO}/revision/main",
        f"/{REPO}/resolve/{commit}/config.json",
        f"/{REPO}/resolve/{commit}/{WEIGHTS}",
    ]
    assert hub.requests[2].headers["Range"] == f"bytes=0-{FIRST_BYTES - 1}"


@pytest.mark.parametrize("ignores_ranges", [False, True])
def test_of_the_weights_only_the_header_is_read(hub: HubStandin, origin: Path, ignores_ranges: bool) -> None:
    """A server that ignores Range begins to send the whole file: 35 GB for one question."""
    size = 256 * 2**20
    write_weights(origin, large_header(size), size)
    hub.behaviour.ignores_ranges = ignores_ranges
    assert read_remote(REPO, endpoint=hub.url).size_bytes == size
    hub.close()  # Waits until the answer has ended, so that all that went out is counted.
    answer = hub.requests[-1]
    assert answer.status == (200 if ignores_ranges else 206)
    assert answer.sent_bytes < 32 * 2**20


@pytest.mark.parametrize("ignores_ranges", [False, True])
def test_a_header_longer_than_the_first_range_takes_one_request_more(
    hub: HubStandin, origin: Path, ignores_ranges: bool
) -> None:
    header = large_header(64, padding=2 * FIRST_BYTES)
    write_weights(origin, header, 64)
    hub.behaviour.ignores_ranges = ignores_ranges
    assert read_remote(REPO, endpoint=hub.url).size_bytes == 64
    assert [request.headers.get("Range") for request in hub.requests[2:]] == [
        f"bytes=0-{FIRST_BYTES - 1}",
        f"bytes=0-{8 + len(header) - 1}",
    ]


@pytest.mark.parametrize("told", ["9" * 5000, "-1", "", "٣"], ids=["thousands", "negative", "nothing", "arabic"])
def test_a_size_that_is_none_is_not_told(told: str) -> None:
    """Python refuses to read thousands of digits, with an error that no page expects."""
    for status, name, text in ((200, b"content-length", told), (206, b"content-range", f"bytes 0-1/{told}")):
        assert file_size(httpx2.Response(status, headers=[(name, text.encode())])) is None


@pytest.mark.parametrize("header_bytes", [MAX_HEADER_BYTES + 1, 2**63, 2**64 - 1])
def test_an_impossibly_long_header_is_refused_unread(hub: HubStandin, origin: Path, header_bytes: int) -> None:
    with (origin / WEIGHTS).open("wb") as file:
        file.write(struct.pack("<Q", header_bytes))
        file.truncate(64 * 2**20)
    assert refusal(hub).key == "hub_damaged"
    assert len(hub.requests) == 3
    assert hub.requests[-1].sent_bytes <= FIRST_BYTES


# Who is asked --------------------------------------------------------------------------------------------------------


def test_the_token_goes_to_the_hub_and_not_to_the_store_that_it_redirects_to(hub: HubStandin, tmp_path: Path) -> None:
    hub.behaviour.tokens.add("hf_good")
    with HubStandin(tmp_path / "hub") as store:
        hub.behaviour.store = store.url
        read_remote(REPO, endpoint=hub.url, token="hf_good")
        assert [request.headers.get("Authorization") for request in hub.requests] == ["Bearer hf_good"] * 3
        (asked,) = store.requests
        assert "Authorization" not in asked.headers
        assert asked.headers["Range"] == f"bytes=0-{FIRST_BYTES - 1}"


def test_without_a_token_none_is_sent_whatever_the_machine_has(
    hub: HubStandin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_of_somebody")
    read_remote(REPO, endpoint=hub.url)
    assert not any("Authorization" in request.headers for request in hub.requests)


@pytest.mark.parametrize("token", ["hf_a b", "hf_\n", "令牌", "a\r\nX-Header: b"])
def test_a_token_that_can_be_none_is_not_sent(hub: HubStandin, token: str) -> None:
    assert refusal(hub, token=token).key == "hub_token_text"
    assert hub.requests == []


def test_a_token_that_the_hub_does_not_know_is_said(hub: HubStandin) -> None:
    assert refusal(hub, token="hf_old").key == "hub_token"


@pytest.mark.parametrize("token", [None, "hf_good"])
def test_a_gated_repository_says_where_to_accept_its_terms(hub: HubStandin, token: str | None) -> None:
    hub.behaviour.gated.add(REPO)
    hub.behaviour.tokens.add("hf_good")
    error = refusal(hub, token=token)
    assert (error.key, error.params["url"]) == ("hub_gated", f"{hub.url}/{REPO}")
    hub.behaviour.accepted.add("hf_good")
    assert read_remote(REPO, endpoint=hub.url, token="hf_good").name == REPO


def test_a_private_repository_is_as_good_as_none_without_a_token(hub: HubStandin) -> None:
    hub.behaviour.private.add(REPO)
    hub.behaviour.tokens.add("hf_good")
    assert refusal(hub).key == "hub_unknown_repo"
    assert read_remote(REPO, endpoint=hub.url, token="hf_good").name == REPO


# What is not there ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("token", [None, "hf_good"])
def test_an_unknown_repository_is_bad_input(hub: HubStandin, token: str | None) -> None:
    """The Hub says 401 to those without a token, so that nobody learns which private repositories there are."""
    hub.behaviour.tokens.add("hf_good")
    error = refusal(hub, "some/other", token=token)
    assert isinstance(error, InputError)
    assert (error.key, error.params["repo"]) == ("hub_unknown_repo", "some/other")


def test_an_unknown_branch_is_answered_with_near_ones(hub: HubStandin, tmp_path: Path) -> None:
    (tmp_path / "hub" / REPO / BRANCH).mkdir()
    error = refusal(hub, revision="gptq-4bit-32g")
    assert isinstance(error, InputError)
    assert error.key == "unknown_branch"
    assert error.params == {"repo": REPO, "branch": "gptq-4bit-32g", "near": BRANCH}
    hub.behaviour.statuses["/refs"] = 500
    assert refusal(hub, revision="gptq-4bit-32g").params["near"] == "-"


@pytest.mark.parametrize(
    ("status", "key"), [(429, "hub_busy"), (500, "hub_failed"), (503, "hub_failed"), (403, "hub_gated"),
                        (404, "hub_unknown_repo"), (304, "hub_failed")]
)  # fmt: skip
def test_a_hub_that_refuses_is_said_in_words(hub: HubStandin, status: int, key: str) -> None:
    hub.behaviour.statuses["/api/"] = status
    assert refusal(hub).key == key


def test_a_file_that_cannot_be_had_is_no_unknown_repository(hub: HubStandin) -> None:
    hub.behaviour.statuses["/resolve/"] = 404
    assert refusal(hub).key == "hub_failed"


@pytest.mark.parametrize("body", [b"<html>Please log in</html>", b"", b"[]", b"{}", b'{"sha": 1, "siblings": []}',
                                  b'{"sha": "a", "siblings": {}}', b"[" * 100_000])  # fmt: skip
def test_a_login_page_in_the_hubs_place_is_said_in_words(hub: HubStandin, body: bytes) -> None:
    hub.behaviour.bodies["/revision/main"] = body
    assert refusal(hub).key == "hub_answer"


def test_no_network_is_said_in_words() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # Nobody listens here.
        host = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(DeckError) as caught:
            read_remote(REPO, endpoint=f"http://{host}")
    assert (caught.value.key, caught.value.params["host"]) == ("hub_unreachable", host)
    assert "Errno" not in str(caught.value), "a number that only programmers know"


def test_a_hub_that_redirects_for_ever_is_given_up(hub: HubStandin) -> None:
    hub.behaviour.store = hub.url
    assert refusal(hub).key == "hub_unreachable"


@pytest.mark.parametrize("endpoint", ["huggingface.co", "ftp://a", "http://", "file:///etc", "http://[::1", " "])
def test_an_endpoint_that_is_no_address_is_bad_input(endpoint: str) -> None:
    with pytest.raises(InputError) as caught:
        read_remote(REPO, endpoint=endpoint)
    assert caught.value.key == "hub_endpoint"


def test_a_proxy_that_cannot_be_used_is_said_in_words(hub: HubStandin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "nonsense://127.0.0.1:1")
    assert refusal(hub).key == "hub_proxy"


def test_the_endpoints_password_is_in_no_sentence(tmp_path: Path, hub: HubStandin) -> None:
    with pytest.raises(DeckError) as caught:
        read_remote("some/other", endpoint=hub.url.replace("//", "//user:secret@"))
    assert "secret" not in str(caught.value.params)


@pytest.mark.parametrize(("repo", "revision"), [("a/b/c", "main"), ("../x", "main"), ("a/b", ".."), ("a/b", "a b")])
def test_names_that_can_be_none_are_not_asked_for(hub: HubStandin, repo: str, revision: str) -> None:
    assert isinstance(refusal(hub, repo, revision), InputError)
    assert hub.requests == []


# What is no GPTQ model -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("quantization", "key"),
    [
        ({"quant_method": "bitsandbytes"}, "other_quantization"),
        ({"bits": 5}, "bits"),
        ({"bits": 4, "group_size": 0}, "group_size"),
        ({"bits": 4, "group_size": 128, "checkpoint_format": "marlin"}, "format"),
    ],
)
def test_a_quantization_that_cannot_run_is_refused_before_the_weights_are_asked_for(
    hub: HubStandin, origin: Path, quantization: Any, key: str
) -> None:
    change_config(origin, quantization_config=quantization)
    error = refusal(hub)
    assert isinstance(error, CheckpointError)
    assert (error.key, error.params["folder"]) == (key, REPO)
    assert not any(WEIGHTS in path for path in hub.paths)


def test_an_index_without_a_quantized_matrix_tells_that_the_model_is_not(hub: HubStandin, origin: Path) -> None:
    change_config(origin, quantization_config=...)
    (origin / WEIGHTS).rename(origin / "model-00001-of-00001.safetensors")
    write_index(origin, {"model.layers.0.mlp.up_proj.weight": "model-00001-of-00001.safetensors"})
    assert refusal(hub).key == "not_quantized"
    assert not any("-of-" in path for path in hub.paths)


def test_settings_that_no_file_has_are_read_from_the_tensors(hub: HubStandin, origin: Path) -> None:
    local = read_checkpoint(origin)
    change_config(origin, quantization_config=...)
    assert read_remote(REPO, endpoint=hub.url).quantization == local.quantization
    sizes = [request.sent_bytes for request in hub.requests if WEIGHTS in request.path]
    assert len(sizes) == 3, "the header, an order and zero points"


@pytest.mark.parametrize(
    ("name", "key"),
    [("pytorch_model.bin", "hub_only_pickled"), ("llama.pt", "hub_only_pickled"), ("model.gguf", "hub_no_weights")],
)
def test_a_repository_without_safetensors_is_refused(hub: HubStandin, origin: Path, name: str, key: str) -> None:
    (origin / WEIGHTS).rename(origin / name)
    assert refusal(hub).key == key


def test_a_repository_of_gguf_files_is_refused(hub: HubStandin, origin: Path) -> None:
    (origin / "config.json").unlink()
    assert refusal(hub).key == "hub_no_config"


def test_two_sets_of_weights_are_refused_with_both_names(hub: HubStandin, origin: Path) -> None:
    (origin / "gptq_model-4bit-128g.safetensors").write_bytes((origin / WEIGHTS).read_bytes())
    error = refusal(hub)
    assert (error.key, error.params["second"]) == ("hub_several_weights", WEIGHTS)


def test_weights_that_are_not_quantized_are_refused(hub: HubStandin, origin: Path) -> None:
    save_file({"model.norm.weight": np.ones(64, np.float16)}, origin / WEIGHTS)
    assert refusal(hub).key == "no_quantized_weights"


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe{}", b"[" * 100_000, b"<!DOCTYPE html>"])
def test_a_config_that_is_no_json_object_is_refused(hub: HubStandin, origin: Path, content: bytes) -> None:
    (origin / "config.json").write_bytes(content)
    assert refusal(hub).params == {"repo": REPO, "file": "config.json"}


def test_a_huge_config_is_not_read_to_its_end(hub: HubStandin, origin: Path) -> None:
    with (origin / "config.json").open("ab") as file:
        file.truncate(128 * 2**20)
    assert refusal(hub).key == "hub_damaged"
    hub.close()
    assert hub.requests[1].sent_bytes < 64 * 2**20


@pytest.mark.parametrize("weight_map", [None, [], {"a": "../../etc/passwd"}, {"a": "/etc/passwd"}, {"a": "gone"}])
def test_an_index_that_leads_elsewhere_gives_way_to_a_whole_file(
    hub: HubStandin, origin: Path, weight_map: Any
) -> None:
    write_index(origin, weight_map)
    assert read_remote(REPO, endpoint=hub.url).quantization.bits == 4
    (origin / WEIGHTS).rename(origin / "model.bin")
    assert refusal(hub).key == "hub_damaged"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"1234567",
        struct.pack("<Q", 0),
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 2) + b"\xff\xff",
        struct.pack("<Q", 100) + b"{}",
        struct.pack("<Q", len(large_header(64))) + large_header(64) + b"x" * 63,
        struct.pack("<Q", len(large_header(64))) + large_header(64) + b"x" * 65,
        b"version https://git-lfs.github.com/spec/v1\n",
    ],
)
def test_a_weight_file_that_is_none_is_refused(hub: HubStandin, origin: Path, content: bytes) -> None:
    (origin / WEIGHTS).write_bytes(content)
    assert refusal(hub).key == "hub_damaged"


def test_names_in_the_listing_that_lead_elsewhere_are_not_asked_for(hub: HubStandin) -> None:
    siblings = [{"rfilename": "../config.json"}, {"rfilename": "a/model.safetensors"}, {"rfilename": None}, 5]
    hub.behaviour.bodies["/revision/main"] = json.dumps({"sha": "../..", "siblings": siblings}).encode()
    assert refusal(hub).key == "hub_no_config"


# The stand-in itself -------------------------------------------------------------------------------------------------


def test_the_hubs_own_client_takes_the_standin_for_the_hub(hub: HubStandin, origin: Path, tmp_path: Path) -> None:
    api = HfApi(endpoint=hub.url, token=False)
    info = api.model_info(REPO, files_metadata=True)
    assert info.sha == hub.commit(REPO, "main")
    sizes = {sibling.rfilename: sibling.size for sibling in info.siblings or []}
    assert sizes == {path.name: path.stat().st_size for path in origin.iterdir()}
    assert [branch.name for branch in api.list_repo_refs(REPO).branches] == ["main"]
    assert {entry.path for entry in api.list_repo_tree(REPO, recursive=True)} == set(sizes)
    assert api.file_exists(REPO, WEIGHTS) and not api.file_exists(REPO, "none")
    path = hf_hub_download(REPO, WEIGHTS, endpoint=hub.url, local_dir=tmp_path / "down", token=False)
    assert Path(path).read_bytes() == (origin / WEIGHTS).read_bytes()


@pytest.mark.parametrize(
    ("repo", "revision", "theirs", "ours"),
    [
        ("some/missing", "main", RepositoryNotFoundError, "hub_unknown_repo"),
        (REPO, "missing", RevisionNotFoundError, "unknown_branch"),
        ("closed/model", "main", GatedRepoError, "hub_gated"),
    ],
)
def test_what_the_hubs_own_client_calls_an_error_is_ours_too(
    hub: HubStandin, repo: str, revision: str, theirs: type[Exception], ours: str
) -> None:
    make_checkpoint(hub.root / "closed" / "model" / "main", Recipe(num_layers=1))
    hub.behaviour.gated = {"closed/model"}
    with pytest.raises(theirs):
        HfApi(endpoint=hub.url, token=False).get_hf_file_metadata(
            url=hf_hub_url(repo, "config.json", revision=revision, endpoint=hub.url)
        )
    assert refusal(hub, repo, revision).key == ours


@given(st.from_regex(r"[A-Za-z0-9._-]{1,12}(/[A-Za-z0-9._-]{1,12})?", fullmatch=True))
def test_every_name_that_the_hubs_own_client_takes_is_taken(name: str) -> None:
    try:
        validate_repo_id(name)
    except HFValidationError:
        return
    check_address(Address(name, "main"))


def test_the_default_endpoint_is_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    assert checked_endpoint(None) == "https://huggingface.co"
