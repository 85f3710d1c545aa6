"""Label-free forecasts and aggregates on prepared sets, by KS and AUC on their fixed test sets.

    python scripts/bench/forecasters.py DATA_DIR uci loans cards journey [--set anchored=0.3]

DATA_DIR holds one folder per set: SOURCE.parquet, profile.parquet, pool.parquet, test.parquet.
Forecasters learn from pool entities' events known before the pool's earliest as_of; labels enter
only in the logistic regressions on n labels (draws 100 + k) that judge them.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import lightgbm as lgb
import msgspec
import numpy as np
import polars as pl
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import QuantileTransformer, StandardScaler

from foundation.aggregates import AggregateSpec
from foundation.boosted import BoostSettings, Forecasters, fit_forecasters
from foundation.history import ProfileHistory, Timeline, build_profile, build_timeline, cut
from foundation.schema import Schema, load_schema, schema_from_dict, schema_to_dict

ROOT = Path(__file__).resolve().parents[2]


def read_set(
    name: str, data: Path
) -> tuple[Schema, dict[str, pl.DataFrame], ProfileHistory, pl.DataFrame, pl.DataFrame]:
    """Schema, event frames, profile, pool and test of a prepared set."""
    schema = load_schema(ROOT / "configs" / "schemas" / f"{name}.yaml")
    frames = {}
    for source in schema.sources:
        frame = pl.read_parquet(data / name / f"{source}.parquet").drop_nulls("event_time")
        frames[source] = frame.with_columns(pl.col("event_time").alias("known_at"))
    valid = schema.profile.valid_time
    known = pl.col(valid) if valid else pl.lit(None, dtype=pl.Datetime("us"))
    rows = pl.read_parquet(data / name / "profile.parquet")
    profile = build_profile(rows.with_columns(known.alias("known_at")))
    pool, test = (pl.read_parquet(data / name / f"{p}.parquet") for p in ("pool", "test"))
    return schema, frames, profile, pool, test


def microseconds(series: pl.Series) -> np.ndarray:
    """Datetimes as int64 microseconds."""
    return series.cast(pl.Datetime("us")).to_physical().to_numpy()


def ks(y: np.ndarray, score: np.ndarray) -> float:
    """Largest distance of the two score distributions; ties share a step."""
    order = np.argsort(score, kind="stable")
    y, score = y[order], score[order]
    last = np.append(score[1:] != score[:-1], True)
    good = np.cumsum(1 - y)[last] / (1 - y).sum()
    bad = np.cumsum(y)[last] / y.sum()
    return float(np.abs(good - bad).max())


def auc(y: np.ndarray, score: np.ndarray) -> float:
    """Area under the ROC curve, ties by half."""
    rank = pl.Series(score).rank("average").to_numpy()
    ones = y.sum()
    return float((rank[y == 1].sum() - ones * (ones + 1) / 2) / (ones * (len(y) - ones)))


def both(y: np.ndarray, score: np.ndarray) -> str:
    """`AUC / KS`."""
    return f"{auc(y, score):.3f} / {ks(y, score):.3f}"


class Bench:
    """One prepared set: its timelines, aggregates and labels.

    The timeline of the pool holds pool entities only; that of everybody is read for features.
    """

    def __init__(self, name: str, data: Path, until_us: int | None = None) -> None:
        self.name = name
        self.schema, frames, self.profile, self.pool, self.test = read_set(name, data)
        as_of = microseconds(self.pool["as_of"])
        self.until_us = int(as_of.min()) if until_us is None else until_us
        members = self.pool["entity_id"].implode()
        inside = {k: f.filter(pl.col("entity_id").is_in(members)) for k, f in frames.items()}
        self.timeline: Timeline = build_timeline(self.schema, frames)
        self.inside: Timeline = build_timeline(self.schema, inside)
        self.y_pool = self.pool["label"].to_numpy().astype(np.int64)
        self.y_test = self.test["label"].to_numpy().astype(np.int64)

    def fit_aggregates(self) -> float:
        """Fit and compute the aggregates of pool and test; returns the seconds."""
        began = time.perf_counter()
        self.spec = AggregateSpec.fit(self.schema, self.inside, self.profile, None, self.until_us)
        self.x_pool, self.x_test = self.aggregates(self.pool), self.aggregates(self.test)
        return time.perf_counter() - began

    def aggregates(self, samples: pl.DataFrame) -> np.ndarray:
        """[S, F] float32."""
        ids, as_of = samples["entity_id"], microseconds(samples["as_of"])
        return self.spec.compute(self.timeline, cut(self.timeline, ids, as_of), self.profile, ids)

    def with_outcomes(self, names: list[str]) -> Schema:
        """The schema with some of its outcomes."""
        data = schema_to_dict(self.schema)
        data["outcomes"] = {k: v for k, v in data["outcomes"].items() if k in names}
        return schema_from_dict(data)

    def draws(self, n: int, count: int) -> list[np.ndarray]:
        """Rows of the pool for `count` draws of n labels."""
        every = np.arange(len(self.pool))
        return [
            np.random.default_rng(100 + k).choice(every, n, replace=False) for k in range(count)
        ]


def forecast_regression(
    bench: Bench, pool: np.ndarray, test: np.ndarray, n: int, count: int
) -> str:
    """Mean AUC / KS of a logistic regression on margins, its strength chosen by 5 folds."""
    found = []
    for rows in bench.draws(n, count):
        model = make_pipeline(
            StandardScaler(),
            LogisticRegressionCV(
                Cs=[0.001, 0.003, 0.01, 0.03, 0.1, 1.0],
                cv=5,
                scoring="neg_log_loss",
                l1_ratios=(0,),
                use_legacy_attributes=False,
                max_iter=500,
            ),
        )
        model.fit(pool[rows], bench.y_pool[rows])
        score = model.decision_function(test)
        found.append((auc(bench.y_test, score), ks(bench.y_test, score)))
    return "{:.3f} / {:.3f}".format(*np.mean(found, axis=0))


def report_forecasts(bench: Bench, settings: BoostSettings, draws: int, seed: int) -> Forecasters:
    """Fit the forecasters, print their zero-label and few-label results."""
    began = time.perf_counter()
    model = fit_forecasters(
        bench.schema, bench.inside, bench.profile, bench.spec, bench.until_us, seed, settings
    )
    took = time.perf_counter() - began
    pool = model.margins(bench.x_pool, bench.pool["entity_id"], cross_fitted=True)
    test = model.margins(bench.x_test)
    print(f"{bench.name}: fitted in {took:.0f} s")
    for t, card in enumerate(model.cards):
        print(
            f"  {card.name:24} rows {card.rows:6} came true {card.positives:6} cross-fitted "
            f"AUC {card.auc:.3f} loss {card.log_loss:.4f} | "
            f"label {both(bench.y_test, test[:, t])}"
        )
    for card in model.skipped:
        print(f"  {card.name:24} skipped: {card.reason}")
    mean = model.predict(bench.x_test).mean(axis=1)
    line = f"  labels 0: {both(bench.y_test, mean)}"
    for n in (100, 300):
        line += f"   {n}: {forecast_regression(bench, pool, test, n, draws)}"
    print(line, flush=True)
    return model


def report_aggregates(bench: Bench, draws: int) -> None:
    """Plain logistic regression and LightGBM on the aggregates at 300 labels."""
    linear, trees = [], []
    for rows in bench.draws(300, draws):
        a, b = dense(bench.spec, bench.x_pool[rows], bench.x_test)
        model = LogisticRegression(C=0.003, max_iter=300).fit(a, bench.y_pool[rows])
        score = model.decision_function(b)
        linear.append((auc(bench.y_test, score), ks(bench.y_test, score)))
        params = {
            "objective": "binary",
            "verbosity": -1,
            "num_threads": 2,
            "num_leaves": 4,
            "learning_rate": 0.03,
            "min_data_in_leaf": 20,
            "feature_fraction": 0.2,
            "bagging_fraction": 0.7,
            "bagging_freq": 1,
            "lambda_l2": 10.0,
            "seed": 1,
        }
        booster = lgb.train(params, lgb.Dataset(bench.x_pool[rows], bench.y_pool[rows]), 150)
        score = booster.predict(bench.x_test)
        trees.append((auc(bench.y_test, score), ks(bench.y_test, score)))
    print(
        "  aggregates at 300: lr {:.3f} / {:.3f}".format(*np.mean(linear, axis=0))
        + "   lgb {:.3f} / {:.3f}".format(*np.mean(trees, axis=0)),
        flush=True,
    )


def dense(
    spec: AggregateSpec, train: np.ndarray, test: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Codes one-hot, numbers to normal scores, gaps filled with the centre, missing flagged."""
    out: list[list[np.ndarray]] = [[], []]
    number = [j for j, c in enumerate(spec.columns) if c.kind == "number"]
    parts = train[:, number], test[:, number]
    size = min(100, len(train))
    scaler = QuantileTransformer(n_quantiles=size, output_distribution="normal")
    scaler.fit(np.where(np.isnan(parts[0]).all(axis=0), 0.0, parts[0]))
    for k, part in enumerate(parts):
        scaled = np.clip(np.nan_to_num(scaler.transform(part), nan=0.0), -3, 3)
        out[k] += [scaled, np.isnan(part)]
    for j, column in enumerate(spec.columns):
        for level in range(len(column.levels) if column.kind == "code" else 0):
            out[0].append((train[:, [j]] == level) * 2.0)
            out[1].append((test[:, [j]] == level) * 2.0)
    return np.concatenate(out[0], axis=1), np.concatenate(out[1], axis=1)


def main() -> None:
    """Parse arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("sets", nargs="+")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-aggregates", action="store_true")
    args = parser.parse_args()
    changes = dict(item.split("=", 1) for item in args.set)
    settings = msgspec.convert(changes, BoostSettings, strict=False)
    for name in args.sets:
        bench = Bench(name, args.data)
        took = bench.fit_aggregates()
        print(f"{name}: {bench.x_pool.shape[1]} columns in {took:.1f} s", flush=True)
        if bench.schema.outcomes and bench.schema.sources:
            report_forecasts(bench, settings, args.draws, args.seed)
        if not args.no_aggregates:
            report_aggregates(bench, args.draws)


if __name__ == "__main__":
    main()
