"""The numbers of a model that its memory follows from, read from a checkpoint's configuration and tensors; no torch."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from core.checkpoint.attention import CappedAttention, DistanceAttention, FullAttention
from core.checkpoint.checkpoint import Checkpoint, remote_advice
from core.checkpoint.experts import FLOAT_ROUTERS, ROUTER, SIZES, expert_matrix, first_name
from core.checkpoint.layers import LAYER, DenseMlp, Experts, LayerShape, Mlp, contradiction
from core.checkpoint.numbers import read_number
from core.checkpoint.quantization import MatrixFormat
from core.checkpoint.text_config import text_config
from core.checkpoint.vocabulary import num_tokens
from core.memory.adapter_room import NO_ROOM, AdapterRoom, layer_room_bytes, room_bytes
from core.memory.expert_shapes import expert_groups
from core.memory.matrix_groups import merged_matrices
from core.memory.sizes import HALF_BYTES, INT_BYTES, round_to_block


@dataclass(frozen=True, slots=True)
class MatrixShape:
    """One quantized matrix, or several that are kept as one; its bytes by part as a checkpoint has them."""

    in_features: int
    out_features: int
    format: MatrixFormat
    has_bias: bool = False

    @property
    def num_elements(self) -> int:
        return self.in_features * self.out_features

    @property
    def num_groups(self) -> int:
        return self.format.num_groups(self.in_features)

    @property
    def codes_bytes(self) -> int:
        """[in * bits / 32, out] int32."""
        return round_to_block(self.num_elements * self.format.bits // 8)

    @property
    def zeros_bytes(self) -> int:
        """[groups, out * bits / 32] int32."""
        return round_to_block(self.num_groups * math.ceil(self.out_features * self.format.bits / 32) * INT_BYTES)

    @property
    def scales_bytes(self) -> int:
        """[groups, out] in half precision."""
        return round_to_block(self.num_groups * self.out_features * HALF_BYTES)

    @property
    def input_groups_bytes(self) -> int:
        """[in] int32; a permutation of the inputs is as large."""
        return round_to_block(self.in_features * INT_BYTES)

    @property
    def bias_bytes(self) -> int:
        return round_to_block(self.out_features * HALF_BYTES) if self.has_bias else 0


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """The weights of one layer: its kinds of matrices with how often each comes, and the bytes of all else."""

    matrices: tuple[tuple[MatrixShape, int], ...]
    plain_bytes: int


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What a plan needs: each kind of layer and of quantized matrix with how often it comes, and the sizes of all other
    tensors. `layer_order`: of each layer, first to last, its place in `layers`; `weights_order`: in `layer_weights`.
    `is_merged`: matrices that share their input count as one."""

    layers: tuple[tuple[LayerShape, int], ...]
    layer_order: tuple[int, ...]
    hidden: int
    vocabulary: int
    matrices: tuple[tuple[MatrixShape, int], ...]
    plain_elements: tuple[int, ...]
    layer_weights: tuple[LayerWeights, ...]
    weights_order: tuple[int, ...]
    is_merged: bool = False
    # Of `matrices` those that experts have, and whether all experts of a layer can be kept as one tensor.
    expert_matrices: tuple[tuple[MatrixShape, int], ...] = ()
    are_experts_alike: bool = True
    # The room for adapters, and what it takes beside the weights.
    adapters: AdapterRoom = NO_ROOM
    adapter_bytes: int = 0
    # Of that by layer, and what lies beside single experts.
    layer_adapter_bytes: tuple[int, ...] = ()
    expert_adapter_bytes: int = 0
    # Of an element of a key or value in the cache: 16, or 8 with a scale of each head and token.
    cache_bits: int = 16

    @property
    def has_experts(self) -> bool:
        return any(isinstance(layer.mlp, Experts) for layer, _ in self.layers)

    @property
    def num_layers(self) -> int:
        return sum(count for _, count in self.layers)

    @property
    def intermediate(self) -> int:
        """The widest output of a gate, of an MLP or of an expert."""
        return max(widest_output(layer.mlp) for layer, _ in self.layers)

    @property
    def is_capturable(self) -> bool:
        """Whether captured steps' own attention can be in place of every layer's."""
        recurrent = [layer.recurrent for layer, _ in self.layers if layer.recurrent]
        has_other_scores = any(isinstance(one, DistanceAttention | CappedAttention) for one in self.attentions)
        return not has_other_scores and all(one.is_capturable for one in recurrent)

    @property
    def can_verify(self) -> bool:
        """Whether several tokens of a chat can be verified in one step: a recurrent layer's state cannot go back to
        before one that did not follow, and only steps over our own attention do it on a GPU."""
        return self.is_capturable and not any(layer.recurrent for layer, _ in self.layers)

    @property
    def attentions(self) -> tuple[FullAttention, ...]:
        """Each kind of attention that a layer has."""
        return tuple(dict.fromkeys(layer.mixer for layer, _ in self.layers if isinstance(layer.mixer, FullAttention)))


# How often each kind of matrix comes in a layer (_layer_of); True: among its experts' matrices.
Counted = dict[tuple[int, bool], Counter[MatrixShape]]
OUTSIDE = -1


def widest_output(mlp: Mlp) -> int:
    return max(mlp.intermediate, mlp.shared_intermediate) if isinstance(mlp, Experts) else mlp.intermediate


def read_shape(
    checkpoint: Checkpoint, merged: bool = False, adapters: AdapterRoom = NO_ROOM, cache_bits: int = 16
) -> ModelShape:
    """The shape of the model in `checkpoint` with room for `adapters` and keys and values of `cache_bits`; `merged`
    counts matrices that share their input as one.

    Raises CheckpointError "config_number" for a number that is missing or none, "config_tensors" where the
    configuration contradicts the tensors.
    """
    key = (ModelShape, merged)
    if key not in checkpoint.derived:
        with remote_advice(checkpoint.path):
            checkpoint.derived[key] = _read_shape(checkpoint, merged)
    shape: ModelShape = checkpoint.derived[key]
    by_layer = layer_room_bytes(checkpoint, adapters)
    of_experts = by_layer.total() - room_bytes(checkpoint, replace(adapters, has_experts=False))
    return replace(
        shape,
        adapters=adapters,
        adapter_bytes=by_layer.total(),
        layer_adapter_bytes=tuple(by_layer[number] for number in range(shape.num_layers)),
        expert_adapter_bytes=of_experts,
        cache_bits=cache_bits,
    )


def _read_shape(checkpoint: Checkpoint, merged: bool) -> ModelShape:
    name, config = checkpoint.name, text_config(checkpoint.config)
    layers, counted = Counter(checkpoint.layers), _counted(checkpoint, merged)
    places = {layer: place for place, layer in enumerate(layers)}
    others, of_experts = _of_all(counted)
    plain = _plain_elements(checkpoint)
    weights = list(_layer_weights(counted, plain, len(checkpoint.layers)))
    kinds = {one: place for place, one in enumerate(dict.fromkeys(weights))}
    shape = ModelShape(
        layers=tuple(layers.items()),
        layer_order=tuple(places[layer] for layer in checkpoint.layers),
        hidden=read_number(name, config, "hidden_size"),
        vocabulary=num_tokens(checkpoint),
        matrices=tuple((others + of_experts).items()),
        plain_elements=tuple(elements for _, elements in plain),
        layer_weights=tuple(kinds),
        weights_order=tuple(kinds[one] for one in weights),
        is_merged=merged,
        expert_matrices=tuple(of_experts.items()),
        are_experts_alike=checkpoint.has_like_experts,
    )
    _check_sizes(checkpoint, shape)
    return shape


def matrix_shapes(checkpoint: Checkpoint, merged: bool = False) -> Counter[MatrixShape]:
    """How often each kind of quantized matrix comes, but for routers, which no kernel takes.

    Raises CheckpointError where a tensor contradicts its format.
    """
    others, of_experts = _of_all(_counted(checkpoint, merged))
    return others + of_experts


def _of_all(counted: Counted) -> tuple[Counter[MatrixShape], Counter[MatrixShape]]:
    """The matrices of no expert and those of experts, of all layers together."""
    found = Counter[MatrixShape](), Counter[MatrixShape]()
    for (_, is_expert), some in counted.items():
        found[is_expert].update(some)
    return found


def _layer_weights(counted: Counted, plain: Sequence[tuple[int, int]], num_layers: int) -> Iterator[LayerWeights]:
    plain_bytes = Counter[int]()
    for number, elements in plain:
        plain_bytes[number] += round_to_block(elements * HALF_BYTES)
    none = Counter[MatrixShape]()
    for number in range(num_layers):
        both = counted.get((number, False), none) + counted.get((number, True), none)
        yield LayerWeights(tuple(both.items()), plain_bytes[number])


def _layer_of(name: str) -> int:
    """The number of the layer that a tensor or a matrix is in, OUTSIDE for those in none."""
    found = LAYER.match(f"{name}.")
    return OUTSIDE if found is None else int(found[1])


def _counted(checkpoint: Checkpoint, merged: bool) -> Counted:
    """_count_matrices, once for each checkpoint."""
    key = (MatrixShape, merged)
    if key not in checkpoint.derived:
        checkpoint.derived[key] = _count_matrices(checkpoint, merged)
    found: Counted = checkpoint.derived[key]
    return found


def _count_matrices(checkpoint: Checkpoint, merged: bool) -> Counted:
    """The matrices of each layer, those of experts apart. An expert's gate and up are one, whether others are merged or
    not."""
    groups = merged_matrices(checkpoint) if merged else expert_groups(checkpoint)
    groups_of = {name: group for group in groups for name in group.sizes}
    # A bias beside a matrix of a family that has none is auto-gptq's zeros, which are not kept.
    has_biases, found = _has_biases(checkpoint), Counted()
    for name, matrix in checkpoint.matrices.items():
        group = groups_of.get(name)
        if ROUTER.search(name) or (group is not None and name != next(iter(group.sizes))):
            continue
        out_features = group.out_features if group else matrix.out_features
        has_bias = "bias" in matrix.tensors and has_biases
        one = MatrixShape(matrix.in_features, out_features, matrix.format, has_bias)
        found.setdefault((_layer_of(name), expert_matrix(name) is not None), Counter())[one] += 1
    return found


def _has_biases(checkpoint: Checkpoint) -> bool:
    config = checkpoint.config
    return bool(config.get("attention_bias") or config.get("mlp_bias")) or config.get("model_type") != "llama"


def _plain_elements(checkpoint: Checkpoint) -> list[tuple[int, int]]:
    """The layer (_layer_of) and the size of what is not quantized when the model runs; twice that of what is in
    float32."""
    factor = 2 if text_config(checkpoint.config).get("model_type") in FLOAT_ROUTERS else 1
    routers = {name: one for name, one in checkpoint.matrices.items() if ROUTER.search(name)}
    others = {name for matrix in checkpoint.matrices.values() for name in matrix.tensors.values()} | checkpoint.repeated
    return [(_layer_of(name), factor * one.in_features * one.out_features) for name, one in routers.items()] + [
        (_layer_of(name), math.prod(tensor.shape) * (factor if ROUTER.search(name.removesuffix(".weight")) else 1))
        for name, tensor in checkpoint.tensors.items()
        if name not in others and not name.endswith(".inv_freq")
    ]


def _check_sizes(checkpoint: Checkpoint, shape: ModelShape) -> None:
    """Raise where the configuration's sizes are not those of the tensors that have them."""
    wanted = (
        ("lm_head.weight", 0, "vocab_size", shape.vocabulary, shape.vocabulary),
        ("embed_tokens.weight", 1, "hidden_size", shape.hidden, shape.hidden),
    )
    for ending, axis, number, value, size in wanted:
        for name, tensor in checkpoint.tensors.items():
            if name.endswith(ending) and tensor.shape[axis : axis + 1] != (size,):
                raise contradiction(checkpoint.name, number, value, name, tensor)
    layers, size_name = checkpoint.layers, first_name(text_config(checkpoint.config), SIZES) or SIZES[0]
    for name, matrix in checkpoint.matrices.items():
        found = LAYER.match(name)
        if found is None or int(found[1]) >= len(layers):
            continue
        one = expert_matrix(name)
        ending = name[found.end() :] if one is None else f"experts.{one.projection}"
        number, value, size = _outputs(layers[int(found[1])], size_name).get(ending, ("", 0, matrix.out_features))
        if matrix.out_features != size:
            codes = matrix.tensors["codes"]
            raise contradiction(checkpoint.name, number, value, codes, checkpoint.tensors[codes])


def _outputs(layer: LayerShape, size_name: str) -> dict[str, tuple[str, int, int]]:
    """Of matrices of a layer: the configuration's number that their outputs follow from, its value, the outputs.
    size_name: what the configuration calls the size of an expert."""
    mixer, mlp, found = layer.mixer, layer.mlp, {}
    if isinstance(mlp, Experts):
        found["experts.gate_proj"] = (size_name, mlp.intermediate, mlp.intermediate)
    elif isinstance(mlp, DenseMlp):
        found["mlp.gate_proj"] = ("intermediate_size", mlp.intermediate, mlp.intermediate)
    if isinstance(mixer, FullAttention):
        kv_heads = mixer.num_kv_heads
        found["self_attn.q_proj"] = ("num_attention_heads", mixer.num_heads, mixer.query_features)
        found["self_attn.k_proj"] = ("num_key_value_heads", kv_heads, kv_heads * mixer.head_dim)
    return found
