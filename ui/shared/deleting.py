"""Deleting a model or an adapter from the disk: not what the library refuses to delete, nor what a job of quantizing
still reads."""

from __future__ import annotations

from pathlib import Path

from core.common.errors import InputError
from core.library import maintenance
from core.quantize.needed import Needs, needed_by_job, require_unneeded


def model_refusal(folder: Path) -> InputError | None:
    """Why the model in `folder` is not deleted."""
    return maintenance.delete_refusal(folder) or needed_by_job(folder)


def adapter_refusal(folder: Path, needs: Needs | None = None) -> InputError | None:
    """Why the adapter in `folder` is not deleted; needs: as for needed_by_job()."""
    return maintenance.adapter_refusal(folder) or needed_by_job(folder, needs)


def delete_model(name: str) -> None:
    """Raises InputError for a model that is not there or is not to be deleted, DeckError where it cannot be removed."""
    require_unneeded(maintenance.folder_to_delete(name))
    maintenance.delete(name)


def delete_adapter(folder: Path) -> None:
    """Raises InputError for one that is not to be deleted, DeckError where it cannot be removed."""
    if (refusal := adapter_refusal(folder)) is not None:
        raise refusal
    maintenance.delete_adapter(folder)
