"""People, accounts and rows for tests of the control plane. Plain functions: a test shows what it needs."""

import datetime as dt
import uuid
from pathlib import Path
from typing import Any

from accounts.models import Account, Member, Role, User
from jobs import presence
from policies.models import Plan, Policy, Rule, Source
from vaults.models import PointState, RecoveryPoint, Region, Vault

T0 = dt.datetime(2026, 3, 10, 12, 0, tzinfo=dt.UTC)
PASSWORD = "correct horse battery staple"


def make_user(name: str, *, staff: bool = False) -> User:
    return User.objects.create_user(name, password=PASSWORD, is_staff=staff)


def make_account(name: str = "acme") -> Account:
    return Account.objects.create(name=name, created_at=T0)


def join(account: Account, name: str, role: str = Role.OWNER) -> User:
    user = make_user(name)
    Member.objects.create(account=account, user=user, role=role, created_at=T0)
    return user


def make_region(name: str = "main", folder: Path | str = "/nonexistent-store") -> Region:
    return Region.objects.create(name=name, url=str(folder), created_at=T0)


def make_vault(account: Account, region: Region, name: str = "vault", **values: Any) -> Vault:
    return Vault.objects.create(
        account=account, region=region, name=name, prefix=f"vaults/{uuid.uuid4()}", created_at=T0, **values
    )


def make_source(account: Account, region: Region, name: str = "web1", **values: Any) -> Source:
    settings = {"roots": ["/srv/data"], "include": [], "exclude": [], "one_file_system": False}
    return Source.objects.create(
        account=account, region=region, name=name, created_at=T0, **({"host": name, "settings": settings} | values)
    )


# What of a policy's values its rule takes.
OF_RULE = {"cron", "every", "unit", "weekdays", "starts_on", "start_time", "window_minutes"}


def make_policy(account: Account, name: str = "daily", **values: Any) -> Policy:
    """Make a policy with one backup rule."""
    own = {key: value for key, value in values.items() if key not in OF_RULE}
    policy = Policy.objects.create(account=account, name=name, created_at=T0, **own)
    Rule.objects.create(policy=policy, **{key: values[key] for key in values.keys() & OF_RULE})
    return policy


def make_plan(source: Source, policy: Policy, vault: Vault, **values: Any) -> Plan:
    defaults = {"start_minute": 90, "next_run_at": T0}
    return Plan.objects.create(
        account=source.account, source=source, policy=policy, vault=vault, created_at=T0, **(defaults | values)
    )


def make_point(vault: Vault, source: Source, *, at: dt.datetime = T0, **values: Any) -> RecoveryPoint:
    return RecoveryPoint.objects.create(
        vault=vault,
        series=source.series,
        point_id=uuid.uuid4().hex[:26],
        source_kind="files",
        source_name=source.name,
        host=source.host,
        state=PointState.COMPLETE,
        started_at=at,
        completed_at=at,
        created_at=at,
        **values,
    )


def whole_plan(name: str = "acme") -> Plan:
    """Make an account with everything a plan needs."""
    account = make_account(name)
    region = Region.objects.filter(name="main").first() or make_region()
    source = make_source(account, region)
    return make_plan(source, make_policy(account), make_vault(account, region))


def online(*queues: str, at: dt.datetime = T0) -> None:
    """Let a worker be seen that serves these queues."""
    presence.seen("worker@" + "+".join(queues), queues, now=at)
