"""Invented contents of reports, and a reader of their pages."""

from __future__ import annotations

from datetime import UTC, datetime
from html.parser import HTMLParser

import numpy as np

from finetune.reasons import Reason
from finetune.report import (
    EvaluationFacts,
    ExampleFacts,
    ForecastFacts,
    LadderRow,
    ReasonGroupFacts,
    ReportContent,
    SampleFacts,
    VariableFacts,
    WindowFacts,
)

DAY = 86_400_000_000


def moments(n: int, start: str, days: int, seed: int = 0) -> np.ndarray:
    first = np.datetime64(start, "us").astype(np.int64)
    return first + np.random.default_rng(seed).integers(0, days, n) * DAY


def scored(n: int, noise: float = 1.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, a good score and a worse one on the same rows."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=n)
    y = (rng.random(n) < 1 / (1 + np.exp(1.3 - 1.4 * z))).astype(float)
    first, second = (1 / (1 + np.exp(1.3 - z - k * noise * rng.normal(size=n))) for k in (0.5, 2))
    return y, first, second


def full_content() -> ReportContent:
    y0, dev, _ = scored(240, seed=1)
    y0[:3] = np.nan
    y, good, poor = scored(600, seed=2)
    t = moments(600, "2017-09-01", 119, 3)
    realised = (np.random.default_rng(5).random(600) < good).astype(float)
    realised[::3] = np.nan
    return ReportContent(
        title="Loan default",
        channel="app",
        package_id="app-1",
        recipe="forecast",
        created_at=datetime(2018, 1, 2, 3, 4, tzinfo=UTC),
        why="Lowest variance of the best.",
        sample=SampleFacts(
            y=y0,
            as_of_us=moments(240, "2017-03-01", 150, 4),
            channel=["a", "b", "b"] * 80,
            thin=np.arange(240) % 8 == 0,
            dropped={"duplicate": 3},
            ignored_columns=["note"],
            approved_only=True,
        ),
        label_meaning="late by 30 days",
        windows=[WindowFacts(name="test", start="2017-09-01", end="2017-12-31")],
        ladder=[
            LadderRow(
                name="gbdt",
                cv_log_loss=0.5,
                gap=0.01,
                gap_se=0.004,
                auc=0.7,
                auc_low=0.6,
                auc_high=0.8,
                ks=0.3,
                ks_low=0.2,
                ks_high=0.4,
                test_auc=0.71,
                test_ks=0.31,
            ),
            LadderRow(
                name="forecast",
                cv_log_loss=0.49,
                auc=0.72,
                auc_low=0.6,
                auc_high=0.8,
                ks=0.33,
                ks_low=0.2,
                ks_high=0.4,
                test_auc=0.74,
                test_ks=0.33,
            ),
            LadderRow(name="lora", status="skipped", reason="too few bads"),
        ],
        ladder_basis="pooled out-of-fold, n = 237",
        evaluation=EvaluationFacts(
            name="test file",
            kind="test",
            y=y,
            as_of_us=t,
            score=good,
            baseline=poor,
            out_of_time=True,
            reference_score=dev,
        ),
        forecasts=[
            ForecastFacts(
                name="late_31d", title="late within 31 days", values=good, realised=realised
            ),
            ForecastFacts(name="silence_31d", title="silence within 31 days", values=poor),
        ],
        forecast_basis="test file",
        forecast_y=y,
        variables=[
            VariableFacts(
                name="statement.status", block="aggregate", missing=0.1, iv=0.4, ks=0.3, psi=0.02
            ),
            VariableFacts(name="age", iv=None),
        ],
        reasons=[
            ReasonGroupFacts(title="late within 31 days", importance=0.6),
            ReasonGroupFacts(title="age", importance=0.2),
        ],
        examples=[
            ExampleFacts(
                band=b,
                score=s,
                points=600,
                reasons=[Reason("forecast.late_31d", "late within 31 days", "41 %", e)],
            )
            for b, s, e in (("approved", 0.05, -0.7), ("middle", 0.2, 0.1), ("refused", 0.7, 1.1))
        ],
        limits=["A limit of our own."],
        lineage={"store version": "12", "seeds": "7"},
        resamples=40,
    )


def small_content(bads: int = 12, n: int = 60) -> ReportContent:
    """One month, no test, no forecasts, no ladder."""
    y = np.zeros(n)
    y[:bads] = 1
    score = np.clip(0.15 + 0.2 * y + 0.1 * np.random.default_rng(0).random(n), 0, 1)
    t = moments(n, "2020-02-01", 20)
    return ReportContent(
        title="Small",
        channel="c",
        package_id="p",
        created_at=datetime(2020, 3, 1, tzinfo=UTC),
        recipe="query",
        why="Few bads.",
        sample=SampleFacts(y=y, as_of_us=t),
        resamples=40,
        evaluation=EvaluationFacts(
            name="out-of-fold predictions", kind="out-of-fold", y=y, as_of_us=t, score=score
        ),
    )


class Page(HTMLParser):
    """Tags, addresses and visible text of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.handlers: list[str] = []
        self.words: list[str] = []
        self.plots: list[str] = []
        self._raw = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._raw = tag if tag in ("script", "style") else ""
        for name, value in attrs:
            if name in ("src", "href", "srcset", "data", "action", "poster"):
                self.addresses.append(value or "")
            if name.startswith("on"):
                self.handlers.append(name)
            if name == "data-figure":
                self.plots.append(value or "")

    def handle_endtag(self, tag: str) -> None:
        self._raw = ""

    def handle_data(self, data: str) -> None:
        if not self._raw:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())
