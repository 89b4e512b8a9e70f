"""The command `download`: fetches one model into models/, with its progress on the terminal."""

from __future__ import annotations

import shlex
import signal
import sys
from argparse import ArgumentParser, Namespace
from dataclasses import replace
from pathlib import Path

from core.checkpoint.adapters import read_sound_adapter
from core.common.errors import DeckError, InputError
from core.common.i18n import translate
from core.common.paths import adapters_dir, models_dir
from core.common.signals import StopSignals
from core.common.terminal import Terminal
from core.common.values import printable
from core.hub.address import Address
from core.hub.download_job import DownloadJob
from core.hub.endpoints import MODELSCOPE, checked_endpoint
from core.hub.progress import JobState
from core.hub.queue import DownloadQueue
from core.hub.source import Source, read_source
from core.library import catalogue
from core.library.adapters import find_bases
from core.library.hf_cache import is_snapshot_of
from core.library.scan import cached_entries, scan

# How often progress is shown: on a terminal one line is replaced, elsewhere each is a line more.
REDRAW_S, LINE_S = 0.2, 5.0


def add_arguments(parser: ArgumentParser, terminal: Terminal) -> None:
    parser.add_argument("target", metavar="NAME[:BRANCH]", help=terminal.text("help_download_target"))
    for name, metavar in (("revision", "R"), ("endpoint", "URL")):
        parser.add_argument(f"--{name}", metavar=metavar, help=terminal.text(f"help_download_{name}"))
    sources = ("huggingface", "modelscope")
    source_help = terminal.text("help_download_source")
    parser.add_argument("--adapter", action="store_true", help=terminal.text("help_download_adapter"))
    parser.add_argument("--source", choices=sources, default=sources[0], help=source_help)


def run(arguments: Namespace, terminal: Terminal) -> int:
    """Fetch the model that the arguments name. Ctrl-C keeps what was fetched; the exit code is then 1."""
    target, downloads = adapters_dir() if arguments.adapter else models_dir(), DownloadQueue()
    try:
        with StopSignals(signal.SIGINT) as stop_signals:
            job = downloads.add(find_source(arguments), arguments.adapter)
            for entry in cached_entries():
                if is_snapshot_of(entry.folder, job.source):
                    terminal.say("download_cached", model=job.source.name, name=entry.name)
            terminal.say("download_begins", model=job.source.name, host=job.source.host, folder=folder_of(target, job))
            watch(job, terminal, stop_signals)
    except KeyboardInterrupt:
        downloads.close()
        terminal.say("download_stopped", command=f"./llamadeck {shlex.join(sys.argv[1:])}")
        return 1
    finally:
        downloads.close()
    state = job.snapshot()
    if state.error is not None:
        raise state.error
    terminal.say("download_done", folder=folder_of(target, job), size=size_text(state.total_bytes))
    if arguments.adapter:
        tell_models(target / job.folder_name, terminal)
    return 0


def tell_models(folder: Path, terminal: Terminal) -> None:
    """Say which models here can have the adapter in `folder`."""
    shape = read_sound_adapter(folder)
    own, others = find_bases(shape, (entry.checkpoint for entry in scan() if entry.checkpoint is not None))
    names = [*own, *others]
    key = "download_adapter_fits" if names else "download_adapter_alone"
    base = shape.base_name or translate(terminal.language, "adapter.base_unnamed")
    terminal.say(key, base=base, rank=shape.rank, names=", ".join(names))


def folder_of(target: Path, job: DownloadJob) -> str:
    return printable(str(target / job.folder_name))


def find_source(arguments: Namespace) -> Source:
    """What the arguments name. A catalogue entry needs no owner. Raises InputError."""
    chosen = arguments.endpoint or (MODELSCOPE if arguments.source == "modelscope" else None)
    source = read_source(arguments.target, arguments.source, checked_endpoint(chosen), arguments.revision)
    if "/" not in source.address.repo:
        try:
            entry = catalogue.find(arguments.target, arguments.revision)
            return replace(source, address=Address(entry.repo, entry.branch))
        except InputError as error:
            if error.key != "unknown_catalogue":
                raise
    return source


def watch(job: DownloadJob, terminal: Terminal, stop_signals: StopSignals) -> None:
    """Show the job's progress until it rests. Raises KeyboardInterrupt for a Ctrl-C, also for one that got lost."""
    said: DeckError | None = None
    interval_s = REDRAW_S if sys.stderr.isatty() else LINE_S
    while not job.wait(interval_s):
        if stop_signals.has_come:
            raise KeyboardInterrupt
        state = job.snapshot()
        if state.notice is not None and (said is None or state.notice.key != said.key):
            terminal.write(state.notice.sentence(terminal.language))
        said = state.notice
        fraction = state.done_bytes / state.total_bytes if state.total_bytes else 0.0
        terminal.step(progress_text(state, terminal), fraction)


def progress_text(state: JobState, terminal: Terminal) -> str:
    """What stands beside the bar: "1.2 GB of 3.9 GB, 45.1 MB/s, 1:02 left", or what is done where no bytes come."""
    if state.phase != "running" or state.left_s is None:
        return terminal.text(f"download_phase_{state.phase}")
    done, total, speed = (size_text(value) for value in (state.done_bytes, state.total_bytes, state.speed_bytes_s))
    return terminal.text("download_progress", done=done, total=total, speed=speed, left=time_text(state.left_s))


def size_text(num_bytes: float) -> str:
    """In the units that the Hub's pages have, powers of ten."""
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if num_bytes >= size:
            return f"{num_bytes / size:.1f} {unit}"
    return f"{num_bytes / 1e3:.1f} kB"


def time_text(seconds: float) -> str:
    """As a clock shows it: "0:05", "12:30", "3:00:00"."""
    minutes, rest = divmod(min(round(seconds), 359_999), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
