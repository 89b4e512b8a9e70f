from __future__ import annotations

import pytest
import torch

from core.worker.decode.captured_check import TOLERANCE, tell_difference

INFINITE, NAN = float("inf"), float("nan")


def logits() -> torch.Tensor:
    return torch.arange(30.0).view(3, 10)


@pytest.mark.parametrize("value", [INFINITE, -INFINITE, NAN, 13.0, 13.0 + 0.9 * TOLERANCE * 8.8])
def test_equal_logits_do_not_differ(value: float) -> None:
    got, wanted = logits(), logits()
    got[1, 3] = value
    wanted[1, 3] = value if value != value or abs(value) == INFINITE else 13.0
    assert tell_difference(got, wanted) is None


@pytest.mark.parametrize("value", [INFINITE, -INFINITE, NAN, 14.0])
def test_a_difference_is_told_with_its_place(value: float) -> None:
    got = logits()
    got[1, 3] = value
    for one, other in ((got, logits()), (logits(), got)):
        told = tell_difference(one, other)
        assert told is not None
        assert told.startswith(f"logits of 1 of 3 rows differ (1), most in row 1 at token 3: {one[1, 3]:g}, ")


def test_of_many_rows_the_first_are_named() -> None:
    told = tell_difference(torch.eye(12) * torch.arange(1.0, 13.0), torch.zeros(12, 12))
    assert told is not None
    assert told.startswith("logits of 12 of 12 rows differ (0, 1, 2, 3, 4, 5, 6, 7, ...), most in row 11 at token 11")
