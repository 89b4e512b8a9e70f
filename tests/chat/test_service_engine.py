"""A conversation with the real starter model: asked, stopped, gone on, our line written, all of it on the disk."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from core.chat.modes import PromptStyle
from core.chat.recorder import Recorder
from core.chat.records import Message, Mode
from core.chat.store import ChatStore
from core.chat.template import read_template
from core.chat.template_messages import Turn
from core.chat.tokens import read_counter
from core.chat.truncation import FittedPrompt, PromptParts, fit_to_context
from core.chat.turn_rendering import Names
from core.engine.runner import Runner
from core.engine.sampling_params import Sampling

CONTEXT_TOKENS = 512
WAIT_S = 120.0


class Talk:
    """One chat with a loaded model, as a page leads it."""

    def __init__(self, folder: Path, data: Path, runner: Runner) -> None:
        self.folder, self.runner = folder, runner
        self.store = ChatStore(data / "chats.sqlite3")
        self.recorder = Recorder(self.store)
        self.chat = self.store.create("instruct")

    def messages(self) -> tuple[Message, ...]:
        return self.store.read(self.chat).messages

    def prepare(self, mode: Mode, parts: PromptParts, max_new_tokens: int) -> tuple[PromptStyle, FittedPrompt]:
        counter = read_counter(self.folder)
        style = PromptStyle(mode, read_template(self.folder), Names("You", "Assistant"), counter.opening)
        return style, fit_to_context(parts, style.render, counter.count, CONTEXT_TOKENS, max_new_tokens)

    def answer(self, message: int, mode: Mode, parts: PromptParts, max_new_tokens: int = 24) -> FittedPrompt:
        style, fitted = self.prepare(mode, parts, max_new_tokens)
        sampling = Sampling(temperature=0, max_new_tokens=max_new_tokens, stop=style.stop_strings(parts.voice))
        answer = self.runner.generate(fitted.prompt, sampling)
        self.recorder.follow(message, answer, "starter", lambda text, _: style.message_parts(text, parts))
        assert self.recorder.wait(message, WAIT_S)
        return fitted


@pytest.fixture(scope="module")
def runner(starter_folder: Path) -> Iterator[Runner]:
    runner = Runner()
    runner.load(starter_folder, CONTEXT_TOKENS)
    assert runner.wait_while_loading(WAIT_S).phase == "ready"
    yield runner
    runner.unload()


@pytest.fixture
def talk(starter_folder: Path, runner: Runner, tmp_path: Path) -> Iterator[Talk]:
    talk = Talk(starter_folder, tmp_path, runner)
    yield talk
    talk.recorder.close()
    talk.store.close()


def turns(messages: tuple[Message, ...]) -> tuple[Turn, ...]:
    return tuple(Turn(role="user" if one.role == "user" else "assistant", content=one.text) for one in messages)


@pytest.mark.parametrize("mode", ["instruct", "chat", "chat-instruct", "notebook"])
def test_the_counter_and_the_engine_agree_to_the_token(talk: Talk, mode: Mode) -> None:
    question = talk.store.append_user(talk.chat, "What is the capital of France? 法国的首都？ 😀", None)
    message = talk.store.begin_answer(talk.chat, question)
    fitted = talk.answer(message, mode, PromptParts(turns(talk.messages()[:1]), "You are brief."), 4)
    last = talk.messages()[-1]
    assert last.stats["prompt_tokens"] == fitted.prompt_tokens and last.stats["model"] == "starter"


def test_an_answer_goes_on_as_if_it_had_never_ended(talk: Talk) -> None:
    """Greedy in two halves says what it says in one."""
    question = talk.store.append_user(talk.chat, "List the seven days of the week.", None)
    message = talk.store.begin_answer(talk.chat, question)
    asked = turns(talk.messages()[:1])
    talk.answer(message, "instruct", PromptParts(asked), 30)
    whole = talk.messages()[-1].text
    half = talk.store.begin_version(message)
    talk.answer(half, "instruct", PromptParts(asked), 12)
    beginning = talk.messages()[-1].text
    assert whole.startswith(beginning) and talk.messages()[-1].stats["reason"] == "length"
    talk.store.reopen_answer(half)
    talk.answer(half, "instruct", PromptParts(asked, start=beginning), 18)
    assert talk.messages()[-1].text == whole
    assert talk.messages()[-1].versions == (message, half)


def test_a_reply_begins_with_the_given_words(talk: Talk) -> None:
    question = talk.store.append_user(talk.chat, "What is the capital of France?", None)
    message = talk.store.begin_answer(talk.chat, question, "In a word:")
    talk.answer(message, "instruct", PromptParts(turns(talk.messages()[:1]), start="In a word:"))
    assert talk.messages()[-1].text.startswith("In a word: ") and len(talk.messages()[-1].text) > 12


def test_the_model_writes_our_line_and_stops(talk: Talk) -> None:
    question = talk.store.append_user(talk.chat, "What is the capital of France?", None)
    answer = talk.store.begin_answer(talk.chat, question)
    talk.answer(answer, "instruct", PromptParts(turns(talk.messages()[:1])), 40)
    style, fitted = talk.prepare("instruct", PromptParts(turns(talk.messages()), voice="user", start="And what"), 40)
    line = talk.runner.generate(
        fitted.prompt, Sampling(temperature=0, max_new_tokens=40, stop=style.stop_strings("user"))
    )
    assert line.wait(WAIT_S) and line.reason in ("end", "stop", "length")
    assert line.text.strip() and "<|im" not in line.text
