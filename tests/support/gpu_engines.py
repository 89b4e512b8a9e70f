"""Engines that GPU tests load one after another in one process, which a worker's engine has to itself."""

from __future__ import annotations

import gc
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from core.checkpoint.checkpoint import Checkpoint, read_checkpoint
from core.engine.protocol import Load
from core.memory.pages import pages_of
from core.memory.sizes import MIB
from core.worker.decode.cuda_graphs import ATTENTION
from core.worker.decode.steps import Steps
from core.worker.kernels.recurrent_check import delta_kernels_for
from core.worker.kernels.router_kernel import router_kernels_for
from core.worker.load import LoadedEngine, load_engine
from core.worker.model.model_config import read_config

log = logging.getLogger("core.worker")


class LogLines(logging.Handler):
    """What the engine said, for a failing test to show."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self._lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self._lines.append(f"{record.levelname} {record.getMessage()}")

    def __str__(self) -> str:
        return "\n".join(self._lines)


class Engines:
    """Opens engines. log: what they said."""

    def __init__(self) -> None:
        self.log = LogLines()
        self._rotations: dict[ModuleType, Any] = {}

    def open(self, folder: Path, command: Load, is_captured: bool | None = True) -> LoadedEngine:
        """The checkpoint in `folder`, loaded in memory that nothing earlier takes. is_captured: whether its steps must
        be; None: either way."""
        self.restore_rotations()
        forget_earlier_engines()
        checkpoint = read_checkpoint(folder)
        self.note_rotations(checkpoint)
        engine = load_engine(checkpoint, command, lambda *_: None)
        if is_captured is not None:
            assert engine.facts.captured == is_captured, f"\n{self.log}"
        give_all_pages(engine.steps)
        return engine

    def note_rotations(self, checkpoint: Checkpoint) -> None:
        """Keep what a load of `checkpoint` puts its own in place of. The first load of a process would import the
        model's module and change it at once, so the module is imported here."""
        MODEL_FOR_CAUSAL_LM_MAPPING[type(read_config(checkpoint, context_tokens=0))]
        modules = [module for name, module in sys.modules.items() if ".modeling_" in name]
        self._rotations = {one: one.apply_rotary_pos_emb for one in modules if hasattr(one, "apply_rotary_pos_emb")}

    def restore_rotations(self) -> None:
        """Undo what an engine has put into transformers' modules for its process: references are computed by them."""
        for module, rotation in self._rotations.items():
            module.apply_rotary_pos_emb = rotation  # type: ignore[attr-defined]


@contextmanager
def gpu_engines() -> Iterator[Engines]:
    """Inside the `with` block engines may be opened; what they changed in the process is put back after it."""
    engines, level = Engines(), log.level
    log.addHandler(engines.log)
    log.setLevel(logging.INFO)
    try:
        with torch.inference_mode():
            yield engines
    finally:
        engines.restore_rotations()
        log.removeHandler(engines.log)
        log.setLevel(level)
        for index in reversed(range(torch.cuda.device_count())):
            torch.cuda.set_stream(torch.cuda.default_stream(index))
            torch.cuda.set_per_process_memory_fraction(1.0, index)


def give_all_pages(steps: Steps) -> None:
    """Give each slot pages for a whole context, where there are as many. Who calls steps without the engine's loop
    finds the pages of the last request that a load answered to try itself out."""
    each = pages_of(steps.context_tokens) if steps.page_tokens else 0
    if each and each * steps.num_slots <= steps.num_pages:
        for slot in range(steps.num_slots):
            steps.set_pages(slot, range(slot * each, (slot + 1) * each))


def forget_earlier_engines() -> None:
    """Give back the GPU memory of earlier tests: a load has its plan's memory, all told, and no more.

    A test that failed lives on in its traceback, an engine in cycles and in the attention that it registered.
    """
    for name in ("last_type", "last_value", "last_traceback", "last_exc"):
        with suppress(AttributeError):
            delattr(sys, name)
    ALL_ATTENTION_FUNCTIONS.register(ATTENTION, no_attention)
    delta_kernels_for.cache_clear()
    router_kernels_for.cache_clear()
    gc.collect()
    torch.cuda.synchronize()
    torch._C._cuda_clearCublasWorkspaces()
    torch.cuda.empty_cache()
    if held_bytes := torch.cuda.memory_reserved():
        log.warning("%.1f MiB of earlier tests are held", held_bytes / MIB)


def no_attention(*_: object, **__: object) -> None:
    raise AssertionError("the attention of an engine that is gone")
