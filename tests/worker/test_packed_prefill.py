"""How thread blocks share the products of a prefill, and the shared memory that one needs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.memory.kernels.llamadeck import PREFILL_PARTIAL_SUM_BYTES
from core.worker.kernels.packed_prefill import (
    MIN_SHARE,
    ODD_ROW_TILES,
    ONE_ROW_TILES,
    TWO_ROW_TILES,
    PrefillTile,
    shared_bytes,
    stream_k_grid,
    tile_rows_of,
)
from core.worker.kernels.packing import CodeFormat

# What a block of threads may have at most on compute capability 9.0.
MOST_SHARED_BYTES = 228 * 1024


@given(st.integers(1, 2000), st.integers(1, 500), st.integers(1, 200))
def test_what_is_shared_keeps_the_gpu_busy_and_is_worth_it(units: int, turns: int, multiprocessors: int) -> None:
    grid, whole = stream_k_grid(units, turns, multiprocessors)
    assert 1 <= grid <= multiprocessors
    assert 0 <= whole <= units
    if whole < units:
        # Whole rounds for all, and a share for each: one that had none would be waited for without end.
        assert whole % grid == 0
        assert (units - whole) * turns >= MIN_SHARE * grid


@pytest.mark.parametrize(
    ("units", "turns", "expected"),
    [
        pytest.param(264, 64, (132, 264), id="two full rounds"),
        pytest.param(128, 64, (128, 128), id="nearly a round"),
        pytest.param(160, 128, (132, 132), id="a round, and 28 units for all"),
        pytest.param(64, 64, (132, 0), id="half a round for all"),
        pytest.param(1, 8, (2, 0), id="too little for all"),
        pytest.param(133, 64, (132, 0), id="a round, and too little for all without it"),
        pytest.param(397, 64, (132, 264), id="three rounds, and too little for all"),
        pytest.param(133, 3, (132, 133), id="units that are too short"),
    ],
)
def test_a_last_round_is_shared_where_it_is_short(units: int, turns: int, expected: tuple[int, int]) -> None:
    assert stream_k_grid(units, turns, 132) == expected


@pytest.mark.parametrize(
    ("rows", "tile"),
    [
        *((rows, one) for rows, some in ONE_ROW_TILES.items() for one in some),
        *((rows, one) for rows, some in ODD_ROW_TILES.items() for one in some),
        (128, TWO_ROW_TILES),
    ],
)
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group_size", [-1, 32, 64, 128])
@pytest.mark.parametrize("has_zeros", [False, True])
def test_a_block_of_threads_has_room(rows: int, tile: PrefillTile, bits: int, group_size: int, has_zeros: bool) -> None:
    # Each also takes a kilobyte of the 228 that a multiprocessor has.
    assert shared_bytes(tile, CodeFormat(bits, group_size, has_zeros), rows) + 1024 <= MOST_SHARED_BYTES
    # So has what it adds up for another.
    assert tile.outputs // tile.cluster * tile.row_tiles * rows * 4 <= PREFILL_PARTIAL_SUM_BYTES


@pytest.mark.parametrize(("rows", "expected"), [(1, 32), (32, 32), (33, 64), (64, 64), (65, 128), (4096, 128)])
def test_few_rows_lie_in_small_tiles(rows: int, expected: int) -> None:
    assert tile_rows_of(rows) == expected


def test_a_matrix_of_an_odd_number_of_k_blocks_is_multiplied_one_at_a_time() -> None:
    assert all(tile.turn == 1 for some in ODD_ROW_TILES.values() for tile in some)
    assert all(tile.turn == 1 or rows in ODD_ROW_TILES for rows, some in ONE_ROW_TILES.items() for tile in some)
    assert TWO_ROW_TILES.turn == 1
