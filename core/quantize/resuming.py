"""Which families gptqmodel goes on with after its process was ended: those that its looper keeps a state of."""

from __future__ import annotations

# gptqmodel 7.6, looper/gptq_checkpoint.py.
FAMILIES = ("llama", "qwen3_moe")


def can_resume(family: str) -> bool:
    """Whether a job of this `model_type` goes on from the last finished layer; else it begins anew."""
    return family in FAMILIES
