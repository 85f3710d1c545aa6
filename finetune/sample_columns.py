"""Column mapping: what a lender's file calls our columns, proposed from names and values.

A proposal weighs, for every column of the file against every column we know: how alike the names
are, what the values are, how many different ones there are, and, for the customer, how many are
found in the event store. Each column of the file is used once, and the best sum of weights wins
(Kuhn 1955), so the order of the columns does not matter. A person reads and corrects it.

Shapes: T targets, C columns of the file.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import yaml

from foundation import strict
from foundation.errors import ConfigError, SampleError, listing, nearest
from foundation.field_guess import typed
from foundation.schema import Schema

REQUIRED = ("entity_id", "as_of", "label")
OUTCOME = ("label", "label_known_at", "approved")
LEAST = 0.5
SURE = 0.75
LOOKED_AT = 50_000
LOOKED_UP = 20_000

# Names in use for our columns; tokens are compared, so order and separators do not matter.
NAMES: dict[str, tuple[str, ...]] = {
    "entity_id": (
        "entity_id", "customer_id", "customer_no", "cust_id", "cust_no", "client_id", "client_no",
        "user_id", "uid", "member_id", "party_id", "account_id", "account_no", "acct_no",
        "applicant_id", "borrower_id", "household_id", "merchant_id", "customer", "客户号",
        "客户编号", "客户id", "用户id", "用户编号", "会员号",
    ),
    "as_of": (
        "as_of", "as_of_date", "apply_date", "application_date", "application_time", "apply_time",
        "app_date", "decision_date", "decision_time", "score_date", "observation_date", "obs_date",
        "snapshot_date", "reference_date", "event_time", "request_time", "date", "timestamp",
        "creation_date", "申请日期", "申请时间", "观察日", "观察日期", "决策时间", "放款日期",
    ),
    "label": (
        "label", "target", "bad_flag", "bad", "is_bad", "default", "default_flag", "good_bad",
        "good_bad_flag", "y", "outcome", "class", "response", "delinquent", "fraud", "is_fraud",
        "churn", "dpd30_flag", "overdue_flag", "good_flag", "标签", "是否逾期", "坏样本",
        "好坏标签", "是否违约", "逾期标志",
    ),
    "label_known_at": (
        "label_known_at", "label_date", "outcome_date", "performance_end", "performance_date",
        "label_time", "matured_at", "maturity_date", "observed_until", "表现期末", "标签日期",
    ),
    "channel": (
        "channel", "partner", "source_channel", "acquisition_channel", "campaign", "segment",
        "portfolio", "business_line", "branch", "origin", "渠道", "渠道号", "来源渠道",
    ),
    "weight": ("weight", "sample_weight", "weights", "wgt", "样本权重", "权重"),
    "approved": (
        "approved", "decision", "approval", "approve_flag", "is_approved", "application_status",
        "accept_flag", "booked", "审批结果", "是否通过",
    ),
}  # fmt: skip
BAD_WORDS = (
    "1", "1.0", "true", "yes", "y", "t", "bad", "b", "default", "defaulted", "late", "overdue",
    "delinquent", "fraud", "churned", "坏", "是", "逾期", "违约",
)  # fmt: skip
GOOD_WORDS = (
    "0", "0.0", "false", "no", "n", "f", "good", "g", "paid", "current", "repaid", "performing",
    "ok", "genuine", "active", "好", "否", "正常",
)  # fmt: skip
GENERIC = {"flag", "date", "time", "id", "no", "num", "number", "code", "is", "at", "the", "of"}
_TURNED = re.compile(r"(^|_)(good|paid|repaid|performing|current)(_|$)")
_BOTH = re.compile(r"bad|default|overdue|late|delinq")
_UNDERSTOOD = {"0", "1", "0.0", "1.0", "false", "true"}


class ColumnMapping(strict.Strict):
    """Content of `mapping.yaml`.

    Attributes:
        columns: our column, or a context field of the schema -> column of the file.
        labels: value of the label column, lower case -> 0 good, 1 bad; only for values other than
            0, 1, true and false, or where 1 means good.
    """

    columns: dict[str, str]
    labels: dict[str, int] = {}


@dataclass(frozen=True)
class Suggestion:
    """One proposed column.

    Attributes:
        target: our name; column: the file's.
        weight: 0 to 1; below `SURE` a person should look.
        why: what speaks for it.
        others: further columns that would nearly do as well.
    """

    target: str
    column: str
    weight: float
    why: str
    others: tuple[str, ...] = ()


@dataclass(frozen=True)
class Proposal:
    """A proposed mapping and what it rests on."""

    mapping: ColumnMapping
    suggestions: tuple[Suggestion, ...]
    unused: tuple[str, ...]
    notes: tuple[str, ...]

    def lines(self) -> list[str]:
        """The proposal for a terminal."""
        out = []
        for s in self.suggestions:
            doubt = "" if s.weight >= SURE else "   <- please check"
            also = f"; or {listing(s.others, 3)}" if s.others else ""
            out.append(f"{s.target:<16} <- {s.column:<24} {s.weight:.2f}  {s.why}{also}{doubt}")
        if self.mapping.labels:
            words = ", ".join(f"{k} = {v}" for k, v in self.mapping.labels.items())
            out.append(f"values of the label: {words}   (1 is bad)")
        missing = [t for t in REQUIRED if t not in self.mapping.columns]
        out += [f"{t:<16} <- nothing fits; name its column by hand" for t in missing]
        if self.unused:
            out.append(f"not used: {listing(self.unused)}")
        return [*out, *(f"note: {n}" for n in self.notes)]

    @property
    def sure(self) -> bool:
        """Whether customer and time are found beyond doubt."""
        return all(
            any(s.target == t and s.weight >= SURE and not s.others for s in self.suggestions)
            for t in ("entity_id", "as_of")
        )


def propose_mapping(
    table: pl.DataFrame, schema: Schema, known_ids: pl.Series | None = None
) -> Proposal:
    """Propose which column of a file is which of ours.

    Args:
        known_ids: entity ids of the store, or None.
    """
    seen = table.head(LOOKED_AT)
    values = typed(seen, text_only=True)
    targets = [*NAMES, *schema.context]
    weights = np.zeros((len(targets), len(table.columns)))
    why: dict[tuple[int, int], str] = {}
    for c, column in enumerate(table.columns):
        facts = _Facts(column, seen[column], values[column], known_ids)
        for t, target in enumerate(targets):
            weights[t, c], why[t, c] = _weigh(target, facts, schema)
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(-np.where(weights >= LEAST, weights, 0))
    chosen = [(t, c) for t, c in zip(rows, columns, strict=True) if weights[t, c] >= LEAST]
    used = {c for _, c in chosen}
    found = tuple(
        Suggestion(
            targets[t],
            table.columns[c],
            float(weights[t, c]),
            why[t, c],
            tuple(
                table.columns[o]
                for o in range(len(table.columns))
                if o not in used and weights[t, o] >= max(LEAST, weights[t, c] - 0.1)
            ),
        )
        for t, c in chosen
    )
    names = {s.target: s.column for s in found}
    labels, notes = _label_words(values, seen, names.get("label"))
    notes += _order_notes(values, names)
    mapping = ColumnMapping(columns=names, labels=labels)
    unused = tuple(n for i, n in enumerate(table.columns) if i not in used)
    return Proposal(mapping, found, unused, tuple(notes))


class _Facts:
    """What is known of one column of the file."""

    def __init__(
        self, name: str, raw: pl.Series, values: pl.Series, known_ids: pl.Series | None
    ) -> None:
        self.name = name
        self.values = values.drop_nulls()
        self.text = raw.drop_nulls().cast(pl.String).str.strip_chars()
        self.rows = len(self.text)
        self.different = self.text.n_unique()
        self.is_time = isinstance(values.dtype, pl.Datetime | pl.Date)
        self.is_number = values.dtype.is_numeric()
        self.in_store = 0.0
        if known_ids is not None and self.rows and not self.is_time:
            ids = self.text.unique().head(LOOKED_UP)
            self.in_store = float(ids.is_in(known_ids.implode()).to_numpy().mean())


def _weigh(target: str, facts: _Facts, schema: Schema) -> tuple[float, str]:
    """Weight of one column for one target, and what speaks for it; 0 where values forbid it."""
    if not facts.rows:
        return 0.0, ""
    if target in schema.context:
        return _weigh_context(target, facts, schema)
    extra = (schema.entity,) if target == "entity_id" else ()
    name, like = _alike(facts.name, (*NAMES[target], *extra))
    value, told = _VALUES[target](facts)
    if value == 0.0:
        return 0.0, ""
    named = f"name like '{like}'" if name >= 0.6 else ""
    weight = 0.6 * name + 0.4 * value
    if target == "entity_id" and facts.in_store >= 0.5:
        weight = max(weight, 0.6 + 0.4 * facts.in_store)
    if target == "as_of" and name < 0.6:
        weight = max(weight, 0.55)
    if target == "label" and name < 0.6:
        if value < 1.0:
            return 0.0, ""
        weight = max(weight, 0.5)
    if target in ("label_known_at", "channel", "weight", "approved") and name < 0.6:
        return 0.0, ""
    return weight, "; ".join(part for part in (named, told) if part)


def _weigh_context(target: str, facts: _Facts, schema: Schema) -> tuple[float, str]:
    spec = schema.context[target]
    name, _ = _alike(facts.name, (target, *([spec.column] if spec.column else [])))
    fits = {
        "number": facts.is_number,
        "money": facts.is_number,
        "timestamp": facts.is_time,
    }.get(spec.kind, not facts.is_time)
    if not fits or name < 0.6:
        return 0.0, ""
    return 0.7 * name + 0.3, f"name like context field '{target}'; kind {spec.kind}"


def _entity_value(f: _Facts) -> tuple[float, str]:
    if f.is_time or (f.is_number and f.values.dtype.is_float()):
        return 0.0, ""
    share = f.different / f.rows
    told = f"{f.different:,} different in {f.rows:,} rows"
    if f.in_store:
        told = f"{100 * f.in_store:.0f} % of the ids are in the store; {told}"
    if f.in_store >= 0.5:
        return 1.0, told
    return (0.5 if share >= 0.2 else 0.1), told


def _time_value(f: _Facts) -> tuple[float, str]:
    if not f.is_time:
        return 0.0, ""
    first, last = (f.values.sort().dt.date().cast(pl.String)[i] for i in (0, -1))
    return 1.0, f"times from {first} to {last}"


def _label_value(f: _Facts) -> tuple[float, str]:
    """Two values, one of them good and one bad; a few rows may hold something else."""
    if f.is_time or f.different > max(2, f.rows // 20):
        return 0.0, ""
    count = f.text.str.to_lowercase().value_counts(sort=True)
    words = sorted(count[:, 0].head(2).to_list())
    if count["count"].head(2).sum() < 0.95 * f.rows:
        return 0.0, ""
    good, bad = (any(w in meant for w in words) for meant in (GOOD_WORDS, BAD_WORDS))
    known = (good and bad) or (len(words) == 1 and (good or bad))
    return (1.0 if known else 0.3), f"values {listing(words)}"


def _weight_value(f: _Facts) -> tuple[float, str]:
    positive = f.is_number and float(f.values.min() or 0) > 0  # type: ignore[arg-type]
    return (1.0, "numbers above zero") if positive else (0.0, "")


def _group_value(f: _Facts) -> tuple[float, str]:
    few = f.different <= max(2, min(200, f.rows // 5))
    return (1.0, f"{f.different} different values") if few and not f.is_time else (0.0, "")


_VALUES: dict[str, Callable[[_Facts], tuple[float, str]]] = {
    "entity_id": _entity_value,
    "as_of": _time_value,
    "label": _label_value,
    "label_known_at": _time_value,
    "channel": _group_value,
    "weight": _weight_value,
    "approved": _group_value,
}


def _tokens(name: str) -> list[str]:
    split = re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", name.strip())
    return [t for t in re.split(r"[^0-9a-z\u4e00-\u9fff]+", split.lower()) if t]


@lru_cache(maxsize=4096)
def _alike(name: str, others: tuple[str, ...]) -> tuple[float, str]:
    """The likest of some names, 0 to 1, by words or letters; `flag` and `date` prove nothing."""
    mine = _tokens(name)
    best, like = 0.0, ""
    for other in others:
        theirs = _tokens(other)
        if sorted(mine) == sorted(theirs):
            return 1.0, other
        shared = sum(any(_same_word(a, b) for b in theirs) for a in mine)
        both = shared / max(len(mine) + len(theirs) - shared, 1)
        letters = min(_letters(mine, theirs), _letters(_core(mine), _core(theirs)))
        score = 0.95 * max(both, letters)
        if score > best:
            best, like = score, other
    return best, like


def _same_word(one: str, other: str) -> bool:
    """Equal, or one a shortening of the other: `cust` and `customer`."""
    return one == other or (
        min(len(one), len(other)) >= 3 and (one.startswith(other) or other.startswith(one))
    )


def _core(tokens: list[str]) -> list[str]:
    return [t for t in tokens if t not in GENERIC] or tokens


def _letters(mine: list[str], theirs: list[str]) -> float:
    return difflib.SequenceMatcher(None, "_".join(mine), "_".join(theirs)).ratio()


def _label_words(
    values: pl.DataFrame, raw: pl.DataFrame, column: str | None
) -> tuple[dict[str, int], list[str]]:
    """Meaning of label values where they are no plain 0 and 1, and what to know about it."""
    if column is None:
        return {}, []
    words = raw[column].drop_nulls().cast(pl.String).str.strip_chars().str.to_lowercase()
    found = sorted(words.unique().to_list())
    turned = bool(_TURNED.search("_".join(_tokens(column)))) and not _BOTH.search(column.lower())
    if set(found) <= _UNDERSTOOD and not turned:
        return {}, []
    meaning = {w: int(w in BAD_WORDS) for w in found if w in BAD_WORDS or w in GOOD_WORDS}
    plain = {"good", "g", "bad", "b", "paid", "repaid", "好", "坏", "正常", "逾期", "违约"}
    if turned and not set(found) & plain:
        note = f"'{column}' names the good ones: 1 was turned into 0 and 0 into 1; please check"
        return {w: 1 - v for w, v in meaning.items()}, [note]
    strange = [w for w in found if w not in meaning]
    notes = [
        f"label value '{w}' is unknown: write under labels whether it is 0 or 1" for w in strange
    ]
    return meaning, notes


def _order_notes(values: pl.DataFrame, names: dict[str, str]) -> list[str]:
    """Whether labels are known after the decision, as they must be."""
    if "as_of" not in names or "label_known_at" not in names:
        return []
    early = values.select((pl.col(names["label_known_at"]) < pl.col(names["as_of"])).sum()).item()
    if not early:
        return []
    return [
        f"{early:,} rows have '{names['label_known_at']}' before '{names['as_of']}': are the two "
        "mixed up?"
    ]


def mapping_yaml(proposal: Proposal) -> str:
    """The proposal as `mapping.yaml`, with its reasons as comments."""
    data: dict[str, Any] = strict.plain(proposal.mapping)
    text = yaml.safe_dump(data, sort_keys=False, allow_unicode=True)
    reasons = [f"# {s.target}: {s.why} ({s.weight:.2f})" for s in proposal.suggestions]
    head = "# our column: column of the file; read and correct it, then pass it as --mapping"
    return "\n".join([head, *reasons, text])


def load_mapping(path: str | Path, schema: Schema) -> ColumnMapping:
    """Read and check a mapping.

    Raises:
        ConfigError: an unknown key or column of ours, a column used twice, a label neither 0 nor 1.
    """
    mapping = strict.load(ColumnMapping, path)
    valid = [*NAMES, *schema.context]
    for target in mapping.columns:
        if target not in valid:
            raise ConfigError(
                f"{path}: '{target}' is no column of ours{nearest(target, valid)}; columns: "
                f"{listing(valid)}"
            )
    every = list(mapping.columns.values())
    twice = next((c for c in every if every.count(c) > 1), None)
    if twice is not None:
        raise ConfigError(f"{path}: column '{twice}' of the file stands for two columns of ours")
    odd = next((k for k, v in mapping.labels.items() if v not in (0, 1)), None)
    if odd is not None:
        raise ConfigError(f"{path}: label '{odd}': expected 0 (good) or 1 (bad)")
    return mapping


def apply_mapping(
    table: pl.DataFrame, mapping: ColumnMapping, schema: Schema, where: str
) -> pl.DataFrame:
    """The file with its columns called as ours, and labels as 0 and 1.

    A column of the file that has one of our names without being mapped to it is set aside under
    `unmapped.NAME`, so that it is not read by accident.

    A file to be scored, or of refused applicants, may lack what is known only later.

    Raises:
        SampleError: another mapped column is not in the file.
    """
    new: dict[str, str] = {}
    for target, column in mapping.columns.items():
        if column not in table.columns:
            if target in OUTCOME:
                continue
            raise SampleError(
                f"{where}: column '{column}' (mapped to '{target}') is missing"
                f"{nearest(column, table.columns)}; columns: {listing(table.columns)}"
            )
        spec = schema.context.get(target)
        new[column] = (spec.column or target) if spec else target
    taken = set(new.values()) | ({schema.entity} if "entity_id" in mapping.columns else set())
    for column in table.columns:
        if column in taken and column not in new:
            new[column] = f"unmapped.{column}"
    out = table.rename(new)
    if mapping.labels and "label" in out.columns:
        words = out["label"].cast(pl.String).str.strip_chars()
        lower = {k.strip().lower(): str(v) for k, v in mapping.labels.items()}
        # Values without a meaning stay as they are and are refused with their row.
        meant = words.str.to_lowercase().replace(lower)
        kept = pl.select(
            pl.when(words.str.to_lowercase().is_in(list(lower))).then(meant).otherwise(words)
        ).to_series()
        out = out.with_columns(kept.alias("label"))
    return out
