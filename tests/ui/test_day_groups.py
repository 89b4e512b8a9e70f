"""The groups of the list of chats, by the reader's own days."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, tzinfo
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.chat.records import ChatInfo
from ui.chat.day_groups import Group, grouped

NOW = datetime(2026, 3, 4, 0, 30, tzinfo=UTC)


def chat(number: int, changed_s: float, is_pinned: bool = False) -> ChatInfo:
    return ChatInfo(number, "", False, 0.0, changed_s, is_pinned, "instruct", "", {}, "")


def groups(hours_ago: list[float], zone: tzinfo = UTC) -> list[tuple[Group, list[int]]]:
    chats = [chat(number, (NOW - timedelta(hours=hours)).timestamp()) for number, hours in enumerate(hours_ago)]
    return [(group, [info.id for info in found]) for group, found in grouped(chats, NOW.timestamp(), zone)]


def test_chats_stand_under_their_day_then_their_month() -> None:
    assert groups([0, 0.4, 0.6, 25, 7 * 24, 8 * 24 + 1, 500 * 24]) == [
        (Group("today"), [0, 1]),
        (Group("yesterday"), [2]),
        (Group("week"), [3, 4]),
        (Group("month", date(2026, 2, 1)), [5]),
        (Group("month", date(2024, 10, 1)), [6]),
    ]


@pytest.mark.parametrize(
    ("zone", "kind"), [("Pacific/Kiritimati", "today"), ("America/New_York", "today"), ("Etc/UTC", "yesterday")]
)
def test_a_day_is_the_readers_own(zone: str, kind: str) -> None:
    """Half an hour past midnight in UTC it is still the evening in New York, and afternoon on Kiritimati."""
    assert groups([1], ZoneInfo(zone))[0][0].kind == kind


def test_pinned_chats_come_first_whenever_they_changed() -> None:
    chats = [chat(1, 0.0, is_pinned=True), chat(2, NOW.timestamp(), is_pinned=True), chat(3, NOW.timestamp())]
    found = [(group.kind, [info.id for info in chats]) for group, chats in grouped(chats, NOW.timestamp(), UTC)]
    assert found == [("pinned", [1, 2]), ("today", [3])]


@given(st.lists(st.floats(allow_nan=False), max_size=20), st.sampled_from(["UTC", "Asia/Shanghai", "America/Lima"]))
def test_every_time_has_one_group_and_the_order_stays(times: list[float], zone: str) -> None:
    """Also times that a damaged file or a clock that was put back has left."""
    chats = [chat(number, time_s) for number, time_s in enumerate(sorted(times, reverse=True))]
    found = grouped(chats, NOW.timestamp(), ZoneInfo(zone))
    assert [info for _, some in found for info in some] == chats
    kinds = ["today", "yesterday", "week", "month"]
    places = [(kinds.index(group.kind), -(group.month or date.max).toordinal()) for group, _ in found]
    assert all(one < other for one, other in pairwise(places))
