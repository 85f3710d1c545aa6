"""What a column of a file is: its type behind CSV text, its kind, role and sensitivity."""

from __future__ import annotations

import re
from typing import Literal

import polars as pl

from foundation.errors import DataError
from foundation.schema import Field, Kind
from foundation.tables import parse_times

_MONEY = (
    r"amt|amount|value|price|balance|(^|_)bal(_|$)|due$|(^|_)due(_|$)|paid|sales|income|salary|"
    r"discount|spend|spent|bill|limit|(^|_)pay(_|$)|payment|fee|cost|revenue|debt|credit_line|"
    r"installment|turnover|principal|outstanding|overdraft|loss"
)
_NO_MONEY = (
    r"days|(?<!dis)(?<!ac)count|cnt|(^|_)num|number|(^|_)rate|(^|_)ratio|pct|percent|score|term|"
    r"date|status|type|code|flag"
)
_CODED = (
    r"status|state|code|type|kind|class|category|level|grade|stage|flag|bucket|segment|group|"
    r"(^|_)sex(_|$)|gender|marri|marital|educat|region|occupation"
)
_HARD_IDENTIFIER = (
    r"phone|mobile|(^|_)tel|device|imei|imsi|(^|_)ip(_|$)|ip_addr|email|e_mail|iban|(^|_)pan(_|$)|"
    r"card_?(no|num|id|hash)|account_?(no|num|id|hash)|address|counterparty|beneficiary|payee"
)
_SOFT_IDENTIFIER = r"(_id|id|_key|_no|_hash|_ref|uuid|guid|token)$"
_ROLES = (
    ("type", r"type$"),
    ("phone", r"phone|mobile|(^|_)tel"),
    ("device", r"device|imei|imsi|browser|(^|_)ip(_|$)|user_agent"),
    ("address", r"address|street"),
    ("counterparty", r"counterparty|beneficiary|payee|recipient|iban"),
    ("flag", r"^(is|has|was|flag)_|_flag$|(^|_)flag(_|$)"),
    ("limit", r"limit|credit_line|ceiling"),
    (
        "balance",
        r"balance|(^|_)bal(_|$)|bill|due$|(^|_)due(_|$)|outstanding|debt(_|$)|principal|"
        r"arrear",
    ),
    (
        "person",
        r"(^|_)age(_|$)|gender|sex|birth|marital|marriage|educat|occupation|employ|job|"
        r"famil|child|kids|household|owner",
    ),
    ("rate", r"(^|_)rate|(^|_)ratio|percent|pct|interest|(^|_)apr(_|$)"),
    ("price", r"price|fee|cost"),
    ("duration", r"days|months|term|tenure|duration|period|since"),
    (
        "count",
        r"(?<!dis)(?<!ac)count|cnt|number|(^|_)(n|num|no|qty)(_|$)|quantity|items|"
        r"times|size",
    ),
    (
        "amount",
        r"amt|amount|value|sales|spend|spent|paid|pay|discount|income|salary|revenue|"
        r"turnover|credit$",
    ),
    ("score", r"score|rating"),
    ("status", r"status|state$|result|outcome|activity|action|stage|event"),
    ("merchant_type", r"merchant|mcc|department|category|sector|industry"),
    ("channel", r"channel|medium|bank|origin|referr"),
    ("place", r"store|branch|city|country|region|zip|postal|location|place|province|county|shop"),
    ("product", r"product|purpose|item|sku|brand|article"),
    ("type", r"type|kind|class|code|mode|lifecycle|housing|level|grade|segment|group"),
)
_PERSONAL = (
    r"(^|_)age(_|$)|gender|(^|_)sex(_|$)|birth|dob|phone|mobile|(^|_)tel|e?mail|(first|last|full|"
    r"sur|user|client|customer)_?name|^name$|address|marital|marriage|foreign|nationality|religion|"
    r"ethnic|income|salary|(^|_)ip(_|$)|passport|ssn|iban"
)
_PAIRS = ({"true", "false"}, {"yes", "no"}, {"y", "n"}, {"t", "f"})
_MANY = 1000


def typed(frame: pl.DataFrame, text_only: bool) -> pl.DataFrame:
    """Text columns that hold numbers or times throughout, as such; the rest stays.

    Args:
        text_only: the file format knows nothing but text (CSV). Where it knows numbers and whole
            numbers stand as text all the same, somebody meant codes, and they stay text.
    """
    return frame.with_columns(_typed(frame[c], text_only) for c in frame.columns)


def _typed(column: pl.Series, text_only: bool) -> pl.Series:
    if column.dtype == pl.Categorical or isinstance(column.dtype, pl.Enum):
        column = column.cast(pl.String)
    if isinstance(column.dtype, pl.Datetime):
        return parse_times(column, "UTC", column.name)
    if column.dtype != pl.String:
        return column
    text = column.str.strip_chars().drop_nulls()
    if not len(text):
        return column
    # an id keeps its leading zeros; longer digits than a float holds are an id too
    if not text.str.contains(r"^[+-]?0\d|^\d{16,}").any():
        numbers = column.str.strip_chars().cast(pl.Float64, strict=False)
        if numbers.null_count() == column.null_count():
            whole = numbers.cast(pl.Int64, strict=False)
            exact = ((whole.cast(pl.Float64) == numbers) | numbers.is_null()).all()
            if exact and not text.str.contains(r"\.").any():
                return whole if text_only else column
            return numbers
    if text[:100].str.contains(r"^\s*\d{4}[-/]\d{2}[-/]\d{2}").all():
        try:
            times = parse_times(column, "UTC", column.name)
        except DataError:
            return column
        if times.null_count() <= column.null_count() + 0.05 * len(column):
            return times
    return column


def guess(name: str, column: pl.Series, events: bool) -> tuple[Field | None, str]:
    """The field a column becomes.

    Args:
        events: the table holds events, so a value unique to each row says nothing.
    Returns:
        The field, or None with the reason for leaving the column out.
    """
    lower = _lower(name)
    values = column.drop_nulls()
    if column.dtype.is_nested() or column.dtype in (pl.Binary, pl.Object, pl.Duration, pl.Time):
        return None, f"it holds {column.dtype}"
    distinct = values.n_unique()
    if distinct <= 1:
        return None, "it is constant" if distinct else "it is empty"
    unique = distinct == len(column) and len(column) >= 50
    soft = bool(re.search(_SOFT_IDENTIFIER, lower))
    if events and unique and soft and not column.dtype.is_temporal():
        return None, "it differs in every row, which says nothing about behaviour"
    kind = _kind(lower, values, distinct)
    return Field(kind=kind, role=_role(lower, kind), grade=_grade(lower)), ""


def guess_role(name: str, kind: Kind) -> str:
    """The role of a field by its name and kind; `other` where they say nothing."""
    return _role(_lower(name), kind)


def _lower(name: str) -> str:
    """A column's name in small letters, words joined by `_`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


def _kind(name: str, values: pl.Series, distinct: int) -> Kind:
    if values.dtype.is_temporal():
        return "timestamp"
    if values.dtype == pl.Boolean:
        return "boolean"
    if re.search(_HARD_IDENTIFIER, name) and distinct > 20 and not values.dtype.is_float():
        return "identifier"
    if values.dtype.is_numeric():
        return _number_kind(name, values, distinct)
    words = set(values.unique()[:3].str.to_lowercase().to_list())
    if distinct == 2 and words in _PAIRS:
        return "boolean"
    length = float(values.str.len_chars().mean() or 0)  # type: ignore[arg-type]
    spaces = float(values.str.count_matches(r"\s").mean() or 0)  # type: ignore[arg-type]
    if length > 25 and spaces >= 3 and distinct > 0.5 * len(values):
        return "text"
    if re.search(_SOFT_IDENTIFIER, name) and distinct > _MANY:
        return "identifier"
    if distinct > 0.9 * len(values) and len(values) >= 200 and spaces < 1:
        return "identifier"
    return "text" if distinct > 20_000 and spaces >= 1 else "category"


def _number_kind(name: str, values: pl.Series, distinct: int) -> Kind:
    whole = values.dtype.is_integer()
    if whole and distinct == 2 and set(values.unique().to_list()) == {0, 1}:
        return "boolean"
    if re.search(_CODED, name) and distinct <= 12 and whole:
        return "category"
    if whole and re.search(_SOFT_IDENTIFIER, name):
        return "identifier" if distinct > _MANY else "category"
    if re.search(_MONEY, name) and not re.search(_NO_MONEY, name):
        return "money"
    return "number"


def _role(name: str, kind: str) -> str:
    if kind == "timestamp":
        return "date"
    if kind == "boolean":
        return "flag"
    if kind == "text":
        return "text"
    for role, pattern in _ROLES:
        if re.search(pattern, name) and not (role == "flag" and kind in ("number", "money")):
            return role
    return "amount" if kind == "money" else "other"


def _grade(name: str) -> Literal["personal", "internal"]:
    return "personal" if re.search(_PERSONAL, name) else "internal"
