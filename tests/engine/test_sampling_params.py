"""What the settings of sampling take and refuse."""

from __future__ import annotations

import math
from typing import Any

import pytest

from core.common.errors import InputError
from core.engine.sampling_params import MAX_SEED, MAX_STOP_STRINGS, SAMPLING_RANGES, Sampling


@pytest.mark.parametrize("name", SAMPLING_RANGES)
def test_each_setting_takes_its_whole_range(name: str) -> None:
    for value in SAMPLING_RANGES[name]:
        assert getattr(Sampling(**{name: value}), name) == value


@pytest.mark.parametrize("name", SAMPLING_RANGES)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -2.001, 10**9, True, False, None, "1", [1], 1j])
def test_a_setting_out_of_its_range_is_refused(name: str, value: Any) -> None:
    with pytest.raises(InputError) as caught:
        Sampling(**{name: value})
    assert caught.value.params["name"] == name


@pytest.mark.parametrize("name", ["top_k", "max_new_tokens"])
@pytest.mark.parametrize("value", [40.0, 40.5])
def test_what_is_counted_is_a_whole_number(name: str, value: float) -> None:
    """A top_k of 40.0 went through, and the first draw with it ended the engine."""
    with pytest.raises(InputError) as caught:
        Sampling(**{name: value})
    assert caught.value.key == "setting_whole"


@pytest.mark.parametrize("seed", [-1, MAX_SEED + 1, 1.5, "7", True, math.nan])
def test_a_seed_that_is_none_is_refused(seed: Any) -> None:
    with pytest.raises(InputError) as caught:
        Sampling(seed=seed)
    assert caught.value.params["name"] == "seed"


@pytest.mark.parametrize("stop", [("",), ("a", ""), ("a",) * (MAX_STOP_STRINGS + 1), (5,), (None,)])
def test_stop_strings_that_cannot_stop_are_refused(stop: Any) -> None:
    with pytest.raises(InputError) as caught:
        Sampling(stop=stop)
    assert caught.value.key == "stop_strings"


def test_as_many_stop_strings_as_are_allowed_are_taken() -> None:
    assert len(Sampling(stop=("x",) * MAX_STOP_STRINGS).stop) == MAX_STOP_STRINGS
