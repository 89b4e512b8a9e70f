"""Checks of disks, memory, the port and the Hub. They change nothing and take seconds at most."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import urllib3

from core.access.public import public_urls
from core.common.errors import DeckError, InputError
from core.common.host_memory import available_bytes
from core.common.paths import cache_dir, data_dir, models_dir
from core.common.urls import host_name
from core.doctor.check_result import CheckResult, Status, error_result, result
from core.hub.endpoints import checked_endpoint, default_endpoint
from core.server.listening import check_address, url_of
from core.standby.settings import idle_command, idle_minutes, is_command_there

GIB, MIB = 2**30, 2**20
MODEL_BYTES, LEAST_BYTES, LOAD_BYTES = 4 * GIB, 64 * MIB, 2 * GIB
ASK_S = 5.0


def check_environment(host: str, port: int) -> Iterator[CheckResult]:
    yield check_disk("models", models_dir(), "LLAMADECK_MODELS", MODEL_BYTES)
    yield check_disk("data", data_dir(), "LLAMADECK_DATA", LEAST_BYTES)
    yield check_disk("cache", cache_dir(), "XDG_CACHE_HOME", LEAST_BYTES)
    yield check_memory(available_bytes())
    yield check_port(host, port)
    yield from check_public()
    yield from check_idle()
    yield check_hub(default_endpoint())


def check_disk(check: str, folder: Path, variable: str, wanted_bytes: int) -> CheckResult:
    """The folder, or where it would be made."""
    place = folder.absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        # A root user may write where the file system does not let it: only a real file tells.
        with tempfile.TemporaryFile(dir=place):
            free = shutil.disk_usage(place).free
    except OSError:
        return result(check, "fail", "disk_readonly", path=str(folder), variable=variable)
    if free < LEAST_BYTES:
        return result(check, "fail", "disk_full", path=str(folder), free=free // MIB)
    if free < wanted_bytes:
        return result(check, "warn", "disk_low", path=str(folder), free=_gib(free), variable=variable)
    return result(check, "ok", "disk_ok", path=str(folder), free=_gib(free))


def check_memory(free_bytes: int) -> CheckResult:
    is_low = free_bytes < LOAD_BYTES
    key = "memory_low" if is_low else "memory_ok"
    return result("memory", "warn" if is_low else "ok", key, free=_gib(free_bytes))


def check_port(host: str, port: int) -> CheckResult:
    try:
        check_address(host, port)
    except DeckError as error:
        if error.key == "port_taken" and _is_llamadeck(f"{url_of(host, port)}/_stcore/health"):
            return result("port", "ok", "port_ours", port=port)
        return error_result("port", "fail", error)
    return result("port", "ok", "port_free", port=port, host=host)


def check_public() -> Iterator[CheckResult]:
    """The addresses that are named as those at which people open the dashboard; most have none."""
    try:
        urls = public_urls()
    except InputError as error:
        yield error_result("public", "fail", error)
        return
    for url in urls:
        is_ours = _is_llamadeck(f"{url.rstrip('/')}/_stcore/health")
        yield result("public", "ok" if is_ours else "warn", "public_ok" if is_ours else "public_none", url=url)


def check_idle() -> Iterator[CheckResult]:
    """The command that ends a machine which does nothing, where one is wanted."""
    if minutes := idle_minutes("command"):
        status: Status = "ok" if is_command_there() else "fail"
        key = "idle_ok" if status == "ok" else "idle_missing"
        yield result("idle", status, key, command=idle_command(), minutes=minutes)


def check_hub(endpoint: str) -> CheckResult:
    """Whether the endpoint that is set answers at all; no token goes there."""
    name = host_name(endpoint)
    try:
        _ask(checked_endpoint(endpoint))
    except InputError as error:
        return error_result("hub", "warn", error)
    except (urllib3.exceptions.HTTPError, ValueError) as error:
        return result("hub", "warn", "hub_none", host=name, why=type(error).__name__)
    return result("hub", "ok", "hub_ok", host=name)


def _is_llamadeck(url: str) -> bool:
    """Whether what listens there is the gate's server: it says so to everybody, or whether it is well."""
    try:
        status, body = _ask(url)
    except (urllib3.exceptions.HTTPError, ValueError):
        return False
    return (status, body.strip()) in ((200, b"ok"), (401, b"Sign in first."))


def _ask(url: str) -> tuple[int, bytes]:
    with urllib3.PoolManager(timeout=ASK_S, retries=False) as pool:
        response = pool.request("GET", url, preload_content=False, redirect=False)
        try:
            return response.status, response.read(1000)
        finally:
            response.close()


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / GIB:.1f}"
