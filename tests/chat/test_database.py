"""The history's file: what is locked, read-only, newer, damaged or full gets a sentence and stays as it was."""

from __future__ import annotations

import os
import resource
import shutil
import sqlite3
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from core.chat.database import ChatStoreError, Database
from core.chat.records import Thought
from core.chat.schema import APPLICATION_ID, MIGRATIONS
from core.chat.store import ChatStore
from core.common.paths import ROOT

FIRST_FORM = ROOT / "tests" / "support" / "chats_v1.sql"


def filled(path: Path) -> int:
    store = ChatStore(path)
    chat = store.create("instruct")
    question = store.append_user(chat, "Is it kept?", None)
    store.begin_answer(chat, question)
    store.close()
    return chat


def opening_fails(path: Path) -> str:
    with pytest.raises(ChatStoreError) as caught:
        ChatStore(path, busy_s=0.05)
    assert str(path) in str(caught.value) and str(path) in caught.value.sentence("zh")
    return caught.value.key


def test_the_file_is_nobody_elses_and_survives_what_kills(tmp_path: Path) -> None:
    path = tmp_path / "chats.sqlite3"
    database = Database(path)
    with database.change() as db:
        settings = [db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous")]
    assert settings == ["wal", 2]
    for file in tmp_path.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
    database.close()


def test_a_change_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    database = Database(tmp_path / "chats.sqlite3")
    with pytest.raises(ZeroDivisionError), database.change() as db:
        db.execute("INSERT INTO chats (created_s, changed_s, mode, character) VALUES (1, 1, 'chat', '')")
        assert 1 / 0
    with database.read() as db:
        assert db.execute("SELECT count(*) FROM chats").fetchone() == (0,)
    with database.change() as db:
        db.execute("INSERT INTO chats (created_s, changed_s, mode, character) VALUES (1, 1, 'chat', '')")
    database.close()


def test_readers_see_whole_changes_and_wait_for_none(tmp_path: Path) -> None:
    database = Database(tmp_path / "chats.sqlite3")
    with database.change() as writing:
        writing.execute("INSERT INTO chats (created_s, changed_s, mode, character) VALUES (1, 1, 'chat', '')")
        seen: list[int] = []

        def look() -> None:
            with database.read() as db:
                seen.append(db.execute("SELECT count(*) FROM chats").fetchone()[0])

        reader = threading.Thread(target=look)
        reader.start()
        reader.join(10)
        assert seen == [0]
    look()
    assert seen == [0, 1]
    with pytest.raises(ChatStoreError), database.read() as db:
        db.execute("DELETE FROM chats")
    database.close()


def test_a_newer_file_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "chats.sqlite3"
    filled(path)
    with sqlite3.connect(path) as db:
        db.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    db.close()
    before = path.read_bytes()
    assert opening_fails(path) == "chat_store_newer"
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "harm",
    [
        lambda content: b"no database at all" * 300,
        lambda content: content[:100] + b"\xff" * 3000 + content[3100:],
        lambda content: content[: len(content) // 2 + 100],
    ],
    ids=["another file", "overwritten", "cut"],
)
def test_a_damaged_file_is_left_alone(tmp_path: Path, harm: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "chats.sqlite3"
    filled(path)
    path.write_bytes(harm(path.read_bytes()))
    before = path.read_bytes()
    assert opening_fails(path) == "chat_store_damaged"
    assert path.read_bytes() == before


def test_another_programs_database_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "chats.sqlite3"
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE recipes (name TEXT)")
    db.close()
    before = path.read_bytes()
    assert opening_fails(path) == "chat_store_damaged"
    assert path.read_bytes() == before


def test_a_locked_file_is_waited_for_and_then_told_of(tmp_path: Path) -> None:
    path = tmp_path / "chats.sqlite3"
    filled(path)
    store = ChatStore(path, busy_s=0.05)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    assert opening_fails(path) == "chat_store_locked"
    with pytest.raises(ChatStoreError) as caught:
        store.create("instruct")
    assert caught.value.key == "chat_store_locked"
    assert len(store.chats()) == 1, "reading goes on"
    other.execute("ROLLBACK")
    other.close()
    store.create("instruct")
    store.close()


def test_a_folder_in_the_files_place_is_told_of(tmp_path: Path) -> None:
    path = tmp_path / "chats.sqlite3"
    path.mkdir()
    assert opening_fails(path) == "chat_store_failed"
    (tmp_path / "file").write_text("")
    assert opening_fails(tmp_path / "file" / "chats.sqlite3") == "chat_store_failed"


def run_limited(path: Path, code: str, prepare: Callable[[], None]) -> str:
    """What a process prints that runs `code` under limits that this one does not have."""
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\nfrom pathlib import Path\npath = Path(sys.argv[1])\n{code}", str(path)],
        cwd=ROOT,
        preexec_fn=prepare,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user can reach."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o777)
    yield folder
    shutil.rmtree(folder)


@contextmanager
def no_administrator() -> Iterator[None]:
    """Permissions say nothing to an administrator, as whom tests may run."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


@pytest.mark.parametrize("name", ["file", "folder"])
def test_a_read_only_file_or_folder_is_told_of(open_folder: Path, name: str) -> None:
    path = open_folder / "chats.sqlite3"
    if name == "file":
        filled(path)
        for file in open_folder.iterdir():
            file.chmod(0o444)
    else:
        open_folder.chmod(0o555)
    before = {file.name: file.read_bytes() for file in open_folder.iterdir()}
    with no_administrator():
        assert opening_fails(path) == "chat_store_readonly"
    assert {file.name: file.read_bytes() for file in open_folder.iterdir()} == before


GROW = """
from core.chat.store import ChatStore
from core.common.errors import DeckError
store = ChatStore(path)
chat = store.create("instruct")
last = None
try:
    while True:
        last = store.append_user(chat, "x" * 20_000, last)
except DeckError as error:
    print(error.key, len(store.read(chat).messages), store.read(chat).messages[-1].id == last)
"""


def test_a_full_disk_is_told_of_and_takes_nothing_with_it(tmp_path: Path) -> None:
    path = tmp_path / "chats.sqlite3"
    old = filled(path)

    def small() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))

    key, count, is_last = run_limited(path, GROW, small).split()
    assert key in ("chat_store_full", "chat_store_failed") and int(count) > 0 and is_last == "True"
    store = ChatStore(path)
    assert [message.text for message in store.read(old).messages] == ["Is it kept?", ""]
    assert [len(store.read(chat.id).messages) for chat in store.chats()] == [int(count), 2]
    store.close()


# Migrations ---------------------------------------------------------------------------------------------------------


def test_a_file_of_the_first_form_opens_with_all_that_is_in_it(tmp_path: Path) -> None:
    path = tmp_path / "chats.sqlite3"
    db = sqlite3.connect(path)
    db.executescript(FIRST_FORM.read_text("utf-8"))
    db.close()
    store = ChatStore(path)
    assert [chat.title for chat in store.chats()] == ["What is old?", "旧聊天"]
    first, second = (store.read(chat.id) for chat in store.chats())
    assert [message.text for message in first.messages] == ["What is old?", "This file."]
    assert first.messages[1].stats == {"tokens": 3} and len(first.messages[1].versions) == 2
    assert (second.info.mode, second.info.character, second.info.draft) == ("chat", "Ada", "未发送")
    store.append_user(first.info.id, "And it goes on", first.messages[-1].id)
    store.close()


@pytest.mark.parametrize(
    ("old", "thought", "text"),
    [
        ("<think>\nhm\n</think>\n\nHi", Thought("hm", "<think>\n", "\n</think>\n\n"), "Hi"),
        ("\n<think>嗯</think>你好 </think>", Thought("嗯", "<think>\n", "\n</think>\n\n"), "你好 </think>"),
        ("<think>\nnever ended", Thought("never ended", "<think>\n"), ""),
        ("<think></think>Hi", Thought("", "<think>\n", "\n</think>\n\n"), "Hi"),
        ("The tag <think>x</think>", None, "The tag <think>x</think>"),
        ("<thinking>", None, "<thinking>"),
        ("", None, ""),
    ],
)
def test_thoughts_that_older_versions_kept_in_answers_come_apart(
    tmp_path: Path, old: str, thought: Thought | None, text: str
) -> None:
    path = tmp_path / "chats.sqlite3"
    older = sqlite3.connect(path)
    older.executescript(FIRST_FORM.read_text("utf-8"))
    older.execute("UPDATE messages SET text = ? WHERE id = 3", (old,))
    older.execute("UPDATE messages SET text = '<think>mine</think>' WHERE id = 1")
    older.commit()
    older.close()
    store = ChatStore(path)
    question, answer = store.read(2).messages
    assert (question.text, question.thought) == ("<think>mine</think>", None)
    assert (answer.text, answer.thought) == (text, thought)
    store.close()


def test_what_an_older_version_deleted_is_in_the_trash(tmp_path: Path) -> None:
    path = tmp_path / "chats.sqlite3"
    older = Database(path, migrations=MIGRATIONS[:3])
    with older.change() as db:
        row = (1.0, 2.0, time.time(), "instruct", "", "Taken back")
        db.execute(
            "INSERT INTO chats (created_s, changed_s, deleted_s, mode, character, title) VALUES (?, ?, ?, ?, ?, ?)", row
        )
    older.close()
    store = ChatStore(path)
    deleted = store.deleted()[0].info
    store.restore_chat(deleted.id)
    assert [chat.title for chat in store.chats()] == ["Taken back"]
    store.close()


def test_a_later_migration_runs_once_and_keeps_what_is_there(tmp_path: Path) -> None:
    path = tmp_path / "chats.sqlite3"
    filled(path)
    later = (*MIGRATIONS, ("ALTER TABLE chats ADD COLUMN colour TEXT NOT NULL DEFAULT 'grey'",))
    for _ in range(2):
        database = Database(path, migrations=later)
        with database.read() as db:
            assert db.execute("SELECT title, colour FROM chats").fetchall() == [("Is it kept?", "grey")]
            assert db.execute("PRAGMA user_version").fetchone() == (len(later),)
            assert db.execute("PRAGMA application_id").fetchone() == (APPLICATION_ID,)
        database.close()
    assert opening_fails(path) == "chat_store_newer"


def test_a_migration_that_fails_leaves_the_old_form(tmp_path: Path) -> None:
    path = tmp_path / "chats.sqlite3"
    filled(path)
    broken = (*MIGRATIONS, ("ALTER TABLE chats ADD COLUMN colour TEXT", "ALTER TABLE nothing ADD COLUMN x"))
    with pytest.raises(ChatStoreError):
        Database(path, migrations=broken)
    store = ChatStore(path)
    assert [chat.title for chat in store.chats()] == ["Is it kept?"]
    store.close()
    with sqlite3.connect(path) as db:
        assert "colour" not in [row[1] for row in db.execute("PRAGMA table_info(chats)")]
    db.close()
