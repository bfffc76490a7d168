"""Beat with a lease: any number of beat processes may run, one of them ticks."""

import datetime as dt
import os
import socket
import uuid
from typing import Any

import structlog
from django.db import Error as DatabaseTrouble
from django.db import connection
from django.db.models import Q
from django_celery_beat.schedulers import DatabaseScheduler

from jobs.models import BeatLease

log = structlog.get_logger(__name__)

LEASE_NAME = "beat"
LEASE_S = 10


def hold(holder: str, *, now: dt.datetime) -> bool:
    """Take or keep the lease for LEASE_S seconds; False while another holder's lease runs."""
    BeatLease.objects.get_or_create(name=LEASE_NAME, defaults={"expires_at": now})
    free = BeatLease.objects.filter(Q(holder=holder) | Q(expires_at__lte=now), name=LEASE_NAME)
    return bool(free.update(holder=holder, expires_at=now + dt.timedelta(seconds=LEASE_S)))


class LeasedDatabaseScheduler(DatabaseScheduler):
    """django-celery-beat's scheduler, which ticks only while it holds the lease."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._holder = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
        self._leading = False
        super().__init__(*args, **kwargs)

    def tick(self, *args: Any, **kwargs: Any) -> float:
        """Run what is due if this process leads. Returns the seconds until the next call.

        A database that is away, or was restarted, is asked again with a new connection.
        """
        try:
            return self._tick(*args, **kwargs)
        except DatabaseTrouble as error:
            log.warning("beat.database_away", error=str(error))
            connection.close()
            self._leading = False
            return LEASE_S / 3

    def _tick(self, *args: Any, **kwargs: Any) -> float:
        if not hold(self._holder, now=self.app.now()):
            self._leading = False
            return LEASE_S / 3
        if not self._leading:
            # What this process believes about last runs is as old as its last lead: read everything anew.
            self._schedule = None
            self._initial_read = True
            self._heap = None
            self._heap_invalidated = True
            self._leading = True
        return min(float(super().tick(*args, **kwargs)), LEASE_S / 3)
