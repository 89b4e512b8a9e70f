"""The Hub's own search, for models in the containers that run here."""

from __future__ import annotations

import urllib.parse
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from core.checkpoint.containers.registry import find_container
from core.checkpoint.families import families
from core.checkpoint.headers import DTYPE_BYTES
from core.checkpoint.judgement import judge
from core.checkpoint.settings import plain_settings
from core.checkpoint.text_config import quantization_of
from core.common.errors import CheckpointError, DeckError, InputError
from core.common.values import is_whole, printable
from core.hub.address import DEFAULT_REVISION, REPO, Address
from core.hub.endpoints import checked_endpoint
from core.hub.metadata import Repository, open_client, parse_json, read_bytes

NUM_RESULTS = 40
TAGS = ("gptq", "awq", "auto-round", "compressed-tensors")
MAX_QUERY_CHARS = 200
# 40 results with their tags are about 100 KB.
MAX_ANSWER_BYTES = 5_000_000
PROPERTIES = ("downloads", "lastModified", "tags", "gated", "safetensors", "config")


@dataclass(frozen=True, slots=True)
class FoundModel:
    """One repository as the search tells of it. `size_bytes` is that of its main branch's weights, None if untold.

    `modified` is a date, 2024-09-25; `license_name` and `modified` are empty where nothing is told. `refusal`: why it
    cannot run here, as far as the search tells; more is known once its files are read.
    """

    repo: str
    downloads: int
    size_bytes: int | None
    license_name: str
    modified: str
    is_gated: bool
    refusal: DeckError | None = None


def search_models(text: str, endpoint: str | None = None, token: str | None = None) -> tuple[FoundModel, ...]:
    """The quantized models whose names hold `text`, the most downloaded first.

    The Hub tags a repository with the quantization that its configuration names. Its filter takes tags that all hold,
    so each container is asked for by itself. Raises DeckError where the server cannot be asked, refuses, or has no
    search.
    """
    endpoint = checked_endpoint(endpoint)
    with open_client(token) as client:
        source = Repository(client, endpoint, Address("", DEFAULT_REVISION))
        try:
            with ThreadPoolExecutor(len(TAGS)) as pool:
                routes = [search_route(text, tag) for tag in TAGS]
                answers = list(pool.map(lambda route: read_bytes(source, route, MAX_ANSWER_BYTES), routes))
        except InputError as error:  # Of a repository there is none here, so it is the route that is not there.
            raise DeckError("hub_no_search", host=source.host) from error
    # A repository can have two of the tags.
    found = {model.repo: model for data in answers for model in parse_results(data, source.host)}
    return tuple(sorted(found.values(), key=lambda model: -model.downloads)[:NUM_RESULTS])


def search_route(text: str, tag: str = TAGS[0]) -> str:
    query = [("search", text.strip()[:MAX_QUERY_CHARS]), ("filter", tag), ("sort", "downloads")]
    query += [("limit", str(NUM_RESULTS)), *(("expand", name) for name in PROPERTIES)]
    return f"/api/models?{urllib.parse.urlencode(query)}"


def parse_results(data: bytes, host: str) -> tuple[FoundModel, ...]:
    """The results in the server's answer. What is no model of it is left out."""
    listed = parse_json(data)
    if not isinstance(listed, list):
        raise DeckError("hub_answer", host=host)
    found = [_model(entry) for entry in listed if isinstance(entry, dict) and _is_name(entry.get("id"))]
    return tuple(sorted(found, key=lambda model: -model.downloads)[:NUM_RESULTS])


def _is_name(value: object) -> bool:
    return isinstance(value, str) and bool(REPO.fullmatch(value))


def _model(entry: dict[str, Any]) -> FoundModel:
    downloads, tags, modified = entry.get("downloads"), entry.get("tags"), entry.get("lastModified")
    return FoundModel(
        repo=entry["id"],
        downloads=downloads if is_whole(downloads) else 0,
        size_bytes=weights_size(entry.get("safetensors")),
        license_name=_license(tags if isinstance(tags, list) else []),
        modified=printable(modified[:10]) if isinstance(modified, str) else "",
        is_gated=bool(entry.get("gated")),
        refusal=_refusal(entry["id"], entry.get("config"), tags if isinstance(tags, list) else []),
    )


def _refusal(repo: str, config: object, tags: list[Any]) -> DeckError | None:
    """What can be judged by the part of a config.json that the Hub tells; where it tells none, by the family's tag."""
    told = dict(config) if isinstance(config, dict) else {}
    if not told.get("model_type"):
        named = [tag for tag in tags if isinstance(tag, str) and tag in families()]
        told |= {"model_type": named[0]} if len(named) == 1 else {}
    try:
        if isinstance(found := plain_settings(quantization_of(told)), dict):
            find_container(repo, found)
    except CheckpointError as error:
        return judge(repo, told) or error
    return judge(repo, told)


def weights_size(safetensors: object) -> int | None:
    """The bytes of the weights, from the number of elements of each type: {"parameters": {"I32": 9, "F16": 5}}."""
    counts = safetensors.get("parameters") if isinstance(safetensors, dict) else None
    if not isinstance(counts, dict) or not counts:
        return None
    if not all(dtype in DTYPE_BYTES and is_whole(count) and count >= 0 for dtype, count in counts.items()):
        return None
    size: int = sum(DTYPE_BYTES[dtype] * count for dtype, count in counts.items())
    return size


def _license(tags: list[Any]) -> str:
    named = (tag for tag in tags if isinstance(tag, str) and tag.startswith("license:"))
    return printable(next(named, "").removeprefix("license:")[:40])
