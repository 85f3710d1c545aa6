"""Golden rows as plain data: the histories and scores that a package brings to be proved by."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl

from foundation.schema import Schema


def golden_frames(
    schema: Schema, golden: dict[str, Any]
) -> tuple[dict[str, pl.DataFrame], pl.DataFrame | None, pl.DataFrame, np.ndarray]:
    """Frames, profile, samples and expected scores of recorded golden rows."""
    frames = {name: _frame(table) for name, table in golden["events"].items()}
    profile = _frame(golden["profile"]) if golden["profile"] else None
    samples = _frame(golden["samples"])
    return frames, profile, samples, np.array(golden["scores"], dtype=np.float64)


def frame_record(frame: pl.DataFrame) -> dict[str, Any]:
    """A frame as plain columns; times become microseconds since the epoch."""
    out = {}
    for name in frame.columns:
        column = frame[name]
        kind = "time" if isinstance(column.dtype, pl.Datetime) else str(column.dtype)
        values = column.to_physical().to_list() if kind == "time" else column.to_list()
        out[name] = {"kind": kind, "values": values}
    return out


_KINDS: dict[str, Any] = {
    "time": pl.Datetime("us"),
    "String": pl.String,
    "Float64": pl.Float64,
    "Boolean": pl.Boolean,
    "Int64": pl.Int64,
    "Float32": pl.Float32,
    "UInt32": pl.UInt32,
    "Int32": pl.Int32,
}


def _frame(record: dict[str, Any]) -> pl.DataFrame:
    columns = []
    for name, column in record.items():
        dtype = _KINDS[column["kind"]]
        if column["kind"] == "time":
            columns.append(pl.Series(name, column["values"], dtype=pl.Int64).cast(dtype))
        else:
            columns.append(pl.Series(name, column["values"], dtype=dtype))
    return pl.DataFrame(columns)
