"""Where LoRA adapters lie: one folder each in adapters/, or inside their base's own folder."""

from __future__ import annotations

import os
from pathlib import Path

from core.checkpoint.adapters import inner_adapters, is_adapter, require_outer
from core.checkpoint.weight_files import is_plain_name
from core.common.errors import InputError
from core.common.paths import adapters_dir, typed_path, without_dots
from core.common.values import printable, quoted_text


def find_adapter(text: str, base: Path | None = None) -> Path:
    """The folder of the adapter that `text` names: a path, one in adapters/, or one inside the base's folder.

    Raises InputError where there is none, CheckpointError for a folder that has some in it.
    """
    typed = typed_path(text)
    places = [] if typed is None else [typed, adapters_dir() / text, *([base / text] if base is not None else [])]
    found = next((place for place in places if is_adapter(place)), None)
    if found is None:
        for place in places:
            require_outer(place)
        raise InputError("adapter_unknown", name=quoted_text(text), folder=printable(str(adapters_dir())))
    return without_dots(found)


def list_adapters(base: Path | None = None) -> list[Path]:
    """The adapters that lie in adapters/ and inside the base's folder, by name; of two with one name the first. Also
    folders that have adapters in them, which whoever reads them is told."""
    places = [adapters_dir(), *([base] if base is not None else [])]
    found: dict[str, Path] = {}
    for place in places:
        for folder in _adapters_in(place):
            found.setdefault(folder.name, folder)
    return list(found.values())


def _adapters_in(place: Path) -> list[Path]:
    try:
        # What begins with a dot is unfinished: a download, or a deletion.
        return sorted(
            path
            for path in place.iterdir()
            if is_plain_name(path.name)
            and not path.name.startswith(".")
            and path.is_dir()
            and (is_adapter(path) or inner_adapters(path))
        )
    except OSError:
        return []


def listed_adapter(text: str, base: Path | None = None) -> Path:
    """The folder of the adapter that `text` names: one in adapters/, or with a base one in the base's own folder.
    Raises InputError for any other."""
    typed = typed_path(text)
    if not text.strip() or typed is None:
        raise InputError("adapter_unnamed", name=quoted_text(text))
    path = os.path.abspath(typed)
    place = adapters_dir() if base is None else base
    found = next((one for one in _adapters_in(place) if text == one.name or path == os.path.abspath(one)), None)
    if found is not None:
        return found
    key = "adapter_unlisted" if is_adapter(typed) else "adapter_unknown"
    raise InputError(key, name=quoted_text(text), folder=printable(str(place)))
