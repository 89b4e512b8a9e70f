"""Which adapters are offered: what is offered must work when it is used."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from core.checkpoint.adapters import WEIGHTS, read_adapter
from core.checkpoint.checkpoint import read_checkpoint
from core.checkpoint.merged import FILE, MergedAdapter, describe, read_merged, write_merged
from core.common.errors import CheckpointError
from core.library.adapters import answering_adapters, find_adapters, fitting_adapters, read_alone, read_for_all
from core.memory.adapter_room import AdapterRoom
from tests.support.adapters import write_adapter
from tests.support.checkpoints import make_checkpoint


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("models", "adapters"):
        monkeypatch.setenv(f"LLAMADECK_{name.upper()}", str(tmp_path / name))
    make_checkpoint(tmp_path / "models" / "tiny")
    return tmp_path


def break_number(folder: Path, value: float = np.nan) -> Path:
    """Put `value` into the last of the adapter's tensors."""
    tensors = load_file(folder / WEIGHTS)
    name = sorted(tensors)[-1]
    tensors[name].flat[-1] = value
    save_file(tensors, folder / WEIGHTS)
    return folder


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_with_numbers_that_are_none_is_not_offered(home: Path, value: float) -> None:
    """It was listed as usable, on pages and for programs, until a chat used it."""
    model = home / "models" / "tiny"
    write_adapter(home / "adapters" / "sound", model)
    broken = break_number(write_adapter(home / "adapters" / "broken", model), value)
    found = {one.name: one for one in find_adapters(read_checkpoint(model))}
    assert found["sound"].shape is not None and found["sound"].error is None
    assert found["broken"].shape is None and found["broken"].is_of_model
    error = found["broken"].error
    assert isinstance(error, CheckpointError) and error.key == "adapter_nan"
    assert str(error.params["module"]).endswith("q_proj")
    assert [one.name for one in fitting_adapters(model)] == ["sound"]
    assert [one.name for one in answering_adapters(model, AdapterRoom(2, 8))] == ["sound"]
    assert read_for_all(broken, [read_checkpoint(model)]).error is not None
    assert read_alone(broken).error is not None
    # What an adapter says of itself is told all the same.
    assert read_adapter(broken).rank == 4


def test_one_that_a_training_saved_again_is_offered_again(home: Path) -> None:
    model = home / "models" / "tiny"
    folder = break_number(write_adapter(home / "adapters" / "pirate", model))
    assert fitting_adapters(model) == []
    break_number(folder, 1.0)
    assert [one.name for one in fitting_adapters(model)] == ["pirate"]


def test_one_of_another_model_is_told_as_that(home: Path) -> None:
    model = home / "models" / "tiny"
    folder = break_number(write_adapter(home / "adapters" / "pirate", model))
    tensors = load_file(folder / WEIGHTS)
    save_file({name.replace("q_proj", "no_proj"): one for name, one in tensors.items()}, folder / WEIGHTS)
    (found,) = find_adapters(read_checkpoint(model))
    assert found.error is not None and found.error.key == "adapter_base_matrix"


def test_one_that_is_merged_into_a_model_is_not_offered_for_it(home: Path) -> None:
    """It was offered beside the model that was made with it, where it counts twice."""
    plain, made = home / "models" / "tiny", home / "models" / "tiny-pirate"
    make_checkpoint(made)
    for name, seed in (("pirate", 0), ("poet", 1)):
        write_adapter(home / "adapters" / name, plain, base="me/tiny", seed=seed)
    write_merged(made, [describe("pirate", home / "adapters" / "pirate" / WEIGHTS)])
    found = {one.name: one for one in find_adapters(read_checkpoint(made))}
    error = found["pirate"].error
    assert error is not None and error.key == "adapter_merged" and found["pirate"].is_of_model
    assert "pirate is merged into tiny-pirate already" in str(error)
    assert [one.name for one in fitting_adapters(made)] == ["poet"]
    assert [one.name for one in fitting_adapters(plain)] == ["pirate", "poet"]
    models = [read_checkpoint(plain), read_checkpoint(made)]
    assert read_for_all(home / "adapters" / "pirate", models).models == ("tiny",)
    assert read_for_all(home / "adapters" / "poet", models).models == ("tiny", "tiny-pirate")


def test_a_merged_one_is_known_by_its_numbers_and_not_by_its_name(home: Path) -> None:
    made, folder = home / "models" / "tiny", home / "adapters" / "pirate"
    write_adapter(folder, made)
    write_merged(made, [describe("pirate", folder / WEIGHTS)])
    assert fitting_adapters(made) == []
    renamed = folder.rename(home / "adapters" / "renamed")
    assert fitting_adapters(made) == []
    # A later training gave it other numbers, and as many.
    break_number(renamed, 1.0)
    assert fitting_adapters(made) == [renamed]


@pytest.mark.parametrize(
    "text", ["", "[]", '{"adapters": 1}', '{"adapters": [1, {"name": "x"}, {"size_bytes": true}]}']
)
def test_what_a_stranger_says_of_merged_adapters_is_read_without_trust(home: Path, text: str) -> None:
    made = home / "models" / "tiny"
    (made / FILE).write_text(text, "utf-8")
    assert read_merged(made) == ()
    write_adapter(home / "adapters" / "pirate", made)
    assert [one.name for one in fitting_adapters(made)] == ["pirate"]


def test_adapters_of_two_merges_are_all_known(home: Path) -> None:
    made = home / "models" / "tiny"
    first, second = MergedAdapter("a", 1, "0" * 64), MergedAdapter("b", 2, "1" * 64)
    write_merged(made, [first])
    write_merged(made, [second])
    assert read_merged(made) == (first, second)
