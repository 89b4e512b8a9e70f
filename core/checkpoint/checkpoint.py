"""A GPTQ checkpoint as data: its configuration and the shapes of its tensors, not a weight.

A checkpoint need not be on disk: core/hub/metadata.py reads one from the Hub, core/library/catalogue.py knows
some by heart. Reads a folder in any layout that GPTQ checkpoints have had: `model.safetensors`,
`gptq_model-4bit-128g.safetensors`, shards with or without an index; the quantization in `config.json`, in a
`quantize_config.json` beside it, or told by the tensors alone.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from core.checkpoint.completeness import refuse_unlike
from core.checkpoint.computed import is_computed
from core.checkpoint.config_values import refuse_values
from core.checkpoint.containers.gptq import is_marlin
from core.checkpoint.containers.registry import commonest_format, has_matrices, packed_as, read_format, read_matrices
from core.checkpoint.experts import are_experts_alike
from core.checkpoint.headers import TensorInfo, read_header, read_json, unreadable
from core.checkpoint.judgement import VISION, architecture_name, judge, require_runs
from core.checkpoint.layers import LayerShape, read_layers
from core.checkpoint.quantization import MatrixFormat, QuantizedMatrix
from core.checkpoint.rope import ContextLimits, read_limits
from core.checkpoint.settings import base_name, first_layout, fits, lacks_sizes, plain_settings, settings_by_tensors
from core.checkpoint.state_sizes import refuse_state_sizes
from core.checkpoint.tensor_names import has_guessing_part, has_picture_part, name_tensors
from core.checkpoint.text_config import has_pictures_left_out, quantization_of, text_config
from core.checkpoint.tied_head import repeated_heads
from core.checkpoint.tokenizer_files import has_tokenizer, other_tokenizer
from core.checkpoint.weight_files import ModelFiles, Weights, find_weights, has_weights, holds_adapter
from core.common.errors import CheckpointError
from core.common.paths import model_name
from core.common.values import printable

# What auto-gptq and gptqmodel, AutoAWQ, AutoRound, and ModelOpt call the file with the settings, where config.json has
# none.
QUANTIZE_CONFIGS = ("quantize_config.json", "quant_config.json", "quantization_config.json", "hf_quant_config.json")
CONTRADICTIONS = ("config_tensors", "config_layers", "no_matrix")
# In `derived`: the bytes of all tensors, where not all of them are there.
SIZE_BYTES = "size_bytes"


@dataclass(frozen=True, slots=True)
class SettledTensors:
    """What the values of the tensors told (core/checkpoint/settled.py).

    `notes`: where they are not as the configuration says, "own_head" and "zeros_version".
    """

    matrices: Mapping[str, QuantizedMatrix]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Checkpoint:
    """One model. `config` is its own config.json, with nothing added; `path` is None for one that is not on disk.

    `tensors` are those of the part that runs, by the names of transformers' class; `left_out_bytes` have all others.
    `quantization` is what the configuration says of all matrices, with the bits and group size that most really have.
    `repeated`: tensors that only say again what others say, as a tied model's head; nobody needs them.
    """

    name: str
    config: dict[str, Any]
    quantization: MatrixFormat
    tensors: dict[str, TensorInfo]
    path: Path | None = None
    repeated: frozenset[str] = frozenset()
    settled: SettledTensors | None = None
    left_out_bytes: int = 0
    # Whether the files hold a part that guesses several tokens at once, and one for pictures, which do not run.
    has_guessing_part: bool = False
    has_picture_part: bool = False
    # What a load would miss beside the weights.
    lacks: CheckpointError | None = None
    # What others worked out of it, by keys of theirs: to go through 20,000 matrices takes a second.
    derived: dict[object, Any] = field(default_factory=dict, init=False, compare=False, repr=False)

    @cached_property
    def matrices(self) -> Mapping[str, QuantizedMatrix]:
        """Every quantized matrix by its module's name. Raises CheckpointError where shapes contradict one another."""
        if self.settled is not None:
            return self.settled.matrices
        with remote_advice(self.path):
            return read_matrices(self.name, self.quantization, self.tensors)

    @property
    def quantization_label(self) -> str:
        """How most matrices are quantized, in words, and which bits others have."""
        others = [str(bits) for bits in self.other_bits]
        return self.quantization.label + (f", some {'/'.join(others)} bit" if others else "")

    @cached_property
    def other_bits(self) -> tuple[int, ...]:
        """The bits of matrices that have others than most."""
        try:
            found = {matrix.format.bits for matrix in self.matrices.values()}
        except CheckpointError:
            return ()
        return tuple(sorted(found - {self.quantization.bits}))

    @cached_property
    def layers(self) -> tuple[LayerShape, ...]:
        """The layers, first to last. Raises CheckpointError where the configuration's numbers are none."""
        with remote_advice(self.path):
            return read_layers(self.name, self.config, self.tensors)

    @cached_property
    def has_like_experts(self) -> bool:
        """Whether all experts of a layer can be one tensor. Raises as `matrices`."""
        return are_experts_alike(text_config(self.config), self.tensors, self.matrices, self.settled is not None)

    @property
    def folder(self) -> Path:
        """The folder with its files. Raises CheckpointError for a checkpoint that is not on disk."""
        if self.path is None:
            raise CheckpointError("not_on_disk", name=self.name)
        return self.path

    @property
    def architecture(self) -> str:
        return architecture_name(self.config)

    def require_runs(self) -> None:
        """Raise CheckpointError where no load could run this model, with the reason: core/checkpoint/judgement.py."""
        require_runs(self.name, self.config, self.tensors)
        if (wrong := refuse_values(self.name, self.config)) is not None:
            raise wrong
        if self.lacks is not None:
            raise self.lacks
        if self._unlike is not None:
            raise self._unlike

    @cached_property
    def _unlike(self) -> CheckpointError | None:
        """What makes the tensors no whole model, as far as names tell, and the sizes of states."""
        try:
            matrices, num_layers = self.matrices, len(self.layers)
        except CheckpointError:
            return None  # Whoever asks for them is told.
        return refuse_unlike(self.name, self.config, self.tensors, matrices, num_layers) or refuse_state_sizes(
            self.name, self.layers, self.tensors
        )

    @property
    def is_without_pictures(self) -> bool:
        """Whether only the text part of a model with pictures runs."""
        said = (self.config.get(name) for name in ("text_config", *VISION))
        return self.has_picture_part or (has_pictures_left_out(self.config) and any(said))

    @property
    def size_bytes(self) -> int:
        """The bytes of all tensors, which is what a load reads."""
        if (known := self.derived.get(SIZE_BYTES)) is not None:
            return int(known)
        return sum(tensor.num_bytes for tensor in self.tensors.values())

    @property
    def max_context_tokens(self) -> int:
        """The longest context that can be chosen; beyond the usual one the model's rope is extended."""
        return self.context_limits.longest_tokens

    @property
    def context_limits(self) -> ContextLimits:
        return read_limits(self.config)

    def stored_name(self, name: str) -> str:
        """What the files call the tensor `name`."""
        return self.tensors[name].stored_name or name


@contextmanager
def remote_advice(path: Path | None) -> Iterator[None]:
    """Nobody has downloaded what is not on disk: whatever contradicts itself there, "again" is no way round."""
    try:
        yield
    except CheckpointError as error:
        if path is None and error.key in CONTRADICTIONS:
            raise CheckpointError(f"remote_{error.key}", **error.params) from error
        raise


def read_checkpoint(folder: Path) -> Checkpoint:
    """Read the checkpoint in `folder`. Raises CheckpointError, whose sentence says what is wrong with it."""
    if not os.path.isdir(folder):
        raise CheckpointError("no_folder", folder=printable(str(folder)))
    name = model_name(folder)
    if printable(name) != name:
        raise CheckpointError("folder_name", folder=printable(name))
    return read_model(FolderFiles(folder), folder)[0]


def read_model(files: ModelFiles, path: Path | None = None) -> tuple[Checkpoint, tuple[str, ...]]:
    """The checkpoint that `files` are, and the names of its weight files.

    Raises CheckpointError: first what no other files would change about this model.
    """
    if holds_adapter(files.names):
        raise files.error("not_adapter")
    config = files.read_json("config.json")
    if config is None:
        raise files.error("no_config")
    with other_reasons_first(files.name, config):
        quantization, weights = _read_quantized(files, config)
    tensors = {name: tensor for name, tensor in weights.tensors.items() if not is_computed(name, tensor)}
    checkpoint = make_checkpoint(files.name, config, quantization, tensors, path)
    repeated = repeated_heads(config, checkpoint.tensors, files)
    return replace(checkpoint, repeated=repeated, lacks=_tokenizer_refusal(files)), weights.files


def _tokenizer_refusal(files: ModelFiles) -> CheckpointError | None:
    if has_tokenizer(files.names):
        return None
    other = other_tokenizer(files.names)
    return files.error("tokenizer_kind", file=printable(other)) if other else files.error("tokenizer_missing")


def _read_quantized(files: ModelFiles, config: dict[str, Any]) -> tuple[MatrixFormat, Weights]:
    if not has_weights(files.names):
        raise files.error("no_weights")
    described = (files.read_json(name) for name in QUANTIZE_CONFIGS if name in files.names)
    settings = plain_settings(quantization_of(config) or next(filter(None, described), None))
    is_described = not lacks_sizes(settings)
    if settings:
        # What cannot run is refused before the weights are asked for.
        read_format(files.name, settings if is_described else {"bits": 4, "group_size": -1} | settings)
    weights = find_weights(
        files, partial(_base_name, files, settings), partial(fits, settings) if is_described else None
    )
    if (first := first_layout(weights.tensors)) is not None:
        raise files.error("first_gptq_layout", name=printable(first))
    if not is_described:
        settings = settings_by_tensors(files, weights.tensors) | (settings or {})
    return read_format(files.name, settings or None), weights


def _base_name(files: ModelFiles, settings: object) -> str:
    """What the settings call the weights, or auto-gptq's own file beside a config.json that has the settings too."""
    with suppress(CheckpointError):
        return base_name(settings) or base_name(files.read_json(QUANTIZE_CONFIGS[0]))
    return ""


@contextmanager
def other_reasons_first(model: str, config: dict[str, Any]) -> Iterator[None]:
    """While weights and quantization are looked for: raises what no other version of `model` would change instead.

    The usual way round, its GPTQ version, would lead to the second reason.
    """
    try:
        yield
    except CheckpointError as error:
        refusal = judge(model, config)
        if refusal is None:
            raise
        family = refusal.params.get("family")
        if error.key != "not_quantized" or family is None:
            raise refusal from error
        if refusal.key.startswith("family_moe"):
            raise CheckpointError("not_quantized_moe", folder=model, family=family) from error
        raise CheckpointError("not_quantized_family", folder=model, family=family) from error


class FolderFiles:
    """The files in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.name = model_name(folder)
        try:
            self.names = frozenset(os.listdir(folder))
        except OSError as error:
            raise unreadable(folder, error) from error

    def read_json(self, file: str) -> dict[str, Any] | None:
        return read_json(self._folder / file)

    def read_header(self, file: str) -> dict[str, TensorInfo]:
        return read_header(self._folder / file)

    def read_bytes(self, tensor: TensorInfo, num_bytes: int) -> bytes:
        path = self._folder / tensor.file
        try:
            with path.open("rb") as file:
                file.seek(tensor.begin)
                return file.read(min(num_bytes, tensor.num_bytes))
        except OSError as error:
            raise unreadable(path, error) from error

    def error(self, key: str, **params: str | int) -> CheckpointError:
        return CheckpointError(key, folder=self._folder.name, **params)


def make_checkpoint(
    name: str,
    config: dict[str, Any],
    quantization: MatrixFormat,
    tensors: dict[str, TensorInfo],
    path: Path | None = None,
) -> Checkpoint:
    """The checkpoint of these parts, wherever they were read. Raises CheckpointError where no matrix is quantized.

    `quantization` is what the configuration says; the shapes of the tensors settle what it is. Tensors get the names
    that the model's class has for them; those of a part for pictures that does not run are left out.
    """
    stored_bytes = sum(tensor.num_bytes for tensor in tensors.values())
    guesses, shows = has_guessing_part(config, tensors), has_picture_part(config, tensors)
    tensors = name_tensors(config, tensors)
    quantization = packed_as(quantization, tensors)
    if not has_matrices(quantization, tensors):
        if is_marlin(tensors):
            raise CheckpointError("format", folder=name, format="marlin")
        raise CheckpointError("no_quantized_weights", folder=name)
    try:
        common = commonest_format(quantization, read_matrices(name, quantization, tensors).values())
        quantization = replace(quantization, bits=common.bits, group_size=common.group_size)
    except CheckpointError:
        pass  # Whoever asks for the matrices is told.
    checkpoint = Checkpoint(
        name, config, quantization, tensors, path, has_guessing_part=guesses, has_picture_part=shows
    )
    return replace(checkpoint, left_out_bytes=stored_bytes - checkpoint.size_bytes)
