"""Usage, reports and prices through the API: whose they are, who sets them, and the file for a spreadsheet."""

import csv
import datetime as dt
import io
from typing import Any

import pytest
import time_machine

from accounts.metering import Meter, MeteringMode
from accounts.models import Account, CustomRole, Member, MeteredDay, Usage, User
from tests.support.api import client_of, error_code
from tests.support.people import T0, join, make_account, make_user

pytestmark = pytest.mark.django_db
GIB = 1 << 30
MONTH = "2026-03"


@pytest.fixture
def account() -> Account:
    account = make_account()
    fill(account)
    return account


@pytest.fixture
def staff() -> User:
    return make_user("staff", staff=True)


def fill(account: Account) -> None:
    """Let the account have used something on the day of T0."""
    MeteredDay.objects.create(account=account, day=T0.date(), created_at=T0)
    for meter, quantity in ((Meter.VAULT_BYTES, 110 * GIB), (Meter.PROTECTED_BYTES, 500 * GIB)):
        Usage.objects.create(
            account=account, day=T0.date(), meter=meter, vault="v", vault_name="@main", quantity=quantity, created_at=T0
        )


def set_price(staff: User, **values: Any) -> Any:
    with time_machine.travel(T0, tick=False):
        wanted = {"meter": "vault_bytes", "price": "0.5", "currency": "EUR", "valid_from": "2026-03-01"} | values
        return client_of(staff).post("/api/v1/prices/", wanted)


@pytest.mark.rule("C44", "B24")
def test_a_member_reads_daily_rows_and_the_report_of_a_month(account, staff):
    assert set_price(staff).status_code == 201
    client = client_of(join(account, "viewer", "viewer"))
    rows = client.get("/api/v1/usage/", {"meter": "vault_bytes", "day__gte": "2026-03-10"}).json()["results"]
    assert [(row["day"], row["vault_name"], row["quantity"]) for row in rows] == [("2026-03-10", "@main", 110 * GIB)]
    report = client.get("/api/v1/usage/report/", {"month": MONTH}).json()
    assert report["totals"] == [{"currency": "EUR", "amount": "5.00"}]
    assert report["lines"][0]["amounts"] == [{"currency": "EUR", "amount": "5.0000"}]
    assert report["days"][0]["protected_bytes"] == 500 * GIB
    assert (report["days_metered"], report["closed"], report["account_name"]) == (1, True, "acme")


def test_the_report_is_a_table_too_in_which_nothing_is_a_formula(account):
    client = client_of(join(account, "viewer", "viewer"))
    answer = client.get("/api/v1/usage/report/", {"month": MONTH, "as": "csv"}, HTTP_ACCEPT="text/csv")
    assert answer["Content-Type"].startswith("text/csv")
    assert "usage-2026-03.csv" in answer["Content-Disposition"]
    rows = list(csv.DictReader(io.StringIO(answer.getvalue().decode())))
    assert [row["vault_name"] for row in rows] == ["'@main", "'@main"]
    assert rows[0]["average"] == str(110 * GIB)


def test_an_outsider_finds_nothing_and_a_role_without_the_privilege_may_not(account):
    fill(make_account("other"))
    outsider = client_of(make_user("outsider"))
    assert outsider.get("/api/v1/usage/").json()["results"] == []
    asked = {"account": str(account.pk)}
    assert outsider.get("/api/v1/usage/report/", asked).status_code == 404
    assert outsider.get("/api/v1/usage/report/").status_code == 404
    user = make_user("blind")
    role = CustomRole.objects.create(account=account, name="blind", privileges=["view"], created_at=T0)
    Member.objects.create(account=account, user=user, role="", custom_role=role, created_at=T0)
    assert client_of(user).get("/api/v1/usage/report/", asked).status_code == 403
    assert client_of(user).get("/api/v1/usage/").json()["results"] == []


@pytest.mark.parametrize(
    ("asked", "status"),
    [
        ({"month": "March"}, 400),
        ({"as": "xls"}, 400),
        ({"account": "nonsense"}, 404),
        ({"account": "00000000-0000-0000-0000-000000000000"}, 404),
    ],
)
def test_what_makes_no_sense_is_said(account, asked, status):
    assert client_of(join(account, "viewer", "viewer")).get("/api/v1/usage/report/", asked).status_code == status


def test_who_sees_several_accounts_names_one(account):
    root = User.objects.create_superuser("root", password="x")
    fill(make_account("other"))
    assert error_code(client_of(root).get("/api/v1/usage/report/")) == "invalid"
    answer = client_of(root).get("/api/v1/usage/report/", {"account": str(account.pk), "month": MONTH})
    assert answer.json()["account_name"] == "acme"


def test_prices_and_allowances_are_staffs_and_refusals_have_codes(account, staff):
    owner = client_of(join(account, "owner"))
    root = User.objects.create_superuser("root", password="x")
    assert owner.post("/api/v1/prices/", {}).status_code == 403
    assert set_price(staff).status_code == 201
    assert error_code(set_price(staff)) == "price_taken"
    assert error_code(set_price(staff, valid_from="2026-02-01")) == "month_closed"
    assert set_price(staff, price="-1").status_code == 400
    own = set_price(root, account=str(account.pk), valid_from="2026-04-01")
    assert own.status_code == 201
    assert len(owner.get("/api/v1/prices/").json()["results"]) == 2
    assert len(client_of(make_user("outsider")).get("/api/v1/prices/").json()["results"]) == 1
    client = client_of(root)
    with time_machine.travel(T0, tick=False):
        wanted = {"account": str(account.pk), "kind": "prepaid", "bytes": GIB, "starts_on": "2026-03-01"}
        assert error_code(client.post("/api/v1/allowances/", wanted | {"meter": "replication_bytes"})) == (
            "allowance_unfit"
        )
        made = client.post("/api/v1/allowances/", wanted | {"meter": "vault_bytes"})
        assert made.status_code == 201
        path = f"/api/v1/allowances/{made.json()['id']}/end/"
        assert owner.post(path, {"ends_on": "2026-03-20"}).status_code == 403
        assert client.post(path, {"ends_on": "2026-03-20"}).json()["ends_on"] == "2026-03-20"
        assert client.delete(f"/api/v1/prices/{own.json()['id']}/").status_code == 204


@pytest.mark.rule("C45")
def test_staff_says_whether_vaults_or_attached_disks_are_priced(account, staff):
    wanted = {"account": str(account.pk), "mode": MeteringMode.ATTACHED_CAPACITY}
    owner = client_of(join(account, "owner"))
    assert owner.post("/api/v1/usage/mode/", wanted).status_code == 403
    root = User.objects.create_superuser("root", password="x")
    assert client_of(root).post("/api/v1/usage/mode/", wanted).json()["mode"] == "ATTACHED_CAPACITY"
    account.refresh_from_db()
    assert account.metering == MeteringMode.ATTACHED_CAPACITY


def test_only_the_present_month_is_shown_unless_another_is_named(account):
    client = client_of(join(account, "viewer", "viewer"))
    with time_machine.travel(T0 + dt.timedelta(days=40), tick=False):
        report = client.get("/api/v1/usage/report/").json()
    assert (report["month"], report["lines"], report["closed"]) == ("2026-04", [], False)
