"""The runner with the real worker process and a tiny real model: states, answers, kills, bad folders."""

from __future__ import annotations

import os
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import snapshot_download

from core.common.errors import EngineError
from core.engine.process import death_reason
from core.engine.runner import Runner
from core.engine.sampling_params import Sampling
from tests.support.hub_standin import HubStandin

LOAD_S = 240.0
ANSWER_S = 120.0
PROMPT = "What is the capital of France?"
ENDLESS = Sampling(temperature=0.0, max_new_tokens=100_000)
SHORT = Sampling(temperature=0.0, max_new_tokens=8)


@pytest.fixture(scope="module")
def shared(folder: Path) -> Iterator[Runner]:
    runner = Runner()
    runner.load(folder, num_slots=2)
    yield runner
    runner.unload()


@pytest.fixture
def runner(shared: Runner, folder: Path) -> Runner:
    """A runner with the tiny model ready, whatever the test before did to it."""
    if shared.state.phase not in ("ready", "loading"):
        shared.load(folder, num_slots=2)
    assert shared.wait_while_loading(LOAD_S).phase == "ready", shared.state
    return shared


def worker_pid(runner: Runner) -> int:
    assert runner.worker_pid is not None
    return runner.worker_pid


def test_a_model_in_hugging_faces_cache_is_loaded_where_it_lies(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "hub" / "some" / "tiny" / "main")
    with HubStandin(tmp_path / "hub") as hub:
        snapshot = snapshot_download("some/tiny", endpoint=hub.url, cache_dir=tmp_path / "cache", token=False)
    runner = Runner()
    runner.load(Path(snapshot))
    state = runner.wait_while_loading(LOAD_S)
    assert (state.phase, state.folder) == ("ready", Path(snapshot)), state.error
    assert state.facts is not None and state.model == state.facts.name == f"some_tiny@{Path(snapshot).name[:8]}"
    answer = runner.generate("hello", SHORT)
    assert answer.wait(LOAD_S) and answer.error is None
    runner.unload()


def test_a_load_names_its_stages_and_ends_ready(folder: Path) -> None:
    runner, seen = Runner(), []
    runner.load(folder)
    assert runner.state.phase == "loading"
    assert runner.state.model == "tiny"
    with runner.changed:
        while runner.state.phase == "loading":
            seen.append((runner.state.stage, runner.state.fraction))
            assert runner.changed.wait(LOAD_S)
    assert runner.state.phase == "ready"
    assert runner.state.facts is not None
    assert runner.state.facts.kernel == "aten_int4"
    assert runner.state.facts.context_tokens == 4096
    assert [fraction for _, fraction in seen] == sorted(fraction for _, fraction in seen)
    assert {stage for stage, _ in seen} >= {"start", "read"}
    pid = worker_pid(runner)
    runner.unload()
    assert runner.state.phase == "empty"
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_an_answer_comes_in_pieces_and_is_whole_at_the_end(runner: Runner) -> None:
    answer = runner.generate(PROMPT, Sampling(temperature=0.0, max_new_tokens=400))
    assert answer.wait_for_text(0, ANSWER_S)
    first = answer.text
    assert answer.wait(ANSWER_S)
    assert answer.reason == "length"
    assert answer.stats is not None and answer.stats.num_tokens == 400
    assert answer.text.startswith(first) and len(answer.text) > len(first) > 0
    assert runner.running_answers == []


def test_cancel_stops_the_computing_and_keeps_what_was_said(runner: Runner) -> None:
    answer = runner.generate(PROMPT, ENDLESS)
    assert answer.wait_for_text(20, ANSWER_S)
    answer.cancel()
    assert answer.wait(ANSWER_S)
    assert answer.reason == "cancelled"
    assert len(answer.text) > 20
    after = runner.generate(PROMPT, SHORT)
    assert after.wait(ANSWER_S)
    assert after.reason == "length"


def test_more_requests_than_slots_are_all_answered(runner: Runner) -> None:
    answers = [runner.generate(PROMPT, SHORT) for _ in range(6)]
    assert all(answer.wait(ANSWER_S) for answer in answers)
    assert {answer.text for answer in answers} == {answers[0].text}


def test_threads_may_ask_at_the_same_time(runner: Runner) -> None:
    answers, lock = [], threading.Lock()

    def ask() -> None:
        answer = runner.generate(PROMPT, SHORT)
        answer.wait(ANSWER_S)
        with lock:
            answers.append(answer)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [answer.reason for answer in answers] == ["length"] * 8


def test_a_prompt_longer_than_the_context_fails_and_the_model_stays(runner: Runner) -> None:
    answer = runner.generate(tuple([5] * 5000), SHORT)
    assert answer.wait(ANSWER_S)
    assert answer.reason == "failed"
    assert answer.error is not None and answer.error.key == "prompt_too_long"
    assert runner.state.phase == "ready"


def test_a_worker_killed_in_an_answer_leaves_the_part_that_was_said(runner: Runner, folder: Path) -> None:
    answer = runner.generate(PROMPT, ENDLESS)
    waiting = [runner.generate(PROMPT, ENDLESS) for _ in range(3)]
    assert answer.wait_for_text(10, ANSWER_S)
    os.kill(worker_pid(runner), signal.SIGKILL)
    assert answer.wait(ANSWER_S)
    assert len(answer.text) > 10
    assert answer.reason == "failed"
    assert answer.error is not None and answer.error.key == "worker_killed"
    assert all(one.wait(ANSWER_S) and one.reason == "failed" for one in waiting)
    with runner.changed:
        assert runner.changed.wait_for(lambda: runner.state.phase == "failed", ANSWER_S)
    assert runner.state.error is not None and runner.state.error.key == "worker_killed"
    with pytest.raises(EngineError):
        runner.generate(PROMPT, SHORT)


def test_a_worker_killed_while_loading_is_said_and_the_next_load_works(folder: Path) -> None:
    runner = Runner()
    runner.load(folder)
    os.kill(worker_pid(runner), signal.SIGKILL)
    state = runner.wait_while_loading(LOAD_S)
    assert state.phase == "failed"
    assert state.error is not None and state.error.key == "worker_killed"
    runner.load(folder)
    assert runner.wait_while_loading(LOAD_S).phase == "ready"
    runner.unload()


def test_loading_another_model_ends_the_first_and_its_answers(runner: Runner, folder: Path) -> None:
    answer = runner.generate(PROMPT, ENDLESS)
    assert answer.wait_for_text(5, ANSWER_S)
    pid = worker_pid(runner)
    runner.load(folder)
    assert answer.wait(ANSWER_S)
    assert answer.reason == "failed" and len(answer.text) > 5
    assert answer.error is not None and answer.error.key == "answer_model_unloaded"
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert runner.wait_while_loading(LOAD_S).phase == "ready"


def test_a_folder_that_cannot_be_loaded_is_a_state_with_a_reason(tmp_path: Path) -> None:
    runner = Runner()
    runner.load(tmp_path / "nothing")
    state = runner.wait_while_loading(LOAD_S)
    assert state.phase == "failed"
    assert state.model == "nothing"
    assert state.error is not None and state.error.key == "no_folder"


def test_nothing_is_generated_before_a_load() -> None:
    with pytest.raises(EngineError) as caught:
        Runner().generate(PROMPT, SHORT)
    assert caught.value.key == "nothing_loaded"


@pytest.mark.parametrize(("exit_code", "key"), [(-9, "worker_killed"), (-11, "worker_died"), (1, "worker_died")])
def test_the_way_a_worker_ended_is_named(exit_code: int, key: str) -> None:
    assert death_reason(exit_code).key == key
