"""The README of a quantized model: what it was made from, how, and how much it lost."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core.checkpoint.adapters import read_adapter
from core.common.paths import version
from core.quantize.job_file import JobFile

RESULT = "quantize_result.json"
# In percent: a few thousand tokens tell no less.
SMALLEST_LOSS = 0.05
# A model whose perplexity is this share of its number of tokens guesses: one that learnt anything has far less.
GUESSING = 0.9
LANGUAGES = {"en": "English", "zh": "Chinese"}


def loss_percent(result: Mapping[str, Any]) -> float | None:
    """How much the perplexity rose by quantizing, over all held-out texts, in percent; negative where it fell.

    None where it was not measured.
    """
    before, after = result["before"], result["after"]
    if not before:
        return None
    loss: float = 100 * (sum(after[name] / before[name] for name in before) / len(before) - 1)
    return loss


def loss_text(percent: float) -> str:
    """The loss as people read it, with one digit after the point where it is small; "" for none that can be told."""
    if percent < SMALLEST_LOSS:
        return ""
    return f"{percent:.0f}" if percent >= 10 else f"{percent:.1f}"


def is_guessing(result: Mapping[str, Any]) -> bool:
    """Whether the model knew nothing of any held-out text before it was quantized: its weights are random."""
    before, num_tokens = result["before"], result.get("num_tokens")
    return bool(before) and num_tokens is not None and min(before.values()) >= GUESSING * num_tokens


def loss_words(result: Mapping[str, Any]) -> tuple[str, dict[str, str]]:
    """What to say of the loss: the key of a sentence under "quantize", and its values."""
    percent = loss_percent(result)
    if percent is None:
        return "loss_unmeasured", {"why": result["unmeasured"]}
    if is_guessing(result):
        # A perplexity has no upper end: one of 1e300 is no number to read.
        return "loss_guessing", {
            "perplexity": f"{min(result['before'].values()):.4g}",
            "count": str(result["num_tokens"]),
        }
    loss = loss_text(percent)
    return ("loss", {"loss": loss}) if loss else ("loss_none", {})


def write_card(folder: Path, job: JobFile, result: Mapping[str, Any]) -> None:
    """Write README.md and what it was written from into the finished checkpoint. Raises OSError."""
    facts = {name: result[name] for name in ("before", "after", "quantizer", "rows", "tokens")}
    (folder / RESULT).write_text(json.dumps(facts, indent=1) + "\n", "utf-8")
    (folder / "README.md").write_text(card_text(job, result), "utf-8")


def card_text(job: JobFile, result: Mapping[str, Any]) -> str:
    options = job.options
    head = [f"base_model: {job.repo}", "base_model_relation: quantized"] if job.repo else []
    lines = ["---", *head, "library_name: transformers", "tags:", "- gptq", "---", f"# {job.name}", ""]
    lines += [f"Made by LlamaDeck {version()} with {result['quantizer'].replace(':', ' ')}.", ""]
    lines.append(f"- Made from: {job.repo or job.source.name}" + (", in Meta's original format" if job.is_meta else ""))
    for path in options.adapters:
        adapter = read_adapter(path)
        base = f", trained on {adapter.base_name}" if adapter.base_name else ""
        lines.append(f"- Merged in float32 before: the LoRA adapter {adapter.name}, rank {adapter.rank}{base}")
    lines.append(f"- Quantized by GPTQ to {options.label}")
    texts = "a text file of the person who made it" if options.calibration else "the set that ships with LlamaDeck"
    lines.append(f"- Calibrated on {result['rows']} rows, {result['tokens']} tokens, of {texts}")
    if options.sees_all:
        lines.append("- Each expert was calibrated on all of them")
    if result["before"]:
        lines += ["", "| perplexity on held-out text | before | after |", "|---|---|---|"]
    for name, before in result["before"].items():
        lines.append(f"| {LANGUAGES.get(name, name)} | {before:.3f} | {result['after'][name]:.3f} |")
    if is_guessing(result):
        lines += ["", f"The base model guesses among its {result['num_tokens']} tokens, so that this says little."]
    lines += ["", "What the base model's licence says holds for this one too.", ""]
    return "\n".join(lines)
