"""manage.py audit: verify the audit trail, and take it out."""

import sys
from pathlib import Path
from typing import Any

from django.core.management.base import CommandError, CommandParser
from django.utils import timezone

from accounts import chain, exports
from accounts.commands import ServiceCommand
from accounts.models import Event, Link


class Command(ServiceCommand):
    help = "Verify that no line of the audit trail was changed, removed or put in; or export it with its chain."

    def add_arguments(self, parser: CommandParser) -> None:
        verbs = parser.add_subparsers(dest="verb", required=True)
        verify = verbs.add_parser("verify", help="Derive every digest anew; fails at the first line that does not fit")
        verify.add_argument("--expect", metavar="LINE:DIGEST", help="A line and its digest that you wrote down before")
        export = verbs.add_parser("export", help="Write the chained lines, oldest first")
        export.add_argument("--as", dest="form", choices=["jsonl", "csv"], default="jsonl")
        export.add_argument("--to", type=Path, help="A file; standard output unless told")

    def handle(self, *args: Any, **options: Any) -> None:
        chain.sweep(now=timezone.now())
        if options["verb"] == "verify":
            self._verify(options["expect"])
        else:
            self._export(options["form"], options["to"])

    def _verify(self, expected: str | None) -> None:
        found = chain.verify_chain()
        if not found.intact:
            raise CommandError(f"The audit trail was tampered with: {found.problem}.")
        if expected:
            self._compare(expected)
        if not found.guarded:
            raise CommandError(
                "Every line is what it was, but the database's guards are off: somebody could change it. "
                "Run migrate to put them back."
            )
        self.stdout.write(f"{found.sequence} lines, none altered, removed or put in. Write this down elsewhere:")
        self.stdout.write(f"{found.sequence}:{found.digest}")

    def _compare(self, expected: str) -> None:
        number, _, digest = expected.partition(":")
        if not number.isdecimal() or not digest:
            raise CommandError(f"{expected!r} is not LINE:DIGEST, as verify prints it.")
        link = Link.objects.filter(sequence=int(number)).first()
        if link is None or link.digest != digest:
            raise CommandError(
                f"The audit trail was tampered with: line {number} does not have the digest that you wrote down. "
                "The whole chain was written anew, or its end was cut off."
            )

    def _export(self, form: str, path: Path | None) -> None:
        parts = exports.stream(Event.objects.all(), form=form)
        if path is None:
            sys.stdout.writelines(parts)
            return
        try:
            with path.open("w", encoding="utf-8", newline="") as file:
                file.writelines(parts)
        except OSError as error:
            raise CommandError(f"{path} cannot be written: {error.strerror}.") from error
