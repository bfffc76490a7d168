"""An immutable vault stays immutable: model, mass updates, plain SQL, on SQLite and on PostgreSQL (B6)."""

from collections.abc import Iterator
from contextlib import closing

import pytest
from django.core.management import call_command
from django.db import DatabaseError, IntegrityError, connection, transaction
from django.db.backends.postgresql.base import DatabaseWrapper as PostgresWrapper

from tests.support.people import T0, make_account, make_region, make_vault
from vaults import guards
from vaults.models import ImmutabilityFixed, KeyFixed, Vault, VaultKept, VaultState

pytestmark = [pytest.mark.django_db, pytest.mark.rule("B6")]
ATTACKS = [
    "immutable_since = NULL, lock_days = 0",
    "immutable_since = '2031-01-01 00:00:00'",
    "lock_days = 29",
    "prefix = 'elsewhere'",
]


@pytest.fixture
def vault() -> Vault:
    return make_vault(make_account(), make_region(), immutable_since=T0, lock_days=30)


@pytest.mark.parametrize("change", [{"immutable_since": None, "lock_days": 0}, {"lock_days": 29}])
def test_saving_a_row_neither_ends_nor_shortens_immutability(vault, change):
    for name, value in change.items():
        setattr(vault, name, value)
    with pytest.raises(ImmutabilityFixed):
        vault.save()
    with pytest.raises(DatabaseError, match="stays immutable"), transaction.atomic():
        Vault.objects.update(**change)
    vault.refresh_from_db()
    assert (vault.immutable_since, vault.lock_days) == (T0, 30)


def test_a_longer_lock_may_be_asked_for(vault):
    vault.lock_days = 60
    vault.save()
    assert Vault.objects.get().lock_days == 60


@pytest.mark.parametrize("attack", ATTACKS)
def test_plain_sql_is_refused_too(vault, attack):
    with connection.cursor() as cursor, pytest.raises(DatabaseError, match="stays immutable"), transaction.atomic():
        cursor.execute(f"UPDATE vaults_vault SET {attack}")  # the attacks are above


def test_what_says_nothing_of_immutability_may_change(vault):
    assert Vault.objects.update(name="renamed", state=VaultState.DELETING) == 1


def test_a_vault_is_immutable_with_days_or_not_at_all(vault):
    with pytest.raises(IntegrityError), transaction.atomic():
        make_vault(vault.account, vault.region, "second", lock_days=3)
    with pytest.raises(IntegrityError), transaction.atomic():
        make_vault(vault.account, vault.region, "second", immutable_since=T0)


def test_a_migrated_database_has_the_trigger_again_when_a_table_was_rebuilt(vault):
    with connection.cursor() as cursor:
        cursor.execute("DROP TRIGGER vault_stays_immutable")
    call_command("migrate", verbosity=0)
    with pytest.raises(DatabaseError, match="stays immutable"), transaction.atomic():
        Vault.objects.update(lock_days=1)


@pytest.mark.parametrize("lockable", [True, False])
def test_no_row_goes_while_its_vault_is_there_whoever_deletes_it(vault, lockable):
    one = vault if lockable else make_vault(vault.account, vault.region, "plain")
    with pytest.raises(VaultKept), transaction.atomic():
        one.delete()
    with pytest.raises(VaultKept), transaction.atomic():
        Vault.objects.filter(pk=one.pk).delete()
    assert Vault.objects.filter(pk=one.pk).exists()


@pytest.mark.rule("E33")
@pytest.mark.parametrize("change", [{"key_provider": "transit"}, {"key_url": "transit:https://h/m/k"}])
def test_the_key_of_a_vault_never_changes(vault, change):
    for name, value in change.items():
        setattr(vault, name, value)
    with pytest.raises(KeyFixed):
        vault.save()


@pytest.fixture
def postgres(postgres_service) -> Iterator[PostgresWrapper]:
    """Django's connection to a schema of its own with a table like ours, gone with the test."""
    one = postgres_service
    place = {"NAME": one.database, "USER": one.user, "PASSWORD": one.password, "HOST": one.host, "PORT": one.port}
    options = {"OPTIONS": {"options": "-c search_path=guarded"}}
    wrapper = PostgresWrapper({**connection.settings_dict, **place, **options}, alias="guarded")
    with closing(wrapper), wrapper.cursor() as cursor:
        cursor.execute("CREATE SCHEMA guarded")
        try:
            cursor.execute(
                "CREATE TABLE vaults_vault (id int, region_id int, prefix text, name text, "
                "immutable_since timestamp, lock_days int)"
            )
            yield wrapper
        finally:
            cursor.execute("DROP SCHEMA guarded CASCADE")


@pytest.mark.parametrize("attack", ATTACKS)
def test_postgresql_refuses_the_same(postgres, attack):
    for _ in range(2):  # as every migration does
        guards.install(postgres)
    with postgres.cursor() as cursor:
        cursor.execute("INSERT INTO vaults_vault VALUES (1, 1, 'p', 'n', '2030-01-01', 30), (2, 1, 'q', 'm', NULL, 0)")
        with pytest.raises(DatabaseError, match="stays immutable"):
            cursor.execute(f"UPDATE vaults_vault SET {attack} WHERE id = 1")
        cursor.execute("UPDATE vaults_vault SET lock_days = 31, name = 'x' WHERE id = 1")
        cursor.execute("UPDATE vaults_vault SET immutable_since = '2030-01-01', lock_days = 9 WHERE id = 2")
        assert cursor.rowcount == 1
