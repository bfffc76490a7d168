"""Hosts and their essential backup: which there are and how they stand, enable, cancel (C2, C13, C18, C32)."""

import datetime as dt
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from django.core.exceptions import ValidationError
from django.db import models
from django.db.models import Case, Count, Min, Q, Value, When

from accounts.models import Account
from accounts.services import Actor, record
from jobs import presence, removal
from policies import editions, essential, retention
from policies.models import Edition, Plan, PlanState, Source
from vaults.models import ConfirmationWrong, Region


class HostStatus(models.TextChoices):
    """How a host stands (C18): `other` is protected by other plans than essential backup, `canceling` goes."""

    INACTIVE = "inactive", "Inactive"
    READY = "ready", "Ready"
    PAUSED = "paused", "Paused"
    CANCELING = "canceling", "Being canceled"
    OTHER = "other", "Other plans"


@dataclass(slots=True)
class Host:
    """A host of an account, with its essential plans, one a root. `volumes` are what its worker tells, if one runs.

    `unprotected` are volumes that no essential plan takes, of a host that has some.
    """

    account: Account
    name: str
    status: str
    region: str = ""
    next_run_at: dt.datetime | None = None
    online: bool = False
    plans: list[Plan] = field(default_factory=list)
    volumes: list[str] = field(default_factory=list)

    @property
    def pk(self) -> str:
        """Return by which name the host is found."""
        return key_of(self.account.pk, self.name)

    @property
    def unprotected(self) -> list[str]:
        if not self.plans:
            return []
        return [root for root in fit(self.volumes) if root not in essential.roots_of(self.plans)]


def key_of(account_id: Any, host: str) -> str:
    """Return the id of a host: its account and its name."""
    return f"{account_id}:{host}"


def split(key: str) -> tuple[uuid.UUID, str] | None:
    """Return account and name of a host's id; None for what is no id."""
    account, _, host = key.partition(":")
    try:
        return (uuid.UUID(account), host) if host else None
    except ValueError:
        return None


def listed(accounts: Iterable[Account] | models.QuerySet[Account]) -> models.QuerySet[Any, Any]:
    """Return rows of all hosts that sources of these accounts name: account, host, status, next_run_at, region."""
    essential_plan = Q(plans__edition=Edition.ESSENTIAL)
    active, paused = Q(plans__state=PlanState.ACTIVE), Q(plans__state=PlanState.PAUSED)

    def some(condition: Q) -> Count:
        return Count("plans", filter=condition, distinct=True)

    rows = Source.objects.filter(account__in=accounts).exclude(host="").order_by().values("account", "host")
    return rows.annotate(
        region=Min("region__name"),
        next_run_at=Min("plans__next_run_at", filter=essential_plan),
        ready=some(essential_plan & active),
        paused=some(essential_plan & paused),
        others=some(active),
        going=Count("pk", filter=Q(erasing_since__isnull=False), distinct=True),
    ).annotate(
        status=Case(
            When(ready__gt=0, then=Value(HostStatus.READY)),
            When(paused__gt=0, then=Value(HostStatus.PAUSED)),
            When(others__gt=0, then=Value(HostStatus.OTHER)),
            When(going__gt=0, then=Value(HostStatus.CANCELING)),
            default=Value(HostStatus.INACTIVE),
            output_field=models.CharField(),
        )
    )


def filled(rows: Sequence[dict[str, Any]], *, now: dt.datetime) -> list[Host]:
    """Return the hosts of these rows with their plans and volumes; the number of queries doesn't grow with them."""
    accounts = Account.objects.in_bulk({row["account"] for row in rows})
    names = {row["host"] for row in rows}
    plans: dict[tuple[Any, str], list[Plan]] = {}
    mine = Plan.objects.filter(account__in=accounts, source__host__in=names, edition=Edition.ESSENTIAL)
    for plan in mine.select_related("source", "policy", "vault__region", "account").order_by("source__name"):
        plans.setdefault((plan.account_id, plan.source.host), []).append(plan)
    volumes, online = presence.volumes_of(names, now=now), presence.hosts(now=now)
    return [
        Host(
            account=accounts[row["account"]],
            name=row["host"],
            status=row["status"],
            region=row["region"],
            next_run_at=row["next_run_at"],
            online=row["host"] in online,
            plans=plans.get((row["account"], row["host"]), []),
            volumes=volumes.get(row["host"], []),
        )
        for row in rows
    ]


def get(account: Account, name: str, *, now: dt.datetime) -> Host:
    """Return one host; one that no source names yet is inactive."""
    rows = list(listed([account]).filter(host=name))
    if rows:
        return filled(rows, now=now)[0]
    volumes = presence.volumes_of([name], now=now).get(name, [])
    return Host(account, name, HostStatus.INACTIVE, online=name in presence.hosts(now=now), volumes=volumes)


def fit(volumes: Iterable[str]) -> list[str]:
    """Return the volumes that essential backup takes: none inside what it leaves out (C50)."""
    return [volume for volume in volumes if not editions.is_excluded(volume)]


def enable(
    host: Host,
    *,
    region: Region | None = None,
    wish: essential.Wish | None = None,
    actor: Actor,
    now: dt.datetime,
) -> essential.Enabled:
    """Protect a host, with nothing else to say (C2): all volumes that its worker tells, or its root; its own region.

    Enabled once more, it takes the volumes that are new. Raises what essential.enable raises.
    """
    wish = wish or essential.Wish()
    if not wish.roots:
        wish = replace(wish, roots=tuple(fit(host.volumes)) or (essential.ROOT,))
    return essential.enable(host.account, host.name, region=region or _region(host), wish=wish, actor=actor, now=now)


def _region(host: Host) -> Region:
    named = Region.objects.filter(sources__account=host.account, sources__host=host.name).distinct()
    for found in (named, Region.objects.all()):
        regions = list(found[:2])
        if len(regions) == 1:
            return regions[0]
    raise ValidationError({"region": f"There are several regions: name the one that {host.name} belongs to."})


def warnings(host: Host, *, now: dt.datetime) -> list[str]:
    """Return what a person should know of a host's protection (C17, C36, C53)."""
    texts: list[str] = []
    if host.unprotected:
        texts.append(
            f"Not protected: {', '.join(host.unprotected)}. Enable the host once more to take them in, each as a "
            "source of its own."
        )
    for plan in host.plans:
        if plan.state == PlanState.PAUSED:
            texts += retention.warnings_on_pause(plan, now=now)
        texts += retention.warnings_on_disable(plan.policy, now=now)
        newest = plan.vault.points.filter(series=plan.source.series).order_by("-completed_at").first()
        if newest and (told := editions.long_run_warning(plan, bytes_total=newest.bytes_total)):
            texts.append(f"{plan.source}: {told}")
    return texts


def cancel(host: Host, *, confirmation: str, actor: Actor, now: dt.datetime) -> removal.Erasure:
    """Cancel a host's essential backup: no run any more, all its points go, for good, as far as no lock protects them
    (C32, Settled 1); the answer tells until when. Raises ConfirmationWrong, EssentialMissing.
    """
    if confirmation != host.name:
        raise ConfirmationWrong(
            f"Type {host.name!r} to confirm: all its backups are deleted, and that can't be undone."
        )
    if not host.plans:
        raise essential.EssentialMissing(f"{host.name} has no essential backup that could be canceled.")
    found = [removal.erase(plan.source, confirmation=plan.source.name, actor=actor, now=now) for plan in host.plans]
    ends = max((one.ends_at for one in found if one.ends_at), default=None)
    record(actor, "host.cancel", host.plans[0].source, account=host.account, now=now, host=host.name)
    return removal.Erasure(
        points=sum(one.points for one in found),
        held=sum(one.held for one in found),
        locked=sum(one.locked for one in found),
        ends_at=ends,
    )
