"""Windows, horizons, ratios and outcomes proposed for a drafted schema.

Horizons follow the rhythm of the data. An outcome is proposed when a risk officer would ask for it
(late, declined, a threshold of an ordered status, paid less than due, spend halved, silence) and
when, at moments drawn from the data, it comes true neither hardly ever nor nearly always.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import msgspec
import numpy as np
import polars as pl

from foundation.history import DAY_US, Timeline, build_timeline
from foundation.outcomes import parse_outcome
from foundation.schema import Field, Schema
from foundation.tables import Part
from foundation.targets import outcome_targets
from foundation.validate import check_events

MAX_TARGETS = 16
_ENTITIES, _CUTS = 3000, 4
_RARE, _COMMON, _SAME = 0.003, 0.9, 0.97
_MAX_VALUES, _PER_FIELD = 30, 8
_TROUBLE = (
    r"late|default|reject|declin|charge.?back|charge.?off|write.?off|overdue|fail|return|cancel|"
    r"miss|delinq|fraud|refund|incomplete|sent.?back|arrear|collect|dispute|bounce|insufficient|"
    r"nsf|gambl|cash.?adv|payday|block|suspend|lapse|churn|denied|unpaid|claim|complain|bad|loss|"
    r"逾期|违约|拒绝|拒付|失败|退款|退货|取消|欺诈|赌博|投诉|冻结|核销|呆账|坏账|催收|套现|流失|理赔"
)
_STATUS = r"status|state$|late|dpd|delinq|overdue|arrear|bucket|stage|pay_\d|状态|逾期"
_DAYS_LATE = (
    r"past_?due|dpd|days_?(late|overdue|arrear)|overdue_days|delinq.*days|late_days|逾期天数"
)
_PAYING = r"(^|_)(pay|paid|payment|repay|repaid|repayment)|实还|还款额|还款金额"
_OWED = r"bill|balance|(^|_)bal(_|$)|due|installment|owed|账单|应还|欠款|月供"


@dataclass(frozen=True)
class Rhythm:
    """How often entities act.

    Attributes:
        gap: median days between the days on which an entity has an event of the same source.
        span: days from the first to the last percentile of event times.
        life: median days from an entity's first event to its last.
        monthly: most gaps are a month.
    """

    gap: float
    span: float
    life: float
    monthly: bool

    @property
    def process(self) -> bool:
        """Entities are cases that end within weeks, not customers who stay."""
        return self.gap < 3 and self.life < 45 and self.span > 2 * self.life

    def windows(self) -> tuple[int, ...]:
        """Aggregate windows in days, none much longer than the data."""
        if self.process:
            days: tuple[int, ...] = (1, 7, 30)
        elif self.monthly:
            days = (31, 62, 93, 186, 366)
        elif self.gap < 15:
            days = (7, 28, 56, 90, 180)
        elif self.gap < 75:
            days = (30, 60, 90, 180, 365)
        else:
            days = (93, 186, 366, 732)
        return tuple(d for d in days if d <= 1.25 * self.span + 1) or days[:1]

    def horizons(self) -> tuple[int, ...]:
        """Forecast horizons in days, at most a third of the data."""
        if self.process:
            days: tuple[int, ...] = (7, 30)
        elif self.monthly:
            days = (31, 93, 183)
        elif self.gap < 15:
            days = (28, 56, 90)
        else:
            days = tuple(d for d in (30, 60, 90, 180, 365, 730) if d >= self.gap)[:2] or (730,)
        fitting = tuple(d for d in days if d <= self.span / 3 + 1)
        return fitting or (max(1, min(days[0], int(self.span / 3))),)


@dataclass(frozen=True)
class Candidate:
    """An outcome under consideration; a lower rank is asked for first."""

    rank: int
    name: str
    condition: str
    horizons: tuple[int, ...]


def proposed(schema: Schema, frames: dict[str, pl.DataFrame], notes: list[str]) -> Schema:
    """The schema with windows, ratios and outcomes.

    Args:
        frames: by the path of each source, its rows with their file columns.
        notes: proposals a person should look at are added.
    """
    ratios = tuple(_ratios(schema))[:6]
    timeline = _sample_timeline(schema, frames)
    if not len(timeline):
        return msgspec.structs.replace(schema, ratios=ratios)
    rhythm = measure(timeline)
    if rhythm.process:
        notes.append(
            "cases end within weeks; windows are whole days, so the one-day window holds all "
            "that happened within hours"
        )
    candidates = sorted(_candidates(schema, timeline, rhythm), key=lambda c: c.rank)
    chosen = _choose(timeline, candidates)
    if chosen:
        notes.append(
            "an outcome that is your label itself makes its forecast a supervised model: take it "
            "out where a score without labels must not know it"
        )
    return msgspec.structs.replace(
        schema,
        windows_days=rhythm.windows(),
        ratios=ratios,
        outcomes={
            c.name: f"{c.condition} within {', '.join(f'{d}d' for d in c.horizons)}" for c in chosen
        },
    )


def measure(timeline: Timeline) -> Rhythm:
    """Gaps, span and lifetimes of a timeline that is not empty."""
    day = timeline.event_us // DAY_US
    table = pl.DataFrame({"e": timeline.entity, "s": timeline.source, "d": day})
    table = table.unique().sort("e", "s", "d")
    step = (pl.col("d") - pl.col("d").shift(1)).over("e", "s")
    gaps = table.select(step).to_series().drop_nulls()
    lives = table.group_by("e").agg(life=pl.col("d").max() - pl.col("d").min())["life"]
    span = float(np.quantile(day, 0.99) - np.quantile(day, 0.01)) + 1
    if not len(gaps):
        return Rhythm(gap=span, span=span, life=0.0, monthly=False)
    share = int(gaps.is_between(26, 35).sum()) / len(gaps)
    gap, life = float(np.median(gaps.to_numpy())), float(np.median(lives.to_numpy()))
    return Rhythm(gap=gap, span=span, life=life, monthly=share > 0.6)


def _sample_timeline(schema: Schema, frames: dict[str, pl.DataFrame]) -> Timeline:
    """The checked events of some entities, evenly spaced over the sorted ids."""
    columns = {name: s.entity or schema.entity for name, s in schema.sources.items()}
    ids = (
        pl.concat(
            [pl.Series([], dtype=pl.String)]
            + [
                frames[s.path][columns[n]].cast(pl.String).unique()
                for n, s in schema.sources.items()
            ]
        )
        .drop_nulls()
        .unique()
        .sort()
    )
    step = max(1, len(ids) // _ENTITIES)
    some = ids.gather_every(step)
    checked = {}
    for name, source in schema.sources.items():
        rows = frames[source.path]
        rows = rows.filter(rows[columns[name]].cast(pl.String).is_in(some.implode()))
        now_us = 4_102_444_800_000_000  # the year 2100: a draft refuses no late date
        checked[name] = check_events(schema, name, [Part(source.path, rows)], now_us).good
    return build_timeline(schema, checked)


# ---------------------------------------------------------------------------------- candidates


def _candidates(schema: Schema, timeline: Timeline, rhythm: Rhythm) -> Iterator[Candidate]:
    horizons = rhythm.horizons()
    for index, (source, spec) in enumerate(schema.sources.items()):
        frame = timeline.frames[index]
        lead = "" if len(schema.sources) == 1 else f"{source}_"
        for field, what in spec.fields.items():
            for rank, tail, condition in _of_field(source, field, what, frame):
                yield Candidate(rank, _name(f"{lead}{field}_{tail}"), condition, horizons)
        for rank, tail, condition in _of_source(source, spec.fields, rhythm):
            yield Candidate(rank, _name(f"{lead}{tail}"), condition, horizons)
    if schema.sources:
        one = f"({schema.source_names[0]})" if len(schema.sources) == 1 else ""
        yield Candidate(6 if rhythm.monthly else 4, "silence", f"silence{one}", horizons)


def _of_field(
    source: str, field: str, what: Field, frame: pl.DataFrame
) -> Iterator[tuple[int, str, str]]:
    """Rank, name and condition of what may be asked about one field."""
    at = f"{source}.{field}"
    if what.kind == "category":
        yield from _of_category(at, field, what, frame[field])
    elif what.kind == "boolean":
        trouble = re.search(_TROUBLE, field.lower())
        yield (1 if trouble else 6), "true", f"{at} in ('true')"
    elif what.kind == "timestamp":
        yield from _of_date(source, field, frame)
    elif re.search(_DAYS_LATE, field.lower()):
        yield 0, "over_0", f"{at} > 0"
        yield 0, "over_30", f"{at} > 30"


def _of_category(
    at: str, field: str, what: Field, column: pl.Series
) -> Iterator[tuple[int, str, str]]:
    counts = column.drop_nulls().value_counts(name="n").sort(["n", field])
    values = [str(v) for v in counts[field]]
    if not 2 <= len(values) <= _MAX_VALUES:
        return
    whole = sorted(int(v) for v in values if re.fullmatch(r"-?\d{1,2}", v))
    ordered = len(whole) >= 3 and len(whole) >= 0.5 * len(values) and whole[0] <= 1
    if ordered and (re.search(_STATUS, field.lower()) or what.role == "status"):
        for floor in (1, 2, 3):
            above = [v for v in whole if v >= floor]
            if above:
                listed = ", ".join(f"'{v}'" for v in above)
                yield 0, f"{floor}_or_more", f"{at} in ({listed})"
        values = [v for v in values if not re.fullmatch(r"-?\d{1,2}", v)]
    trouble = [v for v in values if re.search(_TROUBLE, v.lower())][:_PER_FIELD]
    for value in trouble:
        yield 1, _slug(value), f"{at} in ({_quoted(value)})"
    if what.role in ("status", "type", "product") and not ordered:
        for value in [v for v in values if v not in trouble and "'" not in v][:_PER_FIELD]:
            yield 7, _slug(value), f"{at} in ({_quoted(value)})"


def _of_date(source: str, field: str, frame: pl.DataFrame) -> Iterator[tuple[int, str, str]]:
    """Events after a date beside them: late, later by days, or unusually long after it."""
    days = (
        (frame["event_time"] - frame[field]).dt.total_microseconds().drop_nulls() / DAY_US
    ).to_numpy()
    if not len(days):
        return
    late = float((days > 0).mean())
    if late > 0.97 and np.median(days) >= 1:
        slack = int(np.ceil(np.quantile(days, 0.75)))
        yield 1, f"exceeds_{slack}d", f"{source}.event_time > {field} + {slack}d"
    elif late >= 0.01:
        yield 0, "missed", f"{source}.event_time > {field} + 0d"
        yield 0, "missed_by_3d", f"{source}.event_time > {field} + 3d"


def _of_source(
    source: str, fields: dict[str, Field], rhythm: Rhythm
) -> Iterator[tuple[int, str, str]]:
    money = {name: f for name, f in fields.items() if f.kind == "money"}
    paying = [n for n in money if re.search(_PAYING, n.lower())]
    owed = [n for n in money if re.search(_OWED, n.lower()) and n not in paying]
    for paid in paying[:1]:
        for bill in owed[:1]:
            share = "0.02" if re.search("bill|bal", bill.lower()) else "0.9"
            bound = f"{share} * last({source}.{bill})"
            yield 2, f"{paid}_below_{bill}", f"sum({source}.{paid}) < {bound}"
    flows = [n for n, f in money.items() if f.role == "amount" and n not in owed]
    flows.sort(key=lambda n: bool(re.search(r"discount|fee|tax|tip", n.lower())))
    for flow in flows[:1]:
        yield 3, f"{flow}_halved", f"sum({source}.{flow}) <= 0.5 * last"
        yield 6, f"{flow}_down_30", f"sum({source}.{flow}) <= 0.7 * last"
    if not rhythm.monthly:
        yield 6, "count_halved", f"count({source}) <= 0.5 * last"


def _quoted(value: str) -> str:
    return f'"{value}"' if "'" in value else f"'{value}'"


def _slug(value: str) -> str:
    return re.sub(r"\W+", "_", value.lower()).strip("_")[:30] or "value"


def _name(text: str) -> str:
    return text if re.match(r"[^\W\d_]", text) else f"o_{text}"


# ------------------------------------------------------------------------------------- choice


def _choose(timeline: Timeline, candidates: list[Candidate]) -> list[Candidate]:
    """At most MAX_TARGETS targets: one horizon per candidate by rank, then their others."""
    candidates = [c for c in candidates if not ("'" in c.condition and '"' in c.condition)]
    unique = {c.name: c for c in reversed(candidates)}
    candidates = [c for c in candidates if unique[c.name] is c]
    values = _at_random_moments(timeline, candidates)
    picked: dict[str, list[int]] = {}
    kept: list[np.ndarray] = []
    ranked = [(c, _usable(c, values)) for c in candidates]
    plenty = 0
    for candidate, usable in ranked:
        if not usable or len(kept) >= MAX_TARGETS or (candidate.rank >= 6 and plenty >= 4):
            continue
        rates = {d: float(np.nanmean(values[candidate.name][d])) for d in usable}
        days = min(usable, key=lambda d: abs(rates[d] - 0.25))
        target = values[candidate.name][days]
        if any(_alike(target, other) for other in kept):
            continue
        picked[candidate.name] = [days]
        kept.append(target)
        plenty += 1
    total = len(kept)
    for candidate, usable in ranked:
        for days in usable if candidate.name in picked and candidate.rank < 6 else ():
            if days not in picked[candidate.name] and total < MAX_TARGETS:
                picked[candidate.name].append(days)
                total += 1
    return [
        Candidate(c.rank, c.name, c.condition, tuple(sorted(picked[c.name])))
        for c in candidates
        if c.name in picked
    ]


def _usable(candidate: Candidate, values: dict[str, dict[int, np.ndarray]]) -> list[int]:
    """Horizons at which the outcome is neither too rare nor too common to learn."""
    out = []
    for days, target in values[candidate.name].items():
        known = target[~np.isnan(target)]
        if len(known) >= 30 and known.sum() >= 5 and _RARE <= known.mean() <= _COMMON:
            out.append(days)
    return out


def _alike(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two 0/1 targets say nearly the same."""
    both = ~(np.isnan(a) | np.isnan(b))
    x, y = a[both], b[both]
    if len(x) < 30 or x.std() == 0 or y.std() == 0:
        return False
    return float(np.corrcoef(x, y)[0, 1]) > _SAME


def _at_random_moments(
    timeline: Timeline, candidates: list[Candidate]
) -> dict[str, dict[int, np.ndarray]]:
    """Name -> horizon -> [S] 0/1/NaN targets right after randomly drawn events (seed 0)."""
    rng = np.random.default_rng(0)
    sizes = np.diff(timeline.offsets)
    draw = (rng.random((_CUTS, len(sizes))) * sizes).astype(np.int64) + timeline.offsets[:-1]
    position = np.unique(draw.ravel())
    outcomes = tuple(
        parse_outcome(c.name, f"{c.condition} within {', '.join(f'{d}d' for d in c.horizons)}")
        for c in candidates
    )
    until = int(timeline.known_us.max()) + 1
    matrix = outcome_targets(
        timeline, outcomes, timeline.entity[position], timeline.known_us[position] + 1, until
    )
    columns = iter(matrix.T)
    return {o.name: {days: next(columns) for days in o.horizons} for o in outcomes}


# ------------------------------------------------------------------------------------- ratios


def _ratios(schema: Schema) -> Iterator[tuple[str, str]]:
    """Amounts against limits, payments against bills, debts against loans."""
    limits = [
        f"profile.{n}"
        for n, f in schema.profile_fields.items()
        if f.kind == "money" and f.role == "limit"
    ]
    for source, spec in schema.sources.items():
        money = [n for n, f in spec.fields.items() if f.kind == "money"]
        paying = [n for n in money if re.search(_PAYING, n.lower())]
        owed = [n for n in money if re.search(_OWED, n.lower()) and n not in paying]
        own = [f"{source}.{n}" for n in money if spec.fields[n].role == "limit"]
        for name in money:
            for limit in [*own, *limits][:1]:
                if f"{source}.{name}" != limit:
                    yield f"{source}.{name}", limit
        for paid in paying[:1]:
            for bill in owed[:1]:
                yield f"{source}.{paid}", f"{source}.{bill}"
        plain = [n for n in money if n not in paying and n not in owed]
        if owed and plain and not paying:
            yield f"{source}.{owed[0]}", f"{source}.{plain[0]}"
        cuts = [n for n in plain if re.search("discount|fee|tax", n.lower())]
        gross = [n for n in plain if n not in cuts]
        if cuts and gross:
            yield f"{source}.{cuts[0]}", f"{source}.{gross[0]}"
