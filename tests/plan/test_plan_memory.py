"""Memory is decided before a merge starts, in integers."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mergekit.errors import BudgetError
from mergekit.kernels import GRAIN
from mergekit.plan.memory import PROCESS, fit_memory

MEGABYTE = 1_000_000


@given(
    rows=st.integers(1, 64),
    workers=st.integers(1, 256),
    limit=st.integers(PROCESS // MEGABYTE + 20, 100_000).map(lambda count: count * MEGABYTE),
)
def test_the_peak_stays_within_the_limit(rows, workers, limit):
    memory = fit_memory(rows, workers, limit)
    assert memory.peak <= limit
    assert 1 <= memory.workers <= workers
    assert memory.stripe % GRAIN == 0
    assert memory.stripe >= GRAIN


@given(rows=st.integers(1, 1000), workers=st.none() | st.integers(1, 64), limit=st.integers(1, PROCESS // MEGABYTE))
def test_a_refusal_names_a_budget_that_then_works(rows, workers, limit):
    with pytest.raises(BudgetError) as caught:
        fit_memory(rows, workers, limit * MEGABYTE)
    enough = int(re.search(r"--max-memory (\d+)MB", str(caught.value))[1]) * MEGABYTE
    assert fit_memory(rows, workers, enough).peak <= enough
    with pytest.raises(BudgetError):
        fit_memory(rows, workers, enough - 2 * MEGABYTE)


@given(rows=st.integers(1, 64), workers=st.integers(1, 64))
def test_more_memory_never_makes_less_of_it(rows, workers):
    sizes = [fit_memory(rows, workers, limit << 20) for limit in (400, 800, 1600, 64_000)]
    assert sorted(memory.workers for memory in sizes) == [memory.workers for memory in sizes]
    assert sizes[-1].workers == workers


def test_without_wishes_the_machine_decides():
    assert fit_memory(4).workers >= 1
