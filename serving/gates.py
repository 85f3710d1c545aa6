"""Gates between a tested model and its registration: each a number, its limit and a sentence."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from foundation import strict

Share = Annotated[float, Meta(ge=0, le=1)]


class Gates(strict.Strict):
    """Limits a challenger must keep.

    Attributes:
        min_bads: bads among the samples.
        min_ks, min_ks_low: KS and the lower end of its 95 % interval; on the test file where one
            was handed in, out of fold otherwise.
        max_psi: of the test scores against the development scores.
        max_oot_drop: KS out of fold minus KS on the test file; the lower end of its 95 % interval
            is held against it, so that few labels are not refused for chance.
        incumbent_margin: how far the lower end of the paired 95 % interval of KS minus the
            champion's KS may lie below zero.
        parity_tolerance: largest difference of the package to the model on golden rows.
        need_test: a delivery without a test file is refused.
    """

    min_bads: Annotated[int, Meta(ge=0)] = 10
    min_ks: Share = 0.15
    min_ks_low: Share = 0.05
    max_psi: Annotated[float, Meta(ge=0)] = 0.25
    max_oot_drop: Share = 0.05
    incumbent_margin: Share = 0.05
    parity_tolerance: Annotated[float, Meta(gt=0, le=1e-3)] = 1e-5
    need_test: bool = False


class Adapt(strict.Strict):
    """How samples are adapted; see `finetune.modelling.AdaptSettings`."""

    recipe: str = "auto"
    recipes: tuple[str, ...] = ()
    folds: Annotated[int, Meta(ge=2, le=20)] = 5
    repeats: Annotated[int, Meta(ge=1, le=20)] = 3
    seed: int = 0
    budget_minutes: Annotated[float, Meta(gt=0)] | None = None
    precision: Literal["float32", "int8"] = "float32"


class DeliverySettings(strict.Strict):
    """Content of a YAML in configs/delivery/."""

    adapt: Adapt = msgspec.field(default_factory=Adapt)
    gates: Gates = msgspec.field(default_factory=Gates)


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What one gate said.

    Attributes:
        passed: None where there was nothing to measure; that does not stop a delivery.
        number, limit: what was measured and what it was held against.
    """

    gate: str
    passed: bool | None
    number: float | None
    limit: float | None
    sentence: str


def load_delivery_settings(path: str | Path) -> DeliverySettings:
    """Read a delivery YAML, strictly.

    Raises:
        ConfigError: unknown keys (with the nearest), wrong types, impossible values.
    """
    return strict.load(DeliverySettings, path)


def judge(
    gates: Gates, metrics: Mapping[str, Any], psi: float | None, incumbent: Mapping[str, Any] | None
) -> list[Verdict]:
    """Hold what an adaptation found against the gates.

    Args:
        metrics: content of `metrics.json`.
        psi: of the test scores against the development scores; None without a test file.
        incumbent: `release`, `difference`, `low`, `high`, `n` of KS minus the champion's on the
            same rows, `on` naming them (`low` None where there was nothing to compare on); None
            where there is no champion.
    Returns:
        one verdict for each gate, in the order of `Gates`.
    """
    chosen = metrics["recipes"][metrics["chosen"]]
    tested = metrics["measured_on"] == "test"
    where = f"on the test file (n = {metrics['n']:,})" if tested else "out of fold"
    ks = chosen.get("ks") if tested else chosen.get("cv_ks")
    low = chosen.get("ks_low") if tested else chosen.get("cv_ks_low")
    bads = metrics["labels"]["bads"]
    parity = max(metrics["parity"]["alone"], metrics["parity"]["batch"])
    untested = "no test file was handed in: not measured"
    verdicts = [
        _at_least("bads", bads, gates.min_bads, f"bads among {metrics['labels']['n']:,} samples"),
        _at_least("ks", ks, gates.min_ks, f"KS {where}"),
        _at_least("ks_low", low, gates.min_ks_low, f"lower end of the 95 % interval of KS {where}"),
        _at_most("psi", psi, gates.max_psi, "PSI of the test scores against development", untested),
        _drop(chosen if tested else {}, gates.max_oot_drop, untested),
        _against(incumbent, gates.incumbent_margin),
        _at_most("parity", parity, gates.parity_tolerance, "package against model", ""),
    ]  # fmt: skip
    if gates.need_test:
        sentence = (
            f"a test file of {metrics['n']:,} rows was handed in" if tested
            else "no test file was handed in, and this channel asks for one: use --test FILE"
        )  # fmt: skip
        verdicts.append(
            Verdict(gate="test", passed=tested, number=None, limit=None, sentence=sentence)
        )
    return verdicts


def refusals(verdicts: list[Verdict]) -> list[str]:
    """Sentences of the gates that failed."""
    return [f"{v.gate}: {v.sentence}" for v in verdicts if v.passed is False]


def verdict_lines(verdicts: list[Verdict]) -> list[str]:
    """One line for each gate."""
    mark = {True: "passed", False: "FAILED", None: "  -   "}
    return [f"{mark[v.passed]}  {v.gate:<10} {v.sentence}" for v in verdicts]


def _at_least(gate: str, number: float | None, limit: float, what: str) -> Verdict:
    if number is None:
        return Verdict(
            gate=gate, passed=False, number=None, limit=limit,
            sentence=f"{what} cannot be measured without labels",
        )  # fmt: skip
    good = number >= limit
    word = "at least" if good else "below"
    return Verdict(
        gate=gate, passed=good, number=float(number), limit=float(limit),
        sentence=f"{what}: {_text(number)}, {word} {_text(limit)}",
    )  # fmt: skip


def _at_most(gate: str, number: float | None, limit: float, what: str, missing: str) -> Verdict:
    if number is None:
        return Verdict(gate=gate, passed=None, number=None, limit=limit, sentence=missing)
    good = number <= limit
    word = "at most" if good else "above"
    return Verdict(
        gate=gate, passed=good, number=float(number), limit=float(limit),
        sentence=f"{what}: {_text(number)}, {word} {_text(limit)}",
    )  # fmt: skip


def _drop(chosen: Mapping[str, Any], limit: float, missing: str) -> Verdict:
    """Whether KS fell for sure: two samples of their own, so their intervals add in squares."""
    if chosen.get("ks") is None or chosen.get("cv_ks") is None:
        return Verdict(gate="oot_drop", passed=None, number=None, limit=limit, sentence=missing)
    drop = chosen["cv_ks"] - chosen["ks"]
    below = math.hypot(chosen["cv_ks"] - chosen["cv_ks_low"], chosen["ks_high"] - chosen["ks"])
    above = math.hypot(chosen["cv_ks_high"] - chosen["cv_ks"], chosen["ks"] - chosen["ks_low"])
    good = drop - below <= limit
    return Verdict(
        gate="oot_drop", passed=good, number=float(drop - below), limit=limit,
        sentence=(
            f"KS out of fold minus KS on the test file: {drop:+.3f} ({drop - below:+.3f} to "
            f"{drop + above:+.3f}); the lower end is {'at most' if good else 'above'} {limit:.3f}"
        ),
    )  # fmt: skip


def _against(incumbent: Mapping[str, Any] | None, margin: float) -> Verdict:
    """No loss to the incumbent: the paired lower bound, not the mean."""
    if incumbent is None:
        return Verdict(
            gate="incumbent", passed=None, number=None, limit=-margin,
            sentence="the channel has no champion yet: nothing to lose to",
        )  # fmt: skip
    if incumbent.get("low") is None:
        return Verdict(
            gate="incumbent", passed=False, number=None, limit=-margin,
            sentence=f"a comparison with {incumbent['release']} needs labels or a test file",
        )  # fmt: skip
    low = float(incumbent["low"])
    good = low >= -margin
    return Verdict(
        gate="incumbent", passed=good, number=low, limit=-margin,
        sentence=(
            f"KS minus that of {incumbent['release']} on the same {incumbent['n']:,} rows "
            f"({incumbent['on']}): {incumbent['difference']:+.3f} ({low:+.3f} to "
            f"{float(incumbent['high']):+.3f}); the lower end is "
            f"{'not below' if good else 'below'} {-margin:+.3f}"
        ),
    )  # fmt: skip


def _text(number: float) -> str:
    if float(number).is_integer() and abs(number) >= 1:
        return f"{int(number):,}"
    return f"{number:.3f}" if abs(number) >= 1e-3 or number == 0 else f"{number:.1e}"
