"""The command `doctor`: every check in its order, as lines or as one JSON object; knows no check's inside."""

from __future__ import annotations

import json
from collections.abc import Iterator

from core.common.i18n import translate
from core.common.terminal import Terminal, width
from core.doctor.check_result import Finding
from core.doctor.environment_checks import check_surroundings
from core.doctor.machine_checks import check_machine
from core.doctor.security_checks import check_guard
from core.gpu.snapshot import read_snapshot


def run(host: str, port: int, is_json: bool, terminal: Terminal) -> int:
    """1 where a check failed, else 0; also where some of them warn."""
    output, found = terminal.to_stdout(), []
    for finding in findings(host, port):
        found.append(finding)
        if not is_json:
            output.write(line(finding, terminal.language))
    if is_json:
        rows = [{"check": one.check, "status": one.status, "text": one.text(terminal.language)} for one in found]
        output.write(json.dumps({"checks": rows}, ensure_ascii=False, indent=1))
    return 1 if any(finding.status == "fail" for finding in found) else 0


def findings(host: str, port: int) -> Iterator[Finding]:
    yield from check_machine(read_snapshot())
    yield from check_surroundings(host, port)
    yield from check_guard(host)


def line(finding: Finding, language: str) -> str:
    status = translate(language, f"doctor.{finding.status}")
    name = translate(language, f"doctor.name_{finding.check}")
    return f"{status}{' ' * (6 - width(status))}{name}{' ' * (16 - width(name))}{finding.text(language)}"
