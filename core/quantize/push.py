"""Sends a finished model to the Hub, by huggingface_hub, with the token that downloads have."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from core.common.errors import DeckError, InputError
from core.common.urls import host_name
from core.common.values import printable, quoted_text
from core.hub.address import REPO
from core.hub.record import FILE
from core.hub.tokens import token_for

MAX_WHY_CHARS = 300


def check_push(repo: str, endpoint: str) -> str:
    """The token to send `repo` ("OWNER/NAME") with. Raises InputError for a name that is none, and without a token.

    A job of hours should not end with this.
    """
    if not REPO.fullmatch(repo) or repo.count("/") != 1 or ".." in repo:
        raise InputError("push_name", name=quoted_text(repo))
    token = token_for(endpoint)
    if token is None:
        raise InputError("push_token", host=host_name(endpoint))
    return token


def push(folder: Path, repo: str, endpoint: str) -> str:
    """Send all files in `folder` to `repo`, which is made where it is not there, private; returns its address.

    What went up before is not sent again. Raises InputError as check_push does, DeckError where the hub refuses.
    """
    token = check_push(repo, endpoint)
    import httpx2  # what huggingface_hub speaks HTTP with; both take a while to import
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api: Any = HfApi(endpoint=endpoint, token=token)
    try:
        address = api.create_repo(repo, private=True, exist_ok=True)
        api.upload_folder(repo_id=repo, folder_path=folder, ignore_patterns=[FILE, ".*"],
                          commit_message=f"Upload {folder.name}")  # fmt: skip
    except (HfHubHTTPError, httpx2.HTTPError, OSError, ValueError) as error:
        why = (
            printable(str(error).strip().splitlines()[0][:MAX_WHY_CHARS])
            if str(error).strip()
            else type(error).__name__
        )
        shown = printable(shlex.quote(str(folder)))
        raise DeckError("push_failed", repo=repo, host=host_name(endpoint), why=why, folder=shown) from error
    return str(address)
