"""What somebody named to be quantized: a folder, or a repository that is fetched first; looked at before it begins."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from core.common.errors import DeckError
from core.common.paths import cached_repo
from core.hub.address import check_address
from core.hub.source import Source
from core.library.hf_cache import is_snapshot_of, readable_snapshots
from core.quantize.source import PlainModel, is_meta_format, meta_model, plain_model, read_plain


@dataclass(frozen=True, slots=True)
class Target:
    """`model` is what is known of it without its weights. Of `folder` and `source` one is None."""

    model: PlainModel
    folder: Path | None
    source: Source | None
    is_meta: bool = False

    @property
    def title(self) -> str:
        """The model's own name, without its owner, which the result's name begins with."""
        if self.source is not None:
            return self.source.address.repo.rpartition("/")[2]
        assert self.folder is not None
        repo = cached_repo(self.folder)
        return repo.rpartition("/")[2] if repo else self.folder.resolve().name

    @property
    def repo(self) -> str:
        """Where it came from, as far as that is known; or ""."""
        if self.source is not None:
            return self.source.name
        return (self.folder is not None and cached_repo(self.folder)) or ""

    @property
    def fetched_bytes(self) -> int:
        """What its download takes; 0 of a folder."""
        return self.model.size_bytes if self.folder is None else 0

    @property
    def tokenizer_folder(self) -> Path | None:
        """Where the model's tokenizer can be read already: not of what is fetched or converted first."""
        return None if self.is_meta else self.folder


def folder_target(folder: Path) -> Target:
    """Raises InputError where there is no model, CheckpointError for one that cannot be quantized."""
    if is_meta_format(folder):
        return Target(meta_model(folder), folder, None, is_meta=True)
    return Target(read_plain(folder), folder, None)


def repo_target(source: Source, token: str | None) -> Target:
    """Asks the hub, unless Hugging Face's cache has the model. Raises InputError, CheckpointError, DeckError."""
    check_address(source.address)
    cached = next((folder for folder in readable_snapshots() if is_snapshot_of(folder, source)), None)
    if cached is not None and not _is_incomplete(cached):
        return folder_target(cached)
    # The HTTP client takes longer to import than a folder to be read.
    from core.hub.branches import OPEN
    from core.hub.metadata import RepositoryFiles, open_client

    with open_client(token) as client:
        return Target(plain_model(RepositoryFiles(OPEN[source.kind](client, source))), None, source)


def _is_incomplete(folder: Path) -> bool:
    """Whether a snapshot lacks files: other programs fetch parts of a repository."""
    try:
        read_plain(folder)
    except DeckError as error:
        return error.key in ("no_weights", "missing_shard", "quantize_no_config", "tokenizer_missing")
    return False
