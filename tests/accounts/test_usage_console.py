"""The console's pages of usage, prices and allowances."""

import datetime as dt

import pytest
import time_machine
from django.test import Client

from accounts.metering import Meter
from accounts.models import Allowance, MeteredDay, Price, Usage, User
from tests.support.console import page, press
from tests.support.people import T0, make_account

pytestmark = pytest.mark.django_db
GIB = 1 << 30


@pytest.fixture
def console() -> Client:
    client = Client()
    client.force_login(User.objects.create_superuser("root", password="x"))
    return client


@pytest.fixture
def at_t0():
    with time_machine.travel(T0, tick=False):
        yield


@pytest.mark.rule("B24")
def test_the_report_shows_costs_by_vault_source_and_client(console, at_t0):
    account = make_account()
    Price.objects.create(meter="vault_bytes", price=1, valid_from=dt.date(2026, 3, 1), created_at=T0)
    MeteredDay.objects.create(account=account, day=dt.date(2026, 3, 9), created_at=T0)
    for meter, quantity, subject in (
        (Meter.VAULT_BYTES, 150 * GIB, {"vault": "v", "vault_name": "main-vault", "region": "north"}),
        (Meter.SOURCE_BYTES_UNIQUE, 150 * GIB, {"vault": "v", "source": "s", "source_name": "shop-database"}),
        (Meter.CLIENTS, 1, {"host": "web-host-1"}),
        (Meter.RESTORE_BYTES, 3 * GIB, {"host": "web-host-1", "variant": "LAN"}),
    ):
        Usage.objects.create(
            account=account, day=dt.date(2026, 3, 9), meter=meter, quantity=quantity, created_at=T0, **subject
        )
    shown = console.get(page("accounts_usage", "changelist"), {"month": "2026-03"}).content.decode()
    for text in ("50.00 EUR", "main-vault", "shop-database", "web-host-1", "150.0 GiB-days", "canvas", "as=csv"):
        assert text in shown
    empty = console.get(page("accounts_usage", "changelist"), {"month": "2025-01"}).content.decode()
    assert "Nothing of this month is metered yet" in empty
    wrong = console.get(page("accounts_usage", "changelist"), {"month": "soon"})
    assert "is no month" in wrong.content.decode()


def test_without_an_account_the_page_says_so(console):
    assert "no account whose usage you may see" in console.get(page("accounts_usage", "changelist")).content.decode()


def test_who_may_not_use_the_console_sees_no_report():
    user = User.objects.create_user("clerk", is_staff=True)
    client = Client()
    client.force_login(user)
    assert client.get(page("accounts_usage", "changelist")).status_code == 403


def test_prices_are_set_and_withdrawn_and_never_for_months_that_are_over(console, at_t0):
    wanted = {"meter": "clients", "price": "1.5", "currency": "EUR", "valid_from": "2026-03-05"}
    console.post(page("accounts_price", "add"), wanted)
    price = Price.objects.get()
    assert "1.5 EUR" in console.get(page("accounts_price", "changelist")).content.decode()
    refused = console.post(page("accounts_price", "add"), wanted | {"valid_from": "2026-02-05"}, follow=True)
    assert "Months that are over" in refused.content.decode()
    console.post(page("accounts_price", "delete", price.pk), {"post": "yes"})
    assert not Price.objects.exists()


@pytest.mark.rule("C46", "C47")
def test_allowances_are_added_and_ended(console, at_t0):
    account = make_account()
    wanted = {"kind": "prepaid", "account": str(account.pk), "meter": "vault_bytes", "gib": "5"}
    console.post(page("accounts_allowance", "add"), wanted | {"starts_on": "2026-03-05"})
    console.post(page("accounts_allowance", "add"), {"kind": "free", "gib": "0.5", "starts_on": "2026-03-05"})
    shown = console.get(page("accounts_allowance", "changelist")).content.decode()
    assert "5.0 GiB" in shown
    assert "in all regions together" in shown
    prepaid = Allowance.objects.get(kind="prepaid")
    press(console, "accounts_allowance", "end", prepaid.pk, ends_on="2026-03-31")
    assert prepaid.bytes == 5 * GIB
    assert "5.0 GiB" in console.get(page("accounts_allowance", "change", prepaid.pk)).content.decode()
    prepaid.refresh_from_db()
    assert prepaid.ends_on == dt.date(2026, 3, 31)


@pytest.mark.rule("C45")
def test_what_costs_is_chosen_on_the_page_of_usage(console):
    account = make_account()
    asked = {"account": str(account.pk), "mode": "ATTACHED_CAPACITY"}
    shown = console.post(page("accounts_usage", "changelist"), asked, follow=True)
    assert "that is what costs" in shown.content.decode()
    account.refresh_from_db()
    assert account.metering == "ATTACHED_CAPACITY"
    wrong = console.post(page("accounts_usage", "changelist"), asked | {"mode": "guess"}, follow=True)
    assert "Must be one of" in wrong.content.decode()
