"""What the command `fit` prints: the verdict for people and for programs."""

from __future__ import annotations

import math
from typing import Any

from core.common.errors import DeckError
from core.common.i18n import translate
from core.common.terminal import Terminal, table
from core.memory.cpu_fit import CpuReport
from core.memory.fit_report import FitReport, in_mib
from core.memory.plan import MemoryPlan
from core.memory.rental import cards_that_fit
from core.memory.sizes import MIB


def parts_mib(plan: MemoryPlan) -> dict[str, float]:
    """The plan's parts, which add up to its total: of what a load needs for a moment, only what is more than after."""
    return plan.parts_mib() | {"loading": (plan.total - plan.running) / MIB}


def sum_parts(report: FitReport) -> dict[str, float]:
    """The parts over all GPUs; they add up to report.needed_mib."""
    each = [parts_mib(plan) for plan in report.plans]
    return {name: sum(parts[name] for parts in each) for name in each[0]}


def as_object(report: FitReport | CpuReport) -> dict[str, Any]:
    """The verdict for programs; with several GPUs `gpus` has one entry for each that takes a part."""
    if isinstance(report, CpuReport):
        return _cpu_object(report)
    found: dict[str, Any] = {
        "fits": report.fits,
        "needed_mib": round(report.needed_mib, 2),
        "available_mib": report.available_mib,
        "margin_mib": round(report.margin_mib, 2),
        "parts": _rounded(sum_parts(report)),
        "kernel": report.load.kernel.name if report.fits else None,
        "captured": report.load.is_captured,
        "max_context": report.max_context,
        "quick_context": report.quick_context,
        "reason": translate("en", f"fit.{report.reason}", **in_mib(report.params)),
        "remedies": [translate("en", f"fit.{key}", **in_mib(params)) for key, params in report.remedies],
        "notes": [translate("en", f"note.{key}", **params) for key, params in report.notes],
        "context_tokens": report.load.context_tokens,
        "chats": report.load.num_slots,
        "pool_tokens": report.load.pool_tokens,
        "model": report.params["model"],
        "card": report.params["card"],
    }
    if not report.fits:
        found["cards"] = [offer.name for offer in cards_that_fit(report)]
        found["two_cards"] = [offer.name for offer in cards_that_fit(report, 2)]
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


def _cpu_object(report: CpuReport) -> dict[str, Any]:
    return {
        "fits": report.fits,
        "device": "cpu",
        "needed_mib": round(report.needed_mib, 2),
        "available_mib": report.available_mib,
        "kernel": report.kernel.name if report.fits else None,
        "max_context": report.max_context,
        "tokens_per_s": round(report.tokens_per_s, 2),
        "reason": translate("en", f"fit.{report.reason}", **in_mib(report.params)),
        "notes": [translate("en", f"note.{key}", **params) for key, params in report.notes],
        "context_tokens": report.context_tokens,
        "chats": report.num_chats,
        "model": report.params["model"],
    }


def show(report: FitReport | CpuReport, out: Terminal) -> None:
    """The verdict for people: the sentence, the parts, what follows from them, and what would make it fit."""
    if isinstance(report, CpuReport):
        out.write(translate(out.language, f"fit.{report.reason}", **in_mib(report.params)))
        for name, params in report.notes:
            out.write(translate(out.language, f"note.{name}", **params))
        return
    out.write(translate(out.language, f"fit.{report.reason}", **in_mib(report.params)))
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
    if report.fits:
        out.say("fit_kernel", kernel=report.load.kernel.name)
    if report.reason != "too_large":
        out.say("fit_longest", max_context=report.max_context, chats=report.load.num_slots)
    say_speed(report, out)
    for name, params in report.remedies:
        out.write("- " + translate(out.language, f"fit.{name}", **in_mib(params)))
    if not report.fits:
        for key, count in (("cards", 1), ("two_cards", 2)):
            if offers := cards_that_fit(report, count):
                cards = ", ".join(offer.label for offer in offers)
                out.write("- " + translate(out.language, f"fit.{key}", cards=cards))


def say_speed(report: FitReport | CpuReport | DeckError, out: Terminal) -> None:
    """How quick a load that fits is on a GPU, where more or less context makes it otherwise."""
    if isinstance(report, FitReport) and (note := report.speed_note) is not None:
        name, params = note
        out.write(translate(out.language, f"fit.{name}", **params))


def _rounded(parts: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 2) for name, value in parts.items()}
