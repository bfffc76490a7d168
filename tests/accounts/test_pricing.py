"""Prices, allowances and reports: exact decimals, the free pool over all regions, and months that stay as they are."""

import csv
import datetime as dt
import io
from decimal import Decimal
from typing import Any

import pytest
from django.core.exceptions import ValidationError
from django.db import IntegrityError, connection, transaction
from django.test.utils import CaptureQueriesContext
from hypothesis import given
from hypothesis import strategies as st

from accounts import chargeback, pricebook, pricing
from accounts.chargeback import Month
from accounts.metering import AllowanceKind, Meter, MeteringMode, NetworkClass
from accounts.models import Account, Allowance, Event, MeteredDay, Price, Usage
from accounts.pricing import GIB
from accounts.services import SERVICE
from tests.support.people import T0, make_account

DAY = T0.date()  # 2026-03-10
MARCH = Month.of(DAY)
LATER = dt.datetime(2026, 4, 2, tzinfo=dt.UTC)


@pytest.fixture
def account(db) -> Account:
    return make_account()


def used(account: Account, meter: Meter, quantity: int, *, day: dt.date = DAY, **values: Any) -> Usage:
    mode = values.pop("mode", MeteringMode.STORED_BYTES)
    MeteredDay.objects.get_or_create(account=account, day=day, defaults={"created_at": T0, "mode": mode})
    return Usage.objects.create(account=account, meter=meter, quantity=quantity, day=day, created_at=T0, **values)


def priced(meter: Meter, price: str, **values: Any) -> Price:
    wanted = {"valid_from": dt.date(2026, 3, 1), "currency": "EUR"} | values
    return pricebook.set_price(Price(meter=meter, price=Decimal(price), **wanted), actor=SERVICE, now=T0)


def allowed(account: Account | None, size: int, **values: Any) -> Allowance:
    wanted = {"kind": AllowanceKind.PREPAID, "meter": Meter.VAULT_BYTES, "starts_on": dt.date(2026, 3, 1)} | values
    return pricebook.add_allowance(Allowance(account=account, bytes=size, **wanted), actor=SERVICE, now=T0)


def no_free(account: Account) -> None:
    allowed(account, 0, kind=AllowanceKind.FREE)


def report(account: Account) -> dict[str, Any]:
    return chargeback.report(account, MARCH, now=LATER)


def total(account: Account) -> Decimal | None:
    found = report(account)["totals"]
    return found[0]["amount"] if found else None


def line(account: Account, **wanted: Any) -> Any:
    (found,) = [one for one in report(account)["lines"] if wanted.items() <= one.items()]
    return found


@given(st.integers(0, 10**15), st.lists(st.integers(0, 10**12), min_size=1, max_size=20))
def test_a_whole_is_split_in_proportion_and_nothing_is_lost(whole, weights):
    parts = pricing.split(whole, weights)
    assert sum(parts) == (whole if sum(weights) else 0)
    for part, weight in zip(parts, weights, strict=True):
        assert abs(part * sum(weights) - whole * weight) <= sum(weights)


def test_amounts_are_exact_until_a_line_is_rounded():
    third = pricing.amount_of(1, Decimal("0.000000000001"), Meter.VAULT_BYTES)
    assert third * 2**30 == Decimal("0.000000000001")
    assert pricing.rounded(Decimal("0.00005")) == Decimal("0.0000")  # half to even
    assert pricing.rounded(Decimal("0.00015")) == Decimal("0.0002")


@pytest.mark.rule("B14")
@pytest.mark.rule("B24")
def test_clients_and_vault_bytes_are_charged_apart_at_the_price_of_the_day(account):
    no_free(account)
    priced(Meter.VAULT_BYTES, "0.01")
    priced(Meter.VAULT_BYTES, "0.02", valid_from=DAY + dt.timedelta(days=1))
    priced(Meter.CLIENTS, "1.5")
    for back in range(2):
        day = DAY + dt.timedelta(days=back)
        used(account, Meter.VAULT_BYTES, 100 * GIB, vault="v", vault_name="main", day=day)
        used(account, Meter.CLIENTS, 1, host="web1", day=day)
    assert line(account, meter=Meter.VAULT_BYTES)["amounts"] == [{"currency": "EUR", "amount": Decimal("3.0000")}]
    assert line(account, meter=Meter.CLIENTS)["amounts"] == [{"currency": "EUR", "amount": Decimal("3.0000")}]
    assert total(account) == Decimal("6.00")


@pytest.mark.rule("C46")
def test_a_hundred_gib_are_free_over_all_regions_together_and_what_is_above_is_charged(account):
    priced(Meter.VAULT_BYTES, "1")
    used(account, Meter.VAULT_BYTES, 90 * GIB, region="north", vault="a")
    used(account, Meter.VAULT_BYTES, 60 * GIB, region="south", vault="b")
    assert [line(account, vault=vault)["free"] for vault in "ab"] == [60 * GIB, 40 * GIB]
    assert [line(account, vault=vault)["priced"] for vault in "ab"] == [30 * GIB, 20 * GIB]
    assert total(account) == Decimal("50.00")
    other = make_account("other")
    used(other, Meter.VAULT_BYTES, 100 * GIB, vault="c")
    assert total(other) is None  # each account has its own


def test_the_free_allowance_of_an_account_goes_before_that_of_the_installation(account):
    priced(Meter.VAULT_BYTES, "1")
    used(account, Meter.VAULT_BYTES, 100 * GIB, vault="a")
    allowed(None, 10 * GIB, kind=AllowanceKind.FREE)
    assert total(account) == Decimal("90.00")
    allowed(account, 20 * GIB, kind=AllowanceKind.FREE)
    assert total(account) == Decimal("80.00")


@pytest.mark.rule("C47")
def test_what_is_prepaid_is_used_up_before_anything_is_priced(account):
    no_free(account)
    priced(Meter.VAULT_BYTES, "1")
    allowed(account, 30 * GIB)
    allowed(account, 10 * GIB)
    used(account, Meter.VAULT_BYTES, 50 * GIB, vault="a")
    used(account, Meter.VAULT_BYTES, 50 * GIB, vault="a", day=DAY + dt.timedelta(days=1))
    found = line(account, vault="a")
    assert (found["prepaid"], found["priced"], total(account)) == (80 * GIB, 20 * GIB, Decimal("20.00"))


@pytest.mark.rule("C47")
@pytest.mark.rule("E43")
def test_nothing_that_is_free_or_prepaid_is_used_for_replication_traffic(account):
    priced(Meter.REPLICATION_BYTES, "2")
    allowed(account, 1000 * GIB)
    used(account, Meter.REPLICATION_BYTES, 3 * GIB, vault="target", variant="source")
    assert total(account) == Decimal("6.00")
    with pytest.raises(pricebook.AllowanceUnfit) as refused:
        allowed(account, GIB, meter=Meter.REPLICATION_BYTES)
    assert refused.value.code == "allowance_unfit"


@pytest.mark.rule("E43")
@pytest.mark.rule("E47")
def test_a_replica_costs_its_size_and_may_be_prepaid(account):
    priced(Meter.REPLICA_BYTES, "1")
    used(account, Meter.REPLICA_BYTES, 70 * GIB, vault="target")
    assert total(account) == Decimal("70.00")  # the free pool is for the vaults themselves
    allowed(account, 30 * GIB, meter=Meter.REPLICA_BYTES)
    assert total(account) == Decimal("40.00")


@pytest.mark.rule("B27")
@pytest.mark.rule("E44")
@pytest.mark.rule("E45")
def test_only_what_was_restored_over_the_internet_is_priced(account):
    priced(Meter.RESTORE_BYTES, "1")
    for network in NetworkClass:
        used(account, Meter.RESTORE_BYTES, 5 * GIB, variant=network)
    assert line(account, variant="INTERNET")["priced"] == 5 * GIB
    assert total(account) == Decimal("5.00")


@pytest.mark.rule("C45")
def test_the_mode_of_the_day_says_whether_vaults_or_attached_disks_are_priced(account):
    priced(Meter.VAULT_BYTES, "1")
    priced(Meter.ATTACHED_BYTES, "0.1")
    for back, mode in enumerate(MeteringMode):
        day = DAY + dt.timedelta(days=back)
        used(account, Meter.VAULT_BYTES, 150 * GIB, vault="a", day=day, mode=mode)
        used(account, Meter.ATTACHED_BYTES, 500 * GIB, host="web1", day=day, mode=mode)
    assert line(account, meter=Meter.VAULT_BYTES)["priced"] == 50 * GIB
    assert line(account, meter=Meter.ATTACHED_BYTES)["priced"] == 400 * GIB
    assert total(account) == Decimal("90.00")


@pytest.mark.rule("A8")
def test_what_a_trial_used_is_in_the_report_costs_nothing_and_takes_nothing_of_the_free_pool(account):
    priced(Meter.VAULT_BYTES, "1")
    used(account, Meter.VAULT_BYTES, 500 * GIB, vault="trial", trial=True)
    used(account, Meter.VAULT_BYTES, 110 * GIB, vault="full")
    assert line(account, vault="trial")["quantity"] == 500 * GIB
    assert line(account, vault="trial")["amounts"] == []
    assert total(account) == Decimal("10.00")


@pytest.mark.rule("A2")
def test_requests_are_priced_by_verb_in_tens_of_thousands(account):
    priced(Meter.REQUESTS, "0.05")
    priced(Meter.REQUESTS, "0.5", variant="LIST")
    used(account, Meter.REQUESTS, 20_000, variant="GET", source="s")
    used(account, Meter.REQUESTS, 5_000, variant="LIST", source="s")
    assert line(account, variant="GET")["amounts"][0]["amount"] == Decimal("0.1000")
    assert line(account, variant="LIST")["amounts"][0]["amount"] == Decimal("0.2500")


def test_an_accounts_own_price_goes_before_any_of_the_installation(account):
    priced(Meter.REQUESTS, "9", variant="GET")
    priced(Meter.REQUESTS, "1", account=account)
    used(account, Meter.REQUESTS, 10_000, variant="GET")
    assert total(account) == Decimal("1.00")


def test_currencies_are_never_added_to_each_other(account):
    priced(Meter.CLIENTS, "1")
    priced(Meter.REQUESTS, "1", currency="USD")
    used(account, Meter.CLIENTS, 1, host="a")
    used(account, Meter.REQUESTS, 10_000)
    assert [one["currency"] for one in report(account)["totals"]] == ["EUR", "USD"]


def test_each_source_is_told_its_part_of_what_its_vault_costs(account):
    no_free(account)
    priced(Meter.VAULT_BYTES, "0.1")
    used(account, Meter.VAULT_BYTES, 100 * GIB, vault="v")
    used(account, Meter.SOURCE_BYTES_UNIQUE, 60 * GIB, vault="v", source="one", source_name="web1")
    used(account, Meter.SOURCE_BYTES_SHARED, 15 * GIB, vault="v", source="one", source_name="web1")
    used(account, Meter.SOURCE_BYTES_SHARED, 15 * GIB, vault="v", source="two", source_name="web2")
    found = {one["source_name"]: one for one in report(account)["sources"]}
    assert (found["web1"]["unique"], found["web1"]["shared"]) == (60 * GIB, 15 * GIB)
    assert sum(one["amounts"][0]["amount"] for one in found.values()) == Decimal("10.0000")
    assert found["web2"]["amounts"][0]["amount"] == Decimal("1.6667")
    assert total(account) == Decimal("10.00")  # parts are no charge of their own


def test_a_month_that_is_over_stays_as_it_was_charged(account):
    no_free(account)
    priced(Meter.VAULT_BYTES, "1")
    used(account, Meter.VAULT_BYTES, 10 * GIB, vault="v")
    before = report(account)
    assert before["closed"]
    late: Any = {"actor": SERVICE, "now": LATER}
    for change in (
        lambda: pricebook.set_price(Price(meter=Meter.CLIENTS, price=Decimal(1), valid_from=MARCH.last), **late),
        lambda: pricebook.withdraw_price(Price.objects.get(), **late),
        lambda: pricebook.add_allowance(Allowance(account=account, bytes=GIB, starts_on=MARCH.first), **late),
        lambda: pricebook.end_allowance(Allowance.objects.get(), on=MARCH.first, **late),
    ):
        with pytest.raises(pricebook.MonthClosed) as refused:
            change()
        assert refused.value.code == "month_closed"
    pricebook.set_price(Price(meter=Meter.VAULT_BYTES, price=Decimal(9), valid_from=LATER.date()), **late)
    pricebook.set_metering(account, MeteringMode.ATTACHED_CAPACITY, **late)
    pricebook.end_allowance(Allowance.objects.get(), on=LATER.date(), **late)
    assert report(account) == before
    assert not Month.of(LATER.date()).closed(LATER)


def test_changes_of_prices_and_allowances_stand_in_the_audit_trail(account):
    price = priced(Meter.CLIENTS, "1", account=account)
    allowance = allowed(account, GIB)
    pricebook.end_allowance(allowance, on=DAY, actor=SERVICE, now=T0)
    pricebook.withdraw_price(price, actor=SERVICE, now=T0)
    pricebook.set_metering(account, MeteringMode.ATTACHED_CAPACITY, actor=SERVICE, now=T0)
    told = set(Event.objects.values_list("action", flat=True))
    assert told == {"price.set", "allowance.add", "allowance.end", "price.withdraw", "account.metering"}


def test_what_makes_no_sense_is_refused_with_what_to_do(account):
    priced(Meter.CLIENTS, "1")
    with pytest.raises(pricebook.PriceTaken) as taken:
        priced(Meter.CLIENTS, "2")
    assert taken.value.code == "price_taken"
    for wrong in (
        lambda: priced(Meter.VAULT_BYTES, "-1"),
        lambda: priced(Meter.SOURCE_BYTES_UNIQUE, "1"),
        lambda: allowed(None, GIB),
        lambda: allowed(account, GIB, ends_on=dt.date(2026, 2, 1)),
        lambda: pricebook.end_allowance(allowed(account, GIB, starts_on=DAY), on=MARCH.first, actor=SERVICE, now=T0),
        lambda: pricebook.set_metering(account, "by_feel", actor=SERVICE, now=T0),
        lambda: Month.parse("March"),
    ):
        with pytest.raises(ValidationError):
            wrong()


def test_a_row_of_usage_is_there_once(account):
    used(account, Meter.CLIENTS, 1, host="web1")
    with pytest.raises(IntegrityError), transaction.atomic():
        used(account, Meter.CLIENTS, 1, host="web1")


def test_the_table_has_a_row_for_each_line_and_no_formulas(account):
    priced(Meter.VAULT_BYTES, "1")
    used(account, Meter.VAULT_BYTES, 101 * GIB, vault="v", vault_name="=cmd()")
    used(account, Meter.SOURCE_BYTES_UNIQUE, GIB, vault="v", source="s", source_name="+web")
    rows = list(csv.DictReader(io.StringIO("".join(chargeback.table(report(account))))))
    assert {row["part"] for row in rows} == {"charge", "source"}
    assert rows[0]["vault_name"] == "'=cmd()"
    assert (rows[0]["amount"], rows[0]["currency"]) == ("1.0000", "EUR")
    assert rows[-1]["source_name"] == "'+web"


def test_the_number_of_queries_of_a_report_does_not_grow_with_the_sources(account):
    priced(Meter.VAULT_BYTES, "1")

    def count() -> int:
        with CaptureQueriesContext(
            connection,
        ) as queries:
            report(account)
        return len(queries)

    used(account, Meter.PROTECTED_BYTES, GIB, source="first")
    few = count()
    for number in range(50):
        used(account, Meter.PROTECTED_BYTES, GIB, source=str(number))
        used(account, Meter.VAULT_BYTES, GIB, vault=str(number))
    assert count() == few
