"""The audit trail only grows, and whoever changes it behind the service's back is found out."""

import datetime as dt
import hashlib
import io
import json
import threading
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import DatabaseError, connection, transaction
from django.db.migrations.executor import MigrationExecutor

from accounts import chain, guards, services
from accounts.models import Account, ChainHead, Event, Link, TrailFixed
from accounts.services import SERVICE, Actor
from tests.support.people import T0, make_account, make_user
from tests.support.trail import guards_off, sql

pytestmark = pytest.mark.django_db(transaction=True)


def grow(count: int, account: Account | None = None) -> list[Event]:
    account = account or make_account()
    return [
        services.record(SERVICE, f"test.{number}", account, account=account, now=T0, number=number)
        for number in range(1, count + 1)
    ]


def verified() -> str:
    out = io.StringIO()
    call_command("audit", "verify", stdout=out)
    return out.getvalue().splitlines()[-1]


def test_each_event_is_linked_to_the_one_before_as_soon_as_it_is_committed():
    events = grow(3)
    assert list(Link.objects.values_list("sequence", "event_id")) == [(n, e.pk) for n, e in enumerate(events, 1)]
    found = chain.verify_chain()
    assert (found.intact, found.guarded, found.sequence) == (True, True, 3)
    assert found.digest == Link.objects.get(sequence=3).digest


def test_an_event_whose_action_is_rolled_back_never_comes_into_the_chain():
    account = make_account()
    with transaction.atomic():
        services.record(SERVICE, "test.lost", account, account=account, now=T0)
        transaction.set_rollback(True)
    grow(1, account)
    assert chain.verify_chain().sequence == Event.objects.count() == 1


def test_what_a_dead_process_left_without_a_link_is_linked_by_the_sweep():
    account = make_account()
    Event.objects.create(action="test.left", object_type="x", happened_at=T0, account_id=account.pk)
    assert chain.verify_chain().sequence == 0
    assert chain.sweep(now=T0) == 1
    assert chain.sweep(now=T0 + dt.timedelta(days=2)) == 0
    assert chain.verify_chain().intact
    assert ChainHead.objects.get().swept_to == Event.objects.latest("pk").pk


@pytest.mark.parametrize("verb", ["update", "delete"])
@pytest.mark.parametrize("rows", [Event, Link])
def test_neither_a_row_nor_a_queryset_changes_or_removes_a_line(rows: Any, verb: str):
    grow(1)
    row = rows.objects.get()
    with pytest.raises(TrailFixed):
        row.save() if verb == "update" else row.delete()
    with pytest.raises(TrailFixed):
        rows.objects.update(digest="0") if verb == "update" else rows.objects.all().delete()
    with pytest.raises(TrailFixed):
        rows.objects.bulk_update([row], ["pk"])


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE accounts_event SET user_name = 'nobody'",
        "DELETE FROM accounts_event",
        "UPDATE accounts_link SET digest = ''",
        "DELETE FROM accounts_link WHERE sequence = 1",
    ],
)
def test_the_database_itself_refuses_to_change_or_remove_a_line(statement: str):
    grow(1)
    with pytest.raises(DatabaseError, match="append-only"):
        sql(statement)
    assert chain.verify_chain().intact


def test_a_base_manager_and_a_collector_meet_the_database_s_refusal():
    grow(1)
    with pytest.raises(DatabaseError, match="append-only"):
        Event._base_manager.update(user_name="nobody")


def test_migrating_puts_missing_guards_back_and_verify_tells_that_they_are_missing():
    grow(1)
    guards.remove(connection)
    with pytest.raises(CommandError, match="guards are off"):
        verified()
    call_command("migrate", verbosity=0)
    assert verified()


@pytest.mark.parametrize(
    ("statement", "broken_at"),
    [
        ("UPDATE accounts_event SET user_name = 'nobody' WHERE action = 'test.2'", 2),
        ("UPDATE accounts_event SET detail = '{}' WHERE action = 'test.1'", 1),
        ("UPDATE accounts_link SET digest = 'ff' WHERE sequence = 3", 3),
        ("DELETE FROM accounts_event WHERE action = 'test.4'", 4),
        ("DELETE FROM accounts_link WHERE sequence = 2", 2),
        ("DELETE FROM accounts_link WHERE sequence = 5", 5),
        ("INSERT INTO accounts_link (sequence, event_id, digest) VALUES (6, 999, 'ff')", 6),
    ],
)
def test_the_first_line_that_was_altered_removed_or_put_in_is_found(statement: str, broken_at: int):
    grow(5)
    with guards_off():
        sql(statement)
    found = chain.verify_chain()
    assert (found.intact, found.broken_at) == (False, broken_at)
    with pytest.raises(CommandError, match="tampered with"):
        verified()


def test_an_old_event_that_stands_outside_the_chain_is_found():
    grow(2)
    chain.sweep(now=T0 + dt.timedelta(days=2))
    with guards_off():
        sql("DELETE FROM accounts_link WHERE sequence = 2")
        before = Link.objects.get(sequence=1).digest
        sql("UPDATE accounts_chainhead SET sequence = 1, digest = %s", before)
    found = chain.verify_chain()
    assert "stands outside the chain" in found.problem


def test_a_chain_that_was_written_anew_does_not_match_the_digest_written_down():
    account = make_account()
    grow(3, account)
    noted = verified()
    call_command("audit", "verify", "--expect", noted, stdout=io.StringIO())
    with guards_off():
        sql("UPDATE accounts_event SET user_name = 'nobody' WHERE action = 'test.1'")
        sql("DELETE FROM accounts_link")
        sql("DELETE FROM accounts_chainhead")
    chain.sweep(now=T0)
    assert chain.verify_chain().intact
    with pytest.raises(CommandError, match="does not have the digest"):
        call_command("audit", "verify", "--expect", noted)
    with pytest.raises(CommandError, match="is not LINE:DIGEST"):
        call_command("audit", "verify", "--expect", "three")


def test_lines_outlive_the_account_and_the_person_they_tell_about():
    user, account = make_user("ann"), make_account()
    services.record(Actor(user=user), "test.done", account, account=account, now=T0)
    user.delete()
    account.delete()
    event = Event.objects.get()
    assert (event.user_name, event.account_name) == ("ann", "acme")
    assert chain.verify_chain().intact


def test_lines_from_before_the_chain_are_linked_by_the_migration():
    user, account = make_user("ann"), make_account()
    executor = MigrationExecutor(connection)
    executor.migrate([("accounts", "0001_initial")])
    old = executor.loader.project_state([("accounts", "0001_initial")]).apps.get_model("accounts", "Event")
    for number in range(3):
        old.objects.create(
            account_id=account.pk, user_id=user.pk, user_name="ann", address="::1", action=f"test.{number}",
            object_type="x", object_id="1", detail={"number": number}, happened_at=T0,
        )  # fmt: skip
    call_command("migrate", verbosity=0)
    assert list(Event.objects.order_by("pk").values_list("account_name", "user_id")) == [("acme", user.pk)] * 3
    found = chain.verify_chain()
    assert (found.intact, found.guarded, found.sequence) == (True, True, 3)


def test_many_writers_at_once_make_one_chain_and_lose_no_action():
    account = make_account()

    def act(number: int) -> None:
        for turn in range(5):
            with transaction.atomic():
                Account.objects.create(name=f"{number}-{turn}", created_at=T0)
                services.record(SERVICE, "test.act", account, account=account, now=T0)
        connection.close()

    threads = [threading.Thread(target=act, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Account.objects.count() == 31
    found = chain.verify_chain()
    assert (found.intact, found.sequence) == (True, 30)


def test_an_outside_script_can_check_the_exported_lines(tmp_path):
    grow(3)
    path = tmp_path / "trail.jsonl"
    call_command("audit", "export", "--to", str(path))
    before = "0" * 64
    for text in path.read_text().splitlines():
        line = json.loads(text)
        row = json.dumps(line["row"], sort_keys=True, separators=(",", ":"))
        assert f'"row":{row}' in text
        assert line["previous"] == before
        assert line["digest"] == hashlib.sha256(f"{before}\n{row}".encode()).hexdigest()
        before = line["digest"]
    assert before == chain.state().digest


def test_a_table_carries_the_chain_and_no_formulas(tmp_path):
    user = make_user("=1+1")
    services.record(Actor(user=user), "test.done", user, account=None, now=T0)
    path = tmp_path / "trail.csv"
    call_command("audit", "export", "--as", "csv", "--to", str(path))
    head, line = path.read_text().splitlines()
    assert head.startswith("sequence,happened_at")
    assert "'=1+1" in line
    assert Link.objects.get().digest in line


def test_a_file_that_cannot_be_written_is_told(tmp_path):
    with pytest.raises(CommandError, match="cannot be written"):
        call_command("audit", "export", "--to", str(tmp_path / "missing" / "trail.jsonl"))
