"""Send the message that a step waits. It carries one id; the row says everything else."""

import contextlib
import datetime as dt
import time
from collections.abc import Iterable, Iterator
from contextvars import ContextVar

import structlog
from celery import current_app
from django.db import transaction
from kombu.exceptions import OperationalError

from jobs.alert_models import Alert, Delivery
from jobs.models import Job, Step
from policies.models import Source
from vaults.models import Vault

log = structlog.get_logger(__name__)

_muted: ContextVar[bool] = ContextVar("doorbell_muted", default=False)

RUN_STEP = "jobs.run_step"
TRY_SOURCE = "jobs.try_source"
READ_VAULT = "jobs.read_vault"
THAW = "jobs.thaw"
ROUTE_ALERT = "jobs.route_alert"
SEND_DELIVERY = "jobs.send_delivery"
# A worker that comes later need not answer any more: the person has gone.
ASKED_FOR_S = 120
BATCH = 500
# How long a broker that did not answer is left alone by those who tell of alerts.
LEFT_ALONE_S = 15.0
_away_until_s = 0.0


def ring(step: Step, *, now: dt.datetime) -> None:
    """Send the step's message once the transaction is committed.

    A broker that does not answer costs time and nothing else: the row keeps `rung_at` empty and a sweep rings again.
    """
    transaction.on_commit(lambda: _send(step, now))


def ring_all(steps: Iterable[Step], *, now: dt.datetime) -> int:
    """Send the messages of many steps over one connection; return how many. Call it outside of any transaction.

    A broker that does not answer is asked once: what is left over keeps `rung_at` empty for the sweep.
    """
    sent: list[int] = []
    try:
        for step in steps if not _muted.get() else ():
            current_app.send_task(RUN_STEP, args=(step.pk,), queue=step.queue, retry=False)
            sent.append(step.pk)
    except OperationalError as error:
        log.warning("doorbell.lost", sent=len(sent), error=str(error))
    for first in range(0, len(sent), BATCH):
        Step.objects.filter(pk__in=sent[first : first + BATCH]).update(rung_at=now)
    return len(sent)


def ask_to_try(source: Source) -> None:
    """Ask the worker on the source's host to try it, once the transaction is committed. A lost message is asked again
    by the person who waits.
    """
    transaction.on_commit(lambda: _ask(source))


def _ask(source: Source) -> None:
    with contextlib.suppress(OperationalError):
        current_app.send_task(TRY_SOURCE, args=(str(source.pk),), queue=source.queue, retry=False, expires=ASKED_FOR_S)


def ask_to_read(vault: Vault) -> None:
    """Ask a worker of the vault's region to meter it. A lost message is sent again by a later sweep."""
    if not _muted.get():
        with contextlib.suppress(OperationalError):
            current_app.send_task(READ_VAULT, args=(str(vault.pk),), queue=vault.region.queue, retry=False)


def ask_to_thaw(job: Job) -> None:
    """Ask the worker on the job's host, once the transaction is committed, to let the application go on. A lost message
    is sent again by the sweep.
    """
    transaction.on_commit(lambda: _ask_to_thaw(job))


def _ask_to_thaw(job: Job) -> None:
    if not _muted.get():
        with contextlib.suppress(OperationalError):
            current_app.send_task(THAW, args=(str(job.pk),), queue=job.queue_work, retry=False, expires=ASKED_FOR_S)


def ring_alert(alert: Alert) -> None:
    """Ask any worker to see who hears of the alert, once the transaction is committed. A sweep asks again."""
    transaction.on_commit(lambda: _call(ROUTE_ALERT, str(alert.pk)), robust=True)


def ring_delivery(delivery: Delivery, *, now: dt.datetime) -> None:
    """Ask any worker to send the delivery, once the transaction is committed. A sweep asks again."""

    def send() -> None:
        if _call(SEND_DELIVERY, str(delivery.pk)):
            Delivery.objects.filter(pk=delivery.pk).update(rung_at=now)

    transaction.on_commit(send, robust=True)


def _call(task: str, key: str) -> bool:
    """Send a message to any worker that serves the sweeps; False when the broker is away.

    One that was away just now is not asked again for a while: each attempt costs seconds of whoever tells.
    """
    global _away_until_s
    if _muted.get() or time.monotonic() < _away_until_s:
        return False
    try:
        current_app.send_task(task, args=(key,), retry=False, expires=ASKED_FOR_S)
    except OperationalError as error:
        log.warning("doorbell.lost", task=task, key=key, error=str(error))
        _away_until_s = time.monotonic() + LEFT_ALONE_S
        return False
    return True


@contextlib.contextmanager
def muted() -> Iterator[None]:
    """Send nothing inside: the caller does the steps itself."""
    token = _muted.set(True)
    try:
        yield
    finally:
        _muted.reset(token)


def _send(step: Step, now: dt.datetime) -> None:
    if _muted.get():
        return
    try:
        current_app.send_task(RUN_STEP, args=(step.pk,), queue=step.queue, retry=False)
    except OperationalError as error:
        log.warning("doorbell.lost", step=step.pk, queue=step.queue, error=str(error))
        return
    Step.objects.filter(pk=step.pk).update(rung_at=now)
