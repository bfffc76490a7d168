"""Vaults in the API: immutability, deletion, keys and condition; refusals by status and code."""

import datetime as dt
from pathlib import Path
from typing import Any

import pytest

from accounts.models import Role
from accounts.services import SERVICE
from jobs import local
from jobs import services as jobs
from tests.support.api import client_of, error_code
from tests.support.control import Clock, Site, make_site
from tests.support.people import T0, join, make_point
from vaults.models import Vault, VaultState

pytestmark = pytest.mark.django_db


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return make_site(tmp_path)


@pytest.fixture
def owner(site: Site) -> Any:
    return client_of(site.owner)


def of(vault: Vault, what: str = "") -> str:
    return f"/api/v1/vaults/{vault.pk}/{what}{'/' if what else ''}"


@pytest.mark.rule("B6")
def test_immutability_is_switched_on_once_and_shown(site, owner):
    answer = owner.post(of(site.vault, "make-immutable"), {"days": 30, "confirmation": "vault"})
    assert answer.status_code == 200
    shown = owner.get(of(site.vault)).json()
    assert (shown["lock_days"], shown["retention_label"]) == (30, "application-level retention")
    assert shown["immutable_since"]
    again = owner.post(of(site.vault, "make-immutable"), {"days": 29, "confirmation": "vault"})
    assert (again.status_code, error_code(again)) == (409, "immutability_fixed")


@pytest.mark.rule("B6")
@pytest.mark.parametrize(
    "forged", [{"immutable_since": None}, {"lock_days": 0}, {"lock_days": 1, "state": "deleted"}, {"prefix": "else"}]
)
def test_forged_fields_change_nothing(site, owner, forged):
    owner.post(of(site.vault, "make-immutable"), {"days": 30, "confirmation": "vault"})
    before = Vault.objects.values().get()
    assert owner.patch(of(site.vault), forged).status_code == 200
    assert owner.put(of(site.vault), forged).status_code == 405
    assert owner.delete(of(site.vault)).status_code == 405
    assert Vault.objects.values().get() == before


@pytest.mark.parametrize("what", ["make-immutable", "delete"])
def test_what_cannot_be_undone_takes_an_owner_and_the_vaults_name(site, owner, what):
    site.plan.delete()
    admin = client_of(join(site.account, "boss", Role.ADMIN))
    assert admin.post(of(site.vault, what), {"days": 30, "confirmation": "vault"}).status_code == 403
    answer = owner.post(of(site.vault, what), {"days": 30, "confirmation": "Vault"})
    assert (answer.status_code, error_code(answer)) == (409, "confirmation_wrong")
    assert owner.post(of(site.vault, what), {"days": 30}).status_code == 400
    assert Vault.objects.values_list("lock_days", "state").get() == (0, VaultState.READY)


@pytest.mark.rule("E41")
def test_a_vault_is_deleted_when_no_plan_uses_it(site, owner):
    answer = owner.post(of(site.vault, "delete"), {"confirmation": "vault"})
    assert (answer.status_code, error_code(answer)) == (409, "vault_in_use")
    assert answer.json()["context"]["plans"] == ["acme-web → vault (daily)"]
    site.plan.delete()
    make_point(site.vault, site.source, locked_until=dt.datetime(2099, 1, 1, tzinfo=dt.UTC))
    answer = owner.post(of(site.vault, "delete"), {"confirmation": "vault"})
    assert answer.status_code == 202
    assert (answer.json()["state"], answer.json()["deletable_at"]) == ("deleting", "2099-01-01T00:00:00Z")


@pytest.mark.rule("E41")
def test_a_vault_that_is_being_deleted_takes_no_plan_and_no_backup(site, owner):
    Vault.objects.update(state=VaultState.DELETING)
    wanted = {"kind": "backup", "plan": str(site.plan.pk)}
    answer = owner.post("/api/v1/jobs/", wanted)
    assert (answer.status_code, error_code(answer)) == (409, "vault_not_ready")
    site.plan.delete()
    wanted = {"source": str(site.source.pk), "policy": str(site.policy.pk), "vault": str(site.vault.pk)}
    answer = owner.post("/api/v1/plans/", wanted)
    assert (answer.status_code, error_code(answer)) == (409, "vault_not_ready")


def test_a_deleted_vault_is_listed_only_when_asked_for(site, owner):
    Vault.objects.update(state=VaultState.DELETED)
    assert owner.get("/api/v1/vaults/").json()["results"] == []
    assert len(owner.get("/api/v1/vaults/?state=deleted").json()["results"]) == 1


def test_a_recovery_key_is_handed_out_in_shares_and_proven_with_them(site, owner):
    wanted = {
        "account": str(site.account.pk), "region": site.region.name, "name": "split",
        "recovery_threshold": 2, "recovery_shares": 3,
    }  # fmt: skip
    made = owner.post("/api/v1/vaults/", wanted).json()
    assert (made["recovery_key"], len(made["recovery_shares"])) == ("", 3)
    vault = Vault.objects.get(name="split")
    assert owner.get(of(vault)).json()["recovery_proven_at"] is None
    answer = owner.post(of(vault, "prove-recovery-key"), {"shares": made["recovery_shares"][:1]})
    assert (answer.status_code, error_code(answer)) == (409, "recovery_key_wrong")
    answer = owner.post(of(vault, "prove-recovery-key"), {"shares": made["recovery_shares"][1:]})
    assert (answer.status_code, answer.json()["recovery_proven_at"] is None) == (200, False)


def test_keys_are_rotated_and_the_recovery_key_replaced_by_an_owner(site, owner):
    admin = client_of(join(site.account, "boss", Role.ADMIN))
    for what in ("rotate-keys", "replace-recovery-key"):
        assert admin.post(of(site.vault, what), {}).status_code == 403
    rotated = owner.post(of(site.vault, "rotate-keys")).json()
    assert (rotated["generation"], rotated["revoked"]) == (2, [])
    assert sorted(holder["provider"] for holder in rotated["holders"]) == ["keyring", "recovery"]
    answer = owner.post(of(site.vault, "replace-recovery-key"), {"threshold": 2, "shares": 2})
    assert (answer.json()["recovery_key"], answer["Cache-Control"]) == ("", "no-store")
    proof = {"shares": answer.json()["recovery_shares"]}
    assert owner.post(of(site.vault, "prove-recovery-key"), proof).status_code == 200
    old = owner.post(of(site.vault, "prove-recovery-key"), {"recovery_key": site.recovery_key})
    assert error_code(old) == "recovery_key_wrong"


@pytest.mark.parametrize("wanted", [{}, {"recovery_key": "BSRK-A", "shares": ["a"]}])
def test_a_proof_is_a_key_or_shares(site, owner, wanted):
    assert owner.post(of(site.vault, "prove-recovery-key"), wanted).status_code == 400


@pytest.mark.rule("E34")
def test_a_key_that_does_not_work_makes_no_vault_and_its_secret_is_told_nowhere(site, owner):
    wanted = {
        "account": str(site.account.pk), "region": site.region.name, "name": "kms",
        "key_url": "pkcs11:/no/module.so?token=a&label=b", "key_secret": "very-secret",
    }  # fmt: skip
    answer = owner.post("/api/v1/vaults/", wanted)
    assert (answer.status_code, error_code(answer)) == (409, "key_unusable")
    assert b"very-secret" not in answer.content


def test_the_condition_tells_damage_with_the_points_and_files_it_touches(site, owner):
    clock = Clock(T0)
    local.do(jobs.request_backup(site.plan, actor=SERVICE, now=clock()), clock=clock)
    clean = owner.get(of(site.vault, "condition")).json()
    assert (clean["verified_at"], clean["damaged"], clean["coverage"]["share"]) == (None, [], None)
    local.do(jobs.request_verify(site.vault, level="content", actor=SERVICE, now=clock()), clock=clock)
    assert owner.get(of(site.vault, "condition")).json()["coverage"]["share"] > 0.9
    assert owner.get(of(site.vault)).json()["coverage"]["bytes"] > 0
    pack = next(path for path in (Path(site.region.url) / site.vault.prefix / "packs").rglob("*") if path.is_file())
    pack.write_bytes(b"rot" + pack.read_bytes()[3:])
    job = local.do(jobs.request_verify(site.vault, level="content", actor=SERVICE, now=clock()), clock=clock)
    told = owner.get(of(site.vault, "condition")).json()
    assert told["damaged_total"] == len(told["damaged"]) > 0
    damage = told["damaged"][0]
    assert damage["object"].endswith(pack.name)
    assert damage["points"] == [f"{site.source.series}/{site.vault.points.get().point_id}"]
    assert (damage["files"] > 0, bool(damage["first_files"]), bool(damage["advice"])) == (True, True, True)
    work = {row["kind"]: row for row in told["work"]}
    assert (work["verify"]["state"], work["verify"]["job"]) == ("failed", str(job.pk))
    assert work["prune"]["state"] == ""


def test_a_region_is_deleted_when_nothing_is_left_in_it(site):
    staff = client_of(join(site.account, "root"))
    url = f"/api/v1/regions/{site.region.name}/"
    assert staff.delete(url).status_code == 403
    user = site.account.members.get(user__username="root").user
    user.is_staff = user.is_superuser = True
    user.save()
    answer = client_of(user).delete(url)
    assert (answer.status_code, error_code(answer)) == (409, "region_in_use")
