"""The messages that workers take: ids only, every one safe to run twice. The rows say what to do."""

import contextlib
import datetime as dt
import uuid

import structlog
from celery import shared_task
from django.conf import settings
from django.utils import timezone

from accounts import chain
from jobs import (
    delivery,
    doorbell,
    due,
    erasure,
    executors,
    exporting,
    following,
    freezing,
    holdback,
    maintenance,
    meters,
    presence,
    quotas,
    removal,
    routing,
    scratch,
    services,
    steps,
    trialends,
    watches,
)
from jobs.models import Alert, Job, Step
from jobs.states import ENDED
from policies import connection, rescheduling, tagging
from policies.models import Source
from vaults.models import Vault

log = structlog.get_logger(__name__)
SWEEP_ROWS_MAX = 1000
FOLLOWING_MAX = 20  # each makes a vault in a store
BATCHES_MAX = 40


@shared_task(name=doorbell.RUN_STEP)
def run_step(step_id: int) -> None:
    """Do one step, if it still waits for somebody."""
    try:
        step = steps.claim(step_id, worker=executors.worker_name(), now=timezone.now())
    except steps.NotClaimable:
        return  # rung twice, canceled meanwhile, or another worker was faster
    with structlog.contextvars.bound_contextvars(job=str(step.job_id), step=step.pk, attempt=step.attempt):
        executors.run(step, clock=timezone.now)


@shared_task(name=doorbell.TRY_SOURCE)
def try_source(source_id: str) -> None:
    """Try a source of this host and keep the result in its row."""
    source = Source.objects.filter(pk=source_id).select_related("region").first()
    if source is not None:
        connection.note(source, now=timezone.now())


@shared_task(name=doorbell.READ_VAULT)
def read_vault(vault_id: str) -> None:
    """Look at a vault's store and meter its last day, unless that is done."""
    vault = Vault.objects.present().filter(pk=vault_id).select_related("account", "region").first()
    if vault is not None:
        meters.read_vault(vault, now=timezone.now())


@shared_task(name="jobs.sweep_metering")
def sweep_metering() -> None:
    """Meter the day that ended, account by account, ask for looks at the stores of vaults, and watch over quotas."""
    for vault in meters.sweep(now=timezone.now(), rows_max=SWEEP_ROWS_MAX):
        doorbell.ask_to_read(vault)
    quotas.sweep(now=timezone.now(), rows_max=SWEEP_ROWS_MAX)


@shared_task(name=doorbell.THAW)
def thaw(job_id: str) -> None:
    """Let the application on this host go on, if it is still at rest."""
    freezing.thaw(uuid.UUID(job_id), clock=timezone.now)


@shared_task(name=doorbell.ROUTE_ALERT)
def route_alert(alert_id: str) -> None:
    """See who hears of an alert that came about, or changed, just now."""
    now = timezone.now()
    for one in routing.route(uuid.UUID(alert_id), now=now):
        doorbell.ring_delivery(one, now=now)


@shared_task(name=doorbell.SEND_DELIVERY)
def send_delivery(delivery_id: str) -> None:
    """Send one delivery, if it still waits for somebody."""
    with contextlib.suppress(delivery.NotClaimable):
        delivery.deliver(uuid.UUID(delivery_id), clock=timezone.now)


@shared_task(name="jobs.sweep_alerts")
def sweep_alerts() -> None:
    """See what is overdue, route what nobody rang for, and ring again for deliveries that wait."""
    now = timezone.now()
    watches.sweep(now=now, rows_max=SWEEP_ROWS_MAX)
    routing.complete_rules(routing.incomplete()[:SWEEP_ROWS_MAX], now=now)
    for alert_id in Alert.objects.unrouted(now).values_list("pk", flat=True)[:SWEEP_ROWS_MAX]:
        routing.route(alert_id, now=now)
    rung_before = now - dt.timedelta(seconds=settings.STEP_RING_AGAIN_S)
    for one in delivery.waiting(now=now, rung_before=rung_before, rows_max=SWEEP_ROWS_MAX):
        doorbell.ring_delivery(one, now=now)


@shared_task(name="jobs.sweep_due_plans")
def sweep_due_plans() -> None:
    """Turn the plans whose moment has come into jobs, after plans follow what changed.

    All jobs come about first: thousands of messages would make them late. Of the messages so many are sent that the
    broker takes them in a second; the sweep of steps sends the others, as many at a time.
    """
    now = timezone.now()
    for _ in range(BATCHES_MAX):
        if rescheduling.go_on() < rescheduling.BATCH:
            break
    tagging.sweep(now=now)
    served, steps_made, left = presence.queues(now=now), list[Step](), set[uuid.UUID]()
    for _ in range(BATCHES_MAX):
        settled = due.settle(now=now, served=served, without=left)
        steps_made += settled.steps
        left |= settled.left
        if settled.plans < due.BATCH:
            break
    doorbell.ring_all(steps_made[:SWEEP_ROWS_MAX], now=now)


@shared_task(name="jobs.sweep_maintenance")
def sweep_maintenance() -> None:
    """Start the maintenance that is due, and go on with deletions that locks held up."""
    now = timezone.now()
    trialends.sweep(now=now, rows_max=SWEEP_ROWS_MAX)
    following.sweep(now=now, rows_max=FOLLOWING_MAX)
    for start in (maintenance.sweep, removal.sweep, holdback.sweep, erasure.sweep):
        for job in start(now=now, rows_max=SWEEP_ROWS_MAX):
            doorbell.ring(services.first_step(job), now=now)


@shared_task(name="jobs.sweep_exports")
def sweep_exports() -> None:
    """Tell the vaults' buckets of rows that changed; link what a process that died left outside the audit trail."""
    now = timezone.now()
    chain.sweep(now=now)
    exporting.sweep(now=now, rows_max=SWEEP_ROWS_MAX)


@shared_task(name="jobs.sweep_steps")
def sweep_steps() -> None:
    """Ring again for steps nobody came for, take over from dead workers, end what only waits for its cancel."""
    now = timezone.now()
    rung_before = now - dt.timedelta(seconds=settings.STEP_RING_AGAIN_S)
    doorbell.ring_all(Step.objects.unclaimed(now=now, rung_before=rung_before)[:SWEEP_ROWS_MAX], now=now)
    for step in Step.objects.stalled(now).select_related("job")[:SWEEP_ROWS_MAX]:
        if steps.give_up(step, now=now) and step.rung_in_vain(rung_before):
            doorbell.ring(step, now=now)
    for _ in freezing.sweep(now=now, rows_max=SWEEP_ROWS_MAX):
        pass
    for job_id in services.canceling():
        steps.settle_cancel(job_id, now=now)


@shared_task(name="jobs.sweep_ended_jobs")
def sweep_ended_jobs() -> None:
    """Remove what ended jobs left in the staging area, close their sessions; forget workers that died.

    What they left on this machine goes too. A region whose store did not answer once is left for the next sweep:
    waiting for it would hold up the others.
    """
    presence.forget_old(now=timezone.now())
    maintenance.forget_old(now=timezone.now(), rows_max=SWEEP_ROWS_MAX)
    scratch.sweep()
    away: set[object] = set()
    for job in Job.objects.filter(cleaned=False, state__in=ENDED).select_related("vault__region")[:SWEEP_ROWS_MAX]:
        if job.vault.region_id not in away and not executors.clean(job, clock=timezone.now):
            away.add(job.vault.region_id)
