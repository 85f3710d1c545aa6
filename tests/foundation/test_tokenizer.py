"""Fitting, saving, extending and refusing: what a tokenizer learns and what it must not."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest

from foundation.errors import ArtifactError, DataError, SchemaError
from foundation.history import DAY_US, ProfileHistory, Timeline, build_profile, build_timeline, cut
from foundation.schema import ROLES, Schema, schema_from_dict
from foundation.tokenizer import Tokenizer
from foundation.vocabulary import SLOT_KINDS, TEXT_BUCKETS

LENDER = {
    "name": "lender",
    "time_zone": "Asia/Shanghai",
    "sources": {
        "repayment": {
            "path": "somewhere/repayment.parquet",
            "authorization": {"by": "legal", "use": "scoring"},
            "fields": {
                "status": {"kind": "category", "role": "status"},
                "amount": {"kind": "money", "role": "amount"},
                "due": {"kind": "timestamp"},
            },
        },
        "login": {
            "time_zone": "UTC",
            "fields": {
                "device": {"kind": "identifier", "sharing": True, "role": "device"},
                "note": {"kind": "text"},
                "trusted": {"kind": "boolean"},
            },
        },
    },
    "profile": {"fields": {"city": {"kind": "category"}, "born": {"kind": "timestamp"}}},
    "context": {"requested": {"kind": "money", "role": "amount"}},
}


def moments(days: np.ndarray) -> pl.Series:
    return pl.Series((np.asarray(days) * DAY_US).astype(np.int64)).cast(pl.Datetime("us"))


def frames(seed: int = 0, events: int = 300) -> dict[str, pl.DataFrame]:
    rng = np.random.default_rng(seed)
    at = 18_000 + np.sort(rng.integers(0, 400, events)) + rng.random(events).round(2)
    base = {
        "entity_id": pl.Series([f"e{i}" for i in rng.integers(0, 12, events)]),
        "event_time": moments(at),
        "known_at": moments(at + 1),
    }
    repayment = {
        "status": pl.Series(rng.choice(["paid", "late", "partial"], events, p=[0.7, 0.2, 0.1])),
        "amount": np.where(rng.random(events) < 0.2, 0.0, rng.normal(0, 100, events).round(2)),
        "due": moments(at - 3),
    }
    login = {
        "device": pl.Series([f"imei-{i:06d}-secret" for i in rng.integers(0, 40, events)]),
        "note": pl.Series(rng.choice(["Paid by Zelda 4711", "paid by zelda 12", "gift"], events)),
        "trusted": pl.Series(rng.random(events) < 0.5),
    }
    return {
        "repayment": pl.DataFrame(base | repayment),
        "login": pl.DataFrame(base | login),
    }


def some_profile() -> ProfileHistory:
    return build_profile(
        pl.DataFrame(
            {
                "entity_id": ["e0", "e0", "e1", "nobody"],
                "known_at": moments(np.array([18_010.0, 18_300.0, 18_020.0, 18_000.0])),
                "city": ["Bern", "Basel", "Bern", "Bern"],
                "born": moments(np.array([8_000.0, 8_000.0, 9_000.0, 5_000.0])),
            }
        )
    )


CONTEXT = pl.DataFrame({"requested": [100.0, 200.0, 200.0, 5000.0]})


HASHES_OF_LATE = [85809, 71832]


@pytest.fixture(scope="module")
def schema() -> Schema:
    return schema_from_dict(LENDER)


@pytest.fixture(scope="module")
def timeline(schema: Schema) -> Timeline:
    return build_timeline(schema, frames())


@pytest.fixture(scope="module")
def fitted(schema: Schema, timeline: Timeline) -> Tokenizer:
    return Tokenizer.fit(schema, timeline, some_profile(), CONTEXT)


def of(tokenizer: Tokenizer, key: str):
    return next(s for s in tokenizer.slots if s.key == key)


def test_codes_stand_in_ranges_of_slots(fitted: Tokenizer) -> None:
    assert [s.key for s in fitted.slots] == [
        "login.device.times_seen",
        "login.device.days_since_seen",
        "login.device.shared_with",
        "login.note",
        "login.trusted",
        "repayment.amount",
        "repayment.due.days",
        "repayment.status",
        "profile.born.days",
        "profile.city",
        "context.requested",
    ]
    ids = np.concatenate([s.ids() for s in fitted.slots])
    assert ids.tolist() == list(range(1, fitted.size))
    assert fitted.code_slot[0] == 0
    for index, slot in enumerate(fitted.slots):
        assert (fitted.code_slot[slot.ids()] == index).all()
    assert fitted.width == 5
    assert fitted.row_width == 3


def test_a_category_keeps_its_frequent_values_by_count(fitted: Tokenizer) -> None:
    assert of(fitted, "repayment.status").values == ("paid", "late", "partial")
    assert of(fitted, "repayment.status").size == 5
    assert of(fitted, "login.note").size == 1 + TEXT_BUCKETS


def test_rare_values_and_values_beyond_the_limit_are_unknown(schema: Schema) -> None:
    data = frames()
    data["repayment"] = data["repayment"].with_columns(
        status=pl.Series(["once", "b", "b", "a", "a"] + ["c"] * 295)
    )
    timeline = build_timeline(schema, data)
    assert of(Tokenizer.fit(schema, timeline), "repayment.status").values == ("c", "a", "b")
    two = of(Tokenizer.fit(schema, timeline, max_values=2), "repayment.status")
    assert two.values == ("c", "a")


def test_zero_missing_and_unknown_have_codes_of_their_own(
    schema: Schema, fitted: Tokenizer
) -> None:
    data = frames(1, 6)
    data["repayment"] = data["repayment"].with_columns(
        amount=pl.Series([0.0, None, float("nan"), float("inf"), float("-inf"), -0.0]),
        status=pl.Series(["paid", None, "never seen", "", "Paid", "late"]),
    )
    timeline = build_timeline(schema, {"repayment": data["repayment"]})
    order = np.argsort(timeline.row)
    events = fitted.encode_events(timeline)
    amount, status = of(fitted, "repayment.amount"), of(fitted, "repayment.status")
    local = events.code[order, 0] - amount.ids()[0]
    assert local.tolist() == [1, 0, 0, 1 + amount.bins, 2, 1]
    value = events.value[order, 0]
    assert value[1] == value[2] == 0.0
    assert value[3] > 1.0 and value[4] < 0.0 and abs(value[3] - 1.05) < 1e-6
    assert 0.3 < value[0] < 0.7  # zero stands amid amounts on either side of it
    missing, unknown = status.ids()[:2].tolist()
    wanted = [status.ids()[2], missing, unknown, unknown, unknown, status.ids()[3]]
    assert events.code[order, 2].tolist() == wanted
    assert (events.code[:, 3:] == 0).all()  # a source with three slots leaves the others empty


def test_positions_follow_the_quantiles(schema: Schema, fitted: Tokenizer, timeline) -> None:
    events = fitted.encode_events(timeline)
    rows = timeline.positions(1)
    amount = timeline.frames[1]["amount"].to_numpy()[timeline.row[rows]]
    position = events.value[rows, 0]
    order = np.argsort(amount, kind="stable")
    assert (np.diff(position[order]) >= 0).all()
    nonzero = amount != 0
    rank = np.argsort(np.argsort(amount[nonzero])) / nonzero.sum()
    assert np.abs(position[nonzero] - rank).max() < 0.06


def test_json_restores_everything(fitted: Tokenizer, timeline: Timeline) -> None:
    text = fitted.to_json()
    again = Tokenizer.from_json(text)
    assert again.to_json() == text
    assert again.fingerprint == fitted.fingerprint and len(fitted.fingerprint) == 16
    one, two = fitted.encode_events(timeline), again.encode_events(timeline)
    for name in ("source", "code", "value", "extra", "days"):
        assert getattr(one, name).tobytes() == getattr(two, name).tobytes()


def test_json_does_not_depend_on_the_order_of_rows_or_on_paths(
    schema: Schema, fitted: Tokenizer
) -> None:
    shuffled = {k: v.sample(fraction=1.0, shuffle=True, seed=3) for k, v in frames().items()}
    moved = json.loads(json.dumps(LENDER))
    moved["sources"]["repayment"] |= {"path": "elsewhere.csv"}
    del moved["sources"]["repayment"]["authorization"]
    other = schema_from_dict(moved)
    again = Tokenizer.fit(other, build_timeline(other, shuffled), some_profile(), CONTEXT)
    assert again.to_json() == fitted.to_json()
    assert "somewhere" not in fitted.to_json()


def test_no_identifier_and_no_text_enters_the_file(fitted: Tokenizer, timeline: Timeline) -> None:
    text = fitted.to_json()
    assert "imei-" not in text and "elda" not in text and "4711" not in text
    assert "imei-" in str(timeline.frames[0]["device"].to_list())
    for entity in timeline.entity_ids:
        assert f'"{entity}"' not in text


def test_what_is_known_later_changes_no_byte(schema: Schema) -> None:
    until = 18_200 * DAY_US
    before = pl.col("known_at").cast(pl.Int64) < until
    plain, changed = frames(), frames()
    for name, frame in changed.items():
        late = frame.filter(~before).with_columns(pl.lit("e0").alias("entity_id"))
        column = "status" if name == "repayment" else "note"
        late = late.with_columns(pl.lit("from the future").alias(column))
        changed[name] = pl.concat([frame.filter(before), late.head(37), late.head(5)])
    texts = [
        Tokenizer.fit(
            schema,
            build_timeline(schema, {k: v.filter(before) for k, v in data.items()}),
            until_us=until,
        ).to_json()
        for data in (plain, changed)
    ]
    assert texts[0] == texts[1]
    tokenizer = Tokenizer.from_json(texts[0])
    ids = pl.Series(["e0", "e1", "e7"])
    encoded = []
    for data in (plain, changed):
        timeline = build_timeline(schema, data)
        found = cut(timeline, ids, np.full(3, until))
        events = tokenizer.encode_events(timeline)
        rows = np.concatenate(
            [np.arange(a, b) for a, b in zip(found.start, found.stop, strict=True)]
        )
        queries = tokenizer.encode_query(found, timeline, some_profile(), entity_ids=ids)
        encoded.append(
            [getattr(events, n)[rows].tobytes() for n in vars(events)]
            + [getattr(queries, n).tobytes() for n in vars(queries)]
        )
        assert len(rows) > 10
    assert encoded[0] == encoded[1]


def test_fit_refuses_what_is_not_older(schema: Schema, timeline: Timeline) -> None:
    until = 18_200 * DAY_US
    with pytest.raises(DataError, match="events became known at or after"):
        Tokenizer.fit(schema, timeline, until_us=until)
    early = build_timeline(
        schema,
        {k: v.filter(pl.col("known_at").cast(pl.Int64) < until) for k, v in frames().items()},
    )
    Tokenizer.fit(schema, early, until_us=until)
    with pytest.raises(DataError, match="profile rows"):
        Tokenizer.fit(schema, early, some_profile(), until_us=until)
    context = CONTEXT.with_columns(as_of=moments(np.full(4, 18_200.0)))
    with pytest.raises(DataError, match="context rows"):
        Tokenizer.fit(schema, early, None, context, until_us=until)


def test_extending_leaves_old_ids_alone(
    schema: Schema, fitted: Tokenizer, timeline: Timeline
) -> None:
    wider = json.loads(json.dumps(LENDER))
    wider["sources"]["repayment"]["fields"]["branch"] = {"kind": "category", "role": "place"}
    wider["sources"]["call"] = {"fields": {"length": {"kind": "number", "role": "duration"}}}
    wider["profile"]["fields"]["income"] = {"kind": "money"}
    new = schema_from_dict(wider)
    data = frames(5)
    data["repayment"] = data["repayment"].with_columns(
        status=pl.Series(["frozen"] * 20 + ["late"] * 280), branch=pl.Series(["north"] * 300)
    )
    data["call"] = (
        data["login"]
        .select("entity_id", "event_time", "known_at")
        .with_columns(length=pl.Series(np.arange(300.0)))
    )
    bigger = fitted.extend(new, build_timeline(new, data), some_profile())
    assert bigger.sources == ("login", "repayment", "call")
    assert of(bigger, "repayment.status").values == ("paid", "late", "partial", "frozen")
    assert bigger.code_text[: fitted.size] == fitted.code_text
    assert (bigger.hashes(997)[: fitted.size] == fitted.hashes(997)).all()
    assert sorted(np.concatenate([s.ids() for s in bigger.slots])) == list(range(1, bigger.size))
    assert Tokenizer.from_json(bigger.to_json()).to_json() == bigger.to_json()
    wide_timeline = build_timeline(new, frames())
    old, now = fitted.encode_events(timeline), bigger.encode_events(wide_timeline)
    assert (now.code[:, 3][now.source == 1] == of(bigger, "repayment.branch").ids()[0]).all()
    assert (now.code[:, :3] == old.code[:, :3]).all()
    assert (now.value[:, :3] == old.value[:, :3]).all()
    seen = bigger.encode_events(build_timeline(new, data))
    assert of(bigger, "repayment.status").ids()[-1] in seen.code[:, 2]
    same = fitted.extend(schema, timeline, some_profile(), CONTEXT)
    assert same.to_json() == fitted.to_json()


def test_extending_refuses_another_kind(schema: Schema, fitted: Tokenizer) -> None:
    other = json.loads(json.dumps(LENDER))
    other["sources"]["repayment"]["fields"]["amount"]["kind"] = "category"
    with pytest.raises(ArtifactError, match=r"repayment\.amount.*category"):
        fitted.extend(schema_from_dict(other), build_timeline(schema_from_dict(other), {}))


def test_a_foreign_timeline_is_refused(fitted: Tokenizer) -> None:
    less = json.loads(json.dumps(LENDER))
    del less["sources"]["repayment"]["fields"]["amount"]
    foreign = schema_from_dict(less)
    with pytest.raises(ArtifactError, match=r"lacks: repayment\.amount"):
        fitted.encode_events(build_timeline(foreign, {}))
    more = json.loads(json.dumps(LENDER))
    more["sources"]["call"] = {"fields": {}}
    foreign = schema_from_dict(more)
    with pytest.raises(ArtifactError, match="does not know sources call"):
        fitted.encode_events(build_timeline(foreign, {}))


def test_sources_in_another_order_get_the_same_index(fitted: Tokenizer, timeline: Timeline) -> None:
    turned = json.loads(json.dumps(LENDER))
    turned["sources"] = dict(reversed(turned["sources"].items()))
    other = build_timeline(schema_from_dict(turned), frames())
    one, two = fitted.encode_events(timeline), fitted.encode_events(other)
    for name in ("code", "value"):
        for source in (0, 1):
            a, b = (
                getattr(one, name)[one.source == source],
                getattr(two, name)[two.source == source],
            )
            assert (a == b).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(format=99), "another version"),
        (lambda d: d.update(extra=1), "unknown key 'extra'"),
        (lambda d: d["slots"][5]["edges"].reverse(), "edges do not rise"),
        (lambda d: d["slots"][7]["values"].append("more"), "blocks do not cover"),
        (lambda d: d["slots"].pop(), r"no codes for context\.requested"),
        (lambda d: d["slots"].pop(0), "overlap or have gaps"),
        (lambda d: d.update(sources=["repayment"]), "login have no index"),
    ],
)
def test_damaged_files_are_refused(fitted: Tokenizer, change, message: str) -> None:
    data = json.loads(fitted.to_json())
    change(data)
    with pytest.raises((ArtifactError, SchemaError), match=message):
        Tokenizer.from_json(json.dumps(data))


def test_text_that_is_not_json_is_refused() -> None:
    with pytest.raises(ArtifactError, match="not valid JSON"):
        Tokenizer.from_json("{")


def test_the_tables_of_the_model(fitted: Tokenizer) -> None:
    table = fitted.slot_table
    assert table.source.tolist() == [0, 0, 0, 0, 0, 1, 1, 1, -1, -1, -2]
    assert table.column.tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 0, 1, 2]
    assert SLOT_KINDS[table.kind[3]] == "text" and ROLES[table.role[5]] == "amount"
    hashes = fitted.hashes(4096)
    assert hashes.shape == (fitted.size, 2) and hashes.dtype == np.int64
    assert hashes.min() >= 0 and hashes.max() < 4096
    assert fitted.source_hashes(64).shape == (2, 2)
    distinct = {tuple(row) for row in fitted.hashes(2**40)[1:].tolist()}
    assert len(distinct) == len(set(fitted.code_text[1:]))


def test_another_lender_shares_hashes_by_role_and_value(fitted: Tokenizer) -> None:
    other = schema_from_dict(
        {
            "sources": {
                "installment": {
                    "fields": {
                        "state": {"kind": "category", "role": "status"},
                        "sum": {"kind": "money", "role": "amount"},
                    }
                }
            }
        }
    )
    table = frames()["repayment"].select(
        "entity_id", "event_time", "known_at", state="status", sum=pl.col("amount") * 7
    )
    theirs = Tokenizer.fit(other, build_timeline(other, {"installment": table}))
    mine = of(fitted, "repayment.status").ids()[2 + 1]
    late = of(theirs, "installment.state").ids()[2 + 1]
    assert fitted.code_text[mine] == theirs.code_text[late] == "category|status|value:late"
    assert (fitted.hashes(10_007)[mine] == theirs.hashes(10_007)[late]).all()
    bins = of(fitted, "repayment.amount").ids(), of(theirs, "installment.sum").ids()
    assert [fitted.code_text[i] for i in bins[0]] == [theirs.code_text[i] for i in bins[1]]


def test_hashes_are_the_same_everywhere(fitted: Tokenizer) -> None:
    late = fitted.code_text.index("category|status|value:late")
    assert fitted.hashes(1_000_003)[late].tolist() == HASHES_OF_LATE
