"""Where things lie on disk, and which version this is."""

from __future__ import annotations

import hashlib
import os
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DEFAULT_PORT = 6006
DEFAULT_HOST = "127.0.0.1"
# How much of a commit is shown, and names a model that lies in Hugging Face's cache.
COMMIT_CHARS = 8


@cache
def version() -> str:
    """This program's version, as pyproject.toml says."""
    import tomllib  # slow, and the check at every start goes without

    project: dict[str, str] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    return project["version"]


def models_dir() -> Path:
    """The folder with one folder a model."""
    return Path(os.environ.get("LLAMADECK_MODELS", ROOT / "models"))


def typed_path(text: str) -> Path | None:
    """The path that a person typed, with "~" for a home; None for what no file system has a place for."""
    try:
        path = Path(text).expanduser().absolute()
        path.exists()
    except (OSError, ValueError, RuntimeError):  # Too long, without a home, or with a zero in it.
        return None
    return path


def without_dots(path: Path) -> Path:
    """`path`, or where it leads if ".." is among its names: what lies there is not called so, and behind a link ".." is
    the parent of what the link leads to."""
    return Path(os.path.realpath(path)) if ".." in path.parts else path


def model_name(folder: Path) -> str:
    """What a model is called: like its folder, or OWNER_NAME@COMMIT, shortened, for one in Hugging Face's cache."""
    repo = cached_repo(folder)
    return folder.name if repo is None else f"{repo.replace('/', '_')}@{folder.name[:COMMIT_CHARS]}"


def cached_repo(folder: Path) -> str | None:
    """The repository whose snapshot in Hugging Face's cache `folder` is: CACHE/models--OWNER--NAME/snapshots/COMMIT."""
    kind, _, repo = folder.parent.parent.name.partition("--")
    return repo.replace("--", "/") if kind == "models" and repo and folder.parent.name == "snapshots" else None


def adapters_dir() -> Path:
    """The folder with one folder a LoRA adapter, beside the models."""
    return Path(os.environ.get("LLAMADECK_ADAPTERS", models_dir().parent / "adapters"))


def data_dir() -> Path:
    """The folder for what this program writes about its user: settings, chats and secrets."""
    return Path(os.environ.get("LLAMADECK_DATA", ROOT / "data"))


def person_dir(owner: str) -> Path:
    """The folder for what is one person's alone. `owner` is who signed in, as the gate names people: any text, so that
    no folder is named by it; "" is whoever is local or gave the password, from before there were others."""
    if not owner:
        return data_dir()
    return data_dir() / "people" / hashlib.sha256(owner.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def characters_dir() -> Path:
    """The folder with one YAML file and a picture a character."""
    return Path(os.environ.get("LLAMADECK_CHARACTERS", ROOT / "characters"))


def lorebooks_dir() -> Path:
    """The folder with one JSON file a lorebook, beside the characters."""
    return Path(os.environ.get("LLAMADECK_LOREBOOKS", characters_dir().parent / "lorebooks"))


def cache_dir() -> Path:
    """The folder for what can be made again: the starter's finished build."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "llamadeck"
