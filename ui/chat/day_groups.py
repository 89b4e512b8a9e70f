"""The groups of the list of chats: pinned, today, yesterday, the last seven days, then by month."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date, datetime, tzinfo
from itertools import groupby
from typing import Literal, NamedTuple

from core.chat.records import ChatInfo

Kind = Literal["pinned", "today", "yesterday", "week", "month"]
WEEK_DAYS = 7


class Group(NamedTuple):
    """What a group is called: `kind`, and the first day of the month where it is one."""

    kind: Kind
    month: date | None = None


def grouped(chats: Iterable[ChatInfo], now_s: float, zone: tzinfo) -> list[tuple[Group, list[ChatInfo]]]:
    """The chats in their order, which has the pinned ones first and then the newest, under the group of each."""
    today = day_of(now_s, zone)

    def group_of(info: ChatInfo) -> Group:
        # A clock that was put back, or a damaged row, may name a day that is yet to come.
        return Group("pinned") if info.is_pinned else group_on(day_of(min(info.changed_s, now_s), zone), today)

    return [(group, list(found)) for group, found in groupby(chats, group_of)]


def day_of(time_s: float, zone: tzinfo) -> date:
    return datetime.fromtimestamp(max(0.0, time_s), zone).date()


def group_on(day: date, today: date) -> Group:
    days = (today - day).days
    if days <= 1:
        return Group("today" if days <= 0 else "yesterday")
    return Group("week") if days <= WEEK_DAYS else Group("month", day.replace(day=1))
