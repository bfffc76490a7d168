"""The monthly report: what an account used and what that costs, by vault, source and client, and day by day.

It is made of rows of usage, prices and allowances that never change for a month that is over: the same report again.
"""

import calendar
import csv
import datetime as dt
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import groupby
from typing import Any, NamedTuple

from django.core.exceptions import ValidationError
from django.db.models import Count, Max, Q, Sum

from accounts.exports import Echo, plain
from accounts.metering import CAPACITY, LEVELS, PARTS, PRICED, Meter, MeteringMode
from accounts.models import Account, MeteredDay, Usage
from accounts.pricing import (
    LINE_DECIMALS,
    TOTAL_DECIMALS,
    UNITS,
    Allowances,
    PriceBook,
    added,
    amount_of,
    is_priced,
    rounded,
    split,
)

# Until then the last day of a month may still be metered.
CLOSED_AFTER = dt.timedelta(hours=12)
_SUBJECT = ("meter", "region", "vault", "source", "host", "variant", "trial")
_CHART = (Meter.VAULT_BYTES, Meter.REPLICA_BYTES, Meter.PROTECTED_BYTES, Meter.ATTACHED_BYTES)


class Month(NamedTuple):
    """A calendar month in UTC."""

    first: dt.date
    last: dt.date

    @classmethod
    def parse(cls, text: str) -> "Month":
        """Return the month written as 2026-11. Raises ValidationError."""
        try:
            first = dt.datetime.strptime(text, "%Y-%m").replace(tzinfo=dt.UTC).date()
        except ValueError as error:
            raise ValidationError({"month": f"{text!r} is no month. Write it like 2026-11."}) from error
        return cls.of(first)

    @classmethod
    def of(cls, day: dt.date) -> "Month":
        """Return the month that a day is in."""
        return cls(day.replace(day=1), day.replace(day=calendar.monthrange(day.year, day.month)[1]))

    def __str__(self) -> str:
        return f"{self.first:%Y-%m}"

    def closed(self, now: dt.datetime) -> bool:
        """Say whether nothing of the month is metered any more."""
        end = dt.datetime.combine(self.last, dt.time(), dt.UTC) + dt.timedelta(days=1)
        return now >= end + CLOSED_AFTER


class Subject(NamedTuple):
    """What a line of a report is about."""

    meter: str
    region: str
    vault: str
    source: str
    host: str
    variant: str
    trial: bool


@dataclass(slots=True)
class Line:
    """How much one subject used, and what that costs. Quantities of levels are sums over days, in bytes and days."""

    subject: Subject
    vault_name: str = ""
    source_name: str = ""
    days: int = 0
    days_estimated: int = 0
    quantity: int = 0
    free: int = 0
    prepaid: int = 0
    priced: int = 0
    amounts: dict[str, Decimal] = field(default_factory=dict)

    def charge(self, quantity: int, book: PriceBook, day: dt.date) -> None:
        """Add what so much costs on a day."""
        price = book.price(self.subject.meter, self.subject.variant, day)
        self.priced += quantity
        if price is not None and quantity:
            cost = amount_of(quantity, price.price, self.subject.meter)
            self.amounts[price.currency] = added(self.amounts.get(price.currency, Decimal(0)), cost)


def report(account: Account, month: Month, *, now: dt.datetime) -> dict[str, Any]:
    """Return the month's report in the words of the API."""
    usage = Usage.objects.filter(account=account, day__gte=month.first, day__lte=month.last)
    days = MeteredDay.objects.filter(account=account, day__gte=month.first, day__lte=month.last)
    modes = dict(days.values_list("day", "mode"))
    book, allowances = PriceBook.of(account), Allowances.of(account)
    # Rows of hosts are many: they are looked at one by one only where they cost.
    by_day = [
        one for one in CAPACITY if one != Meter.ATTACHED_BYTES or MeteringMode.ATTACHED_CAPACITY in modes.values()
    ]
    capacity = _capacity(usage.filter(meter__in=by_day), modes, book, allowances)
    lines = [*capacity, *_others(usage.exclude(meter__in=by_day), month, book)]
    lines.sort(key=lambda line: (list(Meter).index(Meter(line.subject.meter)), line.vault_name, line.subject))
    shown = [_shown(line, len(modes)) for line in lines]
    return {
        "account": account.pk,
        "account_name": account.name,
        "month": str(month),
        "closed": month.closed(now),
        "days_metered": len(modes),
        "days_estimated": usage.filter(estimated=True).values("day").distinct().count(),
        "totals": _totals(shown),
        "lines": shown,
        "sources": _sources(usage, lines, len(modes)),
        "days": _days(usage),
    }


def _capacity(usage: Any, modes: dict[dt.date, str], book: PriceBook, allowances: Allowances) -> Iterator[Line]:
    """Yield what capacity costs: day by day, because allowances are shared by all rows of a day."""
    lines: dict[Subject, Line] = {}
    rows = usage.order_by("day", "meter", "region", "vault", "host", "pk")
    fields = ("day", *_SUBJECT, "vault_name", "source_name", "estimated", "quantity")
    for day, found in groupby(rows.values_list(*fields).iterator(), key=lambda row: row[0]):
        mode = modes.get(day, MeteringMode.STORED_BYTES)
        touched: list[tuple[Line, int]] = []
        for _, *subject, vault_name, source_name, estimated, quantity in found:
            line = lines.setdefault(Subject(*subject), Line(Subject(*subject)))
            line.vault_name, line.source_name = vault_name, source_name
            line.days, line.days_estimated = line.days + 1, line.days_estimated + estimated
            line.quantity += quantity
            if not line.subject.trial and is_priced(line.subject.meter, line.subject.variant, mode):
                touched.append((line, quantity))
        covers = allowances.cover([(line.subject.meter, quantity) for line, quantity in touched], mode=mode, day=day)
        for (line, quantity), cover in zip(touched, covers, strict=True):
            line.free, line.prepaid = line.free + cover.free, line.prepaid + cover.prepaid
            line.charge(quantity - cover.free - cover.prepaid, book, day)
    yield from lines.values()


def _others(usage: Any, month: Month, book: PriceBook) -> Iterator[Line]:
    """Yield what no allowance covers: summed by the database, from one change of prices to the next."""
    lines: dict[Subject, Line] = {}
    starts = book.changes(month.first, month.last)
    for start, end in zip(starts, [*starts[1:], month.last + dt.timedelta(days=1)], strict=True):
        rows = usage.filter(meter__in=PRICED, day__gte=start, day__lt=end).values(*_SUBJECT)
        sums = rows.annotate(
            total=Sum("quantity"),
            count=Count("day"),
            guesses=Count("day", filter=Q(estimated=True)),
            vault_label=Max("vault_name"),
            source_label=Max("source_name"),
        )
        for row in sums.order_by(*_SUBJECT):
            subject = Subject(*(row[name] for name in _SUBJECT))
            line = lines.setdefault(subject, Line(subject))
            line.vault_name, line.source_name = row["vault_label"], row["source_label"]
            line.days, line.days_estimated = line.days + row["count"], line.days_estimated + row["guesses"]
            line.quantity += int(row["total"])
            if not subject.trial and is_priced(subject.meter, subject.variant, MeteringMode.STORED_BYTES):
                line.charge(int(row["total"]), book, start)
    yield from lines.values()


def _shown(line: Line, days: int) -> dict[str, Any]:
    return {
        **line.subject._asdict(),
        "unit": UNITS[line.subject.meter][0],
        "vault_name": line.vault_name,
        "source_name": line.source_name,
        "days": line.days,
        "days_estimated": line.days_estimated,
        "quantity": line.quantity,
        "average": line.quantity // days if days and line.subject.meter in LEVELS else None,
        "free": line.free,
        "prepaid": line.prepaid,
        "priced": line.priced,
        "amounts": [
            {"currency": currency, "amount": rounded(amount)} for currency, amount in sorted(line.amounts.items())
        ],
    }


def _totals(lines: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    totals: dict[str, Decimal] = {}
    for line in lines:
        for one in line["amounts"]:
            totals[one["currency"]] = totals.get(one["currency"], Decimal(0)) + one["amount"]
    return [
        {"currency": currency, "amount": rounded(amount, TOTAL_DECIMALS)} for currency, amount in sorted(totals.items())
    ]


def _sources(usage: Any, lines: list[Line], days: int) -> list[dict[str, Any]]:
    """Return each source's part of each vault: of its bytes, and in proportion of what the vault costs."""
    parts = usage.filter(meter__in=PARTS).values("vault", "source", "region")
    sums = parts.annotate(
        unique=Sum("quantity", filter=Q(meter=Meter.SOURCE_BYTES_UNIQUE), default=0),
        shared=Sum("quantity", filter=Q(meter=Meter.SOURCE_BYTES_SHARED), default=0),
        vault_name=Max("vault_name"),
        source_name=Max("source_name"),
    )
    costs: dict[str, dict[str, Decimal]] = {}
    for line in lines:
        if line.subject.meter in (Meter.VAULT_BYTES, Meter.REPLICA_BYTES):
            kept = costs.setdefault(line.subject.vault, {})
            for currency, amount in line.amounts.items():
                kept[currency] = kept.get(currency, Decimal(0)) + rounded(amount)
    shown = []
    for vault, found in groupby(sums.order_by("vault", "source"), key=lambda row: row["vault"]):
        rows = list(found)
        weights = [int(row["unique"]) + int(row["shared"]) for row in rows]
        divided = {
            currency: split(int(amount.scaleb(LINE_DECIMALS)), weights)
            for currency, amount in sorted(costs.get(vault, {}).items())
        }
        for number, row in enumerate(rows):
            amounts = [
                {"currency": currency, "amount": Decimal(each[number]).scaleb(-LINE_DECIMALS)}
                for currency, each in divided.items()
            ]
            averages = {name: int(row.pop(name)) // days if days else 0 for name in ("unique", "shared")}
            shown.append({**row, **averages, "amounts": amounts})
    return shown


def _days(usage: Any) -> list[dict[str, Any]]:
    """Return the bytes of each day for a chart."""
    sums = usage.filter(meter__in=_CHART).values("day", "meter").annotate(total=Sum("quantity"))
    found: dict[dt.date, dict[str, int]] = {}
    for row in sums.order_by("day", "meter"):
        found.setdefault(row["day"], dict.fromkeys(_CHART, 0))[row["meter"]] = int(row["total"])
    return [{"day": day, **{str(meter): count for meter, count in counts.items()}} for day, counts in found.items()]


COLUMNS = (
    "part", "month", "account", "meter", "unit", "region", "vault", "vault_name", "source", "source_name", "host",
    "variant", "trial", "days", "days_estimated", "quantity", "average", "free", "prepaid", "priced", "currency",
    "amount",
)  # fmt: skip


def table(found: dict[str, Any]) -> Iterator[str]:
    """Yield a report as a table: lines of `charge`, which make up the total, and of `source`, their fair parts."""
    writer = csv.writer(Echo())
    yield writer.writerow(COLUMNS)
    named = {"month": found["month"], "account": found["account_name"]}
    for line in found["lines"]:
        for one in line["amounts"] or [{"currency": "", "amount": ""}]:
            yield writer.writerow(_cells({"part": "charge", **named, **line, **one}))
    for row in found["sources"]:
        for meter, name in ((Meter.SOURCE_BYTES_UNIQUE, "unique"), (Meter.SOURCE_BYTES_SHARED, "shared")):
            cells = {"part": "source", **named, **row, "meter": meter, "average": row[name]}
            yield writer.writerow(_cells(cells))
        for one in row["amounts"]:
            yield writer.writerow(_cells({"part": "source", **named, **row, **one}))


def _cells(row: dict[str, Any]) -> list[str]:
    return [plain(row.get(name)) for name in COLUMNS]
