"""The benchmark's figures as one object with units in its names, and that object as a table; measures nothing."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from benchmarks.measuring import Decoded, Extent, Rounds, spread
from core.common.i18n import translate
from core.common.terminal import Terminal, table
from core.engine.protocol import ModelFacts
from core.memory.sizes import MIB

NAMES = {"engine": "LlamaDeck", "generate": "generate()", "llama_cpp": "llama.cpp"}


@dataclass(frozen=True, slots=True)
class Note:
    """What a reader of the figures should know: a text of the section "bench" and its values."""

    key: str
    params: dict[str, str | int]

    def sentence(self, language: str) -> str:
        return translate(language, f"bench.note_{self.key}", **self.params)


@dataclass(slots=True)
class Findings:
    """Everything that one run of the benchmark found. `memory` is what the engine held with one chat, in MiB.

    `copy_bytes_per_s` counts what is read and what is written; `bytes_a_token` are weights alone.
    """

    facts: ModelFacts
    versions: dict[str, str]
    cores: int
    copy_bytes_per_s: float
    bytes_a_token: int
    load_s: list[float] = field(default_factory=list)
    had_spare: bool = False
    memory: tuple[str, int] = ("host", 0)
    found: dict[str, Rounds] = field(default_factory=dict)
    notes: list[Note] = field(default_factory=list)


def unmeasured(found: dict[str, Rounds], extent: Extent) -> list[Note]:
    """What `extent` asks for and was not measured, of every engine that can do all of it."""
    notes = []
    for name in ("engine", "generate"):
        rounds = found.get(name, Rounds())
        tokens = [str(length) for length in extent.lengths if length not in rounds.first_token_s]
        chats = [str(number) for number in extent.chats if number not in rounds.decoded]
        if tokens:
            notes.append(Note("no_first_token", {"name": NAMES[name], "tokens": ", ".join(tokens)}))
        if chats:
            notes.append(Note("no_decode", {"name": NAMES[name], "chats": ", ".join(chats)}))
    return notes


def as_object(findings: Findings, extent: Extent) -> dict[str, Any]:
    facts, (place, used_mib) = findings.facts, findings.memory
    return {
        "model": facts.name,
        "device": facts.device,
        "cores": findings.cores,
        "kernel": facts.kernel,
        "captured": facts.captured,
        "versions": findings.versions,
        "load_from_click_s": spread(findings.load_s),
        "load_with_spare": findings.had_spare,
        f"{place}_memory_mib": used_mib,
        "planned_memory_mib": None if facts.memory is None else round(facts.memory.plan.total / MIB),
        "copy_gb_per_s": round(findings.copy_bytes_per_s / 1e9, 1),
        "weights_mb_a_token": round(findings.bytes_a_token / 1e6, 1),
        "first_token": [first_token_row(findings.found, tokens) for tokens in extent.lengths],
        "decode": [decode_row(findings, chats, extent) for chats in extent.chats],
        "notes": [note.sentence("en") for note in findings.notes],
    }


def first_token_row(found: dict[str, Rounds], num_tokens: int) -> dict[str, Any]:
    times = {name: rounds.first_token_s.get(num_tokens) for name, rounds in found.items()}
    row: dict[str, Any] = {"prompt_tokens": num_tokens}
    row |= {f"{name}_ms": spread([1000 * one for one in each], 1) for name, each in times.items() if each}
    if "engine_ms" in row and "generate_ms" in row:
        row["times_generate"] = round(row["generate_ms"]["median"] / row["engine_ms"]["median"], 2)
    return row


def decode_row(findings: Findings, num_chats: int, extent: Extent) -> dict[str, Any]:
    rates = {name: measured(rounds.decoded.get(num_chats, [])) for name, rounds in findings.found.items()}
    row: dict[str, Any] = {"chats": num_chats, "prompt_tokens": extent.prompt_tokens}
    for name, each in rates.items():
        if each:
            row[f"{name}_tokens_per_s"] = spread(each)
            row[f"{name}_counted_tokens"] = max(one.num_tokens for one in findings.found[name].decoded[num_chats])
    if "engine_tokens_per_s" not in row:
        return row
    rate = row["engine_tokens_per_s"]["median"]
    # All chats of a step share one reading of the weights.
    read_bytes_per_s = rate / num_chats * findings.bytes_a_token
    row["share_of_copy_percent"] = round(100 * read_bytes_per_s / findings.copy_bytes_per_s, 1)
    if "generate_tokens_per_s" in row:
        row["times_generate"] = round(rate / row["generate_tokens_per_s"]["median"], 2)
    if "llama_cpp_tokens_per_s" in row:
        row["share_of_llama_cpp_percent"] = round(100 * rate / row["llama_cpp_tokens_per_s"]["median"])
    return row


def measured(rounds: list[Decoded]) -> list[float]:
    """The rates of a number of chats, without rounds in which nothing could be counted."""
    return [one.tokens_per_s for one in rounds if one.tokens_per_s > 0]


def table_lines(result: dict[str, Any], findings: Findings, terminal: Terminal) -> list[str]:
    language = terminal.language
    notes = [note.sentence(language) for note in findings.notes]
    lines = [*table(head_rows(result, language), left=(0, 1)), "", *table(figure_rows(result, language))]
    return [*lines, *([""] if notes else []), *notes]


def head_rows(result: dict[str, Any], language: str) -> list[list[str]]:
    place = "gpu" if "gpu_memory_mib" in result else "host"
    memory, planned = f"{result[f'{place}_memory_mib']}", result["planned_memory_mib"]
    rows = {
        "model": result["model"],
        "device": f"{result['device']}, {result['kernel']}",
        "versions": ", ".join(f"{name} {version}" for name, version in result["versions"].items()),
        "load": f"{shown(result['load_from_click_s'])} s",
        f"memory_{place}": f"{memory} MiB"
        if planned is None
        else translate(language, "bench.planned", mib=memory, planned=planned),
        "copy": f"{result['copy_gb_per_s']} GB/s",
    }
    return [[translate(language, f"bench.row_{name}"), value] for name, value in rows.items()]


def figure_rows(result: dict[str, Any], language: str) -> list[list[str]]:
    """A row a figure, a column an engine; columns that would be empty are left out."""
    units = [("first_token", "ms", "tokens", "prompt_tokens"), ("decode", "tokens_per_s", "chats", "chats")]
    lines = []
    for kind, unit, param, name in units:
        for row in result[kind]:
            title = translate(language, f"bench.row_{kind}", **{param: row[name]})
            lines.append([title, *(shown(row.get(f"{engine}_{unit}")) for engine in NAMES), *shares(row)])
    head = [translate(language, f"bench.column_{name}") for name in ("times_generate", "of_llama_cpp", "of_copy")]
    rows = [["", *NAMES.values(), *head], *lines]
    kept = [i for i in range(len(rows[0])) if i == 0 or any(row[i] != "-" for row in lines)]
    return [[row[i] for i in kept] for row in rows]


def shares(row: dict[str, Any]) -> list[str]:
    names = {"times_generate": "", "share_of_llama_cpp_percent": " %", "share_of_copy_percent": " %"}
    return [f"{row[name]}{unit}" if name in row else "-" for name, unit in names.items()]


def shown(figure: dict[str, float] | None) -> str:
    """A figure with its range where it was measured more than once."""
    if figure is None:
        return "-"
    digits = 0 if figure["median"] >= 1000 else 1
    median, low, high = (f"{figure[name]:.{digits}f}" for name in ("median", "low", "high"))
    return f"{median} ({low}–{high})" if figure["runs"] > 1 else median
