"""manage.py web: the console and the API behind gunicorn."""

import os
import sys
from typing import Any
from urllib.parse import urlsplit

from django.conf import settings
from django.core.management.base import BaseCommand, CommandParser


class Command(BaseCommand):
    help = "Serve the console and the API at the host and port of BACKUPSITE_URL, or where --bind says."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--bind", default="", help="HOST:PORT")
        parser.add_argument("--threads", type=int, default=8)

    def handle(self, *args: Any, **options: Any) -> None:
        link = urlsplit(settings.SITE_URL)
        bind = options["bind"] or f"127.0.0.1:{link.port or 8000}"
        # One process: the embedded default counts requests (throttling) in memory.
        os.execv(  # noqa: S606  # no shell is wanted
            sys.executable,
            [
                sys.executable, "-m", "gunicorn", "backupsite.wsgi", "--bind", bind, "--workers", "1",
                "--threads", str(options["threads"]), "--no-control-socket", "--timeout", "120",
                "--access-logfile", "-",
            ],
        )  # fmt: skip
