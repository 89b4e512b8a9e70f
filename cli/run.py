"""The command `run`: starts the dashboard in this process's place."""

from __future__ import annotations

import os
import sys
from argparse import ArgumentParser, Namespace

from core.access.environment_password import GivenPassword, hand_over, take_password
from core.access.exposure import is_loopback, note_listening
from core.access.password import check_new
from core.access.public import CORS_ORIGINS, PUBLIC_URLS, cors_origins, public_urls
from core.access.secret_file import SecretFile
from core.access.single_sign_on import is_set_up
from core.common.errors import DeckError, InputError
from core.common.logs import log_level
from core.common.paths import DEFAULT_HOST, DEFAULT_PORT, ROOT
from core.common.terminal import Terminal
from core.gpu.torch_support import CPU_VARIABLE
from core.library import scan as library
from core.server.listening import check_address, parse_port, url_of
from core.standby.settings import COMMAND as IDLE_COMMAND
from core.starter import build as starter


def add_arguments(parser: ArgumentParser, terminal: Terminal) -> None:
    for name, default in (("port", str(DEFAULT_PORT)), ("host", DEFAULT_HOST)):
        parser.add_argument(f"--{name}", default=default, help=terminal.text(f"help_{name}", default=default))
    parser.add_argument("--model", metavar="NAME", help=terminal.text("help_model"))
    parser.add_argument("--force", action="store_true", help=terminal.text("help_force"))
    for name, metavar in (("public-url", "URL"), ("cors-origin", "ORIGIN")):
        help_text = terminal.text(f"help_{name.replace('-', '_')}")
        parser.add_argument(f"--{name}", metavar=metavar, action="append", default=[], help=help_text)
    parser.add_argument("--idle-command", metavar="COMMAND", help=terminal.text("help_idle_command"))
    parser.add_argument("--cpu", action="store_true", help=terminal.text("help_cpu"))


def run(arguments: Namespace, terminal: Terminal) -> int:
    """Start the dashboard, with a model on disk if one can be had. Returns only by an error."""
    host, port, model = arguments.host, parse_port(arguments.port), arguments.model
    secret = take_password()
    environment = dict(os.environ)
    for variable, given in ((PUBLIC_URLS, arguments.public_url), (CORS_ORIGINS, arguments.cors_origin)):
        if given:
            environment[variable] = " ".join(given)
    urls, _ = public_urls(environment), cors_origins(environment)
    check_address(host, port)
    check_exposure(host, secret)
    log_level()
    ensure_model(model, terminal)
    note_listening(host, environment)
    for name in ("LLAMADECK_LOAD", "LLAMADECK_LOAD_ANYWAY"):
        environment.pop(name, None)
    if model:
        environment["LLAMADECK_LOAD"] = model
    if arguments.force:
        environment["LLAMADECK_LOAD_ANYWAY"] = "1"
    if arguments.idle_command is not None:
        environment[IDLE_COMMAND] = arguments.idle_command
    if arguments.cpu:
        environment[CPU_VARIABLE] = "1"
    if secret.text:
        hand_over(secret, environment)
    for url in (*urls, url_of(host, port)):
        terminal.say("address", url=url)
    os.chdir(ROOT)
    os.execve(sys.executable, dashboard_command(host, port), environment)


def dashboard_command(host: str, port: int) -> list[str]:
    options = {"server.port": str(port), "server.address": host, "server.headless": "true"}
    arguments = [text for name, value in options.items() for text in (f"--{name}", value)]
    return [sys.executable, "-m", "ui.server.start", *arguments]


def check_exposure(host: str, given: GivenPassword) -> None:
    """Raise where others could reach the dashboard and nothing would ask them who they are."""
    if given.text or given.file:
        check_new(given.text)
    elif not is_loopback(host) and not SecretFile().read().password and not is_set_up():
        raise InputError("exposed", host=host)


def ensure_model(name: str | None, terminal: Terminal) -> None:
    """See that models/ holds the model called `name`, or any; without a name the dashboard also starts with none."""
    if name == starter.NAME:
        starter.build(terminal.steps("starter"))
    if name:
        library.find(name)
        return
    try:
        starter.ensure_model(terminal.steps("starter"))
    except DeckError as error:
        terminal.error(error)
        terminal.say("no_model")
