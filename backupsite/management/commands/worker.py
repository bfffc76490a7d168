"""manage.py worker: a Celery worker for this machine."""

import os
from typing import Any

from celery import bootsteps
from celery.worker.consumer import Consumer
from celery.worker.consumer.tasks import Tasks
from django.conf import settings
from django.core.management.base import BaseCommand, CommandParser
from django.db import DatabaseError, connection

from backupsite.celery import app
from jobs import scratch
from vaults.models import Region

LOOK_EVERY_S = 5


class NewRegions(bootsteps.StartStopStep):
    """Serves regions that are made while the worker runs, a few seconds later. Runs in the worker's main process."""

    requires = (Tasks,)

    def start(self, consumer: Consumer) -> None:
        self._timer = consumer.timer.call_repeatedly(LOOK_EVERY_S, self._look, (consumer,))

    def stop(self, consumer: Consumer) -> None:
        self._timer.cancel()

    def _look(self, consumer: Any) -> None:
        try:
            for queue in _region_queues():
                if not consumer.task_consumer.consuming_from(queue):
                    consumer.add_task_queue(queue)
        except DatabaseError:
            pass  # the next look tells


def _region_queues() -> list[str]:
    try:
        return [region.queue for region in Region.objects.all()]
    finally:
        connection.close()  # the worker's child processes open their own


class Command(BaseCommand):
    help = (
        "Run a worker that serves this host's sources, the sweeps and every region, also those made later; or just the "
        "queues that are named, as celery -A backupsite worker -Q QUEUE,... does."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--queue", action="append", default=[], help="e.g. host.web1 or region.main; may be repeated"
        )
        parser.add_argument("--concurrency", type=int, default=2, help="steps at a time")

    def handle(self, *args: Any, **options: Any) -> None:
        scratch.sweep()
        queues = options["queue"]
        if not queues:
            queues = [settings.CELERY_TASK_DEFAULT_QUEUE, f"host.{settings.HOST_NAME}", *_region_queues()]
            app.steps["consumer"].add(NewRegions)
        app.worker_main(
            [
                "worker",
                "-Q",
                ",".join(queues),
                # Two workers of one machine must not share a name: each tells what it serves under its own.
                f"--hostname=worker-{os.getpid()}@%h",
                f"--concurrency={options['concurrency']}",
                "--loglevel=INFO",
                "-O",
                "fair",
            ]
        )
