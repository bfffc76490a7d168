"""manage.py worker: a Celery worker for this machine."""

from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandParser
from django.db import connection

from backupsite.celery import app
from vaults.models import Region


class Command(BaseCommand):
    help = (
        "Run a worker that serves this host's sources, every region and the sweeps, or just the queues that are named. "
        "The same as: celery -A backupsite worker -Q QUEUE,..."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--queue", action="append", default=[], help="e.g. host.web1 or region.main; may be repeated"
        )
        parser.add_argument("--concurrency", type=int, default=2, help="steps at a time")

    def handle(self, *args: Any, **options: Any) -> None:
        queues = options["queue"] or [
            settings.CELERY_TASK_DEFAULT_QUEUE,
            f"host.{settings.HOST_NAME}",
            *(region.queue for region in Region.objects.all()),
        ]
        app.conf.serve_every_region = not options["queue"]  # regions made later are taken up while it runs
        connection.close()  # the worker's processes open their own
        app.worker_main(
            [
                "worker",
                "-Q",
                ",".join(queues),
                f"--concurrency={options['concurrency']}",
                "--loglevel=INFO",
                "-O",
                "fair",
            ]
        )
