"""Who may try the password while others guess: an hour of 20 guesses a second on a clock of its own."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from core.access import access as access_module
from core.access import password
from core.access import turns as turns_module
from core.access.access import Access
from core.access.delays import ALL_CLIENTS, ONE_CLIENT, Steps
from core.access.secret_file import SecretFile
from core.access.turns import MAX_WAITING, MAX_WAITING_TOGETHER, Client, TooManyTries, Turn, Turns

HOUR_S, GUESSES_A_SECOND, PATIENCE_S = 3600, 20, 9.0
PROXY, HOME = "203.0.113.1", "198.51.100.7"


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def turns(clock: Clock) -> Turns:
    return Turns(clock, random.Random(7).choice)


def sign_in(turns: Turns, client: Client) -> None:
    turn = turns.begin(client)
    assert turn.is_now
    turns.finish(turn, True)


def fail(turns: Turns, client: Client) -> None:
    turn = turns.begin(client)
    assert turn.is_now
    turns.finish(turn, False)


class Guessers:
    """They keep a connection open for each guess until it is looked at or refused, as the gate does for them."""

    def __init__(self, turns: Turns, clock: Clock, make_client: Callable[[int], Client]) -> None:
        self._turns, self._clock, self._make_client = turns, clock, make_client
        self._open: list[tuple[float, Turn]] = []
        self.num_looked_at = self._num = 0

    def step(self) -> None:
        self._num += 1
        try:
            self._open.append((self._clock.now_s, self._turns.begin(self._make_client(self._num))))
        except TooManyTries:
            pass
        self._turns.advance()
        for began_s, turn in self._open:
            if turn.is_now:
                self.num_looked_at += 1
                self._turns.finish(turn, False)
                turn.is_over = True
            elif self._clock.now_s - began_s > PATIENCE_S:
                self._turns.give_up(turn)
        self._open = [pair for pair in self._open if not pair[1].is_over]


def changing(number: int) -> Client:
    return Client(f"{11 + number % 180}.{number // 180 % 256}.{number // 46080 % 256}.9")


def one_address(number: int) -> Client:
    return Client(PROXY)


def one_address_with_pages(number: int) -> Client:
    """Guessers that have the sign-in page shown to them before each guess."""
    return Client(PROXY, page=f"page {number}")


OWNERS = {
    "a browser that signed in before, behind the same proxy": Client(PROXY, device="laptop", page="p"),
    "a browser that signed in before, anywhere": Client("192.0.2.77", device="laptop", page="p"),
    "a new browser, behind the same proxy": Client(PROXY, page="owner"),
    "a new browser, anywhere": Client("192.0.2.77", page="owner"),
    "a program, where the password was given before": Client(HOME),
}


@pytest.mark.parametrize("guessers", [changing, one_address, one_address_with_pages], ids=lambda one: one.__name__)
def test_the_owner_gets_in_within_seconds_while_others_guess_for_an_hour(
    turns: Turns, clock: Clock, guessers: Callable[[int], Client]
) -> None:
    """20 guesses a second once took each free turn: the owner, who waited as told, had none in an hour."""
    sign_in(turns, Client(HOME))
    owners = dict(OWNERS)
    if guessers is one_address_with_pages:
        # Nothing tells this one from them but luck.
        del owners["a new browser, behind the same proxy"]
    guessing = Guessers(turns, clock, guessers)
    arriving = itertools.cycle(owners.items())
    waited_s: dict[str, list[float]] = {name: [] for name in owners}
    name, began_s, trying, again_s = "", 0.0, None, 0.0
    for tick in range(HOUR_S * GUESSES_A_SECOND):
        clock.now_s = tick / GUESSES_A_SECOND
        guessing.step()
        if not name and tick % (20 * GUESSES_A_SECOND) == 0:
            (name, client), began_s, again_s = next(arriving), clock.now_s, clock.now_s
        if name and trying is None and clock.now_s >= again_s:
            try:
                trying = turns.begin(client)
            except TooManyTries as error:
                again_s = clock.now_s + error.wait_s
        if trying is not None and trying.is_now:
            turns.finish(trying, True)
            waited_s[name].append(clock.now_s - began_s)
            name, trying = "", None
    assert all(len(found) > 30 for found in waited_s.values())
    assert max(max(found) for found in waited_s.values()) <= 9, {name: max(found) for name, found in waited_s.items()}
    # The free ones, one in 4 s, and what those between pause and what an address is free to try.
    assert guessing.num_looked_at <= ALL_CLIENTS.free + HOUR_S / ALL_CLIENTS.longest_s + 10


def test_a_device_that_guesses_waits_as_anybody_does(turns: Turns) -> None:
    for _ in range(ONE_CLIENT.free):
        fail(turns, Client(HOME, device="laptop"))
    with pytest.raises(TooManyTries):
        turns.begin(Client(HOME, device="laptop"))
    sign_in(turns, Client(HOME, device="phone"))


def test_one_page_is_no_way_to_guess_for_ever(turns: Turns) -> None:
    for number in range(ONE_CLIENT.free):
        fail(turns, Client(f"192.0.2.{number}", page="one"))
    with pytest.raises(TooManyTries):
        turns.begin(Client("192.0.2.99", page="one"))


def test_many_addresses_together_are_slowed_down(turns: Turns, clock: Clock) -> None:
    for number in range(ALL_CLIENTS.free):
        fail(turns, changing(number))
    turn = turns.begin(changing(1000))
    assert not turn.is_now
    clock.now_s += turns.advance()
    turns.advance()
    assert turn.is_now


def test_the_queue_has_an_end_and_the_longest_part_of_it_gives_way(turns: Turns) -> None:
    busy = turns.begin(changing(0))
    waiting = [turns.begin(Client("192.0.2.77", page="owner"))]
    refused = 0
    for number in range(1, 500):
        try:
            waiting.append(
                turns.begin(changing(number) if number % 2 else Client(f"192.0.2.{number % 9}", page=f"{number}"))
            )
        except TooManyTries:
            refused += 1
    kept = [turn for turn in waiting if not turn.is_over]
    assert busy.is_now and len(kept) <= MAX_WAITING and kept[0] is waiting[0]
    assert sum(turn.group == "" for turn in kept) <= MAX_WAITING_TOGETHER
    assert refused + len(waiting) == 500


def test_whoever_gives_up_holds_nobody_up(turns: Turns) -> None:
    first, second, third = (turns.begin(changing(number)) for number in range(3))
    turns.give_up(second)
    turns.give_up(first)
    assert third.is_now


def test_the_right_password_is_not_counted_against_anybody(turns: Turns, clock: Clock) -> None:
    for number in range(ALL_CLIENTS.free * 2):
        turn = turns.begin(changing(number))
        assert turn.is_now
        turns.finish(turn, True)


def test_failures_of_an_address_that_many_share_are_nobodys(turns: Turns, clock: Clock) -> None:
    """Four wrong guesses behind a proxy on another machine once refused the owner."""
    sign_in(turns, Client(PROXY))
    for _ in range(40):
        turn = turns.begin(Client(PROXY))
        clock.now_s += turns.advance()
        turns.advance()
        turns.finish(turn, False)
    turns.begin(Client(PROXY))


# Waiting --------------------------------------------------------------------------------------------------------------

PASSWORD = "correct horse battery"


@pytest.fixture
def access(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Access:
    monkeypatch.setattr(password, "LOG2_N", 4)
    made = Access(SecretFile(tmp_path / "access.json"), {})
    made.set_password(PASSWORD)
    return made


def test_who_has_to_wait_for_others_waits_and_is_not_refused(access: Access, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns_module, "ALL_CLIENTS", Steps(free=0, first_s=0.02, longest_s=0.02))

    async def run() -> list[bool]:
        others = [access.try_password_in_turn("a guess", changing(number)) for number in range(6)]
        return await asyncio.gather(*others, access.try_password_in_turn(PASSWORD, Client(PROXY, page="owner")))

    assert asyncio.run(run()) == [False] * 6 + [True]


def test_who_waits_too_long_is_told_so_and_leaves_the_queue(access: Access, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns_module, "ALL_CLIENTS", Steps(free=0, first_s=600.0, longest_s=600.0))
    monkeypatch.setattr(access_module, "PATIENCE_S", 0.05)

    async def run() -> None:
        assert not await access.try_password_in_turn("a guess", changing(1))
        with pytest.raises(TooManyTries) as caught:
            await access.try_password_in_turn(PASSWORD, changing(2))
        assert 0 < caught.value.wait_s <= 600
        monkeypatch.setattr(access_module, "PATIENCE_S", 600.0)
        waiting = asyncio.ensure_future(access.try_password_in_turn(PASSWORD, changing(3)))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait({waiting})
        # A browser that signed in before waits for none of them.
        assert await access.try_password_in_turn(PASSWORD, Client(PROXY, device="laptop"))

    asyncio.run(run())
    assert not access._turns._waiting
