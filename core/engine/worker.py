"""The engine's process: takes commands from a pipe, loads one model, answers until the pipe closes.

It is the only process that imports torch. It knows no chat and no page. Run as `python -m core.engine.worker FD`,
where FD is an inherited socket to the dashboard.
"""

from __future__ import annotations

import logging
import os
import queue
import signal
import sys
import threading
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

from core.checkpoint import read_checkpoint
from core.engine.messages import (
    Cancel,
    Command,
    Failed,
    Generate,
    Load,
    Loaded,
    LoadFailed,
    LoadProgress,
    ModelFacts,
)
from core.errors import DeckError, EngineError
from core.logs import set_up_logs
from core.settings import cache_dir

if TYPE_CHECKING:
    from core.engine.scheduler import Scheduler

log = logging.getLogger("llamadeck.worker")

# Read by libraries when they are imported. Nothing is ever fetched by a load; gptqmodel's thread pools need telling
# that two workers will do, or they fail on a machine of two cores.
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
    "GPTQMODEL_CPU_WORKERS": "2",
    # Threads that spin for long while they wait for one another starve each other as soon as anything else wants a
    # core: on two cores with one of them busy a token takes 46 ms with this count and over 140 ms with the default.
    "GOMP_SPINCOUNT": "2000",
    # Without a stream of its own in its calls, ExLlamaV2 runs on the default stream, which cannot be captured. Built
    # so, that is the calling thread's; in a folder of its own, because others build it the usual way.
    "NVCC_APPEND_FLAGS": "--default-stream per-thread",
    "GPTQMODEL_EXLLAMAV2_BUILD_ROOT": str(cache_dir() / "kernels" / "exllamav2"),
    # Fixed segments leave 5 to 10 % of the memory in pieces that nothing else fits into.
    "PYTORCH_ALLOC_CONF": "expandable_segments:True",
}
# Pages share the processor with the engine, and they are what a person waits for.
NICENESS = 5


def main(fd: int) -> None:
    """Serve one dashboard over the socket `fd`, until it closes."""
    # Ctrl-C reaches the whole process group; the dashboard decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.update(ENVIRONMENT)
    os.nice(NICENESS)
    # Libraries print banners; what an operator needs goes through the log, to stderr.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    pipe = Connection(fd)
    inbox: queue.SimpleQueue[Command] = queue.SimpleQueue()
    threading.Thread(target=listen, args=(pipe, inbox), daemon=True).start()
    command = inbox.get()
    assert isinstance(command, Load), command
    try:
        scheduler, facts = open_scheduler(command, pipe)
        serve(scheduler, pipe, inbox, facts)
    except DeckError as error:
        pipe.send(LoadFailed(error))
    except MemoryError:
        pipe.send(LoadFailed(EngineError("out_of_memory", model=command.folder.name, mib=0)))
    except Exception as error:
        log.exception("loading %s failed", command.folder)
        pipe.send(LoadFailed(EngineError("load_fault", model=command.folder.name, why=describe(error))))


def listen(pipe: Connection, inbox: queue.SimpleQueue[Command]) -> None:
    """Pass on what the dashboard says; when it is gone, so is this process."""
    while True:
        try:
            inbox.put(pipe.recv())
        except (EOFError, OSError):
            os._exit(0)


def open_scheduler(command: Load, pipe: Connection) -> tuple[Scheduler, ModelFacts]:
    """Load the model, with progress from the first moment: importing torch takes seconds."""
    read_checkpoint(command.folder)  # What cannot be loaded is said before seconds go into imports.
    pipe.send(LoadProgress("start", 0.02))
    import gptqmodel  # noqa: F401

    pipe.send(LoadProgress("start", 0.1))
    from core.engine.opening import open_engine
    from core.engine.scheduler import Scheduler

    engine = open_engine(command, lambda stage, fraction: pipe.send(LoadProgress(stage, fraction)))
    pipe.send(Loaded(engine.facts))
    scheduler = Scheduler(engine.steps, engine.tokenizer, engine.end_tokens, engine.chunk_tokens, pipe.send)
    return scheduler, engine.facts


def serve(scheduler: Scheduler, pipe: Connection, inbox: queue.SimpleQueue[Command], facts: ModelFacts) -> None:
    """Answer for ever. A fault while computing ends the process: a GPU's state cannot be trusted after one."""
    while True:
        while scheduler.is_idle or not inbox.empty():
            obey(scheduler, pipe, inbox.get())
        try:
            scheduler.step()
        except Exception as error:
            log.exception("the engine failed")
            fault = fault_of(error, facts)
            for request in scheduler.requests:
                pipe.send(Failed(request, fault))
            sys.exit(1)


def obey(scheduler: Scheduler, pipe: Connection, command: Command) -> None:
    match command:
        case Generate():
            try:
                scheduler.submit(command)
            except Exception as error:
                log.exception("request %d failed", command.request)
                pipe.send(Failed(command.request, EngineError("engine_fault", why=describe(error))))
        case Cancel():
            scheduler.cancel(command.request)


def fault_of(error: Exception, facts: ModelFacts) -> EngineError:
    """What to say of an answer that broke off; running out of the GPU's memory says what had been planned."""
    from torch.cuda import OutOfMemoryError

    from core.engine.budget import out_of_memory

    if isinstance(error, OutOfMemoryError) and facts.memory is not None:
        return out_of_memory(facts.memory.plan, is_forced=facts.memory.is_forced)
    return EngineError("engine_fault", why=describe(error))


def describe(error: Exception) -> str:
    """The first line of what a library said, short enough for a page."""
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"[:200]


if __name__ == "__main__":
    set_up_logs()
    main(int(sys.argv[1]))
