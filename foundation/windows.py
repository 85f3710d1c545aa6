"""What pretraining looks at: cuts of entities' histories, and the batch of a step.

A fixed pool of cuts is drawn and given its targets up front. The batch of step k is a pure
function of (seed, k): entities in the order of a per-epoch permutation, a contiguous window of at
most `max_events` events around one of the entity's cuts, and Q of the cuts inside that window.

Cuts look like what will be scored: calendar months back from `until` (a scoring day), moments just
before and just after an event, and random moments, silence included. Targets whose window is not
over at `until` are NaN.

Shapes: N events, E entities, R cuts per entity, Q queries, T targets, A activity horizons, S cuts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from foundation.batching import gather_histories
from foundation.history import DAY_US, Cut, Timeline, first_not_before
from foundation.targets import SLACK, months_before

if TYPE_CHECKING:
    from foundation.tokenizer import EncodedEvents, EncodedQueries


@dataclass(frozen=True)
class CutPool:
    """Cuts with their targets, R per entity, sorted by time within an entity.

    Attributes:
        entity: [S] int64; cut_us: [S] int64; position: [S] int64 timeline position of the first
            event not known before the cut.
        offsets: [E + 1] int64; cuts of entity e are offsets[e]:offsets[e + 1].
        outcomes: [S, T] float32; activity: [S, A, sources] float32 counts; NaN not matured.
        base: [S, T] float32 log-odds that forecasts are added to.
    """

    entity: np.ndarray
    cut_us: np.ndarray
    position: np.ndarray
    offsets: np.ndarray
    outcomes: np.ndarray
    activity: np.ndarray
    base: np.ndarray

    def __len__(self) -> int:
        return len(self.entity)


@dataclass(frozen=True)
class Plan:
    """The windows and queries of one step.

    Attributes:
        start, stop: [B] int64 timeline range of each window.
        cuts: [B, Q] int64 rows of the pool. fresh: [B, Q] bool, False for a repeated cut.
    """

    start: np.ndarray
    stop: np.ndarray
    cuts: np.ndarray
    fresh: np.ndarray


def draw_cuts(
    timeline: Timeline,
    until_us: int,
    per_entity: int,
    seed: int,
    shortest_us: int,
    decisions: tuple[np.ndarray, np.ndarray] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Cut times of every entity with events: a third each of grid, event and random moments.

    Where an entity has recorded decisions, those take the place of grid and event moments: what
    will be scored is a decision, too. Every cut lies after the entity's first known event and not
    after `until`; random moments lie where the shortest horizon can mature, if the history reaches
    back that far.

    Args:
        decisions: entity and moment [M] int64, sorted; from foundation.decisions.

    Returns:
        entity and cut_us, [S] int64 each, sorted by (entity, cut).
    """
    rng = np.random.default_rng([seed, 1])
    counts = np.diff(timeline.offsets)
    entities = np.flatnonzero(counts > 0)
    if not len(entities):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    first = timeline.known_us[timeline.offsets[entities]]
    end = timeline.offsets[entities + 1]
    ceiling = np.maximum(until_us - shortest_us, first + 1)
    shape = (len(entities), per_entity)
    wait = (rng.random(shape) * (ceiling - first)[:, None]).astype(np.int64)
    anywhere = first[:, None] + 1 + wait
    start = timeline.offsets[entities]
    early = np.maximum(first_not_before(timeline.known_us, start, end, ceiling) - start, 1)
    events = start[:, None] + (rng.random(shape) * early[:, None]).astype(np.int64)
    beside = timeline.known_us[events] + rng.integers(0, 2, shape)
    grid = months_before(until_us, until_us - shortest_us, int(first.min()))[::-1]
    grid = np.append(grid, until_us - shortest_us)
    reachable = np.maximum((grid[None, :-1] > first[:, None]).sum(1), 1)
    months = grid[(rng.random(shape) * reachable[:, None]).astype(np.int64)]
    kind = np.arange(per_entity) % 3
    cuts = np.select([kind == 0, kind == 1], [months, beside], anywhere)
    if decisions is not None:
        cuts = np.where(kind == 2, cuts, _at_decisions(cuts, decisions, entities, first, ceiling))
    cuts = np.clip(cuts, first[:, None] + 1, until_us)
    cuts.sort(axis=1)
    return np.repeat(entities, per_entity), cuts.ravel()


def _at_decisions(
    cuts: np.ndarray,
    decisions: tuple[np.ndarray, np.ndarray],
    entities: np.ndarray,
    first: np.ndarray,
    ceiling: np.ndarray,
) -> np.ndarray:
    """[rows, per entity] cuts, moved to decisions in turn where the entity has any in between.

    Args:
        first, ceiling: [rows] int64; decisions count after the one and up to the other.
    """
    row = np.searchsorted(entities, decisions[0])
    usable = (decisions[1] > first[row]) & (decisions[1] <= ceiling[row])
    row, moment = row[usable], decisions[1][usable]
    begin = np.searchsorted(row, np.arange(len(entities)))
    count = np.bincount(row, minlength=len(entities))
    turn = begin[:, None] + np.arange(cuts.shape[1]) % np.maximum(count, 1)[:, None]
    moment = np.append(moment, 0)
    return np.where(count[:, None] > 0, moment[np.minimum(turn, len(moment) - 1)], cuts)


def activity_counts(
    timeline: Timeline,
    entity: np.ndarray,
    cut_us: np.ndarray,
    horizons_days: tuple[int, ...],
    until_us: int,
) -> np.ndarray:
    """[S, A, sources] float32: events that become known in [cut, cut + horizon).

    NaN where the window has not matured, by the rule of foundation.targets.
    """
    sources = len(timeline.schema.source_names)
    out = np.full((len(entity), len(horizons_days), sources), np.nan, dtype=np.float32)
    for source in range(sources):
        positions = timeline.positions(source)
        known = timeline.known_us[positions]
        start = np.searchsorted(positions, timeline.offsets[entity])
        end = np.searchsorted(positions, timeline.offsets[entity + 1])
        if not len(known):
            known = np.zeros(1, np.int64)
        before = first_not_before(known, start, end, cut_us)
        for a, days in enumerate(horizons_days):
            closes = cut_us + days * DAY_US
            slack = int(SLACK * days * DAY_US)
            after = first_not_before(known, start, end, closes)
            out[:, a, source] = np.where(closes <= until_us + slack, after - before, np.nan)
    return out


def build_pool(
    timeline: Timeline,
    entity: np.ndarray,
    cut_us: np.ndarray,
    outcomes: np.ndarray,
    activity: np.ndarray,
    base: np.ndarray | None = None,
) -> CutPool:
    """Put cuts and targets together; `entity` must be sorted."""
    start, end = timeline.offsets[entity], timeline.offsets[entity + 1]
    position = first_not_before(timeline.known_us, start, end, cut_us)
    offsets = np.searchsorted(entity, np.arange(len(timeline.entity_ids) + 1)).astype(np.int64)
    outcomes = outcomes.astype(np.float32)
    base = np.zeros(outcomes.shape, np.float32) if base is None else base
    return CutPool(entity, cut_us, position, offsets, outcomes, activity, base)


class WindowSampler:
    """Plans the windows of any step."""

    def __init__(
        self,
        timeline: Timeline,
        pool: CutPool,
        entities: np.ndarray,
        batch_events: int,
        max_events: int,
        queries: int,
        seed: int,
    ) -> None:
        """`entities` ([.] int64): those to draw from; those without events are left out.

        A batch holds windows of like length and at most `batch_events` places, padding included:
        histories of very different length in one batch were five times as much padding as events.
        """
        self.offsets, self.pool = timeline.offsets, pool
        has_cuts = np.diff(pool.offsets)[entities] > 0
        self.entities = np.asarray(entities, dtype=np.int64)[has_cuts]
        length = (self.offsets[self.entities + 1] - self.offsets[self.entities]).astype(np.int64)
        self.length = np.minimum(np.maximum(length, 1), max_events)
        self.first = _batch_starts(np.sort(self.length), max(batch_events, 1))
        self.max_events, self.queries, self.seed = max_events, queries, seed

    @property
    def steps_per_epoch(self) -> int:
        """Steps in which every entity is met once."""
        return max(1, len(self.first) - 1)

    def plan(self, step: int) -> Plan:
        """Windows and queries of step `step`, whatever was asked before."""
        entities = self.entities[self._order(step)]
        rng = np.random.default_rng([self.seed, 3, step])
        first, last = self.pool.offsets[entities], self.pool.offsets[entities + 1]
        anchor = first + (rng.random(len(entities)) * (last - first)).astype(np.int64)
        begin, end = self.offsets[entities], self.offsets[entities + 1]
        back = (rng.random(len(entities)) * (self.max_events)).astype(np.int64)
        latest = np.maximum(end - self.max_events, begin)
        start = np.clip(self.pool.position[anchor] - self.max_events + back, begin, latest)
        stop = np.minimum(start + self.max_events, end)
        cuts, fresh = self._cuts_inside(rng, start, stop, first, last, anchor)
        return Plan(start, stop, cuts, fresh)

    def _order(self, step: int) -> np.ndarray:
        """Rows of the step's entities: sorted by noisy length, batches in random order."""
        epoch, at = divmod(step, self.steps_per_epoch)
        rng = np.random.default_rng([self.seed, 2, epoch])
        order = np.argsort(self.length * (0.85 + 0.3 * rng.random(len(self.length))), kind="stable")
        batch = int(rng.permutation(self.steps_per_epoch)[at])
        return order[self.first[batch] : self.first[batch + 1]]

    def _cuts_inside(
        self,
        rng: np.random.Generator,
        start: np.ndarray,
        stop: np.ndarray,
        first: np.ndarray,
        last: np.ndarray,
        anchor: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Q cuts per window that see at least one of its events and none beyond it."""
        per = int((last - first).max())
        rows = first[:, None] + np.arange(per)
        exists = rows < last[:, None]
        rows = np.minimum(rows, last[:, None] - 1)
        position = self.pool.position[rows]
        inside = exists & (position > start[:, None]) & (position <= stop[:, None])
        lot = np.where(inside, rng.random(rows.shape), 2.0)
        lot = np.where(rows == anchor[:, None], np.where(inside, -1.0, 2.0), lot)
        chosen = np.argsort(lot, axis=1, kind="stable")[:, : self.queries]
        good = np.take_along_axis(inside, chosen, axis=1)
        cuts = np.take_along_axis(rows, chosen, axis=1)
        missing = self.queries - cuts.shape[1]
        if missing > 0:
            cuts = np.concatenate([cuts, np.repeat(cuts[:, :1], missing, axis=1)], axis=1)
            good = np.concatenate([good, np.zeros((len(cuts), missing), bool)], axis=1)
        cuts = np.where(good, cuts, np.where(good[:, :1], cuts[:, :1], anchor[:, None]))
        return cuts, good


def _batch_starts(length: np.ndarray, places: int) -> np.ndarray:
    """Where batches begin among ascending lengths, so that rows times longest stays near `places`.

    Returns:
        [batches + 1] int64 positions, the last one len(length).
    """
    starts = [0]
    while starts[-1] < len(length):
        at = starts[-1]
        rows = np.arange(1, len(length) - at + 1)
        fits = int((rows * length[at:] <= places).sum())
        starts.append(at + max(fits, 1))
    return np.array(starts, dtype=np.int64)


class WindowBatches:
    """Numpy arrays of planned windows: the backbone's inputs, lengths and targets."""

    def __init__(self, encoded: EncodedEvents, queries: EncodedQueries, pool: CutPool) -> None:
        """`queries` are the pool's cuts encoded, row by row."""
        self.encoded, self.queries, self.pool = encoded, queries, pool

    def arrays(self, plan: Plan) -> dict[str, np.ndarray]:
        """Inputs by name, `length` [B], `outcomes` and `base` [B, Q, T], `activity`
        [B, Q, A, sources].

        Targets of a repeated cut are NaN, so that it does not count twice.
        """
        longest = int((plan.stop - plan.start).max(initial=1))
        histories = gather_histories(self.encoded, plan.start, plan.stop, longest)
        names = ("source", "code", "value", "extra", "days", "length")
        out = {name: getattr(histories, name) for name in names}
        cuts = plan.cuts
        out["query_days"] = self.queries.days[cuts]
        out["query_extra"] = self.queries.extra[cuts]
        out["query_code"] = self.queries.code[cuts].astype(np.int64)
        out["query_value"] = self.queries.value[cuts]
        out["query_position"] = self.pool.position[cuts] - plan.start[:, None]
        out["outcomes"] = np.where(plan.fresh[..., None], self.pool.outcomes[cuts], np.nan)
        out["base"] = self.pool.base[cuts]
        fresh = plan.fresh[..., None, None]
        out["activity"] = np.where(fresh, self.pool.activity[cuts], np.nan)
        return out


def pool_cut(timeline: Timeline, pool: CutPool) -> Cut:
    """The pool as a cut of the timeline, for the tokenizer's queries."""
    return Cut(pool.entity, timeline.offsets[pool.entity], pool.position, pool.cut_us)
