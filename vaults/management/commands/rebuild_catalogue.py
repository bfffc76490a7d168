"""manage.py rebuild_catalogue: the rows of recovery points, made again from the vaults themselves."""

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.utils import timezone

from engine.errors import EngineError
from vaults import catalogue
from vaults.models import Vault


class Command(BaseCommand):
    help = "Make the catalogue equal to what the vaults hold, e.g. after the database was lost. Safe to run again."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("name", nargs="*", help="Names of vaults; all of them unless told")

    def handle(self, *args: Any, **options: Any) -> None:
        vaults = Vault.objects.present().select_related("region")
        if options["name"]:
            vaults = vaults.filter(name__in=options["name"])
            unknown = set(options["name"]) - set(vaults.values_list("name", flat=True))
            if unknown:
                raise CommandError(f"There is no vault {', '.join(sorted(unknown))}.")
        failed = False
        for vault in vaults:
            try:
                made = catalogue.rebuild(vault, now=timezone.now())
            except EngineError as error:
                self.stderr.write(f"{vault}: {error}")
                failed = True
                continue
            counts = f"{made.points_found} points, {made.points_added} added, {made.points_gone} gone"
            self.stdout.write(f"{vault}: {counts}, {len(made.damaged)} damaged")
            for line in made.damaged:
                self.stderr.write(f"  {line}")
            failed |= bool(made.damaged)
        if failed:
            raise CommandError("Some vaults or points could not be read.")
