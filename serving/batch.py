"""Many requests scored together: each row as it would score alone, and alone in its faults.

Rows are read one by one, so that a bad one spoils nothing; what was read is scored in groups of
rows of one package, histories of like length together. A row may name a customer that another row
names too, with another history: rows, not customers, are kept apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import polars as pl

from finetune.features import Population
from foundation.errors import InternalError
from serving.requests import ScoringInput, population_of

if TYPE_CHECKING:
    from finetune.package import Package, ScoreRow


def join(rows: Sequence[ScoringInput]) -> Population:
    """Rows of one schema as a population; row i stands for itself, whoever the customer is."""
    names = [f"{i:08d}" for i in range(len(rows))]
    return population_of(rows, pl.Series("entity_id", names, dtype=pl.String))


def score_together(
    package: Package, rows: Sequence[ScoringInput], reasons: bool
) -> list[ScoreRow | Exception]:
    """Score rows in one go; if that fails, one by one, so that only the rows at fault fail.

    Returns:
        per row its score, or what went wrong with it.
    """
    if not rows:
        return []
    try:
        scored = package.score_population(join(rows), reasons)
        if len(scored) != len(rows):
            raise InternalError(f"{len(scored)} scores for {len(rows)} rows")
        return list(scored)
    except Exception as exc:
        if len(rows) == 1:
            return [exc]
        return [score_together(package, [row], reasons)[0] for row in rows]
