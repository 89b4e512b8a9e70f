"""The command `quantize`: makes a GPTQ checkpoint of a 16-bit one. Tells its plan before, its progress meanwhile."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path

from cli.download import progress_text as download_text
from cli.download import size_text, time_text
from cli.fit import find_folder
from core.checkpoint.adapter_folders import find_adapter
from core.checkpoint.adapters import is_other_base
from core.checkpoint.weight_files import is_plain_name
from core.common.errors import InputError
from core.common.host_memory import available_bytes
from core.common.i18n import translate
from core.common.paths import models_dir
from core.common.signals import StopSignals
from core.common.terminal import Terminal
from core.common.values import printable, quoted_text
from core.gpu.snapshot import read_snapshot
from core.gpu.torch_support import installed_torch, usable_gpus
from core.hub.endpoints import MODELSCOPE, checked_endpoint
from core.hub.source import read_source
from core.hub.tokens import token_for
from core.memory.device_memory import DeviceMemory
from core.quantize.answer import answer_words
from core.quantize.calibration import check_calibration
from core.quantize.card import loss_words
from core.quantize.folders import check_room, job_folder
from core.quantize.job import QuantizeJob
from core.quantize.last_failure import read_failure
from core.quantize.options import (
    BITS,
    DEFAULT_GROUP_SIZE,
    GROUP_SIZES,
    MergeStep,
    QuantizeOptions,
    check_group_size,
    check_name,
    merge_steps,
    result_name,
)
from core.quantize.plan import QuantizePlan, default_device, plan_job, verdicts
from core.quantize.progress import QuantizeState
from core.quantize.push import check_push, push
from core.quantize.queue import QuantizeQueue
from core.quantize.target import Target, folder_target, repo_target

REDRAW_S = 0.2


def add_arguments(parser: ArgumentParser, terminal: Terminal) -> None:
    """Numbers are read as text, so that a wrong one gets a sentence of ours."""
    parser.add_argument("target", metavar="FOLDER|REPO", help=terminal.text("help_quantize_target"))
    values = (("bits", "4|8"), ("group-size", "N"), ("calibration", "FILE"), ("name", "NAME"), ("push", "OWNER/NAME"),
              ("revision", "R"), ("endpoint", "URL"))  # fmt: skip
    for name, metavar in values:
        parser.add_argument(f"--{name}", metavar=metavar, help=terminal.text(f"help_quantize_{name.replace('-', '_')}"))
    parser.add_argument("--adapter", metavar="A", action="append", default=[],
                        help=terminal.text("help_quantize_adapter"))  # fmt: skip
    for name in ("act-order", "asymmetric", "all-experts", "cpu", "plan"):
        parser.add_argument(
            f"--{name}", action="store_true", help=terminal.text(f"help_quantize_{name.replace('-', '_')}")
        )
    sources = ("huggingface", "modelscope")
    parser.add_argument("--source", choices=sources, default=sources[0], help=terminal.text("help_download_source"))


def run(arguments: Namespace, terminal: Terminal) -> int:
    """Quantize what the arguments name. Ctrl-C keeps what can go on later; the exit code is then 1."""
    endpoint = checked_endpoint(arguments.endpoint or (MODELSCOPE if arguments.source == "modelscope" else None))
    if arguments.push is not None:
        check_push(arguments.push, checked_endpoint(None))
    target = find_target(arguments, endpoint)
    options = read_options(arguments, target)
    devices = [] if arguments.cpu else find_devices()
    device = default_device(devices)
    name = check_name(arguments.name or result_name(target.title, options))
    steps = merge_steps(target.model, options)
    for step in steps:
        if is_other_base(step.adapter, (target.title, target.repo.rpartition("/")[2])):
            terminal.say("quantize_other_base", adapter=step.adapter.name, base=step.adapter.base_name)
    if not target.is_meta:
        check_group_size(target.model, options)
    if options.calibration is not None:
        check_calibration(options.calibration, target.tokenizer_folder)
    plan = plan_job(target.model, options, device, target.is_meta)
    show_plan(target, options, plan, devices, device, terminal)
    show_parts(name, steps, options, terminal)
    if (failure := read_failure(job_folder(name))) is not None:
        terminal.say("quantize_failed_before", name=name, reason=failure.sentence(terminal.language))
    check_room(name, plan.disk_bytes + target.fetched_bytes, target.source)
    if arguments.plan:
        return 0
    folder = make(target, options, device, name, terminal)
    if folder is None:
        return 1
    if arguments.push is not None:
        terminal.say("quantize_pushing", repo=arguments.push)
        terminal.say("quantize_pushed", address=push(folder, arguments.push, checked_endpoint(None)))
    return 0


def find_target(arguments: Namespace, endpoint: str) -> Target:
    """The folder or the repository that the arguments name. Raises DeckError for what cannot be quantized."""
    folder = find_folder(arguments.target)
    # With a revision a bare name is a repository's, also where models/ has a folder of that name.
    if folder is not None and not (arguments.revision and is_plain_name(arguments.target)):
        if arguments.revision and folder.is_dir():
            raise InputError("revision_of_folder", folder=printable(arguments.target))
        return folder_target(folder)
    source = read_source(arguments.target, arguments.source, endpoint, arguments.revision)
    if "/" not in source.address.repo:
        raise InputError("quantize_target", name=printable(arguments.target[:60]))
    return repo_target(source, token_for(source.endpoint))


def read_options(arguments: Namespace, target: Target) -> QuantizeOptions:
    """Raises InputError for numbers that are none and adapters that are not there."""
    group = arguments.group_size
    return QuantizeOptions(
        bits=parse_choice("quantize_bits", arguments.bits or str(BITS[0]), BITS),
        group_size=parse_choice("quantize_group_size", group or str(DEFAULT_GROUP_SIZE), GROUP_SIZES),
        is_act_order=arguments.act_order,
        is_symmetric=not arguments.asymmetric,
        adapters=tuple(find_adapter(text, target.folder) for text in arguments.adapter),
        calibration=Path(os.path.expanduser(arguments.calibration)).absolute() if arguments.calibration else None,
        sees_all=arguments.all_experts,
    )


def parse_choice(error: str, text: str, known: Sequence[int]) -> int:
    """One of the numbers `known`, as QuantizeOptions takes them. Raises InputError, also for what is no number."""
    if (found := {str(one): one for one in known}.get(text.strip())) is None:
        raise InputError(error, value=quoted_text(text), known=", ".join(map(str, known)))
    return found


def find_devices() -> list[DeviceMemory]:
    """The GPUs of this machine that torch can use, with what is free on each; none where it runs on the CPU."""
    usable = usable_gpus(read_snapshot().gpus, installed_torch())
    return [DeviceMemory.measured(gpu) for gpu in usable if gpu.error is None and gpu.total_mib]


def show_plan(
    target: Target,
    options: QuantizeOptions,
    plan: QuantizePlan,
    devices: list[DeviceMemory],
    device: str,
    out: Terminal,
) -> None:
    """What it takes and what comes of it, before anything is done."""
    model = target.model
    name, size = target.repo or target.title, size_text(model.size_bytes)
    out.say("quantize_begins", model=name, label=options.label, size=size)
    disk, ram, result = (size_text(value) for value in (plan.disk_bytes, plan.ram_bytes, plan.result_bytes))
    out.say("quantize_plan", time=time_text(plan.time_s), disk=disk, ram=ram, result=result)
    if plan.ram_bytes > available_bytes():
        out.say("quantize_ram", free=size_text(available_bytes()))
    if device != "cpu":
        chosen = devices[int(device.partition(":")[2])]
        out.say("quantize_gpu", gpu=chosen.name, vram=size_text(plan.vram_bytes))
        if plan.vram_bytes > chosen.available_mib << 20:
            out.say("quantize_vram", free=size_text(chosen.available_mib << 20))
    elif not devices:
        out.say("quantize_cpu")
    out.say("quantize_resumes" if plan.resumes else "quantize_begins_anew")
    if devices and not target.is_meta:
        fitting = [choice for choice, report in verdicts(model, options, devices) if report.fits]
        if fitting:
            out.say("quantize_fits", choices="; ".join(choice.label for choice in fitting))
        else:
            out.say("quantize_fits_not")


def show_parts(name: str, steps: Sequence[MergeStep], options: QuantizeOptions, out: Terminal) -> None:
    """Where the result will lie, and what is made of it beside the model."""
    out.say("quantize_into", folder=printable(str(models_dir() / name)))
    merges = (
        out.text("quantize_merge", adapter=one.name, rank=one.rank, folder=printable(str(one.path)))
        for one in (step.adapter for step in steps)
    )
    if steps:
        out.say("quantize_merges", adapters=", ".join(merges))
    if options.calibration is None:
        out.say("quantize_calibrated_set")
    else:
        out.say("quantize_calibrated", file=printable(str(options.calibration)))


def make(target: Target, options: QuantizeOptions, device: str, name: str, terminal: Terminal) -> Path | None:
    """Run the job to its end; the finished folder, or None after a Ctrl-C. Raises DeckError where it fails."""
    queue = QuantizeQueue()
    job = None
    try:
        with StopSignals(signal.SIGINT, signal.SIGTERM) as stop_signals:
            job = queue.add(target, options, device, name)
            watch(job, terminal, stop_signals)
    except KeyboardInterrupt:
        if job is not None:
            stop(queue, job, terminal)
        return None
    finally:
        queue.close()
    state = job.snapshot()
    if state.error is not None:
        show_left(state, terminal)
        raise state.error
    assert state.result is not None
    terminal.say("quantize_done", folder=printable(str(models_dir() / name)))
    for key, words in (loss_words(state.result), answer_words(state.result, options, terminal.language)):
        terminal.write(translate(terminal.language, f"quantize.{key}", **words))
    return models_dir() / name


def show_left(state: QuantizeState, terminal: Terminal) -> None:
    """Where the half-made work of a job that failed lies, and what can be done with it."""
    if not state.left:
        return
    for one in state.left:
        terminal.say("quantize_left", folder=printable(str(one.folder)), size=size_text(one.num_bytes))
    command = f"./llamadeck {shlex.join(sys.argv[1:])}"
    removal = shlex.join(["rm", "-r", *(str(one.folder) for one in state.left)])
    terminal.say("quantize_left_next", command=command, removal=removal)


def stop(queue: QuantizeQueue, job: QuantizeJob, terminal: Terminal) -> None:
    """What can go on later is kept; of all else nothing stays."""
    if job.can_pause:
        queue.pause(job.id)
        job.wait()
        terminal.say("quantize_stopped", command=f"./llamadeck {shlex.join(sys.argv[1:])}")
        return
    queue.cancel(job.id)
    job.wait()
    terminal.say("quantize_cancelled")


def watch(job: QuantizeJob, terminal: Terminal, stop_signals: StopSignals) -> None:
    """Show the job's progress until it rests. Raises KeyboardInterrupt for a Ctrl-C, also for one that got lost."""
    while not job.wait(REDRAW_S):
        if stop_signals.has_come:
            raise KeyboardInterrupt
        state = job.snapshot()
        terminal.step(progress_text(state, terminal), fraction_of(state))


def fraction_of(state: QuantizeState) -> float:
    """What the bar shows: while a source is fetched, of its bytes."""
    if state.stage == "download" and state.download is not None and state.download.total_bytes:
        return state.download.done_bytes / state.download.total_bytes
    return state.fraction


def progress_text(state: QuantizeState, terminal: Terminal) -> str:
    """What stands beside the bar: "layer 3 of 32, 41 s a layer, 19:49 left", or the stage."""
    if state.stage == "download" and state.download is not None:
        return download_text(state.download, terminal)
    if state.stage == "quantize" and state.layers:
        # Where no line is replaced, one a layer is enough.
        if state.left_s is None or state.layer_s is None or not sys.stderr.isatty():
            return translate(terminal.language, "quantize.layer", layer=state.layer, layers=state.layers)
        return translate(terminal.language, "quantize.layer_left", layer=state.layer, layers=state.layers,
                             seconds=f"{state.layer_s:.1f}", left=time_text(state.left_s))  # fmt: skip
    return translate(terminal.language, f"quantize.stage_{state.stage}")
