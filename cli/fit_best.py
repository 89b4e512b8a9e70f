"""`fit --best`: the recommended models with their verdicts."""

from __future__ import annotations

import json
import math
from typing import Any

from cli.fit_report import as_object
from core.common.errors import DeckError
from core.common.terminal import Terminal, table
from core.library.recommended import RecommendedModel, Verdict, best_of, verdicts_for
from core.memory.cpu_fit import CpuReport, speed_text
from core.memory.device_memory import DeviceMemory


def show_best(devices: tuple[DeviceMemory, ...], is_json: bool, out: Terminal) -> bool:
    """Print the recommended models with their verdicts, none for the CPU; whether any fits, of which the best is
    marked."""
    verdicts = verdicts_for(devices)
    best = best_of(verdicts)
    if is_json:
        listed = [best_object(model, report, model is best) for model, report in verdicts]
        out.write(json.dumps(listed, ensure_ascii=False, indent=1))
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
    return best is not None


def best_cells(report: Verdict, is_best: bool) -> tuple[str, str, str]:
    """The verdict's word, the MiB that are needed, and the longest context."""
    if isinstance(report, DeckError):
        return "no_kernel", "-", "-"
    mark = "best" if is_best else "yes" if report.fits else "no"
    return mark, f"{math.ceil(report.needed_mib)}", f"{report.max_context}" if report.fits else "-"


def speed_cell(report: Verdict) -> str:
    """About how many tokens a second a CPU writes."""
    return f"≈ {speed_text(report.tokens_per_s)}" if isinstance(report, CpuReport) and report.fits else "-"


def best_object(model: RecommendedModel, report: Verdict, is_best: bool) -> dict[str, Any]:
    found = {"fits": False, "reason": str(report)} if isinstance(report, DeckError) else as_object(report)
    return {"repo": model.repo, "billions": model.billions, "licence": model.license_name, "best": is_best} | found
