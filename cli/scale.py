"""The command `scale`: prints or runs the `vllm serve` that fits a model and the GPUs."""

from __future__ import annotations

import secrets
import shlex
import signal
import subprocess
from argparse import ArgumentParser, Namespace
from pathlib import Path

from cli.fit import find_checkpoint, find_devices, parse_context, parse_whole, say_other_cards
from core.bootstrap.pip import InstallError
from core.common.errors import DeckError, EngineError, InputError
from core.common.paths import DEFAULT_HOST
from core.common.signals import StopSignals
from core.common.terminal import Terminal
from core.gpu.snapshot import read_snapshot
from core.memory.device_memory import DeviceMemory
from core.remote.address import keep_key, key_of
from core.remote.connection import list_models
from core.remote.http import HttpLimits
from core.remote.selection import RemoteSelection, forget_selection, write_selection
from core.server.listening import check_address, parse_port
from core.vllm.plan import ScalePlan, make_scale_plan
from core.vllm.server import VllmServer, ensure_venv

DEFAULT_PORT = 8000
MAX_GPUS = 1024
DOES_NOT_FIT = 3
ASK = HttpLimits(connect_s=1.0, whole_s=5.0)


def add_arguments(parser: ArgumentParser, terminal: Terminal) -> None:
    parser.add_argument("target", metavar="MODEL", help=terminal.text("help_scale_target"))
    for name, metavar in (("tensor-parallel", "N"), ("pipeline-parallel", "M"), ("context", "N"), ("gpu", "NAME")):
        help_text = terminal.text(f"help_scale_{name.replace('-', '_')}")
        parser.add_argument(f"--{name}", metavar=metavar, help=help_text)
    parser.add_argument("--hosts", metavar="HOST", nargs="+", help=terminal.text("help_scale_hosts"))
    port_help = terminal.text("help_scale_port", default=DEFAULT_PORT)
    parser.add_argument("--port", default=str(DEFAULT_PORT), help=port_help)
    parser.add_argument("--start", action="store_true", help=terminal.text("help_scale_start"))


def run(arguments: Namespace, terminal: Terminal) -> int:
    """The exit code: 0 printed, 1 when what was served has ended, 3 where the plan says that it does not fit."""
    port = parse_port(arguments.port)
    if arguments.start:
        check_address(DEFAULT_HOST, port)
    plan = find_plan(arguments)
    say_other_cards(arguments.gpu, terminal)
    show(plan, port, terminal.to_stdout())
    if not plan.is_cpu and not plan.fits:
        terminal.say("scale_fits_not", needed=plan.needed_mib, budget=plan.budget_mib)
        return DOES_NOT_FIT
    if arguments.start:
        with StopSignals(signal.SIGINT, signal.SIGTERM):
            serve(plan, port, terminal)
    return 0


def find_plan(arguments: Namespace) -> ScalePlan:
    checkpoint = find_checkpoint(arguments.target, None)
    if arguments.start and (checkpoint.path is None or arguments.gpu):
        raise InputError("scale_start", model=checkpoint.name)
    tensor = _whole("--tensor-parallel", arguments.tensor_parallel)
    pipeline = _whole("--pipeline-parallel", arguments.pipeline_parallel)
    hosts = arguments.hosts or []
    devices = _devices(arguments.gpu, tensor, pipeline, max(1, len(hosts)))
    return make_scale_plan(checkpoint, devices, hosts, tensor, pipeline, parse_context(arguments.context) or 0)


def _whole(name: str, text: str | None) -> int | None:
    return None if text is None else parse_whole(name, text, 1, MAX_GPUS)


def _devices(gpu: str | None, tensor: int | None, pipeline: int | None, num_hosts: int) -> list[DeviceMemory]:
    """The GPUs of each host: this machine's, or as many as are needed of the kind that was named."""
    if gpu is not None:
        return find_devices(gpu, None)[:1] * max(8, -(-(tensor or 1) * (pipeline or 1) // num_hosts))
    has_gpu = any(one.error is None and one.total_mib for one in read_snapshot().gpus)
    return find_devices(None, None) if has_gpu else []


def show(plan: ScalePlan, port: int, out: Terminal) -> None:
    """The commands as they are to be typed, each under the host that it is for."""
    if plan.is_cpu:
        out.say("scale_cpu")
    else:
        out.say("scale_gpus", tensor=plan.tensor_parallel, pipeline=plan.pipeline_parallel, needed=plan.needed_mib,
                budget=plan.budget_mib)  # fmt: skip
    for host, command in plan.ray_commands():
        out.say("scale_on_host", host=host)
        out.write(f"  {shlex.join(command)}")
    if plan.hosts:
        out.say("scale_on_host", host=plan.hosts[0])
    settings = " ".join(f"{name}={value}" for name, value in plan.environment().items())
    out.write(f"  {settings} {shlex.join(plan.serve_command(port))}")


def serve(plan: ScalePlan, port: int, terminal: Terminal) -> None:
    """Run vLLM until it ends or Ctrl-C, with the dashboard connected to it."""
    try:
        folder = ensure_venv(plan.is_cpu, terminal, with_ray=len(plan.hosts) > 1)
    except InstallError as error:
        terminal.write(error.last_lines())
        raise
    start_ray(plan, folder, terminal)
    address = f"http://127.0.0.1:{port}"
    # The same each time: a dashboard that lost this server finds it again.
    selection, key = RemoteSelection(address, plan.model), key_of(address) or secrets.token_urlsafe(24)
    with VllmServer(folder, plan.serve_command(port), plan.environment() | {"VLLM_API_KEY": key}) as server:
        terminal.say("scale_starting", log=str(server.log_path))
        server.wait_until_healthy(lambda: is_served(address, key, plan.model), terminal)
        keep_key(address, key)
        write_selection(selection)
        terminal.say("scale_connected", address=address)
        try:
            server.wait()
        except KeyboardInterrupt:
            # A dashboard must not look for what is gone; what a person chose meanwhile stays.
            forget_selection(selection)
            raise


def start_ray(plan: ScalePlan, folder: Path, terminal: Terminal) -> None:
    """Ray's head on this machine; the others join by hand, and vLLM waits for them."""
    for host, command in plan.ray_commands()[:1]:
        terminal.say("scale_ray", host=host)
        found = subprocess.run([str(folder / "bin" / command[0]), *command[1:]], capture_output=True, text=True)
        if found.returncode:
            raise EngineError("scale_ray_failed", why=(found.stderr or found.stdout).strip()[-300:])


def is_served(address: str, key: str, model: str) -> bool:
    try:
        return any(found.name == model for found in list_models(address, key, ASK))
    except DeckError:
        return False
