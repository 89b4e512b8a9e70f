"""Chats in the process: what they say, while an answer grows and after it ended."""

from __future__ import annotations

import threading

from core.chat.conversation import TITLE_CHARS, Conversation, Conversations
from core.engine.answer import Answer
from core.engine.messages import AnswerStats, Failed, Finished, Text
from core.errors import EngineError


class Engine:
    """Hands out answers, and notes which of them were cancelled."""

    def __init__(self) -> None:
        self.cancelled: list[int] = []

    def answer(self, request: int = 1) -> Answer:
        return Answer(request, self.cancelled.append)


def finish(answer: Answer) -> None:
    answer.take(Finished(answer.request, "end", AnswerStats(3, 0, 1, 0.0, 0.1, 0.1, 1)))


def test_a_question_and_its_answer_are_two_messages() -> None:
    chat, answer = Conversation(1, 0.0), Engine().answer()
    chat.ask("Hello?", answer)
    answer.take(Text(1, "Hel", 1))
    answer.take(Text(1, "lo!", 2))
    assert [(message.role, message.text) for message in chat.messages] == [("user", "Hello?"), ("assistant", "Hello!")]


def test_a_chat_is_running_until_its_last_answer_ended() -> None:
    chat, answer = Conversation(1, 0.0), Engine().answer()
    assert chat.running is None
    chat.ask("Hello?", answer)
    assert chat.running is answer and chat.messages[-1].is_running
    finish(answer)
    assert chat.running is None and not chat.messages[-1].is_running


def test_an_answer_that_failed_keeps_what_was_said() -> None:
    chat, answer = Conversation(1, 0.0), Engine().answer()
    chat.ask("Hello?", answer)
    answer.take(Text(1, "Hel", 1))
    answer.take(Failed(1, EngineError("worker_killed")))
    answer.take(Text(1, "lost", 2))
    assert chat.messages[-1].text == "Hel" and chat.running is None


def test_a_title_is_the_beginning_of_the_first_question_on_one_line() -> None:
    chat = Conversation(1, 0.0)
    assert chat.title == ""
    chat.ask("What is\n\n the capital?", Engine().answer())
    assert chat.title == "What is the capital?"
    long = Conversation(2, 0.0)
    long.ask("word " * 100, Engine().answer())
    assert len(long.title) <= TITLE_CHARS and long.title.endswith("…")


def test_chats_are_listed_newest_first_and_found_by_number() -> None:
    chats = Conversations()
    first, second = chats.begin(), chats.begin()
    assert chats.newest_first() == [second, first]
    assert chats.get(first.number) is first and chats.get(99) is None


def test_deleting_a_chat_cancels_the_answer_that_is_being_written() -> None:
    chats, engine = Conversations(), Engine()
    chat = chats.begin()
    chat.ask("Hello?", engine.answer(7))
    chats.delete(chat.number)
    chats.delete(chat.number)
    assert engine.cancelled == [7] and chats.newest_first() == []


def test_deleting_a_chat_at_rest_cancels_nothing() -> None:
    chats, engine = Conversations(), Engine()
    chat, answer = chats.begin(), engine.answer()
    chat.ask("Hello?", answer)
    finish(answer)
    chats.delete(chat.number)
    assert engine.cancelled == []


def test_tabs_that_begin_chats_at_once_get_chats_of_their_own() -> None:
    chats, numbers = Conversations(), []
    threads = [threading.Thread(target=lambda: numbers.append(chats.begin().number)) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(numbers) == list(range(1, 21))
