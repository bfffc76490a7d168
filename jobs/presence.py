"""Which hosts are running: every worker writes down, a few times a minute, that it lives and what it serves."""

import datetime as dt
from collections.abc import Iterable

from django.conf import settings

from jobs.models import Worker

FORGOTTEN_AFTER = dt.timedelta(days=1)


def seen(name: str, queues: Iterable[str], *, now: dt.datetime) -> None:
    """Note that the worker `name` lives and serves `queues`."""
    Worker.objects.update_or_create(name=name, defaults={"queues": sorted(queues), "seen_at": now})


def gone(name: str) -> None:
    """Forget a worker that said good-bye."""
    Worker.objects.filter(name=name).delete()


def forget_old(*, now: dt.datetime) -> None:
    """Forget the workers that died without a good-bye, a day after they were seen last."""
    Worker.objects.filter(seen_at__lt=now - FORGOTTEN_AFTER).delete()


def served(queue: str, *, now: dt.datetime) -> bool:
    """Say whether a worker that was seen lately serves `queue` (C19, C26)."""
    recent = now - dt.timedelta(seconds=settings.WORKER_SEEN_S)
    lists = Worker.objects.filter(seen_at__gte=recent).values_list("queues", flat=True)
    return any(queue in queues for queues in lists)
