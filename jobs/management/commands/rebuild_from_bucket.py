"""manage.py rebuild_from_bucket: the control plane's rows, made again from a bucket and a recovery key."""

import time
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import CommandError, CommandParser
from django.utils import timezone

from accounts.commands import ServiceCommand
from engine.errors import BadKeyFile, EngineError
from engine.keyproviders import shares
from engine.keyproviders.keyring import RecoveryKey
from engine.keyproviders.port import KeyProvider
from engine.progress import Silent
from engine.storage.location import Location
from jobs import disaster
from vaults import repositories


class Command(ServiceCommand):
    help = (
        "Make accounts, people, regions, vaults, sources, policies, plans and recovery points again from a bucket, "
        "after `migrate` of an empty database. Plans are paused, people have no passwords. Safe to run again: rows "
        "that are there stay as they are. The store's keys come from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--url", required=True, help="s3://bucket/prefix or a folder: a region's, or one vault's")
        parser.add_argument("--endpoint", default="", help="http(s)://host:port of the S3 service")
        parser.add_argument("--store-region", default="us-east-1", help="The region name that the S3 service expects")
        parser.add_argument("--ca-file", default="", help="Certificates to trust besides the system's")
        parser.add_argument("--no-tls-verify", action="store_true", help="Do not check the server's certificate")
        parser.add_argument("--virtual-host-style", action="store_true", help="https://bucket.host instead of a path")
        parser.add_argument(
            "--recovery-key", action="append", default=[], help="BSRK-...; other users of this machine can see it"
        )
        parser.add_argument(
            "--recovery-key-file",
            action="append",
            default=[],
            type=Path,
            help="A file with a recovery key, or with enough of its shares, one a line; may be given again",
        )
        parser.add_argument("--resume", action="store_true", help="Let plans run again as they did")

    def handle(self, *args: Any, **options: Any) -> None:
        keys = self._keys(options["recovery_key"], options["recovery_key_file"])
        if not keys:
            raise CommandError(
                f"Give --recovery-key-file, or put the service key file at {settings.KEYRING_FILE} "
                "(BACKUPSITE_KEY_FILE)."
            )
        began_s = time.monotonic()
        try:
            made = disaster.restore(
                self._location(options), keys, resume=options["resume"], progress=Silent(), clock=timezone.now
            )
        except (EngineError, OSError) as error:
            raise CommandError(f"The bucket could not be read: {error}") from error
        for line in made.problems:
            self.stderr.write(line)
        for place in made.closed:
            self.stderr.write(f"{place} stays closed: give its recovery key too, and run this again.")
        self.stdout.write(
            f"{made.vaults} vaults, {made.rows} rows, {made.points} recovery points, in "
            f"{time.monotonic() - began_s:.1f} s."
        )
        state = "Plans run again as they did." if options["resume"] else "Plans are paused: resume them one by one."
        self.stdout.write(f"{state} Make an administrator with createsuperuser; people get new passwords from there.")
        if made.problems or made.closed:
            raise CommandError("Something could not be rebuilt; it is listed above.")

    def _location(self, options: dict[str, Any]) -> Location:
        s3 = {
            "endpoint": options["endpoint"],
            "region": options["store_region"],
            "access_key": settings.RECOVERY_ACCESS_KEY,
            "secret_key": settings.RECOVERY_SECRET_KEY,
            "ca_file": options["ca_file"],
            "tls_verify": not options["no_tls_verify"],
            "path_style": not options["virtual_host_style"],
        }
        try:
            return Location.parse(options["url"], **s3 if options["url"].startswith("s3://") else {})
        except ValueError as error:
            raise CommandError(f"--url: {error}") from error

    def _keys(self, texts: list[str], files: list[Path]) -> list[KeyProvider]:
        """Return the service's key, if there is one, and the given recovery keys."""
        found: list[KeyProvider] = []
        try:
            if settings.KEYRING or Path(settings.KEYRING_FILE).exists():
                found.append(repositories.keyring())
            found += [RecoveryKey.parse(text) for text in texts]
            found += [_recovery_key(path.read_text()) for path in files]
        except (BadKeyFile, UnicodeDecodeError) as error:
            raise CommandError(f"A key cannot be used: {error}") from error
        except OSError as error:
            raise CommandError(f"{error.filename} cannot be read: {error.strerror}") from error
        return found


def _recovery_key(text: str) -> RecoveryKey:
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return shares.join(lines) if len(lines) > 1 else RecoveryKey.parse("".join(lines))
