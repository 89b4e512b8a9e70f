"""Quantizes one model in a process of its own: converts it, merges adapters, measures, quantizes, measures again.

`python -m core.quantize.child.main FOLDER`: FOLDER/job.json says what to do (core/quantize/job_file.py). Standard
output carries one JSON object a line: {"stage", "fraction", "layer", "layers"} while it works, {"result"} or {"error"}
at the end. Everything else, the libraries' logs too, goes to standard error.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from core.common.errors import DeckError
from core.common.paths import model_name
from core.quantize.calibration import check_calibration
from core.quantize.folders import disk_full, has_no_room, is_full
from core.quantize.job_file import JobFile, read_job
from core.quantize.options import check_group_size
from core.quantize.source import read_plain
from core.starter.quantize import end_with_parent

Report = Callable[..., None]


def main() -> None:
    job = Path(sys.argv[1]).resolve()
    threading.Thread(target=end_with_parent, daemon=True).start()
    channel = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)
    work = job / "work"
    work.mkdir(exist_ok=True)
    # gptqmodel keeps a log in the current folder.
    os.chdir(work)

    def report(stage: str, fraction: float, **more: int) -> None:
        channel.write(json.dumps({"stage": stage, "fraction": fraction} | more) + "\n")

    channel.write(json.dumps(do(job, work, report)) + "\n")
    channel.flush()
    # Threads of gptqmodel's pools may outlive the work by minutes.
    os._exit(0)


def do(job: Path, work: Path, report: Report) -> dict[str, Any]:
    """Do the job in the folder `job`; what to tell of its end. Raises what only the log can tell of."""
    try:
        return {"result": make(read_job(job), work, job / "out", report)}
    except DeckError as error:
        told = error
    except Exception as error:
        # gptqmodel and torch write by themselves, and torch does not say why it could not.
        if not is_full(error) and not has_no_room():
            raise
        told = disk_full()
        # The log lies on the same disk.
        with suppress(OSError):
            traceback.print_exc()
    return {"error": {"key": told.key, "params": told.params}}


def make(job: JobFile, work: Path, out: Path, report: Report) -> dict[str, Any]:
    """Do the whole job; returns what there is to say of it. `out` gets the finished checkpoint. Raises DeckError."""
    from core.quantize.child import class_check, gptq, merge, meta, perplexity
    from core.quantize.child.tokens import first_prompt

    watch = Watch(report)
    source = job.source
    if job.is_meta:
        source = watch.run("convert", lambda told: meta.convert(job.source, work / "converted", told))
        # What only the converted weights tell.
        check_group_size(read_plain(source), job.options)
        if job.options.calibration is not None:
            check_calibration(job.options.calibration, source)
    # Before the merge, which takes longer and changes no name and no shape.
    class_check.check_tensors(source, model_name(job.source))
    if job.options.adapters:
        source = watch.run("merge", lambda told: merge.merge(source, job.options, work / "merged", told))
    # A model is none the worse where its class cannot be measured.
    before, unmeasured = watch.run("before", lambda told: perplexity.measure_if_possible(source, job.device, told))
    facts = watch.run("quantize", lambda told: gptq.quantize(source, job, work, out, told))
    after: dict[str, float] = {}
    if before:
        after, unmeasured = watch.run("after", lambda told: perplexity.measure_if_possible(out, job.device, told))
    asked, prompt = first_prompt(out)
    found: dict[str, Any] = facts | {
        "asked": asked,
        "prompt": prompt,
        "before": before if after else {},
        "after": after,
        "unmeasured": unmeasured,
        "took_s": watch.took_s,
        "peak_vram_bytes": gptq.peak_vram_bytes(job.device),
    }
    return found


class Watch:
    """Runs the stages one after another, tells of each how far it is, and keeps how long each took."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self.took_s: dict[str, float] = {}

    def run(self, stage: str, work: Callable[[Report], Any]) -> Any:
        begin_s = time.monotonic()
        self._report(stage, 0.0)
        result = work(lambda fraction, **more: self._report(stage, fraction, **more))
        self.took_s[stage] = round(time.monotonic() - begin_s, 3)
        return result


if __name__ == "__main__":
    main()
