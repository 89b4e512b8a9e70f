"""Prompts for what stands between two texts, for models that were taught to fill in the middle."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class InfillFormat:
    """`form` has places for the text before and after. `tokens` are what a vocabulary has that knows it, `ends` tokens
    that end what was filled in where a model does not end by itself."""

    form: str
    tokens: tuple[str, ...]
    ends: tuple[str, ...] = ()

    def prompt(self, before: str, after: str) -> str:
        return self.form.format(before=before, after=after)


def _tagged(before: str, after: str, middle: str, ends: tuple[str, ...] = ()) -> InfillFormat:
    return InfillFormat(f"{before}{{before}}{after}{{after}}{middle}", (before, after, middle), ends)


FORMATS = (
    # Qwen2.5-Coder and Qwen3-Coder, CodeGemma, and others of 2024 and later.
    _tagged("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>",
            ("<|fim_pad|>", "<|file_sep|>", "<|file_separator|>", "<|repo_name|>")),
    # StarCoder, Granite Code, Refact; SantaCoder.
    _tagged("<fim_prefix>", "<fim_suffix>", "<fim_middle>", ("<fim_pad>", "<file_sep>", "<filename>", "<reponame>")),
    _tagged("<fim-prefix>", "<fim-suffix>", "<fim-middle>", ("<fim-pad>",)),
    # DeepSeek-Coder: the hole is where the text is missing.
    _tagged("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),
    # CodeLlama
    _tagged("▁<PRE>", "▁<SUF>", "▁<MID>", ("▁<EOT>",)),
    # CodeGeeX
    _tagged("<|code_prefix|>", "<|code_suffix|>", "<|code_middle|>"),
    # Codestral: what comes after goes first.
    InfillFormat("[SUFFIX]{after}[PREFIX]{before}", ("[SUFFIX]", "[PREFIX]")),
)  # fmt: skip


def find_infill_format(tokens: Collection[str]) -> InfillFormat | None:
    """The format of a model whose vocabulary has the added `tokens`; None where it was not taught any."""
    known = set(tokens)
    return next((one for one in FORMATS if known.issuperset(one.tokens)), None)
