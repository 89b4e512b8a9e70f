"""Whose turn it is at the engine: pages first, clients of the API one after another, nobody shut out."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.engine.fair_queue import MAX_PAGES_FIRST, MAX_PAST, PAGES, FairQueue, Turnstile


def order(turns: FairQueue[str]) -> list[str]:
    return [turns.take() for _ in range(len(turns))]


def test_a_page_goes_before_clients_that_waited_longer() -> None:
    turns: FairQueue[str] = FairQueue()
    for number in range(64):
        turns.add(f"a{number}", "a")
    turns.add("page")
    assert order(turns)[:2] == ["page", "a0"]


def test_a_client_with_one_request_waits_for_one_turn_of_each_other() -> None:
    turns: FairQueue[str] = FairQueue()
    for number in range(50):
        turns.add(f"a{number}", "a")
    for number in range(3):
        turns.add(f"b{number}", "b")
    turns.add("c0", "c")
    assert order(turns)[:8] == ["a0", "b0", "c0", "a1", "b1", "a2", "b2", "a3"]


def test_who_asks_again_after_a_turn_stands_behind_those_that_wait() -> None:
    turns: FairQueue[str] = FairQueue()
    turns.add("a0", "a")
    turns.add("b0", "b")
    assert turns.take() == "a0"
    turns.add("a1", "a")
    assert order(turns) == ["b0", "a1"]


def test_a_page_that_asks_without_end_lets_a_client_have_its_turn() -> None:
    turns: FairQueue[str] = FairQueue()
    turns.add("a0", "a")
    turns.add("a1", "a")
    said = []
    for number in range(2 * MAX_PAGES_FIRST + 2):
        turns.add(f"page{number}")
        said.append(turns.take())
    assert said.index("a0") == MAX_PAGES_FIRST and said.index("a1") == 2 * MAX_PAGES_FIRST + 1


def test_pages_that_were_alone_owe_nothing() -> None:
    turns: FairQueue[str] = FairQueue()
    for number in range(10):
        turns.add(f"page{number}")
        turns.take()
    turns.add("a0", "a")
    turns.add("page")
    assert order(turns) == ["page", "a0"]


def test_what_is_taken_back_costs_its_client_no_turn() -> None:
    turns: FairQueue[str] = FairQueue()
    turns.add("a0", "a")
    turns.add("b0", "b")
    turns.add("a1", "a")
    turns.remove("a0", "a")
    assert order(turns) == ["a1", "b0"]
    turns.add("c0", "c")
    turns.remove("c0", "c")
    assert len(turns) == 0 and list(turns) == []
    with pytest.raises(LookupError):
        turns.remove("c0", "c")
    with pytest.raises(LookupError):
        turns.take()


def test_who_is_not_ready_is_passed_by_only_so_many() -> None:
    """One adapter that was always asked for once kept another one's request waiting without end."""
    turns: FairQueue[str] = FairQueue()
    turns.add("waits", "a")
    for number in range(MAX_PAST):
        turns.add(f"b{number}", "b")
        assert turns.take_ready(lambda item: item != "waits") == f"b{number}"
    turns.add("page")
    turns.add("late", "b")
    assert turns.take_ready(lambda item: item not in ("waits", "page")) is None
    assert turns.take_ready(lambda item: True) == "page", "a person's own turn comes before"
    assert turns.take_ready(lambda item: True) == "waits" and turns.take() == "late"


def test_who_gives_up_waiting_holds_up_nobody() -> None:
    turns: FairQueue[str] = FairQueue()
    for name in ("waits", "waits too"):
        turns.add(name, "a")
        for number in range(MAX_PAST):
            turns.add(f"b{number}", "b")
            assert turns.take_ready(lambda item: item.startswith("b")) == f"b{number}"
        turns.remove(name, "a")
    assert len(turns) == 0


@given(st.lists(st.sampled_from([PAGES, "a", "b", "c", ""])))
def test_each_is_taken_once_in_the_order_of_its_line_and_nobody_waits_too_long(clients: list[str]) -> None:
    turns: FairQueue[tuple[str, int]] = FairQueue()
    for number, client in enumerate(clients):
        turns.add((client, number), client)
    taken = [turns.take() for _ in clients]
    assert Counter(taken) == Counter((client, number) for number, client in enumerate(clients))
    for client in set(clients):
        numbers = [number for one, number in taken if one == client]
        assert numbers == sorted(numbers)
    # Whoever waits from the beginning has its first turn after so many of others at most.
    others = len(set(clients) - {PAGES}) * (MAX_PAGES_FIRST + 1)
    for client in set(clients) - {PAGES}:
        assert next(place for place, (one, _) in enumerate(taken) if one == client) < others


def test_a_turnstile_lets_through_by_turns_and_no_more_than_its_width() -> None:
    """A server that writes one answer at a time is given the page's before those of clients that waited longer."""

    async def run() -> list[str]:
        stile, said, hold = Turnstile(), list[str](), asyncio.Event()

        async def go(name: str, client: str) -> None:
            async with stile.inside(client):
                said.append(name)
                await hold.wait()

        tasks = []
        for name, client in (("a0", "a"), ("a1", "a"), ("b0", "b"), ("a2", "a"), ("left", "b"), ("page", PAGES)):
            tasks.append(asyncio.create_task(go(name, client)))
            await asyncio.sleep(0)
        tasks[4].cancel()
        assert said == ["a0"]
        hold.set()
        await asyncio.gather(*tasks, return_exceptions=True)
        async with stile.inside():
            return said

    assert asyncio.run(run()) == ["a0", "page", "a1", "b0", "a2"]


def test_who_leaves_when_the_turn_has_come_hands_it_on() -> None:
    async def run() -> bool:
        stile = Turnstile()
        async with stile.inside("a"):
            leaving = asyncio.create_task(stile.inside("b").__aenter__())
            following = asyncio.create_task(stile.inside("c").__aenter__())
            await asyncio.sleep(0)
        # Its turn has come, and it has not noticed yet.
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        await asyncio.wait_for(following, 10)
        return True

    assert asyncio.run(run())
