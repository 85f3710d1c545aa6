"""Golden rows: the histories and scores that a package brings to be proved by, as plain data.

What packages of one backbone share is proved once in a process. Rows alone are built anew only
where no package before proved the columns, and equal golden rows have their features from the
package before. Every package's own heads are run, on rows alone and together.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from finetune.table import FeatureTable
from foundation.schema import Schema

if TYPE_CHECKING:
    from finetune.package import Package

TOLERANCE = 1e-5
KEPT_TABLES = 4
ALONE = 3
# Stands among the columns a package reads where a head reads the history itself.
HISTORIES = "histories"


class Proofs:
    """What golden rows of one package have proved for all that stand on the same ground.

    Features come from what packages share. Columns that were alike for rows built alone and
    together are so for every package; and packages with equal golden rows, as one model has in
    several channels, need their features once.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._columns: frozenset[str] = frozenset()
        self._tables: OrderedDict[Hashable, FeatureTable] = OrderedDict()

    def cover(self, columns: frozenset[str]) -> bool:
        """Whether rows of all these columns came out alike alone and together."""
        return columns <= self._columns

    def table(self, key: Hashable) -> FeatureTable | None:
        """Features of golden rows, of which scores came out right, if they are kept."""
        with self._lock:
            return self._tables.get(key)

    def note(self, columns: frozenset[str], key: Hashable, table: FeatureTable) -> None:
        """Scores of this table came out right, made of these columns."""
        with self._lock:
            self._columns |= columns
            self._tables[key] = table
            self._tables.move_to_end(key)
            if len(self._tables) > KEPT_TABLES:
                self._tables.popitem(last=False)


def golden_difference(package: Package, proofs: Proofs) -> float:
    """The largest difference of a package's golden rows, alone and together, to their scores.

    Args:
        proofs: of the ground the package stands on; a package that came out right adds to them.
    """
    expected = np.array(package.golden["scores"], dtype=np.float64)
    reads = package.used | {HISTORIES} if package.needs_history else package.used
    key = (
        package.manifest["files"]["golden.json"], package.blocks, package.only,
        package.needs_history, package.network,
    )  # fmt: skip
    covered = proofs.cover(reads)
    table = proofs.table(key) if covered else None
    alone: list[FeatureTable] = []
    if table is None:
        frames, profile, samples, _ = golden_frames(package.schema, package.golden)
        table = package.features(package.population(frames, profile, samples))
        if not covered:
            parts = [samples[i : i + 1] for i in range(min(ALONE, len(samples)))]
            alone = [package.features(package.population(frames, profile, p)) for p in parts]
    alone = alone or [table.take(np.array([i])) for i in range(min(ALONE, len(table)))]
    found = [_difference(package, table, expected)]
    found += [_difference(package, row, expected[i : i + 1]) for i, row in enumerate(alone)]
    worst = float(np.max(found))  # NaN where one of them is
    if worst <= TOLERANCE:
        proofs.note(reads, key, table)
    return worst


def _difference(package: Package, table: FeatureTable, expected: np.ndarray) -> float:
    found = package.probability(package.logit(table))
    return float(np.max(np.abs(found - expected), initial=0.0))


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
