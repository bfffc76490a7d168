"""Due plans become jobs, or records of why there is none (C19, C54): a batch in one transaction.

A batch locks its plans and passes over those that another sweep holds, so that sweeps share the work and no moment has
two jobs. What the database refuses, because a person's backup began in between, is tried again plan by plan.
"""

import datetime as dt
import uuid
from collections import deque
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

from django.db import IntegrityError, connection, models, transaction

from accounts import grants
from accounts.states import Privilege
from jobs import alerts, presence, services
from jobs.models import Job, JobEvent, Step
from jobs.states import JobState, Kind, Stage, Trigger
from policies import moments
from policies.models import Edition, Plan, Source
from policies.moments import Run
from policies.services import long_run
from vaults import quotas

BATCH = 500
# A scheduled moment older than this was missed: it is recorded, not made up for (unless the plan says catch_up).
MISSED_AFTER_S = 3600
# Of the moments that one plan missed in a row the newest are recorded one by one, the others as a number.
RECORDED_MAX = 100
COUNTED_MAX = 10_000
# Where more are missed than are counted, the newest are looked for in the last two hours, days, ...
_SPANS = tuple(dt.timedelta(hours=hours) for hours in (2, 48, 30 * 24, 366 * 24))


@dataclass(slots=True)
class Settled:
    """What a batch did: how many plans it took, the steps to ring for, and the plans that are still due."""

    plans: int = 0
    steps: list[Step] = field(default_factory=list)
    left: set[uuid.UUID] = field(default_factory=set)


Busy = dict[tuple[Any, ...], Job]


@dataclass(slots=True)
class _Batch:
    """What a batch knows and makes. `busy`: backups that run, by source and by host. `begun`: account, host and moment
    of essential backups of which a volume ran. `full`: vaults that have reached their quota.
    """

    now: dt.datetime
    served: Collection[str]
    busy: Busy
    begun: set[tuple[Any, ...]]
    full: dict[uuid.UUID, quotas.QuotaExceeded]
    jobs: list[Job] = field(default_factory=list)
    plans: list[Plan] = field(default_factory=list)
    waiting: set[uuid.UUID] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class _Missed:
    """The moments of a plan that have come: the newest of them, and how many came before these, since when."""

    runs: list[Run]
    before: int
    since: dt.datetime


def settle(*, now: dt.datetime, served: Collection[str], without: Collection[uuid.UUID] = ()) -> Settled:
    """Deal with one batch of due plans, the longest waiting first. `served` are the queues that have a worker.

    Safe to call twice, and at once from several processes. Plans that wait for their host (catch_up) stay due.
    """
    taken = list(Plan.objects.due(now).exclude(pk__in=without).values_list("pk", flat=True)[:BATCH])
    if not taken:
        return Settled()
    try:
        return _settle(taken, now=now, served=served)
    except IntegrityError:
        found = Settled()
        for pk in taken:
            try:
                one = _settle([pk], now=now, served=served)
            except IntegrityError:
                one = Settled(1, left={pk})  # a person's backup began in between: the next sweep records that
            found.plans += one.plans
            found.steps += one.steps
            found.left |= one.left
        return found


def settle_plan(plan: Plan, *, now: dt.datetime) -> Job | None:
    """Deal with one plan; return the job of its newest moment. None when it is not due, or another sweep was first."""
    try:
        served = presence.queues(now=now)
        if not _settle([plan.pk], now=now, served=served).plans:
            return None
    except IntegrityError:
        return None
    finally:
        plan.refresh_from_db()
    return Job.objects.filter(plan=plan, scheduled_for__isnull=False).order_by("scheduled_for").last()


@transaction.atomic
def _settle(keys: list[uuid.UUID], *, now: dt.datetime, served: Collection[str]) -> Settled:
    free = Plan.objects.due(now).filter(pk__in=keys)
    locked = free.select_for_update(skip_locked=True, no_key=True, of=("self",))
    # What many plans share is fetched once, not joined to each of them.
    shared = ("account", "source__region", "policy__rules", "vault__region", "next_rule")
    plans = list(locked.select_related("source").prefetch_related(*shared))
    first = min((plan.next_run_at for plan in plans if plan.next_run_at), default=now)
    known = Job.objects.filter(plan__in=plans, scheduled_for__gte=first).order_by()
    had = set(known.values_list("plan_id", "scheduled_for"))
    batch = _Batch(now, served, _running(plans), _begun(plans, first), quotas.refusals([plan.vault for plan in plans]))
    for plan in plans:
        _one(plan, batch)
    _store(batch, [job for job in batch.jobs if (job.plan_id, job.scheduled_for) not in had])
    started = [job for job in batch.jobs if not job.ended and (job.plan_id, job.scheduled_for) not in had]
    steps = Step.objects.bulk_create(
        Step(job=job, round=1, stage=Stage.PLAN, queue=job.queue_work, created_at=now) for job in started
    )
    _move_on(batch.plans)
    return Settled(len(plans), steps, batch.waiting)


def _move_on(plans: list[Plan]) -> None:
    """Store the plans' moments: one statement with many rows, as Django's own way takes seconds for a batch."""
    named = {field.name: field for field in Plan._meta.fields}
    fields = [named[name] for name in ("next_run_at", "next_rule", "last_run_at", "last_rule", "id")]
    rows = [[one.get_db_prep_save(getattr(plan, one.attname), connection) for one in fields] for plan in plans]
    if rows:
        with connection.cursor() as cursor:
            cursor.executemany(
                "UPDATE policies_plan SET next_run_at = %s, next_rule_id = %s, last_run_at = %s, last_rule_id = %s "
                "WHERE id = %s",
                rows,
            )


def _store(batch: _Batch, jobs: list[Job]) -> None:
    Job.objects.bulk_create(jobs)
    JobEvent.objects.bulk_create(
        JobEvent(job=job, happened_at=batch.now, text=job.error or "Created", level="warning" if job.ended else "info")
        for job in jobs
    )
    for job in jobs:
        if not job.ended and job.plan is not None and job.plan.edition == Edition.ESSENTIAL:
            services.warn(job, long_run(job.plan), now=batch.now)
    # Of many missed in a row the newest tells enough.
    for job in {job.plan_id: job for job in jobs if job.ended}.values():
        alerts.job_ended(job.pk, now=batch.now)


def _running(plans: list[Plan]) -> Busy:
    """Return the backups that run, by their source and by their host, as far as these plans could meet them (C52)."""
    sources = [plan.source for plan in plans]
    near = models.Q(source__in=sources) | models.Q(host__in={source.host for source in sources if source.host})
    found = Job.objects.active().filter(near, kind=Kind.BACKUP).select_related("source", "plan").order_by("created_at")
    busy: Busy = {}
    for job in found:
        _occupy(busy, job)
    return busy


def _occupy(busy: Busy, job: Job) -> None:
    busy[(job.source_id, job.lane)] = job
    if job.host:
        # The host is its own account's, whoever backs it up (B8).
        busy[(job.source.account_id if job.source else job.account_id, job.host)] = job


def _begun(plans: list[Plan], first: dt.datetime) -> set[tuple[Any, ...]]:
    """Return of which hosts' essential backups a volume ran, with the moment: the other volumes take their turn."""
    hosts = {plan.source.host for plan in plans if plan.edition == Edition.ESSENTIAL}
    if not hosts:
        return set()
    ran = Job.objects.filter(host__in=hosts, scheduled_for__gte=first, plan__edition=Edition.ESSENTIAL)
    ran = ran.exclude(state__in=(JobState.MISSED, JobState.SKIPPED)).order_by()
    return set(ran.values_list("account_id", "host", "scheduled_for"))


def _one(plan: Plan, batch: _Batch) -> None:
    """Add what becomes of the plan's moments that have come, and move it on to the next one."""
    missed, following = _come(plan, batch.now)
    *older, newest = missed.runs
    state, code, reason = _why_not(plan, newest.moment, batch)
    told = [_not_done(plan, run, batch) for run in older]
    if missed.before and told:
        _tell_before(told[0], missed)
    batch.jobs += told
    if code == "volume_running" or (plan.catch_up and code == "worker_away"):
        batch.waiting.add(plan.pk)  # it stays due until its turn comes, or its host is back
        if not older:
            return
        plan.last_run_at, plan.last_rule = older[-1]
        plan.next_run_at, plan.next_rule = newest
    else:
        job = _row(plan, newest, batch.now, state=state or JobState.QUEUED, error=reason, error_code=code)
        batch.jobs.append(job)
        if not job.ended:
            _occupy(batch.busy, job)
        plan.last_run_at, plan.last_rule = newest
        plan.next_run_at, plan.next_rule = following or (None, None)
    batch.plans.append(plan)


def _come(plan: Plan, now: dt.datetime) -> tuple[_Missed, Run | None]:
    """Return the plan's moments up to now, and the first one that is still to come."""
    assert plan.next_run_at is not None
    rule = plan.next_rule or moments.longest_rule(plan.policy)
    assert rule is not None
    first = Run(plan.next_run_at, rule)
    newest, count, following = deque([first], RECORDED_MAX), 1, None
    plan.last_run_at, plan.last_rule = first  # what comes after it depends on it
    for run in moments.coming(plan, after=first.moment):
        if run.moment > now:
            following = run
            break
        if count == COUNTED_MAX:
            newest = deque(_newest(plan, now), RECORDED_MAX)
            following = moments.next_run(plan, after=now)
            break
        newest.append(run)
        count += 1
    return _Missed(list(newest), count - len(newest), first.moment), following


def _newest(plan: Plan, now: dt.datetime) -> Iterable[Run]:
    """Return the newest moments up to now of a plan that missed very many."""
    found: list[Run] = []
    for span in _SPANS:
        found = []
        for run in moments.coming(plan, after=now - span):
            if run.moment > now:
                break
            found.append(run)
        if len(found) >= RECORDED_MAX:
            break
    return found


def _why_not(plan: Plan, moment: dt.datetime, batch: _Batch) -> tuple[str, str, str]:
    """Return the state, code and reason that stand in for a run; nothing for one that starts."""
    source, busy = plan.source, batch.busy
    try:
        grants.need(plan.account, source, Privilege.BACKUP, now=batch.now)
    except grants.NotGranted as refusal:
        return JobState.SKIPPED, refusal.code, str(refusal)
    took_turns = _took_turns(plan, moment, batch)
    if (batch.now - moment).total_seconds() > MISSED_AFTER_S and not plan.catch_up and not took_turns:
        return JobState.MISSED, "service_away", _away(moment)
    lane = services.lane_of(source, Trigger.SCHEDULED)
    if met := busy.get((source.pk, lane)) or (busy.get((source.account_id, source.host)) if source.host else None):
        if met.scheduled_for == moment and plan.edition == Edition.ESSENTIAL == (met.plan and met.plan.edition):
            return "", "volume_running", ""
        if met.account_id != plan.account_id:
            return (
                JobState.SKIPPED,
                "previous_running",
                "Another account's backup of it, or of its host, was still running",
            )
        what = "The previous backup" if met.source_id == source.pk else f"The backup of {met.source}"
        return JobState.SKIPPED, "previous_running", f"{what} was still running (job {met.pk})"
    if source.queue not in batch.served:
        return JobState.MISSED, "worker_away", services.unserved(source, "was")
    try:
        services.check_state(plan.vault, now=batch.now)
    except services.VaultUnfit as refusal:
        return JobState.SKIPPED, refusal.code, str(refusal)
    if full := batch.full.get(plan.vault_id):
        return JobState.SKIPPED, full.code, str(full)
    return "", "", ""


def _took_turns(plan: Plan, moment: dt.datetime, batch: _Batch) -> bool:
    """Say whether the plan is late because other volumes of its host came first (C23, C52)."""
    place = (plan.account_id, plan.source.host, moment)
    return plan.edition == Edition.ESSENTIAL and place in batch.begun


def _away(moment: dt.datetime) -> str:
    return f"The service was not running at {moment:%Y-%m-%d %H:%M} UTC"


def _not_done(plan: Plan, run: Run, batch: _Batch) -> Job:
    """Return the record of an older moment that passed without a run."""
    state, code, reason = JobState.MISSED, "service_away", _away(run.moment)
    if _took_turns(plan, run.moment, batch):
        state, code = JobState.SKIPPED, "previous_running"
        reason = f"The backups of other volumes of {plan.source.host} went on until the next run was due"
    elif plan.catch_up:
        code = "not_made_up"
        reason = f"{_of(plan.source)} or the service was away until the plan was due again: that run stands in"
    return _row(plan, run, batch.now, state=state, error=reason, error_code=code)


def _of(source: Source) -> str:
    return source.host or f"The region {source.region}"


def _tell_before(job: Job, missed: _Missed) -> None:
    """Put into the oldest record that there are more, and how many."""
    at_least = "at least " if missed.before + len(missed.runs) >= COUNTED_MAX else ""
    job.error += f"; nor at {at_least}{missed.before:,} earlier moments since {missed.since:%Y-%m-%d %H:%M} UTC"
    job.report = {"missed_before": missed.before, "missed_since": missed.since.isoformat()}


def _row(plan: Plan, run: Run, now: dt.datetime, *, state: str, **values: Any) -> Job:
    ended = state in (JobState.MISSED, JobState.SKIPPED)
    values |= services.backup_values(plan) | {"rule": run.rule, "scheduled_for": run.moment}
    return Job(
        account=plan.account,
        trigger=Trigger.SCHEDULED,
        lane=services.lane_of(plan.source, Trigger.SCHEDULED),
        state=state,
        round=0 if ended else 1,
        created_at=now,
        ended_at=now if ended else None,
        cleaned=ended,
        **values,
    )
