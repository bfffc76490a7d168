"""manage.py demo: from nothing to a verified backup, and on to a running console."""

import secrets
import shlex
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.utils import timezone
from honcho.environ import parse_procfile
from honcho.manager import Manager
from rich.console import Console
from rich.panel import Panel
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from accounts.console import human_bytes
from accounts.models import Account, User
from accounts.refusals import Refused
from accounts.services import SERVICE, create_account
from backupsite.comparison import Comparison, compare
from jobs import local, presence, services
from jobs.models import Job
from jobs.states import JobState
from policies.models import Plan, Policy, Source
from policies.services import create_plan, save_policy, save_source
from vaults.models import RecoveryPoint, Region, Vault
from vaults.services import create_vault, save_region

NAME = "local"
ADMIN = "admin"
LEFT_OUT = (".venv", "var", ".git", "__pycache__", ".mypy_cache", ".ruff_cache", ".dev-services")


class Command(BaseCommand):
    help = (
        "Set up a local region, a vault, an administrator, a source and a daily plan; run a first backup, prove it by "
        "restoring and comparing every file. Safe to run again."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--folder", help="What to protect; this project's own folder unless told")
        parser.add_argument("--serve", action="store_true", help="Then serve console, worker and beat until stopped")

    def handle(self, *args: Any, **options: Any) -> None:
        self.screen = Console()
        folder = Path(options["folder"] or settings.BASE_DIR).resolve()
        if not folder.exists():
            raise CommandError(f"{folder} does not exist. Name an existing folder with --folder.")
        call_command("migrate", verbosity=0)
        call_command("setup_beat", verbosity=0)
        password = self._admin()
        try:
            plan, recovery_key = self._plan(folder)
            job = self._run(services.request_backup(plan, actor=SERVICE, now=timezone.now()), "Backing up")
            point = job.point
            assert point is not None
            found = self._prove(plan, point)
        except Refused as refusal:
            raise CommandError(str(refusal)) from refusal
        self._tell(job, found, password=password, recovery_key=recovery_key)
        if not found.equal:
            raise CommandError("The restored files differ from the source.")
        if options["serve"]:
            self._serve()

    def _admin(self) -> str:
        """Return the password of a new administrator, empty when there is one already."""
        if User.objects.filter(is_superuser=True).exists():
            return ""
        password = secrets.token_urlsafe(12)
        User.objects.create_superuser(ADMIN, password=password)
        return password

    def _plan(self, folder: Path) -> tuple[Plan, str]:
        """Return the plan of the demo, made with all its parts where they are missing, and a new vault's key."""
        now, actor = timezone.now(), SERVICE
        owner = User.objects.filter(is_superuser=True).earliest("pk")
        account = Account.objects.filter(name=NAME).first() or create_account(
            name=NAME, owner=owner, actor=actor, now=now
        )
        region = Region.objects.filter(name=NAME).first() or save_region(
            Region(name=NAME, url=str(settings.VAR / "store")), actor=actor, now=now
        )
        recovery_key = ""
        vault = Vault.objects.filter(account=account, name=NAME).first()
        if vault is None:
            vault = Vault(account=account, region=region, name=NAME, description="Made by the demo")
            recovery_key = create_vault(vault, actor=actor, now=now)
        policy = Policy.objects.filter(account=account, name="daily").first() or save_policy(
            Policy(account=account, name="daily", time_zone=settings.TIME_ZONE), actor=actor, now=now
        )
        source = self._source(account, region, folder)
        plan = Plan.objects.filter(source=source, policy=policy, vault=vault).first()
        return plan or create_plan(Plan(source=source, policy=policy, vault=vault), actor=actor, now=now), recovery_key

    def _source(self, account: Account, region: Region, folder: Path) -> Source:
        for source in Source.objects.filter(account=account, host=settings.HOST_NAME):
            if source.settings["roots"] == [str(folder)]:
                return source
        name = (folder.name or "root")[:40]
        if Source.objects.filter(account=account, name=name).exists():
            name = f"{name}-{secrets.token_hex(3)}"
        wanted = {"roots": [str(folder)], "exclude": [f"{folder}/{one}" for one in LEFT_OUT] + ["**/__pycache__"]}
        source = Source(account=account, region=region, name=name, host=settings.HOST_NAME, settings=wanted)
        save_source(source, actor=SERVICE, now=timezone.now())
        for warning in source.warnings:
            self.screen.print(f"[yellow]{warning}[/]")
        return source

    def _run(self, job: Job, title: str) -> Job:
        """Do the job here, with a bar; end the command when it fails."""
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[done]}"),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=self.screen) as bar:
            task = bar.add_task(title, total=None, done="")

            def show(now: Job) -> None:
                done = f"{now.entries_done:,} entries, {human_bytes(now.bytes_done)}"
                bar.update(task, total=now.units_total or None, completed=now.units_done, done=done)

            job = local.do(job, clock=timezone.now, watch=show)
            bar.update(task, total=1, completed=1)
        if job.state not in (JobState.COMPLETE, JobState.PARTIAL_COMPLETE):
            raise CommandError(f"{title} ended {job.state}: {job.error}")
        return job

    def _prove(self, plan: Plan, point: RecoveryPoint) -> Comparison:
        """Restore the point to a scratch folder, as a person would, and compare every file with the source."""
        presence.seen("demo", [plan.source.queue], now=timezone.now())
        scratch = Path(tempfile.mkdtemp(prefix="restored-", dir=settings.VAR))
        try:
            selection = services.Selection(to=str(scratch))
            point = RecoveryPoint.objects.select_related("vault__account", "vault__region").get(pk=point.pk)
            job = services.request_restore(point, selection, actor=SERVICE, now=timezone.now())
            self._run(job, "Restoring  ")
            with self.screen.status("Comparing every file"):
                root = Path(plan.source.settings["roots"][0])
                found = compare(root, scratch / str(root).lstrip("/"), since=point.started_at)
                if found.entries != point.entries_count:
                    found.differ(root, f"{found.entries} entries came back instead of {point.entries_count}")
                return found
        finally:
            presence.gone("demo")
            shutil.rmtree(scratch, ignore_errors=True)

    def _tell(self, job: Job, found: Comparison, *, password: str, recovery_key: str) -> None:
        point = job.point
        assert point is not None
        facts = Table.grid(padding=(0, 2))
        facts.add_row("Recovery point", f"{point.point_id}  ({point.get_state_display().lower()})")
        facts.add_row("Protected", f"{point.entries_count:,} entries, {human_bytes(point.bytes_total)}")
        facts.add_row("Added to the vault", human_bytes(point.bytes_stored))
        if job.problems_count:
            facts.add_row("Left out", f"{job.problems_count} entries; the job's page lists them")
        facts.add_row("Restored and compared", f"{found.files:,} files, {human_bytes(found.bytes)}: {found.verdict}")
        for line in found.differences:
            facts.add_row("", f"[red]{line}[/]")
        self.screen.print(Panel(facts, title="Backup verified" if found.equal else "Backup NOT verified", expand=False))
        if recovery_key:
            self.screen.print("Recovery key of the vault, shown this once; keep it apart from this machine:")
            self.screen.print(f"  {recovery_key}", style="bold", soft_wrap=True)
        if password:
            self.screen.print(f"Administrator, shown this once:  [bold]{ADMIN}[/] / [bold]{password}[/]")

    def _serve(self) -> None:
        """Run the Procfile until somebody stops it."""
        self.screen.print(
            f"Console: [bold]{settings.SITE_URL}/admin/[/]   API: {settings.SITE_URL}/api/v1/docs/   Stop: Ctrl-C"
        )
        manager = Manager()
        for name, command in parse_procfile((settings.BASE_DIR / "Procfile").read_text()).processes.items():
            # The same Python as this one, whether or not its folder is on PATH.
            manager.add_process(name, command.replace("python", shlex.quote(sys.executable), 1))
        manager.loop()
        sys.exit(manager.returncode)
