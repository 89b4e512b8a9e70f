"""Requests that name another model than the loaded one: refused, answered all the same, or loaded first."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest

from core.api import completions, generation
from core.checkpoint.weight_files import ADAPTER_CONFIG
from core.engine.runner import Runner
from core.library.last_model import LastModel, note_last_model
from core.memory.adapter_room import AdapterRoom
from core.standby.loader import ModelLoader
from core.standby.settings import set_other_names
from tests.support.adapters import write_adapter
from tests.support.api_server import MODEL, api_server, error, loaded_runner
from tests.support.chat_templates import OWN_LLAMA2
from tests.support.checkpoints import Recipe, make_checkpoint
from tests.support.processes import wait_until

OTHER, BROKEN = "other-chat", "broken"
WAIT_S = 60.0


@pytest.fixture(scope="module")
def models(api_home: Path) -> Path:
    make_checkpoint(api_home / "models" / OTHER, Recipe(context_tokens=512))
    (api_home / "models" / OTHER / "chat_template.jinja").write_text(OWN_LLAMA2, "utf-8")
    (api_home / "models" / BROKEN).mkdir()
    return api_home / "models"


@pytest.fixture
def runner(models: Path) -> Iterator[Runner]:
    with loaded_runner(models) as runner:
        yield runner


@pytest.fixture
def url(runner: Runner, api_home: Path) -> Iterator[str]:
    with api_server(runner, api_home, loader=ModelLoader(runner)) as url:
        yield url
    set_other_names("refuse")


def ask(url: str, model: str | None, text: str = "hello", **more: Any) -> httpx2.Response:
    body = {"messages": [{"role": "user", "content": text}], **({"model": model} if model else {}), **more}
    return httpx2.post(f"{url}/v1/chat/completions", json=body, timeout=WAIT_S)


def listed(url: str) -> list[str]:
    return [one["id"] for one in httpx2.get(f"{url}/v1/models").json()["data"]]


def test_another_name_is_refused_as_long_as_nobody_chose_otherwise(url: str) -> None:
    refused = ask(url, OTHER)
    assert refused.status_code == 404 and error(refused)["code"] == "model_not_found"
    assert OTHER not in listed(url)


def test_any_name_may_be_the_loaded_models(url: str) -> None:
    set_other_names("any")
    for name in ("gpt-4o", "claude-sonnet-4-5", "x" * 300, OTHER):
        done = ask(url, name)
        assert done.json()["choices"][0]["message"]["content"] == "You said: hello "
        # A client holds the answer's name against the one that it asked for.
        assert done.json()["model"] == name
    assert httpx2.post(f"{url}/v1/completions", json={"model": "gpt-4o", "prompt": "x"}).status_code == 200
    assert "Speak only as Ada." in ask(url, "Ada").text, "a character keeps its name"


def test_a_model_of_the_library_is_loaded_and_then_answers(url: str, runner: Runner) -> None:
    set_other_names("load")
    assert OTHER in listed(url) and BROKEN not in listed(url)
    done = ask(url, OTHER)
    assert done.json()["choices"][0]["message"]["content"] == "You said: hello " and done.json()["model"] == OTHER
    assert runner.state.model == OTHER
    assert ask(url, None).status_code == 200 and runner.state.model == OTHER
    counted = httpx2.post(f"{url}/v1/tokenize", json={"prompt": "x", "model": MODEL}, timeout=WAIT_S)
    assert counted.json()["max_model_len"] == 1024 and runner.state.model == MODEL


def test_what_is_no_model_takes_nobodys_place(url: str, runner: Runner) -> None:
    set_other_names("load")
    assert ask(url, "gpt-4o").status_code == 404
    assert ask(url, f"../models/{OTHER}").status_code == 404
    assert ask(url, BROKEN).status_code == 500
    assert runner.state.phase == "ready" and runner.state.model == MODEL


def test_whoever_wants_the_model_that_comes_waits_and_others_are_told_when_to_ask(
    url: str, runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAMADECK_FAKE_LOAD_S", "1.0")
    set_other_names("load")
    with ThreadPoolExecutor(4) as pool:
        first = [pool.submit(ask, url, OTHER) for _ in range(3)]
        while runner.state.phase != "loading":
            assert not any(one.done() for one in first)
        refused = ask(url, MODEL)
        assert refused.status_code == 503 and int(refused.headers["retry-after"]) > 0
        assert error(refused)["code"] == "model_loading" and OTHER in error(refused)["message"]
        assert ask(url, None).json()["model"] == OTHER, "whoever names none takes the one that comes"
        assert [one.result().status_code for one in first] == [200] * 3


def test_what_is_being_answered_comes_to_its_end_first(url: str, runner: Runner) -> None:
    set_other_names("load")
    with ThreadPoolExecutor(2) as pool:
        running = pool.submit(ask, url, MODEL, "words=40 wait=0.02")
        while not runner.running_answers:
            assert not running.done()
        other = pool.submit(ask, url, OTHER)
        assert len(running.result().json()["choices"][0]["message"]["content"].split()) == 40
        assert other.result().status_code == 200


def test_an_answer_without_end_keeps_its_model(url: str, runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.api.just_in_time.TURN_S", 0.3)
    set_other_names("load")
    with httpx2.Client(timeout=WAIT_S) as client:
        body = {"messages": [{"role": "user", "content": "forever"}], "stream": True}
        with client.stream("POST", f"{url}/v1/chat/completions", json=body) as stream:
            # Kept: the connection is closed as soon as nobody has it.
            lines = stream.iter_lines()
            assert next(lines).startswith("data: ")
            refused = ask(url, OTHER)
            assert refused.status_code == 503 and error(refused)["code"] == "model_busy"
            assert int(refused.headers["retry-after"]) > 0 and runner.state.model == MODEL


def test_a_load_that_fails_is_the_error_of_whoever_asked(url: str, models: Path, runner: Runner) -> None:
    make_checkpoint(models / "refused", Recipe(context_tokens=512))
    set_other_names("load")
    refused = ask(url, "refused")
    assert refused.status_code == 503 and error(refused)["code"] == "model_not_loaded"
    assert ask(url, MODEL).status_code == 200, "the next one loads what it names"


def ready(url: str) -> tuple[int, str]:
    response = httpx2.get(f"{url}/ready")
    return response.status_code, response.json()["status"]


def test_a_model_that_sleeps_wakes_for_a_request_as_it_was_loaded(url: str, runner: Runner, models: Path) -> None:
    runner.load(models / MODEL, context_tokens=960, num_slots=2)
    assert runner.wait_while_loading(WAIT_S).phase == "ready"
    for name in (None, MODEL, "Ada"):
        wait_until(runner.sleep)  # A request is left a moment after its answer has come.
        assert {MODEL, "Ada"} <= set(listed(url)), "a client chooses among what can come"
        assert MODEL in [one["name"] for one in httpx2.get(f"{url}/api/tags").json()["models"]]
        assert (runner.state.phase, ready(url)) == ("empty", (200, "asleep"))
        assert ask(url, name).status_code == 200
        facts = runner.state.facts
        assert facts is not None and (facts.context_tokens, facts.num_slots) == (960, 2)


def test_a_name_that_means_nothing_wakes_nothing(url: str, runner: Runner) -> None:
    wait_until(runner.sleep)
    refused = ask(url, "gpt-4o")
    assert refused.status_code == 404 and MODEL in error(refused)["message"]
    assert runner.state.asleep is not None
    set_other_names("any")
    assert ask(url, "gpt-4o").status_code == 200


def test_what_a_person_unloaded_stays_unloaded(url: str, runner: Runner) -> None:
    runner.unload()
    assert not runner.sleep() and ask(url, MODEL).status_code == 503 and ready(url) == (503, "empty")


def test_a_model_that_answers_does_not_sleep(url: str, runner: Runner) -> None:
    with httpx2.Client(timeout=WAIT_S) as client:
        body = {"messages": [{"role": "user", "content": "forever"}], "stream": True}
        with client.stream("POST", f"{url}/v1/chat/completions", json=body) as stream:
            lines = stream.iter_lines()
            assert next(lines).startswith("data: ")
            assert not runner.sleep() and runner.state.phase == "ready"


def test_a_model_does_not_sleep_while_a_request_for_it_is_read(
    url: str, runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that came in the very moment of the unload was told that no model is loaded."""
    slept: list[bool] = []

    def begin(*asked: Any) -> Any:
        slept.append(runner.sleep())
        return generation.begin(*asked)

    monkeypatch.setattr(completions, "begin", begin)
    assert ask(url, MODEL).status_code == 200 and slept == [False]
    # Afterwards it may. The request is left a moment after its answer has come.
    wait_until(runner.sleep)


def test_a_load_that_a_person_began_is_let_to_its_end(
    url: str, runner: Runner, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request that named another model once took the place of what was being loaded."""
    monkeypatch.setenv("LLAMADECK_FAKE_LOAD_S", "1.0")
    set_other_names("load")
    runner.load(models / MODEL, num_slots=2)
    refused = ask(url, OTHER)
    assert refused.status_code == 503 and error(refused)["code"] == "model_loading" and MODEL in refused.text
    state = runner.wait_while_loading(WAIT_S)
    assert state.model == MODEL and state.facts is not None and state.facts.num_slots == 2
    assert ask(url, OTHER).json()["model"] == OTHER


def test_a_model_that_could_not_wake_is_tried_again(url: str, runner: Runner, models: Path) -> None:
    """Where another program had the card's memory when a request came, only a person could bring the model back."""
    wait_until(runner.sleep)
    config = models / MODEL / "config.json"
    config.rename(models / "kept.json")
    failed = ask(url, None)
    assert failed.status_code >= 500 and ready(url) == (503, "failed") and runner.state.asleep is not None
    (models / "kept.json").rename(config)
    assert ask(url, None).status_code == 200 and ready(url) == (200, "ready")
    assert runner.state.asleep is None


def test_each_model_is_listed_once_whatever_became_of_it(url: str, runner: Runner, models: Path) -> None:
    """One that slept stood there twice, and one whose load had failed not at all."""
    set_other_names("load")
    write_adapter(models.parent / "adapters" / "pirate", models / MODEL)
    runner.load(models / MODEL, adapters=AdapterRoom(1, 8))
    assert runner.wait_while_loading(WAIT_S).phase == "ready"
    awake = listed(url)
    assert f"{MODEL}:pirate" in awake and len(awake) == len(set(awake))
    wait_until(runner.sleep)
    assert listed(url) == awake
    (models / OTHER / "config.json").rename(models / "kept.json")
    runner.load(models / OTHER)
    assert runner.wait_while_loading(WAIT_S).phase == "failed"
    (models / "kept.json").rename(models / OTHER / "config.json")
    assert {MODEL, OTHER} <= set(listed(url))


def test_an_adapter_that_cannot_answer_takes_no_models_place(url: str, runner: Runner, models: Path) -> None:
    set_other_names("load")
    write_adapter(models.parent / "adapters" / "fits", models / OTHER)
    make_checkpoint(models / "wide", Recipe(hidden=128, context_tokens=512))
    write_adapter(models.parent / "adapters" / "wide", models / "wide")
    missing, wrong = ask(url, f"{OTHER}:missing"), ask(url, f"{OTHER}:wide")
    assert (
        missing.status_code == 404 and "fits" in error(missing)["message"] and "wide" not in error(missing)["message"]
    )
    assert wrong.status_code == 400 and "128 x 128" in error(wrong)["message"]
    unnamed = ask(url, f"{OTHER}:")
    assert unnamed.status_code == 404 and f"missing after “{OTHER}:”" in error(unnamed)["message"]
    broken = write_adapter(models.parent / "adapters" / "broken", models / OTHER)
    (broken / ADAPTER_CONFIG).write_text('{"r": 4,', "utf-8")
    unread = ask(url, f"{OTHER}:broken")
    assert (unread.status_code, error(unread)["code"]) == (400, "adapter") and "broken" in error(unread)["message"]
    assert runner.state.phase == "ready" and runner.state.model == MODEL
    # Chosen for the last load, and less than it needs.
    note_last_model(LastModel(OTHER, 512, 1, AdapterRoom(1, 2)))
    over = ask(url, f"{OTHER}:fits")
    assert over.status_code == 400 and f"{OTHER} is loaded here with room up to 2" in error(over)["message"]
    assert runner.state.phase == "ready" and runner.state.model == MODEL
    # Loaded last when there was no adapter yet: the one that is named gets room.
    note_last_model(LastModel(OTHER, 512, 1))
    assert ask(url, f"{OTHER}:fits", "settings").status_code == 200
    assert f"{OTHER}:fits" in listed(url) and f"{OTHER}:wide" not in listed(url)


def test_ollamas_tag_names_no_other_model(url: str, runner: Runner) -> None:
    set_other_names("load")
    assert ask(url, f"{OTHER}:latest").status_code == 200 and runner.state.model == OTHER
    wait_until(runner.sleep)
    assert ask(url, f"{OTHER}:latest").status_code == 200 and runner.state.model == OTHER
    set_other_names("refuse")
    assert ask(url, f"{MODEL}:latest").status_code == 404


def test_a_sleeping_models_folder_that_is_gone_is_told(url: str, runner: Runner, models: Path) -> None:
    """Each request once began a load that failed, and was told of a fault of the server."""
    set_other_names("load")
    make_checkpoint(models / "renamed", Recipe(context_tokens=512))
    runner.load(models / "renamed")
    assert runner.wait_while_loading(WAIT_S).phase == "ready"
    wait_until(runner.sleep)
    (models / "renamed").rename(models / "new-name")
    for name in (None, "renamed"):
        refused = ask(url, name)
        assert refused.status_code == 404 and str(models / "renamed") in error(refused)["message"]
    assert "renamed" not in listed(url) and runner.state.phase == "empty"
    assert ask(url, MODEL).status_code == 200


def test_what_is_told_of_a_model_that_is_none_is_the_same_asleep(url: str, runner: Runner) -> None:
    wait_until(runner.sleep)
    assert httpx2.get(f"{url}/v1/models/gpt-4o", timeout=WAIT_S).status_code == 404
    shown = httpx2.post(f"{url}/api/show", json={"model": "gpt-4o"}, timeout=WAIT_S)
    assert shown.status_code == 404 and MODEL in shown.json()["error"]
    set_other_names("load")
    refused = ask(url, "gpt-4o")
    assert refused.status_code == 404 and "library" in error(refused)["message"] and runner.state.asleep is not None


def test_a_client_of_ollamas_that_is_done_wakes_nothing_and_takes_nobodys_model(url: str, runner: Runner) -> None:
    """`ollama stop` sends an empty question that is to keep the model for no time; it once loaded it."""
    for path, more in (("/api/generate", {"prompt": ""}), ("/api/chat", {"messages": []})):
        body = {"model": MODEL, "keep_alive": 0, **more}
        stopped = httpx2.post(url + path, json=body, timeout=WAIT_S).json()
        assert stopped["done_reason"] == "unload" and runner.state.phase == "ready"
        wait_until(runner.sleep)
        assert httpx2.post(url + path, json=body, timeout=WAIT_S).json()["done"] and runner.state.asleep is not None
        woken = httpx2.post(url + path, json=body | {"keep_alive": "5m"}, timeout=WAIT_S).json()
        assert woken["done_reason"] == "load" and runner.state.phase == "ready"


def test_the_library_is_read_a_few_times_for_a_list_whatever_is_in_it(
    url: str, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All headers were once read again for each model that Ollama's clients were told of."""
    set_other_names("load")
    for name in ("third", "fourth"):
        make_checkpoint(models / name, Recipe(context_tokens=512))
    scans: list[ModelLoader] = []
    scan = ModelLoader.loadable
    monkeypatch.setattr(ModelLoader, "loadable", lambda self: scans.append(self) or scan(self))
    told = httpx2.get(f"{url}/api/tags").json()["models"]
    assert {"third", "fourth", OTHER} <= {one["name"] for one in told} and len(scans) == 2
    assert all(one["size"] for one in told if one["name"] in ("third", "fourth"))
