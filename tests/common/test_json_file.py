"""The store of small files: nothing is lost between processes, by a power cut, or beside a damaged file."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.access.keys import KeyStore
from core.access.secret_file import SecretFile
from core.chat.presets import Presets
from core.common import file_lock, json_file
from core.common import files as atomic
from core.common.codec import Codec, dump_json, load_json
from core.common.json_file import FileDamaged, FileError
from core.common.paths import ROOT
from core.common.preferences import Preferences
from core.doctor.settings_files import all_problems, problems
from core.hub.tokens import store_token, token_for, tokens_file
from core.personas.user import UserPersona, persona_file, read_persona, save_persona
from core.remote.address import keep_key, key_of, keys_file
from core.remote.selection import RemoteSelection, read_selection, selection_file, write_selection
from tests.support.counts import counts

WAIT_S = 60.0


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LLAMADECK_DATA", str(tmp_path / "data"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


# Several at once ------------------------------------------------------------------------------------------------------

COUNTING = """
import sys
from pathlib import Path
from tests.support.counts import counts
file = counts(Path(sys.argv[1]))
for number in range(int(sys.argv[3])):
    with file.change() as change:
        raised = {name: change.value.get(name, 0) + 1 for name in (sys.argv[2], "all")}
        change.value = {**change.value, **raised}
"""


def python(code: str, *arguments: object, **options: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, encoding="utf-8", **options)


def test_two_processes_and_two_threads_lose_no_change_of_each_other(data: Path) -> None:
    path = data / "counts.json"
    file = counts(path)

    def count(name: str) -> None:
        for _ in range(60):
            with file.change() as change:
                value = change.value
                change.value = {**value, name: value.get(name, 0) + 1, "all": value.get("all", 0) + 1}

    processes = [python(COUNTING, path, name, 60) for name in ("one", "two")]
    threads = [threading.Thread(target=count, args=(name,)) for name in ("three", "four")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
    assert [process.wait(WAIT_S) for process in processes] == [0, 0]
    assert file.read() == {"one": 60, "two": 60, "three": 60, "four": 60, "all": 240}
    assert sorted(entry.name for entry in data.iterdir()) == ["counts.json", "counts.json.lock"]


KILLED = """
import os, sys, tempfile, time
from pathlib import Path
from tests.support.counts import counts
def write_half(path, text, mode):
    handle, _ = tempfile.mkstemp(dir=path.parent, prefix=".new-")
    os.write(handle, text.encode()[:5])
    print("half", flush=True)
    time.sleep(60)
with counts(Path(sys.argv[1]), write=write_half).change() as change:
    change.value = {"a": 2, "b": 3}
"""


def test_a_writer_killed_in_the_middle_leaves_the_old_file_and_no_lock(data: Path) -> None:
    path = data / "counts.json"
    file = counts(path)
    with file.change() as change:
        change.value = {"a": 1}
    writer = python(KILLED, path)
    try:
        assert writer.stdout is not None and writer.stdout.readline() == "half\n"
        assert file.read() == {"a": 1}
    finally:
        writer.kill()
        writer.wait(WAIT_S)
    (left,) = data.glob(".new-*")
    with file.change() as change:
        assert change.value == {"a": 1}
        change.value = {"a": 5}
    assert counts(path).read() == {"a": 5} and left.exists()
    # What it left may hold secrets: it goes once no write can still be at it.
    os.utime(left, (0, 0))
    with file.change() as change:
        change.value = {"a": 6}
    assert not left.exists()


def test_whoever_holds_the_lock_for_too_long_is_said(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dashboard that is stopped (SIGSTOP, a dead disk) must not stop the others for ever."""
    monkeypatch.setattr(file_lock, "LOCK_WAIT_S", 0.05)
    file = counts(data / "counts.json")
    with (data / "counts.json.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(FileError) as caught, file.change():
            pass
        assert caught.value.key == "file_busy" and file.read() == {}
    with file.change() as change:
        change.value = {"a": 1}


@pytest.mark.parametrize("number", file_lock.NO_LOCKS)
def test_a_file_system_without_locks_is_written_all_the_same(
    data: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    file = counts(data / "counts.json")
    for _ in range(2):
        with file.change() as change:
            change.value = {"a": change.value.get("a", 0) + 1}
    assert file.read() == {"a": 2}


# What is read ---------------------------------------------------------------------------------------------------------


def test_a_file_that_did_not_change_is_not_parsed_again(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, parsed = data / "counts.json", []

    def load(text: str) -> Any:
        parsed.append(text)
        return load_json(text)

    file = counts(path, codec=Codec(load, dump_json))
    path.write_text('{"a": 1}', "utf-8")
    os.utime(path, ns=(1, 1))
    assert [file.read() for _ in range(3)] == [{"a": 1}] * 3 and len(parsed) == 1
    path.write_text('{"a": 2}', "utf-8")
    os.utime(path, ns=(2, 2))
    assert file.read() == {"a": 2} and len(parsed) == 2
    # One that was written just now may be written again without another time.
    path.write_text('{"a": 3}', "utf-8")
    state = path.stat()
    assert file.read() == {"a": 3}
    path.write_text('{"a": 4}', "utf-8")
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert file.read() == {"a": 4}


BROKEN = {
    "empty": b"",
    "zeros": b"\0" * 4096,
    "cut off": b'{"a": 1, "b',
    "its first sectors zeroed": b"\0" * 4096 + b'": 1, "b": 2}',
    "two documents": b'{"a": 1}{"a": 1}',
    "tail of the longer old one": b'{"a": 1}\n"b": 2}',
    "a list": b"[]",
    "nothing": b"null",
    "a text": b'"a"',
    "a wrong kind": b'{"a": "1"}',
    "a name twice": b'{"a": 1, "a": 2}',
    "no number": b'{"a": NaN}',
    "endless": b'{"a": 1e999}',
    "many digits": b'{"a": ' + b"9" * 5000 + b"}",
    "deep": b"[" * 200_000,
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "Latin-1": '{"é": 1}'.encode("latin-1"),
    "a conflict": b'<<<<<<< HEAD\n{"a": 1}\n=======\n{"a": 2}\n>>>>>>> other\n',
    "comments": b'{"a": 1} // mine',
    "comma": b'{"a": 1,}',
    "HTML": b"<!DOCTYPE html><title>Sign in</title>",
    "too large": b'{"a": 1}' + b" " * json_file.MAX_BYTES,
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_damaged_is_never_written_over_and_can_be_set_aside(data: Path, name: str) -> None:
    path = data / "counts.json"
    path.write_bytes(BROKEN[name])
    file = counts(path)
    with pytest.raises(FileDamaged) as caught:
        file.read()
    assert caught.value.sentence("zh") and file.read_or_empty() == {} and isinstance(file.problem(), FileDamaged)
    with pytest.raises(FileDamaged), file.change() as change:
        change.value = {"a": 2}
    assert path.read_bytes() == BROKEN[name]
    aside = file.set_aside()
    assert aside is not None and aside.read_bytes() == BROKEN[name] and not path.exists()
    with file.change() as change:
        change.value = {"a": 2}
    assert file.read() == {"a": 2} and file.set_aside() is None


def test_two_that_are_set_aside_in_one_second_are_both_kept(data: Path) -> None:
    path = data / "counts.json"
    kept = set()
    for content in ("{", "{{", "{{{"):
        path.write_text(content)
        kept.add(counts(path).set_aside())
    assert sorted(aside.read_text() for aside in kept if aside) == ["{", "{{", "{{{"]


def test_the_log_says_it_once_and_quotes_nothing(data: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = data / "counts.json"
    path.write_text('{"token": "secret', "utf-8")
    file = counts(path)
    for _ in range(100):
        file.read_or_empty()
    assert len(caplog.records) == 1 and "secret" not in caplog.text and "counts.json is not used" in caplog.text
    path.write_text('{"token": "secrets', "utf-8")
    file.read_or_empty()
    assert len(caplog.records) == 2


@pytest.mark.parametrize("content", [b'\xef\xbb\xbf{"a": 1}', b' \r\n{"a": 1}\r\n', b'{"a":1}'])
def test_what_other_editors_write_is_read(data: Path, content: bytes) -> None:
    (data / "counts.json").write_bytes(content)
    assert counts(data / "counts.json").read() == {"a": 1}


@given(st.dictionaries(st.text(st.characters(categories=None)), st.none() | st.text(st.characters(categories=None))))
def test_whatever_text_there_is_comes_back(values: dict[str, Any]) -> None:
    text = dump_json(values)
    assert load_json(text) == values and text.encode("utf-8")


def test_no_pipe_and_no_folder_is_waited_for(data: Path) -> None:
    for make in (os.mkfifo, os.mkdir):
        path = data / make.__name__
        make(path)
        file = counts(path)
        with pytest.raises(FileError) as caught:
            file.read()
        assert caught.value.key == "file_unreadable" and file.set_aside() is None
        with pytest.raises(FileError), file.change():
            pass


# What is written ------------------------------------------------------------------------------------------------------


def test_nothing_is_written_where_nothing_changed_or_the_block_failed(data: Path) -> None:
    file = counts(data / "counts.json")
    with file.change():
        pass
    assert not file.path.exists()
    with pytest.raises(ZeroDivisionError), file.change() as change:
        change.value = {"a": 1 // 0}
    assert file.read() == {}


def test_a_link_stays_a_link_and_both_names_have_one_lock(data: Path) -> None:
    """People keep their settings in a repository of their own and link to them."""
    home = data / "home"
    home.mkdir()
    (data / "counts.json").symlink_to(home / "real.json")
    one, other = counts(data / "counts.json"), counts(home / "real.json")
    for file in (one, other, one):
        with file.change() as change:
            change.value = {"a": change.value.get("a", 0) + 1}
    assert (data / "counts.json").is_symlink() and json.loads((home / "real.json").read_text()) == {"a": 3}
    assert sorted(entry.name for entry in home.iterdir()) == ["real.json", "real.json.lock"]


@pytest.mark.parametrize(("mode", "before", "after"), [(0o600, 0o644, 0o600), (0o644, 0o600, 0o600),
                                                       (0o644, 0o664, 0o644), (0o600, None, 0o600)])  # fmt: skip
def test_permissions_are_never_widened(data: Path, mode: int, before: int | None, after: int) -> None:
    file = counts(data / "counts.json", mode=mode)
    if before is not None:
        file.path.write_text("{}")
        file.path.chmod(before)
    with file.change() as change:
        change.value = {"a": 1}
    assert stat.S_IMODE(file.path.stat().st_mode) == after
    assert stat.S_IMODE((data / "counts.json.lock").stat().st_mode) & ~mode == 0


def test_a_full_disk_leaves_the_old_file(data: Path) -> None:
    file = counts(data / "counts.json")
    with file.change() as change:
        change.value = {"a": 1}
    code = """
import resource, signal, sys
from pathlib import Path
from core.common.json_file import FileError
from tests.support.counts import counts
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
try:
    with counts(Path(sys.argv[1])).change() as change:
        change.value = {"x" * 500: 1}
except FileError as error:
    print(error.key)
"""
    process = python(code, file.path)
    assert process.communicate(timeout=WAIT_S)[0] == "file_unwritable\n"
    assert file.read() == {"a": 1} and not list(data.glob(".new-*"))


@pytest.mark.skipif(os.geteuid() != 0, reason="another user's files need root")
def test_another_users_files_are_neither_read_nor_taken_over() -> None:
    """`sudo ./llamadeck password` leaves such behind; a replaced file would be another user's without a word."""
    code = """
import os, sys
from pathlib import Path
from core.common.json_file import FileError
from tests.support.counts import counts
os.setuid(65534)
for name in sys.argv[2:]:
    file = counts(Path(sys.argv[1]) / name)
    try:
        with file.change() as change:
            change.value = {"a": 2}
    except FileError as error:
        print(name, error.key)
"""
    # The tests' own folders are shut to other users.
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o777)
        paths = [Path(folder, name) for name in ("secret.json", "open.json")]
        for path, mode in zip(paths, (0o600, 0o644), strict=True):
            path.write_text('{"a": 1}')
            path.chmod(mode)
        out = python(code, folder, "secret.json", "open.json").communicate(timeout=WAIT_S)[0]
        assert out == "secret.json file_unwritable\nopen.json file_unwritable\n"
        assert [path.read_text() for path in paths] == ['{"a": 1}'] * 2


def test_a_read_only_folder_is_read_and_said(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = counts(data / "counts.json")
    file.path.write_text('{"a": 1}')

    def refuse(*_: object) -> int:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(file_lock, "_open_lock", refuse)
    assert file.read() == {"a": 1}
    with pytest.raises(FileError, match="Read-only file system"), file.change():
        pass


def test_a_write_that_fails_otherwise_leaves_nothing_beside(data: Path) -> None:
    with pytest.raises(UnicodeEncodeError):
        atomic.write_atomically(data / "x", "\ud800")
    assert list(data.iterdir()) == []


# Every store ----------------------------------------------------------------------------------------------------------


def key_names(path: Path) -> list[str]:
    return [key.name for key in KeyStore(path).file.read_or_empty()]


# How each is filled, changed, read, and which file it is.
STORES: dict[str, tuple[Callable[[], object], Callable[[], object], Callable[[], object], Callable[[], Any]]] = {
    "access.json": (
        lambda: SecretFile().change(password="first"),
        lambda: SecretFile().change(ended={"x": 1.0}),
        lambda: SecretFile().read().password == "first",
        lambda: SecretFile().file,
    ),
    "keys.json": (
        lambda: KeyStore().make("first"),
        lambda: KeyStore().make("second"),
        lambda: [key.name for key in KeyStore().file.read_or_empty()][:1] == ["first"],
        lambda: KeyStore().file,
    ),
    "secrets.json": (
        lambda: store_token("https://huggingface.co", "hf_first"),
        lambda: store_token("https://hf-mirror.com", "hf_two"),
        lambda: token_for("https://huggingface.co") == "hf_first",
        tokens_file,
    ),
    "engine_keys.json": (
        lambda: keep_key("http://one:1", "first"),
        lambda: keep_key("http://two:2", "second"),
        lambda: key_of("http://one:1") == "first",
        keys_file,
    ),
    "engine.json": (
        lambda: write_selection(RemoteSelection("http://one:1", "first")),
        lambda: write_selection(RemoteSelection("http://one:1", "second")),
        lambda: read_selection() is not None,
        selection_file,
    ),
    "settings.json": (
        lambda: Preferences().set("a", "b", "first"),
        lambda: Preferences().set("a", "c", "second"),
        lambda: Preferences().get("a", "b") == "first",
        lambda: Preferences().file,
    ),
    "presets.yaml": (
        lambda: Presets().save("first", {"top_k": 5}),
        lambda: Presets().save("second", {"top_k": 6}),
        lambda: "first" in Presets().file.read_or_empty(),
        lambda: Presets().file,
    ),
    "persona.yaml": (
        lambda: save_persona(UserPersona("first")),
        lambda: save_persona(UserPersona("second")),
        lambda: read_persona().name in ("first", "second"),
        persona_file,
    ),
}


def cuts(whole: bytes) -> Iterator[bytes]:
    yield whole[: len(whole) // 2] + b'"'
    yield b""
    yield b"\0" * len(whole)
    yield whole[:-1].replace(b"first", b"fir\xff")
    yield b"[1, 2]"


@pytest.mark.parametrize("name", STORES)
def test_no_store_writes_over_a_damaged_file(data: Path, name: str) -> None:
    fill, change, is_there, file = STORES[name]
    fill()
    whole = (data / name).read_bytes()
    for damaged in cuts(whole):
        (data / name).write_bytes(damaged)
        with contextlib.suppress(FileError):
            change()
        assert (data / name).read_bytes() == damaged and not is_there()
        ((found, problem),) = problems()
        assert found.path == data / name and isinstance(problem, FileDamaged) and str(data / name) in str(problem)
    (data / name).write_bytes(whole)
    change()
    assert is_there() and problems() == []


@pytest.mark.parametrize("name", STORES)
def test_every_store_goes_on_once_its_damaged_file_is_set_aside(data: Path, name: str) -> None:
    fill, _, is_there, file = STORES[name]
    (data / name).write_bytes(b"{ secret")
    ((found, _),) = all_problems()
    aside = found.set_aside()
    fill()
    assert is_there() and aside.read_bytes() == b"{ secret" and all_problems() == []


@pytest.mark.parametrize("name", STORES)
def test_every_store_waits_for_its_lock(data: Path, name: str) -> None:
    """Whoever reads, changes and writes without it loses what another process wrote meanwhile."""
    fill, change, _, file = STORES[name]
    fill()
    before = (data / name).read_bytes()
    with (data / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        changing = threading.Thread(target=change)
        changing.start()
        assert (data / name).read_bytes() == before
        fcntl.flock(lock, fcntl.LOCK_UN)
        changing.join(WAIT_S)
    assert (data / name).read_bytes() != before


@pytest.mark.parametrize("name", ["access.json", "keys.json", "secrets.json", "engine_keys.json", "persona.yaml"])
def test_secrets_are_their_owners_alone_also_where_they_are_locked(data: Path, name: str) -> None:
    STORES[name][0]()
    for path in (data / name, data / f"{name}.lock"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_people_see_their_own_damaged_files_and_whoever_owns_this_all(data: Path) -> None:
    save_persona(UserPersona("Ann"), "id ann")
    path = persona_file("id ann").path
    path.write_text("[")
    (data / "secrets.json").write_text("{")
    assert [file.path for file, _ in problems("id ann")] == [path]
    assert problems("id bob") == [] and [file.path.name for file, _ in problems()] == ["secrets.json"]
    assert [file.path for file, _ in all_problems()] == [data / "secrets.json", path]
