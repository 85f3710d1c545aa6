"""A tenant's month as a table: what each channel used and, with prices, what it costs."""

from __future__ import annotations

import csv
import datetime as dt
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Decimal, InvalidOperation
from pathlib import Path

from foundation import strict
from foundation.errors import ConfigError, UserError
from serving.tenancy.metering import KINDS, Usage

_CENT = Decimal("0.01")


class Prices(strict.Strict):
    """Price of one unit of each kind, as decimal texts so that nothing is rounded on the way."""

    currency: str
    score: str = "0"
    row: str = "0"
    sample: str = "0"
    label: str = "0"


@dataclass(frozen=True)
class Line:
    """One line of the table; price and amount are None without prices."""

    channel: str
    kind: str
    units: int
    price: Decimal | None = None
    amount: Decimal | None = None


def load_prices(path: str | Path) -> Prices:
    """Prices from a YAML file.

    Raises:
        ConfigError: unknown keys, or a price that is no decimal text of 0 or more.
    """
    prices = strict.load(Prices, path)
    for kind in KINDS:
        try:
            fine = Decimal(getattr(prices, kind)) >= 0
        except InvalidOperation:
            fine = False
        if not fine:
            raise ConfigError(f"{path}: '{kind}' must be a decimal text such as '0.012'")
    return prices


def month_days(month: str) -> tuple[str, str]:
    """First day of a month such as 2027-01 and of the month after.

    Raises:
        UserError: anything else.
    """
    try:
        first = dt.datetime.strptime(month, "%Y-%m").date()
    except ValueError:
        raise UserError(f"month '{month}': write it as 2027-01") from None
    return first.isoformat(), (first + dt.timedelta(days=32)).replace(day=1).isoformat()


def month_lines(used: Sequence[Usage], prices: Prices | None = None) -> list[Line]:
    """A line for each channel and kind, in the order of the kinds."""
    units: Counter[tuple[str, str]] = Counter()
    for row in used:
        units[row.channel, row.kind] += row.units
    lines = []
    for channel, kind in sorted(units, key=lambda key: (key[0], KINDS.index(key[1]))):
        count = units[channel, kind]
        if prices is None:
            lines.append(Line(channel, kind, count))
            continue
        price = Decimal(getattr(prices, kind))
        amount = (price * count).quantize(_CENT, ROUND_HALF_EVEN)
        lines.append(Line(channel, kind, count, price, amount))
    return lines


def table(lines: Sequence[Line], prices: Prices | None = None) -> list[str]:
    """The lines for people, with their sum."""
    head: tuple[str, ...] = ("channel", "kind", "units") + (("price", "amount") if prices else ())
    rows: list[tuple[str, ...]] = [head]
    for line in lines:
        row: tuple[str, ...] = (line.channel or "-", line.kind, f"{line.units:,}")
        rows.append(row + ((str(line.price), f"{line.amount:,}") if prices else ()))
    if prices:
        total = sum((line.amount for line in lines if line.amount is not None), Decimal(0))
        rows.append(("total", "", "", "", f"{total:,} {prices.currency}"))
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    shown = []
    for row in rows:
        cells = [
            text.ljust(width) if i < 2 else text.rjust(width)
            for i, (text, width) in enumerate(zip(row, widths, strict=True))
        ]
        shown.append("  ".join(cells).rstrip())
    return shown


def csv_text(used: Sequence[Usage], tenant: str) -> str:
    """Every day as CSV: tenant, channel, day, kind, units."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(("tenant", "channel", "day", "kind", "units"))
    writer.writerows((tenant, row.channel, row.day, row.kind, row.units) for row in used)
    return out.getvalue()
