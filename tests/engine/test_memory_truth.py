"""The plan of a load beside what it took: part by part, in one line, and when it was not true."""

from __future__ import annotations

import pytest

from core.engine.memory_truth import MemoryTruth, memory_truth
from core.engine.protocol import MemoryFacts
from core.memory.plan import MemoryPlan
from core.memory.sizes import MIB

PLAN = MemoryPlan(weights=4000 * MIB, scratch=100 * MIB, kv_cache=500 * MIB, activations=150 * MIB, pool=170 * MIB,
                  workspace=80 * MIB, graphs=40 * MIB, context=720 * MIB, loading=10 * MIB)  # fmt: skip


def truth(allocator_mib: int, context_mib: int | None = 760) -> MemoryTruth:
    context = None if context_mib is None else context_mib * MIB
    return memory_truth(MemoryFacts(PLAN, 4090 * MIB, allocator_mib * MIB, context, False), 500 * MIB)


def test_the_parts_add_up_to_the_whole_on_both_sides() -> None:
    found = truth(4980, 730)
    assert sum(part.planned for part in found.parts) == found.planned == PLAN.total == 5760 * MIB
    assert sum(part.measured or 0 for part in found.parts) == found.measured == 5710 * MIB
    assert (found.judgement, found.off_mib) == ("true", 0)
    assert found.log_line == (
        "GPU memory planned / taken: 5760 / 5710 MiB, as planned "
        "(weights 4100 / 4090, cache 500 / 500, scratch 400 / 390, context 760 / 730)"
    )


@pytest.mark.parametrize(
    ("allocator_mib", "context_mib", "judgement", "off_mib"),
    [
        (5000, 760, "true", 0),
        (5001, 760, "too_small", 1),
        # What the allocator has to spare is kept for the model: it makes no room for a larger context.
        (4900, 800, "too_small", 40),
        # Up to 1 % and 64 MiB more than was taken.
        (4880, 760, "true", 0),
        (4878, 760, "too_large", 122),
        (4870, None, "too_large", 130),
        (5020, None, "too_small", 20),
    ],
)
def test_a_plan_is_true_up_to_what_it_may_promise_beyond(
    allocator_mib: int, context_mib: int | None, judgement: str, off_mib: int
) -> None:
    found = truth(allocator_mib, context_mib)
    assert (found.judgement, found.off_mib) == (judgement, off_mib)


def test_what_the_driver_does_not_tell_is_no_number() -> None:
    found = truth(4990, None)
    assert found.parts[-1].measured is None and "context 760 / ?" in found.log_line


def test_the_line_says_in_words_where_the_plan_was_wrong() -> None:
    assert "40 MiB more than planned" in truth(4900, 800).log_line
    assert "122 MiB less than planned" in truth(4878).log_line
