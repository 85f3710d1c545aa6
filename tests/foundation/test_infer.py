"""Drafted schemas: what is recognised, what is proposed, and that a draft imports as it stands."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from foundation.errors import SchemaError
from foundation.infer import infer_schema, schema_yaml
from foundation.proposals import MAX_TARGETS
from foundation.schema import Schema, fingerprint, load_schema
from foundation.store import import_events

START = dt.datetime(2022, 1, 31)


def lender(folder: Path, suffix: str = "csv") -> list[Path]:
    """Monthly statements, daily payments, customers and samples of an invented lender."""
    rng = np.random.default_rng(0)
    ids = [f"{n:05d}" for n in range(120)]
    months = [START + dt.timedelta(days=round(30.44 * m)) for m in range(24)]
    n = len(ids) * len(months)
    statement = pl.DataFrame(
        {
            "customer_id": np.repeat(ids, len(months)),
            "statement_date": months * len(ids),
            "due_date": [m + dt.timedelta(days=20) for m in months] * len(ids),
            "dpd_status": rng.choice([0, 0, 0, 0, 1, 2], n),
            "bill_amt": rng.gamma(2, 500, n).round(2),
            "pay_amt": (rng.gamma(2, 300, n) * (rng.random(n) > 0.2)).round(2),
        }
    )
    m = 6000
    due = np.datetime64(START, "us") + (rng.random(m) * 700 * 86400e6).astype("timedelta64[us]")
    payment = pl.DataFrame(
        {
            "transaction_id": [f"t{k:07d}" for k in range(m)],
            "customer_id": rng.choice(ids, m),
            "paid_at": due + (rng.normal(-1, 3, m) * 86400e6).astype("timedelta64[us]"),
            "due_date": due,
            "result": rng.choice(["ok", "declined", "returned"], m, p=[0.9, 0.07, 0.03]),
            "device_id": rng.choice([f"imei{k:09d}" for k in range(2000)], m),
            "is_online": rng.choice([0, 1], m),
            "shop_id": rng.choice([f"{k:03d}" for k in range(50)], m),
            "memo": [f"payment number {k} of the kind customer" for k in range(m)],
            "constant": ["x"] * m,
        }
    )
    customer = pl.DataFrame(
        {
            "customer_id": ids,
            "gender": rng.choice(["f", "m"], 120),
            "credit_limit": [5000] * 60 + [9000] * 60,
            "email": [f"{i}@example.org" for i in ids],
        }
    )
    samples = pl.DataFrame({"customer_id": ids, "as_of": [START] * 120, "label": [0, 1] * 60})
    paths = []
    for name, frame in {
        "statement": statement,
        "payment": payment,
        "customer": customer,
        "samples": samples,
    }.items():
        path = folder / f"{name}.{suffix}"
        frame.write_csv(path) if suffix == "csv" else frame.write_parquet(path)
        paths.append(path)
    return paths


def kinds(schema: Schema, source: str) -> dict[str, str]:
    return {name: field.kind for name, field in schema.sources[source].fields.items()}


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_draft_of_a_lender_imports_without_editing(tmp_path: Path, suffix: str) -> None:
    schema, notes = infer_schema(lender(tmp_path, suffix), name="lender")
    assert schema.entity == "customer_id"
    assert {n: s.event_time for n, s in schema.sources.items()} == {
        "statement": "statement_date",
        "payment": "paid_at",
    }
    assert kinds(schema, "statement") == {
        "due_date": "timestamp",
        "dpd_status": "category",
        "bill_amt": "money",
        "pay_amt": "money",
    }
    assert kinds(schema, "payment") == {
        "due_date": "timestamp",
        "result": "category",
        "device_id": "identifier",
        "is_online": "boolean",
        "shop_id": "category",
        "memo": "text",
    }
    assert schema.profile is not None and not schema.profile.valid_time
    profile = schema.profile.fields
    assert profile["gender"].grade == profile["email"].grade == "personal"
    assert (profile["credit_limit"].kind, profile["credit_limit"].role) == ("money", "limit")
    assert profile["email"].kind == "identifier"
    text = "\n".join(notes)
    assert "samples" in text and "sample file" in text
    assert "column 'transaction_id' left out: it differs in every row" in text
    assert "column 'constant' left out: it is constant" in text
    outcomes = set(schema.outcomes)
    assert {
        "statement_dpd_status_1_or_more",
        "payment_due_date_missed",
        "payment_result_declined",
        "payment_result_returned",
    } <= outcomes
    assert "statement_pay_amt_below_bill_amt" in outcomes
    assert sum(len(o.horizons) for o in schema.parsed_outcomes()) <= MAX_TARGETS
    assert ("statement.bill_amt", "profile.credit_limit") in schema.ratios
    folder = tmp_path / "out"
    folder.mkdir()
    draft = folder / "schema.yaml"
    draft.write_text(schema_yaml(schema, notes, relative_to=folder))
    assert "path: ../statement" in draft.read_text()
    assert fingerprint(load_schema(draft)) == fingerprint(schema)
    summary = import_events(draft, folder / "store")
    assert {t.name: t.stored for t in summary.tables} == {
        "statement": 2880,
        "payment": 6000,
        "profile": 120,
    }


def test_draft_is_the_same_every_time(tmp_path: Path) -> None:
    paths = lender(tmp_path, "parquet")
    assert infer_schema(paths) == infer_schema(paths)


def write(folder: Path, name: str, days: np.ndarray, entity: np.ndarray) -> Path:
    path = folder / f"{name}.parquet"
    times = np.datetime64(START, "us") + (days * 86400e6).astype("timedelta64[us]")
    pl.DataFrame(
        {"user_id": entity.astype(str), "time": times, "amount": days % 7 + 1.0}
    ).write_parquet(path)
    return path


def test_rhythm_sets_windows_and_horizons(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    months = write(tmp_path, "month", np.tile(np.arange(36) * 30.44, 50), np.repeat(range(50), 36))
    schema, _ = infer_schema([months])
    assert schema.windows_days == (31, 62, 93, 186, 366)
    shops = write(tmp_path, "shop", rng.random(20_000) * 365, rng.integers(0, 200, 20_000))
    schema, _ = infer_schema([shops])
    assert schema.windows_days == (7, 28, 56, 90, 180)
    assert {h for o in schema.parsed_outcomes() for h in o.horizons} <= {28, 56, 90}
    cases = rng.random(2000) * 180
    entity = np.repeat(range(2000), 5)
    steps = write(tmp_path, "step", cases[entity] + rng.random(10_000) / 12, entity)
    schema, notes = infer_schema([steps])
    assert schema.windows_days == (1, 7, 30)
    assert any("cases end within weeks" in note for note in notes)


def test_chinese_names(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    n = 3000
    frame = pl.DataFrame(
        {
            "客户号": rng.integers(0, 150, n).astype(str),
            "交易日期": [f"{2023 + m // 12}{m % 12 + 1:02d}{d:02d}"
                     for m, d in zip(rng.integers(0, 18, n), rng.integers(1, 29, n), strict=True)],
            "交易金额": rng.gamma(2, 90, n).round(2),
            "商户类型": rng.choice(["超市", "餐饮", "赌博"], n),
            "还款状态": rng.choice(["正常", "逾期"], n, p=[0.9, 0.1]),
            "设备号": rng.choice([f"设备{k}" for k in range(900)], n),
        }
    )  # fmt: skip
    frame.write_csv(tmp_path / "交易流水.csv", include_bom=True)
    people = pl.DataFrame(
        {"客户号": [str(i) for i in range(150)], "年龄": rng.integers(20, 60, 150)}
    )
    people.write_csv(tmp_path / "客户资料.csv")
    schema, notes = infer_schema(sorted(tmp_path.glob("*.csv")), name="银行")
    assert schema.entity == "客户号" and "'客户号' is taken as the entity column" in notes
    source = schema.sources["交易流水"]
    assert source.event_time == "交易日期"
    assert {name: (f.kind, f.role) for name, f in source.fields.items()} == {
        "交易金额": ("money", "amount"),
        "商户类型": ("category", "merchant_type"),
        "还款状态": ("category", "status"),
        "设备号": ("identifier", "device"),
    }
    assert schema.profile_fields["年龄"].grade == "personal"
    assert {"还款状态_逾期", "商户类型_赌博"} <= set(schema.outcomes)
    file = tmp_path / "schema.yaml"
    file.write_text(schema_yaml(schema, notes, tmp_path), "utf-8")
    assert load_schema(file).outcomes == schema.outcomes
    assert import_events(file, tmp_path / "store").stored == n + 150


def test_days_first_or_months_first_are_asked_about(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(
        "user_id,day,x\n" + "".join(f"{i % 9},{i % 12 + 1}/3/2024,1\n" for i in range(99))
    )
    with pytest.raises(SchemaError, match=r"'1/3/2024' in column 'day' may be a day of two months"):
        infer_schema([path])


@pytest.mark.parametrize(("value", "said"), [("12,50", True), ("1.234,5", True), ("12.50", False)])
def test_decimal_commas_are_pointed_out(tmp_path: Path, value: str, said: bool) -> None:
    path = tmp_path / "t.csv"
    rows = "".join(f"{i % 9};2024-03-{i % 28 + 1:02d};{value}\n" for i in range(98))
    path.write_text("user_id;day;amount\n" + rows + "1;2024-03-01;7\n")
    _, notes = infer_schema([path])
    expected = f"t.csv: column 'amount' holds '{value}', which is read as a word"
    assert any(expected in note for note in notes) is said


def test_plain_table_has_no_sources(tmp_path: Path) -> None:
    path = tmp_path / "applicants.csv"
    path.write_text("id,age,job\n" + "".join(f"{i},{20 + i % 40},j{i % 3}\n" for i in range(80)))
    schema, _ = infer_schema([path])
    assert not schema.sources and not schema.outcomes
    assert set(schema.profile_fields) == {"age", "job"}


def test_entity_is_asked_for_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("who,time,x\nada,2024-01-01,1\nada,2024-01-02,2\nbob,2024-01-01,3\n")
    with pytest.raises(SchemaError, match=r"no entity column found.*--entity.*who, time, x"):
        infer_schema([path])
    with pytest.raises(SchemaError, match=r"no file has the entity column 'whoo', did you mean"):
        infer_schema([path], entity="whoo")
    schema, _ = infer_schema([path], entity="who")
    assert schema.sources["t"].event_time == "time"


@pytest.mark.parametrize("name", ["uci", "loans", "cards", "journey", "german", "bpic"])
def test_prepared_sets(prepared: Path, tmp_path: Path, name: str) -> None:
    """Drafts of real files find the same tables and kinds of risk as the shipped schemas."""
    schema, notes = infer_schema(sorted((prepared / name).glob("*.parquet")), name=name)
    shipped = load_schema(Path(__file__).parents[2] / "configs" / "schemas" / f"{name}.yaml")
    assert set(schema.sources) == set(shipped.sources)
    assert set(schema.profile_fields) == set(shipped.profile_fields)
    assert {o.kind for o in shipped.parsed_outcomes()} <= {o.kind for o in schema.parsed_outcomes()}
    draft = tmp_path / "schema.yaml"
    draft.write_text(schema_yaml(schema, notes, tmp_path))
    assert load_schema(draft).outcomes == schema.outcomes
