"""Numbers that are none in an adapter's file, whatever type they have and wherever they lie."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from core.checkpoint import adapter_numbers
from core.checkpoint.adapter_numbers import first_not_finite
from core.common.errors import CheckpointError

TYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e5m2, torch.float8_e4m3fn)


def write(folder: Path, **tensors: torch.Tensor) -> Path:
    file = folder / "adapter_model.safetensors"
    save_file({name: value.contiguous() for name, value in tensors.items()}, file)
    return file


@pytest.mark.parametrize("dtype", TYPES)
def test_every_number_of_a_type_is_told_as_torch_tells_it(tmp_path: Path, dtype: torch.dtype) -> None:
    """One byte has 256 numbers, and the two or more that are none among them are found one by one."""
    highest = torch.arange(256, dtype=torch.int64)
    width = dtype.itemsize
    codes = highest.to(torch.uint8).repeat_interleave(width).reshape(256, width)
    codes[:, : width - 1] = 0
    values = codes.flatten().view(dtype)
    # Of wider types the lower byte of the exponent is what the highest byte leaves open.
    if width > 1:
        codes[:, width - 2] = 0xF0
        values = torch.cat([values, codes.flatten().view(dtype)])
    finite = values.double().isfinite()
    assert not finite.all()
    for value, is_finite in zip(values, finite, strict=True):
        found = first_not_finite(write(tmp_path, good=torch.ones(3), one=value.repeat(2)))
        assert (found is None) == bool(is_finite), value
        os.unlink(tmp_path / "adapter_model.safetensors")


@pytest.mark.parametrize("place", [0, 999, 1000, 2499])
def test_a_number_is_found_in_whichever_piece_it_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: int
) -> None:
    monkeypatch.setattr(adapter_numbers, "PIECE_BYTES", 4000)
    values = torch.ones(2500)
    values[place] = float("nan")
    assert first_not_finite(write(tmp_path, first=torch.ones(7, dtype=torch.float16), second=values)) == "second"


def test_whole_numbers_and_copies_of_the_base_are_left_out(tmp_path: Path) -> None:
    copy = {"base_model.model.lm_head.base_layer.weight": torch.full((4,), float("nan"))}
    assert first_not_finite(write(tmp_path, codes=torch.full((4,), -1, dtype=torch.int16), **copy)) is None


def test_a_file_is_read_again_when_it_was_written_again(tmp_path: Path) -> None:
    file = write(tmp_path, one=torch.tensor([float("inf")]))
    assert first_not_finite(file) == "one"
    write(tmp_path, one=torch.tensor([1.0]))
    # Within the same tick of the clock a file of the same size would look unchanged.
    os.utime(file, ns=(1, 1))
    assert first_not_finite(file) is None


def test_a_file_that_did_not_change_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page asks whenever it is drawn, and an adapter may have hundreds of megabytes."""
    file = write(tmp_path, one=torch.tensor([float("nan")]))
    reads = []
    real = adapter_numbers.read_header
    monkeypatch.setattr(adapter_numbers, "read_header", lambda path: reads.append(path) or real(path))
    assert [first_not_finite(file) for _ in range(3)] == ["one"] * 3
    assert reads == [file]


def test_a_file_that_is_gone_is_told(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as raised:
        first_not_finite(tmp_path / "adapter_model.safetensors")
    assert raised.value.key == "unreadable"
