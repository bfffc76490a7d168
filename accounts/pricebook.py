"""Prices, allowances and the mode of metering come about here. None of them changes what a month that is over costs."""

import datetime as dt

from django.core.exceptions import ValidationError
from django.db import IntegrityError, transaction

from accounts.metering import CAPACITY, AllowanceKind, MeteringMode
from accounts.models import Account, Allowance, Price
from accounts.refusals import Refused
from accounts.services import Actor, record


class MonthClosed(Refused):
    """What a month that is over costs never changes."""

    code = "month_closed"


class PriceTaken(Refused):
    """There is a price for that day already."""

    code = "price_taken"


class AllowanceUnfit(Refused):
    """Allowances cover capacity and never traffic (E43)."""

    code = "allowance_unfit"


def _check_open(day: dt.date, *, now: dt.datetime) -> None:
    first = now.date().replace(day=1)
    if day < first:
        raise MonthClosed(f"Months that are over are not charged anew. Begin on {first} or later.")


def set_price(price: Price, *, actor: Actor, now: dt.datetime) -> Price:
    """Store a price; it holds from `valid_from` until a later one. Raises MonthClosed, PriceTaken, ValidationError."""
    price.created_at = now
    price.clean_fields()
    _check_open(price.valid_from, now=now)
    try:
        with transaction.atomic():
            price.save(force_insert=True)
            told = {"meter": price.meter, "price": f"{price.price:f}", "currency": price.currency}
            record(actor, "price.set", price, account=price.account, now=now, from_day=str(price.valid_from), **told)
    except IntegrityError as error:
        raise PriceTaken(f"A price that begins on {price.valid_from} is there. Withdraw it first.") from error
    return price


@transaction.atomic
def withdraw_price(price: Price, *, actor: Actor, now: dt.datetime) -> None:
    """Take back a price that no month which is over was charged by. Raises MonthClosed."""
    _check_open(price.valid_from, now=now)
    record(actor, "price.withdraw", price, account=price.account, now=now, meter=price.meter)
    price.delete()


@transaction.atomic
def add_allowance(allowance: Allowance, *, actor: Actor, now: dt.datetime) -> Allowance:
    """Store an allowance (C46, C47). Raises AllowanceUnfit, MonthClosed, ValidationError."""
    allowance.created_at = now
    if allowance.kind == AllowanceKind.FREE:
        allowance.meter = ""
    elif allowance.meter not in CAPACITY:
        meters = ", ".join(CAPACITY)
        raise AllowanceUnfit(f"An allowance covers capacity and never traffic. Choose one of {meters}.")
    elif allowance.account is None:
        raise ValidationError({"account": "What is prepaid belongs to an account."})
    allowance.clean_fields(exclude=["meter"] if allowance.kind == AllowanceKind.FREE else None)
    if allowance.ends_on is not None and allowance.ends_on < allowance.starts_on:
        raise ValidationError({"ends_on": "It ends before it starts."})
    _check_open(allowance.starts_on, now=now)
    allowance.save(force_insert=True)
    told = {"kind": allowance.kind, "meter": allowance.meter, "bytes": allowance.bytes}
    record(actor, "allowance.add", allowance, account=allowance.account, now=now, **told)
    return allowance


@transaction.atomic
def end_allowance(allowance: Allowance, *, on: dt.date, actor: Actor, now: dt.datetime) -> Allowance:
    """Let an allowance hold for the last time on a day. Raises MonthClosed, ValidationError."""
    if on < allowance.starts_on:
        raise ValidationError({"ends_on": "It ends before it starts."})
    _check_open(on + dt.timedelta(days=1), now=now)
    allowance.ends_on = on
    allowance.save(update_fields=["ends_on"])
    record(actor, "allowance.end", allowance, account=allowance.account, now=now, ends_on=str(on))
    return allowance


@transaction.atomic
def set_metering(account: Account, mode: str, *, actor: Actor, now: dt.datetime) -> Account:
    """Say what of the account's capacity is priced, from the next day that is metered (C45). Raises ValidationError."""
    if mode not in MeteringMode.values:
        raise ValidationError({"metering": f"Must be one of {', '.join(MeteringMode.values)}."})
    account.metering = mode
    account.save(update_fields=["metering"])
    record(actor, "account.metering", account, account=account, now=now, mode=mode)
    return account
