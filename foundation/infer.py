"""Drafting a schema from files: entity, times, kinds, roles, and outcomes worth forecasting.

A draft is a proposal that loads and imports as it stands; a person reads and corrects it. Every
guess that a person should check comes back as a note.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import yaml

from foundation import field_guess, proposals
from foundation.errors import SchemaError, listing, nearest
from foundation.schema import (
    Field,
    ProfileTable,
    Schema,
    Source,
    checked,
    schema_to_dict,
)
from foundation.tables import CSV_ENDINGS, read_table, table_files

ENTITY_NAMES = (
    "entity_id",
    "customer_id",
    "client_id",
    "cust_id",
    "user_id",
    "household_id",
    "member_id",
    "person_id",
    "borrower_id",
    "applicant_id",
    "account_id",
    "party_id",
    "card_id",
    "loan_id",
    "merchant_id",
    "case_id",
    "contract_id",
    "customer",
    "client",
    "user",
    "household",
    "member",
    "account",
    "borrower",
    "customerid",
    "clientid",
    "userid",
    "householdid",
    "accountid",
    "memberid",
    "客户号",
    "客户编号",
    "客户id",
    "客户标识",
    "用户id",
    "用户编号",
    "用户号",
    "会员号",
    "借款人编号",
    "账户编号",
    "账户号",
    "账号",
    "卡号",
    "商户号",
    "合同号",
    "借据号",
    "id",
)
SAMPLE_COLUMNS = ("as_of", "asof", "history_until")
_EVENT_TIMES = (
    r"^event_?(time|date|ts)$",
    r"^(timestamp|datetime|ts|time)$",
    r"^(date|day|month|period)$",
    r"^(trans|transaction|txn|purchase|order|payment|statement|posting|booking)_?(time|date|ts)",
    r"(_at|_time|_ts|timestamp)$",
    r"(^|_)date(_|$)|date$",
    r"^(发生|交易|事件|消费|还款|支付|申请|查询|登录|入账|记账|账单)(时间|日期|日)$",
    r"(时间|日期)$",
)
_KNOWN_AT = (
    r"^(known_at|ingested_at|ingestion_time|loaded_at|load_time|recorded_at|available_at|"
    r"入库(时间|日期)|加载(时间|日期)|获知(时间|日期))$"
)
_VALID_TIMES = (
    r"^(valid_(time|from)|effective_(date|from|time)|updated_at|as_of_date|snapshot_date|"
    r"生效(时间|日期)|更新(时间|日期)|快照(时间|日期))$"
)
_NO_EVENT_TIME = (
    r"birth|dob|due|expir|matur|(^|_)end|valid_to|deadline|schedul|出生|生日|应还日|到期|截止|结束"
)
_WITH_COMMA = r"^\s*[+-]?\d{1,3}([.,' ]?\d{3})*([.,]\d+)?\s*$"
_SLASHED = r"^\s*\d{1,2}[/-]\d{1,2}[/-]\d{2,4}"
_PROFILE_STEMS = (
    r"profile|customer|client|demograph|member|household|account|user|person|applic|"
    r"客户|用户|画像|资料|档案"
)


@dataclass(frozen=True)
class _Table:
    """One file under inspection, CSV text already turned into what it holds."""

    name: str
    path: Path
    frame: pl.DataFrame
    entity: str = ""


def infer_schema(
    paths: list[Path], entity: str | None = None, name: str = "data"
) -> tuple[Schema, list[str]]:
    """Draft a schema from event and profile tables.

    Args:
        paths: Parquet or CSV files, Delta directories, or folders of such; sample files among
            them (columns `as_of`, `history_until`) are left out with a note.
        entity: the entity column; found by name and content if left out.
    Returns:
        The schema, checked, and notes for the person who reads it.
    Raises:
        SchemaError: no entity column, or nothing that is an event or profile table.
        DataError: an unreadable file.
    """
    notes: list[str] = []
    tables = [t for t in _read(paths) if not _is_samples(t, notes)]
    if not tables:
        raise SchemaError("no event or profile table among the files; only sample files were given")
    tables = _with_entity(tables, entity, notes)
    main = max({t.entity for t in tables}, key=[t.entity for t in tables].count)
    sources: dict[str, Source] = {}
    profiles: list[tuple[_Table, str]] = []
    for table in tables:
        event_time = _event_time(table)
        valid_time = _profile_time(table, event_time, len(tables))
        if valid_time is not None:
            profiles.append((table, valid_time))
        elif event_time:
            sources[_free_name(table.name, sources)] = _source(table, event_time, main, notes)
        else:
            notes.append(
                f"{table.path.name} left out: several rows per entity and no readable time column; "
                + _unreadable_times(table)
            )
    profile = _profile(profiles, main, notes)
    if not sources and profile is None:
        raise SchemaError(f"no usable table among the files: {'; '.join(notes)}")
    schema = Schema(name=_word(name), entity=main, sources=sources, profile=profile)
    frames = {str(t.path): t.frame for t in tables}
    if any(t in (pl.Date, pl.Datetime) for table in tables for t in table.frame.dtypes):
        notes.append("times without an offset are read in time_zone; the draft says UTC")
    schema = proposals.proposed(schema, frames, notes)
    if any(source.authorization is None for source in sources.values()):
        notes.append("state under 'authorization' (by, use, until) who allowed the use of a source")
    return checked(schema, name), notes


def schema_yaml(schema: Schema, notes: list[str], relative_to: str | Path | None = None) -> str:
    """A schema as YAML with comments.

    Args:
        relative_to: folder the file will stand in; paths are written relative to it.
    """
    data = schema_to_dict(schema)
    for table in [*data.get("sources", {}).values(), data.get("profile") or {}]:
        if relative_to is not None and table.get("path"):
            table["path"] = os.path.relpath(table["path"], Path(relative_to).resolve())
    fields = [f for s in data.get("sources", {}).values() for f in s.get("fields", {}).values()]
    fields += list((data.get("profile") or {}).get("fields", {}).values())
    text = yaml.dump(
        data, Dumper=_flow_dumper(fields), sort_keys=False, allow_unicode=True, width=160
    )
    comments = {
        "sources": "event tables; kinds: category number money boolean text identifier timestamp",
        "profile": "slowly changing attributes; without valid_time known from the beginning",
        "outcomes": "what the next days may hold: CONDITION within HORIZON{, HORIZON}",
        "windows_days": "windows of the aggregates, in days before the moment of scoring",
        "ratios": "pairs of fields, numerator and denominator",
    }
    for key, comment in comments.items():
        text = re.sub(rf"(?m)^{key}:", f"\n# {comment}\n{key}:", text)
    head = "".join(f"# - {note}\n" for note in notes)
    return "# A draft: read it, correct it.\n" + head + text


def _flow_dumper(flow: list[dict]) -> type[yaml.SafeDumper]:
    """A dumper that writes field descriptions and short lists on one line."""
    inline = {id(item) for item in flow}

    class Dumper(yaml.SafeDumper):
        """SafeDumper without anchors, field mappings inline."""

        def ignore_aliases(self, data: object) -> bool:
            return True

    def mapping(dumper: yaml.SafeDumper, data: dict) -> yaml.Node:
        return dumper.represent_mapping(
            "tag:yaml.org,2002:map", data.items(), flow_style=id(data) in inline
        )

    def sequence(dumper: yaml.SafeDumper, data: list) -> yaml.Node:
        short = not any(isinstance(item, list) for item in data)
        return dumper.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=short)

    Dumper.add_representer(dict, mapping)
    Dumper.add_representer(list, sequence)
    return Dumper


# ------------------------------------------------------------------------------------- tables


def _read(paths: list[Path]) -> list[_Table]:
    files: list[Path] = []
    for path in map(Path, paths):
        files += table_files(path, "schema infer")
    taken: dict[str, object] = {}
    out = []
    for file in files:
        name = _free_name(_word(file.name.split(".")[0]), taken)
        taken[name] = file
        frame = read_table(file)
        out.append(_Table(name, file.absolute(), field_guess.typed(frame, _is_csv(file))))
    return out


def _is_csv(file: Path) -> bool:
    return file.name.lower().endswith(CSV_ENDINGS)


def _word(text: str) -> str:
    """A name of letters, digits and _ that starts with a letter."""
    word = re.sub(r"\W+", "_", text).strip("_")
    return word if re.match(r"[^\W\d_]", word) else f"t_{word}".rstrip("_")


def _free_name(name: str, taken: dict) -> str:
    number = 2
    free = name
    while free in taken or free in ("profile", "context"):
        free, number = f"{name}_{number}", number + 1
    return free


def _is_samples(table: _Table, notes: list[str]) -> bool:
    found = [c for c in table.frame.columns if c.lower() in SAMPLE_COLUMNS]
    if not found or "event_time" in table.frame.columns:
        return False
    notes.append(f"{table.path.name} left out: it has '{found[0]}', so it is a sample file")
    return True


def _with_entity(tables: list[_Table], entity: str | None, notes: list[str]) -> list[_Table]:
    """Tables with their entity column; those without one are left out with a note."""
    if entity is not None:
        if not any(entity in t.frame.columns for t in tables):
            names = list(dict.fromkeys(c for t in tables for c in t.frame.columns))
            raise SchemaError(
                f"no file has the entity column '{entity}'{nearest(entity, names)}; columns: "
                f"{listing(names)}"
            )
        main = entity
    else:
        main = _likeliest_entity(tables)
        notes.append(f"'{main}' is taken as the entity column")
    ids = pl.concat(
        [t.frame[main].cast(pl.String).unique() for t in tables if main in t.frame.columns]
    ).unique()
    out = []
    for table in tables:
        column = main if main in table.frame.columns else _same_ids(table, ids)
        if column:
            out.append(_Table(table.name, table.path, table.frame, column))
        else:
            notes.append(f"{table.path.name} left out: it has no column '{main}'")
    return out


def _likeliest_entity(tables: list[_Table]) -> str:
    """The column in most tables, then the best known name."""
    scores: dict[str, tuple[float, ...]] = {}
    for column in dict.fromkeys(c for t in tables for c in t.frame.columns):
        holders = [t for t in tables if column in t.frame.columns]
        lower = column.lower()
        known = ENTITY_NAMES.index(lower) if lower in ENTITY_NAMES else None
        kinds = {t.frame[column].dtype for t in holders}
        whole = all(k == pl.String or k.is_integer() for k in kinds)
        looks = known is not None or bool(re.search(r"(_id|id|_key|_no|号|编号)$", lower))
        if not whole or not looks or any(t.frame[column].null_count() for t in holders[:1]):
            continue
        repeats = any(t.frame[column].n_unique() < len(t.frame) for t in holders)
        rank = float(len(ENTITY_NAMES) if known is None else known)
        scores[column] = (len(holders), float(repeats or len(tables) == 1), -rank)
    if not scores:
        names = list(dict.fromkeys(c for t in tables for c in t.frame.columns))
        raise SchemaError(
            f"no entity column found (customer_id, account_id, ...); name it with --entity; "
            f"columns: {listing(names, 40)}"
        )
    return max(scores, key=lambda column: scores[column])


def _same_ids(table: _Table, ids: pl.Series) -> str:
    """A column that holds the entity's ids under another name, or the empty string."""
    for column in table.frame.columns:
        values = table.frame[column]
        if values.dtype == pl.String or values.dtype.is_integer():
            distinct = values.cast(pl.String).drop_nulls().unique()
            few = len(distinct) < 20
            if not few and distinct.is_in(ids.implode()).sum() > 0.8 * len(distinct):
                return column
    return ""


# -------------------------------------------------------------------------------------- times


def _event_time(table: _Table) -> str:
    """The column of when it happened, or the empty string."""
    best, best_score = "", -1
    for column, dtype in table.frame.schema.items():
        lower = column.lower()
        if dtype not in (pl.Date, pl.Datetime) or re.search(_NO_EVENT_TIME, lower):
            continue
        if re.fullmatch(_KNOWN_AT, lower):
            continue
        if table.frame[column].null_count() > 0.05 * len(table.frame):
            continue
        place = next((i for i, p in enumerate(_EVENT_TIMES) if re.search(p, lower)), None)
        score = 0 if place is None else len(_EVENT_TIMES) - place
        if score > best_score:
            best, best_score = column, score
    return best


def _unreadable_times(table: _Table) -> str:
    """What to do about a table without a readable time column."""
    for column, dtype in table.frame.schema.items():
        text = table.frame[column].cast(pl.String).drop_nulls().head(100)
        if dtype == pl.String and len(text) and text.str.contains(_SLASHED).all():
            return (
                f"'{text[0]}' in column '{column}' may be a day of two months: write it as "
                "2017-01-31 10:00:00"
            )
    return "write a month as its last day, such as 2017-04-30"


def _profile_time(table: _Table, event_time: str, count: int) -> str | None:
    """None for an event table; for a profile its valid_time column, or the empty string."""
    rows = len(table.frame)
    single = rows <= 1.05 * max(1, table.frame[table.entity].n_unique())
    few = rows <= 1.5 * max(1, table.frame[table.entity].n_unique())
    valid = [
        c
        for c, t in table.frame.schema.items()
        if t in (pl.Date, pl.Datetime) and re.fullmatch(_VALID_TIMES, c.lower())
    ]
    if not event_time or (event_time in valid and few):
        return (valid[0] if valid else "") if few else None
    if single and count > 1 and re.search(_PROFILE_STEMS, table.name.lower()):
        return event_time
    return None


def _source(table: _Table, event_time: str, main: str, notes: list[str]) -> Source:
    known = [
        c
        for c, t in table.frame.schema.items()
        if t in (pl.Date, pl.Datetime) and re.fullmatch(_KNOWN_AT, c.lower())
    ]
    skip = {table.entity, event_time, *known[:1]}
    return Source(
        path=str(table.path),
        entity="" if table.entity == main else table.entity,
        event_time=event_time,
        known_at=known[0] if known else "",
        fields=_fields(table, skip, notes, events=True),
    )


def _profile(found: list[tuple[_Table, str]], main: str, notes: list[str]) -> ProfileTable | None:
    """The profile table with most fields; a schema has one."""
    if not found:
        return None
    found = sorted(found, key=lambda item: -item[0].frame.width)
    table, valid_time = found[0]
    for other, _ in found[1:]:
        notes.append(
            f"{other.path.name} left out: a schema has one profile; join it to {table.path.name}"
        )
    if not valid_time:
        notes.append(f"{table.path.name} has no valid_time: it counts as known from the beginning")
    return ProfileTable(
        path=str(table.path),
        entity="" if table.entity == main else table.entity,
        valid_time=valid_time,
        fields=_fields(table, {table.entity, valid_time}, notes, events=False),
    )


def _fields(table: _Table, skip: set[str], notes: list[str], events: bool) -> dict[str, Field]:
    out: dict[str, Field] = {}
    for column in table.frame.columns:
        if column in skip:
            continue
        field, why_not = field_guess.guess(column, table.frame[column], events)
        if field is None:
            notes.append(f"{table.path.name}: column '{column}' left out: {why_not}")
            continue
        if found := _comma(table.frame[column]):
            notes.append(
                f"{table.path.name}: column '{column}' holds '{found}', which is read as a word; "
                "write decimals with a point and no other sign"
            )
        name = _free_field(_word(column), out)
        out[name] = field if name == column else _renamed(field, column)
    return out


def _comma(column: pl.Series) -> str:
    """A number of the column with a decimal comma or thousands apart; empty where it has none."""
    text = column.drop_nulls().head(1000) if column.dtype == pl.String else column.clear()
    if not len(text) or not text.cast(pl.String).str.contains(_WITH_COMMA).all():
        return ""
    return str(next((value for value in text if "," in value), ""))


def _free_field(name: str, taken: dict[str, Field]) -> str:
    if name in ("entity_id", "event_time", "known_at"):
        name = f"{name}_field"
    number, free = 2, name
    while free in taken:
        free, number = f"{name}_{number}", number + 1
    return free


def _renamed(field: Field, column: str) -> Field:
    return Field(kind=field.kind, role=field.role, grade=field.grade, column=column)
