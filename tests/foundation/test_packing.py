"""Packed columns come back to the bit, and bounds cut them where they cut the values."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foundation.packing import UNITS, packed, packed_bound, unpacked

DAY = 86_400_000_000
WHOLE = st.integers(-(2**63), 2**63 - 1)


def require_back(values: np.ndarray) -> np.ndarray:
    found, how = packed(values)
    back = unpacked(how, found)
    assert back.dtype == values.dtype
    assert back.tobytes() == values.tobytes()
    return found


@given(st.lists(WHOLE, max_size=8))
def test_any_whole_numbers_come_back(values: list[int]) -> None:
    require_back(np.array(values, dtype=np.int64))


@given(
    st.sampled_from(UNITS), st.integers(-(2**40), 2**52),
    st.lists(st.integers(0, 2**33), min_size=1), st.lists(WHOLE, min_size=1),
)  # fmt: skip
def test_a_bound_cuts_packed_moments_where_it_cuts_moments(
    unit: int, low: int, steps: list[int], bounds: list[int]
) -> None:
    reach = 2**61 // unit
    values = np.array([low + (s % reach) * unit for s in steps], dtype=np.int64)
    near = [v + d for v in values.tolist() for d in (-1, 0, 1, unit)]
    bound = np.array([*bounds, *near], dtype=np.int64)
    found, how = packed(values)
    assert unpacked(how, found).tobytes() == values.tobytes()
    cut = found.astype(np.int64)[:, None] < packed_bound(how, bound)
    assert (cut == (values[:, None] < bound)).all()


@given(st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=8))
def test_any_numbers_come_back(values: list[float]) -> None:
    require_back(np.array(values))


@given(st.lists(st.integers(-(10**6), 10**6), min_size=1), st.sampled_from([1, 10, 100, 10_000]))
def test_amounts_with_few_decimals_take_half_the_bytes(cents: list[int], scale: int) -> None:
    values = np.array(cents) / scale
    assert require_back(values).dtype == np.int32


@pytest.mark.parametrize("odd", [-0.0, np.nan, np.inf, 1e300, 1 / 3])
def test_one_odd_amount_leaves_all_as_they_are(odd: float) -> None:
    assert require_back(np.array([1.25, odd])).dtype == np.float64


def test_moments_of_whole_seconds_take_half_the_bytes() -> None:
    values = np.arange(1_700_000_000, 1_700_100_000, 7) * 1_000_000
    assert require_back(values).dtype == np.uint32


def test_codes_take_two_bytes_until_they_are_many() -> None:
    assert require_back(np.arange(2**16, dtype=np.uint32)).dtype == np.uint16
    assert require_back(np.arange(2**16 + 1, dtype=np.uint32)).dtype == np.uint32


def test_nothing_stays_nothing() -> None:
    assert len(require_back(np.zeros(0))) == 0
