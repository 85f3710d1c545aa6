"""A day's numbers held against the channel's bounds: alerts, each a sentence with its numbers."""

from __future__ import annotations

from typing import Any

from serving.daily_settings import Bounds

Alert = dict[str, Any]


def crossed(numbers: dict[str, Any], bounds: Bounds) -> list[Alert]:
    """Alerts of a day: `bound`, `number`, `limit`, `sentence`, in the order of `Bounds`.

    Args:
        numbers: of `serving.daily_steps.measured`; without a champion there are none.
    """
    if numbers["champion"] is None:
        return []
    return [
        *_drift(numbers["drift"], bounds),
        *_realised(numbers["realised"], bounds),
        *_forecasts(numbers["forecasts"], bounds),
    ]


def unjudged(numbers: dict[str, Any], bounds: Bounds) -> list[str]:
    """What could not be judged, one sentence each."""
    if numbers["champion"] is None:
        return ["there is no champion yet: nothing was scored"]
    out = []
    decided, bads = numbers["drift"]["n"], numbers["realised"]["bads"]
    if decided < bounds.min_samples:
        out.append(
            f"drift is not judged: {decided:,} samples decided in the window, "
            f"{bounds.min_samples:,} are needed"
        )
    if bads < bounds.min_bads:
        out.append(
            f"realised performance is not judged: {bads:,} matured bads, {bounds.min_bads:,} are "
            "needed"
        )
    return out


def _drift(found: dict[str, Any], bounds: Bounds) -> list[Alert]:
    if found["n"] < bounds.min_samples:
        return []
    basis = f"over {found['n']:,} samples decided {found['first']} to {found['last']}"
    out = []
    score = found["score"]
    if score["psi"] > max(bounds.psi, score["chance"]):
        out.append(
            _alert(
                "psi", score["psi"], bounds.psi,
                f"the score has moved: PSI {score['psi']:.3f} against development {basis}; "
                f"the bound is {bounds.psi:.2f}, chance alone reaches {score['chance']:.3f}",
            )
        )  # fmt: skip
    moved = [r for r in found["inputs"] if r["psi"] > max(bounds.input_psi, r["chance"])]
    if moved:
        worst = moved[0]
        more = f", and {len(moved) - 1} more inputs moved" if len(moved) > 1 else ""
        out.append(
            _alert(
                "input_psi", worst["psi"], bounds.input_psi,
                f"input '{worst['title']}' has moved: PSI {worst['psi']:.3f} {basis}, "
                f"'{worst['grown']}' grew from {_percent(worst['grown_from'])} to "
                f"{_percent(worst['grown_to'])}; the bound is {bounds.input_psi:.2f}{more}",
            )
        )  # fmt: skip
    unknown, thin = found["unknown"], found["thin"]
    if unknown and unknown["share"] - unknown["development"] > bounds.unknown:
        fields = ", ".join(s["slot"] for s in unknown["slots"][:3])
        out.append(
            _alert(
                "unknown", unknown["share"], unknown["development"] + bounds.unknown,
                f"{_percent(unknown['share'])} of the values read are unknown to the model, "
                f"{_percent(unknown['development'])} at development; most in {fields}",
            )
        )  # fmt: skip
    if thin and thin["share"] - thin["development"] > bounds.thin:
        out.append(
            _alert(
                "thin", thin["share"], thin["development"] + bounds.thin,
                f"{_percent(thin['share'])} of the customers decided on have no event, "
                f"{_percent(thin['development'])} at development {basis}",
            )
        )  # fmt: skip
    return out


def _realised(found: dict[str, Any], bounds: Bounds) -> list[Alert]:
    if found["bads"] < bounds.min_bads:
        return []
    out = []
    basis = f"on {found['n']:,} matured labels, {found['bads']:,} bad"
    drop = found["drop"]
    if drop is not None and drop["low"] > bounds.ks_drop:
        out.append(
            _alert(
                "ks_drop", drop["low"], bounds.ks_drop,
                f"KS fell from {found['development']['value']:.3f} at development to "
                f"{found['ks']['value']:.3f} {basis}: a drop of {drop['value']:.3f} "
                f"({drop['low']:.3f} to {drop['high']:.3f}); the bound on its lower end is "
                f"{bounds.ks_drop:.2f}",
            )
        )  # fmt: skip
    observed, expected = found["observed"], found["expected"]
    if outside(observed["low"], observed["high"], expected, bounds.calibration):
        ratio = observed["value"] / expected
        out.append(
            _alert(
                "calibration", ratio, bounds.calibration,
                f"{_percent(observed['value'])} bads came ({_percent(observed['low'])} to "
                f"{_percent(observed['high'])}), {_percent(expected)} were expected {basis}: "
                f"{ratio:.2f} times; the bound is {bounds.calibration:g} times either way",
            )
        )  # fmt: skip
    return out


def _forecasts(rows: list[dict[str, Any]], bounds: Bounds) -> list[Alert]:
    off = [
        r
        for r in rows
        if r["n"] >= bounds.min_samples
        and outside(r["low"], r["high"], r["forecast"], bounds.forecast)
    ]
    out = []
    for row in off:
        out.append(
            _alert(
                "forecast", row["happened"] / max(row["forecast"], 1e-9), bounds.forecast,
                f"forecast '{row['title']}' does not come true: {_percent(row['forecast'])} "
                f"forecast, {_percent(row['happened'])} happened ({_percent(row['low'])} to "
                f"{_percent(row['high'])}, n = {row['n']:,}); the bound is {bounds.forecast:g} "
                "times either way",
            )
        )  # fmt: skip
    return out


def outside(low: float, high: float, expected: float, bound: float) -> bool:
    """Whether an observed interval lies wholly above `bound` times the expected, or below 1/it."""
    return low > bound * expected or high < expected / bound


def _alert(bound: str, number: float, limit: float, sentence: str) -> Alert:
    return {"bound": bound, "number": float(number), "limit": float(limit), "sentence": sentence}


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"
