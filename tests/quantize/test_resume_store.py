"""What gptqmodel keeps of a job is the same by our methods, and takes less memory and time."""

from __future__ import annotations

import gc
import hashlib
import weakref
from pathlib import Path

import pytest
import torch
from gptqmodel.looper.checkpoint_store import CheckpointConfig, CheckpointCorrupt, CheckpointStore
from gptqmodel.looper.continuation import ContinuationCodec

from core.quantize.child import resume_store


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    from gptqmodel.looper import continuation

    monkeypatch.setattr(continuation, "save", continuation.save)
    for name in ("get", "object_path"):
        monkeypatch.setattr(CheckpointStore, name, getattr(CheckpointStore, name))
    resume_store.install()


def test_what_is_kept_of_a_layer_does_not_stay_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A 7B took a gigabyte more with each layer, until Python happened to look for cycles."""
    copies: list[weakref.ref[torch.Tensor]] = []
    clone = torch.Tensor.clone

    def seen(tensor: torch.Tensor) -> torch.Tensor:
        copies.append(weakref.ref(copy := clone(tensor)))
        return copy

    monkeypatch.setattr(torch.Tensor, "clone", seen)
    state = {"rows": [torch.arange(6.0).view(2, 3), torch.ones(4, dtype=torch.bfloat16)], "at": 3}
    gc.disable()
    try:
        data = ContinuationCodec.dumps(state)
        assert len(copies) == 2 and all(copy() is None for copy in copies)
    finally:
        gc.enable()
    found = ContinuationCodec.loads(bytes(data))
    assert found["at"] == 3 and all(map(torch.equal, found["rows"], state["rows"]))


def test_an_object_is_hashed_once_and_again_after_a_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All finished layers were hashed several times after each layer."""
    hashed: list[str] = []
    plain = hashlib.file_digest

    def seen(stream, name):  # type: ignore[no-untyped-def]
        hashed.append(stream.name)
        return plain(stream, name)

    monkeypatch.setattr(hashlib, "file_digest", seen)
    with CheckpointStore(CheckpointConfig(path=tmp_path)) as store:
        digest = store.put(b"a layer")
        path = store.object_path(digest)
        assert store.object_path(digest) == path and store.get(digest) == b"a layer"
        assert hashed == [str(path)]
        path.write_bytes(b"something else")
        with pytest.raises(CheckpointCorrupt):
            store.object_path(digest)
        with pytest.raises(CheckpointCorrupt):
            store.get(digest)
