"""What a job of quantizing still reads is not deleted: one that waited failed once its adapter was gone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from cli.main import main
from core.common.errors import InputError
from core.quantize.folders import job_folder, remove_job
from core.quantize.job_file import JobFile, write_job
from core.quantize.needed import needed_by_job
from core.quantize.options import QuantizeOptions
from tests.support.adapters import write_adapter
from tests.support.checkpoints import Recipe, make_checkpoint
from ui.shared.deleting import delete_adapter, delete_model


def make(folder: Path) -> Path:
    make_checkpoint(folder, Recipe(num_layers=1))
    return folder


def write(job: JobFile, name: str = "made") -> None:
    job_folder(name).mkdir(exist_ok=True)
    write_job(job_folder(name), job)


def test_a_model_and_an_adapter_stay_until_the_job_is_gone(models: Path) -> None:
    source, other = make(models / "plain"), make(models / "other")
    merged, own = write_adapter(models.parent / "adapters" / "pirate", source), write_adapter(other / "poet", other)
    job = JobFile("made", source, QuantizeOptions(adapters=(merged, own)))
    write(job)
    for name in ("plain", "other"):
        with pytest.raises(InputError, match="needed to make made"):
            delete_model(name)
    for adapter in (merged, own):
        with pytest.raises(InputError, match="needed to make made"):
            delete_adapter(adapter)
    # A job that was copied is none.
    write(replace(job, name="another"))
    assert needed_by_job(source) is None
    remove_job("made")
    for name in ("plain", "other"):
        delete_model(name)
    delete_adapter(merged)
    assert list(models.iterdir()) == []


@pytest.mark.parametrize("way", ["up and down", "through a link", "as a link"])
def test_what_a_job_reads_is_known_by_its_place(models: Path, tmp_path: Path, way: str) -> None:
    plain = make(models / "plain")
    if way == "up and down":
        read = models / ".." / models.name / "plain"
    elif way == "through a link":
        (tmp_path / "data").symlink_to(models)
        read = tmp_path / "data" / "plain"
    else:
        read = models / "linked"
        read.symlink_to(plain)
    write(JobFile("made", read, QuantizeOptions()))
    assert needed_by_job(plain) is not None
    # A link to what the job reads by its own name can go.
    (models / "other").symlink_to(plain)
    assert needed_by_job(models / "other") is None
    delete_model("other")
    assert plain.is_dir()


def test_the_terminal_does_not_delete_it_either(models: Path, capfd: pytest.CaptureFixture[str]) -> None:
    source = make(models / "plain")
    write(JobFile("made", source, QuantizeOptions()))
    assert main(["delete", "plain", "--yes"]) == 2
    assert "made" in capfd.readouterr().err and source.is_dir()
    remove_job("made")
    assert main(["delete", "plain", "--yes"]) == 0
    assert not source.exists()
