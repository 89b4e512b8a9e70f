"""Which jobs gptqmodel goes on with after its process was ended: those of families that its looper keeps a state of."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

# gptqmodel 7.6, looper/gptq_checkpoint.py.
FAMILIES = ("llama", "qwen3_moe")


def can_resume(family: str) -> bool:
    """Whether a job of this `model_type` goes on from the last finished layer; else it begins anew."""
    return family in FAMILIES


def is_linked(folder: Path, files: Iterable[str]) -> bool:
    """Whether weights are links, as in Hugging Face's cache: gptqmodel goes on with files of a folder's own alone."""
    return any((folder / file).is_symlink() for file in files)
