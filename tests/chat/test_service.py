"""What a chat's buttons do to the history and to the engine, with an engine that only notes what it was asked."""

from __future__ import annotations

import threading

import pytest

from core.chat.database import ChatStoreError
from core.chat.prompt_context import turns_of
from core.chat.template_messages import Turn
from core.chat.truncation import ContextError
from core.common.errors import EngineError
from tests.support.chat_desk import WAIT_S, Desk, context


def test_a_question_and_its_answer_are_in_the_history(desk: Desk) -> None:
    desk.send("hello", " hi")
    assert desk.texts() == ["hello", "hi"]
    assert desk.engine.prompts == [("<system>system</><user>hello</><assistant>", False)]


def test_a_page_that_has_not_seen_the_last_message_sends_nothing(desk: Desk) -> None:
    desk.send("hello", "hi")
    with pytest.raises(ChatStoreError, match="went on"):
        desk.service.send(desk.chat, "again", None, context())
    assert desk.texts() == ["hello", "hi"] and len(desk.engine.prompts) == 1


def test_without_a_model_nothing_is_said(desk: Desk) -> None:
    desk.engine.is_loaded = False
    with pytest.raises(EngineError):
        desk.service.send(desk.chat, "hello", None, context())
    assert desk.texts() == []


def test_what_the_history_refuses_is_not_computed(desk: Desk) -> None:
    desk.send("hello", "hi")
    with pytest.raises(ChatStoreError, match="went on"):
        desk.service.reply(desk.chat, desk.store.read(desk.chat).messages[0].id, context())
    assert desk.engine.cancelled == [1]


def test_a_question_too_long_is_an_error_and_leaves_the_chat_alone(desk: Desk) -> None:
    with pytest.raises(ContextError):
        desk.service.send(desk.chat, "x" * 500, None, context(context_tokens=200))
    assert desk.texts() == []


def test_an_answer_anew_keeps_the_old_one_as_a_version(desk: Desk) -> None:
    first = desk.send("hello", "one")
    second = desk.service.regenerate(desk.chat, first, context())
    desk.finish(second, "two")
    assert desk.texts() == ["hello", "two"]
    assert desk.store.read(desk.chat).messages[-1].versions == (first, second)
    assert desk.engine.prompts[0] == desk.engine.prompts[1]


def test_an_answer_goes_on_after_its_last_word(desk: Desk) -> None:
    answer = desk.send("hello", "one")
    desk.service.continue_answer(desk.chat, answer, context())
    desk.finish(answer, " two")
    assert desk.texts() == ["hello", "one two"]
    assert desk.engine.prompts[-1] == ("<system>system</><user>hello</><assistant>one", True)


def test_an_answer_goes_on_while_the_context_has_room(desk: Desk) -> None:
    """Room for a whole answer was kept free beside what was written of it: a quarter of the context stayed empty."""
    small = context(context_tokens=512, longest=400)
    room = 512 - len("<system>system</><user>hello</><assistant>")
    answer = desk.send("hello", "o" * 340)
    for words in ("o" * (room - 341), "o"):
        desk.service.continue_answer(desk.chat, answer, small)
        desk.finish(answer, words)
    assert desk.texts() == ["hello", "o" * room]
    with pytest.raises(ContextError, match="Shorten it"):
        desk.service.continue_answer(desk.chat, answer, small)


def test_an_answer_that_goes_on_keeps_what_was_said_before_while_there_is_room(desk: Desk) -> None:
    desk.send("first", "said")
    answer = desk.send("hello", "o" * 300)
    desk.service.continue_answer(desk.chat, answer, context(context_tokens=512, longest=400))
    assert "<user>first</>" in desk.engine.prompts[-1][0]


def test_a_reply_starts_with_the_words_that_were_given(desk: Desk) -> None:
    desk.send("hello", " then", start="First, ")
    assert desk.texts() == ["hello", "First, then"]
    assert desk.engine.prompts[0] == ("<system>system</><user>hello</><assistant>First,", True)


def test_another_question_in_the_place_of_one_is_answered_anew(desk: Desk) -> None:
    desk.send("hello", "hi")
    question = desk.store.read(desk.chat).messages[0].id
    desk.finish(desk.service.edit_and_resend(desk.chat, question, "bye", context()), "ciao")
    assert desk.texts() == ["bye", "ciao"]
    desk.store.show(question)
    assert desk.texts() == ["hello", "hi"]


def test_a_question_without_an_answer_can_be_answered(desk: Desk) -> None:
    question = desk.store.append_user(desk.chat, "hello", None)
    desk.finish(desk.service.reply(desk.chat, question, context()), "hi")
    assert desk.texts() == ["hello", "hi"]


def test_a_persons_line_is_written_for_them_and_only_one_tab_gets_it(desk: Desk) -> None:
    desk.send("hello", "hi")
    line = desk.service.impersonate(desk.chat, context())
    assert desk.service.is_busy(desk.chat) and desk.service.take_impersonation(desk.chat) is None
    desk.engine.say(" my line")
    assert line.text == "my line" and desk.engine.prompts[-1][0].endswith("</><user>")
    assert desk.service.take_impersonation(desk.chat) == "my line"
    assert desk.service.take_impersonation(desk.chat) is None and desk.texts() == ["hello", "hi"]


def test_stop_ends_an_answer_and_a_line(desk: Desk) -> None:
    message = desk.service.send(desk.chat, "hello", None, context())
    assert desk.service.writing(desk.chat) == message
    desk.service.stop(desk.chat)
    assert desk.recorder.wait(message, WAIT_S) and not desk.service.is_busy(desk.chat)
    desk.service.impersonate(desk.chat, context())
    desk.service.stop(desk.chat)
    assert not desk.service.is_busy(desk.chat)


def test_a_second_tab_cannot_begin_a_line_or_an_answer_beside_one(desk: Desk) -> None:
    """The second took the first's place in the list of what can be stopped: the first ran to its end."""
    answer = desk.send("hello", "hi")
    desk.service.impersonate(desk.chat, context())
    begin = (
        lambda: desk.service.impersonate(desk.chat, context()),
        lambda: desk.service.send(desk.chat, "more", answer, context()),
        lambda: desk.service.regenerate(desk.chat, answer, context()),
        lambda: desk.service.continue_answer(desk.chat, answer, context()),
        lambda: desk.service.edit_and_resend(desk.chat, answer - 1, "other", context()),
    )
    for one in begin:
        with pytest.raises(ChatStoreError, match="still being written"):
            one()
    assert len(desk.engine.answers) == 2
    desk.service.stop(desk.chat)
    assert not any(one.is_running for one in desk.engine.answers) and desk.texts() == ["hello", "hi"]
    assert desk.service.take_impersonation(desk.chat) == ""
    desk.finish(desk.service.regenerate(desk.chat, answer, context()), "hi again")


def test_no_line_is_begun_while_an_answer_is_written(desk: Desk) -> None:
    message = desk.service.send(desk.chat, "hello", None, context())
    with pytest.raises(ChatStoreError, match="still being written"):
        desk.service.impersonate(desk.chat, context())
    desk.finish(message, "hi")
    assert desk.service.impersonate(desk.chat, context()).answer.is_running


def test_of_many_tabs_that_begin_at_one_moment_one_does(desk: Desk) -> None:
    desk.send("hello", "hi")
    tabs, at_once = 8, threading.Barrier(8)
    refused: list[str] = []

    def begin() -> None:
        at_once.wait(WAIT_S)
        try:
            desk.service.impersonate(desk.chat, context())
        except ChatStoreError as error:
            refused.append(error.key)

    threads = [threading.Thread(target=begin) for _ in range(tabs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
    assert refused == ["chat_is_writing"] * (tabs - 1) and len(desk.engine.answers) == 2


def test_a_chat_that_was_refused_can_be_asked_again(desk: Desk) -> None:
    desk.engine.is_loaded = False
    with pytest.raises(EngineError):
        desk.service.send(desk.chat, "hello", None, context())
    desk.engine.is_loaded = True
    desk.send("hello", "hi")
    assert desk.texts() == ["hello", "hi"]


def test_what_was_written_is_not_remembered_for_ever(desk: Desk) -> None:
    for _ in range(20):
        desk.chat = desk.store.create("instruct")
        desk.send("hello", "hi")
    assert len(desk.service._writing) == 1


def test_a_notebook_goes_on_and_each_step_can_be_taken_back(desk: Desk) -> None:
    desk.finish(desk.service.continue_notebook(desk.chat, "Once ", context("notebook")), "upon a time")
    assert desk.texts() == ["Once upon a time"] and desk.engine.prompts == [("Once ", True)]
    message = desk.store.read(desk.chat).messages[0]
    desk.store.show(message.versions[0])
    assert desk.texts() == ["Once "]


def test_the_memory_begins_with_the_first_message_that_fits() -> None:
    said = [Turn(role="assistant" if place % 2 else "user", content=f"{place} " + "x" * 50) for place in range(21)]
    prompt = context(context_tokens=400).prepare(said)
    assert prompt.begins_at > 0 and f"<user>{prompt.begins_at} x" in prompt.fitted.prompt.replace("assistant", "user")
    assert f">{prompt.begins_at - 1} x" not in prompt.fitted.prompt
    assert "system" in prompt.fitted.prompt and "roomy" not in prompt.fitted.prompt
    short = context().prepare(said[-3:])
    assert short.begins_at == 0 and "roomy" in short.fitted.prompt


def test_messages_without_a_word_are_no_turns_but_keep_their_place() -> None:
    said = [Turn(role="user", content=""), *([Turn(role="user", content="x" * 100)] * 3)]
    prompt = context(context_tokens=240, longest=1).prepare(said)
    assert prompt.begins_at in (2, 3) and turns_of([]) == []


def test_what_a_question_would_find_is_not_too_long_for_the_last_answer() -> None:
    """A chat whose next question was answered was said to be too long, as its last answer was counted as one."""
    said = [Turn(role="user", content="one"), Turn(role="assistant", content="x" * 150)]
    asking = context(context_tokens=240, longest=200)
    with pytest.raises(ContextError):
        asking.prepare(said)
    waiting = asking.prepare(said, must_keep_last=False)
    assert waiting.begins_at == 2 and waiting.fitted.prompt_tokens <= 120
    assert asking.prepare([*said, Turn(role="user", content="two")]).begins_at == 2
    assert asking.prepare(said[:1], must_keep_last=False).begins_at == 0
    with pytest.raises(ContextError):
        context(context_tokens=40).prepare(said, must_keep_last=False)
