"""`fit --best`: the recommended models with their verdicts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from cli.fit_report import as_object, say_speed
from core.common.errors import DeckError
from core.common.terminal import Terminal, table
from core.library.recommended import (
    RecommendedModel,
    Verdict,
    Wish,
    best_of,
    next_larger,
    reason_against,
    verdicts_for,
)
from core.memory.cpu_fit import CpuReport, speed_text
from core.memory.device_memory import DeviceMemory
from core.memory.fit_report import FitReport


def show_best(
    devices: tuple[DeviceMemory, ...], wish: Wish, is_json: bool, out: Terminal, told: Mapping[str, Any]
) -> bool:
    """Print the recommended models with their verdicts, no devices for the CPU; whether any fits, of which the best is
    marked. `told` goes into the verdicts for programs."""
    verdicts = verdicts_for(devices, wish)
    best = best_of(verdicts, wish.least_tokens)
    if is_json:
        listed = [best_object(model, report, model is best) | dict(told) for model, report in verdicts]
        out.write_json(listed)
        return best is not None
    # What fits into the machine's own memory may still be too slow to use.
    speed = () if devices else ("speed",)
    head = [out.text(f"fit_column_{name}") for name in ("model", "verdict", *speed, "needed", "longest", "licence")]
    rows = [
        [
            model.repo,
            out.text(f"fit_{mark}"),
            *([speed_cell(report)] if speed else []),
            needed,
            longest,
            model.license_name,
        ]
        for model, report in verdicts
        for mark, needed, longest in [best_cells(report, model is best)]
    ]
    for line in table([head, *rows]):
        out.write(line)
    card = " + ".join(device.name for device in devices) or out.text("fit_cpu")
    if best is None:
        out.say("fit_best_none", card=card)
    else:
        out.say("fit_best_is", card=card, model=best.repo)
        say_speed(dict(verdicts)[best], out)
        if (larger := next_larger(verdicts, best)) is not None:
            out.write(why_not(*larger, wish.least_tokens, out))
        if wish.cache.pool_tokens and not shares_tokens(dict(verdicts)[best]):
            out.say("fit_pool_unused")
    return best is not None


def shares_tokens(report: Verdict) -> bool:
    """Whether the chats have a number of tokens together, fewer than they could fill."""
    return isinstance(report, FitReport) and report.load.pool_tokens is not None


def why_not(model: RecommendedModel, report: Verdict, least_tokens: int, out: Terminal) -> str:
    """Why a larger model than the best is not the best, in one line."""
    if isinstance(report, DeckError):
        return out.text("fit_next_no_kernel", model=model.repo, reason=report.sentence(out.language))
    speed = speed_text(report.tokens_per_s) if isinstance(report, CpuReport) else ""
    return out.text(
        f"fit_next_{reason_against(report, least_tokens)}",
        model=model.repo,
        needed=math.ceil(report.needed_mib),
        available=report.available_mib,
        longest=report.max_context,
        quick=report.quick_context or 0 if isinstance(report, FitReport) else 0,
        least=least_tokens,
        speed=speed,
    )


def best_cells(report: Verdict, is_best: bool) -> tuple[str, str, str]:
    """The verdict's word, the MiB that are needed, and the longest context."""
    if isinstance(report, DeckError):
        return "short_context" if report.key == "context_range" else "no_kernel", "-", "-"
    is_slow = isinstance(report, FitReport) and report.is_slow
    mark = "no" if not report.fits else "best" if is_best else "slow" if is_slow else "yes"
    return mark, f"{math.ceil(report.needed_mib)}", f"{report.max_context}" if report.fits else "-"


def speed_cell(report: Verdict) -> str:
    """About how many tokens a second a CPU writes."""
    return f"≈ {speed_text(report.tokens_per_s)}" if isinstance(report, CpuReport) and report.fits else "-"


def best_object(model: RecommendedModel, report: Verdict, is_best: bool) -> dict[str, Any]:
    found = {"fits": False, "reason": str(report)} if isinstance(report, DeckError) else as_object(report)
    return {"repo": model.repo, "billions": model.billions, "licence": model.license_name, "best": is_best} | found
