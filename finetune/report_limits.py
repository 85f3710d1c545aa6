"""What a reader must know before trusting the numbers, derived from the numbers themselves.

Every limit is a template in English with its values, so that the page can say it in two languages.
"""

from __future__ import annotations

from typing import Any

FEW_BADS = 100
VERY_FEW_BADS = 10
THIN_SHARE = 0.05
PSI_MOVED = 0.25


def derived(numbers: dict[str, Any]) -> list[dict[str, Any]]:
    """Limits as `{"text": template, "values": {...}}`, most important first."""
    out: list[dict[str, Any]] = []

    def say(text: str, **values: Any) -> None:
        out.append({"text": text, "values": {k: str(v) for k, v in values.items()}})

    sample, evaluation = numbers["sample"], numbers["evaluation"]
    judged = evaluation["basis"] if evaluation else {}
    if evaluation is None:
        say(
            "No labelled sample was held back and no out-of-fold scores are shown: "
            "this report does not prove the model's quality."
        )
    elif evaluation["kind"] == "out-of-fold":
        say(
            "There is no separate test sample: quality was measured on out-of-fold predictions of "
            "the development sample, by models trained on the other folds."
        )
    if evaluation is not None and not evaluation["out_of_time"]:
        say(
            "The evaluation is not out of time: customers were decided on in the same period as "
            "those the model learned from. Expect some loss on later months."
        )
    if evaluation is not None and evaluation["metrics"] is None:
        say(
            "The evaluation sample holds one class only ({n} customers, {bad} bads): "
            "KS and AUC do not exist there.",
            n=judged["n"],
            bad=judged["n_bad"],
        )
    elif evaluation is not None and judged["n_bad"] < FEW_BADS:
        ks = next(m for m in evaluation["metrics"] if m["name"] == "ks")
        say(
            "Only {bad} bads among {n} customers: the 95 % interval of KS is {width} points wide. "
            "Differences smaller than that mean nothing.",
            bad=judged["n_bad"],
            n=judged["n"],
            width=f"{100 * (ks['high'] - ks['low']):.0f}",
        )
    if sample["basis"]["n_bad"] < VERY_FEW_BADS:
        say(
            "The model was developed on {bad} bads; with fewer than ten, only recipes that learn "
            "almost nothing from labels are safe.",
            bad=sample["basis"]["n_bad"],
        )
    if sample["approved_only"]:
        say(
            "Labels exist for approved customers only: refused applicants may behave differently, "
            "and the model has not seen them."
        )
    if sample["thin"] and sample["thin"]["share"] and sample["thin"]["share"] >= THIN_SHARE:
        say(
            "{share} % of customers had no known event at the moment of decision (thin files); "
            "their scores rest on profile and context alone.",
            share=f"{100 * sample['thin']['share']:.0f}",
        )
    if sample["basis"]["n_unknown"]:
        say(
            "{n} rows carry no label yet and took no part in training or metrics.",
            n=sample["basis"]["n_unknown"],
        )
    dropped = sum(row["n"] for row in sample["dropped"])
    if dropped:
        say("{n} rows were left out before anything was computed; section 1 lists why.", n=dropped)
    if evaluation is not None and evaluation["stability"]:
        months = evaluation["stability"]["months"]
        moved = [m for m in months if m["psi"] is not None and m["psi"] >= PSI_MOVED]
        if moved:
            say(
                "The score moved in {months} (PSI of {bound} or more): look at the population "
                "before using the model there.",
                months=", ".join(m["month"] for m in moved),
                bound=PSI_MOVED,
            )
    return out
