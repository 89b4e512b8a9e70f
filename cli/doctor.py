"""The command `doctor`: runs every check and prints them as lines or as one JSON object."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Iterator

from core.common.i18n import translate
from core.common.paths import DEFAULT_HOST, DEFAULT_PORT
from core.common.terminal import Terminal, width
from core.doctor.check_result import CheckResult
from core.doctor.environment_checks import check_environment
from core.doctor.machine_checks import check_machine
from core.doctor.security_checks import check_security
from core.gpu.snapshot import read_snapshot
from core.server.listening import parse_port


def add_arguments(parser: ArgumentParser, terminal: Terminal) -> None:
    parser.add_argument("--json", action="store_true", help=terminal.text("help_json"))
    for name, default in (("port", str(DEFAULT_PORT)), ("host", DEFAULT_HOST)):
        parser.add_argument(f"--{name}", default=default, help=terminal.text(f"help_{name}", default=default))


def run(arguments: Namespace, terminal: Terminal) -> int:
    """1 where a check failed, else 0; also where some of them warn."""
    output, found = terminal.to_stdout(), []
    for result in results(arguments.host, parse_port(arguments.port)):
        found.append(result)
        if not arguments.json:
            output.write(line(result, terminal.language))
    if arguments.json:
        rows = [{"check": one.check, "status": one.status, "text": one.text(terminal.language)} for one in found]
        output.write_json({"checks": rows})
    return 1 if any(result.status == "fail" for result in found) else 0


def results(host: str, port: int) -> Iterator[CheckResult]:
    yield from check_machine(read_snapshot())
    yield from check_environment(host, port)
    yield from check_security(host)


def line(result: CheckResult, language: str) -> str:
    status = translate(language, f"doctor.{result.status}")
    name = translate(language, f"doctor.name_{result.check}")
    return f"{status}{' ' * (6 - width(status))}{name}{' ' * (16 - width(name))}{result.text(language)}"
