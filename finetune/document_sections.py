"""What a model is, in a model document: purpose, data, sample, variables, recipe.

Every number is read through `Facts`; what an artefact does not hold is said to be missing.
"""

from __future__ import annotations

from typing import Any

from finetune.document_facts import DASH, MANIFEST, METRICS, REPORT, Facts
from finetune.document_parts import Cell, Section, Word

GRADES = ("secret", "personal", "internal", "public")
TOP_VARIABLES = 15


def purpose(facts: Facts) -> Section:
    """What the model is for, what its score means, and how it decides."""
    out = Section("Purpose")
    out.say(
        "Model package {id} gives customers of channel {channel} the probability of label 1, "
        "called bad here. It was made on {made} with recipe {recipe}.",
        id=facts.show("text", MANIFEST, "id"),
        channel=facts.show("text", MANIFEST, "channel"),
        made=facts.show("moment", MANIFEST, "created_at"),
        recipe=facts.show("text", MANIFEST, "recipe"),
    )
    if facts.get(REPORT, "label_meaning"):
        out.say("Meaning of label 1, as stated:")
        out.quote(facts.show("text", REPORT, "label_meaning"))
    else:
        out.missing("Nobody stated in words what label 1 means; the sample file alone says it.")
    out.say(
        "Points: {base} points stand for odds of {odds} goods to one bad; {pdo} points more double "
        "the odds.",
        base=facts.show("general", MANIFEST, "points", "base"),
        odds=facts.show("general", MANIFEST, "points", "odds"),
        pdo=facts.show("general", MANIFEST, "points", "pdo"),
    )
    rows: list[tuple[Cell, ...]] = [
        (
            facts.show("text", MANIFEST, "bands", i, "name"),
            facts.show("percent", MANIFEST, "bands", i, "below"),
        )
        for i in range(facts.size(MANIFEST, "bands"))
    ]
    if rows:
        out.table(("decision band", "probability of bad below"), rows)
    else:
        out.missing("No decision bands are declared.")
    return out


def data(facts: Facts) -> Section:
    """Sources, who allowed their use, how sensitive their fields are."""
    out = Section("Data and authorisation")
    schema = facts.get(MANIFEST, "schema") or {}
    rows: list[tuple[Cell, ...]] = []
    unauthorised = []
    for path in _tables(schema):
        name = facts.name(MANIFEST, *path)
        note = ("authorizations", name)
        if facts.get(MANIFEST, *note) is None:
            unauthorised.append(name)
        rows.append(
            (
                name,
                facts.show("size", MANIFEST, *path, "fields"),
                facts.show("text", MANIFEST, *note, "by"),
                facts.show("text", MANIFEST, *note, "use"),
                facts.show("day", MANIFEST, *note, "until"),
            )
        )
    if rows:
        out.table(("source", "fields", "authorised by", "for", "until"), rows)
    else:
        out.missing("The schema declares no source: this is a model of plain columns.")
    if unauthorised:
        out.missing(
            "The package holds no authorisation note for: {names}.",
            names=", ".join(unauthorised),
        )
    fields = _fields(facts, schema)
    out.say("Fields by declared sensitivity grade; a field without a grade counts as internal.")
    out.table(
        ("grade", "fields"),
        [
            (Word(g), ", ".join(n for n, f in fields if f.get("grade", "internal") == g) or DASH)
            for g in GRADES
        ],
    )
    hidden = [n for n, f in fields if f.get("kind") == "identifier"]
    if hidden:
        out.say(
            "Identifiers are stored as keyed hashes and never enter a vocabulary: {names}.",
            names=", ".join(hidden),
        )
    if schema.get("outcomes"):
        out.say("Outcomes forecast without labels:")
        for name in schema["outcomes"]:
            text = facts.show("text", MANIFEST, "schema", "outcomes", name)
            out.item(
                "{name}: {text}", name=facts.name(MANIFEST, "schema", "outcomes", name), text=text
            )
    else:
        out.missing("The schema declares no outcomes, so nothing was forecast without labels.")
    return out


def sample(facts: Facts) -> Section:
    """The labels: how many, from when, selected how."""
    out = Section("Sample")
    base = ("sample", "basis")
    if facts.get(METRICS, "labels", "bads") is None:
        out.missing("No labels were used: the model rests on forecasts alone.")
    else:
        out.say(
            "{n} labelled samples with {bads} bads: bad rate {rate}, {level} interval {span}.",
            n=facts.show("count", METRICS, "labels", "n"),
            bads=facts.show("count", METRICS, "labels", "bads"),
            rate=facts.show("percent", REPORT, *base, "bad_rate"),
            level=level(facts),
            span=facts.span("percent", REPORT, *base, low="bad_rate_low", high="bad_rate_high"),
        )
    out.say(
        "Decisions from {first} to {last}; the last label was known on {known}.",
        first=facts.show("day", MANIFEST, "label", "as_of_first"),
        last=facts.show("day", MANIFEST, "label", "as_of_last"),
        known=facts.show("day", MANIFEST, "label", "known_last"),
    )
    windows: list[tuple[Cell, ...]] = [
        tuple(
            facts.show(form, REPORT, "windows", i, key)
            for key, form in (("name", "text"), ("start", "day"), ("end", "day"), ("note", "text"))
        )
        for i in range(facts.size(REPORT, "windows"))
    ]
    if windows:
        out.table(("window", "from", "to", "remark"), windows)
    if facts.get(REPORT, "sample", "approved_only"):
        out.say("Selection: labels stand with approved customers alone; figures hold for such.")
    else:
        out.say(
            "Selection: the sample file does not say that labels stand with the approved alone."
        )
    if facts.get(METRICS, "reject_inference"):
        out.say(
            "Reject inference: a second model with refused applicants stands beside this one; this "
            "document is about the plain model."
        )
    else:
        out.missing("Reject inference: none was asked for.")
    if facts.get(REPORT, "sample", "thin"):
        out.say(
            "{n} samples ({share}) had no known event at the moment of decision.",
            n=facts.show("count", REPORT, "sample", "thin", "n"),
            share=facts.show("percent", REPORT, "sample", "thin", "share"),
        )
    _dropped(facts, out)
    for i in range(facts.size(METRICS, "label_power", "sentences")):
        out.quote(facts.show("text", METRICS, "label_power", "sentences", i))
    return out


def _dropped(facts: Facts, out: Section) -> None:
    rows: list[tuple[Cell, ...]] = [
        (
            facts.show("text", REPORT, "sample", "dropped", i, "reason"),
            facts.show("count", REPORT, "sample", "dropped", i, "n"),
        )
        for i in range(facts.size(REPORT, "sample", "dropped"))
    ]
    if rows:
        out.table(("rows left out because", "rows"), rows)
    else:
        out.say("No row of the sample file was left out.")


def variables(facts: Facts) -> Section:
    """How many columns there are, and the strongest single ones."""
    out = Section("Variables")
    out.say(
        "The model may read {n} columns, all computed from what was known before the decision.",
        n=facts.show("size", MANIFEST, "columns"),
    )
    blocks = dict.fromkeys(c["block"] for c in facts.get(MANIFEST, "columns") or [])
    if blocks:
        out.table(
            ("kind", "columns"),
            [
                (Word(block), facts.tally(MANIFEST, "columns", key="block", value=block))
                for block in blocks
            ],
        )
    count = min(facts.size(REPORT, "variables", "rows"), TOP_VARIABLES)
    if not count:
        out.missing("No analysis of single variables was made.")
        return out
    rows: list[tuple[Cell, ...]] = []
    for i in range(count):
        at = ("variables", "rows", i)
        rows.append(
            (
                facts.show("text", REPORT, *at, "title"),
                Word(facts.get(REPORT, *at, "block") or DASH),
                facts.show("percent", REPORT, *at, "missing"),
                facts.show("fixed3", REPORT, *at, "iv"),
                facts.show("fixed3", REPORT, *at, "ks"),
                facts.show("fixed3", REPORT, *at, "psi"),
            )
        )
    out.say("The strongest single columns; the report beside this document lists more.")
    out.table(("variable", "kind", "missing", "IV", "KS", "PSI"), rows)
    if facts.get(REPORT, "variables", "note"):
        out.quote(facts.show("text", REPORT, "variables", "note"))
    return out


def recipe(facts: Facts) -> Section:
    """Which recipes were compared, which is shipped, and why."""
    out = Section("Recipe and why it was chosen")
    out.say("Shipped: {recipe}. The reason as the choice recorded it:", recipe=chosen(facts))
    out.quote(facts.show("text", METRICS, "why"))
    rows: list[tuple[Cell, ...]] = []
    skipped = []
    for name, row in (facts.get(METRICS, "recipes") or {}).items():
        at = ("recipes", name)
        if row.get("status") != "ok":
            skipped.append(name)
            continue
        rows.append(
            (
                facts.name(METRICS, *at) + (" *" if name == facts.get(METRICS, "chosen") else ""),
                facts.show("fixed4", METRICS, *at, "cv_log_loss"),
                facts.show("fixed3", METRICS, *at, "cv_auc"),
                facts.span("fixed3", METRICS, *at, low="cv_auc_low", high="cv_auc_high"),
                facts.show("fixed3", METRICS, *at, "cv_ks"),
                facts.span("fixed3", METRICS, *at, low="cv_ks_low", high="cv_ks_high"),
            )
        )
    if rows:
        head = ("recipe", "log-loss", "AUC", "interval of AUC", "KS", "interval of KS")
        out.say("Cross-validation on the same folds; the choice rests on log-loss.")
        out.table(head, rows)
    else:
        out.missing("No recipes were compared.")
    for name in skipped:
        reason = facts.show("text", METRICS, "recipes", name, "reason")
        out.item("Recipe {name} was left out: {reason}", name=name, reason=reason)
    heads: list[tuple[Cell, ...]] = [
        (
            facts.show("text", MANIFEST, "heads", i, "name"),
            facts.show("size", MANIFEST, "heads", i, "columns"),
            facts.show("fixed4", MANIFEST, "heads", i, "weight"),
        )
        for i in range(facts.size(MANIFEST, "heads"))
    ]
    out.say(
        "Parts of the score, added as log-odds, then calibrated ({method}).",
        method=facts.show("text", MANIFEST, "calibration", "method"),
    )
    out.table(("part", "columns read", "weight"), heads)
    return out


def chosen(facts: Facts) -> str:
    """Name of the shipped recipe."""
    return facts.show("text", MANIFEST, "recipe")


def level(facts: Facts) -> str:
    """Level of the report's intervals, such as 95 %."""
    return facts.show("percent0", REPORT, "intervals", "level")


def _tables(schema: dict[str, Any]) -> list[tuple[str, ...]]:
    """Where sources and profile stand in the manifest."""
    out = [("schema", "sources", name) for name in schema.get("sources", {})]
    return [*out, *([("schema", "profile")] if schema.get("profile") else [])]


def _fields(facts: Facts, schema: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Every declared field with its table's name before it, and what the schema says of it."""
    places = [(*path, "fields") for path in _tables(schema)]
    out = []
    for place in [*places, ("schema", "context")]:
        table = place[-1] if place[-1] == "context" else facts.name(MANIFEST, *place[:-1])
        for name, spec in (facts.get(MANIFEST, *place) or {}).items():
            out.append((f"{table}.{facts.name(MANIFEST, *place, name)}", spec))
    return out
