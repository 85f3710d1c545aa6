"""How a model was proved and how it is to be watched, in a model document.

Validation, stability, fairness, reasons, limits, monitoring plan, approvals, digests. Every number
is read through `Facts`; what an artefact does not hold is said to be missing.
"""

from __future__ import annotations

from finetune.document_facts import (
    APPROVALS,
    BACKTEST,
    DASH,
    MANIFEST,
    METRICS,
    REPORT,
    RULES,
    Facts,
)
from finetune.document_parts import Cell, Section, Word
from finetune.document_sections import level

TOP_REASONS = 12
MEASURES = {
    "ks": "KS",
    "auc": "AUC",
    "gini": "Gini",
    "log_loss": "Log-loss",
    "brier": "Brier score",
    "ece": "Calibration error (ECE)",
}


def validation(facts: Facts) -> Section:
    """Figures with intervals, against the baseline, and the back-test."""
    out = Section("Validation")
    base = ("evaluation", "basis")
    if facts.get(REPORT, "evaluation") is None:
        out.missing("No labelled scores were held back, so nothing proves the model's quality.")
    else:
        out.say(
            "Measured on {name}: {n} customers with {bads} bads, bad rate {rate}, decided {first} "
            "to {last}.",
            name=facts.show("text", REPORT, *base, "name"),
            n=facts.show("count", REPORT, *base, "n"),
            bads=facts.show("count", REPORT, *base, "n_bad"),
            rate=facts.show("percent", REPORT, *base, "bad_rate"),
            first=facts.show("day", REPORT, *base, "start"),
            last=facts.show("day", REPORT, *base, "end"),
        )
        late = bool(facts.get(REPORT, "evaluation", "out_of_time"))
        out.say(
            "These decisions lie after those the model learned from (out of time)."
            if late
            else "These decisions do not lie after those the model learned from."
        )
        _measures(facts, out)
        _baseline(facts, out)
        _calibration(facts, out)
    _backtest(facts, out)
    return out


def _measures(facts: Facts, out: Section) -> None:
    rows: list[tuple[Cell, ...]] = []
    for i in range(facts.size(REPORT, "evaluation", "metrics")):
        at = ("evaluation", "metrics", i)
        name = str(facts.get(REPORT, *at, "name"))
        rows.append(
            (
                Word(MEASURES.get(name, name)),
                facts.show("fixed3", REPORT, *at, "value"),
                facts.span("fixed3", REPORT, *at, low="low", high="high"),
            )
        )
    if not rows:
        out.missing("Only one class of labels is present, so KS and AUC do not exist.")
        return
    out.say(
        "Intervals: {level}, bootstrap over customers, of KS corrected for its bias.",
        level=level(facts),
    )
    out.table(("measure", "value", "interval"), rows)


def _baseline(facts: Facts, out: Section) -> None:
    rows: list[tuple[Cell, ...]] = [
        (
            Word(MEASURES[measure]),
            facts.show("signed3", METRICS, "against_gbdt", measure, "difference"),
            facts.span("signed3", METRICS, "against_gbdt", measure, low="low", high="high"),
            facts.show("fixed3", METRICS, "against_gbdt", measure, "p_value"),
        )
        for measure in ("auc", "ks")
        if facts.get(METRICS, "against_gbdt", measure)
    ]
    if rows:
        out.say("Paired difference to gbdt, what a lender would do without us, on the same rows.")
        out.table(("measure", "difference", "interval", "p-value"), rows)
    else:
        out.missing("No paired comparison with the baseline gbdt was made.")


def _calibration(facts: Facts, out: Section) -> None:
    rows: list[tuple[Cell, ...]] = [
        (
            facts.show("count", REPORT, "evaluation", "calibration", i, "n"),
            facts.show("percent", REPORT, "evaluation", "calibration", i, "mean_score"),
            facts.show("percent", REPORT, "evaluation", "calibration", i, "bad_rate"),
            facts.span(
                "percent", REPORT, "evaluation", "calibration", i,
                low="bad_rate_low", high="bad_rate_high",
            ),
        )
        for i in range(facts.size(REPORT, "evaluation", "calibration"))
    ]  # fmt: skip
    if rows:
        out.say("Calibration in bands of equal size, lowest scores first.")
        out.table(("customers", "mean score", "realised bad rate", "interval"), rows)


def _backtest(facts: Facts, out: Section) -> None:
    if facts.get(BACKTEST) is None:
        out.missing("Back-test: none was handed in.")
        return
    overall = ("overall",)
    out.say(
        "Back-test on {n} rows with {bads} bads, decided {first} to {last}. Verdict: {verdict}.",
        n=facts.show("count", BACKTEST, *overall, "n"),
        bads=facts.show("count", BACKTEST, *overall, "bads"),
        first=facts.show("day", BACKTEST, *overall, "start"),
        last=facts.show("day", BACKTEST, *overall, "end"),
        verdict=Word(str(facts.get(BACKTEST, "verdict"))),
    )
    rows: list[tuple[Cell, ...]] = []
    for name in facts.get(BACKTEST, *overall, "models") or {}:
        at = (*overall, "models", name)
        rows.append(
            (
                facts.name(BACKTEST, *at),
                facts.show("fixed3", BACKTEST, *at, "ks"),
                facts.span("fixed3", BACKTEST, *at, low="ks_low", high="ks_high"),
                facts.show("fixed3", BACKTEST, *at, "auc"),
                facts.span("fixed3", BACKTEST, *at, low="auc_low", high="auc_high"),
            )
        )
    out.table(("model", "KS", "interval of KS", "AUC", "interval of AUC"), rows)
    for key in ("reasons", "warnings", "notes"):
        for i in range(facts.size(BACKTEST, key)):
            out.quote(facts.show("text", BACKTEST, key, i))


def stability(facts: Facts) -> Section:
    """Month by month: of the evaluation, and of the back-test."""
    out = Section("Stability")
    months = ("evaluation", "stability", "months")
    head = ("month", "customers", "bad rate", "KS", "interval of KS", "PSI of the score")
    rows: list[tuple[Cell, ...]] = [
        (
            facts.show("text", REPORT, *months, i, "month"),
            facts.show("count", REPORT, *months, i, "n"),
            facts.show("percent", REPORT, *months, i, "bad_rate"),
            facts.show("fixed3", REPORT, *months, i, "ks"),
            facts.span("fixed3", REPORT, *months, i, low="ks_low", high="ks_high"),
            facts.show("fixed3", REPORT, *months, i, "psi"),
        )
        for i in range(facts.size(REPORT, *months))
    ]
    if rows:
        out.say("The evaluation, month by month of decision.")
        out.table(head, rows)
    else:
        out.missing("The evaluation covers less than two months: stability cannot be judged by it.")
    if facts.get(BACKTEST) is None:
        out.missing("Back-test: none was handed in.")
        return out
    subject = str(facts.get(BACKTEST, "subject"))
    rows = [
        (
            facts.show("text", BACKTEST, "months", i, "month"),
            facts.show("count", BACKTEST, "months", i, "n"),
            facts.show("percent", BACKTEST, "months", i, "bad_rate"),
            facts.show("fixed3", BACKTEST, "months", i, "models", subject, "ks"),
            facts.span(
                "fixed3", BACKTEST, "months", i, "models", subject, low="ks_low", high="ks_high"
            ),
            facts.show("fixed3", BACKTEST, "months", i, "psi"),
        )
        for i in range(facts.size(BACKTEST, "months"))
    ]
    out.say("The back-test, month by month of decision.")
    out.table(head, rows)
    return out


def fairness(facts: Facts) -> Section:
    """Figures by declared groups, from the report."""
    out = Section("Fairness by declared groups")
    place: tuple[str | int, ...] = ("evaluation", "groups")
    if not facts.size(REPORT, *place):
        out.missing("No groups were declared, so no figures by group exist.")
        return out
    head = ("group", "n", "bad rate", "95 % interval", "approved", "KS", "AUC")
    for i in range(facts.size(REPORT, *place)):
        out.say("By {name}:", name=facts.show("text", REPORT, *place, i, "field"))
        rows: list[tuple[Cell, ...]] = []
        for j in range(facts.size(REPORT, *place, i, "rows")):
            at = (*place, i, "rows", j)
            rows.append(
                (
                    facts.show("text", REPORT, *at, "group"),
                    facts.show("count", REPORT, *at, "n"),
                    facts.show("percent", REPORT, *at, "bad_rate"),
                    facts.span("percent", REPORT, *at, low="bad_rate_low", high="bad_rate_high"),
                    facts.show("percent", REPORT, *at, "approval"),
                    facts.show("fixed3", REPORT, *at, "ks"),
                    facts.show("fixed3", REPORT, *at, "auc"),
                )
            )
        out.table(head, rows)
        out.quote(facts.show("text", REPORT, *place, i, "note"))
    return out


def reasons(facts: Facts) -> Section:
    """What moves the score."""
    out = Section("Reasons of scores")
    count = min(facts.size(REPORT, "reasons", "rows"), TOP_REASONS)
    if not count:
        out.missing("No importance of reasons was computed.")
        return out
    rows: list[tuple[Cell, ...]] = [
        (
            facts.show("text", REPORT, "reasons", "rows", i, "title"),
            facts.show("percent", REPORT, "reasons", "rows", i, "share"),
            facts.show("fixed3", REPORT, "reasons", "rows", i, "importance"),
        )
        for i in range(count)
    ]
    out.say("Every answer names its strongest reasons. Over the sample, these move the score most:")
    out.table(("reason", "share of all effects", "mean effect in log-odds"), rows)
    if facts.get(REPORT, "reasons", "note"):
        out.quote(facts.show("text", REPORT, "reasons", "note"))
    return out


def limits(facts: Facts) -> Section:
    """What the numbers and the data say against the model."""
    out = Section("Limits")
    for i in range(facts.size(REPORT, "limits", "derived")):
        at = ("limits", "derived", i)
        values = {
            k: facts.show("text", REPORT, *at, "values", k)
            for k in facts.get(REPORT, *at, "values")
        }
        out.item(facts.get(REPORT, *at, "text"), **values)
    stated = [facts.show("text", REPORT, "limits", "stated", i)
              for i in range(facts.size(REPORT, "limits", "stated"))]  # fmt: skip
    noted = [facts.show("text", METRICS, "notes", i) for i in range(facts.size(METRICS, "notes"))]
    for text in dict.fromkeys([*stated, *noted]):
        out.quote(text)
    if not out.blocks:
        out.say("No particular limit was found by the rules of the report.")
    out.say("A score is a probability, not a decision: the lender's rules and people decide.")
    return out


def monitoring(facts: Facts) -> Section:
    """Which figures are watched, against which bounds, how often."""
    out = Section("Monitoring plan")
    found = {
        facts.get(REPORT, "evaluation", "metrics", i, "name"): i
        for i in range(facts.size(REPORT, "evaluation", "metrics"))
    }
    watch, act = facts.show("fixed2", RULES, "psi_watch"), facts.show("fixed2", RULES, "psi_act")
    rows: list[tuple[Cell, ...]] = [
        (
            Word("PSI of the score, frozen development bins"),
            facts.show("fixed3", BACKTEST, "overall", "psi"),
            watch,
            act,
            Word("daily"),
        ),
        (Word("PSI of the inputs, frozen development bins"), DASH, watch, act, Word("monthly")),
    ]
    for name in ("ks", "auc"):
        if name in found:
            at = ("evaluation", "metrics", found[name])
            rows.append(
                (
                    Word(f"Realised {MEASURES[name]} of matured labels"),
                    facts.show("fixed3", REPORT, *at, "value"),
                    facts.show("fixed3", REPORT, *at, "value"),
                    facts.show("fixed3", REPORT, *at, "low"),
                    Word("monthly, as labels mature"),
                )
            )
    base = ("evaluation", "basis")
    if facts.get(REPORT, *base, "bad_rate") is not None:
        rows.append(
            (
                Word("Realised bad rate against the mean score"),
                facts.show("percent", REPORT, *base, "bad_rate"),
                facts.span("percent", REPORT, *base, low="bad_rate_low", high="bad_rate_high"),
                Word("outside its interval twice running"),
                Word("monthly, as labels mature"),
            )
        )
    rows.append(
        (Word("Declared outcomes against their forecasts"), DASH, DASH,
         Word("mean forecast outside the interval of what came true"), Word("monthly"))
    )  # fmt: skip
    out.table(("figure", "at validation", "look beyond", "act beyond", "how often"), rows)
    out.say(
        "KS and AUC are judged from {bads} matured bads on; intervals are at {level}. Acting "
        "means: back-test, adapt again, and let a second person approve the successor.",
        bads=facts.show("count", RULES, "least_bads"),
        level=facts.show("percent0", RULES, "confidence"),
    )
    out.say(
        "PSI bounds, the number of bads and the level are conventions; every other bound is a "
        "figure of the validation."
    )
    if not found:
        out.missing("Bounds of KS and AUC are missing: the model was not validated on labels.")
    return out


def approvals(facts: Facts) -> Section:
    """Who approved what, when."""
    out = Section("Approvals")
    rows: list[tuple[Cell, ...]] = [
        tuple(
            facts.show("moment" if key == "at" else "text", APPROVALS, i, key)
            for key in ("by", "role", "decision", "at", "note")
        )
        for i in range(facts.size(APPROVALS))
    ]
    if rows:
        out.table(("person", "role", "decision", "moment", "remark"), rows)
    else:
        out.missing("No approval was recorded when this document was made.")
    return out


def digests(facts: Facts) -> Section:
    """What identifies the model and what it was made from."""
    out = Section("Digests and versions")
    named = {
        "package digest": ("digest",),
        "schema fingerprint": ("schema_fingerprint",),
        "tokenizer fingerprint": ("tokenizer_fingerprint",),
        "backbone fingerprint": ("backbone_fingerprint",),
        "backbone knew events until": ("backbone_until",),
        "event store version": ("store_version",),
        "code version": ("code_version",),
        "random seed": ("seed",),
        "package format": ("format",),
    }
    if facts.get(MANIFEST, "precision"):
        named["precision of the backbone's graphs"] = ("precision",)
    rows: list[tuple[Cell, ...]] = [
        (Word(label), facts.show("text", MANIFEST, *path)) for label, path in named.items()
    ]
    out.table(("what", "value"), rows)
    rounded = ("graph_parity", "int8", "history")
    if facts.get(MANIFEST, *rounded):
        out.say(
            "States of the backbone's rounded graph lie within {rounded} of the network's on "
            "probes, those of its graph without rounding within {exact}.",
            rounded=facts.show("tiny", MANIFEST, *rounded),
            exact=facts.show("tiny", MANIFEST, "graph_parity", "float32", "history"),
        )
    if facts.get(METRICS, "parity"):
        out.say(
            "The exported package reproduces the model on {n} golden rows; the largest difference "
            "is {alone} row by row and {batch} together.",
            n=facts.show("count", METRICS, "parity", "rows"),
            alone=facts.show("tiny", METRICS, "parity", "alone"),
            batch=facts.show("tiny", METRICS, "parity", "batch"),
        )
    else:
        out.missing("No proof that the exported package reproduces the model is recorded.")
    out.say("Files of the package and their digests.")
    files = facts.get(MANIFEST, "files") or {}
    digest_rows: list[tuple[Cell, ...]] = [
        (facts.name(MANIFEST, "files", name), facts.show("text", MANIFEST, "files", name))
        for name in files
    ]
    out.table(("file", "digest"), digest_rows)
    return out
