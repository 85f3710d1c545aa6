"""The backbone: what sees what, weights without a vocabulary, saving, targets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from finetune.history_graph import probe_inputs
from foundation.backbone import RiskBackbone, RiskBackboneConfig
from foundation.checkpoint import save_weights
from foundation.errors import ArtifactError
from foundation.schema import schema_from_dict
from foundation.tokenizer import Tokenizer
from tests.foundation.small_lender import small_lender

SIZES = {
    "width": 32,
    "layers": 2,
    "heads": 4,
    "hidden": 32,
    "fusion_hidden": 16,
    "slot_width": 16,
    "hash_rows": 64,
    "name_rows": 32,
    "targets": ["late_31d", "quiet_31d"],
}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    schema, timeline, profile = small_lender(20)
    return Tokenizer.fit(schema, timeline, profile)


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> RiskBackbone:
    torch.manual_seed(0)
    return RiskBackbone(RiskBackboneConfig(**SIZES)).bind(tokenizer).eval()


def inputs_of(model: RiskBackbone, batch: int, length: int, seed: int = 0) -> dict:
    found = probe_inputs(model, batch, length, seed)
    return {name: torch.from_numpy(array) for name, array in found.items()}


@given(st.integers(2, 12), st.integers(0, 11), st.integers(0, 1000))
def test_future_events_change_nothing_before(
    model: RiskBackbone, length: int, at: int, seed: int
) -> None:
    at = min(at, length - 1)
    before = inputs_of(model, 3, length, seed)
    before["query_position"][:] = at
    other = inputs_of(model, 3, length, seed + 1)
    after = {n: t.clone() for n, t in before.items()}
    for name in ("source", "code", "value", "extra", "days"):
        after[name][:, at:] = other[name][:, at:] + (name == "days") * 100
    with torch.no_grad():
        a, b = model(**before), model(**after)
    assert torch.equal(a.events[:, :at], b.events[:, :at])
    assert torch.equal(a.query, b.query)
    assert torch.equal(a.forecasts, b.forecasts)


def test_a_query_sees_the_event_before_its_position(model: RiskBackbone) -> None:
    before = inputs_of(model, 1, 5)
    before["query_position"][:] = 5
    after = {n: t.clone() for n, t in before.items()}
    after["code"][:, 4] = (after["code"][:, 4] + 1) % 40
    with torch.no_grad():
        assert not torch.equal(model(**before).query, model(**after).query)


def test_queries_do_not_see_each_other_and_events_see_no_query(model: RiskBackbone) -> None:
    one = inputs_of(model, 2, 6)
    one["query_position"][:] = 6
    two = {n: torch.cat([t, t], 1) if n.startswith("query") else t for n, t in one.items()}
    two["query_days"] = two["query_days"] + torch.tensor([0.0, 50.0])
    two["query_extra"] = two["query_extra"] * torch.tensor([1.0, 3.0])[:, None]
    with torch.no_grad():
        a, b = model(**one), model(**two)
    torch.testing.assert_close(a.query[:, 0], b.query[:, 0], atol=1e-6, rtol=0)
    torch.testing.assert_close(a.events, b.events, atol=1e-6, rtol=0)
    assert not torch.equal(b.query[:, 0], b.query[:, 1])


def test_padding_changes_nothing(model: RiskBackbone) -> None:
    short = inputs_of(model, 2, 4)
    short["query_position"][:] = torch.tensor([[4], [0]])
    padded = dict(short)
    for name in ("source", "code", "value", "extra", "days"):
        tail = torch.zeros_like(short[name])
        padded[name] = torch.cat([short[name], tail], dim=1)
    with torch.no_grad():
        a, b = model(**short), model(**padded)
    torch.testing.assert_close(a.query, b.query, atol=1e-6, rtol=0)


def test_bidirectional_sees_all_before_the_query_only(tokenizer: Tokenizer) -> None:
    torch.manual_seed(0)
    model = RiskBackbone(RiskBackboneConfig(**SIZES, bidirectional=True)).bind(tokenizer).eval()
    before = inputs_of(model, 1, 6)
    before["query_position"][:] = 4
    late, seen = ({n: t.clone() for n, t in before.items()} for _ in range(2))
    late["code"][:, 4:] = 3
    seen["code"][:, 3] = 3
    with torch.no_grad():
        a, b, c = model(**before), model(**late), model(**seen)
    assert torch.equal(a.events[:, :4], b.events[:, :4])
    assert torch.equal(a.query, b.query)
    assert not torch.equal(a.events[:, 0], c.events[:, 0])


def test_saved_and_restored_exactly(
    model: RiskBackbone, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    save_weights(model, tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"config.json", "model.safetensors"}
    again = RiskBackbone.from_pretrained(str(tmp_path)).bind(tokenizer).eval()
    batch = inputs_of(model, 2, 5)
    with torch.no_grad():
        a, b = model(**batch), again(**batch)
    assert torch.equal(a.query, b.query)
    assert torch.equal(a.forecasts, b.forecasts)


def test_unbound_says_so() -> None:
    fresh = RiskBackbone(RiskBackboneConfig(**SIZES))
    with pytest.raises(ArtifactError, match="bind"):
        _ = fresh.layout


def test_another_schema_encodes_with_the_same_weights(
    model: RiskBackbone, tokenizer: Tokenizer
) -> None:
    names = set(dict(model.named_parameters()))
    fields = {"kind_of_deal": {"kind": "category", "role": "type"}, "text": {"kind": "text"}}
    schema = schema_from_dict({"name": "other", "sources": {"deal": {"fields": fields}}})
    from tests.foundation.small_lender import build_timeline, pl

    times = pl.Series([f"2020-01-0{d}" for d in (1, 2, 3)]).str.to_datetime(time_unit="us")
    frame = pl.DataFrame(
        {
            "entity_id": ["a", "a", "b"],
            "event_time": times,
            "known_at": times,
            "kind_of_deal": ["x", "y", "x"],
            "text": ["to rent", "", "food 12"],
        }
    )
    other = Tokenizer.fit(schema, build_timeline(schema, {"deal": frame}))
    batch = inputs_of(model, 2, 3)
    with torch.no_grad():
        before = model(**batch).query
        model.bind(other)
        found = model(**inputs_of(model, 3, 4))
        model.bind(tokenizer)
        after = model(**batch).query
    assert found.query.shape == (3, 1, 32)
    assert bool(torch.isfinite(found.query).all())
    assert set(dict(model.named_parameters())) == names
    assert torch.equal(before, after)


def test_same_meaning_same_row_across_schemas(tokenizer: Tokenizer) -> None:
    """A value of a shared role lands on the same hash row whatever the field is called."""
    from foundation.event_encoder import layout_of
    from tests.foundation.small_lender import build_timeline, frames, pl

    fields = {"what": {"kind": "category", "role": "merchant_type"}}
    schema = schema_from_dict({"name": "o", "sources": {"buy": {"fields": fields}}})
    frame = frames(20)[0]["payment"].select(
        "entity_id", "event_time", "known_at", pl.col("shop").alias("what")
    )
    other = Tokenizer.fit(schema, build_timeline(schema, {"buy": frame}))

    def row(found: Tokenizer) -> np.ndarray:
        code = found.code_text.index("category|merchant_type|value:food")
        return layout_of(found, 4096, 512).code_rows[code]

    assert row(tokenizer)[0] == row(other)[0]
    assert row(tokenizer)[1] != row(other)[1]


def test_targets_resize_keeps_those_of_the_same_name(tokenizer: Tokenizer) -> None:
    torch.manual_seed(0)
    model = RiskBackbone(RiskBackboneConfig(**SIZES)).bind(tokenizer).eval()
    batch = inputs_of(model, 2, 5)
    with torch.no_grad():
        before = model(**batch).forecasts
        model.resize_targets(["new", "late_31d"])
        after = model(**batch).forecasts
    assert model.config.targets == ["new", "late_31d"]
    torch.testing.assert_close(after[..., 1], before[..., 0])


def test_frozen_tables_change_nothing(model: RiskBackbone) -> None:
    batch = inputs_of(model, 2, 5)
    with torch.no_grad():
        before = model(**batch).query
        after = model.freeze_tables()(**batch).query
    model.thaw_tables()
    assert torch.equal(before, after)
