"""This machine's engine and another server's as one: which of them answers, and what is kept of the choice."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from core.chat.model_prompt import read_model_prompt
from core.chat.modes import PromptStyle
from core.chat.template_messages import Turn
from core.chat.truncation import PromptParts
from core.chat.turn_rendering import Names
from core.engine.process import WorkerProcess
from core.engine.protocol import Conversation
from core.engine.runner import Runner
from core.engine.sampling_params import Sampling
from core.remote import router
from core.remote.connection import ProbeInterval
from core.remote.engine import RemoteEngine
from core.remote.router import EngineRouter
from core.remote.selection import RemoteSelection, read_selection, selection_file, selection_path, write_selection
from tests.support.checkpoints import make_checkpoint
from tests.support.openai_standin import OpenAiStandin
from tests.support.processes import wait_until

WAIT_S = 60.0


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LLAMADECK_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("LLAMADECK_MODELS", str(tmp_path / "models"))
    make_checkpoint(tmp_path / "models" / "tiny")
    return tmp_path / "models" / "tiny"


@pytest.fixture
def engines() -> Iterator[EngineRouter]:
    made = EngineRouter(Runner("tests.support.fake_worker"), RemoteEngine(interval=ProbeInterval(0.1, 0.05, 0.1)))
    yield made
    made.close()


@pytest.fixture
def server() -> Iterator[OpenAiStandin]:
    with OpenAiStandin() as standin:
        yield standin


def test_the_one_that_was_chosen_last_answers_and_the_other_is_let_go(
    engines: EngineRouter, server: OpenAiStandin, folder: Path
) -> None:
    engines.load(folder)
    assert engines.wait_while_loading(WAIT_S).model == "tiny"
    pid = engines.local.worker_pid
    running = engines.generate("forever", Sampling())
    engines.connect(RemoteSelection(server.url, "small"))
    assert engines.wait_while_loading(WAIT_S).model == "small" and engines.local.worker_pid is None
    assert running.wait(WAIT_S) and running.error is not None and running.error.key == "answer_model_unloaded"
    assert pid is not None
    with pytest.raises(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)
    answer = engines.generate("Once", Sampling())
    assert answer.wait(WAIT_S) and answer.text == "Hello from there"
    engines.load(folder)
    assert engines.wait_while_loading(WAIT_S).server is None and engines.selection is None and read_selection() is None


def test_a_choice_outlives_the_process(engines: EngineRouter, server: OpenAiStandin) -> None:
    engines.connect(RemoteSelection(server.url, "small", 2048))
    engines.close()
    again = EngineRouter(Runner("tests.support.fake_worker"))
    again.follow_selection()
    wait_until(lambda: again.state.phase == "ready")
    assert again.state.facts is not None and again.state.facts.context_tokens == 2048
    again.unload()
    assert again.state.phase == "empty" and read_selection() is None
    again.close()


def test_what_another_process_chooses_is_taken_up_and_given_back(engines: EngineRouter, server: OpenAiStandin) -> None:
    engines.follow_selection()
    write_selection(RemoteSelection(server.url, "small"))
    wait_until(lambda: engines.state.phase == "ready")
    assert engines.state.server == f"127.0.0.1:{server.port}"
    write_selection(None)
    wait_until(lambda: engines.state.phase == "empty")


@pytest.mark.parametrize("text", ["", "[]", "{", '{"address": 5, "model": "x"}', '{"x": 1}', "null", '"text"',
                                  '{"address": "http://h", "model": "m", "context_tokens": "many"}'])  # fmt: skip
def test_a_choice_that_cannot_be_read_is_none(text: str) -> None:
    selection_path().parent.mkdir(parents=True)
    selection_path().write_text(text, "utf-8")
    assert read_selection() is None


def test_a_chat_over_a_server_is_put_to_it_as_turns_and_a_notebook_as_text(
    engines: EngineRouter, server: OpenAiStandin
) -> None:
    assert read_model_prompt(engines.state, engines.server_counter) is None
    engines.connect(RemoteSelection(server.url, "small"))
    engines.wait_while_loading(WAIT_S)
    reader = read_model_prompt(engines.state, engines.server_counter)
    assert reader is not None and reader.folder is None and reader.counter.is_exact
    names = Names("Kim", "Ada")
    parts = PromptParts((Turn(role="user", content="Hi"),), system="Be kind.", start="Well")
    prompt = PromptStyle("chat-instruct", reader.template, names).render(parts)
    assert isinstance(prompt, Conversation) and prompt.is_open
    assert [role for role, _ in prompt.turns] == ["system", "user", "assistant"]
    assert prompt.turns[0][1].endswith("Be kind.") and prompt.turns[2][1] == "Well"
    assert reader.count_prompt(prompt) == server.behaviour.count
    line = PromptStyle("instruct", reader.template, names).render(PromptParts(parts.history, voice="user"))
    assert isinstance(line, Conversation) and line.is_open and line.turns[-1][0] == "user"
    plain = PromptStyle("chat", reader.template, names).render(parts)
    assert not isinstance(plain, Conversation) and plain.endswith("Ada: Well")


def test_two_chats_that_read_alike_are_counted_apart(engines: EngineRouter, server: OpenAiStandin) -> None:
    engines.connect(RemoteSelection(server.url, "small"))
    engines.wait_while_loading(WAIT_S)
    one = Conversation([("user", "a\n\nassistant: b")], is_open=True)
    other = Conversation([("user", "a"), ("assistant", "b")], is_open=True)
    assert one == other
    engines.remote.count_prompt(one)
    engines.remote.count_prompt(other)
    assert len(server.asked("/tokenize")) == 2


def test_a_choice_that_cannot_be_taken_up_does_not_end_the_thread_that_follows(
    engines: EngineRouter, server: OpenAiStandin, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = threading.Event()

    def fail(choice: RemoteSelection) -> None:
        tried.set()
        raise RecursionError

    engines.follow_selection()
    with monkeypatch.context() as patch:
        patch.setattr(engines.remote, "connect", fail)
        write_selection(RemoteSelection(server.url, "small"))
        assert tried.wait(WAIT_S)
    write_selection(RemoteSelection(server.url, "small", 1024))
    wait_until(lambda: engines.state.phase == "ready")


def test_the_way_out_is_open_while_another_tab_ends_an_engine_that_hangs(
    engines: EngineRouter, server: OpenAiStandin, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engines.load(folder)
    assert engines.wait_while_loading(WAIT_S).phase == "ready"
    ends, may_end = threading.Event(), threading.Event()
    end = WorkerProcess.end

    def slow(worker: WorkerProcess) -> None:
        ends.set()
        may_end.wait(WAIT_S)
        end(worker)

    monkeypatch.setattr(WorkerProcess, "end", slow)
    unloading = threading.Thread(target=engines.unload)
    unloading.start()
    assert ends.wait(WAIT_S)
    # Nothing of this waits for the process.
    assert engines.state.phase == "empty" and engines.running_answers == [] and engines.silent_s == 0.0
    engines.follow_selection()
    write_selection(RemoteSelection(server.url, "small", 1024))
    wait_until(lambda: engines.selection is not None)
    connecting = threading.Thread(target=engines.connect, args=(RemoteSelection(server.url, "small"),))
    connecting.start()
    wait_until(lambda: engines.state.phase == "ready" and engines.selection == RemoteSelection(server.url, "small"))
    may_end.set()
    for thread in (unloading, connecting):
        thread.join(WAIT_S)
        assert not thread.is_alive()


def test_a_tab_that_waits_for_the_file_holds_up_no_other_and_the_last_word_is_kept(
    engines: EngineRouter, server: OpenAiStandin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The router's lock was held while another process used data/engine.json: nobody could unload, load or leave."""
    monkeypatch.setattr(router, "POLL_INTERVAL_S", 0.01)
    first, last = RemoteSelection(server.url, "small"), RemoteSelection(server.url, "small", 1024)
    engines.connect(first)
    engines.follow_selection()
    with selection_file().change():
        unloading = threading.Thread(target=engines.unload)
        unloading.start()
        wait_until(lambda: engines.state.phase == "empty")
        # What the file still says is older, and is not taken up.
        time.sleep(0.1)
        assert engines.selection is None
        connecting = threading.Thread(target=engines.connect, args=(last,))
        connecting.start()
        wait_until(lambda: engines.state.phase == "ready")
        assert unloading.is_alive() and connecting.is_alive() and engines.selection == last
    for thread in (unloading, connecting):
        thread.join(WAIT_S)
        assert not thread.is_alive()
    assert read_selection() == engines.selection == last


def test_a_model_on_another_server_has_no_silence_of_this_machines_engine(
    engines: EngineRouter, server: OpenAiStandin, monkeypatch: pytest.MonkeyPatch
) -> None:
    engines.connect(RemoteSelection(server.url, "small"))
    monkeypatch.setattr(Runner, "silent_s", 9.0)
    assert engines.silent_s == 0.0
    engines.unload()
    assert engines.silent_s == 9.0


def test_a_chat_that_was_meant_for_a_server_can_be_read_by_this_machines_engine(
    engines: EngineRouter, folder: Path
) -> None:
    """A model was loaded here meanwhile: the worker could not read that kind of text, and heard nothing any more."""
    engines.load(folder)
    assert engines.wait_while_loading(WAIT_S).phase == "ready"
    answer = engines.generate(Conversation([("user", "hello")], is_open=False), Sampling())
    assert answer.wait(WAIT_S) and answer.reason == "end" and "hello" in answer.text
