"""Roles: ready made ones, custom ones of named privileges; nobody gives what they don't have."""

from pathlib import Path

import pytest
from django.core.exceptions import ValidationError
from django.db import IntegrityError, transaction
from django.test import Client
from django.utils import timezone

from accounts.models import CustomRole, Event, Member, Role, User
from accounts.permissions import MANAGE, OPERATE, OWN, VIEW
from accounts.services import (
    SERVICE,
    Actor,
    PrivilegeNotHeld,
    RoleExists,
    RoleInUse,
    delete_custom_role,
    remove_member,
    save_custom_role,
    set_role,
)
from accounts.states import PRIVILEGES_OF, Privilege
from tests.support.api import client_of, error_code
from tests.support.console import page
from tests.support.people import (
    T0,
    join,
    make_account,
    make_plan,
    make_point,
    make_policy,
    make_region,
    make_source,
    make_user,
    make_vault,
    online,
)
from tests.support.privileges_page import table

pytestmark = pytest.mark.django_db


@pytest.fixture
def account():
    return make_account()


def make_role(account, *privileges: str, name: str = "special") -> CustomRole:
    return save_custom_role(CustomRole(account=account, name=name, privileges=list(privileges)), actor=SERVICE, now=T0)


def holding(account, *privileges: str, name: str = "holder") -> User:
    """Return a member of a custom role that holds just these."""
    user = make_user(name)
    role = make_role(account, *privileges, name=f"role of {name}")
    set_role(account=account, user=user, role=role, actor=SERVICE, now=T0)
    return user


def test_each_ready_made_role_includes_the_lesser_ones():
    viewer, operator, admin, owner = (PRIVILEGES_OF[role] for role in reversed(Role))
    assert viewer < operator < admin < owner == set(Privilege)


@pytest.mark.parametrize(
    ("role", "held"),
    [(Role.VIEWER, [VIEW]), (Role.OPERATOR, [VIEW, OPERATE]), (Role.ADMIN, [VIEW, OPERATE, MANAGE])],
)
def test_the_coarse_permissions_ask_for_a_whole_ready_made_role(account, role, held):
    user = join(account, "ann", role)
    assert [one for one in (VIEW, OPERATE, MANAGE, OWN) if user.has_perm(one, account)] == held


def test_a_custom_role_with_all_of_an_operator_s_privileges_is_worth_an_operator(account):
    lacking_one = PRIVILEGES_OF[Role.OPERATOR] - {Privilege.MAINTAIN}
    assert holding(account, *PRIVILEGES_OF[Role.OPERATOR]).has_perm(OPERATE, account)
    assert not holding(account, *lacking_one, name="other").has_perm(OPERATE, account)


@pytest.mark.rule("D3")
@pytest.mark.parametrize(
    ("role", "allowed"),
    [
        (Role.OWNER, True),
        (Role.ADMIN, True),
        (("backup",), True),
        (("restore", "maintain", "manage_policies", "manage_sources", "read_data"), False),
        (Role.VIEWER, False),
    ],
)
@pytest.mark.parametrize("kind", ["milvus", "files"])
def test_backups_are_started_by_owner_administrator_and_custom_roles_with_that_privilege(account, role, allowed, kind):
    region = make_region()
    source = make_source(account, region, kind=kind, host="" if kind == "milvus" else "web1")
    plan = make_plan(source, make_policy(account), make_vault(account, region))
    user = join(account, "ann", role) if isinstance(role, str) else holding(account, *role)
    answer = client_of(user).post("/api/v1/jobs/", {"kind": "backup", "plan": str(plan.pk)})
    assert answer.status_code == (202 if allowed else 403)


@pytest.mark.rule("D3")
def test_a_role_with_the_backup_privilege_alone_backs_up_and_does_nothing_else(account):
    region = make_region()
    source, vault, policy = make_source(account, region), make_vault(account, region), make_policy(account)
    plan, point = make_plan(source, policy, vault), make_point(vault, source)
    online(source.queue, at=timezone.now())
    client = client_of(holding(account, "backup"))
    job = client.post("/api/v1/jobs/", {"kind": "backup", "plan": str(plan.pk)}).json()
    assert client.post(f"/api/v1/jobs/{job['id']}/cancel/").status_code == 202
    assert client.post("/api/v1/jobs/", {"kind": "restore", "point": str(point.pk)}).status_code == 403
    assert client.post("/api/v1/jobs/", {"kind": "verify", "vault": str(vault.pk)}).status_code == 403
    assert client.patch(f"/api/v1/policies/{policy.pk}/", {"retention_days": 1}).status_code == 403
    assert client.post(f"/api/v1/plans/{plan.pk}/pause/").status_code == 403
    assert client.get(f"/api/v1/recovery-points/{point.pk}/entries/").status_code == 403


def test_who_may_restore_cancels_restores_and_not_backups(account):
    region = make_region()
    source = make_source(account, region)
    vault = make_vault(account, region)
    plan, point = make_plan(source, make_policy(account), vault), make_point(vault, source)
    online(source.queue, at=timezone.now())
    restorer = client_of(holding(account, "restore"))
    backup = client_of(join(account, "ann")).post("/api/v1/jobs/", {"kind": "backup", "plan": str(plan.pk)}).json()
    restore = restorer.post("/api/v1/jobs/", {"kind": "restore", "point": str(point.pk)}).json()
    assert restorer.post(f"/api/v1/jobs/{backup['id']}/cancel/").status_code == 403
    assert restorer.post(f"/api/v1/jobs/{restore['id']}/cancel/").status_code == 202


def test_a_restore_needs_the_right_in_the_destination_s_account_too(account):
    other, region = make_account("other"), make_region()
    user = join(account, "ann", Role.OPERATOR)
    Member.objects.create(account=other, user=user, role=Role.VIEWER, created_at=T0)
    point = make_point(make_vault(account, region), make_source(account, region))
    there = make_source(other, region, "there")
    online(there.queue, at=timezone.now())
    answer = client_of(user).post(
        "/api/v1/jobs/", {"kind": "restore", "point": str(point.pk), "destination": str(there.pk), "to": "/srv"}
    )
    assert answer.status_code == 403


class TestCustomRoles:
    def test_they_are_made_given_and_shown(self, account):
        owner = client_of(join(account, "ann"))
        wanted = {"account": str(account.pk), "name": "Backup only", "privileges": ["backup"]}
        role = owner.post("/api/v1/roles/", wanted)
        assert (role.status_code, role.json()["privileges"]) == (201, ["view", "backup"])
        bob = make_user("bob")
        members = f"/api/v1/accounts/{account.pk}/members/"
        given = owner.post(members, {"user": "bob", "custom_role": role.json()["id"]})
        assert (given.status_code, given.json()["role"], given.json()["role_name"]) == (200, "", "Backup only")
        assert client_of(bob).get("/api/v1/accounts/").json()["results"][0]["privileges"] == ["view", "backup"]
        assert [one.action for one in Event.objects.order_by("pk")] == ["role.create", "member.role"]
        assert Event.objects.get(action="role.create").detail == {"privileges": ["view", "backup"]}

    def test_a_changed_role_changes_what_its_members_may_at_once(self, account):
        owner, user = client_of(join(account, "ann")), holding(account, "backup")
        role = CustomRole.objects.get()
        answer = owner.patch(f"/api/v1/roles/{role.pk}/", {"privileges": ["restore"]})
        assert answer.json()["privileges"] == ["view", "restore"]
        fresh = User.objects.get(pk=user.pk)
        assert fresh.has_perm("accounts.restore", account)
        assert not fresh.has_perm("accounts.backup", account)
        assert Event.objects.get(action="role.change").detail["privileges"] == [["view", "backup"], ["view", "restore"]]

    def test_one_that_members_have_stays(self, account):
        owner, role = client_of(join(account, "ann")), None
        holding(account, "backup")
        role = CustomRole.objects.get()
        answer = owner.delete(f"/api/v1/roles/{role.pk}/")
        assert (answer.status_code, error_code(answer)) == (409, "role_in_use")
        assert answer.json()["context"] == {"members": ["holder"]}
        with pytest.raises(RoleInUse):
            delete_custom_role(role, actor=SERVICE, now=T0)
        remove_member(Member.objects.get(custom_role=role), actor=SERVICE, now=T0)
        assert owner.delete(f"/api/v1/roles/{role.pk}/").status_code == 204
        assert Event.objects.filter(action="role.delete").exists()

    def test_a_name_is_taken_once(self, account):
        make_role(account, "backup")
        with pytest.raises(RoleExists):
            make_role(account, "restore")
        make_role(make_account("other"), "restore")

    def test_unknown_privileges_are_refused_by_name(self, account):
        with pytest.raises(ValidationError, match=r"There is no fly\. Use view"):
            make_role(account, "fly")

    def test_another_account_s_role_is_refused(self, account):
        role = make_role(make_account("other"), "backup")
        with pytest.raises(ValidationError, match="is not a role of acme"):
            set_role(account=account, user=make_user("bob"), role=role, actor=SERVICE, now=T0)

    def test_a_member_has_one_role_or_the_other(self, account):
        user, role = join(account, "ann"), make_role(account, "backup")
        with pytest.raises(IntegrityError), transaction.atomic():
            Member.objects.filter(user=user).update(custom_role=role)
        answer = client_of(user).post(
            f"/api/v1/accounts/{account.pk}/members/", {"user": "ann", "role": "admin", "custom_role": str(role.pk)}
        )
        assert answer.status_code == 400


class TestNobodyGivesWhatTheyDoNotHave:
    def test_neither_in_a_role(self, account):
        keeper = client_of(holding(account, "manage_members", "backup"))
        wanted = {"account": str(account.pk), "name": "strong", "privileges": ["backup", "restore"]}
        answer = keeper.post("/api/v1/roles/", wanted)
        assert (answer.status_code, error_code(answer)) == (409, "privilege_not_held")
        assert answer.json()["context"] == {"privileges": ["restore"]}
        assert keeper.post("/api/v1/roles/", wanted | {"privileges": ["backup"]}).status_code == 201

    @pytest.mark.parametrize(("role", "status"), [("viewer", 409), ("owner", 409)])
    def test_nor_by_a_ready_made_one(self, account, role, status):
        make_user("bob")
        keeper = client_of(holding(account, "manage_members"))
        answer = keeper.post(f"/api/v1/accounts/{account.pk}/members/", {"user": "bob", "role": role})
        assert answer.status_code == status
        assert not Member.objects.filter(user__username="bob").exists()

    def test_nor_is_it_taken_from_who_has_more(self, account):
        owner, keeper = join(account, "ann"), holding(account, "manage_members")
        join(account, "second")
        with pytest.raises(PrivilegeNotHeld, match="change the role of ann"):
            set_role(account=account, user=owner, role=CustomRole.objects.get(), actor=Actor(keeper), now=T0)
        with pytest.raises(PrivilegeNotHeld, match="remove ann"):
            remove_member(Member.objects.get(user=owner), actor=Actor(keeper), now=T0)
        strong = make_role(account, "own", name="strong")
        with pytest.raises(PrivilegeNotHeld, match="delete the role strong"):
            delete_custom_role(strong, actor=Actor(keeper), now=T0)
        strong.privileges = ["view"]
        with pytest.raises(PrivilegeNotHeld, match="make or change a role"):
            save_custom_role(strong, actor=Actor(keeper), now=T0)

    def test_an_administrator_gives_no_roles(self, account):
        admin = client_of(join(account, "ann", Role.ADMIN))
        wanted = {"account": str(account.pk), "name": "new", "privileges": ["backup"]}
        assert admin.post("/api/v1/roles/", wanted).status_code == 403


def test_the_page_for_operators_tells_which_privilege_is_for_whom():
    text = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
    assert "\n".join(table()) in text


class TestConsole:
    @pytest.fixture
    def console(self):
        console = Client()
        console.force_login(User.objects.create_superuser("root"))
        return console

    def test_a_role_is_made_changed_and_deleted(self, account, console):
        wanted = {"account": str(account.pk), "name": "Night shift", "privileges": ["backup", "restore"]}
        console.post(page("accounts_customrole", "add"), wanted)
        role = CustomRole.objects.get()
        assert role.privileges == ["view", "backup", "restore"]
        console.post(page("accounts_customrole", "change", role.pk), {"name": "Night", "privileges": ["backup"]})
        role.refresh_from_db()
        assert (role.name, role.privileges) == ("Night", ["view", "backup"])
        console.post(page("accounts_customrole", "delete", role.pk), {"post": "yes"})
        told = Event.objects.filter(object_type="customrole").order_by("pk")
        assert [one.action for one in told] == ["role.create", "role.change", "role.delete"]

    def test_a_role_that_members_have_stays_and_the_page_says_why(self, account, console):
        holding(account, "backup")
        role = CustomRole.objects.get()
        told = console.post(page("accounts_customrole", "delete", role.pk), {"post": "yes"}, follow=True)
        assert "holder (role of holder)" in told.content.decode()
        assert CustomRole.objects.exists()

    def test_members_get_ready_made_and_custom_roles_on_the_account_s_page(self, account, console):
        owner, role = join(account, "ann"), make_role(account, "backup", name="Night shift")
        kept = Member.objects.get(user=owner)
        address = page("accounts_account", "change", account.pk)
        assert "Night shift" in console.get(address).content.decode()
        rows = {
            "members-TOTAL_FORMS": "2", "members-INITIAL_FORMS": "1",
            "members-0-id": str(kept.pk), "members-0-user": str(owner.pk), "members-0-given": "owner",
            "members-1-user": str(make_user("bob").pk), "members-1-given": str(role.pk),
        }  # fmt: skip
        console.post(address, {"name": account.name} | rows)
        assert {str(one) for one in account.members.all()} == {"ann (Owner)", "bob (Night shift)"}
        bob = account.members.get(user__username="bob")
        rows |= {"members-INITIAL_FORMS": "2", "members-1-id": str(bob.pk), "members-1-given": "admin"}
        console.post(address, {"name": account.name} | rows)
        assert str(account.members.get(user__username="bob")) == "bob (Administrator)"
