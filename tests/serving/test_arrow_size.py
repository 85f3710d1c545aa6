"""What an Arrow stream unpacks to is known before it is unpacked."""

from __future__ import annotations

import io
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.arrow_size import PER_VALUE, unpacked_bytes


def written(table: pl.DataFrame, compression: Any = "uncompressed") -> bytes:
    out = io.BytesIO()
    table.write_ipc_stream(out, compression=compression)
    return out.getvalue()


@pytest.mark.parametrize("compression", ["uncompressed", "lz4", "zstd"])
def test_equal_values_count_as_often_as_they_stand(compression: Any) -> None:
    table = pl.DataFrame({"x": [1.5] * 50_000, "t": [True] * 50_000, "n": [None] * 50_000})
    assert 3 * 8 * 50_000 <= unpacked_bytes(written(table, compression)) < 3 * 9 * 50_000


@pytest.mark.parametrize("compression", ["uncompressed", "lz4", "zstd"])
def test_long_texts_and_dictionaries_count(compression: Any) -> None:
    texts = pl.DataFrame({"x": ["a" * 1_000_000, "b" * 1_000_000]})
    assert 2_000_000 <= unpacked_bytes(written(texts, compression)) < 2_100_000
    coded = texts.cast(pl.Categorical())
    assert 2_000_000 <= unpacked_bytes(written(coded, compression)) < 2_200_000


def test_batches_add_up() -> None:
    one = pl.DataFrame({"x": [[7] * 1000]})
    data = written(pl.concat([one] * 5, rechunk=False), "zstd")
    assert len(data) < 5_000
    assert 5 * 8_000 <= unpacked_bytes(data) < 5 * 9_000
    # What stands behind the end of the stream is not read by anybody.
    assert unpacked_bytes(data + b"more") == unpacked_bytes(data)


tables = st.lists(
    st.fixed_dictionaries({
        "entity_id": st.text(max_size=20),
        "x": st.one_of(st.none(), st.floats(allow_nan=False)),
        "events": st.lists(st.fixed_dictionaries({"at": st.integers(0, 9), "s": st.text()})),
    }),
    min_size=1, max_size=20,
)  # fmt: skip
SCHEMA = {
    "entity_id": pl.String(), "x": pl.Float64(),
    "events": pl.List(pl.Struct({"at": pl.Int64(), "s": pl.String()})),
}  # fmt: skip


@settings(max_examples=25, deadline=None)
@given(rows=tables)
def test_a_stream_says_at_least_what_it_becomes(rows: list[dict[str, Any]]) -> None:
    table = pl.DataFrame(rows, schema=SCHEMA)
    plain = unpacked_bytes(written(table))
    assert plain >= table.select("x", "events").estimated_size() - 64
    assert plain >= PER_VALUE * 2 * len(rows)
    for compression in ("lz4", "zstd"):
        assert unpacked_bytes(written(table, compression)) >= 0.5 * plain


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2000), st.integers(0, 255), st.binary(max_size=40))
def test_damaged_streams_are_refused_or_read(place: int, value: int, noise: bytes) -> None:
    table = pl.DataFrame({"x": [1, 2, 3], "y": ["a", None, "b"]})
    for compression in ("uncompressed", "zstd"):
        data = bytearray(written(table, compression))
        data[place % len(data)] = value
        for broken in (bytes(data), bytes(data[place % len(data) :]), noise):
            try:
                assert unpacked_bytes(broken) >= 0
            except ValueError as exc:
                assert str(exc)
