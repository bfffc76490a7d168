"""Replicating a vault to another region: who may, how it begins, how it ends (rules E1-E42)."""

import datetime as dt
from collections.abc import Callable
from typing import Any, NotRequired, TypedDict, Unpack

from django.db import IntegrityError, transaction
from django.db.models import Exists, OuterRef, QuerySet

from accounts.models import Account
from accounts.refusals import Refused
from accounts.services import Actor, record
from accounts.shapes import checked
from engine import links
from engine.errors import EngineError
from vaults import repositories, services
from vaults.limits import ReplicationLimitsSerializer, kept, load
from vaults.models import KeyProvider, LinkState, RecoveryPoint, Region, ReplicationLink, Vault, VaultState, VaultType

TARGETS_MAX = 5  # for one account in one region (E11)


class NotReplicable(Refused):
    """The vault can't be the source of a replication (E10, E23)."""

    code = "not_replicable"


class TargetUnfit(Refused):
    """The vault, or its region, can't be the target of this replication (E11, E16, E24, E29)."""

    code = "target_unfit"


class Replicated(Refused):
    """A vault has one replication target (E12), and is not deleted while it has it (E22)."""

    code = "vault_replicated"


class NotReplicated(Refused):
    """Nothing is replicated from this vault."""

    code = "not_replicated"


class Options(TypedDict):
    """How a replication begins, as `start` says."""

    key_secret: NotRequired[str]
    limits: NotRequired[dict[str, Any] | None]
    actor: Actor
    now: dt.datetime


def start(
    source: Vault,
    target: Vault,
    *,
    key_secret: str = "",
    limits: dict[str, Any] | None = None,
    actor: Actor,
    now: dt.datetime,
) -> ReplicationLink:
    """Replicate `source` to `target`: one that waits for its source, or a new row, which is made in the same step.

    `key_secret` is what reaching a new target's key needs, `limits` how fast it may go. Raises the refusals above,
    ValidationError, and what making a vault raises. Crash: leaves at most an empty replica in the store; asking again
    goes on with it.
    """
    keeps_to = complete_limits(limits or {})
    check(source, target)
    new = target._state.adding
    try:
        if new:
            services.create_vault(target, key_secret=key_secret, actor=actor, now=now, source=source)
        else:
            repositories.create_replica(source, target, now=now)
    except (EngineError, OSError) as error:
        raise services.RegionUnusable(f"The replica could not be made: {error}") from error
    try:
        with transaction.atomic():
            Vault.objects.filter(pk=target.pk).update(state=VaultState.READY, stored_id=target.stored_id)
            link = ReplicationLink.objects.create(
                account=source.account, source=source, target=target, created_at=now, limits=keeps_to,
                historical_total=source.points.count(), points_behind=source.points.count(),
            )  # fmt: skip
            record(
                actor, "vault.replicate", source, account=source.account, now=now,
                target=str(target.pk), region=target.region.name,
            )  # fmt: skip
    except IntegrityError as error:
        raise Replicated(f"{source} has a replication target already: a vault has one.") from error
    target.refresh_from_db()
    return link


# What apps above ask before a replication is begun at a vault; each raises Refused (E9).
checks_at_vault: list[Callable[[Vault], None]] = []


def start_at_vault(source: Vault, target: Vault, **options: Unpack[Options]) -> ReplicationLink:
    """Replicate a vault because a person asks for it there. Raises what `start` does, and NotReplicable (E9)."""
    for check_at_vault in checks_at_vault:
        check_at_vault(source)
    return start(source, target, **options)


def check(source: Vault, target: Vault) -> None:
    """See that `source` can be replicated to `target`, which may be a new row. Raises the refusals above."""
    _check_source(source)
    _check_target(source, target)


def _check_source(source: Vault) -> None:
    if source.type != VaultType.GENERAL:
        raise NotReplicable(f"{source} is a replication target itself: replicas are not replicated on.")
    if source.is_trial:
        raise NotReplicable(f"{source} is the vault of a trial, which is not replicated. Convert its plan first.")
    if source.state != VaultState.READY:
        raise NotReplicable(f"{source} is {source.get_state_display().lower()}: mend it first.")
    if source.links_out.active().exists():
        raise Replicated(f"{source} has a replication target already: a vault has one.")
    check_region(source.region)


def check_region(region: Region) -> None:
    """See that a region is set up for replication. Raises NotReplicable."""
    if not region.supports_replication:
        able = ", ".join(Region.objects.filter(supports_replication=True).values_list("name", flat=True)) or "none"
        raise NotReplicable(f"The region {region} is not set up for replication. Regions that are: {able}.")


def _check_target(source: Vault, target: Vault) -> None:
    if target.account_id != source.account_id:
        raise TargetUnfit("Source and target must belong to one account.")
    if target.region_id == source.region_id:
        raise TargetUnfit(f"{source} is in {source.region} as well: choose another region.", code="same_region")
    check_region(target.region)
    if target.type != VaultType.REPLICATION_TARGET:
        raise TargetUnfit(f"{target} is a general vault: choose or make a replication target.")
    if not target._state.adding and target.state != VaultState.EMPTY:
        raise TargetUnfit(f"{target} has had a source already: a replication that ended is never resumed (E38).")
    held_by = target.key_url.partition(":")[0] or KeyProvider.KEYRING
    if held_by != source.key_provider:
        raise TargetUnfit(
            f"{source} is encrypted with the {source.get_key_provider_display().lower()}: the target must use the same "
            "method, with a key of its own.",
            code="other_encryption",
        )
    taken = targets_in(source.account, target.region)
    if taken.exclude(pk=target.pk).count() >= TARGETS_MAX:
        raise TargetUnfit(
            f"There are {TARGETS_MAX} replication targets in {target.region} already: an account has no more there."
        )


def complete_limits(wanted: dict[str, Any]) -> dict[str, Any]:
    """Return limits as a link keeps them. Raises ValidationError with what to change, by "limits.<field>"."""
    found = checked("limits", ReplicationLimitsSerializer, wanted)
    return dict(ReplicationLimitsSerializer(found).data)


def limit(link: ReplicationLink, wanted: dict[str, Any], *, actor: Actor, now: dt.datetime) -> ReplicationLink:
    """Let the replica follow no faster than these limits say, from its next job on (C37).

    Raises NotReplicated, ValidationError with what to change by "limits.<field>".
    """
    was, link.limits = link.limits, complete_limits(wanted)
    with transaction.atomic():
        if not ReplicationLink.objects.active().filter(pk=link.pk).update(limits=link.limits):
            raise NotReplicated(f"The replication to {link.target} has ended: there is nothing to limit any more.")
        record(
            actor, "vault.limit_replication", link.source, account=link.account, now=now,
            target=str(link.target_id), limits=[was, link.limits],
        )  # fmt: skip
    return link


def limits_into(target: Vault) -> dict[str, Any]:
    """Return the limits of a job that brings the target what it lacks, as the job's row keeps them."""
    link = ReplicationLink.objects.active().filter(target=target).first()
    return kept(load(link.limits)) if link else {}


def targets_in(account: Account, region: Region) -> QuerySet[Vault]:
    """Return the account's replication targets in a region, those that had a source too (E11)."""
    return Vault.objects.present().filter(account=account, region=region, type=VaultType.REPLICATION_TARGET)


def lag_s(link: ReplicationLink, *, now: dt.datetime) -> int:
    """Return for how many seconds the oldest point that is still to come has been waiting, 0 when none is (E4)."""
    here = RecoveryPoint.objects.filter(vault=link.target_id, series=OuterRef("series"), point_id=OuterRef("point_id"))
    waiting = link.source.points.filter(~Exists(here)).order_by("completed_at").first()
    return max(int((now - waiting.completed_at).total_seconds()), 0) if waiting else 0


def stop(source: Vault, *, confirmation: str, actor: Actor, now: dt.datetime) -> ReplicationLink:
    """End the vault's replication for good (E38-E40): its target stays, and lives by itself from now on (E6).

    Works when the source's region is lost. Raises ConfirmationWrong, NotReplicated, and the target's storage errors.
    """
    source.confirm(confirmation)
    link = source.links_out.active().select_related("target__region").first()
    if link is None:
        raise NotReplicated(f"{source} is not replicated.")
    opened = repositories.open_vault(link.target)
    links.stop(opened.storage, opened.keys, now=now)
    with transaction.atomic():
        # What is there from now on goes by the retention that it came with (E17), not by an earlier deletion.
        link.target.points.filter(delete_due_at__isnull=False).update(delete_due_at=None)
        link.state, link.stopped_at = LinkState.STOPPED, now
        link.save(update_fields=["state", "stopped_at"])
        record(actor, "vault.stop_replication", source, account=source.account, now=now, target=str(link.target_id))
    return link
