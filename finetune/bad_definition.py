"""What counts as bad, read from the events of one source: states month by month, bads since when.

A rule names a source and a field: a status (category), days late (number), or a due date
(timestamp, read as days from it to the event). A subject is a customer since the month of the
first event (`booking`), or a sample since its as_of. Months are calendar months in the schema's
time zone for booking and run from day to day for as_of; month 1 is the first one. Only events
known before `until` exist, and only months that ended early enough to be known are counted.

Shapes: S subjects.
"""

from __future__ import annotations

import datetime as dt
import itertools
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl

from foundation.errors import DataError, UserError, listing, nearest
from foundation.history import DAY_US
from foundation.schema import Schema

EDGES = (1.0, 30.0, 60.0, 90.0)
LATE_SHARE = 0.99
COMPARE = {
    ">=": pl.Expr.ge,
    ">": pl.Expr.gt,
    "<=": pl.Expr.le,
    "<": pl.Expr.lt,
    "=": pl.Expr.eq,
    "!=": pl.Expr.ne,
}


@dataclass(frozen=True)
class BadRule:
    """Which events are bad.

    Attributes:
        source, field: where the state stands.
        values: bad values of a category; empty for numbers and dates.
        op, bound: comparison that makes a number, or days late, bad.
        order: states from best to worst, for categories; empty: found from the data.
        edges: lower bounds, ascending, of the buckets of numbers and days late.
    """

    source: str
    field: str
    values: tuple[str, ...] = ()
    op: str = ">="
    bound: float | None = None
    order: tuple[str, ...] = ()
    edges: tuple[float, ...] = EDGES

    @property
    def text(self) -> str:
        """The rule in words."""
        if self.values:
            return f"{self.source}.{self.field} is {', '.join(self.values)}"
        return f"{self.source}.{self.field} {self.op} {self.bound:g}"


@dataclass(frozen=True)
class States:
    """Events of a source as states.

    Attributes:
        frame: entity_id, event_time (naive UTC us), local (the same in the schema's zone, naive),
            state (Int32, index into names), bad (Boolean); sorted by entity and time.
        names: of the states, best first.
        horizon: months that end by then are known whole; naive, in the schema's zone.
        until_us: what bounded the reading.
        notes: what a person should know, one sentence each.
    """

    frame: pl.DataFrame
    names: tuple[str, ...]
    horizon: dt.datetime
    until_us: int
    notes: tuple[str, ...] = ()


def check_rule(rule: BadRule, schema: Schema) -> str:
    """The kind of the rule's field.

    Raises:
        UserError: an unknown source or field, or a rule that does not fit the field's kind.
    """
    if rule.source not in schema.sources:
        names = schema.source_names
        raise UserError(
            f"unknown source '{rule.source}'{nearest(rule.source, names)}; sources: "
            f"{listing(names) or 'none, this schema is a plain table'}"
        )
    fields = schema.sources[rule.source].fields
    if rule.field not in fields:
        raise UserError(
            f"source '{rule.source}' has no field '{rule.field}'{nearest(rule.field, fields)}; "
            f"fields: {listing(fields)}"
        )
    kind = fields[rule.field].kind
    numeric = kind in ("number", "money", "timestamp")
    if kind not in ("category", "boolean") and not numeric:
        raise UserError(
            f"field '{rule.field}' is of kind {kind}; a bad definition needs a status (category), "
            "days late (number) or a due date (timestamp)"
        )
    if numeric and rule.bound is None:
        raise UserError(f"field '{rule.field}' is of kind {kind}: say from which value on it is "
                        "bad, such as --bad-from 60")  # fmt: skip
    if not numeric and not rule.values:
        raise UserError(f"field '{rule.field}' is of kind {kind}: say which values are bad, such "
                        "as --bad 2,3,4,5")  # fmt: skip
    if numeric and (not rule.edges or (np.diff(rule.edges) <= 0).any()):
        raise UserError(f"bucket edges must ascend, found {', '.join(map(str, rule.edges))}")
    return kind


def rule_of_outcome(schema: Schema, name: str) -> BadRule:
    """The rule that a declared outcome states about single events.

    Raises:
        UserError: no such outcome, or one about sums, counts or silence.
    """
    outcomes = {o.name: o for o in schema.parsed_outcomes()}
    if name not in outcomes:
        raise UserError(
            f"unknown outcome '{name}'{nearest(name, outcomes)}; outcomes: "
            f"{listing(outcomes) or 'none are declared'}"
        )
    o = outcomes[name]
    if o.kind == "value":
        return BadRule(o.source, o.field, values=o.values)
    if o.kind == "compare":
        return BadRule(o.source, o.field, op=o.op, bound=o.bound)
    if o.kind == "late":
        return BadRule(o.source, o.date_field, op=">", bound=float(o.slack_days))
    raise UserError(
        f"outcome '{name}' is about a {o.kind} over a window; vintages need a state of single "
        "events: name --source and --field"
    )


def given_rule(
    schema: Schema,
    outcome: str | None = None,
    source: str | None = None,
    field: str | None = None,
    bad: tuple[str, ...] = (),
    bad_from: float | None = None,
    order: tuple[str, ...] = (),
    edges: tuple[float, ...] = (),
) -> BadRule:
    """The rule a person asks for: that of a declared outcome, or a field and what is bad in it.

    Raises:
        UserError: both or neither, a source left out where there are several, or see `check_rule`.
    """
    stated = (source, field, bad, bad_from)
    if outcome is not None:
        if any(part not in (None, ()) for part in stated):
            raise UserError("give --outcome, or --source, --field and what is bad, not both")
        rule = rule_of_outcome(schema, outcome)
    else:
        if source is None and len(schema.sources) == 1:
            source = schema.source_names[0]
        if source is None or field is None:
            raise UserError(
                "say what is bad: --outcome NAME, or --source and --field with --bad or "
                f"--bad-from; sources: {listing(schema.source_names) or 'none'}"
            )
        rule = BadRule(source, field, values=bad, bound=bad_from)
    rule = replace(rule, order=order, edges=edges or EDGES)
    check_rule(rule, schema)
    return rule


def read_states(
    frame: pl.DataFrame, schema: Schema, rule: BadRule, until_us: int | None = None
) -> States:
    """Events of the rule's source as states.

    Args:
        frame: as `EventStore.frames` gives it, already bounded by `until_us`.
        until_us: what the frame is bounded by; None takes the day after the last known event.
    Raises:
        UserError: see `check_rule`, or a bad value, or a value of the order, that never occurs.
        DataError: there is no event with a state.
    """
    kind = check_rule(rule, schema)
    if until_us is not None:
        bound = pl.lit(until_us).cast(pl.Datetime("us"))
        frame = frame.filter(pl.col("known_at") < bound)
    value = pl.col(rule.field)
    if kind == "timestamp":
        value = (pl.col("event_time") - value).dt.total_microseconds() / DAY_US
    elif kind in ("category", "boolean"):
        value = value.cast(pl.String)
    columns = ["entity_id", "event_time", "known_at", value.alias("value")]
    events = frame.select(columns).drop_nulls("value")
    if not len(events):
        raise DataError(f"source '{rule.source}' has no event with '{rule.field}' in that time")
    last = int(events["known_at"].to_physical().max())  # type: ignore[arg-type]
    until = until_us if until_us is not None else (last // DAY_US + 1) * DAY_US
    names, coded = _coded(events, rule, kind)
    zone = schema.time_zone
    local = pl.col("event_time").dt.replace_time_zone("UTC").dt.convert_time_zone(zone)
    coded = coded.with_columns(local.dt.replace_time_zone(None).alias("local"))
    lag = (events["known_at"] - events["event_time"]).dt.total_microseconds().quantile(LATE_SHARE)
    out = coded.select("entity_id", "event_time", "local", "state", "bad")
    unseen = [v for v in rule.values if v not in set(events["value"])]
    return States(
        out.sort("entity_id", "event_time", maintain_order=True),
        names,
        _local(until - int(max(lag or 0, 0)), zone),
        until,
        (f"bad values that never occur in that time: {listing(unseen)}",) if unseen else (),
    )


def _coded(events: pl.DataFrame, rule: BadRule, kind: str) -> tuple[tuple[str, ...], pl.DataFrame]:
    """State names, best first, and the events with `state` and `bad`."""
    if kind in ("category", "boolean"):
        found = events["value"].unique().to_list()
        if not set(rule.values) & set(found):
            raise UserError(
                f"'{rule.source}.{rule.field}' is never {listing(rule.values)}"
                f"{nearest(rule.values[0], found)}; values in that time: "
                f"{listing(sorted(found, key=_worse_last))}"
            )
        absent = [v for v in found if rule.order and v not in rule.order]
        if absent:
            raise UserError(
                f"--order leaves out {listing(sorted(absent, key=_worse_last))}; name every value "
                "from best to worst"
            )
        names = rule.order or tuple(sorted(found, key=_worse_last))
        codes = {n: i for i, n in enumerate(names)}
        return names, events.with_columns(
            pl.col("value").replace_strict(codes, return_dtype=pl.Int32).alias("state"),
            pl.col("value").is_in(list(rule.values)).alias("bad"),
        )
    edges = np.asarray(rule.edges)
    state = np.searchsorted(edges, events["value"].to_numpy(), side="right").astype(np.int32)
    assert rule.bound is not None
    return bucket_names(rule.edges), events.with_columns(
        pl.Series("state", state),
        COMPARE[rule.op](pl.col("value"), rule.bound).alias("bad"),
    )


def bucket_names(edges: tuple[float, ...]) -> tuple[str, ...]:
    """Names of the buckets between edges: `< 1`, `1 to 30`, ..., `90+`."""
    inner = [f"{a:g} to {b:g}" for a, b in itertools.pairwise(edges)]
    return (f"< {edges[0]:g}", *inner, f"{edges[-1]:g}+")


def _worse_last(value: str) -> tuple[int, float, str]:
    """Words before numbers, numbers ascending: C, X, 0, 1, ... 5."""
    try:
        return 1, float(value), value
    except ValueError:
        return 0, 0.0, value


@dataclass(frozen=True)
class Subjects:
    """Who is followed, since when, and when they first were bad.

    Attributes:
        entity_id: [S].
        origin: [S] Datetime, local: start of month 1.
        months: [S] int64 months known whole since the origin, at least 1.
        first_bad: [S] int64 month of the first bad event, 0 where none within `months`.
        notes: what a person should know, one sentence each.
    """

    entity_id: pl.Series
    origin: pl.Series
    months: np.ndarray
    first_bad: np.ndarray
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.months)


def subjects_since_booking(states: States) -> Subjects:
    """Every customer since the month of the first event."""
    first = states.frame.group_by("entity_id", maintain_order=True).agg(
        pl.col("local").min().dt.truncate("1mo").alias("origin")
    )
    subjects = _follow(states, first.with_row_index("_row"))
    start = first["origin"].min()
    oldest = int((first["origin"] == start).sum())
    share = oldest / len(first)
    if share > 0.05:
        note = (
            f"{oldest:,} of {len(first):,} customers ({100 * share:.0f} %) have their first event "
            f"in the first month of the data ({str(start)[:7]}): they may be older than they look"
        )
        return replace(subjects, notes=(*subjects.notes, note))
    return subjects


def subjects_since_as_of(states: States, samples: pl.DataFrame, schema: Schema) -> Subjects:
    """Every sample since its as_of; events from as_of on.

    Args:
        samples: entity_id and as_of (naive UTC us).
    """
    zone = schema.time_zone
    local = pl.col("as_of").dt.replace_time_zone("UTC").dt.convert_time_zone(zone)
    rows = samples.select("entity_id", local.dt.replace_time_zone(None).alias("origin"))
    return _follow(states, rows.with_row_index("_row"))


def age_at(states: States, samples: pl.DataFrame, schema: Schema) -> np.ndarray:
    """[S] whole months between each sample's first event and its as_of; 0 without one before."""
    first = states.frame.group_by("entity_id").agg(pl.col("event_time").min().alias("origin"))
    zone = schema.time_zone

    def local(name: str) -> pl.Expr:
        moment = pl.col(name).dt.replace_time_zone("UTC").dt.convert_time_zone(zone)
        return moment.dt.replace_time_zone(None)

    rows = samples.select("entity_id", pl.col("as_of").alias("local"))
    rows = rows.join(first, on="entity_id", how="left", maintain_order="left")
    rows = rows.with_columns(local("local"), local("origin").dt.truncate("1mo"))
    return rows.select(_months_between().fill_null(0).clip(0)).to_series().to_numpy()


def _local(moment_us: int, zone: str) -> dt.datetime:
    """A moment as naive time of a zone."""
    moment = pl.Series([moment_us]).cast(pl.Datetime("us")).dt.replace_time_zone("UTC")
    out: dt.datetime = moment.dt.convert_time_zone(zone).dt.replace_time_zone(None)[0]
    return out


def _follow(states: States, rows: pl.DataFrame) -> Subjects:
    seen = rows.with_columns(pl.lit(states.horizon).cast(pl.Datetime("us")).alias("local"))
    months = seen.select(_months_between()).to_series().to_numpy()
    bads = (
        states.frame.filter("bad")
        .join(rows, on="entity_id", how="inner")
        .filter(pl.col("local") >= pl.col("origin"))
        .group_by("_row")
        .agg((_months_between().min() + 1).alias("first_bad"))
    )
    joined = rows.join(bads, on="_row", how="left", maintain_order="left")
    first_bad = joined["first_bad"].fill_null(0).cast(pl.Int64).to_numpy()
    kept = months >= 1
    if not kept.any():
        raise DataError(
            f"no month has ended since any of the {len(rows):,} starts, as far as events are read "
            "(--until)"
        )
    notes: tuple[str, ...] = ()
    if not kept.all():
        notes = (f"{int((~kept).sum()):,} of {len(rows):,} have no whole month yet: left out",)
    inside = np.where(first_bad <= months, first_bad, 0)
    part = rows.filter(pl.Series(kept))
    return Subjects(part["entity_id"], part["origin"], months[kept], inside[kept], notes)


def _months_between() -> Any:
    """Whole months from `origin` to `local`."""
    later, start = pl.col("local"), pl.col("origin")
    whole = (
        (later.dt.year().cast(pl.Int64) - start.dt.year().cast(pl.Int64)) * 12
        + later.dt.month().cast(pl.Int64)
        - start.dt.month().cast(pl.Int64)
    )
    within = (later - later.dt.truncate("1mo")) < (start - start.dt.truncate("1mo"))
    return whole - within.cast(pl.Int64)
