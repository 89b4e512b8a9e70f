"""The command line: its exit codes, its sentences, and a dashboard that starts and ends by signal."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from cli import main as cli
from cli import run, test
from cli.run import dashboard_command
from core.access.public import cors_origins, public_urls
from core.common.errors import InputError
from core.common.paths import ROOT
from core.common.terminal import terminal_language
from core.server.listening import parse_port, url_of
from tests.support.command import call, environment
from tests.support.dashboard import free_port, wait_until_healthy


@pytest.mark.parametrize(
    ("arguments", "quoted"),
    [
        ([], "COMMAND"),
        (["fly"], "'fly'"),
        (["run", "now"], "now"),
        (["run", "--port", "0"], "0 is no port"),
        (["run", "--port", "65536"], "65536 is no port"),
        (["run", "--port", "http"], "http is no port"),
        (["run", "--host", "no.such.host.invalid"], "no.such.host.invalid is no address of this machine"),
        (["run", "--host", "192.0.2.1"], "192.0.2.1 is no address of this machine"),
        (["run", "--public-url", "deck.example.org"], "deck.example.org is no address of web pages"),
        (["run", "--cors-origin", "https://app.example", "--cors-origin", "app"], "app is no origin"),
    ],
)
def test_bad_input_ends_with_exit_code_2_and_names_the_value(tmp_path: Path, arguments: list[str], quoted: str) -> None:
    code, said = call(tmp_path, *arguments)
    assert code == 2
    assert quoted in said


def test_an_unknown_model_is_bad_input_and_the_names_near_it_are_said(tmp_path: Path) -> None:
    (tmp_path / "models" / "Llama-2-7B-Chat-GPTQ").mkdir(parents=True)
    code, said = call(tmp_path, "run", "--port", str(free_port()), "--model", "Llama-2-7B-Caht")
    assert code == 2
    assert "Llama-2-7B-Caht" in said
    assert "Llama-2-7B-Chat-GPTQ" in said


@pytest.mark.parametrize("command", ["verify", "delete"])
def test_where_there_is_no_model_at_all_no_name_is_near(tmp_path: Path, command: str) -> None:
    """It once said "Perhaps one of these: -."."""
    code, said = call(tmp_path, command, "Llama")
    assert code == 2
    assert "There is no model called Llama: models/ holds none yet." in said


@pytest.mark.parametrize("asked", ["--help", "-h"])
def test_help_of_the_checks_runs_none_of_them(
    asked: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It once installed what they need and ran three of them, up to pytest's own help."""
    monkeypatch.setattr(test, "run", lambda *_: pytest.fail("the checks run"))
    with pytest.raises(SystemExit, match="0"):
        cli.main(["test", asked])
    assert "further arguments go to pytest" in capsys.readouterr().out


def test_a_taken_port_is_a_failure_that_names_the_port_and_the_option(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, said = call(tmp_path, "run", "--port", str(port))
    assert code == 1
    assert str(port) in said
    assert "--port" in said


def test_the_terminals_language_decides_the_sentences_language(tmp_path: Path) -> None:
    code, said = call(tmp_path, "run", "--port", "http", language="zh_CN.UTF-8")
    assert code == 2
    assert "http 不是端口号" in said


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, "en"),
        ({"LANG": "zh_CN.UTF-8"}, "zh"),
        ({"LC_ALL": "en_US.UTF-8", "LANG": "zh_CN.UTF-8"}, "en"),
        ({"LC_ALL": "", "LANG": "zh_TW.UTF-8"}, "zh"),
    ],
)
def test_the_usual_variables_name_the_language(variables: dict[str, str], expected: str) -> None:
    assert terminal_language(variables) == expected


def test_help_needs_nothing_that_has_to_be_installed() -> None:
    command = [sys.executable, "-S", "-m", "cli.main", "--help"]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    for name in ("run", "starter", "test", "bench"):
        assert f"\n    {name} " in process.stdout


@pytest.mark.parametrize("text", ["", "-1", "٣", "6006.0", "9" * 5000])
def test_what_is_no_port_number_is_refused(text: str) -> None:
    with pytest.raises(InputError):
        parse_port(text)


def test_the_address_is_one_that_opens_on_this_machine() -> None:
    assert url_of("127.0.0.1", 6006) == "http://127.0.0.1:6006"
    assert url_of("0.0.0.0", 80) == "http://127.0.0.1:80"
    assert url_of("::", 80) == "http://[::1]:80"


def test_public_addresses_and_origins_come_from_the_environment_too() -> None:
    given = {"LLAMADECK_PUBLIC_URLS": "https://a.example/deck, https://b.example:8443", "LLAMADECK_CORS_ORIGINS":
             "https://App.example:443 null *"}  # fmt: skip
    assert public_urls(given) == ("https://a.example/deck", "https://b.example:8443") and public_urls({}) == ()
    assert cors_origins(given) == ("https://app.example", "null", "*") and cors_origins({}) == ()
    for wrong in ("x", "https://a.example/?q", "https://a.example/#x", "ftp://a.example"):
        with pytest.raises(InputError, match=re.escape(wrong)):
            public_urls({"LLAMADECK_PUBLIC_URLS": wrong})


def test_the_dashboard_gets_the_address_as_options() -> None:
    command = dashboard_command("0.0.0.0", 7000)
    assert command[:3] == [sys.executable, "-m", "ui.server.start"]
    assert "--server.port 7000 --server.address 0.0.0.0 --server.headless true" in " ".join(command)


@pytest.mark.parametrize("way", [signal.SIGTERM, signal.SIGINT])
def test_without_a_network_the_dashboard_starts_without_a_model_and_ends_by_signal(
    tmp_path: Path, way: signal.Signals
) -> None:
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "cli.main", "run", "--port", str(port)],
        cwd=ROOT,
        env=environment(tmp_path),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
    )
    wait_until_healthy(f"http://127.0.0.1:{port}", process)
    process.send_signal(way)
    said, _ = process.communicate()
    assert process.returncode == 0
    assert "starts without a model" in said
    assert said.count(f"http://127.0.0.1:{port}") == 1
    assert "Traceback" not in said


def test_what_installs_the_tests_packages_imports_none_of_them() -> None:
    """On a clean machine ./llamadeck test ended with a traceback: a helper of the browser tests came in by the way."""
    lines = (ROOT / "requirements-test.txt").read_text("utf-8").splitlines()
    names = [line.partition("==")[0].replace("-", "_") for line in lines if "==" in line]
    assert "playwright" in names
    code = f"import sys; sys.modules.update(dict.fromkeys({names!r})); import tests.run"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


@pytest.mark.parametrize("options", [["--cpu"], []])
def test_the_choice_of_the_cpu_reaches_the_dashboard(options: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    started: dict[str, str] = {}
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(os, "execve", lambda program, arguments, environment: started.update(environment))
    monkeypatch.setattr(run, "ensure_model", lambda name, terminal: None)
    monkeypatch.delenv("LLAMADECK_CPU", raising=False)
    cli.main(["run", "--port", str(free_port()), *options])
    assert started.get("LLAMADECK_CPU") == ("1" if options else None)
