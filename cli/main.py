"""The command line inside .venv: checks the arguments and hands over; knows no page and no model inside."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence

from core.access.exposure import is_loopback, note_listening
from core.access.given import Given, hand_over, take_given
from core.bootstrap.machine_faults import explained
from core.common.errors import DeckError, InputError
from core.common.logs import level_in
from core.common.output import OutputError, guarded
from core.common.paths import DEFAULT_HOST, DEFAULT_PORT, ROOT
from core.common.terminal import Terminal
from core.gpu.torch_support import CPU_VARIABLE
from core.server.listening import check_address, parse_port, url_of

PASSED_ON = ("test", "bench")
SCALE_PORT = 8000


def main(arguments: Sequence[str]) -> int:
    """The exit code: 0 done, 1 failed, 2 bad input (argparse ends the process with 2 by itself)."""
    terminal = Terminal()
    parser = make_parser(terminal)
    known, others = parser.parse_known_args(arguments)
    if others and known.command not in PASSED_ON:
        parser.error(f"unrecognized arguments: {' '.join(others)}")
    commands: dict[str, Callable[[], int]] = {
        "run": lambda: run(known, terminal),
        "starter": lambda: starter(terminal),
        "fit": lambda: fit(known, terminal),
        "gpus": lambda: gpus(known, terminal),
        "characters": lambda: characters(known, terminal),
        "character": lambda: character(known, terminal),
        "download": lambda: download(known, terminal),
        "scale": lambda: scale(known, terminal),
        "models": lambda: models(known, terminal),
        "verify": lambda: models(known, terminal),
        "delete": lambda: models(known, terminal),
        "test": lambda: test(others, terminal),
        "bench": lambda: bench(others, terminal),
        "password": lambda: password(known, terminal),
        "doctor": lambda: doctor(known, terminal),
    }
    try:
        return commands[known.command]()
    except DeckError as error:
        terminal.error(error)
        return 2 if isinstance(error, InputError) else 1
    except KeyboardInterrupt:
        terminal.say("stopped")
        return 1


def make_parser(terminal: Terminal) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="llamadeck", description=terminal.text("about"), allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    run_parser = commands.add_parser("run", help=terminal.text("help_run"), allow_abbrev=False)
    for name, default in (("port", str(DEFAULT_PORT)), ("host", DEFAULT_HOST)):
        run_parser.add_argument(f"--{name}", default=default, help=terminal.text(f"help_{name}", default=default))
    run_parser.add_argument("--model", metavar="NAME", help=terminal.text("help_model"))
    run_parser.add_argument("--force", action="store_true", help=terminal.text("help_force"))
    for name, metavar in (("public-url", "URL"), ("cors-origin", "ORIGIN")):
        help_text = terminal.text(f"help_{name.replace('-', '_')}")
        run_parser.add_argument(f"--{name}", metavar=metavar, action="append", default=[], help=help_text)
    run_parser.add_argument("--cpu", action="store_true", help=terminal.text("help_cpu"))
    commands.add_parser("starter", help=terminal.text("help_starter"), allow_abbrev=False)
    for name, add_arguments in (("fit", add_fit_arguments), ("gpus", add_gpus_arguments)):
        add_arguments(commands.add_parser(name, help=terminal.text(f"help_{name}"), allow_abbrev=False), terminal)
    listing = commands.add_parser("characters", help=terminal.text("help_characters"), allow_abbrev=False)
    listing.add_argument("--json", action="store_true", help=terminal.text("help_json"))
    add_character_arguments(
        commands.add_parser("character", help=terminal.text("help_character"), allow_abbrev=False), terminal
    )
    add_model_commands(commands, terminal)
    add_operating_commands(commands, terminal)
    add_scale_arguments(commands.add_parser("scale", help=terminal.text("help_scale"), allow_abbrev=False), terminal)
    for name in PASSED_ON:
        about = terminal.text(f"help_{name}")
        # What takes the arguments explains them itself, but pytest does so only after all that comes before it.
        commands.add_parser(name, help=about, description=about, add_help=name == "test", allow_abbrev=False)
    return parser


def add_model_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser], terminal: Terminal) -> None:
    """The commands that fetch and keep models."""
    parsers = {
        name: commands.add_parser(name, help=terminal.text(f"help_{name}"), allow_abbrev=False)
        for name in ("download", "models", "verify", "delete")
    }
    parsers["download"].add_argument("target", metavar="NAME[:BRANCH]", help=terminal.text("help_download_target"))
    for name, metavar in (("revision", "R"), ("endpoint", "URL")):
        parsers["download"].add_argument(f"--{name}", metavar=metavar, help=terminal.text(f"help_download_{name}"))
    sources = ("huggingface", "modelscope")
    source_help = terminal.text("help_download_source")
    parsers["download"].add_argument("--source", choices=sources, default=sources[0], help=source_help)
    parsers["models"].add_argument("--json", action="store_true", help=terminal.text("help_json"))
    for name in ("verify", "delete"):
        parsers[name].add_argument("name", metavar="NAME", help=terminal.text("help_model_name"))
    parsers["delete"].add_argument("--yes", action="store_true", help=terminal.text("help_delete_yes"))


def add_operating_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser], terminal: Terminal) -> None:
    """The commands for whoever runs this as a service."""
    password_parser = commands.add_parser("password", help=terminal.text("help_password"), allow_abbrev=False)
    password_parser.add_argument("--remove", action="store_true", help=terminal.text("help_password_remove"))
    doctor_parser = commands.add_parser("doctor", help=terminal.text("help_doctor"), allow_abbrev=False)
    doctor_parser.add_argument("--json", action="store_true", help=terminal.text("help_json"))
    for name, default in (("port", str(DEFAULT_PORT)), ("host", DEFAULT_HOST)):
        doctor_parser.add_argument(f"--{name}", default=default, help=terminal.text(f"help_{name}", default=default))


def add_fit_arguments(parser: argparse.ArgumentParser, terminal: Terminal) -> None:
    """Numbers are read as text, so that a wrong one gets a sentence of ours."""
    parser.add_argument("target", metavar="TARGET", help=terminal.text("help_fit_target"))
    cards = parser.add_mutually_exclusive_group()
    cards.add_argument("--gpu", metavar="NAME", help=terminal.text("help_fit_gpu"))
    cards.add_argument("--vram-mib", metavar="N", help=terminal.text("help_fit_vram_mib"))
    for name, metavar in (("revision", "R"), ("context", "N"), ("chats", "N"), ("kernel", "K")):
        parser.add_argument(f"--{name}", metavar=metavar, help=terminal.text(f"help_fit_{name}"))
    parser.add_argument("--json", action="store_true", help=terminal.text("help_json"))


def add_gpus_arguments(parser: argparse.ArgumentParser, terminal: Terminal) -> None:
    parser.add_argument("--known", action="store_true", help=terminal.text("help_gpus_known"))
    parser.add_argument("--json", action="store_true", help=terminal.text("help_json"))


def add_scale_arguments(parser: argparse.ArgumentParser, terminal: Terminal) -> None:
    parser.add_argument("target", metavar="MODEL", help=terminal.text("help_scale_target"))
    for name, metavar in (("tensor-parallel", "N"), ("pipeline-parallel", "M"), ("context", "N"), ("gpu", "NAME")):
        help_text = terminal.text(f"help_scale_{name.replace('-', '_')}")
        parser.add_argument(f"--{name}", metavar=metavar, help=help_text)
    parser.add_argument("--hosts", metavar="HOST", nargs="+", help=terminal.text("help_scale_hosts"))
    port_help = terminal.text("help_scale_port", default=SCALE_PORT)
    parser.add_argument("--port", default=str(SCALE_PORT), help=port_help)
    parser.add_argument("--start", action="store_true", help=terminal.text("help_scale_start"))


def add_character_arguments(parser: argparse.ArgumentParser, terminal: Terminal) -> None:
    """What is done with characters is an argument of its own, with further ones."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    importing = actions.add_parser("import", help=terminal.text("help_character_import"), allow_abbrev=False)
    importing.add_argument("files", metavar="FILE", nargs="+", help=terminal.text("help_character_files"))
    exporting = actions.add_parser("export", help=terminal.text("help_character_export"), allow_abbrev=False)
    exporting.add_argument("name", metavar="NAME", help=terminal.text("help_character_name"))
    for option, metavar in (("format", "F"), ("out", "FILE")):
        exporting.add_argument(f"--{option}", metavar=metavar, help=terminal.text(f"help_character_{option}"))


def run(known: argparse.Namespace, terminal: Terminal) -> int:
    """Start the dashboard in this process's place, with a model on disk if that can be had."""
    from core.access.public import CORS_ORIGINS, PUBLIC_URLS, cors_origins, public_urls

    host, port, model = known.host, parse_port(known.port), known.model
    secret = take_given()
    environment = dict(os.environ)
    for variable, given in ((PUBLIC_URLS, known.public_url), (CORS_ORIGINS, known.cors_origin)):
        if given:
            environment[variable] = " ".join(given)
    urls, _ = public_urls(environment), cors_origins(environment)
    check_address(host, port)
    check_exposure(host, secret)
    level_in()
    ensure_model(model, terminal)
    note_listening(host, environment)
    for name in ("LLAMADECK_LOAD", "LLAMADECK_LOAD_ANYWAY"):
        environment.pop(name, None)
    if model:
        environment["LLAMADECK_LOAD"] = model
    if known.force:
        environment["LLAMADECK_LOAD_ANYWAY"] = "1"
    if known.cpu:
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


def check_exposure(host: str, given: Given) -> None:
    """Raise where others could reach the dashboard and nothing would ask them who they are."""
    from core.access.password import check_new
    from core.access.secret_file import SecretFile
    from core.access.single_sign_on import is_set_up

    if given.text or given.file:
        check_new(given.text)
    elif not is_loopback(host) and not SecretFile().read().password and not is_set_up():
        raise InputError("exposed", host=host)


def ensure_model(name: str | None, terminal: Terminal) -> None:
    """See that models/ holds the model called `name`, or any; without a name the dashboard also starts with none."""
    from core.library import scan as library
    from core.starter import build as starter_model

    if name == starter_model.NAME:
        starter_model.build(terminal.steps("starter"))
    if name:
        library.find(name)
        return
    try:
        starter_model.ensure_model(terminal.steps("starter"))
    except DeckError as error:
        terminal.error(error)
        terminal.say("no_model")


def starter(terminal: Terminal) -> int:
    """Build the starter model, or take the finished build."""
    from core.starter import build as starter_model

    path = starter_model.build(terminal.steps("starter"))
    terminal.say("starter_done", path=str(path))
    return 0


def fit(known: argparse.Namespace, terminal: Terminal) -> int:
    from cli import fit as fit_command

    return fit_command.run(known, terminal)


def gpus(known: argparse.Namespace, terminal: Terminal) -> int:
    from cli import gpus as gpus_command

    return gpus_command.run(known, terminal)


def characters(known: argparse.Namespace, terminal: Terminal) -> int:
    from cli import characters as character_command

    return character_command.list_all(known, terminal)


def character(known: argparse.Namespace, terminal: Terminal) -> int:
    from cli import characters as character_command

    return character_command.run(known, terminal)


def download(known: argparse.Namespace, terminal: Terminal) -> int:
    from cli import download as download_command

    return download_command.run(known, terminal)


def scale(known: argparse.Namespace, terminal: Terminal) -> int:
    from cli import scale as scale_command

    port = parse_port(known.port)
    if known.start:
        check_address(DEFAULT_HOST, port)
    return scale_command.run(known, port, terminal)


def models(known: argparse.Namespace, terminal: Terminal) -> int:
    from cli import models as models_command

    run_command = {"models": models_command.run_models, "verify": models_command.run_verify}
    return run_command.get(known.command, models_command.run_delete)(known, terminal)


def password(known: argparse.Namespace, terminal: Terminal) -> int:
    from cli import password as password_command

    return password_command.run(known.remove, terminal)


def doctor(known: argparse.Namespace, terminal: Terminal) -> int:
    from cli import doctor as command

    return command.run(known.host, parse_port(known.port), known.json, terminal)


def test(arguments: Sequence[str], terminal: Terminal) -> int:
    from tests import run as tests_run

    return tests_run.main(arguments, terminal)


def bench(arguments: Sequence[str], terminal: Terminal) -> int:
    from benchmarks import bench as benchmark

    return benchmark.main(arguments, terminal)


def say_unwritten(error: OutputError) -> None:
    Terminal().error(DeckError("output_failed", reason=error.reason))


if __name__ == "__main__":
    sys.exit(guarded(lambda: explained(lambda: main(sys.argv[1:])), say_unwritten))
