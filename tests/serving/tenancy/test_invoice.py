"""The month as a table, with and without prices."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pytest

from foundation.errors import ConfigError, UserError
from serving.tenancy.invoice import csv_text, load_prices, month_days, month_lines, table
from serving.tenancy.metering import Usage

USED = [
    Usage("cards", "2027-01-01", "score", 1000),
    Usage("cards", "2027-01-02", "score", 205),
    Usage("cards", "2027-01-02", "label", 300),
    Usage("loans", "2027-01-02", "row", 7),
]


def test_lines_and_sum(tmp_path: Path) -> None:
    file = tmp_path / "prices.yaml"
    file.write_text("currency: CNY\nscore: '0.125'\nrow: '0.05'\n")
    prices = load_prices(file)
    lines = month_lines(USED, prices)
    assert [(li.channel, li.kind, li.units, li.amount) for li in lines] == [
        ("cards", "score", 1205, Decimal("150.62")),
        ("cards", "label", 300, Decimal("0.00")),
        ("loans", "row", 7, Decimal("0.35")),
    ]
    shown = table(lines, prices)
    assert shown[0].split() == ["channel", "kind", "units", "price", "amount"]
    assert shown[-1].split() == ["total", "150.97", "CNY"]
    assert table(month_lines(USED))[1].split() == ["cards", "score", "1,205"]
    assert table([])[0].split() == ["channel", "kind", "units"]
    assert csv_text(USED, "acme").splitlines()[1] == "acme,cards,2027-01-01,score,1000"


@pytest.mark.parametrize("text", ["currency: CNY\nscore: '-1'", "currency: CNY\nscore: cheap"])
def test_wrong_prices(tmp_path: Path, text: str) -> None:
    (tmp_path / "p.yaml").write_text(text)
    with pytest.raises(ConfigError, match="'score' must be a decimal text"):
        load_prices(tmp_path / "p.yaml")


def test_months() -> None:
    assert month_days("2027-12") == ("2027-12-01", "2028-01-01")
    with pytest.raises(UserError, match="write it as 2027-01"):
        month_days("January")
