"""What usage costs: which price holds on a day, what allowances cover, how a whole is split. Exact until rounded.

A capacity costs its price for each GiB and day, traffic for each GiB, requests for each ten thousand, a client for each
day. Amounts are exact decimals; a line of a report is rounded once, half to even, to LINE_DECIMALS, and what a
report says in all is the sum of its rounded lines, rounded to TOTAL_DECIMALS.
"""

import datetime as dt
import decimal
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import NamedTuple

from django.db.models import Q

from accounts.metering import CAPACITY, AllowanceKind, Meter, MeteringMode, NetworkClass
from accounts.models import Account, Allowance, Price

GIB = 1 << 30
LINE_DECIMALS, TOTAL_DECIMALS = 4, 2
# Free for every account, unless the installation or the account has a free allowance of its own (C46).
FREE_BYTES = 100 * GIB
# Room for 2^63 bytes over 2^30 at a price of 24 digits, exactly.
_EXACT = decimal.Context(prec=100, rounding=decimal.ROUND_HALF_EVEN)
_DAILY, _TRAFFIC = "GiB and day", "GiB"
UNITS: dict[str, tuple[str, int]] = {
    Meter.VAULT_BYTES: (_DAILY, GIB),
    Meter.REPLICA_BYTES: (_DAILY, GIB),
    Meter.PROTECTED_BYTES: (_DAILY, GIB),
    Meter.ATTACHED_BYTES: (_DAILY, GIB),
    Meter.SOURCE_BYTES_UNIQUE: (_DAILY, GIB),
    Meter.SOURCE_BYTES_SHARED: (_DAILY, GIB),
    Meter.CLIENTS: ("client and day", 1),
    Meter.REQUESTS: ("10,000 requests", 10_000),
    Meter.RESTORE_BYTES: (_TRAFFIC, GIB),
    Meter.REPLICATION_BYTES: (_TRAFFIC, GIB),
}
# In the other mode this capacity is measured and not priced (C45).
_UNPRICED = {
    MeteringMode.STORED_BYTES: {Meter.ATTACHED_BYTES},
    MeteringMode.ATTACHED_CAPACITY: {Meter.VAULT_BYTES},
}


def amount_of(quantity: int, price: Decimal, meter: str) -> Decimal:
    """Return exactly what so much of a meter costs."""
    with decimal.localcontext(_EXACT):
        return Decimal(quantity) / UNITS[meter][1] * price


def added(first: Decimal, second: Decimal) -> Decimal:
    """Return the exact sum."""
    return _EXACT.add(first, second)


def rounded(amount: Decimal, decimals: int = LINE_DECIMALS) -> Decimal:
    """Return the amount as it is shown and added up."""
    return amount.quantize(Decimal(1).scaleb(-decimals), context=_EXACT)


def split(whole: int, weights: Sequence[int]) -> list[int]:
    """Divide a whole number in proportion, exactly: the parts add up, and each is less than one off."""
    total, seen, parts, given = sum(weights), 0, [], 0
    for weight in weights:
        seen += weight
        upto = whole * seen // total if total else 0
        parts.append(upto - given)
        given = upto
    return parts


def is_priced(meter: str, variant: str, mode: str) -> bool:
    """Say whether a meter costs at all: of restores only the Internet (B27), of capacity what the mode says (C45)."""
    if meter == Meter.RESTORE_BYTES:
        return variant == NetworkClass.INTERNET
    return meter not in _UNPRICED[MeteringMode(mode)]


class PriceBook:
    """The prices of one account and of the installation, read once."""

    def __init__(self, prices: Iterable[Price]) -> None:
        self._prices: dict[tuple[bool, str, str], list[tuple[dt.date, Price]]] = {}
        for price in sorted(prices, key=lambda one: one.valid_from):
            key = (price.account_id is not None, price.meter, price.variant)
            self._prices.setdefault(key, []).append((price.valid_from, price))

    @classmethod
    def of(cls, account: Account) -> "PriceBook":
        """Read the prices that may hold for an account."""
        return cls(Price.objects.filter(Q(account=account) | Q(account=None)))

    def price(self, meter: str, variant: str, day: dt.date) -> Price | None:
        """Return what holds on a day: the account's own before the installation's, the variant's before any's."""
        for own in (True, False):
            for one in dict.fromkeys((variant, "")):
                listed = self._prices.get((own, meter, one), [])
                at = bisect_right(listed, day, key=lambda entry: entry[0])
                if at:
                    return listed[at - 1][1]
        return None

    def changes(self, first: dt.date, last: dt.date) -> list[dt.date]:
        """Return the days from `first` to `last` on which a price begins, `first` too."""
        days = {day for listed in self._prices.values() for day, _ in listed if first < day <= last}
        return [first, *sorted(days)]


class Cover(NamedTuple):
    """How much of each of a day's capacities is free and prepaid."""

    free: int
    prepaid: int


class Allowances:
    """The allowances of one account and of the installation, read once."""

    def __init__(self, allowances: Iterable[Allowance]) -> None:
        self._allowances = sorted(allowances, key=lambda one: (one.starts_on, one.created_at, str(one.pk)))

    @classmethod
    def of(cls, account: Account) -> "Allowances":
        """Read the allowances that may hold for an account."""
        return cls(Allowance.objects.filter(Q(account=account) | Q(account=None)))

    def free(self, day: dt.date) -> int:
        """Return the bytes that are free on a day, in all regions together (C46)."""
        found = [one for one in self._on(day) if one.kind == AllowanceKind.FREE]
        own = [one for one in found if one.account_id is not None]
        newest = (own or found)[-1:]
        return newest[0].bytes if newest else FREE_BYTES

    def prepaid(self, meter: str, day: dt.date) -> int:
        """Return the bytes of a meter that are paid for already on a day (C47)."""
        return sum(one.bytes for one in self._on(day) if one.kind == AllowanceKind.PREPAID and one.meter == meter)

    def cover(self, quantities: Sequence[tuple[str, int]], *, mode: str, day: dt.date) -> list[Cover]:
        """Say what of a day's priced capacities (meter, bytes) is covered: the free pool first, then prepaid bytes.

        The free pool is for what the mode prices, vaults or disks; rows take from either in proportion to their size.
        """
        pooled = Meter.ATTACHED_BYTES if mode == MeteringMode.ATTACHED_CAPACITY else Meter.VAULT_BYTES
        covers = [Cover(0, 0)] * len(quantities)
        for meter in CAPACITY:
            rows = [number for number, (one, _) in enumerate(quantities) if one == meter]
            sizes = [quantities[number][1] for number in rows]
            free = min(self.free(day), sum(sizes)) if meter == pooled else 0
            left = [size - part for size, part in zip(sizes, split(free, sizes), strict=True)]
            prepaid = split(min(self.prepaid(meter, day), sum(left)), left)
            for number, size, rest, paid in zip(rows, sizes, left, prepaid, strict=True):
                covers[number] = Cover(size - rest, paid)
        return covers

    def _on(self, day: dt.date) -> list[Allowance]:
        return [one for one in self._allowances if one.starts_on <= day and (one.ends_on is None or day <= one.ends_on)]
