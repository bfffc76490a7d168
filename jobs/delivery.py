"""Send what the rules decided: each delivery once, again after a while when that failed, until a day is over.

The row is the truth. A sender claims it by a conditional update and owns it for a while; one that died is replaced. A
channel that fails is tried by one sender at a time, so that it holds up nobody else's deliveries.
"""

import datetime as dt
import uuid
from collections.abc import Callable, Iterator, Mapping

import structlog
from django.db import transaction
from django.db.models import F, Q

from jobs import alerts, senders
from jobs.alert_models import (
    DELIVERY_OPEN,
    AlertType,
    Channel,
    ChannelKind,
    Delivery,
    DeliveryState,
    Severity,
    Told,
)
from jobs.routing import silenced_until
from jobs.senders import Sender, SendFailed

log = structlog.get_logger(__name__)

Clock = Callable[[], dt.datetime]
# How long a sender owns a delivery: longer than any of them takes (jobs.senders).
LEASE = dt.timedelta(seconds=120)
BACKOFF_S = (15, 60, 300, 900, 3600)
GIVE_UP_AFTER = dt.timedelta(days=1)


class NotClaimable(Exception):
    """It was sent, waits for its time or for another one, or another sender has it."""


@transaction.atomic
def claim(delivery_id: uuid.UUID, *, now: dt.datetime) -> Delivery:
    """Take a delivery that is due. Raises NotClaimable; safe to call twice, and at once."""
    found = Delivery.objects.due(now).filter(pk=delivery_id).select_related("channel__account", "alert").first()
    if found is None:
        raise NotClaimable(delivery_id)
    channel = found.channel
    if channel.failures and found.told != Told.TEST:
        # One sender at a time finds out whether a channel that failed is back.
        probe = Channel.objects.filter(pk=channel.pk, retry_at=channel.retry_at)
        if not probe.update(retry_at=now + LEASE):
            raise NotClaimable(delivery_id)
    mine = Delivery.objects.filter(pk=found.pk, state__in=DELIVERY_OPEN, attempt=found.attempt, next_at=found.next_at)
    if not mine.update(state=DeliveryState.SENDING, attempt=F("attempt") + 1, next_at=now + LEASE):
        raise NotClaimable(delivery_id)
    found.attempt += 1
    return found


def deliver(delivery_id: uuid.UUID, *, clock: Clock, using: Mapping[str, Sender] | None = None) -> Delivery:
    """Claim a delivery and send it; return it as it is then. Raises NotClaimable.

    A crash between sending and noting it sends it again, under the same id, when the lease is over.
    """
    delivery = claim(delivery_id, now=clock())
    if reason := _why_not(delivery, clock()):
        _end(delivery, DeliveryState.DROPPED, error=reason, now=clock())
    else:
        try:
            (using or senders.SENDERS)[delivery.channel.kind](delivery, now=clock())
        except SendFailed as error:
            _failed(delivery, error, now=clock())
        except Exception as error:
            log.exception("delivery.crashed", delivery=str(delivery.pk))
            text = f"The program failed: {type(error).__name__}. The worker's log tells more."
            _failed(delivery, SendFailed(text, transient=True), now=clock())
        else:
            _sent(delivery, now=clock())
    delivery.refresh_from_db()
    return delivery


def _why_not(delivery: Delivery, now: dt.datetime) -> str:
    """Return what has come in between since the rules decided, empty for nothing."""
    if delivery.told == Told.TEST:
        return ""
    if not delivery.channel.enabled:
        return "The channel was switched off"
    if delivery.alert is not None and (until := silenced_until(delivery.alert, now=now)):
        return f"Silenced until {until:%Y-%m-%d %H:%M} UTC"
    return ""


def _end(delivery: Delivery, state: str, *, now: dt.datetime, error: str = "") -> bool:
    mine = Delivery.objects.filter(pk=delivery.pk, state=DeliveryState.SENDING, attempt=delivery.attempt)
    return bool(mine.update(state=state, error=error, ended_at=now))


@transaction.atomic
def _sent(delivery: Delivery, *, now: dt.datetime) -> None:
    _end(delivery, DeliveryState.SENT, now=now)
    channel = delivery.channel
    Channel.objects.filter(pk=channel.pk).exclude(failures=0).update(failures=0, retry_at=None)
    alerts.resolve(channel.account_id, [_key(channel)], now=now)


@transaction.atomic
def _failed(delivery: Delivery, error: SendFailed, *, now: dt.datetime) -> None:
    """Let the delivery wait for another attempt, or give it up and say so in the inbox. A test is tried once."""
    if delivery.told == Told.TEST:
        _end(delivery, DeliveryState.GIVEN_UP, error=str(error), now=now)
        return
    channel = delivery.channel
    if error.transient and now < delivery.created_at + GIVE_UP_AFTER:
        mine = Delivery.objects.filter(pk=delivery.pk, state=DeliveryState.SENDING, attempt=delivery.attempt)
        wait = dt.timedelta(seconds=BACKOFF_S[min(delivery.attempt, len(BACKOFF_S)) - 1])
        if mine.update(state=DeliveryState.QUEUED, next_at=now + wait, error=str(error)):
            rest = dt.timedelta(seconds=BACKOFF_S[min(channel.failures, len(BACKOFF_S) - 1)])
            Channel.objects.filter(pk=channel.pk).update(failures=F("failures") + 1, retry_at=now + rest)
        return
    if _end(delivery, DeliveryState.GIVEN_UP, error=str(error), now=now):
        _tell(channel, str(error), now)


def _key(channel: Channel) -> str:
    return alerts.key_of(AlertType.CHANNEL_FAILED, channel=channel.pk)


def _tell(channel: Channel, error: str, now: dt.datetime) -> None:
    what = ChannelKind(channel.kind).label
    alerts.raise_(
        channel.account_id,
        alerts.Trouble(
            type=AlertType.CHANNEL_FAILED,
            key=_key(channel),
            severity=Severity.WARNING,
            title=f"An alert could not be delivered through {channel}",
            text=f"{error} ({what}). Mend the channel and send a test; what was given up stands in this list only.",
            detail={"channel": str(channel.pk)},
        ),
        now=now,
    )


def waiting(*, now: dt.datetime, rung_before: dt.datetime, rows_max: int) -> Iterator[Delivery]:
    """Yield the due deliveries that nobody was told of, or long ago; of a channel that fails one."""
    unheard = Q(rung_at=None) | Q(rung_at__lt=F("next_at")) | Q(rung_at__lte=rung_before)
    probed: set[uuid.UUID] = set()
    for delivery in Delivery.objects.due(now).filter(unheard).select_related("channel")[:rows_max]:
        if delivery.channel.failures:
            if delivery.channel_id in probed:
                continue
            probed.add(delivery.channel_id)
        yield delivery
