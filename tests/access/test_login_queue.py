"""Who may try the password while others guess: an hour of 20 guesses a second on a clock of its own."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from core.access import access as access_module
from core.access import login_queue, password
from core.access.access import Access
from core.access.delays import ALL_CLIENTS, ONE_CLIENT, LoginDelaySteps
from core.access.login_queue import MAX_WAITING, MAX_WAITING_TOGETHER, Client, LoginAttempt, LoginQueue, TooManyAttempts
from core.access.secret_file import SecretFile

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
def queue(clock: Clock) -> LoginQueue:
    return LoginQueue(clock, random.Random(7).choice)


def sign_in(queue: LoginQueue, client: Client) -> None:
    attempt = queue.begin(client)
    assert attempt.is_now
    queue.finish(attempt, True)


def fail(queue: LoginQueue, client: Client) -> None:
    attempt = queue.begin(client)
    assert attempt.is_now
    queue.finish(attempt, False)


class Guessers:
    """They keep a connection open for each guess until it is looked at or refused, as the gate does for them."""

    def __init__(self, queue: LoginQueue, clock: Clock, make_client: Callable[[int], Client]) -> None:
        self._queue, self._clock, self._make_client = queue, clock, make_client
        self._open: list[tuple[float, LoginAttempt]] = []
        self.num_looked_at = self._num = 0

    def step(self) -> None:
        self._num += 1
        with contextlib.suppress(TooManyAttempts):
            self._open.append((self._clock.now_s, self._queue.begin(self._make_client(self._num))))
        self._queue.advance()
        for began_s, attempt in self._open:
            if attempt.is_now:
                self.num_looked_at += 1
                self._queue.finish(attempt, False)
                attempt.is_over = True
            elif self._clock.now_s - began_s > PATIENCE_S:
                self._queue.give_up(attempt)
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
    queue: LoginQueue, clock: Clock, guessers: Callable[[int], Client]
) -> None:
    """20 guesses a second once took each free attempt: the owner, who waited as told, had none in an hour."""
    sign_in(queue, Client(HOME))
    owners = dict(OWNERS)
    if guessers is one_address_with_pages:
        # Nothing tells this one from them but luck.
        del owners["a new browser, behind the same proxy"]
    guessing = Guessers(queue, clock, guessers)
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
                trying = queue.begin(client)
            except TooManyAttempts as error:
                again_s = clock.now_s + error.wait_s
        if trying is not None and trying.is_now:
            queue.finish(trying, True)
            waited_s[name].append(clock.now_s - began_s)
            name, trying = "", None
    assert all(len(found) > 30 for found in waited_s.values())
    assert max(max(found) for found in waited_s.values()) <= 9, {name: max(found) for name, found in waited_s.items()}
    # The free ones, one in 4 s, and what those between pause and what an address is free to try.
    assert guessing.num_looked_at <= ALL_CLIENTS.free + HOUR_S / ALL_CLIENTS.longest_s + 10


def test_a_device_that_guesses_waits_as_anybody_does(queue: LoginQueue) -> None:
    for _ in range(ONE_CLIENT.free):
        fail(queue, Client(HOME, device="laptop"))
    with pytest.raises(TooManyAttempts):
        queue.begin(Client(HOME, device="laptop"))
    sign_in(queue, Client(HOME, device="phone"))


def test_one_page_is_no_way_to_guess_for_ever(queue: LoginQueue) -> None:
    for number in range(ONE_CLIENT.free):
        fail(queue, Client(f"192.0.2.{number}", page="one"))
    with pytest.raises(TooManyAttempts):
        queue.begin(Client("192.0.2.99", page="one"))


def test_many_addresses_together_are_slowed_down(queue: LoginQueue, clock: Clock) -> None:
    for number in range(ALL_CLIENTS.free):
        fail(queue, changing(number))
    attempt = queue.begin(changing(1000))
    assert not attempt.is_now
    clock.now_s += queue.advance()
    queue.advance()
    assert attempt.is_now


def test_the_queue_has_an_end_and_the_longest_part_of_it_gives_way(queue: LoginQueue) -> None:
    busy = queue.begin(changing(0))
    waiting = [queue.begin(Client("192.0.2.77", page="owner"))]
    refused = 0
    for number in range(1, 500):
        try:
            waiting.append(
                queue.begin(changing(number) if number % 2 else Client(f"192.0.2.{number % 9}", page=f"{number}"))
            )
        except TooManyAttempts:
            refused += 1
    kept = [attempt for attempt in waiting if not attempt.is_over]
    assert busy.is_now and len(kept) <= MAX_WAITING and kept[0] is waiting[0]
    assert sum(attempt.group == "" for attempt in kept) <= MAX_WAITING_TOGETHER
    assert refused + len(waiting) == 500


def test_whoever_gives_up_holds_nobody_up(queue: LoginQueue) -> None:
    first, second, third = (queue.begin(changing(number)) for number in range(3))
    queue.give_up(second)
    queue.give_up(first)
    assert third.is_now


def test_the_right_password_is_not_counted_against_anybody(queue: LoginQueue, clock: Clock) -> None:
    for number in range(ALL_CLIENTS.free * 2):
        attempt = queue.begin(changing(number))
        assert attempt.is_now
        queue.finish(attempt, True)


def test_failures_of_an_address_that_many_share_are_nobodys(queue: LoginQueue, clock: Clock) -> None:
    """Four wrong guesses behind a proxy on another machine once refused the owner."""
    sign_in(queue, Client(PROXY))
    for _ in range(40):
        attempt = queue.begin(Client(PROXY))
        clock.now_s += queue.advance()
        queue.advance()
        queue.finish(attempt, False)
    queue.begin(Client(PROXY))


# Waiting --------------------------------------------------------------------------------------------------------------

PASSWORD = "correct horse battery"


@pytest.fixture
def access(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Access:
    monkeypatch.setattr(password, "LOG2_N", 4)
    made = Access(SecretFile(tmp_path / "access.json"), {})
    made.set_password(PASSWORD)
    return made


def test_who_has_to_wait_for_others_waits_and_is_not_refused(access: Access, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(login_queue, "ALL_CLIENTS", LoginDelaySteps(free=0, first_s=0.02, longest_s=0.02))

    async def run() -> list[bool]:
        others = [access.try_password_queued("a guess", changing(number)) for number in range(6)]
        return await asyncio.gather(*others, access.try_password_queued(PASSWORD, Client(PROXY, page="owner")))

    assert asyncio.run(run()) == [False] * 6 + [True]


def test_who_waits_too_long_is_told_so_and_leaves_the_queue(access: Access, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(login_queue, "ALL_CLIENTS", LoginDelaySteps(free=0, first_s=600.0, longest_s=600.0))
    monkeypatch.setattr(access_module, "PATIENCE_S", 0.05)

    async def run() -> None:
        assert not await access.try_password_queued("a guess", changing(1))
        with pytest.raises(TooManyAttempts) as caught:
            await access.try_password_queued(PASSWORD, changing(2))
        assert 0 < caught.value.wait_s <= 600
        monkeypatch.setattr(access_module, "PATIENCE_S", 600.0)
        waiting = asyncio.ensure_future(access.try_password_queued(PASSWORD, changing(3)))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait({waiting})
        # A browser that signed in before waits for none of them.
        assert await access.try_password_queued(PASSWORD, Client(PROXY, device="laptop"))

    asyncio.run(run())
    assert not access._queue._waiting
