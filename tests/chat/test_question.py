"""Files of a question: how the model reads them, and what of them is sent where they are too long."""

from __future__ import annotations

import pytest

from core.chat.question import cut_to_room, with_files
from core.chat.truncation import ContextError
from core.documents.document import Document
from tests.support.chat_desk import Desk, context

NOTES = Document("notes.txt", 9, "one\ntwo\n")
CODE = Document("a.md", 9, "```\nx\n````")


def test_files_stand_fenced_before_the_words() -> None:
    assert with_files("Why?", []) == "Why?"
    assert with_files("Why?", [NOTES, CODE]) == (
        "File: notes.txt\n```\none\ntwo\n```\n\nFile: a.md\n`````\n```\nx\n````\n`````\n\nWhy?"
    )


def test_a_part_and_a_missing_text_are_said() -> None:
    assert "notes.txt (only the beginning)\n" in with_files("", [Document("notes.txt", 9, "one", is_whole=False)])
    assert with_files("Why?", [Document("x.pdf", 0, "", False)]) == "File: x.pdf (its content is not here)\n\nWhy?"


@pytest.mark.parametrize("room", [40, 100, 300, 999, 5000])
def test_what_is_cut_fits_and_short_files_stay_whole(room: int) -> None:
    long = [Document(f"{name}.log", 9000, f"line {name}\n" * 1000) for name in "abc"]
    files = cut_to_room([long[0], NOTES, *long[1:]], "Why?", room, len)
    names = with_files("Why?", [Document(one.name, 0, "") for one in files])
    assert len(with_files("Why?", files)) <= max(room, len(names))
    assert [one.name for one in files] == ["a.log", "notes.txt", "b.log", "c.log"]
    if room >= 999:
        assert files[1] == NOTES
        assert all(not one.is_whole and one.text.endswith("\n") for one in files if one is not files[1])
        assert min(len(one.text) for one in files if one is not files[1]) > room // 5


def test_files_that_fit_are_sent_as_they_are() -> None:
    assert context().files_that_fit([], "Why?", [NOTES]) == (NOTES,)


def test_cut_files_leave_room_for_the_next_question(desk: Desk) -> None:
    asking = context(context_tokens=1000)
    files = asking.files_that_fit([], "Why?", [Document("a.log", 9000, "line\n" * 2000)])
    message = desk.service.send(desk.chat, "Why?", None, asking, files=files)
    desk.finish(message, "Because.")
    desk.service.send(desk.chat, "And then?", desk.last(), asking)
    assert "File: a.log (only the beginning)" in desk.engine.prompts[-1][0]


def test_a_question_too_long_by_itself_is_refused() -> None:
    asking = context(context_tokens=1000)
    files = asking.files_that_fit([], "w" * 2000, [NOTES])
    with pytest.raises(ContextError):
        asking.prepare([asking.asked("w" * 2000, files)])


def test_the_model_reads_files_again_whatever_is_done_with_their_question(desk: Desk) -> None:
    answer = desk.finish(desk.service.send(desk.chat, "Why?", None, context(), files=[NOTES]), "So.")
    asked = desk.store.read(desk.chat).messages[0]
    assert asked.files == (NOTES,)
    desk.finish(desk.service.regenerate(desk.chat, answer, context()), "Or so.")
    desk.finish(desk.service.edit_and_resend(desk.chat, asked.id, "How?", context()), "Thus.")
    desk.store.edit(desk.store.read(desk.chat).messages[0].id, "How now?")
    desk.send("And?", "Yes.")
    assert [prompt.count("File: notes.txt") for prompt, _ in desk.engine.prompts] == [1, 1, 1, 1]
    branch = desk.store.branch(desk.store.read(desk.chat).messages[-1].id)
    assert desk.store.read(branch).messages[0].files == (NOTES,)


def test_the_drafts_files_go_with_its_words(desk: Desk) -> None:
    desk.store.add_draft(desk.chat, "one", [NOTES])
    desk.store.add_draft(desk.chat, "two", [CODE])
    desk.store.drop_draft(desk.chat, "one")
    assert desk.store.draft_files(desk.chat) == (NOTES, CODE)
    desk.store.drop_draft(desk.chat, "one\n\ntwo")
    assert desk.store.draft_files(desk.chat) == ()
