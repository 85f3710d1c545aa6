"""Back-tracking of samples: everything a recipe may read, as one table.

The same `FeatureBuilder` makes the features of training rows, of a file to be scored and of one
API request: as-of cut, aggregates, boosted forecasts, tokens, the backbone's ONNX graph. It holds
no torch; only cross-fitted forecasts of training rows need the boosters themselves.

Shapes: S samples, F columns, T forecast targets, D width of the backbone.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Protocol

import numpy as np
import onnxruntime as ort
import polars as pl

from finetune.table import Column, FeatureTable
from foundation.aggregates import AggregateSpec
from foundation.batching import history_batches, query_rows
from foundation.columns import AggregateColumn
from foundation.history import Cut, ProfileHistory, Timeline, cut
from foundation.row_table import RowTable
from foundation.schema import Schema
from foundation.tokenizer import EncodedEvents, EncodedQueries, Tokenizer

if TYPE_CHECKING:
    from foundation.backbone import RiskBackbone

POOLINGS = ("query", "mean", "last")
# How the backbone's graphs multiply, see `finetune.quantized`.
FLOAT32, INT8 = "float32", "int8"
# Up to so many samples, of so many events at least, the history graph runs beside the aggregates,
# which are then mostly Python: a request waits for the longer of the two. For files both use every
# core already; for a short history waking a thread costs as much as the graph.
BESIDE = 16
TINY = 1e-7
WORTH_A_THREAD = 48
# Histories of one run of a graph: more of them leave the processor's cache and cost up to a third.
RUN_ROWS = 8
Progress = Callable[[int, int], None]


@cache
def _beside() -> ThreadPoolExecutor:
    """Threads for aggregates beside a history graph, for all builders of a process."""
    return ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="aggregates")


def open_session(graph: str | bytes, threads: int = 1) -> ort.InferenceSession:
    """An onnxruntime session on the CPU with a fixed number of threads and no spinning."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


@dataclass(frozen=True)
class Population:
    """The rows to build features for.

    Attributes:
        timeline: events of at least these entities.
        profile: profile rows of at least these entities, or None.
        entity_ids: [S] strings.
        as_of_us: [S] int64, UTC microseconds.
        context: [S] rows of the context columns, or None.
    """

    timeline: Timeline
    profile: ProfileHistory | None
    entity_ids: pl.Series
    as_of_us: np.ndarray
    context: pl.DataFrame | RowTable | None

    def __len__(self) -> int:
        return len(self.as_of_us)


@dataclass
class Histories:
    """Token histories of S samples, for recipes that read events themselves."""

    events: EncodedEvents
    cut: Cut
    queries: EncodedQueries
    max_events: int

    def take(self, rows: np.ndarray) -> Histories:
        """The same for some rows."""
        queries = query_rows(self.queries, rows)
        return Histories(self.events, self.cut.part(rows), queries, self.max_events)

    def __len__(self) -> int:
        return len(self.cut)


class Follow(Protocol):
    """What runs in place of the backbone's whole graph."""

    @property
    def heavy(self) -> bool:
        """Whether a run takes so long that something else can be done beside it."""

    def __call__(self, histories: Histories, timeline: Timeline) -> tuple[np.ndarray, np.ndarray]:
        """States [S, 3 D] and forecast log-odds [S, T] of a few samples."""


@dataclass
class FeatureBuilder:
    """Turns samples into features.

    Attributes:
        history: ONNX session of the backbone, None where the backbone has no network.
        forecasters: ONNX session of the boosted forecasters, None without any.
        boosted_targets, network_targets: forecast names of the two.
        based_targets: those of the network that are added to the boosted forecasts' log-odds.
        titles: forecast name -> words for people.
        precision: of `history`. With `int8` only histories of equal length share a run: padding
            changes the last bit of a sum, and a value on the edge between two steps with it.
    """

    schema: Schema
    tokenizer: Tokenizer
    spec: AggregateSpec
    history: ort.InferenceSession | None = None
    forecasters: ort.InferenceSession | None = None
    boosted_targets: tuple[str, ...] = ()
    network_targets: tuple[str, ...] = ()
    based_targets: tuple[str, ...] = ()
    titles: dict[str, str] = field(default_factory=dict)
    max_events: int = 256
    precision: str = FLOAT32
    _columns: dict[tuple[bool, int | None], tuple[Column, ...]] = field(
        default_factory=dict, init=False, repr=False
    )

    def table(
        self,
        population: Population,
        blocks: frozenset[str] | None = None,
        boosted: Callable[[np.ndarray], np.ndarray] | None = None,
        batch_size: int = RUN_ROWS,
        keep_histories: bool = False,
        progress: Progress | None = None,
        only: frozenset[str] | None = None,
        network: bool = True,
        follow: Follow | None = None,
    ) -> FeatureTable:
        """Features of a population.

        Args:
            blocks: leave out what none of these blocks needs; None builds everything.
            only: aggregates that will be read; the others stay NaN. None computes all.
            network: False leaves out the backbone's graph, with its forecasts and states.
            boosted: replaces the boosted graph, for cross-fitted training rows:
                aggregates [S, A] -> probabilities [S, T].
            batch_size: rows per run of the backbone; a row's values do not depend on it
                beyond 1e-5, and not at all with `int8`.
            follow: takes the place of the backbone's graph, see `finetune.incremental.Following`.
        """
        want = frozenset({"aggregate", "forecast", "embedding"}) if blocks is None else blocks
        cut_ = cut(population.timeline, population.entity_ids, population.as_of_us)
        states = bool(network and self.history and want & {"forecast", "embedding"})
        forecast = bool(self.boosted_targets and ("forecast" in want or states))

        def read() -> list[np.ndarray]:
            aggregates = self.spec.compute(
                population.timeline,
                cut_,
                population.profile,
                population.entity_ids,
                population.context,
                only=only,
            )
            if not forecast:
                return [aggregates]
            return [aggregates, (boosted or self._boosted)(aggregates).astype(np.float32)]

        histories = self._histories(population, cut_) if states or keep_histories else None
        if histories is None or not states:
            parts, width = read(), None
        else:
            few = len(cut_) <= BESIDE and int((cut_.stop - cut_.start).sum()) >= WORTH_A_THREAD
            # Another thread gets to its Python once this one is in the graph.
            beside = few and (follow is None or follow.heavy)
            reading = _beside().submit(read) if beside else None
            if follow is not None:
                found = follow(histories, population.timeline)
            else:
                found = self._run(histories, batch_size, progress)
            parts = read() if reading is None else reading.result()
            if self.network_targets:
                parts.append(self._network_forecasts(found[1], parts[-1]))
            parts.append(found[0])
            width = found[0].shape[1]
        return FeatureTable(
            self._column_list(forecast, width),
            np.concatenate(parts, axis=1),
            histories if keep_histories else None,
            thin=cut_.stop == cut_.start,
        )

    def _network_forecasts(self, logits: np.ndarray, boosted: np.ndarray) -> np.ndarray:
        """[S, T] float32 probabilities from what the network says and boosted probabilities."""
        total = logits.astype(np.float64)
        for t, name in enumerate(self.network_targets):
            if name in self.based_targets:
                base = boosted[:, self.boosted_targets.index(name)].astype(np.float64)
                base = np.clip(base, TINY, 1 - TINY)
                total[:, t] += np.log(base / (1 - base))
        return (1.0 / (1.0 + np.exp(-total))).astype(np.float32)

    def _column_list(self, forecast: bool, width: int | None) -> tuple[Column, ...]:
        """Columns of a table with or without boosted forecasts and states; the same tuple again."""
        found = self._columns.get((forecast, width))
        if found is None:
            columns = [_column(c) for c in self.spec.columns]
            if forecast:
                columns += [self._forecast_column(t, "") for t in self.boosted_targets]
            if width is not None:
                columns += [self._forecast_column(t, "network.") for t in self.network_targets]
                columns += _embedding_columns(width)
            found = self._columns[forecast, width] = tuple(columns)
        return found

    def _forecast_column(self, target: str, prefix: str) -> Column:
        title = self.titles.get(target, target.replace("_", " "))
        return Column(
            name=f"{prefix}{target}",
            block="forecast",
            kind="number",
            levels=(),
            group=f"forecast.{target}",
            title=f"forecast: {title}",
        )

    def _boosted(self, aggregates: np.ndarray) -> np.ndarray:
        assert self.forecasters is not None
        return np.asarray(self.forecasters.run(None, {"x": aggregates})[0])

    def _histories(self, population: Population, cut_: Cut) -> Histories:
        events = self.tokenizer.encode_events(population.timeline)
        queries = self.tokenizer.encode_query(
            cut_,
            population.timeline,
            population.profile,
            population.context,
            entity_ids=population.entity_ids,
        )
        return Histories(events, cut_, queries, self.max_events)

    def _run(
        self,
        histories: Histories,
        batch_size: int,
        progress: Progress | None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """States [S, 3 D] and forecast log-odds [S, T] from the ONNX graph."""
        assert self.history is not None
        total = len(histories.cut)
        outputs: dict[str, np.ndarray] = {}
        names = [o.name for o in self.history.get_outputs()]
        inputs = {i.name for i in self.history.get_inputs()}
        done = 0
        for rows, batch in history_batches(
            histories.events,
            histories.cut,
            histories.queries,
            batch_size,
            histories.max_events,
            alike=self.precision == INT8,
        ):
            feed = {k: v for k, v in batch.arrays().items() if k in inputs}
            for name, value in zip(names, self.history.run(None, feed), strict=True):
                if name not in outputs:
                    outputs[name] = np.empty((total, value.shape[-1]), dtype=np.float32)
                outputs[name][rows] = value.reshape(len(rows), -1)
            done += len(rows)
            if progress:
                progress(done, total)
        width = len(self.network_targets)
        forecasts = outputs.get("forecasts", np.empty((total, width), np.float32))
        return np.concatenate([outputs[p] for p in POOLINGS], axis=1), forecasts


def run_tuned(
    session: ort.InferenceSession, histories: Histories, batch_size: int = RUN_ROWS
) -> np.ndarray:
    """[S] logits of a fine-tuned graph, which reads the histories itself."""
    inputs = {i.name for i in session.get_inputs()}
    out = np.empty(len(histories), dtype=np.float32)
    for rows, batch in history_batches(
        histories.events, histories.cut, histories.queries, batch_size, histories.max_events
    ):
        feed = {k: v for k, v in batch.arrays().items() if k in inputs}
        out[rows] = session.run(None, feed)[0].reshape(-1)
    return out


def _column(column: AggregateColumn) -> Column:
    return Column(
        name=column.name,
        block=column.block,
        kind="code" if column.kind == "code" else "number",
        levels=column.levels,
        group=column.group,
        title=column.title,
    )


def state_readout(model: RiskBackbone | None) -> dict[str, float]:
    """State column -> weight in the mean log-odds that pretraining taught the state to say."""
    if model is None or model.readout is None:
        return {}
    weights = model.readout.weight.detach().double().mean(dim=0)
    return {f"state.{POOLINGS[0]}.{i}": float(w) for i, w in enumerate(weights)}


def _embedding_columns(width: int) -> list[Column]:
    each = width // len(POOLINGS)
    return [
        Column(
            name=f"state.{pooling}.{i}",
            block="embedding",
            kind="number",
            levels=(),
            group="behaviour",
            title="behaviour pattern",
        )
        for pooling in POOLINGS
        for i in range(each)
    ]
