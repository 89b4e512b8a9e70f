"""The engine's process: takes commands from a pipe, loads one model, answers until the pipe closes.

It is the only process that imports torch. Run as `python -m core.worker.main FD [warm]`, where FD is an inherited
socket to the dashboard. A warm worker imports the libraries of a load before it is asked for one.
"""

from __future__ import annotations

import logging
import os
import queue
import signal
import sys
import threading
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

from core.bootstrap.machine_faults import fault_of_machine
from core.checkpoint.checkpoint import Checkpoint, read_checkpoint
from core.common.errors import DeckError, EngineError
from core.common.logs import set_up_logs
from core.common.panics import panics_as_errors
from core.common.paths import model_name
from core.engine.protocol import (
    AnswerStats,
    Cancel,
    Command,
    Failed,
    Finished,
    Generate,
    ImportsDone,
    Load,
    Loaded,
    LoadFailed,
    LoadProgress,
    ModelFacts,
)
from core.worker.heartbeat import CPU_STEP_S, GPU_STEP_S, Outlet, Pulse

if TYPE_CHECKING:
    from core.worker.preparing import PreparationThread, Prepared
    from core.worker.scheduler import Scheduler

log = logging.getLogger("llamadeck.worker")


# What the main thread is told, by the pipe and by this process's own threads.
Inbox = queue.SimpleQueue["Command | ImportsDone | Prepared"]

# Libraries read these when they are imported. A load fetches nothing. gptqmodel's thread pools fail on a machine of two
# cores unless they are told to take two workers.
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
    "GPTQMODEL_CPU_WORKERS": "2",
    # OpenMP threads spin this long before they sleep: longer than the pause between two matrices (a token takes 16 ms
    # on two cores; 20 with 2000). More would starve other processes for the 0.2 s until decode/cpu_threads.py measures.
    "GOMP_SPINCOUNT": "10000",
    # cublasLt works in cuBLAS's workspace instead of one of its own, as the memory plan counts them.
    "TORCH_CUBLASLT_UNIFIED_WORKSPACE": "1",
    # Fixed segments fragment 5 to 10 % of the memory.
    "PYTORCH_ALLOC_CONF": "expandable_segments:True",
}
# The pages share the CPU with the engine, and a person waits for them.
NICENESS = 5
# A warm worker's imports, which nobody has asked for yet, give way to everything.
WARM_NICENESS = 19


def main(fd: int, is_warm: bool = False) -> None:
    """Serve one dashboard over the socket `fd`, until it closes."""
    # Ctrl-C reaches the whole process group; the dashboard decides what it ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.update(ENVIRONMENT)
    os.nice(NICENESS)
    # Libraries print banners to stdout; the log goes to stderr.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    connection = Connection(fd)
    pipe = Outlet(connection)
    pulse = Pulse(pipe)
    pulse.start()
    inbox: Inbox = queue.SimpleQueue()
    threading.Thread(target=listen, args=(connection, inbox), name="listen", daemon=True).start()
    preparing = threading.Thread(target=prepare, args=(inbox,), name="prepare", daemon=True)
    if is_warm:
        preparing.start()
    command = inbox.get()
    if isinstance(command, ImportsDone):
        check_untouched()
        pipe.send(command)
        command = inbox.get()
    if is_warm:
        take_priority_back()
    assert isinstance(command, Load), command
    try:
        # Refuse before the imports, which take seconds.
        checkpoint = read_checkpoint(command.folder)
        checkpoint.require_runs()
        pipe.send(LoadProgress("start", 0.02))
        if is_warm:
            preparing.join()
        with panics_as_errors():
            scheduler, facts, preparation = load_scheduler(checkpoint, command, pipe, inbox)
        serve(scheduler, preparation, pipe, inbox, facts, pulse)
    except DeckError as error:
        pipe.send(LoadFailed(error))
    except Exception as error:
        log.exception("loading %s failed", command.folder)
        unknown = EngineError("load_fault", model=model_name(command.folder))
        pipe.send(LoadFailed(fault_of_machine(error) or unknown))


def prepare(inbox: Inbox) -> None:
    """Import the libraries on a thread of low priority. A process could not raise its own again; this thread ends."""
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), WARM_NICENESS)
    try:
        import_libraries()
        from core.worker.gpu_check import look

        inbox.put(look())
    except Exception:
        # A load fails in the same way, and tells the person who asked for it.
        log.exception("a warm worker could not import its libraries")


def import_libraries() -> None:
    """Import what a load needs. No import may touch a GPU."""
    import_gptqmodel()

    import core.worker.constraints
    import core.worker.load
    import core.worker.scheduler  # noqa: F401


def import_gptqmodel() -> None:
    """Import gptqmodel without torchao, which transformers imports if it is installed. torchao asks the GPU what it is,
    which starts CUDA; it serves quantizations other than GPTQ."""
    sys.modules.setdefault("torchao", None)  # type: ignore[arg-type]
    import gptqmodel  # noqa: F401


def check_untouched() -> None:
    """End a warm worker whose imports have started CUDA: it would hold GPU memory beside the loaded model."""
    from torch import cuda

    if cuda.is_initialized():
        log.error("the libraries have begun to use the GPU while they were imported; this warm worker ends")
        sys.exit(1)


def take_priority_back() -> None:
    """Give all threads this one's priority, where the system allows it: a person waits for the load."""
    niceness = os.getpriority(os.PRIO_PROCESS, 0)
    for thread in os.listdir("/proc/self/task"):
        with suppress(PermissionError, ProcessLookupError):
            os.setpriority(os.PRIO_PROCESS, int(thread), niceness)


def listen(pipe: Connection, inbox: Inbox) -> None:
    """Pass the dashboard's commands on; end the process when the pipe closes or a command cannot be read."""
    try:
        while True:
            inbox.put(pipe.recv())
    except (EOFError, OSError):
        os._exit(0)
    except Exception:  # Otherwise somebody would wait for an answer that never comes.
        log.exception("a command cannot be understood; the engine ends")
        os._exit(1)


def load_scheduler(
    checkpoint: Checkpoint, command: Load, pipe: Outlet, inbox: Inbox
) -> tuple[Scheduler, ModelFacts, PreparationThread]:
    """Load the model. Importing the libraries takes seconds, unless a warm worker has done it."""
    import_gptqmodel()
    pipe.send(LoadProgress("start", 0.1))
    from core.worker.constraints import Constraints
    from core.worker.load import load_engine
    from core.worker.preparing import PreparationThread
    from core.worker.scheduler import Scheduler

    engine = load_engine(checkpoint, command, lambda stage, fraction: pipe.send(LoadProgress(stage, fraction)))
    pipe.send(Loaded(engine.facts))
    scheduler = Scheduler(
        engine.steps, engine.tokenizer, engine.end_tokens, engine.chunk_tokens, pipe.send, engine.adapters
    )
    constraints = Constraints(engine.tokenizer, engine.steps.vocabulary, engine.end_tokens)
    return scheduler, engine.facts, PreparationThread(constraints, engine.adapters, inbox.put)


def serve(
    scheduler: Scheduler, preparation: PreparationThread, pipe: Outlet, inbox: Inbox, facts: ModelFacts, pulse: Pulse
) -> None:
    """Answer until the process ends. A fault while computing ends it: a GPU's state cannot be trusted after one."""
    import torch

    pulse.longest_s = CPU_STEP_S if facts.memory is None else GPU_STEP_S
    while True:
        while scheduler.is_idle or not inbox.empty():
            command = inbox.get()
            with pulse.step():
                obey(scheduler, preparation, pipe, command)
        try:
            with pulse.step(), panics_as_errors(), torch.inference_mode():
                scheduler.step()
        except Exception as error:
            log.exception("the engine failed")
            fault = fault_of(error, facts)
            for request in scheduler.requests:
                pipe.send(Failed(request, fault))
            sys.exit(1)


def obey(
    scheduler: Scheduler, preparation: PreparationThread, pipe: Outlet, command: Command | ImportsDone | Prepared
) -> None:
    match command:
        case Generate() if command.options.grammar is not None or command.options.adapter is not None:
            preparation.submit(command)
        case Generate():
            submit(scheduler, pipe, command)
        case Cancel() if command.request in scheduler.requests:
            scheduler.cancel(command.request)
        case Cancel():
            preparation.take(command.request)
            # It has ended already, or was never known: whoever waits for it is to wait no longer.
            pipe.send(Finished(command.request, "cancelled", AnswerStats(0, 0, 0, 0.0, 0.0, 0.0, 0)))
        case Load() | ImportsDone():
            pass
        case _ if preparation.take(command.command.request):  # Else it was cancelled meanwhile.
            if command.error is not None:
                pipe.send(Failed(command.command.request, command.error))
            else:
                submit(scheduler, pipe, command.command, command)


def submit(scheduler: Scheduler, pipe: Outlet, command: Generate, prepared: Prepared | None = None) -> None:
    try:
        with panics_as_errors():
            if prepared is None:
                scheduler.submit(command)
            else:
                scheduler.submit(command, prepared.constraint, prepared.adapter)
    except Exception as error:
        log.exception("request %d failed", command.request)
        pipe.send(Failed(command.request, EngineError("engine_fault", why=describe(error))))


def fault_of(error: Exception, facts: ModelFacts) -> EngineError:
    """What to say of an answer that broke off; running out of the GPU's memory says what had been planned."""
    from torch.cuda import OutOfMemoryError

    from core.worker.memory_guard import out_of_memory

    if isinstance(error, OutOfMemoryError) and facts.memory is not None:
        return out_of_memory(facts.memory.plan.allocated, is_forced=facts.memory.is_forced)
    return EngineError("engine_fault", why=describe(error))


def describe(error: Exception) -> str:
    """The first line of what a library said, short enough for a page."""
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"[:200]


if __name__ == "__main__":
    set_up_logs()
    main(int(sys.argv[1]), is_warm=sys.argv[2:] == ["warm"])
