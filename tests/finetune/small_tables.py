"""Small feature tables with a known signal, for tests of recipes."""

from __future__ import annotations

import numpy as np

from finetune.table import Column, FeatureTable


def small_table(
    rows: int, seed: int = 0, forecasts: int = 3, embedding: int = 8
) -> tuple[FeatureTable, np.ndarray]:
    """[S] samples and labels, about 30 % bads: every block carries signal, some is missing."""
    random = np.random.default_rng(seed)
    risk = random.normal(size=rows)
    y = (random.random(rows) < 1 / (1 + np.exp(-(1.5 * risk - 1.1)))).astype(np.float64)
    columns: list[Column] = []
    values: list[np.ndarray] = []

    def add(column: Column, value: np.ndarray) -> None:
        columns.append(column)
        values.append(value.astype(np.float32))

    for i in range(6):
        x = risk * (i < 3) + random.normal(size=rows)
        value = np.exp(3 * x) if i % 2 else x
        add(Column(f"a{i}", "aggregate", title=f"aggregate {i}"), value)
    gappy = risk + random.normal(size=rows)
    gappy[random.random(rows) < 0.25] = np.nan
    add(Column("gappy", "aggregate"), gappy)
    add(Column("constant", "aggregate"), np.full(rows, 4.0))
    level = np.clip(np.round(risk + 2 + random.normal(size=rows)), 0, 4)
    level[random.random(rows) < 0.05] = np.nan
    add(Column("job", "profile", "code", ("a", "b", "c", "d", "e")), level)
    add(Column("age", "profile"), random.integers(18, 80, rows).astype(float))
    for i in range(forecasts):
        z = risk - 1.5 + random.normal(size=rows)
        add(Column(f"late_{i}", "forecast"), 1 / (1 + np.exp(-z)))
    for i in range(embedding):
        add(Column(f"e{i}", "embedding"), (i % 3 - 1) * risk + random.normal(size=rows))
    return FeatureTable(tuple(columns), np.stack(values, axis=1)), y


def settings(rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Weights of one and every sample an entity of its own."""
    return np.ones(rows), np.arange(rows)
