"""Which hosts are running: every worker writes down, a few times a minute, that it lives and what it serves."""

import datetime as dt
from collections.abc import Iterable

from django.conf import settings

from jobs.models import HostDay, Worker

FORGOTTEN_AFTER = dt.timedelta(days=1)
HOST_DAYS_KEPT = dt.timedelta(days=100)
HOST_QUEUE = "host."


def seen(name: str, queues: Iterable[str], *, now: dt.datetime) -> None:
    """Note that the worker `name` lives and serves `queues`."""
    Worker.objects.update_or_create(name=name, defaults={"queues": sorted(queues), "seen_at": now})


def report_hosts(queues: Iterable[str], *, bytes_attached: int, now: dt.datetime) -> None:
    """Note that a worker of these hosts ran today, and what its machine's disks hold; the day's most counts (C45)."""
    for host in {queue.removeprefix(HOST_QUEUE) for queue in queues if queue.startswith(HOST_QUEUE)}:
        row, made = HostDay.objects.get_or_create(
            host=host, day=now.date(), defaults={"bytes_attached": bytes_attached}
        )
        if not made:
            HostDay.objects.filter(pk=row.pk, bytes_attached__lt=bytes_attached).update(bytes_attached=bytes_attached)


def gone(name: str) -> None:
    """Forget a worker that said good-bye."""
    Worker.objects.filter(name=name).delete()


def forget_old(*, now: dt.datetime) -> None:
    """Forget the workers that died without a good-bye, a day later, and what hosts told long ago."""
    Worker.objects.filter(seen_at__lt=now - FORGOTTEN_AFTER).delete()
    HostDay.objects.filter(day__lt=(now - HOST_DAYS_KEPT).date()).delete()


def served(queue: str, *, now: dt.datetime) -> bool:
    """Say whether a worker that was seen lately serves `queue` (C19, C26)."""
    recent = now - dt.timedelta(seconds=settings.WORKER_SEEN_S)
    lists = Worker.objects.filter(seen_at__gte=recent).values_list("queues", flat=True)
    return any(queue in queues for queues in lists)
