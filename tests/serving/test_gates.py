"""Gates: a number, a limit and a sentence each; what fails, what cannot be measured."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foundation.errors import ConfigError
from serving.gates import DeliverySettings, Gates, judge, load_delivery_settings, refusals
from tests.contracts.tree import ROOT

GATES = ("bads", "ks", "ks_low", "psi", "oot_drop", "incumbent", "parity")


def record(**more: Any) -> dict[str, Any]:
    """A `metrics.json` measured on a test file; every gate holds."""
    row = {
        "ks": 0.35, "ks_low": 0.30, "ks_high": 0.40, "cv_ks": 0.36, "cv_ks_low": 0.29,
        "cv_ks_high": 0.43,
    }  # fmt: skip
    return {
        "measured_on": more.pop("measured_on", "test"),
        "n": 1000,
        "labels": {"n": 500, "bads": more.pop("bads", 60)},
        "chosen": "blend",
        "recipes": {"blend": row | more},
        "parity": {"alone": 1e-7, "batch": 2e-7},
    }


def incumbent(low: float) -> dict[str, Any]:
    """A comparison with a champion."""
    return {
        "release": "a/b/1", "n": 1000, "on": "the test file", "difference": low + 0.05,
        "low": low, "high": low + 0.1,
    }  # fmt: skip


def failed(metrics: dict[str, Any], psi: float | None = 0.02, against: Any = None) -> set[str]:
    """Names of the gates that fail."""
    return {v.gate for v in judge(Gates(), metrics, psi, against) if v.passed is False}


def test_a_good_challenger_passes_every_gate() -> None:
    verdicts = judge(Gates(), record(), 0.02, incumbent(-0.01))
    assert [v.gate for v in verdicts] == list(GATES)
    assert all(v.passed for v in verdicts)
    assert all(v.number is not None and v.sentence for v in verdicts)


@pytest.mark.parametrize(
    ("gate", "metrics", "psi", "against"),
    [
        ("bads", record(bads=9), 0.02, None),
        ("ks", record(ks=0.149), 0.02, None),
        ("ks_low", record(ks_low=0.049), 0.02, None),
        ("psi", record(), 0.2501, None),
        ("oot_drop", record(cv_ks=0.55, cv_ks_low=0.5), 0.02, None),
        ("incumbent", record(), 0.02, incumbent(-0.0501)),
        ("incumbent", record(), 0.02, incumbent(0.0) | {"low": None}),
        ("parity", record() | {"parity": {"alone": 0.0, "batch": 2e-5}}, 0.02, None),
    ],
)
def test_each_gate_fails_alone(
    gate: str, metrics: dict[str, Any], psi: float, against: dict[str, Any] | None
) -> None:
    assert failed(metrics, psi, against) == {gate}
    words = refusals(judge(Gates(), metrics, psi, against))
    assert len(words) == 1
    assert words[0].startswith(f"{gate}: ")


def test_without_a_test_file_what_needs_one_is_not_measured() -> None:
    metrics = record(measured_on="out-of-fold", ks=0.9)
    by_gate = {v.gate: v for v in judge(Gates(), metrics, None, None)}
    assert by_gate["ks"].number == 0.36  # out of fold
    assert by_gate["psi"].passed is None
    assert by_gate["oot_drop"].passed is None
    assert by_gate["incumbent"].passed is None
    strict = judge(Gates(need_test=True), metrics, None, None)
    assert [v.gate for v in strict if v.passed is False] == ["test"]


def test_unlabelled_samples_cannot_pass() -> None:
    metrics = record(measured_on="out-of-fold")
    metrics["labels"]["bads"] = None
    metrics["recipes"]["blend"] = {"status": "ok"}
    assert failed(metrics, None) == {"bads", "ks", "ks_low"}


@settings(deadline=None, max_examples=25)
@given(st.floats(0, 1), st.floats(0, 1))
def test_a_stricter_limit_never_lets_more_through(limit: float, ks: float) -> None:
    def passes(bar: float) -> bool:
        verdicts = judge(Gates(min_ks=bar), record(ks=ks), 0.0, None)
        return bool(next(v for v in verdicts if v.gate == "ks").passed)

    assert passes(limit) <= passes(limit / 2)


def test_a_few_labels_are_not_refused_for_a_drop_by_chance() -> None:
    chance = record(cv_ks=0.43, cv_ks_low=0.30, cv_ks_high=0.56, ks=0.31, ks_high=0.38)
    assert failed(chance) == set()


def test_the_shipped_file_says_the_defaults() -> None:
    assert load_delivery_settings(ROOT / "configs/delivery/default.yaml") == DeliverySettings()


def test_unknown_keys_are_named(tmp_path: Any) -> None:
    path = tmp_path / "gates.yaml"
    path.write_text("gates: {min_kss: 0.2}\n")
    with pytest.raises(
        ConfigError, match="unknown key 'min_kss' in 'gates', did you mean 'min_ks'"
    ):
        load_delivery_settings(path)
    assert msgspec.structs.asdict(Gates())["min_ks"] == 0.15
