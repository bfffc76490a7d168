"""Start and cancel jobs. Starting work means creating a Job; the callers ring the doorbell of its first step."""

import datetime as dt
from dataclasses import dataclass, field
from typing import Any

from django.core.exceptions import ValidationError
from django.db import IntegrityError, transaction
from django.db.models import Q

from accounts import grants
from accounts.models import Account
from accounts.refusals import Refused
from accounts.services import Actor, record
from accounts.states import Privilege
from jobs import alerts, doorbell, presence, steps
from jobs.models import Job, Step
from jobs.states import JobState, Kind, Lane, Stage, StepState, Trigger
from policies import clusters, connection, editions, limits, moments, reading
from policies.kinds import TYPES
from policies.models import Plan, Source
from policies.services import SourceErasing, long_run
from vaults import quotas
from vaults.limits import kept
from vaults.models import RecoveryPoint, Vault, VaultState, VaultType

VERIFY_LEVELS = ("inventory", "structure", "footers", "scrub", "content")


class SourceBusy(Refused):
    """One backup at a time per source (C52)."""

    code = "source_busy"


class VaultUnfit(Refused):
    """The vault cannot take new backups now."""

    code = "vault_unfit"


class DestinationOffline(Refused):
    """No worker of the destination host was seen lately (C26)."""

    code = "destination_offline"


class DestinationElsewhere(Refused):
    """The destination belongs to another region than the vault (C25)."""

    code = "destination_in_other_region"


class DestinationUnknown(Refused):
    """The point's source is not known here, so that there is no original place."""

    code = "destination_unknown"


class HostOffline(Refused):
    """Nobody can look at a host's source: no worker of the host was seen lately."""

    code = "host_offline"


class OverwriteUnconfirmed(Refused):
    """Overwriting loses what is there (C28)."""

    code = "overwrite_unconfirmed"


class JobEnded(Refused):
    """What has ended cannot be canceled."""

    code = "job_ended"


@dataclass(frozen=True, slots=True)
class Selection:
    """What to restore (C24), from which paths, to where. `to` empty is the original place, else what the destination's
    kind says (policies.kinds): an existing folder, a bucket, a database.

    `mode`: all, include or exclude; `patterns` for the latter two. `destination` None is the point's own source.
    """

    mode: str = "all"
    patterns: list[str] = field(default_factory=list)
    to: str = ""
    same_name: str = "skip"
    overwrite_confirmed: bool = False
    destination: Source | None = None


def create(account: Account, *, now: dt.datetime, **values: Any) -> Job:
    """Create the job with its first step. The caller holds the transaction. Raises VaultUnfit for one that is gone."""
    if values["vault"].state == VaultState.DELETED:
        raise VaultUnfit(f"{values['vault']} was deleted.", code="vault_deleted")
    is_backup = values["kind"] == Kind.BACKUP
    lane = lane_of(values.get("source"), values.get("trigger", Trigger.MANUAL)) if is_backup else Lane.ALL
    job = Job.objects.create(account=account, state=JobState.QUEUED, round=1, created_at=now, lane=lane, **values)
    Step.objects.create(job=job, round=1, stage=Stage.PLAN, queue=job.queue_work, created_at=now)
    steps.tell(job.pk, "Created", now=now)
    return job


def lane_of(source: Source | None, trigger: str) -> str:
    """Return in which lane a backup of the source runs: a cluster's manual and automatic ones go side by side (D9)."""
    if source is None or not TYPES[source.kind].is_cluster:
        return Lane.ALL
    return Lane.MANUAL if trigger == Trigger.MANUAL else Lane.AUTOMATIC


def first_step(job: Job) -> Step:
    """Return the step whose doorbell the creator of a job has to ring."""
    return job.steps.get(round=1, stage=Stage.PLAN)


def check_vault(vault: Vault, *, now: dt.datetime) -> None:
    """Raise VaultUnfit unless the vault takes new backups, QuotaExceeded when it is full."""
    check_state(vault, now=now)
    quotas.check(vault)


def check_state(vault: Vault, *, now: dt.datetime) -> None:
    """Raise VaultUnfit unless the vault takes new backups, however full it is."""
    if vault.type != VaultType.GENERAL:
        raise VaultUnfit(f"{vault} is a replication target: it takes no backups of its own. Choose a general vault.")
    if vault.state != VaultState.READY:
        raise VaultUnfit(f"{vault} is in state {vault.state}. Verify it first.", code="vault_not_ready")
    try:
        editions.check_running(vault, now=now)
    except editions.TrialEnded as refusal:
        raise VaultUnfit(str(refusal), code=refusal.code) from refusal


def backup_values(plan: Plan) -> dict[str, Any]:
    """Return what a backup of the plan has in its job's row, whatever started it."""
    return {
        "kind": Kind.BACKUP,
        "vault": plan.vault,
        "source": plan.source,
        "plan": plan,
        "rule": plan.next_rule,
        "limits": kept(limits.of(plan)),
        "host": plan.source.host,
        "queue_work": plan.source.queue,
        "queue_finish": plan.vault.region.queue,
    }


def running_backup(source: Source, *, lane: str = "") -> Job | None:
    """Return the backup job of the source, or of another source on its host, that has not ended (C52).

    With `lane` only one of this lane counts.
    """
    mine = Q(source=source, lane=lane) if lane else Q(source=source)
    if source.host:
        mine |= Q(source__account_id=source.account_id, host=source.host)
    return Job.objects.active().filter(mine, kind=Kind.BACKUP).first()


@transaction.atomic
def request_on_demand(source: Source, vault: Vault, *, actor: Actor, now: dt.datetime, deep: bool = False) -> Job:
    """Back up a cluster by hand into a vault (D2); the point stays until somebody deletes it (D30).

    Raises NotACluster, SourceErasing, VaultUnfit; SourceBusy while another backup of it runs, automatic or manual (D8).
    """
    clusters.check(source)
    # Whoever commits a backup of this source waits for this lock, by its foreign key: it counts here, or comes after.
    source = Source.objects.select_for_update(of=("self",)).select_related("account", "region").get(pk=source.pk)
    if source.erasing_since:
        raise SourceErasing(f"{source} is being deleted with its automatic backups.")
    if vault.account_id != source.account_id:
        raise VaultUnfit(f"{vault} belongs to another account than {source}.", code="vault_of_another_account")
    check_vault(vault, now=now)
    if busy := running_backup(source):
        by = "automatically" if busy.lane == Lane.AUTOMATIC else "by hand"
        raise SourceBusy(
            f"{source} is being backed up {by} already. Wait for that job, or cancel it.", job=str(busy.pk)
        )
    job = create(
        source.account,
        now=now,
        kind=Kind.BACKUP,
        vault=vault,
        source=source,
        requested_by=actor.user,
        settings={"deep": deep},
        queue_work=source.queue,
        queue_finish=vault.region.queue,
    )
    record(actor, "job.backup", job, account=source.account, now=now, source=str(source.pk), vault=str(vault.pk))
    return job


def request_run(plan: Plan, *, actor: Actor, now: dt.datetime) -> Job:
    """Start one of a cluster's automatic backups out of its turn: the first (D12), or one that failed again.

    Raises VaultUnfit, SourceBusy, NotGranted.
    """
    check_vault(plan.vault, now=now)
    grants.need(plan.account, plan.source, Privilege.BACKUP, now=now)
    values = backup_values(plan) | {"trigger": Trigger.SCHEDULED, "rule": moments.longest_rule(plan.policy)}
    try:
        with transaction.atomic():
            job = create(plan.account, now=now, requested_by=actor.user, **values)
            record(actor, "job.backup", job, account=plan.account, now=now, plan=str(plan.pk))
            return job
    except IntegrityError as error:
        busy = running_backup(plan.source, lane=Lane.AUTOMATIC)
        if busy is None:
            raise
        raise SourceBusy(f"{plan.source} is being backed up already. Wait for that job.", job=str(busy.pk)) from error


def request_backup(plan: Plan, *, actor: Actor, now: dt.datetime, deep: bool = False) -> Job:
    """Start a backup by hand; a paused plan may be run too. Raises SourceBusy, VaultUnfit, NotGranted (B8).

    Of a cluster that is a manual backup like any other, into the plan's vault.
    """
    if TYPES[plan.source.kind].is_cluster:
        return request_on_demand(plan.source, plan.vault, actor=actor, now=now, deep=deep)
    check_vault(plan.vault, now=now)
    grants.need(plan.account, plan.source, Privilege.BACKUP, now=now)
    if plan.source.account_id != plan.account_id and (busy := running_backup(plan.source)):
        raise _busy(plan, busy)
    values = backup_values(plan) | {"rule": moments.longest_rule(plan.policy), "settings": {"deep": deep}}
    try:
        with transaction.atomic():
            job = create(plan.account, now=now, requested_by=actor.user, **values)
            for account in {plan.account, plan.source.account}:
                record(actor, "job.backup", job, account=account, now=now, plan=str(plan.pk))
            warn(job, long_run(plan), now=now)
            return job
    except IntegrityError as error:
        busy = running_backup(plan.source)
        if busy is None:
            raise
        raise _busy(plan, busy) from error


def _busy(plan: Plan, busy: Job) -> SourceBusy:
    """Return the refusal that names the job in the way, unless it is another account's."""
    if busy.account_id != plan.account_id:
        return SourceBusy(f"Another account backs up {plan.source} or its host just now. Try again later.")
    return SourceBusy(
        f"{busy.source or plan.source.host} is being backed up already, and a host does one backup at a time. "
        "Wait for that job, or cancel it.",
        job=str(busy.pk),
    )


def warn(job: Job, warning: str, *, now: dt.datetime) -> None:
    """Add what a person should know to the job's story, if there is anything."""
    if warning:
        steps.tell(job.pk, warning, now=now, level="warning")


def warn_of_size(job: Job, *, bytes_to_read: int, now: dt.datetime) -> None:
    """Tell in the job's story that it may outlast a day, once its walk has shown how much there is (C53).

    What the size of the newest point told at the start is not told again.
    """
    if job.plan is None or long_run(job.plan):
        return
    warn(job, editions.long_run_warning(job.plan, bytes_total=bytes_to_read), now=now)


def unserved(source: Source, verb: str = "is") -> str:
    """Return, for people, that nobody serves the source's queue."""
    return f"No worker {verb} running {f'on {source.host}' if source.host else f'for the region {source.region}'}"


def _serve(source: Source) -> str:
    return f"Start one{' there' if source.host else ''} with the queue {source.queue}."


def record_skipped(plan: Plan, reason: str, *, now: dt.datetime, **values: Any) -> Job:
    """Leave a job that tells why the plan does not run; with `scheduled_for`, at which moment."""
    told = backup_values(plan) | {"trigger": Trigger.SCHEDULED, "error": reason} | values
    job = Job.objects.create(
        account=plan.account, state=JobState.SKIPPED, created_at=now, ended_at=now, cleaned=True, **told
    )
    steps.tell(job.pk, reason, now=now, level="warning")
    alerts.job_ended(job.pk, now=now)
    return job


def _destination(point: RecoveryPoint, wanted: Source | None) -> Source:
    """Return the source row that stands for the host to restore to. Raises the refusals of C25."""
    original = Source.objects.filter(pk=point.series).first() if _is_uuid(point.series) else None
    destination = wanted or original
    if destination is None:
        raise DestinationUnknown("The source of this point is not known here. Name the destination to restore to.")
    if destination != original and destination.region_id != point.vault.region_id:
        raise DestinationElsewhere(
            f"{destination} belongs to the region {destination.region}, the vault to {point.vault.region}. "
            "Restore to a host of the vault's region."
        )
    return destination


def destinations(point: RecoveryPoint) -> list[Source]:
    """Return the sources that a point can be restored to: its own, and those of its vault's region that take it."""
    mine = Source.objects.filter(account=point.vault.account_id, erasing_since=None).select_related("region")
    near = mine.filter(Q(region=point.vault.region_id) | Q(pk=point.series if _is_uuid(point.series) else None))
    return [source for source in near if reading.takes(source, kind=point.source_kind)]


def _is_uuid(text: str) -> bool:
    return len(text) == 36 and text.count("-") == 4


def shows_credentials(point: RecoveryPoint, selection: Selection) -> bool:
    """Say whether a restore would show the destination's stored credentials to a server that `to` names."""
    destination = _destination(point, selection.destination)
    return TYPES[destination.kind].leaves(selection.to)


def check_served(destination: Source, *, now: dt.datetime) -> None:
    """Raise DestinationOffline when nobody there would do the work."""
    if not presence.served(destination.queue, now=now):
        raise DestinationOffline(f"{unserved(destination)}. {_serve(destination)}")


def request_restore(point: RecoveryPoint, selection: Selection, *, actor: Actor, now: dt.datetime) -> Job:
    """Start a restore. Raises NotGranted for another account's host (B8), DestinationUnknown, DestinationElsewhere,
    DestinationUnfit, DestinationOffline, OverwriteUnconfirmed, ValidationError for a place that is none.
    """
    if selection.same_name == "overwrite" and not selection.overwrite_confirmed:
        raise OverwriteUnconfirmed(
            "Overwriting loses the present content of files with the same name. Confirm it with overwrite_confirmed."
        )
    destination = _destination(point, selection.destination)
    if selection.destination is None:  # who names one was asked for the right to it
        grants.need(point.vault.account, destination, Privilege.RESTORE, now=now)
    reading.check_replica(point.vault, kind=point.source_kind)
    reading.check_takes(destination, kind=point.source_kind)
    try:
        reading.check_place(destination, kind=point.source_kind, to=selection.to)
    except ValidationError as error:
        raise ValidationError({"to": error.messages}) from error
    check_served(destination, now=now)
    wanted = {
        "mode": selection.mode,
        "patterns": selection.patterns,
        "to": selection.to,
        "same_name": selection.same_name,
    }
    with transaction.atomic():
        job = create(
            point.vault.account,
            now=now,
            kind=Kind.RESTORE,
            vault=point.vault,
            source=destination,
            point=point,
            requested_by=actor.user,
            settings=wanted,
            queue_work=destination.queue,
            queue_finish=destination.queue,
        )
        for account in {job.account, destination.account}:
            record(actor, "job.restore", job, account=account, now=now, point=str(point.pk), host=destination.host)
    return job


def request_verify(vault: Vault, *, level: str, actor: Actor, now: dt.datetime) -> Job:
    """Start a verification of the vault at one of VERIFY_LEVELS."""
    queue = vault.region.queue
    with transaction.atomic():
        job = create(
            vault.account,
            now=now,
            kind=Kind.VERIFY,
            vault=vault,
            requested_by=actor.user,
            settings={"level": level},
            queue_work=queue,
            queue_finish=queue,
        )
        record(actor, "job.verify", job, account=vault.account, now=now, level=level)
    return job


@transaction.atomic
def request_cancel(job: Job, *, actor: Actor, now: dt.datetime) -> Job:
    """Stop a job (C43): queued steps end at once, running ones at their next check. Raises JobEnded.

    Nothing that completed earlier is touched, and no recovery point comes about (C42). Safe to call twice.
    """
    running = Job.objects.filter(pk=job.pk, state__in=(JobState.CREATED, JobState.QUEUED))
    if not running.update(state=JobState.CANCELED, ended_at=now):
        Job.objects.filter(pk=job.pk, state=JobState.RUNNING).update(state=JobState.CANCELING)
    job.refresh_from_db()
    if job.ended and job.state != JobState.CANCELED:
        raise JobEnded(f"The job has ended already: {job.get_state_display().lower()}.", state=job.state)
    job.steps.filter(state=StepState.QUEUED).update(state=StepState.CANCELED, ended_at=now)
    steps.tell(job.pk, f"Canceled by {actor.name}", now=now, level="warning")
    record(actor, "job.cancel", job, account=job.account, now=now)
    steps.settle_cancel(job.pk, now=now)
    job.refresh_from_db()
    return job


def try_source(source: Source, *, actor: Actor, now: dt.datetime) -> bool:
    """Try the connection to a source; say whether the result stands in its row already.

    What a host reads is tried by its worker, a moment later. Raises HostOffline.
    """
    if source.host and not presence.served(source.queue, now=now):
        raise HostOffline(f"{unserved(source)}, so nobody can look at {source}. {_serve(source)}")
    record(actor, "source.test", source, account=source.account, now=now)
    if source.host:
        doorbell.ask_to_try(source)
    else:
        connection.note(source, now=now)
    return not source.host


def canceling() -> list[Any]:
    """Return the ids of the jobs that are being canceled."""
    return list(Job.objects.filter(state=JobState.CANCELING).values_list("pk", flat=True))
