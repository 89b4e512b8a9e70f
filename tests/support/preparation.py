"""Stands in for a load's step that compiles and checks a kernel."""

from __future__ import annotations

from core.checkpoint.checkpoint import Checkpoint
from core.common.errors import EngineError
from core.memory.load_plan import LoadPlan


class Preparation:
    """Stands in for compiling and checking; refuses the kernels named."""

    def __init__(self, *refused: str) -> None:
        self._refused, self.asked = refused, list[str]()

    def __call__(self, plan: LoadPlan, checkpoint: Checkpoint) -> None:
        self.asked.append(plan.kernel.name)
        if plan.kernel.name in self._refused:
            raise EngineError("kernel_wrong", kernel=plan.kernel.name, difference=1.0)
