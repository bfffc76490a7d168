"""The Celery app. Its settings are the CELERY_* names of settings.py.

A worker that serves everything of this machine: `python manage.py worker`. One that serves chosen queues only:
`celery -A backupsite worker -Q host.web1,region.main`. Every worker tells the database that it lives.
"""

import os
from typing import Any

from celery import Celery
from celery.signals import heartbeat_sent, setup_logging, worker_ready, worker_shutdown

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "backupsite.settings")

app = Celery("backupsite")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()

SEEN_EVERY_S = 10
HOST_EVERY_S = 3600


@setup_logging.connect
def _keep_django_logging(**kwargs: Any) -> None:
    """Connecting this signal leaves the logging that settings.py configured as it is."""


class _Presence:
    """Writes down that this worker lives. Runs in the worker's main process."""

    def __init__(self) -> None:
        self.consumer: Any = None
        self._next = 0.0
        self._next_host = 0.0

    def tell(self) -> None:
        # The app registry is not ready when this module is imported, so these come late.
        from django.db import DatabaseError, connection

        from jobs import capacity, presence

        now = app.now()
        if self.consumer is None or now.timestamp() < self._next:
            return
        self._next = now.timestamp() + SEEN_EVERY_S
        try:
            queues = [queue.name for queue in self.consumer.task_consumer.queues]
            presence.seen(self.consumer.hostname, queues, now=now, volumes=capacity.volumes())
            if now.timestamp() >= self._next_host:
                presence.report_hosts(queues, bytes_attached=capacity.attached_bytes(), now=now)
                # Again early in each day (UTC), so that a worker that ran at all that day is known to have.
                self._next_host = min(now.timestamp() + HOST_EVERY_S, (now.timestamp() // 86400 + 1) * 86400)
        except DatabaseError:
            pass  # the next heartbeat tells it; until then the host counts as seen a little longer ago
        finally:
            connection.close()


_presence = _Presence()


@worker_ready.connect
def _worker_is_ready(sender: Any, **kwargs: Any) -> None:
    _presence.consumer = sender
    _presence.tell()


@heartbeat_sent.connect
def _worker_lives(**kwargs: Any) -> None:
    _presence.tell()


@worker_shutdown.connect
def _worker_leaves(**kwargs: Any) -> None:
    from jobs import presence  # as above

    if _presence.consumer is not None:
        presence.gone(_presence.consumer.hostname)
