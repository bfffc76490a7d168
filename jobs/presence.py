"""Which hosts are running: every worker writes down, a few times a minute, that it lives and what it serves."""

import datetime as dt
import itertools
from collections.abc import Iterable

from django.conf import settings

from jobs.models import HostDay, Worker

FORGOTTEN_AFTER = dt.timedelta(days=1)
HOST_DAYS_KEPT = dt.timedelta(days=100)
HOST_QUEUE = "host."


def seen(name: str, queues: Iterable[str], *, now: dt.datetime, volumes: Iterable[str] = ()) -> None:
    """Note that the worker `name` lives and serves `queues`, on a machine with these volumes."""
    found = {"queues": sorted(queues), "volumes": sorted(volumes), "seen_at": now}
    Worker.objects.update_or_create(name=name, defaults=found)


def volumes_of(hosts: Iterable[str], *, now: dt.datetime) -> dict[str, list[str]]:
    """Return, of those of the hosts whose workers were seen lately, the volumes that they told."""
    recent = now - dt.timedelta(seconds=settings.WORKER_SEEN_S)
    queues = {f"{HOST_QUEUE}{host}": host for host in hosts}
    found: dict[str, list[str]] = {}
    for served, volumes in Worker.objects.filter(seen_at__gte=recent).values_list("queues", "volumes"):
        found |= {queues[queue]: volumes for queue in served if queue in queues and volumes}
    return found


def hosts(*, now: dt.datetime) -> set[str]:
    """Return the hosts whose workers were seen lately."""
    recent = now - dt.timedelta(seconds=settings.WORKER_SEEN_S)
    lists = Worker.objects.filter(seen_at__gte=recent).values_list("queues", flat=True)
    return {queue.removeprefix(HOST_QUEUE) for queues in lists for queue in queues if queue.startswith(HOST_QUEUE)}


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


def queues(*, now: dt.datetime) -> frozenset[str]:
    """Return the queues that workers serve which were seen lately (C19, C26)."""
    recent = now - dt.timedelta(seconds=settings.WORKER_SEEN_S)
    lists = Worker.objects.filter(seen_at__gte=recent).values_list("queues", flat=True)
    return frozenset(itertools.chain.from_iterable(lists))


def served(queue: str, *, now: dt.datetime) -> bool:
    """Say whether a worker that was seen lately serves `queue` (C19, C26)."""
    return queue in queues(now=now)
