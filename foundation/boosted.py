"""Boosted forecasters of declared outcomes, trained on earlier cuts without one label.

History holds its own outcomes: for an earlier cut of an entity it is known what the next weeks
brought. For every target one LightGBM model per fold learns it from the aggregates at the cut.
Folds go by entity: the prediction for an entity that took part in training comes from the fold
that never saw it (cross-fitted), that for any other row from the mean margin of all folds.

Shapes: S rows, F features, T targets, R training cuts. Probabilities are float32.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import lightgbm as lgb
import msgspec
import numpy as np
import polars as pl

from foundation import strict
from foundation.aggregates import AggregateSpec
from foundation.decisions import context_at, decision_sources
from foundation.errors import ArtifactError
from foundation.history import ProfileHistory, Timeline, cut
from foundation.schema import Schema
from foundation.targets import outcome_targets, past_cuts, target_names
from foundation.trees import float32_thresholds

FILE = "forecasters.json"


class BoostSettings(strict.Strict):
    """How forecasters are trained; the defaults suit every set they were tried on.

    Attributes:
        folds: models per target, split by entity.
        per_entity: earlier cuts per entity; max_rows caps them over all entities.
        anchored: share of cuts just before an event, the others on the monthly grid; below zero
            decides by the schema: events where it declares what is decided on (context columns or
            a dated profile, such as an application), else the grid.
        leaves: of a tree. deep_leaves: tried beside it for targets of at least `deep_rows` matured
            cuts, and taken where held-out entities are forecast better by it; see `capacity`.
        min_class: targets with fewer positives or negatives are skipped.
    """

    folds: int = 5
    per_entity: int = 12
    max_rows: int = 60_000
    anchored: float = -1.0
    rounds: int = 150
    learning_rate: float = 0.05
    leaves: int = 4
    deep_leaves: int = 15
    deep_rows: int = 10_000
    min_leaf: int = 40
    l2: float = 10.0
    column_share: float = 0.3
    row_share: float = 0.7
    min_class: int = 20
    threads: int = 2


class TargetCard(strict.Strict):
    """What is known about one forecast.

    Attributes:
        rows, positives: matured training cuts and how many came true.
        leaves: of the trees; 0 where nobody noted it.
        auc, log_loss: of the cross-fitted predictions on the training cuts.
        reason: why the target was skipped; empty when it was fitted.
    """

    name: str
    title: str
    rows: int = 0
    positives: int = 0
    leaves: int = 0
    auc: float = float("nan")
    log_loss: float = float("nan")
    reason: str = ""


@dataclass(frozen=True)
class Forecasters:
    """Fitted forecasters.

    Attributes:
        cards: one per fitted target, in output order.
        skipped: targets without a model, with the reason.
        models: per target its boosters, one per fold.
        features: names of the F aggregate columns they read.
    """

    cards: tuple[TargetCard, ...]
    models: tuple[tuple[lgb.Booster, ...], ...]
    features: tuple[str, ...]
    folds: int
    skipped: tuple[TargetCard, ...] = ()
    threads: int = 2

    @property
    def names(self) -> tuple[str, ...]:
        """The T forecasts in output order, such as `late_31d`."""
        return tuple(card.name for card in self.cards)

    @property
    def titles(self) -> tuple[str, ...]:
        """Their words for people."""
        return tuple(card.title for card in self.cards)

    def margins(
        self, x: np.ndarray, entity_ids: pl.Series | None = None, cross_fitted: bool = False
    ) -> np.ndarray:
        """[S, T] float64 log-odds; see `predict`."""
        x = np.ascontiguousarray(x, dtype=np.float32)
        out = np.zeros((len(x), len(self.models)))
        if not len(x):
            return out
        if cross_fitted:
            if entity_ids is None:
                raise ValueError("cross-fitted forecasts need the entity of every row")
            fold = fold_of(entity_ids, self.folds)
            for k in range(self.folds):
                rows = np.flatnonzero(fold == k)
                if len(rows):
                    for t, boosters in enumerate(self.models):
                        out[rows, t] = self._raw(boosters[k], x[rows])
            return out
        for t, boosters in enumerate(self.models):
            out[:, t] = sum(self._raw(b, x) for b in boosters) / len(boosters)
        return out

    def predict(
        self, x: np.ndarray, entity_ids: pl.Series | None = None, cross_fitted: bool = False
    ) -> np.ndarray:
        """Probabilities that each outcome comes true.

        Args:
            x: [S, F] float32 aggregates.
            entity_ids: [S], needed for cross-fitting.
            cross_fitted: take each entity's own fold, as for rows whose entity was trained on.
        Returns:
            [S, T] float32.
        """
        margin = self.margins(x, entity_ids, cross_fitted)
        return (1.0 / (1.0 + np.exp(-margin))).astype(np.float32)

    def _raw(self, booster: lgb.Booster, x: np.ndarray) -> np.ndarray:
        return booster.predict(x, raw_score=True, num_threads=self.threads)

    def save(self, directory: str | Path) -> None:
        """Write forecasters.json and forecasters/TARGET.FOLD.txt (LightGBM text)."""
        root = Path(directory)
        (root / "forecasters").mkdir(parents=True, exist_ok=True)
        for card, boosters in zip(self.cards, self.models, strict=True):
            for k, booster in enumerate(boosters):
                path = root / "forecasters" / f"{card.name}.{k}.txt"
                path.write_text(booster.model_to_string(num_iteration=-1), encoding="utf-8")
        data = {
            "folds": self.folds,
            "features": list(self.features),
            "targets": [_card(c) for c in self.cards],
            "skipped": [_card(c) for c in self.skipped],
        }
        text = json.dumps(data, indent=1, sort_keys=True) + "\n"
        (root / FILE).write_text(text, encoding="utf-8")

    @classmethod
    def load(cls, directory: str | Path, threads: int = 2) -> Forecasters:
        """Read what `save` wrote.

        Raises:
            ArtifactError: a file is missing or damaged.
        """
        root = Path(directory)
        try:
            data = json.loads((root / FILE).read_text(encoding="utf-8"))
            cards = tuple(msgspec.convert(_nan(c), TargetCard) for c in data["targets"])
            skipped = tuple(msgspec.convert(_nan(c), TargetCard) for c in data["skipped"])
            models = tuple(
                tuple(
                    lgb.Booster(model_str=_text(root / "forecasters" / f"{card.name}.{k}.txt"))
                    for k in range(data["folds"])
                )
                for card in cards
            )
            features = tuple(data["features"])
        except (OSError, ValueError, KeyError, lgb.basic.LightGBMError) as exc:
            raise ArtifactError(f"{root}: the forecasters cannot be read: {exc}") from None
        return cls(cards, models, features, data["folds"], skipped, threads)


def fold_of(entity_ids: pl.Series, folds: int) -> np.ndarray:
    """[S] int64 fold of each entity: CRC-32 of its UTF-8 id, modulo the number of folds."""
    hashes = (zlib.crc32(str(e).encode()) for e in entity_ids)
    return np.fromiter(hashes, dtype=np.int64, count=len(entity_ids)) % folds


def fit_forecasters(
    schema: Schema,
    timeline: Timeline,
    profile: ProfileHistory | None,
    spec: AggregateSpec,
    until_us: int,
    seed: int = 0,
    settings: BoostSettings | None = None,
) -> Forecasters:
    """Train the forecasters of every declared outcome and horizon.

    Args:
        timeline: events of the entities that may be learned from, and of no others.
        profile: with the applications of recorded decisions, see foundation.decisions.
        until_us: only events known before it are read.
        spec: aggregates whose columns are the features.
    """
    settings = settings or BoostSettings()
    outcomes = schema.parsed_outcomes()
    titles = [outcome.title(h) for outcome in outcomes for h in outcome.horizons]
    horizons = tuple(h for outcome in outcomes for h in outcome.horizons)
    names = target_names(outcomes)

    def none(reason: str) -> Forecasters:
        skipped = tuple(
            TargetCard(name=n, title=t, reason=reason) for n, t in zip(names, titles, strict=True)
        )
        return Forecasters((), (), spec.names, settings.folds, skipped, settings.threads)

    if not outcomes or not len(timeline):
        return none("no event to learn from")
    rng = np.random.default_rng(seed)
    entity, cut_us = past_cuts(
        timeline,
        until_us,
        horizons,
        rng,
        settings.per_entity,
        anchored_share(schema, settings),
        decision_sources(schema),
    )
    if not len(entity):
        return none(f"no moment has {min(horizons)} days of known events behind it")
    if len(entity) > settings.max_rows:
        chosen = np.sort(rng.choice(len(entity), settings.max_rows, replace=False))
        entity, cut_us = entity[chosen], cut_us[chosen]
    ids = timeline.entity_ids[entity]
    context = context_at(timeline, entity, cut_us)
    x = spec.compute(timeline, cut(timeline, ids, cut_us), profile, ids, context)
    y = outcome_targets(timeline, outcomes, entity, cut_us, until_us, exposed=True)
    cards = [TargetCard(name=n, title=t) for n, t in zip(names, titles, strict=True)]
    fold = fold_of(ids, settings.folds)
    return train(x, y, fold, entity, cards, spec.names, settings, seed)


def anchored_share(schema: Schema, settings: BoostSettings) -> float:
    """Share of cuts just before an event, see `BoostSettings.anchored`."""
    if settings.anchored >= 0:
        return min(settings.anchored, 1.0)
    dated = schema.profile is not None and bool(schema.profile.valid_time)
    return 1.0 if schema.context or dated else 0.0


def train(
    x: np.ndarray,
    y: np.ndarray,
    fold: np.ndarray,
    entity: np.ndarray,
    cards: Sequence[TargetCard],
    features: tuple[str, ...],
    settings: BoostSettings,
    seed: int,
) -> Forecasters:
    """Fit one model per target and fold.

    Args:
        x: [R, F] float32. y: [R, T], NaN unknown. fold, entity: [R] int64.
    """
    data = lgb.Dataset(x, free_raw_data=False, params=_params(settings, seed))
    data.construct()
    fitted, models, skipped = [], [], []
    for t, card in enumerate(cards):
        known = ~np.isnan(y[:, t])
        label = np.where(known, y[:, t], 0.0)
        positives, rows = int(label.sum()), int(known.sum())
        card = msgspec.structs.replace(card, rows=rows, positives=positives)
        if min(positives, rows - positives) < settings.min_class:
            reason = (
                f"{positives} of {rows} matured cuts came true; "
                f"{settings.min_class} of each kind are needed"
            )
            skipped.append(msgspec.structs.replace(card, reason=reason))
            continue
        data.set_label(label)
        chosen, first = capacity(data, x, label, known, fold, entity, settings, seed)
        rows_of = [np.flatnonzero(known & (fold != k)) for k in range(settings.folds)]
        # One single-threaded fit per core: OpenMP teams of small fits spend their time waiting.
        with ThreadPoolExecutor(settings.threads) as pool:
            fits = [pool.submit(_fit_one, data, r, chosen, seed) for r in rows_of[len(first) :]]
            boosters = [*first, *(fit.result() for fit in fits)]
        card = msgspec.structs.replace(card, leaves=chosen.leaves)
        models.append(tuple(boosters))
        auc, loss = _cross_fitted(boosters, x, label, known, fold, settings.threads)
        fitted.append(msgspec.structs.replace(card, auc=auc, log_loss=loss))
    return Forecasters(
        tuple(fitted), tuple(models), features, settings.folds, tuple(skipped), settings.threads
    )


def capacity(
    data: lgb.Dataset,
    x: np.ndarray,
    label: np.ndarray,
    known: np.ndarray,
    fold: np.ndarray,
    entity: np.ndarray,
    settings: BoostSettings,
    seed: int,
) -> tuple[BoostSettings, list[lgb.Booster]]:
    """How deep the trees of a target are: deeper ones have to earn it.

    Both depths learn from every fold but the first. The deeper one is taken where it lowers the
    log-loss of the first fold's entities by more than a standard error, over entities; one choice
    for all folds.

    Args:
        data: of x [R, F]. label: [R]. known: [R] bool. fold, entity: [R] int64.
    Returns:
        the settings, and the first fold's booster where it was fitted on the way.
    """
    held = np.flatnonzero(known & (fold == 0))
    few = int(known.sum()) < settings.deep_rows or not len(held)
    if few or settings.deep_leaves <= settings.leaves:
        return settings, []
    deep = msgspec.structs.replace(settings, leaves=settings.deep_leaves)
    rows = np.flatnonzero(known & (fold != 0))
    with ThreadPoolExecutor(settings.threads) as pool:
        flat, tall = pool.map(lambda s: _fit_one(data, rows, s, seed), (settings, deep))
    losses = []
    for booster in (flat, tall):
        margin = booster.predict(x[held], raw_score=True, num_threads=settings.threads)
        losses.append(np.logaddexp(0.0, margin) - label[held] * margin)
    _, of = np.unique(entity[held], return_inverse=True)
    gain = np.bincount(of, losses[0] - losses[1])
    if gain.sum() > np.sqrt(len(gain)) * gain.std():
        return deep, [tall]
    return settings, [flat]


def _params(settings: BoostSettings, seed: int) -> dict[str, object]:
    return {
        "objective": "binary",
        "verbosity": -1,
        "seed": seed,
        "deterministic": True,
        "force_row_wise": True,
        "num_threads": 1,
        "learning_rate": settings.learning_rate,
        "num_leaves": settings.leaves,
        "min_data_in_leaf": settings.min_leaf,
        "lambda_l2": settings.l2,
        "feature_fraction": settings.column_share,
        "bagging_fraction": settings.row_share,
        "bagging_freq": 1,
        "max_bin": 127,
        "feature_pre_filter": False,
    }


def _fit_one(
    data: lgb.Dataset, rows: np.ndarray, settings: BoostSettings, seed: int
) -> lgb.Booster:
    """One booster on some rows of a binned data set."""
    part = data.subset(rows.tolist())
    booster = lgb.train(_params(settings, seed), part, num_boost_round=settings.rounds)
    return float32_thresholds(booster)


def _cross_fitted(
    boosters: list[lgb.Booster],
    x: np.ndarray,
    label: np.ndarray,
    known: np.ndarray,
    fold: np.ndarray,
    threads: int,
) -> tuple[float, float]:
    """AUC and log-loss of predictions for the held-out entities of each fold."""
    margin = np.zeros(len(x))
    for k, booster in enumerate(boosters):
        rows = np.flatnonzero(known & (fold == k))
        if len(rows):
            margin[rows] = booster.predict(x[rows], raw_score=True, num_threads=threads)
    margin, label = margin[known], label[known]
    loss = np.logaddexp(0.0, margin) - label * margin
    rank = pl.Series(margin).rank("average").to_numpy()
    ones = label.sum()
    auc = (rank[label == 1].sum() - ones * (ones + 1) / 2) / (ones * (len(label) - ones))
    return float(auc), float(loss.mean())


def _card(card: TargetCard) -> dict[str, object]:
    data = msgspec.to_builtins(card)
    return {k: None if isinstance(v, float) and v != v else v for k, v in data.items()}


def _nan(data: dict[str, object]) -> dict[str, object]:
    return {k: float("nan") if v is None else v for k, v in data.items()}


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")
