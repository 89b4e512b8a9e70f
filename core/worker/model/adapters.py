"""LoRA adapters beside a model's quantized matrices: W x + B (weight * A x), each row with an adapter of its own.

The matrices of all resident adapters lie side by side. On a GPU, kernels read for each row the columns of its own
adapter alone. Torch, on a CPU and for the chunks of prompts, multiplies by all columns, and a row's weights are 0 for
all but its own adapter's. So one pass serves rows with different adapters, with shapes that never change, and what a
row gets does not depend on the others. `scale` of the adapter is in B already; a row's weight is what the request asks
beyond it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from core.memory.adapter_room import AdapterRoom
from core.worker.kernels.expert_low_rank import PassAdapters
from core.worker.kernels.fused_norm import FusedRmsNorm
from core.worker.kernels.low_rank import (
    MAX_TOLD,
    NO_PLACE,
    LowRankKernels,
    LowRankMatrices,
    LowRankRow,
    LowRankRows,
    SlotAdapters,
    ToldValues,
    low_rank_kernels_for,
)
from core.worker.kernels.nvrtc import CudaCodeError
from core.worker.kernels.packed_small_batch import MAX_SHORT_PROMPT, MAX_SMALL_BATCH
from core.worker.kernels.step_ops import HALVES
from core.worker.model.device_map import DeviceMap, embedding_name
from core.worker.model.merged_linear import MergedLinearSlice

log = logging.getLogger(__name__)
# How large what a tried adapter adds is, of a normed row: far over rounding, and no more than what a matrix gives.
TRIED_STRENGTH = 0.3
# So much of an adapter of experts is copied at once.
PIECE_BYTES = 2**20
# (A [rank, in], scale * B [out, rank]) by the module's name; of experts (A [experts, rank, in], B [experts, out, rank])
# by the name of all experts' matrices of a layer, such as "….experts.gate_proj".
AdapterWeights = Mapping[str, tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True, slots=True, eq=False)
class AdaptedMatrix:
    """Room for the adapters of one matrix: A [columns, in] and B [out, columns] of all places. Of a layer's experts
    [experts, columns, in] and [experts, out, columns]."""

    a: torch.Tensor
    b: torch.Tensor


class AdapterBank:
    """What one device has of the resident adapters, in `room.count` places, and which of them each slot uses. Slot
    `num_slots` pads.

    matrices: the room beside those of the device's own layers. kernels: for rows of one token each; None where torch
    computes all.
    """

    def __init__(self, room: AdapterRoom, num_slots: int, device: torch.device, dtype: torch.dtype) -> None:
        self.room, self.num_slots, self.device, self.dtype = room, num_slots, device, dtype
        self.kernels = _find_kernels(device, dtype)
        count = num_slots + 1
        places = torch.full((count,), NO_PLACE, dtype=torch.int32, device=device)
        self.of_slots = SlotAdapters(places, torch.zeros(count, dtype=torch.float32, device=device))
        self.told = ToldValues(device)
        # As torch takes them: 0 for the columns of all adapters but a slot's own.
        self._column_weights = torch.zeros((count, room.columns), dtype=dtype, device=device)
        self._used = [False] * count
        self._all_slots = torch.arange(count, device=device)
        self.matrices: dict[str, AdaptedMatrix] = {}
        # Of the rows of the pass that runs, [rows]; None where no row has an adapter.
        self.slots: torch.Tensor | None = None
        self._selected: tuple[torch.Tensor, torch.Tensor] | None = None

    def put(self, place: int, weights: AdapterWeights) -> None:
        """As AdapterBanks.put."""
        begin = place * self.room.rank
        for name, matrix in self.matrices.items():
            a, b = weights.get(name, (None, None))
            rank = 0 if a is None else a.shape[-2]
            if a is not None and b is not None:
                copy_in_pieces(a, matrix.a[..., begin : begin + rank, :])
                copy_in_pieces(b, matrix.b[..., begin : begin + rank])
            matrix.a[..., begin + rank : begin + self.room.rank, :] = 0
            matrix.b[..., begin + rank : begin + self.room.rank] = 0

    def set_slot(self, slot: int, place: int | None, weight: float = 1.0) -> None:
        """As AdapterBanks.set_slot."""
        self._column_weights[slot] = 0
        if place is not None:
            self._column_weights[slot, place * self.room.rank : (place + 1) * self.room.rank] = weight
        self.of_slots.places[slot] = NO_PLACE if place is None else place
        self.of_slots.weights[slot] = weight
        self._used[slot] = place is not None

    @contextmanager
    def tried(self) -> Iterator[None]:
        """As AdapterBanks.tried."""
        random = torch.Generator(self.device).manual_seed(0)
        rank = self.room.rank
        for matrix in self.matrices.values():
            matrix.a[..., :rank, :].normal_(0.0, matrix.a.shape[-1] ** -0.5, generator=random)
            matrix.b[..., :rank].normal_(0.0, TRIED_STRENGTH * rank**-0.5, generator=random)
        self.set_slot(0, 0)
        try:
            yield
        finally:
            self.set_slot(0, None)
            self.put(0, {})

    def select(self, slots: range) -> None:
        """As AdapterBanks.select."""
        any_used = any(self._used[slot] for slot in slots)
        self._select(self._all_slots[slots.start : slots.stop] if any_used else None)

    def select_captured(self, slots: torch.Tensor) -> None:
        """As AdapterBanks.select_captured."""
        self._select(slots)

    def _select(self, slots: torch.Tensor | None) -> None:
        self.slots, self._selected = slots, None
        if slots is not None and slots.shape[0] == 1 and self.kernels is not None:
            self.told.begin_pass()

    def of_pass(self) -> PassAdapters | None:
        """What the pass that runs has of adapters; None where no row has one."""
        return None if self.slots is None else PassAdapters(self.slots, self.of_slots)

    def column_weights(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Of the rows of the pass that runs, and whether each is 0, both [rows, 1, columns]."""
        if self._selected is None:
            assert self.slots is not None
            weights = self._column_weights.index_select(0, self.slots).unsqueeze(1)
            self._selected = weights, weights == 0
        return self._selected


class AdapterBanks:
    """The resident adapters of a model: a bank for each of its devices, in the order of the layers."""

    def __init__(self, banks: Sequence[AdapterBank]) -> None:
        self.banks = banks
        self.room, self.num_slots, self.dtype = banks[0].room, banks[0].num_slots, banks[0].dtype

    def put(self, place: int, weights: AdapterWeights) -> None:
        """Put an adapter, of a rank up to the room's, into a place that no running slot uses."""
        for bank in self.banks:
            bank.put(place, weights)

    def set_slot(self, slot: int, place: int | None, weight: float = 1.0) -> None:
        """The slot's passes use the adapter in `place` from now on, `weight` times as strong; None: none."""
        for bank in self.banks:
            bank.set_slot(slot, place, weight)

    @contextmanager
    def tried(self) -> Iterator[None]:
        """Inside the `with` block the first slot uses an adapter of random numbers, so that what is held against the
        model's own modules has one; the place is empty afterwards."""
        with ExitStack() as stack:
            for bank in self.banks:
                stack.enter_context(bank.tried())
            yield

    def select(self, slots: range) -> None:
        """The next pass has a row for each of `slots`."""
        for bank in self.banks:
            bank.select(slots)

    def select_captured(self, slots: torch.Tensor, place: int) -> None:
        """As `select` for device number `place`, whose layers come next, with slots [rows] that lie in its memory: what
        a captured pass computes cannot depend on them."""
        self.banks[place].select_captured(slots)


def copy_in_pieces(source: torch.Tensor, target: torch.Tensor) -> None:
    """Copy to a GPU. Of what is in no order there, torch first makes a copy as large, for which a full GPU may have no
    room: of experts, some at a time."""
    if source.ndim < 3:
        target.copy_(source)
        return
    each = max(1, PIECE_BYTES // max(1, source[0].nbytes))
    for part, to in zip(source.split(each), target.split(each), strict=True):
        to.copy_(part)


def _find_kernels(device: torch.device, dtype: torch.dtype) -> LowRankKernels | None:
    if device.type != "cuda" or dtype not in HALVES:
        return None
    try:
        kernels: LowRankKernels = low_rank_kernels_for(dtype, device)
    except CudaCodeError as error:
        log.warning("adapters are computed by torch alone: %s", error)
        return None
    if not computes_as_torch(kernels, device, dtype):
        log.warning("adapters are computed by torch alone: the kernels' numbers are wrong")
        return None
    return kernels


def computes_as_torch(kernels: LowRankKernels, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the kernels give what torch gives for two rows, of which one has an adapter: the second of two."""
    random = torch.Generator(device).manual_seed(0)
    rank, inputs, outputs = 8, 256, 64

    def numbers(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=random, device=device).to(dtype)

    x, a, b, out = numbers(2, inputs), numbers(2 * rank, inputs), numbers(outputs, 2 * rank), numbers(2, outputs)
    places = torch.tensor([NO_PLACE, 1], dtype=torch.int32, device=device)
    of_slots = SlotAdapters(places, torch.full((2,), 0.5, device=device))
    wanted = out.float()
    wanted[0] += 0.5 * (b[:, rank:].float() @ (a[rank:].float() @ x[0].float()))
    low = kernels.down(x, LowRankMatrices((a,), (b,), rank), torch.tensor([1, 0], device=device), of_slots)
    kernels.up(low, out)
    return bool((out.float() - wanted).abs().max() <= 2 * torch.finfo(dtype).eps * wanted.abs().max())


class AdapterLinear(nn.Module):
    """Stands in for `base`, one matrix of a model or several with the same input that are one, with the adapters of
    `bank` beside it. matrices: their room in the order of their outputs."""

    def __init__(self, base: nn.Module, matrices: tuple[AdaptedMatrix, ...], bank: AdapterBank) -> None:
        super().__init__()
        self.base, self.matrices = base, matrices
        self.in_features = matrices[0].a.shape[1]
        self.out_features = sum(one.b.shape[0] for one in matrices)
        self._low_rank = LowRankMatrices(
            tuple(one.a for one in matrices), tuple(one.b for one in matrices), bank.room.rank
        )
        object.__setattr__(self, "bank", bank)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[rows, tokens, in], or [rows * tokens, in] -> the same with the outputs."""
        out: torch.Tensor = self.base(x).contiguous()
        slots, kernels = self.bank.slots, self.bank.kernels
        if slots is None:
            return out
        rows = x.reshape(-1, self.in_features)
        few_rows = MAX_SMALL_BATCH if x.shape[-2] == 1 else MAX_SHORT_PROMPT
        is_small = rows.shape[0] == slots.shape[0] <= few_rows
        if kernels is None or not is_small or out.dtype != self.bank.dtype:
            self._add_by_torch(x, out)
            return out
        low = kernels.down(rows, self._low_rank, slots, self.bank.of_slots)
        kernels.up(low, out.view(rows.shape[0], -1))
        return out

    def low_rank(
        self, x: torch.Tensor, x_places: torch.Tensor | None = None, norm: FusedRmsNorm | None = None
    ) -> LowRankRows | LowRankRow | None:
        """What the adapters add to the product of x [rows, in], a token a row, as LowRankKernels.down takes it; None
        where no row has one. Of one row the product itself may compute A x."""
        bank = self.bank
        if bank.slots is None or bank.kernels is None:
            return None
        kernels, adapters = bank.kernels, bank.of_slots
        if x.shape[0] == 1 and len(self.matrices) * bank.room.rank <= MAX_TOLD:
            launch = bank.told.next_launch()
            if launch is not None:
                return LowRankRow(
                    kernels, x, self._low_rank, bank.slots, adapters, bank.told, launch, x_places, norm
                )  # fmt: skip
        return kernels.down(x, self._low_rank, bank.slots, adapters, x_places, norm)  # type: ignore[no-any-return]

    def _add_by_torch(self, x: torch.Tensor, out: torch.Tensor) -> None:
        """In place, and in four operations for each matrix: a chunk of a prompt is some hundred of them."""
        (weights, unused), begin = self.bank.column_weights(), 0
        rows, to = x.reshape(-1, self.in_features), out.view(-1, self.out_features)
        for matrix in self.matrices:
            low = nn.functional.linear(rows, matrix.a)
            # Not by a product alone: another adapter's column may be infinite, and 0 times that is no number.
            low.view(weights.shape[0], -1, low.shape[-1]).masked_fill_(unused, 0.0).mul_(weights)
            end = begin + matrix.b.shape[0]
            if out.dtype == matrix.b.dtype:
                to[:, begin:end].addmm_(low, matrix.b.T)
            else:
                to[:, begin:end] += nn.functional.linear(low, matrix.b)
            begin = end


def add_adapters(
    model: PreTrainedModel,
    sizes: Mapping[str, tuple[int, int]],
    room: AdapterRoom,
    num_slots: int,
    device_map: DeviceMap | None = None,
) -> AdapterBanks:
    """Put an AdapterLinear in the place of each of the matrices `sizes`, by name with their (in, out) features; one of
    those that are kept as one. device_map: of a model over several devices."""
    parameter = model.get_input_embeddings().weight
    device_map, embedding = device_map or DeviceMap((parameter.device,)), embedding_name(model)
    banks = [AdapterBank(room, num_slots, device, parameter.dtype) for device in device_map.devices]
    for base, names in _kept_as_one(model, sizes):
        bank = banks[device_map.place_of(names[0], embedding)]
        for name in names:
            inputs, outputs = sizes[name]
            a = torch.zeros((room.columns, inputs), dtype=bank.dtype, device=bank.device)
            b = torch.zeros((outputs, room.columns), dtype=bank.dtype, device=bank.device)
            bank.matrices[name] = AdaptedMatrix(a, b)
        linear = AdapterLinear(base, tuple(bank.matrices[name] for name in names), bank)
        for name in names:
            module = model.get_submodule(name)
            if isinstance(module, MergedLinearSlice):
                object.__setattr__(module, "merged", linear)
            else:
                owner, _, attribute = name.rpartition(".")
                setattr(model.get_submodule(owner), attribute, linear)
    return AdapterBanks(banks)


def _kept_as_one(model: PreTrainedModel, names: Mapping[str, tuple[int, int]]) -> Iterator[tuple[nn.Module, list[str]]]:
    """The modules that multiply, with the names of the matrices in each, in the order of their outputs."""
    merged: dict[int, tuple[nn.Module, dict[int, str]]] = {}
    for name in names:
        module = model.get_submodule(name)
        if isinstance(module, MergedLinearSlice):
            merged.setdefault(id(module.merged), (module.merged, {}))[1][module.begin] = name
        else:
            yield module, [name]
    for base, by_begin in merged.values():
        yield base, [by_begin[begin] for begin in sorted(by_begin)]
