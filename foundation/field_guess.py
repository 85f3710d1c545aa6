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
    r"installment|turnover|principal|outstanding|overdraft|loss|"
    r"金额|额度|限额|余额|价格|费用|手续费|收入|工资|月供|本金|利息|欠款|应还|实还|还款额|消费额|账单"
)
_NO_MONEY = (
    r"days|(?<!dis)(?<!ac)count|cnt|(^|_)num|number|(^|_)rate|(^|_)ratio|pct|percent|score|term|"
    r"date|status|type|code|flag|天数|次数|笔数|数量|期数|期限|率|比例|日期|时间|状态|类型|标志|编号"
)
_CODED = (
    r"status|state|code|type|kind|class|category|level|grade|stage|flag|bucket|segment|group|"
    r"(^|_)sex(_|$)|gender|marri|marital|educat|region|occupation|"
    r"状态|类型|类别|等级|级别|标志|性别|婚姻|学历|职业|地区|行业"
)
_HARD_IDENTIFIER = (
    r"phone|mobile|(^|_)tel|device|imei|imsi|(^|_)ip(_|$)|ip_addr|email|e_mail|iban|(^|_)pan(_|$)|"
    r"card_?(no|num|id|hash)|account_?(no|num|id|hash)|address|counterparty|beneficiary|payee|"
    r"手机|电话|设备|身份证|银行卡|卡号|邮箱|地址|对手|收款人"
)
_SOFT_IDENTIFIER = r"(_id|id|_key|_no|_hash|_ref|uuid|guid|token|编号|号|标识)$"
_ROLES = (
    ("type", r"type$"),
    ("phone", r"phone|mobile|(^|_)tel|手机|电话"),
    ("device", r"device|imei|imsi|browser|(^|_)ip(_|$)|user_agent|设备|浏览器"),
    ("address", r"address|street|地址"),
    ("counterparty", r"counterparty|beneficiary|payee|recipient|iban|对手|收款人"),
    ("flag", r"^(is|has|was|flag)_|_flag$|(^|_)flag(_|$)|^是否|标志$"),
    ("limit", r"limit|credit_line|ceiling|额度|限额"),
    (
        "balance",
        r"balance|(^|_)bal(_|$)|bill|due$|(^|_)due(_|$)|outstanding|debt(_|$)|principal|"
        r"arrear|余额|应还|欠款|本金|账单",
    ),
    (
        "person",
        r"(^|_)age(_|$)|gender|sex|birth|marital|marriage|educat|occupation|employ|job|"
        r"famil|child|kids|household|owner|年龄|性别|婚姻|学历|教育|职业|子女|出生|家庭",
    ),
    ("rate", r"(^|_)rate|(^|_)ratio|percent|pct|interest|(^|_)apr(_|$)|率|比例|占比"),
    ("price", r"price|fee|cost|价格|费用|手续费"),
    ("duration", r"days|months|term|tenure|duration|period|since|天数|期限|期数|月数|时长|年限"),
    (
        "count",
        r"(?<!dis)(?<!ac)count|cnt|number|(^|_)(n|num|no|qty)(_|$)|quantity|items|"
        r"times|size|次数|笔数|数量|人数",
    ),
    (
        "amount",
        r"amt|amount|value|sales|spend|spent|paid|pay|discount|income|salary|revenue|"
        r"turnover|credit$|金额|收入|工资|月供|实还|还款额|消费额",
    ),
    ("score", r"score|rating|评分|得分"),
    ("status", r"status|state$|result|outcome|activity|action|stage|event|状态|结果|事件|动作"),
    ("merchant_type", r"merchant|mcc|department|category|sector|industry|商户|行业|类目"),
    ("channel", r"channel|medium|bank|origin|referr|渠道|来源|银行"),
    (
        "place",
        r"store|branch|city|country|region|zip|postal|location|place|province|county|shop|城市|地区|省份|网点|门店",
    ),
    ("product", r"product|purpose|item|sku|brand|article|产品|商品|用途"),
    (
        "type",
        r"type|kind|class|code|mode|lifecycle|housing|level|grade|segment|group|类型|类别|等级|级别",
    ),
)
_PERSONAL = (
    r"(^|_)age(_|$)|gender|(^|_)sex(_|$)|birth|dob|phone|mobile|(^|_)tel|e?mail|(first|last|full|"
    r"sur|user|client|customer)_?name|^name$|address|marital|marriage|foreign|nationality|religion|"
    r"ethnic|income|salary|(^|_)ip(_|$)|passport|ssn|iban|"
    r"年龄|性别|出生|生日|手机|电话|邮箱|姓名|身份证|护照|地址|婚姻|民族|籍贯|宗教|收入|工资"
)
_PAIRS = ({"true", "false"}, {"yes", "no"}, {"y", "n"}, {"t", "f"})
_DATES = r"^\s*(\d{4}[-/年]\d{1,2}[-/月]\d{1,2}|\d{1,2}\.\d{1,2}\.\d{4})"
_COMPACT = r"^(19|20)\d\d(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])$"
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
    if text.str.contains(_COMPACT).all():
        days = parse_times(column, "UTC", column.name)
        if days.null_count() == column.null_count():
            return days
    # an id keeps its leading zeros; longer digits than a float holds are an id too
    if not text.str.contains(r"^[+-]?0\d|^\d{16,}").any():
        numbers = column.str.strip_chars().cast(pl.Float64, strict=False)
        if numbers.null_count() == column.null_count():
            whole = numbers.cast(pl.Int64, strict=False)
            exact = ((whole.cast(pl.Float64) == numbers) | numbers.is_null()).all()
            if exact and not text.str.contains(r"\.").any():
                return whole if text_only else column
            return numbers
    if text[:100].str.contains(_DATES).all():
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
