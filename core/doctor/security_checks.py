"""Checks of who can reach LlamaDeck and read its secrets; prints none of them."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from core.access.environment_password import FILE_VARIABLE, VARIABLE
from core.access.exposure import is_loopback
from core.access.secret_file import SecretFile
from core.access.single_sign_on import ANYBODY, is_set_up, people_allowed, secrets_files
from core.common.paths import data_dir
from core.doctor.check_result import CheckResult, result
from core.doctor.settings_files import all_problems

# The password's hash; tokens of hubs; keys of the API and to other servers; chats.
SECRET_FILES = ("access.json", "secrets.json", "keys.json", "engine_keys.json", "chats.sqlite3")


def check_security(host: str) -> Iterator[CheckResult]:
    yield check_access(host)
    yield check_secrets([*(data_dir() / name for name in SECRET_FILES), *secrets_files()])
    for file, problem in all_problems():
        yield result("files", "fail", "file_problem", file=str(file.path), why=str(problem.params.get("why", "")))


def check_access(host: str) -> CheckResult:
    if is_set_up():
        allowed = people_allowed()
        if not allowed or ANYBODY in allowed:
            return result("access", "warn", "access_everybody" if allowed else "access_nobody")
        return result("access", "ok", "access_people")
    if os.environ.get(VARIABLE) or os.environ.get(FILE_VARIABLE) or SecretFile().read().password:
        return result("access", "ok", "access_password")
    if is_loopback(host):
        return result("access", "ok", "access_loopback")
    return result("access", "fail", "access_open", host=host)


def check_secrets(files: list[Path]) -> CheckResult:
    open_files = [str(path) for path in files if _is_open(path)]
    if open_files:
        return result("secrets", "fail", "secrets_open", files=" ".join(open_files))
    return result("secrets", "ok", "secrets_ok")


def _is_open(path: Path) -> bool:
    try:
        return bool(path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO))
    except OSError:
        return False
