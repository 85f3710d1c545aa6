"""Many requests scored together: each row as it would score alone, and alone in its faults.

Rows are read one by one, so that a bad one spoils nothing; what was read is scored in groups of
rows of one package, histories of like length together. A row may name a customer that another row
names too, with another history: rows, not customers, are kept apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import polars as pl

from finetune.features import Population
from foundation.errors import InternalError
from serving.requests import ScoringInput, population_of

if TYPE_CHECKING:
    from finetune.features import Follow
    from finetune.package import Package, ScoreRow


def join(rows: Sequence[ScoringInput]) -> Population:
    """Rows of one schema as a population; row i stands for itself, whoever the customer is."""
    names = [f"{i:08d}" for i in range(len(rows))]
    return population_of(rows, pl.Series("entity_id", names, dtype=pl.String))


def score_together(
    package: Package,
    rows: Sequence[ScoringInput],
    reasons: bool,
    kept: Sequence[int] = (),
    follow: Follow | None = None,
) -> list[ScoreRow | Exception]:
    """Score rows in one go; if that fails, one by one, so that only the rows at fault fail.

    Args:
        kept: rows that run `follow` in place of the package's whole graph, from kept states
            (`finetune.incremental.Following`); they are a group of their own.
    Returns:
        per row its score, or what went wrong with it.
    """
    if follow is not None:
        rest = [i for i in range(len(rows)) if i not in {*kept}]
        found = score_together(package, [rows[i] for i in rest], reasons)
        found += _from_states(package, [rows[i] for i in kept], reasons, follow)
        by_row = dict(zip((*rest, *kept), found, strict=True))
        return [by_row[i] for i in range(len(rows))]
    if not rows:
        return []
    try:
        return _scored(package, rows, reasons)
    except Exception as exc:
        if len(rows) == 1:
            return [exc]
        return [score_together(package, [row], reasons)[0] for row in rows]


def _from_states(
    package: Package, rows: Sequence[ScoringInput], reasons: bool, follow: Follow
) -> list[ScoreRow | Exception]:
    try:
        return _scored(package, rows, reasons, follow=follow)
    except Exception:
        return score_together(package, rows, reasons)


def _scored(
    package: Package, rows: Sequence[ScoringInput], reasons: bool, **how: Any
) -> list[ScoreRow | Exception]:
    scored = package.score_population(join(rows), reasons, **how)
    if len(scored) != len(rows):
        raise InternalError(f"{len(scored)} scores for {len(rows)} rows")
    return list(scored)
