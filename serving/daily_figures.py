"""Steps `measured` and `judged` of a day: figures, alerts, a delivery where they ask for one."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path
from typing import Any

import polars as pl

from finetune.package import read_manifest
from finetune.sample_report import standard_frame
from finetune.samples import Samples, read_samples
from foundation.errors import UserError
from foundation.schema import Schema
from serving.bounds import crossed, unjudged
from serving.daily_steps import (
    REFERENCES,
    Day,
    Facts,
    decision_book,
    label_book,
    reference,
    scored_before,
    wanted_rows,
)
from serving.delivery import hand_in
from serving.durable import digest_file, place_directory
from serving.jobs import Job
from serving.label_book import KEY, as_samples, bounds_of
from serving.monitoring import against, drift, forecasts_came, labelled, realised
from serving.scored_rows import Scored

MAKER = "daily run"
SHOWN_DAYS = 62
SHOWN_INPUTS = 20


def measured(day: Day) -> Facts:
    """The figures of the day, in `numbers.json`."""

    def make(folder: Path) -> Facts:
        settings = day.settings()
        first = day.date - dt.timedelta(days=settings.window_days - 1)
        since = day.end - dt.timedelta(days=settings.label_days)
        numbers = figures(day, first, since)
        numbers["history"] = [
            {"date": str(date), **facts} for date, facts in day.earlier("measured", SHOWN_DAYS)
        ]
        _write(folder / "numbers.json", numbers)
        return key_figures(numbers)

    return place_directory(day.out("measured"), make, "day.measured")


def figures(day: Day, first: dt.date, since: dt.datetime) -> Facts:
    """Drift of what was decided from `first` to the day, and what labels known `since` say."""
    opened, schema = day.facts("opened"), day.store().schema
    book, decisions = label_book(day, schema), decision_book(day, schema)
    here = pl.col("as_of").dt.date() == day.date
    out: Facts = {
        "tenant": day.tenant,
        "channel": day.channel,
        "date": str(day.date),
        "made_for": f"{day.end.isoformat()}+00:00",
        "champion": None,
        "intake": {"events": day.facts("events"), **day.facts("labels")},
        "book": {"labels": len(book), "bads": int(book["label"].sum() or 0)},
        "decided_today": len(decisions.filter(here)),
        "labels_since": str(since.date()),
        "notes": notes(day),
        "challenger": None,
    }
    if opened["champion"] is None:
        return out | {"drift": None, "realised": None, "forecasts": []}
    manifest, scored = _model(day, opened["champion"])
    bins = reference(day, opened["champion"])
    learned = _learned(day, opened["champion"])
    wanted = wanted_rows(day, book, decisions).select(KEY)
    rows = scored.rows.join(wanted, on=KEY, how="semi", nulls_equal=True)
    found = labelled(rows, book, learned, since)
    seen = labelled(rows, book, learned.clear(), since)
    out["champion"] = _named(opened["champion"], manifest)
    out["notes"] += _later_labels(manifest, day)
    drifted = drift(scored, bins, first, day.date)
    drifted["inputs"] = drifted["inputs"][:SHOWN_INPUTS]
    out["drift"] = drifted
    out["realised"] = realised(found, manifest, len(seen) - len(found))
    days = day.settings().label_days
    known_until = _moment(manifest.get("backbone_until"))
    out["forecasts"] = forecasts_came(rows, day.store(), schema, day.end, days, known_until)
    if opened["challenger"] is not None:
        other, theirs = _model(day, opened["challenger"])
        apart = labelled(theirs.rows, book, _learned(day, opened["challenger"]), since)
        out["challenger"] = _named(opened["challenger"], other) | {"against": against(found, apart)}
    return out


def key_figures(numbers: Facts) -> Facts:
    """What later days show of this one."""
    drifted, came = numbers["drift"], numbers["realised"]
    score = drifted["score"] if drifted else None
    return {
        "decided": numbers["decided_today"],
        "labels": numbers["intake"]["labels"]["taken"],
        "champion": None if numbers["champion"] is None else numbers["champion"]["release"],
        "n": drifted["n"] if drifted else 0,
        "psi": score["psi"] if score else None,
        "input_psi": drifted["inputs"][0]["psi"] if drifted and drifted["inputs"] else None,
        "mean_score": drifted["mean_score"] if drifted else None,
        "matured": came["n"] if came else 0,
        "bads": came["bads"] if came else 0,
        "ks": came["ks"]["value"] if came and came["ks"] else None,
        "observed": came["observed"]["value"] if came and came["observed"] else None,
        "expected": came["expected"] if came else None,
    }


def notes(day: Day) -> list[str]:
    """What a reader must know about the day's data."""
    taken = day.facts("labels")
    found, out = taken["labels"], []
    for pair in found["conflicts"]:
        rows = " and ".join(f"{r:,}" for r in pair)
        out.append(
            f"{day.settings().labels}, rows {rows} give one customer two labels at one time: none "
            "of them was taken"
        )
    texts = {
        "corrected": "labels corrected earlier ones, which stay in the book",
        "outdated": "labels were known earlier than what the book holds and do not replace it",
        "late": "labels were known before this day and came late",
        "future": "labels lie after this day and were not taken",
        "unlabelled": "rows of the label file have no label",
    }
    out += [f"{found[kind]:,} {text}" for kind, text in texts.items() if found[kind]]
    if taken["decided"]["future"]:
        out.append(f"{taken['decided']['future']:,} decisions lie after this day: not taken")
    events = day.facts("events")
    quarantined = sum(sum(t["quarantined"].values()) for t in events["tables"].values())
    if quarantined:
        out.append(f"{quarantined:,} event rows were set aside, see quarantine/ of the store")
    if events["absent"]:
        out.append(f"no file came for: {', '.join(events['absent'])}")
    before = [date for date, _ in day.earlier("labels", None)]
    if before and before[-1] != day.date - dt.timedelta(days=1):
        out.append(f"the last day run before this one is {before[-1]}")
    return out


def judged(day: Day) -> Facts:
    """Alerts, and a delivery of the labels known by now where a crossed bound asks for it."""

    def make(folder: Path) -> Facts:
        settings = day.settings()
        numbers = read_numbers(day)
        alerts = crossed(numbers, settings.bounds)
        asked = [a["bound"] for a in alerts if a["bound"] in settings.retrain.when]
        retrain = _retrain(day, asked, folder) if asked else None
        return {
            "alerts": alerts,
            "unjudged": unjudged(numbers, settings.bounds),
            "retrain": retrain,
        }

    return place_directory(day.out("judged"), make, "day.judged")


def read_numbers(day: Day) -> Facts:
    """What the step `measured` wrote."""
    return dict(json.loads((day.out("measured") / "numbers.json").read_text(encoding="utf-8")))


def _retrain(day: Day, asked: list[str], folder: Path) -> Facts:
    """Hand in what is known by now; the gates and a second person decide on what comes of it."""
    rule = day.settings().retrain
    for date, facts in day.earlier("judged", rule.pause_days - 1):
        if facts["retrain"] and facts["retrain"]["job"]:
            why = f"labels were handed in on {date}, a pause of {rule.pause_days} days follows"
            return _kept(asked, why)
    schema = day.store().schema
    rows = training_rows(day, schema)
    bads = int(rows["label"].sum() or 0)
    if bads < rule.min_bads:
        return _kept(asked, f"{bads:,} bads are known by now, {rule.min_bads:,} are needed")
    learn, test = split(rows, rule.test_share, _backbone_until(day))
    files = {"samples": learn} if test is None else {"samples": learn, "test": test}
    paths = {name: folder / f"retrain_{name}.parquet" for name in files}
    for name, part in files.items():
        standard_frame(as_samples(part), schema).write_parquet(paths[name])
    try:
        job = _handed_in(day, paths["samples"], paths.get("test"))
    except UserError as exc:
        return _kept(asked, str(exc))
    return {
        "asked": asked, "job": job.id, "n": len(rows), "bads": bads,
        "test": 0 if test is None else len(test), "why": "",
    }  # fmt: skip


def _handed_in(day: Day, samples: Path, test: Path | None) -> Job:
    """The job of these files; the one a killed run of this day has handed in already stays it."""
    created = f"{day.end.isoformat()}+00:00"
    digest = digest_file(samples)
    for job in day.delivery.book.all():
        mine = (job.tenant, job.channel, job.created_at) == (day.tenant, day.channel, created)
        if mine and job.request["samples"]["digest"] == digest:
            return job
    return hand_in(day.delivery, day.tenant, day.channel, samples, test, MAKER, created)[0]


def _kept(asked: list[str], why: str) -> Facts:
    return {"asked": asked, "job": None, "n": 0, "bads": 0, "test": 0, "why": why}


def training_rows(day: Day, schema: Schema) -> pl.DataFrame:
    """Every label known by the end of the day: the champion's own samples and the book."""
    frames = []
    champion = day.facts("opened")["champion"]
    if champion is not None:
        request = day.delivery.book.get(champion["job"]).request
        for kind in ("samples", "test"):
            if request[kind] is not None:
                path = day.delivery.workspace.root / request[kind]["file"]
                frames.append(_labelled(read_samples(path, schema, need_labels=False), day.end))
    frames.append(label_book(day, schema))
    every = pl.concat([f.select(frames[-1].columns) for f in frames], how="vertical_relaxed")
    # The book's word is the later one.
    rows = every.unique(KEY, keep="last", maintain_order=True)
    return rows.sort("as_of", "entity_id", "channel")


def _labelled(samples: Samples, end: dt.datetime) -> pl.DataFrame:
    """Labelled rows decided before `end` whose label was known by then, as far as they say."""
    known = pl.col("label_known_at").fill_null(pl.col("as_of")) < end
    return samples.frame.filter(pl.col("label").is_not_null(), pl.col("as_of") < end, known)


def split(
    rows: pl.DataFrame, share: float, after: dt.datetime | None
) -> tuple[pl.DataFrame, pl.DataFrame | None]:
    """Rows to learn from and the latest share to measure on; None where that lacks a class.

    Args:
        rows: sorted by as_of. after: measured rows must be decided after it (what the backbone
            was trained on); None for no such moment.
    """
    count = int(len(rows) * share)
    learn, test = rows[: len(rows) - count], rows[len(rows) - count :]
    if after is not None and count and test["as_of"].min() <= after:  # type: ignore[operator]
        return rows, None
    bads = int(test["label"].sum() or 0)
    learnt = int(learn["label"].sum() or 0)
    if not (0 < bads < len(test) and 0 < learnt < len(learn)):
        return rows, None
    return learn, test


def _backbone_until(day: Day) -> dt.datetime | None:
    """The last moment the channel's backbone knows of; None for one prepared at each delivery,
    which knows nothing of its samples' days."""
    from foundation.checkpoint import load_backbone
    from foundation.shipped import SHIPPED

    config = day.delivery.registry.channel(day.tenant, day.channel)
    if config["backbone"] == SHIPPED:
        return None
    last = load_backbone(config["backbone"], network=False).run.get("last_known_us")
    return None if last is None else dt.datetime(1970, 1, 1) + dt.timedelta(microseconds=last)


def _model(day: Day, model: Facts) -> tuple[Facts, Scored]:
    """Manifest and scored rows of a release."""
    manifest = read_manifest(day.delivery.workspace.packages / model["package"])
    scored = scored_before(day, model["package"], today=True)
    assert scored is not None
    return manifest, scored


def _learned(day: Day, model: Facts) -> pl.DataFrame:
    reference(day, model)
    root = day.delivery.workspace.root
    return pl.read_parquet(root / REFERENCES / model["package"] / "learned.parquet")


def _named(model: Facts, manifest: Facts) -> Facts:
    return {
        "release": model["release"], "package": manifest["id"], "recipe": manifest["recipe"],
        "labels_known": manifest["label"].get("known_last"),
    }  # fmt: skip


def _later_labels(manifest: Facts, day: Day) -> list[str]:
    known = _moment(manifest["label"].get("known_last"))
    if known is None or known < day.end:
        return []
    return [
        f"the champion learned from labels known up to {known.date()}, after this day: figures of "
        "days before that flatter it, though none of its own samples is counted"
    ]


def _moment(text: str | None) -> dt.datetime | None:
    """An ISO moment as naive UTC."""
    if not text:
        return None
    found = dt.datetime.fromisoformat(text)
    return found if found.tzinfo is None else found.astimezone(dt.UTC).replace(tzinfo=None)


def month_figures(day: Day) -> Facts:
    """Figures of the calendar month that ends with the day."""
    first = day.date.replace(day=1)
    numbers = figures(day, first, bounds_of(first)[0])
    numbers["month"] = first.strftime("%Y-%m")
    rows, alerts, jobs = [], [], []
    for date, facts in day.earlier("measured", (day.date - first).days):
        rows.append({"date": str(date), **facts})
    rows.append({"date": str(day.date), **day.facts("measured")})
    found = [*day.earlier("judged", (day.date - first).days), (day.date, day.facts("judged"))]
    for date, facts in found:
        alerts += [{"date": str(date), **a} for a in facts["alerts"]]
        if facts["retrain"] and facts["retrain"]["job"]:
            jobs.append({"date": str(date), "job": facts["retrain"]["job"]})
    numbers |= {"days": rows, "alerts_by_day": alerts, "jobs": jobs}
    numbers["days_run"], numbers["days_of_month"] = len(rows), day.date.day
    return numbers


def _write(path: Path, data: Any) -> None:
    text = json.dumps(data, indent=1, sort_keys=True, allow_nan=False)
    path.write_text(text, encoding="utf-8")
