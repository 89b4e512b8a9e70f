"""Does a model fit: the plan's sum against what is free, the largest context, and what would make it fit.

Pure arithmetic over core/memory/plan.py; knows no torch, no NVML and no page.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from core.checkpoint.checkpoint import Checkpoint
from core.checkpoint.families import require_runnable
from core.common.errors import DeckError, EngineError, InputError
from core.memory.device_memory import DeviceMemory
from core.memory.kernels.registry import able_kernels
from core.memory.kernels.spec import Device, KernelSpec
from core.memory.model_shape import ModelShape, read_shape
from core.memory.plan import GPU_CHUNK_TOKENS, MemoryPlan, make_plan, split_plan, sum_plans
from core.memory.sizes import MIB

DEFAULT_CONTEXT_TOKENS = 4096
MAX_CHATS = 64


@dataclass(frozen=True, slots=True)
class FitReport:
    """The verdict with every number that it rests on.

    `captured`: the steps are captured in CUDA graphs, which is much faster and takes some memory more.

    `reason` is the name of a sentence in the section "fit" of the locale files, `params` what it quotes. `plans` has
    one plan for each of `cards`; `plan` adds them up. `max_context` is the longest that fits, 0 where not even the
    weights do. `remedies` are further sentences: what would make it fit.
    """

    fits: bool
    kernel: str
    cards: tuple[DeviceMemory, ...]
    plans: tuple[MemoryPlan, ...]
    captured: bool
    context_tokens: int
    num_chats: int
    max_context: int
    reason: str
    params: dict[str, str | int | float]
    remedies: tuple[tuple[str, dict[str, str | int | float]], ...] = ()

    @property
    def plan(self) -> MemoryPlan:
        return sum_plans(self.plans)

    @property
    def available_mib(self) -> int:
        return sum(card.available_mib for card in self.cards)

    @property
    def needed_mib(self) -> float:
        return sum(plan.total for plan in self.plans) / MIB

    @property
    def margin_mib(self) -> float:
        return self.available_mib - self.needed_mib

    @property
    def lacking_mib(self) -> float:
        """What is too few, GPU by GPU: what one has left does not help another that is full."""
        pairs = zip(self.plans, self.cards, strict=True)
        return sum(max(0.0, plan.total / MIB - card.available_mib) for plan, card in pairs)


def check_fit(
    checkpoint: Checkpoint,
    cards: Sequence[DeviceMemory],
    context_tokens: int = 0,
    num_chats: int = 1,
    kernel: str | None = None,
    without: Sequence[str] = (),
) -> FitReport:
    """The verdict for `checkpoint` on `cards`: on the first where it fits alone, else split by layers over several.

    `context_tokens` 0 is the model's own limit, up to 4096. Steps are captured where that fits, else not; the kernel
    is then the fastest that fits, a leaner one where only that fits, and none of `without`. Raises InputError for a
    context or a number of chats that cannot be and for a `kernel` that does not take the checkpoint, CheckpointError
    for a family that does not run here and for parts that contradict each other, EngineError where no kernel takes it
    on these cards.
    """
    context_tokens = checked_context(checkpoint, context_tokens)
    if not 1 <= num_chats <= MAX_CHATS:
        raise InputError("chats_range", value=num_chats, limit=MAX_CHATS)
    require_runnable(checkpoint)
    shapes = {captured: read_shape(checkpoint, merged=captured) for captured in (True, False)}
    refused: list[tuple[FitReport, KernelSpec]] = []
    for group in _groups(cards):
        specs = [spec for spec in _candidates(shapes[False], group, kernel) if spec.name not in without]
        for spec in specs:
            if len(group) == 1 and spec.is_capturable:
                report = _report(checkpoint, shapes[True], group, spec, context_tokens, num_chats, captured=True)
                if report.fits:
                    return replace(report, max_context=_longest(checkpoint, shapes[False], group, specs, num_chats))
        for spec in specs:
            report = _report(checkpoint, shapes[False], group, spec, context_tokens, num_chats)
            if report.fits:
                return report
            refused.append((report, spec))
    if not refused:
        raise _no_kernel(checkpoint, shapes[False], cards, kernel)
    best, spec = max(refused, key=lambda one: (one[0].max_context, -one[0].lacking_mib))
    return _with_remedies(shapes[False], spec, cards, best)


def require_fit(
    checkpoint: Checkpoint,
    cards: Sequence[DeviceMemory],
    context_tokens: int,
    num_chats: int,
    kernel: str | None,
    force: bool,
    without: Sequence[str] = (),
) -> FitReport:
    """The verdict at the moment of a load. Raises EngineError where it is no, unless the load is forced."""
    report = check_fit(checkpoint, cards, context_tokens, num_chats, kernel, without)
    if not report.fits and not force:
        raise EngineError(f"load_{report.reason}", **report.params)
    return report


def checked_context(checkpoint: Checkpoint, context_tokens: int) -> int:
    """The context to reserve; 0 asks for the usual one. Raises InputError for one that the model was not made for."""
    limit = checkpoint.max_context_tokens
    if context_tokens == 0:
        return min(limit, DEFAULT_CONTEXT_TOKENS)
    if not 0 < context_tokens <= limit:
        raise InputError("context_range", model=checkpoint.name, asked=context_tokens, limit=limit)
    return context_tokens


def _groups(cards: Sequence[DeviceMemory]) -> list[Sequence[DeviceMemory]]:
    """Each card by itself, then the two with the most room, the three, ...: one that is full should not take a part."""
    by_room = sorted(range(len(cards)), key=lambda index: -cards[index].available_mib)
    several: list[Sequence[DeviceMemory]] = [
        [cards[index] for index in sorted(by_room[:count])] for count in range(2, len(cards) + 1)
    ]
    return [*([card] for card in cards), *several]


def _candidates(shape: ModelShape, devices: Sequence[DeviceMemory], wanted: str | None) -> list[KernelSpec]:
    """The kernels that take the model on every one of `devices`, fastest first; only `wanted` if one is."""
    places = [Device("cuda", device.capability, device.has_compiler) for device in devices]
    able = able_kernels([matrix for matrix, _ in shape.matrices], places)
    if wanted is not None:
        return [kernel for kernel in able if kernel.name == wanted]
    return [kernel for kernel in able if not kernel.is_last_resort] or able


def _no_kernel(
    checkpoint: Checkpoint, shape: ModelShape, devices: Sequence[DeviceMemory], wanted: str | None
) -> DeckError:
    """Why there is nothing to say of a model: the kernel that was asked for does not take it here, or none does."""
    able = {kernel.name: kernel for device in devices for kernel in _candidates(shape, [device], None)}
    if wanted is not None and able:
        return InputError("kernel_refused", kernel=wanted, model=checkpoint.name, able=", ".join(able))
    return EngineError("no_kernel", model=checkpoint.name, quantization=checkpoint.quantization.label)


def _plans(
    shape: ModelShape,
    cards: Sequence[DeviceMemory],
    kernel: KernelSpec,
    context_tokens: int,
    num_chats: int,
    captured: bool = False,
) -> tuple[MemoryPlan, ...]:
    if len(cards) == 1:
        capability = cards[0].capability
        return (make_plan(shape, kernel, capability, context_tokens, num_chats, GPU_CHUNK_TOKENS, captured),)
    return split_plan(
        shape,
        kernel,
        [card.capability for card in cards],
        [card.available_mib * MIB for card in cards],
        context_tokens,
        num_chats,
        GPU_CHUNK_TOKENS,
    )


def _fits(plans: Sequence[MemoryPlan], cards: Sequence[DeviceMemory]) -> bool:
    return all(plan.total <= card.available_mib * MIB for plan, card in zip(plans, cards, strict=True))


def _report(
    checkpoint: Checkpoint,
    shape: ModelShape,
    cards: Sequence[DeviceMemory],
    kernel: KernelSpec,
    context_tokens: int,
    num_chats: int,
    captured: bool = False,
) -> FitReport:
    plans = _plans(shape, cards, kernel, context_tokens, num_chats, captured)
    fits = _fits(plans, cards)
    # What is captured has its longest context worked out once it is known to fit.
    max_context = 0 if captured else _longest(checkpoint, shape, cards, [kernel], num_chats)
    reason = "fits" if fits else "context_too_long" if max_context else "too_large"
    report = FitReport(
        fits, kernel.name, tuple(cards), plans, captured, context_tokens, num_chats, max_context, reason, {}
    )
    needed = math.ceil(report.needed_mib)
    params: dict[str, str | int | float] = {
        "model": checkpoint.name,
        "card": " + ".join(card.name for card in cards),
        "needed": needed,
        "available": report.available_mib,
        "margin": report.available_mib - needed if fits else math.ceil(report.lacking_mib),
        "context": context_tokens,
        "max_context": max_context,
        "chats": num_chats,
    }
    return replace(report, params=params)


def _longest(
    checkpoint: Checkpoint,
    shape: ModelShape,
    cards: Sequence[DeviceMemory],
    kernels: Sequence[KernelSpec],
    num_chats: int,
) -> int:
    """The longest context that any of `kernels` leaves room for, uncaptured."""
    limit = checkpoint.max_context_tokens
    return max(_max_context(shape, cards, kernel, num_chats, limit) for kernel in kernels)


def _max_context(
    shape: ModelShape, cards: Sequence[DeviceMemory], kernel: KernelSpec, num_chats: int, limit: int
) -> int:
    """The longest context that fits, up to the model's own `limit`: the plan only grows with it."""
    low, high = 0, limit
    while low < high:
        middle = (low + high + 1) // 2
        if _fits(_plans(shape, cards, kernel, middle, num_chats), cards):
            low = middle
        else:
            high = middle - 1
    return low


def _with_remedies(
    shape: ModelShape, kernel: KernelSpec, cards: Sequence[DeviceMemory], report: FitReport
) -> FitReport:
    """What would make it fit: a shorter context, fewer chats, what others hold given back, or a larger card."""
    remedies: list[tuple[str, dict[str, str | int | float]]] = []
    if report.max_context:
        remedies.append(("shorter_context", {"context": report.max_context}))
    if report.num_chats > 1 and _any_fits(shape, kernel, _groups(cards), report, 1):
        remedies.append(("one_chat", {"context": report.context_tokens}))
    others_mib = sum(card.others_mib - card.returning_mib for card in report.cards)
    alone = [replace(card, others_mib=0, returning_mib=0) for card in report.cards]
    if others_mib > 0 and _any_fits(shape, kernel, [alone], report, report.num_chats):
        remedies.append(("end_others", {"others": others_mib}))
    remedies.append(("larger_card", {"needed": math.ceil(report.needed_mib)}))
    return replace(report, remedies=tuple(remedies))


def _any_fits(
    shape: ModelShape, kernel: KernelSpec, groups: Sequence[Sequence[DeviceMemory]], report: FitReport, num_chats: int
) -> bool:
    """Whether `num_chats` of the report's context would fit on one of `groups` with `kernel`."""
    return any(_fits(_plans(shape, group, kernel, report.context_tokens, num_chats), group) for group in groups)
