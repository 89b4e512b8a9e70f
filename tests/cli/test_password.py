"""The command `password` and what `run` refuses without one; and that no code of a checkpoint is ever run."""

from __future__ import annotations

import ast
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from core.access.access import Access
from core.access.secret_file import SecretFile
from core.common.paths import ROOT
from tests.support.command import call, environment
from tests.support.dashboard import free_port


def pipe(tmp_path: Path, text: str, *arguments: str) -> tuple[int, str]:
    command = [sys.executable, "-m", "cli.main", "password", *arguments]
    done = subprocess.run(
        command, cwd=ROOT, env=environment(tmp_path), input=text, capture_output=True, encoding="utf-8"
    )
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout + done.stderr


def access(tmp_path: Path) -> Access:
    return Access(SecretFile(tmp_path / "data" / "access.json"), {})


def test_a_pipe_sets_it_and_remove_takes_it_away(tmp_path: Path) -> None:
    code, said = pipe(tmp_path, "correct horse battery\nnot this\n")
    assert code == 0 and "correct horse" not in said
    assert access(tmp_path).try_password("correct horse battery", "192.0.2.1")
    assert pipe(tmp_path, "", "--remove")[0] == 0
    assert not access(tmp_path).has_password


@pytest.mark.parametrize("text", ["", "\n", "short\n", "x" * 5000])
def test_what_is_no_password_is_refused(tmp_path: Path, text: str) -> None:
    code, said = pipe(tmp_path, text)
    assert code == 2 and "characters cannot be used" in said
    assert not access(tmp_path).has_password


@pytest.mark.parametrize(("again", "code"), [("correct horse battery", 0), ("another one", 2)])
def test_a_terminal_is_asked_twice_and_shows_nothing(tmp_path: Path, again: str, code: int) -> None:
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "cli.main", "password"], cwd=ROOT, env=environment(tmp_path),
        stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
    )  # fmt: skip
    os.close(slave)
    seen = b""
    for prompt, text in ((b"New access password: ", "correct horse battery"), (b"Once more: ", again)):
        while prompt not in seen:
            seen += os.read(master, 1000)
        os.write(master, f"{text}\n".encode())
    assert process.wait(30) == code
    seen += os.read(master, 1000)
    os.close(master)
    assert b"horse" not in seen and b"another" not in seen
    assert access(tmp_path).has_password == (code == 0)


def test_a_damaged_file_stays_until_there_is_a_password_to_put_in_its_place(tmp_path: Path) -> None:
    """Without a file this machine's programs would be let in: so a mistyped password must not move it away."""
    path = tmp_path / "data" / "access.json"
    path.parent.mkdir()
    path.write_text('{"password": "scrypt$', "utf-8")
    assert pipe(tmp_path, "short\n")[0] == 2
    assert path.read_text("utf-8") == '{"password": "scrypt$' and access(tmp_path).is_damaged
    code, said = pipe(tmp_path, "correct horse battery\n")
    (aside,) = path.parent.glob("access.json.damaged-*")
    assert code == 0 and str(aside) in said and aside.read_text("utf-8") == '{"password": "scrypt$'
    assert access(tmp_path).try_password("correct horse battery", "192.0.2.1")


def test_without_a_password_no_network_is_listened_on(tmp_path: Path) -> None:
    code, said = call(tmp_path, "run", "--host", "0.0.0.0", "--port", str(free_port()))
    assert code == 2
    assert "On 0.0.0.0 others can reach LlamaDeck" in said and "./llamadeck password" in said
    code, said = call(tmp_path, "run", "--host", "0.0.0.0", "--port", str(free_port()), language="zh_CN.UTF-8")
    assert code == 2 and "./llamadeck password" in said


def test_a_short_password_and_a_wrong_level_of_the_environment_are_bad_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAMADECK_LOG", "loud")
    code, said = call(tmp_path, "run", "--port", str(free_port()))
    assert code == 2 and "loud" in said and "debug, info, warning, error" in said
    monkeypatch.setenv("LLAMADECK_PASSWORD", "sesame")
    code, said = call(tmp_path, "run", "--host", "0.0.0.0", "--port", str(free_port()))
    assert code == 2 and "6 characters" in said and "sesame" not in said


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "No such file"), (b"", "0 characters"), (b"\xef\xbb\xbf\n", "0 characters"),
        ("correct horse".encode("utf-16"), "not UTF-8"), ("richtiges Pf\xe4rd".encode("latin-1"), "not UTF-8"),
        ("\u99ac".encode() * 1000, "343 characters"),
    ],
)  # fmt: skip
def test_a_password_file_that_holds_none_is_bad_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | None, expected: str
) -> None:
    given = tmp_path / "given"
    if content is not None:
        given.write_bytes(content)
    monkeypatch.setenv("LLAMADECK_PASSWORD_FILE", str(given))
    code, said = call(tmp_path, "run", "--host", "0.0.0.0", "--port", str(free_port()))
    assert code == 2 and expected in said


def test_no_code_that_comes_with_a_model_can_be_switched_on() -> None:
    """Every use of trust_remote_code says False, plainly: no option, variable or page leads to it."""
    uses = 0
    for path in [
        *(ROOT / "core").rglob("*.py"),
        *(ROOT / "cli").rglob("*.py"),
        *(ROOT / "ui").rglob("*.py"),
        *(ROOT / "pages").glob("*.py"),
    ]:
        source = path.read_text("utf-8")
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
                assert isinstance(node.value, ast.Constant) and node.value.value is False, path
                uses += 1
        assert source.count("trust_remote_code") == source.count("trust_remote_code=False"), path
    # A load reads the configuration and makes the class; tokenizers are read without transformers.
    assert uses >= 2
