"""Downloads from a stand-in of the Hub that drops, stalls, lies and changes: the model is whole in the end, or said."""

from __future__ import annotations

import errno
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from core.checkpoint.checkpoint import read_checkpoint
from core.common.errors import DeckError, InputError
from core.hub.address import Address
from core.hub.download_job import DownloadJob
from core.hub.folders import ModelFolders, discard, locked, os_errors_explained
from core.hub.progress import JobState
from core.hub.queue import DownloadQueue
from core.hub.record import FILE, read_record
from core.hub.source import Source
from tests.support.hub_models import FOLDER, MIB, QUICK, REPO, WEIGHTS, hashes, make_model, source_at
from tests.support.hub_standin import HubStandin, Request
from tests.support.modelscope_standin import ModelScopeStandin

PART = f".download-{FOLDER}/{WEIGHTS}.part"
LONG_S = 60.0


@pytest.fixture
def models(tmp_path: Path) -> Path:
    return tmp_path / "models"


@pytest.fixture
def downloads(models: Path) -> Iterator[DownloadQueue]:
    made = DownloadQueue(models, lambda endpoint: None, QUICK)
    yield made
    made.close()


def finish(job: DownloadJob) -> JobState:
    assert job.wait(LONG_S), job.snapshot()
    return job.snapshot()


def fetch(downloads: DownloadQueue, hub: HubStandin, name: str = REPO) -> JobState:
    return finish(downloads.add(source_at(hub, name)))


def wait_for(condition: Callable[[], bool]) -> None:
    """Until something is so that no event tells of; fails after a minute."""
    end = time.monotonic() + LONG_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def weight_requests(hub: HubStandin) -> list[Request]:
    """The requests for weights themselves, not for their headers, which are ranges with an end."""
    found = [request for request in hub.requests if request.path.endswith(WEIGHTS)]
    return [request for request in found if not request.headers.get("Range", "-").rpartition("-")[2]]


def sent_bytes(hub: HubStandin) -> int:
    return sum(request.sent_bytes for request in weight_requests(hub))


def assert_is_whole(models: Path, origin: Path, state: JobState) -> None:
    assert (state.phase, state.error) == ("done", None), state.error
    assert hashes(models / FOLDER) == hashes(origin)
    assert [path.name for path in models.iterdir()] == [FOLDER]
    assert state.done_bytes == state.total_bytes == sum(path.stat().st_size for path in origin.iterdir())


# What arrives --------------------------------------------------------------------------------------------------------


def test_a_model_arrives_whole_and_says_where_it_came_from(
    downloads: DownloadQueue, hub: HubStandin, models: Path, origin: Path
) -> None:
    state = fetch(downloads, hub)
    assert_is_whole(models, origin, state)
    assert {file.phase for file in state.files} == {"done"}
    record = read_record(models / FOLDER)
    assert record is not None
    assert (record.source, record.commit) == (source_at(hub), hub.commit(REPO, "main"))
    assert {file.name for file in record.files} == set(hashes(origin))
    assert read_checkpoint(models / FOLDER).name == FOLDER
    assert all(request.headers["Accept-Encoding"] == "identity" for request in hub.requests)


def test_only_what_runs_is_fetched(downloads: DownloadQueue, hub: HubStandin, models: Path, origin: Path) -> None:
    wanted = set(hashes(origin))
    for name in ("pytorch_model.bin", "old.pt", "model.gguf", "model.onnx", ".gitattributes", "picture.png"):
        (origin / name).write_bytes(b"x")
    (origin / "onnx").mkdir()
    (origin / "onnx" / "config.json").write_text("{}")
    for name in ("README.md", "LICENSE", "USE_POLICY.md", "chat_template.jinja", "generation_config.json"):
        (origin / name).write_text("{}")
        wanted.add(name)
    assert fetch(downloads, hub).phase == "done"
    assert set(hashes(models / FOLDER)) == wanted


def test_a_branch_gets_a_folder_of_its_own(downloads: DownloadQueue, hub: HubStandin, models: Path) -> None:
    make_model(hub.root / REPO / "gptq%2F8bit", 1, seed=1)
    assert fetch(downloads, hub, f"{REPO}:gptq/8bit").phase == "done"
    assert hashes(models / f"{FOLDER}_gptq_8bit") == hashes(hub.root / REPO / "gptq%2F8bit")


def test_the_list_of_files_is_read_to_its_last_page_from_the_chosen_endpoint(
    downloads: DownloadQueue, hub: HubStandin, models: Path, origin: Path
) -> None:
    hub.behaviour.page_entries = 1
    assert_is_whole(models, origin, fetch(downloads, hub))


def test_an_empty_file_is_fetched_too(downloads: DownloadQueue, hub: HubStandin, models: Path, origin: Path) -> None:
    (origin / "LICENSE").write_bytes(b"")
    assert_is_whole(models, origin, fetch(downloads, hub))


def test_models_come_one_after_the_other(downloads: DownloadQueue, hub: HubStandin, models: Path) -> None:
    make_model(hub.root / "some/other" / "main", 1, seed=1)
    hub.behaviour.stalls = [0]
    first, second = downloads.add(source_at(hub)), downloads.add(source_at(hub, "some/other"))
    assert downloads.add(source_at(hub)) is first
    assert downloads.jobs == (first, second)
    wait_for(lambda: bool(weight_requests(hub)))
    assert second.snapshot().phase == "queued"
    assert finish(first).phase == finish(second).phase == "done"
    assert sorted(path.name for path in models.iterdir()) == ["some_other", FOLDER]
    downloads.forget(first.id)
    assert downloads.jobs == (second,)


@pytest.mark.parametrize("tells_commits", [True, False])
def test_a_model_comes_from_modelscope(
    downloads: DownloadQueue, models: Path, origin: Path, tmp_path: Path, tells_commits: bool
) -> None:
    shutil.copytree(origin, tmp_path / "modelscope" / REPO / "master")
    with ModelScopeStandin(tmp_path / "modelscope") as server:
        server.tells_commits = tells_commits
        source = Source(Address(REPO, "main"), server.url, "modelscope")
        assert_is_whole(models, origin, finish(downloads.add(source)))
        record = read_record(models / FOLDER)
        assert record is not None and record.source == source


# A network that fails ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "cuts", [[0], [1], [100], [65_536], [1_000_003], [3 * MIB], [0, 0, 70_000, 0, 0, 200_000, 1, 0]]
)
def test_a_connection_may_drop_anywhere_and_nothing_is_fetched_twice(
    downloads: DownloadQueue, hub: HubStandin, models: Path, origin: Path, cuts: list[int]
) -> None:
    hub.behaviour.cuts = list(cuts)
    state = fetch(downloads, hub)
    assert_is_whole(models, origin, state)
    assert hub.behaviour.cuts == []
    assert sent_bytes(hub) == (origin / WEIGHTS).stat().st_size


def test_connections_that_all_die_after_a_mebibyte_are_no_obstacle(
    downloads: DownloadQueue, hub: HubStandin, models: Path, origin: Path
) -> None:
    hub.behaviour.cut_every = MIB
    assert_is_whole(models, origin, fetch(downloads, hub))
    assert len(weight_requests(hub)) == 4
    assert sent_bytes(hub) == (origin / WEIGHTS).stat().st_size


def test_a_network_that_never_comes_back_fails_in_words_and_keeps_the_part(
    downloads: DownloadQueue, hub: HubStandin, models: Path, origin: Path
) -> None:
    hub.behaviour.cuts = [MIB, *[0] * 20]
    job = downloads.add(source_at(hub))
    state = finish(job)
    assert state.phase == "failed" and state.error is not None and state.error.key in ("hub_cut", "hub_broken")
    assert len(weight_requests(hub)) == 1 + QUICK.tries
    assert (models / PART).stat().st_size == MIB
    hub.behaviour.cuts.clear()
    downloads.resume(job.id)
    assert_is_whole(models, origin, finish(job))
    assert sent_bytes(hub) == (origin / WEIGHTS).stat().st_size


def test_a_server_that_ignores_ranges_sends_again_what_is_thrown_away(
    downloads: DownloadQueue, hub: HubStandin, models: Path, origin: Path
) -> None:
    hub.behaviour.ignores_ranges = True
    hub.behaviour.cuts = [0, MIB, 2 * MIB]
    assert_is_whole(models, origin, fetch(downloads, hub))


@pytest.mark.parametrize("false_length", [-MIB, -1, 1, MIB])
def test_a_wrong_content_length_is_not_believed(
    downloads: DownloadQueue, hub: HubStandin, models: Path, origin: Path, false_length: int
) -> None:
    hub.behaviour.false_lengths = [0, false_length]
    assert_is_whole(models, origin, fetch(downloads, hub))


def test_wrong_bytes_are_fetched_anew(downloads: DownloadQueue, hub: HubStandin, models: Path, origin: Path) -> None:
    hub.behaviour.num_wrong = 1
    assert_is_whole(models, origin, fetch(downloads, hub))


def test_bytes_that_stay_wrong_never_become_a_model(downloads: DownloadQueue, hub: HubStandin, models: Path) -> None:
    hub.behaviour.num_wrong = 100
    state = fetch(downloads, hub)
    assert state.phase == "failed" and state.error is not None and state.error.key == "download_wrong"
    assert not (models / FOLDER).exists()
    assert not (models / PART).exists()


def test_a_small_file_is_held_against_gits_hash(downloads: DownloadQueue, hub: HubStandin, models: Path) -> None:
    name = "tokenizer_config.json"
    hub.behaviour.bodies = {name: (hub.root / REPO / "main" / name).read_bytes()[::-1]}
    error = fetch(downloads, hub).error
    assert error is not None and (error.key, error.params["file"]) == ("download_wrong", name)
    assert not (models / FOLDER).exists()


def test_a_stalled_read_is_a_broken_connection(
    downloads: DownloadQueue, hub: HubStandin, models: Path, origin: Path
) -> None:
    hub.behaviour.stalls = [0, MIB, 100_000]
    assert_is_whole(models, origin, fetch(downloads, hub))
    assert hub.behaviour.stalls == []


@pytest.mark.parametrize(("status", "key"), [(429, "retry_busy"), (503, "retry_failed")])
def test_retry_after_is_obeyed_and_said(
    downloads: DownloadQueue, hub: HubStandin, models: Path, origin: Path, status: int, key: str
) -> None:
    hub.behaviour.busy = [(status, "1")]
    job = downloads.add(source_at(hub))
    notices: list[DeckError] = []
    wait_for(lambda: bool(notices.extend(filter(None, [job.snapshot().notice])) or notices))
    assert (notices[0].key, notices[0].params["seconds"]) == (key, 1)
    state = finish(job)
    assert_is_whole(models, origin, state)
    assert state.notice is None


def test_a_hub_that_is_busy_when_asked_for_the_files_is_asked_again(downloads: DownloadQueue, hub: HubStandin) -> None:
    hub.behaviour.statuses = {"/api/models": 503}
    state = fetch(downloads, hub)
    assert state.error is not None and state.error.key == "hub_failed"
    assert len([path for path in hub.paths if "/api/models" in path]) == QUICK.manifest_tries


def test_a_hub_that_is_not_there_is_said_and_nothing_is_left(downloads: DownloadQueue, models: Path) -> None:
    state = finish(downloads.add(Source(Address(REPO, "main"), "http://127.0.0.1:9")))
    assert state.error is not None and state.error.key == "hub_unreachable"
    assert list(models.iterdir()) == []


def test_done_bytes_never_go_back(downloads: DownloadQueue, hub: HubStandin) -> None:
    hub.behaviour.num_wrong = 1
    hub.behaviour.cut_every = 300_000
    job = downloads.add(source_at(hub))
    seen = [job.snapshot().done_bytes]
    while not job.wait(0.001):
        seen.append(job.snapshot().done_bytes)
    assert seen == sorted(seen)
    assert job.snapshot().phase == "done"


def test_the_proxy_of_the_environment_is_used(
    downloads: DownloadQueue, hub: HubStandin, models: Path, origin: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy gets whole addresses, which the stand-in answers as if they were its own."""
    monkeypatch.setenv("http_proxy", hub.url.replace("//", "//user:p%40ss@"))
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    state = finish(downloads.add(Source(Address(REPO, "main"), "http://hub.invalid")))
    assert_is_whole(models, origin, state)
    assert all(path.startswith("http://hub.invalid/") for path in hub.paths)
    headers = [{name.lower(): value for name, value in request.headers.items()} for request in hub.requests]
    assert {shown["proxy-authorization"] for shown in headers} == {"Basic dXNlcjpwQHNz"}


@pytest.mark.parametrize(
    ("number", "key"),
    [
        (errno.ENOSPC, "download_disk_full"),
        (errno.EDQUOT, "download_disk_full"),
        (errno.EFBIG, "download_file_limit"),
        (errno.EACCES, "download_write"),
    ],
)
def test_what_a_disk_refuses_is_said(tmp_path: Path, number: int, key: str) -> None:
    with pytest.raises(DeckError) as caught, os_errors_explained(tmp_path):
        raise OSError(number, os.strerror(number))
    assert caught.value.key == key and str(tmp_path) in str(caught.value)


# Who may have it -----------------------------------------------------------------------------------------------------


def test_a_token_opens_a_gated_repository(
    hub: HubStandin, models: Path, origin: Path, downloads: DownloadQueue
) -> None:
    hub.behaviour.gated, hub.behaviour.tokens, hub.behaviour.accepted = {REPO}, {"hf_a", "hf_b"}, {"hf_b"}
    refused = [(None, "hub_gated"), ("hf_a", "hub_gated"), ("hf_wrong", "hub_token"), ("a b", "hub_token_text")]
    for token, key in refused:
        with_token = DownloadQueue(models, lambda endpoint, shown=token: shown, QUICK)
        error = fetch(with_token, hub).error
        assert error is not None and error.key == key
        assert token is None or token not in str(error)
        assert list(models.iterdir()) == []
        with_token.close()
    accepted = DownloadQueue(models, lambda endpoint: "hf_b", QUICK)
    assert_is_whole(models, origin, fetch(accepted, hub))
    accepted.close()


def test_a_token_is_shown_to_the_endpoint_only(hub: HubStandin, models: Path, origin: Path) -> None:
    hub.behaviour.private, hub.behaviour.tokens = {REPO}, {"hf_b"}
    with HubStandin(hub.root) as store:
        hub.behaviour.store = store.url
        asked: list[str] = []
        downloads = DownloadQueue(models, lambda endpoint: asked.append(endpoint) or "hf_b", QUICK)
        hub.behaviour.cuts = store.behaviour.cuts = [MIB]
        assert_is_whole(models, origin, fetch(downloads, hub))
        downloads.close()
        assert asked == [hub.url]
        assert all(request.headers["Authorization"] == "Bearer hf_b" for request in hub.requests)
        assert [request for request in store.requests if request.path.endswith(WEIGHTS)]
        assert not [request for request in store.requests if "Authorization" in request.headers]
        assert not [request for request in store.requests if "hf_b" in str(request.headers)]


def test_a_missing_branch_is_answered_with_near_ones(downloads: DownloadQueue, hub: HubStandin, models: Path) -> None:
    error = fetch(downloads, hub, f"{REPO}:mian").error
    assert isinstance(error, InputError)
    assert (error.key, error.params["near"]) == ("unknown_branch", "main")
    assert list(models.iterdir()) == []


@pytest.mark.parametrize("name", ["", "../x", "a/b/c", "/", "a/..", "some/x:..", "a/b:" + "x" * 230, "a b/c"])
def test_names_that_are_none_are_refused_at_once(
    downloads: DownloadQueue, hub: HubStandin, models: Path, name: str
) -> None:
    with pytest.raises(InputError):
        downloads.add(source_at(hub, name))
    assert not models.exists()


# Pause, resume, cancel -----------------------------------------------------------------------------------------------


def begun(downloads: DownloadQueue, hub: HubStandin, models: Path, at: int = MIB) -> DownloadJob:
    """A download that has fetched `at` bytes and then hears nothing."""
    hub.behaviour.stalls = [at]
    job = downloads.add(source_at(hub))
    wait_for(lambda: (models / PART).exists() and (models / PART).stat().st_size == at)
    return job


@pytest.fixture
def patient(models: Path) -> Iterator[DownloadQueue]:
    """Downloads that wait for a silent server longer than a test does."""
    made = DownloadQueue(models, lambda endpoint: None)
    yield made
    made.close()


def test_a_pause_is_heard_while_the_network_is_silent(
    patient: DownloadQueue, hub: HubStandin, models: Path, origin: Path
) -> None:
    job = begun(patient, hub, models)
    patient.pause(job.id)
    assert finish(job).phase == "paused"
    assert (models / PART).stat().st_size == MIB
    patient.resume(job.id)
    assert_is_whole(models, origin, finish(job))
    assert sent_bytes(hub) == (origin / WEIGHTS).stat().st_size


def test_a_cancel_leaves_nothing(patient: DownloadQueue, hub: HubStandin, models: Path) -> None:
    job = begun(patient, hub, models)
    patient.cancel(job.id)
    assert finish(job).phase == "cancelled"
    assert list(models.iterdir()) == []
    patient.forget(job.id)
    assert patient.jobs == ()


def test_a_paused_job_is_cancelled_too(patient: DownloadQueue, hub: HubStandin, models: Path) -> None:
    job = begun(patient, hub, models)
    patient.pause(job.id)
    finish(job)
    patient.cancel(job.id)
    assert job.snapshot().phase == "cancelled"
    assert list(models.iterdir()) == []


def test_whoever_looks_does_not_wait_for_a_cancel(
    patient: DownloadQueue, hub: HubStandin, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All pages once waited until the files of the cancelled model were removed."""
    job = begun(patient, hub, models)
    patient.pause(job.id)
    finish(job)
    seen: list[list[str]] = []

    def look_and_discard(folders: ModelFolders) -> None:
        looking = threading.Thread(target=lambda: seen.append([one.snapshot().phase for one in patient.jobs]))
        looking.start()
        looking.join(LONG_S)
        discard(folders)

    monkeypatch.setattr("core.hub.download_job.discard", look_and_discard)
    patient.cancel(job.id)
    assert seen == [["pausing"]] and job.snapshot().phase == "cancelled"
    assert list(models.iterdir()) == []


@pytest.mark.parametrize("phase", ["paused", "queued"])
def test_a_cancel_that_cannot_remove_leaves_the_job_as_it_was(
    patient: DownloadQueue, hub: HubStandin, models: Path, monkeypatch: pytest.MonkeyPatch, phase: str
) -> None:
    make_model(hub.root / "some/other" / "main", 1, seed=1)
    begun(patient, hub, models)
    job = patient.add(source_at(hub, "some/other"))
    if phase == "paused":
        patient.pause(job.id)

    def refuse(_: ModelFolders) -> None:
        raise DeckError("unreadable", file=str(models), why="Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr("core.hub.download_job.discard", refuse)
        with pytest.raises(DeckError):
            patient.cancel(job.id)
    assert job.snapshot().phase == phase
    patient.cancel(job.id)
    assert job.snapshot().phase == "cancelled"


def test_an_unfinished_job_is_there_in_the_next_process(
    patient: DownloadQueue, hub: HubStandin, models: Path, origin: Path
) -> None:
    make_model(hub.root / "some/other" / "main", 1, seed=1)
    begun(patient, hub, models)
    patient.add(source_at(hub, "some/other"))
    patient.close()
    later = DownloadQueue(models, lambda endpoint: None, QUICK)
    states = {job.id: job.snapshot() for job in later.jobs}
    assert {name: state.phase for name, state in states.items()} == {FOLDER: "paused", "some_other": "paused"}
    assert states[FOLDER].done_bytes > MIB and states[FOLDER].total_bytes > 3 * MIB
    later.resume(FOLDER)
    job = next(job for job in later.jobs if job.id == FOLDER)
    assert finish(job).phase == "done"
    assert hashes(models / FOLDER) == hashes(origin)
    assert sent_bytes(hub) == (origin / WEIGHTS).stat().st_size
    later.close()


def test_a_part_whose_bytes_went_bad_is_found_out(
    patient: DownloadQueue, hub: HubStandin, models: Path, origin: Path
) -> None:
    """A power cut can leave zeros in a part: its length is trusted, its bytes are not."""
    job = begun(patient, hub, models)
    patient.pause(job.id)
    finish(job)
    with (models / PART).open("r+b") as part:
        part.write(bytes(4096))
    patient.resume(job.id)
    assert_is_whole(models, origin, finish(job))


def test_a_part_that_is_too_long_begins_anew(
    patient: DownloadQueue, hub: HubStandin, models: Path, origin: Path
) -> None:
    job = begun(patient, hub, models)
    patient.pause(job.id)
    finish(job)
    with (models / PART).open("ab") as part:
        part.write(bytes(4 * MIB))
    patient.resume(job.id)
    assert_is_whole(models, origin, finish(job))


def test_only_one_process_fetches_a_model(
    downloads: DownloadQueue, hub: HubStandin, models: Path, origin: Path
) -> None:
    with locked(ModelFolders(models, FOLDER)):
        state = fetch(downloads, hub)
        assert state.error is not None
        assert (state.error.key, state.error.params["pid"]) == ("download_elsewhere", str(os.getpid()))
    downloads.resume(FOLDER)
    assert_is_whole(models, origin, finish(downloads.jobs[0]))


def test_a_job_that_another_process_has_finished_is_not_shown_any_more(
    patient: DownloadQueue, hub: HubStandin, models: Path
) -> None:
    begun(patient, hub, models)
    patient.close()
    first, second = (DownloadQueue(models, lambda endpoint: None, QUICK) for _ in range(2))
    assert [job.id for job in second.jobs] == [FOLDER]
    assert fetch(first, hub).phase == "done"
    assert second.jobs == ()
    first.close()


# What is there already -----------------------------------------------------------------------------------------------


def test_a_complete_folder_of_another_program_is_adopted_without_fetching(
    downloads: DownloadQueue, hub: HubStandin, models: Path, origin: Path
) -> None:
    make_model(models / FOLDER)
    (models / FOLDER / "settings.yaml").write_text("its own")
    assert fetch(downloads, hub).phase == "done"
    assert weight_requests(hub) == []
    assert (models / FOLDER / "settings.yaml").read_text() == "its own"
    record = read_record(models / FOLDER)
    assert record is not None and record.source == source_at(hub)


def test_what_a_person_edited_is_kept_beside_the_true_file(
    downloads: DownloadQueue, hub: HubStandin, models: Path, origin: Path
) -> None:
    make_model(models / FOLDER)
    (models / FOLDER / "config.json").write_text('{"edited": true}')
    assert fetch(downloads, hub).phase == "done"
    assert weight_requests(hub) == []
    assert (models / FOLDER / "config.json.before").read_text() == '{"edited": true}'
    assert (models / FOLDER / "config.json").read_bytes() == (origin / "config.json").read_bytes()


def test_a_damaged_file_of_a_finished_model_is_fetched_again(
    downloads: DownloadQueue, hub: HubStandin, models: Path, origin: Path
) -> None:
    assert fetch(downloads, hub).phase == "done"
    with (models / FOLDER / WEIGHTS).open("r+b") as weights:
        weights.seek(-1, os.SEEK_END)
        weights.write(b"!" if weights.read(1) != b"!" else b"?")
    assert_is_whole(models, origin, fetch(downloads, hub))
    assert len(weight_requests(hub)) == 2


def test_a_changed_model_is_noticed_and_only_what_changed_is_fetched(
    downloads: DownloadQueue, hub: HubStandin, models: Path, origin: Path
) -> None:
    assert fetch(downloads, hub).phase == "done"
    (origin / "README.md").write_text("new")
    hub.behaviour.num_pushes = 1
    state = fetch(downloads, hub)
    assert_is_whole(models, origin, state)
    assert state.notice is not None and state.notice.key == "download_changed"
    assert len(weight_requests(hub)) == 1
    record = read_record(models / FOLDER)
    assert record is not None and record.commit == hub.commit(REPO, "main")


def test_a_model_that_changes_while_it_is_fetched_is_noticed(
    patient: DownloadQueue, hub: HubStandin, models: Path, origin: Path
) -> None:
    job = begun(patient, hub, models)
    patient.pause(job.id)
    finish(job)
    make_model(origin, seed=5)
    hub.behaviour.num_pushes = 1
    patient.resume(job.id)
    state = finish(job)
    assert_is_whole(models, origin, state)
    assert state.notice is not None and state.notice.key == "download_changed"


def test_a_commit_that_goes_while_it_is_fetched_is_looked_for_anew(
    downloads: DownloadQueue, hub: HubStandin, models: Path, origin: Path
) -> None:
    hub.behaviour.busy = [(503, "1")]
    job = downloads.add(source_at(hub))
    wait_for(lambda: job.snapshot().notice is not None)
    (origin / "README.md").write_text("new")
    hub.behaviour.num_pushes = 1
    assert_is_whole(models, origin, finish(job))


def test_a_folder_of_another_repository_is_not_touched(downloads: DownloadQueue, hub: HubStandin, models: Path) -> None:
    make_model(hub.root / "some/tiny" / "GPTQ", 1)
    make_model(hub.root / "some/tiny_GPTQ" / "main", 1)
    assert fetch(downloads, hub, "some/tiny:GPTQ").phase == "done"
    before = hashes(models / "some_tiny_GPTQ")
    with pytest.raises(InputError) as caught:
        downloads.add(source_at(hub, "some/tiny_GPTQ"))
    assert (caught.value.key, caught.value.params["other"]) == ("download_other", "some/tiny:GPTQ")
    assert hashes(models / "some_tiny_GPTQ") == before


def test_nothing_is_written_through_a_link(
    downloads: DownloadQueue, hub: HubStandin, models: Path, tmp_path: Path
) -> None:
    models.mkdir()
    outside = tmp_path / "outside"
    outside.mkdir()
    (models / FOLDER).symlink_to(outside)
    with pytest.raises(InputError) as caught:
        downloads.add(source_at(hub))
    assert caught.value.key == "download_folder"
    assert list(outside.iterdir()) == []


def test_a_part_that_is_a_link_is_not_followed(
    downloads: DownloadQueue, hub: HubStandin, models: Path, tmp_path: Path, patient: DownloadQueue
) -> None:
    job = begun(patient, hub, models)
    patient.pause(job.id)
    finish(job)
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (models / PART).unlink()
    (models / PART).symlink_to(victim)
    patient.resume(job.id)
    state = finish(job)
    assert state.error is not None and state.error.key == "download_write"
    assert victim.read_text() == "precious"


def test_a_damaged_record_is_no_obstacle(patient: DownloadQueue, hub: HubStandin, models: Path, origin: Path) -> None:
    begun(patient, hub, models)
    patient.close()
    (models / f".download-{FOLDER}" / FILE).write_text(json.dumps({"files": [{"name": "../../x"}]}))
    later = DownloadQueue(models, lambda endpoint: None, QUICK)
    assert later.jobs == ()
    assert_is_whole(models, origin, fetch(later, hub))
    later.close()


def test_any_thread_may_steer(downloads: DownloadQueue, hub: HubStandin, models: Path, origin: Path) -> None:
    hub.behaviour.cut_every = 100_000
    job = downloads.add(source_at(hub))

    def steer() -> None:
        for _ in range(20):
            downloads.pause(job.id)
            downloads.resume(job.id)
            assert len(downloads.jobs) == 1

    threads = [threading.Thread(target=steer) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    downloads.resume(job.id)
    wait_for(lambda: (downloads.resume(job.id), job.snapshot().phase == "done")[1])
    assert_is_whole(models, origin, job.snapshot())
    for name in ("nothing", "", "../x"):
        downloads.pause(name)
        downloads.cancel(name)
        downloads.forget(name)


def test_a_job_whose_end_goes_wrong_as_well_does_not_end_the_queue(
    downloads: DownloadQueue, hub: HubStandin, models: Path, origin: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What cleans up after a fault may fail itself; the queue's thread ended, and nothing was fetched any more."""

    def fail(*_: object) -> None:
        raise RuntimeError("a fault")

    with monkeypatch.context() as patch:
        patch.setattr("core.hub.download_job.ModelDownload", fail)
        patch.setattr("core.hub.download_job.has_bytes", fail)
        state = fetch(downloads, hub)
    assert state.phase == "failed" and "RuntimeError: a fault" in str(state.error)
    assert_is_whole(models, origin, fetch(downloads, hub))


def test_a_hash_that_cannot_be_computed_fails_the_download_and_says_why(
    downloads: DownloadQueue, hub: HubStandin, models: Path, origin: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ValueError("no such hash")

    with monkeypatch.context() as patch:
        patch.setattr("core.hub.hashing.new_digest", fail)
        state = fetch(downloads, hub)
    assert state.phase == "failed" and "no such hash" in str(state.error)
    assert_is_whole(models, origin, fetch(downloads, hub))
