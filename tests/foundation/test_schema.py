"""Schema files: strictness, consistency, the outcome grammar, fingerprints."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from foundation.errors import ConfigError, SchemaError
from foundation.outcomes import parse_outcome, parse_query, same_condition
from foundation.schema import (
    duration_seconds,
    fingerprint,
    load_schema,
    schema_from_dict,
    schema_to_dict,
)
from foundation.strict import Strict, convert, load

GOOD: dict[str, Any] = {
    "name": "lender",
    "sources": {
        "pay": {
            "path": "pay.csv",
            "fields": {
                "amount": {"kind": "money", "role": "amount", "currency": "CNY"},
                "status": {"kind": "category"},
                "due": {"kind": "timestamp"},
            },
        }
    },
    "outcomes": {"late": "pay.status in ('1', '2') within 30d"},
}


def changed(**parts: Any) -> dict[str, Any]:
    return GOOD | parts


def with_outcome(text: str) -> dict[str, Any]:
    return changed(outcomes={"o": text})


class Small(Strict):
    steps: int = 1
    rate: float = 0.1


def test_schema_survives_a_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "schema.yaml"
    path.write_text(yaml.safe_dump(GOOD))
    schema = load_schema(path)
    again = schema_from_dict(schema_to_dict(schema))
    assert again == schema and fingerprint(again) == fingerprint(schema)


def test_the_order_of_a_file_means_nothing() -> None:
    data = changed(sources=GOOD["sources"] | {"call": {"fields": {"note": {"kind": "text"}}}})
    turned = yaml.safe_load(yaml.safe_dump(data, sort_keys=True))
    one, two = schema_from_dict(data), schema_from_dict(turned)
    assert one.source_names == two.source_names == ("call", "pay")
    assert list(one.sources["pay"].fields) == list(two.sources["pay"].fields)
    assert fingerprint(one) == fingerprint(two)


def test_fingerprint_follows_meaning_only() -> None:
    base = fingerprint(schema_from_dict(GOOD))
    moved = schema_from_dict(GOOD)
    data = schema_to_dict(moved)
    data["sources"]["pay"]["path"] = "elsewhere.csv"
    data["sources"]["pay"]["authorization"] = {"by": "bank", "use": "scoring"}
    assert fingerprint(schema_from_dict(data)) == base
    data["sources"]["pay"]["fields"]["status"]["kind"] = "text"
    assert fingerprint(schema_from_dict(data)) != base


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (changed(sorces={}), r"unknown key 'sorces', did you mean 'sources'"),
        (changed(time_zone="Asia/Shanghi"), r"unknown time zone 'Asia/Shanghi'"),
        (changed(windows_days=[0, 7]), r"windows_days must be at least 1"),
        (changed(sources={"pay": {"fields": {"a": {"kind": "nmber"}}}}), r"nmber"),
        (
            changed(sources={"pay": {"fields": {"a": {"kind": "number", "role": "amout"}}}}),
            r"unknown role 'amout', did you mean 'amount'",
        ),
        (
            changed(sources={"pay": {"fields": {"a": {"kind": "number", "rol": "amount"}}}}),
            r"unknown key 'rol' in 'sources.pay.fields.a', did you mean 'role'",
        ),
        (changed(sources={"pay": {"fields": {"known_at": {"kind": "timestamp"}}}}), r"reserved"),
        (changed(sources={"pay": {"delay": "2 days"}}), r"'2 days' is no duration"),
        (changed(sources={"my pay": {}}), r"'my pay' must be letters"),
        (with_outcome("pays.status in ('1') within 3d"), r"unknown source 'pays', did you mean"),
        (with_outcome("pay.statu in ('1') within 3d"), r"unknown field 'pay.statu', did you mean"),
        (with_outcome("sum(pay.status) > 3 within 3d"), r"'status' is no number"),
        (with_outcome("pay.event_time > status within 3d"), r"'status' is no timestamp"),
        (with_outcome("sum(pay.amount) < 1 * last(pay.amt) within 3d"), r"unknown field 'pay.amt'"),
        (
            changed(ratios=[["pay.amount", "pai.amount"]]),
            r"ratio \[pay.amount, pai.amount\] reads unknown source 'pai', did you mean 'pay'",
        ),
        (
            changed(ratios=[["pay.amuont", "pay.amount"]]),
            r"unknown field 'pay.amuont', did you mean 'amount'\?; fields: amount, status, due",
        ),
        (changed(ratios=[["pay.amount", "profile.limit"]]), r"unknown field 'profile.limit'"),
        (changed(ratios=[["pay.amount", "context.asked"]]), r"unknown field 'context.asked'"),
        (changed(ratios=[["amount", "pay.amount"]]), r"'amount' names no source"),
        (changed(ratios=[["pay.amount", "pay.status"]]), r"'pay.status' is a category, no"),
    ],
)
def test_contradiction_is_named(data: dict[str, Any], message: str) -> None:
    with pytest.raises(SchemaError, match=message):
        schema_from_dict(data)


def test_ratios_may_read_sources_profile_and_context() -> None:
    number = {"kind": "number"}
    data = changed(
        profile={"fields": {"limit": number}},
        context={"asked": number},
        ratios=[["pay.amount", "profile.limit"], ["context.asked", "profile.limit"]],
    )
    assert schema_from_dict(data).ratios[1] == ("context.asked", "profile.limit")


def test_broken_yaml_names_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "schema.yaml"
    path.write_text("name: x\nsources: [\n")
    with pytest.raises(SchemaError, match=r"schema\.yaml, line \d+: not valid YAML"):
        load_schema(path)
    with pytest.raises(SchemaError, match="no such file"):
        load_schema(tmp_path / "absent.yaml")


def test_strict_struct_refuses_unknown_key_and_wrong_type(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown key 'step', did you mean 'steps'"):
        convert(Small, {"step": 3}, "nano.yaml")
    with pytest.raises(ConfigError, match=r"nano\.yaml.*int"):
        convert(Small, {"steps": "many"}, "nano.yaml")
    with pytest.raises(ConfigError, match="expected a mapping"):
        convert(Small, [1], "nano.yaml")
    path = tmp_path / "small.yaml"
    path.write_text("steps: 5\n")
    assert load(Small, path) == Small(steps=5)
    with pytest.raises(AttributeError):
        load(Small, path).steps = 6  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "s.f in ('a', \"b c\") within 7d, 30d",
            {"kind": "value", "values": ("a", "b c"), "horizons": (7, 30)},
        ),
        ("s.f = yes within 7d", {"kind": "value", "values": ("yes",)}),
        ("s.f >= 2.5 WITHIN 7d", {"kind": "compare", "op": ">=", "bound": 2.5}),
        (
            "s.event_time > due + 3d within 60d",
            {"kind": "late", "date_field": "due", "slack_days": 3},
        ),
        (
            "sum(s.f) <= 0.5 * last within 56d",
            {"kind": "sum", "versus": "window", "bound": 0.5, "op": "<="},
        ),
        (
            "sum(s.f) < 0.02 * last(s.g) within 31d",
            {"kind": "sum", "versus": "last", "versus_field": "s.g"},
        ),
        ("count(s) = 0 within 7d", {"kind": "count", "bound": 0.0, "versus": ""}),
        ("silence within 28d", {"kind": "silence", "source": ""}),
        ("silence(s) within 28d, 7d, 7d", {"kind": "silence", "source": "s", "horizons": (7, 28)}),
        ("s.f < -1 within 7d", {"kind": "compare", "bound": -1.0}),
    ],
)
def test_outcome_grammar(text: str, expected: dict[str, Any]) -> None:
    found = parse_outcome("o", text)
    assert {key: getattr(found, key) for key in expected} == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "within 7d",
        "s.f in () within 7d",
        "s.f in ('a') within",
        "s.f in ('a') within 0d",
        "s.f in ('a') within 7",
        "s.f in ('a' within 7d",
        "sum(s) > 1 within 7d",
        "s within 7d",
        "s.f ~ 3 within 7d",
        "s.event_time < due within 7d",
        "silence within 7d extra",
        "s.f =",
        "count(s.f) > 1 within 7d",
        "s.f > within 7d",
    ],
)
def test_unreadable_outcome_is_quoted(text: str) -> None:
    with pytest.raises(SchemaError, match="outcome 'o'"):
        parse_outcome("o", text)


@given(st.text(max_size=40))
def test_any_text_parses_or_raises_schema_error(text: str) -> None:
    with contextlib.suppress(SchemaError):
        parse_outcome("o", text)


def test_query_is_an_outcome_of_one_horizon() -> None:
    query = parse_query("P(pay.status = 'late' within 30d)")
    assert same_condition(query, parse_outcome("late", "pay.status in ('late') within 90d"))
    with pytest.raises(SchemaError, match="one horizon"):
        parse_query("P(silence within 7d, 30d)")


@pytest.mark.parametrize(("text", "seconds"), [("2d", 172800), ("12h", 43200), ("0d", 0)])
def test_durations(text: str, seconds: int) -> None:
    assert duration_seconds(text, "here") == seconds
