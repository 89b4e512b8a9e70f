"""The command `fit`: says whether a model fits GPUs."""

from __future__ import annotations

import difflib
import json
import math
import os
import re
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

from core.checkpoint.checkpoint import Checkpoint, read_checkpoint
from core.checkpoint.weight_files import is_plain_name
from core.common.errors import CheckpointError, EngineError, InputError
from core.common.i18n import translate
from core.common.paths import models_dir
from core.common.terminal import Terminal, table
from core.common.values import printable, quoted_text
from core.gpu.known_gpus import lookup
from core.gpu.snapshot import read_snapshot
from core.gpu.torch_support import find_gpu_error, installed_torch, usable_gpus
from core.hub.endpoints import checked_endpoint
from core.hub.source import read_source
from core.library import catalogue
from core.library.recommended import RecommendedModel, Verdict, best_of, verdicts_for
from core.library.scan import locate
from core.memory.device_memory import DeviceMemory
from core.memory.fit import MAX_CHATS, FitReport, check_fit
from core.memory.kernels.llamadeck import LLAMADECK
from core.memory.kernels.registry import has_c_compiler, has_compiler
from core.memory.plan import MemoryPlan
from core.memory.rental import cards_that_fit
from core.memory.sizes import MIB

FITS, UNUSABLE, BAD_INPUT, DOES_NOT_FIT = 0, 1, 2, 3
# What most GPUs have that people rent by their memory, or more.
ASSUMED_CAPABILITY = (8, 6)
MAX_VRAM_MIB = 10_000_000
WHOLE = re.compile(r"[+-]?[0-9]{1,18}")
# How a folder is written that is not in models/: whatever else has a slash may be a repository.
FOLDER_STARTS = ("/", "./", "../")
NUM_SUGGESTIONS = 3
# Names of kernels that are understood until 1.0.
RENAMED_KERNELS = {"deck": LLAMADECK.name}


def add_arguments(parser: ArgumentParser, terminal: Terminal) -> None:
    """Numbers are read as text, so that a wrong one gets a sentence of ours."""
    parser.add_argument("target", metavar="TARGET", nargs="?", help=terminal.text("help_fit_target"))
    parser.add_argument("--best", action="store_true", help=terminal.text("help_fit_best"))
    gpus = parser.add_mutually_exclusive_group()
    gpus.add_argument("--gpu", metavar="NAME", help=terminal.text("help_fit_gpu"))
    gpus.add_argument("--vram-mib", metavar="N", help=terminal.text("help_fit_vram_mib"))
    for name, metavar in (("revision", "R"), ("context", "N"), ("chats", "N"), ("kernel", "K")):
        parser.add_argument(f"--{name}", metavar=metavar, help=terminal.text(f"help_fit_{name}"))
    parser.add_argument("--json", action="store_true", help=terminal.text("help_json"))


def run(arguments: Namespace, terminal: Terminal) -> int:
    """Print the verdict. The exit code: 0 fits, 3 does not, 2 for a model that this program cannot run at all, 1 for
    GPUs of this machine that cannot be used, whatever their memory."""
    if arguments.kernel in RENAMED_KERNELS:
        old, arguments.kernel = arguments.kernel, RENAMED_KERNELS[arguments.kernel]
        terminal.say("fit_kernel_renamed", old=old, new=arguments.kernel)
    if arguments.best or arguments.target is None:
        return run_best(arguments, terminal)
    try:
        report = verdict(arguments)
    except (CheckpointError, EngineError) as error:
        terminal.error(error)
        return BAD_INPUT
    unused = None if arguments.gpu or arguments.vram_mib else find_gpu_error(read_snapshot(), installed_torch())
    out = terminal.to_stdout()
    if arguments.json:
        reason = {} if unused is None else {"unused": str(unused)}
        out.write(json.dumps(as_object(report) | reason, ensure_ascii=False, indent=1))
    else:
        show(report, out)
        if arguments.vram_mib:
            out.say("fit_assumed", capability="{}.{}".format(*ASSUMED_CAPABILITY))
    if unused is not None:
        terminal.error(unused)
        return UNUSABLE
    return FITS if report.fits else DOES_NOT_FIT


def run_best(arguments: Namespace, terminal: Terminal) -> int:
    """Print the recommended models with their verdicts, the best that fits marked. The exit code: 0, or 3 for none."""
    if not arguments.best or arguments.target is not None:
        raise InputError("fit_best_or_target")
    devices = tuple(find_devices(arguments.gpu, arguments.vram_mib))
    verdicts = verdicts_for(devices)
    best = best_of(verdicts)
    out = terminal.to_stdout()
    if arguments.json:
        listed = [best_object(model, report, model is best) for model, report in verdicts]
        out.write(json.dumps(listed, ensure_ascii=False, indent=1))
        return DOES_NOT_FIT if best is None else FITS
    head = [out.text(f"fit_column_{name}") for name in ("model", "verdict", "needed", "longest", "licence")]
    rows = [
        [model.repo, out.text(f"fit_{mark}"), needed, longest, model.license_name]
        for model, report in verdicts
        for mark, needed, longest in [best_cells(report, model is best)]
    ]
    for line in table([head, *rows]):
        out.write(line)
    card = " + ".join(device.name for device in devices)
    if best is None:
        out.say("fit_best_none", card=card)
        return DOES_NOT_FIT
    out.say("fit_best_is", card=card, model=best.repo)
    return FITS


def best_cells(report: Verdict, is_best: bool) -> tuple[str, str, str]:
    """The verdict's word, the MiB that are needed, and the longest context."""
    if not isinstance(report, FitReport):
        return "no_kernel", "-", "-"
    mark = "best" if is_best else "yes" if report.fits else "no"
    return mark, f"{math.ceil(report.needed_mib)}", f"{report.max_context}" if report.fits else "-"


def best_object(model: RecommendedModel, report: Verdict, is_best: bool) -> dict[str, Any]:
    found = as_object(report) if isinstance(report, FitReport) else {"fits": False, "reason": str(report)}
    return {"repo": model.repo, "billions": model.billions, "licence": model.license_name, "best": is_best} | found


def verdict(arguments: Namespace) -> FitReport:
    """What check_fit says about the command's arguments. Raises DeckError for what is wrong with them."""
    num_chats = parse_whole("--chats", arguments.chats, 1, MAX_CHATS)
    context_tokens = parse_context(arguments.context)
    devices = find_devices(arguments.gpu, arguments.vram_mib)
    checkpoint = find_checkpoint(arguments.target, arguments.revision)
    if context_tokens == 0:
        limit = checkpoint.max_context_tokens
        raise InputError("context_range", model=checkpoint.name, asked=0, limit=limit)
    return check_fit(checkpoint, devices, context_tokens or 0, num_chats, arguments.kernel)


def parse_context(text: str | None) -> int | None:
    """A context in tokens, whose range is the model's to say; None where none was asked for."""
    if text is None:
        return None
    if not WHOLE.fullmatch(text):
        raise InputError("not_whole", name="--context", value=quoted_text(text))
    return int(text)


def parse_whole(name: str, text: str | None, low: int, high: int) -> int:
    """The number after the option `name`, `low` where it was left out."""
    if text is None:
        return low
    if not WHOLE.fullmatch(text) or not low <= int(text) <= high:
        raise InputError("setting_whole", name=name, value=quoted_text(text), low=low, high=high)
    return int(text)


def find_devices(gpu: str | None, vram_mib: str | None) -> list[DeviceMemory]:
    """The GPU that was named, else the GPUs of this machine that can be read. Raises InputError for none."""
    if gpu is not None:
        return [DeviceMemory.planned(lookup(gpu))]
    if vram_mib is not None:
        total_mib = parse_whole("--vram-mib", vram_mib, 1, MAX_VRAM_MIB)
        return [DeviceMemory.empty(f"GPU ({total_mib} MiB)", total_mib, ASSUMED_CAPABILITY)]
    gpus = read_snapshot().gpus
    readable = [one for one in gpus if one.error is None and one.total_mib]
    if not readable:
        raise InputError("no_gpu_to_ask")
    meant = usable_gpus(gpus, installed_torch()) or readable
    return [DeviceMemory.measured(one, has_compiler=has_compiler(), has_c_compiler=has_c_compiler()) for one in meant]


def find_checkpoint(target: str, revision: str | None) -> Checkpoint:
    """The model that `target` names: a folder, else a catalogue entry, else a repository on the Hub.

    With a `revision` a repository is meant, also where models/ has a folder of that name.
    """
    folder = find_folder(target)
    if folder is not None and not (revision and is_plain_name(target)):
        if revision:
            raise InputError("revision_of_folder", folder=printable(target))
        return read_checkpoint(folder)
    try:
        return catalogue.checkpoint(catalogue.find(target, revision))
    except InputError as error:
        if error.key != "unknown_catalogue":
            raise
    source = read_source(target, "huggingface", checked_endpoint(None), revision)
    if "/" not in source.address.repo:
        raise InputError("unknown_target", name=quoted_text(target), near=near_targets(source.address.repo))
    # The HTTP client takes longer to import than a verdict takes to compute.
    from core.hub.branches import read_remote
    from core.hub.tokens import token_for

    return read_remote(source, token_for(source.endpoint))


def find_folder(target: str) -> Path | None:
    """The folder that `target` names, or None where it can only be a repository's name."""
    path = os.path.expanduser(target)
    if path in (".", "..") or path.startswith(FOLDER_STARTS):
        return Path(os.path.abspath(path))
    places = [locate(path), Path(os.path.abspath(path))] if path.strip() else []
    return next((place for place in places if os.path.isdir(place)), None)


def near_targets(name: str) -> str:
    """The names of folders and catalogue entries that are spelled most like `name`."""
    models = models_dir()
    folders = sorted(os.listdir(models)) if os.path.isdir(models) else []
    names = {each.rpartition("/")[2].casefold(): each for each in [entry.repo for entry in catalogue.entries()]}
    names |= {printable(each).casefold(): printable(each) for each in folders if not each.startswith(".")}
    near = difflib.get_close_matches(name[:100].casefold(), names, NUM_SUGGESTIONS, cutoff=0.3)
    return ", ".join(names[each] for each in near or list(names)[:NUM_SUGGESTIONS])


def parts_mib(plan: MemoryPlan) -> dict[str, float]:
    """The plan's parts, which add up to its total: of what a load needs for a moment, only what is more than after."""
    return plan.parts_mib() | {"loading": (plan.total - plan.running) / MIB}


def sum_parts(report: FitReport) -> dict[str, float]:
    """The parts over all GPUs; they add up to report.needed_mib."""
    each = [parts_mib(plan) for plan in report.plans]
    return {name: sum(parts[name] for parts in each) for name in each[0]}


def as_object(report: FitReport) -> dict[str, Any]:
    """The verdict for programs; with several GPUs `gpus` has one entry for each that takes a part."""
    found: dict[str, Any] = {
        "fits": report.fits,
        "needed_mib": round(report.needed_mib, 2),
        "available_mib": report.available_mib,
        "margin_mib": round(report.margin_mib, 2),
        "parts": _rounded(sum_parts(report)),
        "kernel": report.load.kernel.name,
        "captured": report.load.is_captured,
        "max_context": report.max_context,
        "reason": translate("en", f"fit.{report.reason}", **report.params),
        "remedies": [translate("en", f"fit.{key}", **params) for key, params in report.remedies],
        "notes": [translate("en", f"note.{key}", **params) for key, params in report.notes],
        "context_tokens": report.load.context_tokens,
        "chats": report.load.num_slots,
        "model": report.params["model"],
        "card": report.params["card"],
    }
    if not report.fits:
        found["cards"] = [offer.name for offer in cards_that_fit(report.load)]
        found["two_cards"] = [offer.name for offer in cards_that_fit(report.load, 2)]
    if len(report.devices) > 1:
        found["gpus"] = [
            {
                "card": device.name,
                "needed_mib": round(plan.total / MIB, 2),
                "available_mib": device.available_mib,
                "parts": _rounded(parts_mib(plan)),
            }
            for plan, device in zip(report.plans, report.devices, strict=True)
        ]
    return found


def show(report: FitReport, out: Terminal) -> None:
    """The verdict for people: the sentence, the parts, what follows from them, and what would make it fit."""
    out.write(translate(out.language, f"fit.{report.reason}", **report.params))
    several = [parts_mib(plan) for plan in report.plans] if len(report.plans) > 1 else []
    if several:
        out.say("fit_several", count=len(several))
    columns = [sum_parts(report), *several]
    rows = [
        [out.text(f"fit_part_{name}"), *(f"{parts[name]:.0f}" for parts in columns)]
        for name in columns[0]
        if any(parts[name] > 0 for parts in columns)
    ]
    available = [report.available_mib, *(device.available_mib for device in report.devices if several)]
    needed = [math.ceil(report.needed_mib), *(math.ceil(plan.total / MIB) for plan in report.plans if several)]
    rows.append([out.text("fit_needed"), *(f"{number}" for number in needed)])
    rows.append([out.text("fit_available"), *(f"{number}" for number in available)])
    margins = [has - takes for has, takes in zip(available, needed, strict=True)]
    rows.append([out.text("fit_margin"), *(f"{number}" for number in margins)])
    head = ["MiB", "=" if several else "", *(device.name for device in report.devices if several)]
    for line in table([head, *rows]):
        out.write(f"  {line}")
    for name, params in report.notes:
        out.write(translate(out.language, f"note.{name}", **params))
    key = "fit_kernel" if report.max_context else "fit_no_context"
    values: dict[str, str | int] = {"kernel": report.load.kernel.name}
    if report.max_context:
        values |= {"max_context": report.max_context, "chats": report.load.num_slots}
    out.say(key, **values)
    for name, params in report.remedies:
        out.write("- " + translate(out.language, f"fit.{name}", **params))
    if not report.fits:
        for key, count in (("cards", 1), ("two_cards", 2)):
            if offers := cards_that_fit(report.load, count):
                cards = ", ".join(offer.label for offer in offers)
                out.write("- " + translate(out.language, f"fit.{key}", cards=cards))


def _rounded(parts: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 2) for name, value in parts.items()}
