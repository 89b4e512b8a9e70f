"""The reader's clock: the time zone of their browser."""

from __future__ import annotations

from datetime import timedelta, timezone, tzinfo
from zoneinfo import ZoneInfo

import streamlit as st

MAX_MINUTES = 24 * 60 - 1


def reader_zone() -> tzinfo:
    """The browser's time zone; its present distance from UTC where this machine does not know the zone's name."""
    try:
        return ZoneInfo(st.context.timezone or "")
    except (KeyError, ValueError, OSError):
        minutes = st.context.timezone_offset or 0
        return timezone(timedelta(minutes=max(-MAX_MINUTES, min(MAX_MINUTES, -minutes))))
