"""The command `fit`: says whether a model fits GPUs."""

from __future__ import annotations

import difflib
import os
import re
from argparse import ArgumentParser, Namespace
from pathlib import Path

from cli.fit_best import shares_tokens, show_best
from cli.fit_report import as_object, show
from core.checkpoint.checkpoint import Checkpoint, read_checkpoint
from core.checkpoint.weight_files import is_plain_name
from core.common.errors import CheckpointError, EngineError, InputError
from core.common.paths import models_dir, without_dots
from core.common.terminal import Terminal
from core.common.values import printable, quoted_text
from core.gpu.known_gpus import also_meant, lookup, split_count
from core.gpu.snapshot import read_snapshot
from core.gpu.torch_support import find_gpu_error, has_nvidia_gpu, installed_torch, is_cpu_chosen, usable_gpus
from core.hub.endpoints import checked_endpoint
from core.hub.source import read_source
from core.library import catalogue
from core.library.recommended import Wish
from core.library.scan import locate
from core.memory.cache_choice import CacheBits, CacheChoice
from core.memory.cpu_fit import CpuReport, check_cpu_fit
from core.memory.device_memory import DeviceMemory
from core.memory.fit import DEFAULT_CONTEXT_TOKENS, MAX_CHATS, check_fit
from core.memory.fit_report import FitReport
from core.memory.kernels.llamadeck import LLAMADECK
from core.memory.kernels.registry import has_c_compiler
from core.memory.rental import CardOffer

FITS, UNUSABLE, BAD_INPUT, DOES_NOT_FIT = 0, 1, 2, 3
# What most GPUs have that people rent by their memory, or more.
ASSUMED_CAPABILITY = (8, 6)
MAX_VRAM_MIB = 10_000_000
MAX_POOL_TOKENS = 1_000_000_000
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
    for name, metavar in (("revision", "R"), ("context", "N"), ("chats", "N"), ("pool-tokens", "N"), ("kernel", "K")):
        said = terminal.text(f"help_fit_{name.replace('-', '_')}")
        parser.add_argument(f"--{name}", metavar=metavar, help=said)
    parser.add_argument("--cache-bits", metavar="N", help=terminal.text("help_fit_cache_bits"))
    parser.add_argument("--json", action="store_true", help=terminal.text("help_json"))


def run(arguments: Namespace, terminal: Terminal) -> int:
    """Print the verdict. The exit code: 0 fits, 3 does not, 2 for a model that this program cannot run at all, 1 for
    GPUs of this machine that cannot be used, whatever their memory. Without a GPU it is this machine's CPU's."""
    if arguments.kernel in RENAMED_KERNELS:
        old, arguments.kernel = arguments.kernel, RENAMED_KERNELS[arguments.kernel]
        terminal.say("fit_kernel_renamed", old=old, new=arguments.kernel)
    if arguments.best or arguments.target is None:
        if not arguments.best or arguments.target is not None:
            raise InputError("fit_best_or_target")
        out = terminal.to_stdout()
        devices, told = tuple(planned_devices(arguments)), other_cards(arguments.gpu)
        has_any = show_best(devices, parse_wish(arguments), arguments.json, out, told)
        if not arguments.json:
            say_other_cards(arguments.gpu, out)
        return FITS if has_any else DOES_NOT_FIT
    try:
        report = verdict(arguments)
    except (CheckpointError, EngineError) as error:
        terminal.error(error)
        return BAD_INPUT
    unused = None if arguments.gpu or arguments.vram_mib else find_gpu_error(read_snapshot(), installed_torch())
    out = terminal.to_stdout()
    if arguments.json:
        reason = {} if unused is None else {"unused": str(unused)}
        out.write_json(as_object(report) | other_cards(arguments.gpu) | reason)
    else:
        show(report, out)
        if arguments.pool_tokens and report.fits and not shares_tokens(report):
            out.say("fit_pool_unused")
        say_other_cards(arguments.gpu, out)
        if arguments.vram_mib:
            out.say("fit_assumed", capability="{}.{}".format(*ASSUMED_CAPABILITY))
    if unused is not None:
        terminal.error(unused)
        return UNUSABLE
    return FITS if report.fits else DOES_NOT_FIT


def verdict(arguments: Namespace) -> FitReport | CpuReport:
    """What check_fit says about the command's arguments. Raises DeckError for what is wrong with them."""
    num_chats = parse_whole("--chats", arguments.chats, 1, MAX_CHATS)
    context_tokens, cache = parse_context(arguments.context), parse_cache(arguments)
    devices = planned_devices(arguments)
    checkpoint = find_checkpoint(arguments.target, arguments.revision)
    if context_tokens == 0:
        limit = checkpoint.max_context_tokens
        raise InputError("context_range", model=checkpoint.name, asked=0, limit=limit)
    if not devices:
        return check_cpu_fit(checkpoint, context_tokens or 0, num_chats, arguments.kernel, cache_bits=cache.bits)
    return check_fit(checkpoint, devices, context_tokens or 0, num_chats, arguments.kernel, cache=cache)


def parse_wish(arguments: Namespace) -> Wish:
    """What the best model is to do. Raises InputError for numbers that no model could have."""
    context = arguments.context
    context_tokens = 0 if context is None else parse_whole("--context", context, 1, MAX_POOL_TOKENS)
    cache = parse_cache(arguments)
    cache.require_room(context_tokens or DEFAULT_CONTEXT_TOKENS)
    return Wish(context_tokens, parse_whole("--chats", arguments.chats, 1, MAX_CHATS), arguments.kernel, cache)


def parse_cache(arguments: Namespace) -> CacheChoice:
    pool = arguments.pool_tokens
    pool_tokens = None if pool is None else parse_whole("--pool-tokens", pool, 1, MAX_POOL_TOKENS)
    return CacheChoice(pool_tokens, parse_cache_bits(arguments.cache_bits))


def planned_devices(arguments: Namespace) -> list[DeviceMemory]:
    """The GPUs to plan for; none where the machine has none and none was named, so that models run on its CPU."""
    if arguments.gpu is None and arguments.vram_mib is None and (is_cpu_chosen() or not has_any_gpu()):
        return []
    return find_devices(arguments.gpu, arguments.vram_mib)


def has_any_gpu() -> bool:
    """Whether there is a GPU here, also one that cannot be read."""
    error = read_snapshot().error
    return error is None or error.key not in ("gpu_no_driver", "gpu_none_found") or has_nvidia_gpu()


def parse_context(text: str | None) -> int | None:
    """A context in tokens, whose range is the model's to say; None where none was asked for."""
    if text is None:
        return None
    if not WHOLE.fullmatch(text):
        raise InputError("not_whole", name="--context", value=quoted_text(text))
    return int(text)


def parse_cache_bits(text: str | None) -> CacheBits:
    """Of an element of a key or value: 16 where none were asked for."""
    if text not in (None, "8", "16"):
        raise InputError("cache_bits", value=quoted_text(text))
    return 8 if text == "8" else 16


def parse_whole(name: str, text: str | None, low: int, high: int) -> int:
    """The number after the option `name`, `low` where it was left out."""
    if text is None:
        return low
    if not WHOLE.fullmatch(text) or not low <= int(text) <= high:
        raise InputError("setting_whole", name=name, value=quoted_text(text), low=low, high=high)
    return int(text)


def find_devices(gpu: str | None, vram_mib: str | None) -> list[DeviceMemory]:
    """The GPUs that were named, else those of this machine that can be read. Raises InputError for none."""
    if gpu is not None:
        count, name = split_count(gpu)
        return [DeviceMemory.planned(lookup(name))] * count
    if vram_mib is not None:
        total_mib = parse_whole("--vram-mib", vram_mib, 1, MAX_VRAM_MIB)
        return [DeviceMemory.empty(f"GPU ({total_mib} MiB)", total_mib, ASSUMED_CAPABILITY)]
    gpus = read_snapshot().gpus
    readable = [one for one in gpus if one.error is None and one.total_mib]
    if not readable:
        raise InputError("no_gpu_to_ask")
    meant = usable_gpus(gpus, installed_torch()) or readable
    return [DeviceMemory.measured(one, has_c_compiler=has_c_compiler()) for one in meant]


def other_cards(gpu: str | None) -> dict[str, list[str]]:
    """For programs: the cards that --gpu may have meant beside the one that is planned for; empty where it is clear."""
    others = also_meant(split_count(gpu)[1]) if gpu is not None else ()
    return {"other_cards": [one.name for one in others]} if others else {}


def say_other_cards(gpu: str | None, out: Terminal) -> None:
    """For people: which card is planned for where --gpu may mean several, and how the others are called."""
    count, name = split_count(gpu or "")
    if gpu is not None and (others := also_meant(name)):
        taken, named = lookup(name), ", ".join(f'"{one.name}"' for one in others)
        label = CardOffer(taken.name, count, taken.memory_gb).label
        out.say("fit_card_taken", asked=quoted_text(gpu), taken=label, others=named)


def find_checkpoint(target: str, revision: str | None) -> Checkpoint:
    """The model that `target` names: a folder, else a catalogue entry, else a repository on the Hub.

    With a `revision` a repository is meant, also where models/ has a folder of that name.
    """
    folder = find_folder(target)
    if folder is not None and not (revision and is_plain_name(target)):
        if revision and folder.is_dir():
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
        return without_dots(Path(path).absolute())
    places = [locate(path), without_dots(Path(path).absolute())] if path.strip() else []
    return next((place for place in places if os.path.isdir(place)), None)


def near_targets(name: str) -> str:
    """The names of folders and catalogue entries that are spelled most like `name`."""
    models = models_dir()
    folders = sorted(os.listdir(models)) if os.path.isdir(models) else []
    names = {each.rpartition("/")[2].casefold(): each for each in [entry.repo for entry in catalogue.entries()]}
    names |= {printable(each).casefold(): printable(each) for each in folders if not each.startswith(".")}
    near = difflib.get_close_matches(name[:100].casefold(), names, NUM_SUGGESTIONS, cutoff=0.3)
    return ", ".join(names[each] for each in near or list(names)[:NUM_SUGGESTIONS])
