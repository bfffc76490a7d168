"""Immutability is asked for by name, told honestly, and never eased by any service (B6)."""

import datetime as dt
from pathlib import Path

import pytest
from django.core.exceptions import ValidationError

from accounts.models import Event
from accounts.services import SERVICE
from engine.locks import enable
from engine.storage.probe import IMMUTABLE
from engine.verbs.audit import Finding, Outcome
from jobs import maintenance
from jobs.executors import audit
from jobs.maintenance import complete_duties
from jobs.models import Duty
from jobs.states import Kind
from tests.support.control import make_site
from tests.support.people import T0
from vaults import catalogue, repositories, services
from vaults.models import ConfirmationWrong, ImmutabilityFixed, Vault, VaultState

pytestmark = [pytest.mark.django_db, pytest.mark.rule("B6")]


@pytest.fixture
def vault(tmp_path: Path) -> Vault:
    return make_site(tmp_path).vault


def immutable(vault: Vault, days: int = 30, name: str = "vault") -> Vault:
    return services.make_immutable(vault, days=days, confirmation=name, actor=SERVICE, now=T0)


def test_the_vault_itself_keeps_the_policy_and_the_row_says_so(vault):
    immutable(vault)
    vault.refresh_from_db()
    assert (vault.immutable_since, vault.lock_days) == (T0, 30)
    policy = repositories.open_vault(vault).lock_policy
    assert policy is not None
    assert (policy.days, policy.since) == (30, T0)
    event = Event.objects.filter(action="vault.make_immutable").get()
    assert (event.detail["days"], event.detail["level"]) == (30, "application-level retention")


def test_a_store_without_object_lock_is_never_called_immutable(vault):
    assert immutable(vault).retention_label == "application-level retention"


@pytest.mark.parametrize("typed", ["", "Vault", "vault ", "acme"])
def test_it_takes_the_vaults_name(vault, typed):
    with pytest.raises(ConfirmationWrong, match="name"):
        immutable(vault, name=typed)
    assert repositories.open_vault(vault).lock_policy is None


def test_it_can_be_lengthened_and_not_shortened(vault):
    immutable(vault)
    assert immutable(vault, 60).lock_days == 60
    with pytest.raises(ImmutabilityFixed, match="60 days"):
        immutable(vault, 59)
    vault.refresh_from_db()
    assert (vault.immutable_since, vault.lock_days) == (T0, 60)


def test_what_the_vault_says_counts_even_when_the_row_forgot(vault):
    enable(repositories.open_vault(vault), days=90, now=T0)
    with pytest.raises(ImmutabilityFixed, match="90 days"):
        immutable(vault, 30)
    assert immutable(vault, 90).lock_days == 90


@pytest.mark.parametrize("days", [0, -1, 36_491])
def test_days_have_limits(vault, days):
    with pytest.raises(ValidationError, match="Give 1 to"):
        immutable(vault, days)


@pytest.mark.parametrize("state", [VaultState.DELETING, VaultState.ERROR])
def test_a_vault_that_is_not_ready_is_left_alone(vault, state):
    vault.state = state
    with pytest.raises(services.VaultNotReady):
        immutable(vault)


def test_the_audit_that_locks_what_is_there_is_due_at_once(vault):
    complete_duties([vault], now=T0)
    immutable(vault)
    assert Duty.objects.get(vault=vault, kind="audit").due_at == T0
    assert Duty.objects.get(vault=vault, kind="verify").due_at != T0


def test_nobody_shortens_it_through_the_other_services(vault):
    immutable(vault)
    vault.lock_days = 1
    with pytest.raises(ImmutabilityFixed):
        services.change_vault(vault, actor=SERVICE, now=T0 + dt.timedelta(days=1))


def test_a_row_that_forgot_is_told_by_the_vault_when_its_catalogue_is_rebuilt(vault):
    enable(repositories.open_vault(vault), days=45, now=T0)
    catalogue.rebuild(vault, now=T0)
    vault.refresh_from_db()
    assert (vault.immutable_since, vault.lock_days) == (T0, 45)
    catalogue.rebuild(vault, now=T0)


def test_a_vault_is_called_immutable_no_more_when_an_audit_could_break_a_lock(vault):
    vault.region.capabilities |= {"retention": IMMUTABLE}
    vault.region.save()
    job = maintenance.request(vault, Kind.AUDIT, {}, actor=SERVICE, now=T0)
    level = "application-level retention"
    outcome = Outcome("failed", 30, level, False, points=1, objects=9, lengthened=0, furthest=None, findings=[])
    audit.EXECUTOR.conclude(job, repositories.open_vault(vault), outcome, T0)
    assert Vault.objects.get().retention_label == IMMUTABLE
    outcome.findings = [Finding(object="canary/x", kind="canary", detail="A locked object can be deleted")]
    fields = audit.EXECUTOR.conclude(job, repositories.open_vault(vault), outcome, T0)
    assert fields["error_code"] == "locks_broken"
    told = Vault.objects.get()
    assert told.retention_label == "application-level retention"
    assert "A locked object can be deleted" in told.region.capabilities["problems"]
    assert Event.objects.filter(action="region.lock_gave_way").count() == 1
