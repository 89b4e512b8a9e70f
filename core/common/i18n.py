"""The texts that people read, from locales/*.json."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

LOCALES = Path(__file__).resolve().parents[2] / "locales"
LANGUAGES = {"en": "English", "zh": "简体中文"}


@cache
def catalogue(language: str) -> dict[str, str]:
    """Every text of one language by its dotted key, `section.name`."""
    sections: dict[str, dict[str, str]] = json.loads((LOCALES / f"{language}.json").read_text("utf-8"))
    return {f"{section}.{name}": text for section, texts in sections.items() for name, text in texts.items()}


def translate(language: str, key: str, **params: str | int | float) -> str:
    """The text of `key` with `params` put into its {placeholders}; where it is missing English, then the key."""
    text = catalogue(language).get(key) or catalogue("en").get(key, key)
    return text.format(**params) if params else text


def guess_language(locale: str | None) -> str:
    """The language to begin with for a browser's or a system's locale, such as "zh-CN" or "en_US.UTF-8"."""
    return "zh" if (locale or "").lower().startswith("zh") else "en"
