"""What every body that a client may send has in common."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Strict(BaseModel):
    """No number is read from a text, no truth from a number."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True, allow_inf_nan=False)
