"""manage.py setup_beat: declare the sweeps in django-celery-beat, and give older vaults the duties that are new."""

from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand
from django.utils import timezone
from django_celery_beat.models import IntervalSchedule, PeriodicTask

from jobs import maintenance
from vaults.models import Vault

SWEEPS = (
    "jobs.sweep_due_plans",
    "jobs.sweep_maintenance",
    "jobs.sweep_steps",
    "jobs.sweep_ended_jobs",
    "jobs.sweep_exports",
    "jobs.sweep_metering",
    "jobs.sweep_alerts",
)
# Every so many intervals only: these look at more, and nobody waits for them.
RARELY = {"jobs.sweep_metering": 20}


class Command(BaseCommand):
    help = "Declare the periodic sweeps. Safe to run again: every start may do it."

    def handle(self, *args: Any, **options: Any) -> None:
        for task in SWEEPS:
            every_s = settings.SWEEP_S * RARELY.get(task, 1)
            interval, _ = IntervalSchedule.objects.get_or_create(every=every_s, period=IntervalSchedule.SECONDS)
            # Through save(), not QuerySet.update(): only save() tells a running beat.
            PeriodicTask.objects.update_or_create(
                name=task, defaults={"task": task, "interval": interval, "expire_seconds": every_s * 4}
            )
        maintenance.complete_duties(Vault.objects.present().iterator(), now=timezone.now())
        if options["verbosity"]:
            self.stdout.write(f"{len(SWEEPS)} sweeps every {settings.SWEEP_S} s")
