"""The servers that models come from."""

from __future__ import annotations

import os

from core.common.errors import InputError
from core.common.urls import origin
from core.common.values import quoted_text

HUGGINGFACE = "https://huggingface.co"
# The mirror that people in China use; it answers on the Hub's own routes.
MIRROR = "https://hf-mirror.com"
MODELSCOPE = "https://www.modelscope.cn"


def default_endpoint() -> str:
    """$HF_ENDPOINT where it is set, else huggingface.co, as it stands."""
    return os.environ.get("HF_ENDPOINT", "").strip() or HUGGINGFACE


def checked_endpoint(endpoint: str | None) -> str:
    """`endpoint` or the default one, without a slash at its end. Raises InputError for what is no web address."""
    found = (endpoint or default_endpoint()).strip().rstrip("/")
    if origin(found) is None:
        raise InputError("hub_endpoint", endpoint=quoted_text(found))
    return found
