"""Figures: appended whole, read again though a line was cut off, and shown as tables."""

from __future__ import annotations

from pathlib import Path

from benchmarks.figures import Figure, Figures, append_line, markdown, read_figures


def test_each_figure_is_in_the_file_at_once_and_a_cut_line_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "new" / "figures.jsonl"
    one, other = Figures("Speed", path), Figures("Forms", path)
    one.add("7B", "1 chat, tokens/s", 723.456789)
    other.fail("JSON", "tokens/s", "no room", "vLLM")
    with path.open("a") as file:
        file.write('{"table": "Speed", "row"')
    wanted = [
        Figure("Speed", "7B", "1 chat, tokens/s", 723.457),
        Figure("Forms", "JSON", "tokens/s", None, "vLLM", "no room"),
    ]
    assert read_figures(path) == wanted and [*one.found, *other.found] == wanted


def test_lines_of_other_kinds_of_work_do_not_mix(tmp_path: Path) -> None:
    append_line(tmp_path / "lines", {"a": 1})
    append_line(tmp_path / "lines", {"b": "two\nlines"})
    assert (tmp_path / "lines").read_text().splitlines() == ['{"a": 1}', '{"b": "two\\nlines"}']


def test_tables_hold_medians_of_all_engines_and_say_why_some_are_missing() -> None:
    found = [
        Figure("Speed", "7B", "1 chat", 700.0),
        Figure("Speed", "7B", "1 chat", 724.4),
        Figure("Speed", "7B", "1 chat", 720.0),
        Figure("Speed", "7B", "1 chat", 270.0, "vLLM"),
        Figure("Speed", "7B", "first, ms", 13.54),
        Figure("Speed", "70B", "load", None, "vLLM", "too slow"),
        Figure("Kernels", "x", "µs", 1.234),
    ]
    assert markdown(found).splitlines() == [
        "### Speed",
        "",
        "| LlamaDeck / vLLM | 1 chat | first, ms |",
        "| --- | --- | --- |",
        "| 7B | 720 / 270 | 13.5 / – |",
        "| 70B |  |  |",
        "",
        "- vLLM, 70B, load: too slow",
        "",
        "### Kernels",
        "",
        "| LlamaDeck | µs |",
        "| --- | --- |",
        "| x | 1.23 |",
    ]
