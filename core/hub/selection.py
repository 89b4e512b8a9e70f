"""Selects the files of a repository that a model needs to run, and refuses lists that no honest repository has."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence

from core.checkpoint.checkpoint import QUANTIZE_CONFIGS
from core.checkpoint.headers import INDEX_SUFFIX, max_json_bytes
from core.checkpoint.weight_files import is_plain_name
from core.common.errors import CheckpointError
from core.common.values import quoted_text
from core.hub.source import RemoteFile

# Configurations, tokenizers, chat templates and what says how a model may be used.
SUFFIXES = (".json", ".jinja", ".model", ".tiktoken", ".txt", ".md")
LICENCES = ("license", "notice", "use_policy")
# Of the same weights in other formats.
OTHER_INDEX = ".index.json"
# The largest tokenizers have 40 MB.
MAX_SMALL_BYTES = 100_000_000
CONFIGS = ("config.json", *QUANTIZE_CONFIGS)
MAX_NAME_BYTES = 240


def check_names(repo: str, names: Iterable[str]) -> None:
    """Raise CheckpointError where a name leads out of its folder, or is none that a disk can have."""
    for name in names:
        parts = name.split("/")
        is_honest = name.isprintable() and "\\" not in name and not {"", ".", ".."} & set(parts)
        if not is_honest or any(len(part.encode("utf-8", "replace")) > MAX_NAME_BYTES for part in parts):
            raise CheckpointError("hub_file_name", repo=repo, file=quoted_text(name))


def check_configs(repo: str, files: Iterable[RemoteFile]) -> None:
    """Raise CheckpointError where a file that is read as a whole is larger than such files are."""
    for file in files:
        is_config = file.name in CONFIGS or file.name.endswith(INDEX_SUFFIX)
        if (is_config and file.size_bytes > max_json_bytes(file.name)) or (is_small(file.name) and _is_too_large(file)):
            size_mb = round(file.size_bytes / 1e6)
            raise CheckpointError("hub_file_size", repo=repo, file=quoted_text(file.name), size_mb=size_mb)


def select(repo: str, files: Iterable[RemoteFile], weights: Sequence[str]) -> tuple[RemoteFile, ...]:
    """The files to fetch, the small ones first: `weights`, and what is small and belongs to a model.

    Raises CheckpointError where two of them differ only in the case of letters: a disk may take them for one.
    """
    wanted = [file for file in files if file.name in weights or is_small(file.name)]
    seen: dict[str, str] = {}
    for file in wanted:
        other = seen.setdefault(unicodedata.normalize("NFC", file.name).casefold(), file.name)
        if other != file.name:
            raise CheckpointError("hub_same_names", repo=repo, first=quoted_text(other), second=quoted_text(file.name))
    return tuple(sorted(wanted, key=lambda file: (file.name in weights, file.name)))


def is_small(name: str) -> bool:
    """Whether a model needs this file beside its weights. What lies in a subfolder is another format's, or a demo."""
    lower = name.lower()
    if not is_plain_name(name) or lower.startswith("."):
        return False
    if lower.endswith(OTHER_INDEX):
        return lower.endswith(INDEX_SUFFIX)
    return lower.endswith(SUFFIXES) or lower.startswith(LICENCES)


def _is_too_large(file: RemoteFile) -> bool:
    return file.size_bytes > MAX_SMALL_BYTES
