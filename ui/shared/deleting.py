"""Deleting a model or an adapter from the disk: not what the library refuses to delete, nor what a job of quantizing
still reads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from core.common.errors import InputError
from core.library import maintenance
from core.quantize.needed import job_needs, needed_by_job, require_unneeded

Refusals = Callable[[Path], InputError | None]


def model_refusal(folder: Path) -> InputError | None:
    """Why the model in `folder` is not deleted."""
    return maintenance.delete_refusal(folder) or needed_by_job(folder)


def adapter_refusals() -> Refusals:
    """Of any folder why the adapter in it is not deleted. The jobs are read once for all of them."""
    needs = job_needs()
    return lambda folder: maintenance.adapter_refusal(folder) or needed_by_job(folder, needs)


def delete_model(name: str) -> None:
    """Raises InputError for a model that is not there or is not to be deleted, DeckError where it cannot be removed."""
    require_unneeded(maintenance.folder_to_delete(name))
    maintenance.delete(name)


def delete_adapter(folder: Path) -> None:
    """Raises InputError for one that is not to be deleted, DeckError where it cannot be removed."""
    if (refusal := adapter_refusals()(folder)) is not None:
        raise refusal
    maintenance.delete_adapter(folder)
