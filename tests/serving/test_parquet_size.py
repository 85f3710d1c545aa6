"""What a Parquet file unpacks to is known before it is unpacked, whatever its footer says."""

from __future__ import annotations

import io
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.parquet_size import unpacked_bytes


def written(table: pl.DataFrame, **how: Any) -> bytes:
    out = io.BytesIO()
    table.write_parquet(out, **how)
    return out.getvalue()


@pytest.mark.parametrize("compression", ["zstd", "snappy", "uncompressed"])
def test_equal_values_count_as_often_as_they_stand(compression: Any) -> None:
    table = pl.DataFrame({"x": [1.5] * 50_000, "t": [True] * 50_000})
    data = written(table, compression=compression, row_group_size=20_000)
    assert 2 * 8 * 50_000 <= unpacked_bytes(data) < 2 * 10 * 50_000


def test_long_texts_count() -> None:
    data = written(pl.DataFrame({"x": ["a" * 1_000_000, "b" * 1_000_000]}))
    assert len(data) < 10_000 and 2_000_000 <= unpacked_bytes(data) < 3_000_000


def test_a_footer_that_says_less_is_not_believed() -> None:
    """The number of values in the footer made small; the pages still say what is in them."""
    data = written(pl.DataFrame({"x": [7] * 100_000}), statistics=False)
    size = int.from_bytes(data[-8:-4], "little")
    begin = len(data) - 8 - size
    zigzag = bytes([0xC0, 0x9A, 0x0C])  # 100000, as it stands for values and for rows
    footer = data[begin:-8].replace(zigzag, bytes([0x82, 0x80, 0x00]))
    assert footer != data[begin:-8] and len(footer) == size
    assert unpacked_bytes(data[:begin] + footer + data[-8:]) >= 8 * 100_000


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 400), st.integers(0, 255), st.binary(max_size=40))
def test_damaged_files_are_refused_or_read(place: int, value: int, noise: bytes) -> None:
    data = bytearray(written(pl.DataFrame({"x": [1, 2, 3], "y": ["a", None, "b"]})))
    data[place % len(data)] = value
    for broken in (bytes(data), bytes(data[place % len(data) :]), noise, noise + b"PAR1"):
        try:
            assert unpacked_bytes(broken) >= 0
        except ValueError as exc:
            assert str(exc)
