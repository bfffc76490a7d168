"""An installation that lives through simulated days: backups, sweeps and expiries, all by a clock that a test moves."""

import datetime as dt
from pathlib import Path
from typing import Any

from accounts.services import SERVICE
from jobs import local, maintenance, removal, services
from jobs.models import Job
from jobs.states import JobState, Kind
from policies import services as policy_services
from policies.models import Policy
from tests.support.control import Clock, Site, make_site
from vaults import repositories
from vaults.models import RecoveryPoint

DAY, HOUR, MINUTE = dt.timedelta(days=1), dt.timedelta(hours=1), dt.timedelta(minutes=1)


class Story:
    """One site and its time."""

    def __init__(self, folder: Path) -> None:
        self.clock = Clock()
        self.site: Site = make_site(folder)

    @property
    def now(self) -> dt.datetime:
        return self.clock.now

    def do(self, job: Job) -> Job:
        return local.do(job, clock=self.clock)

    def backup(self, **changes: bytes) -> RecoveryPoint:
        """Back up, after writing the named files, and return the point."""
        for name, data in changes.items():
            (self.site.files / name).write_bytes(data)
        job = self.do(services.request_backup(self.site.plan, actor=SERVICE, now=self.clock()))
        assert job.point is not None, job.error
        return job.point

    def maintain(self, kind: Kind, **wanted: Any) -> Job:
        """Do one kind of maintenance by hand."""
        return self.do(maintenance.request(self.site.vault, kind, wanted, actor=SERVICE, now=self.clock()))

    def expire(self, **wanted: Any) -> Job:
        return self.maintain(Kind.EXPIRE, **wanted)

    def sweep(self) -> list[Job]:
        """Let beat tick once and do what it started."""
        started = [*maintenance.sweep(now=self.now, rows_max=100), *removal.sweep(now=self.now, rows_max=100)]
        return [self.do(job) for job in started]

    def pass_days(self, days: int) -> None:
        """Let days go by, with one sweep a day that expires."""
        for _ in range(days):
            self.clock.now += DAY
            for job in self.sweep():
                assert job.state in (JobState.COMPLETE, JobState.PARTIAL_COMPLETE), job.error

    def pass_minutes(self, minutes: int, *, every: int = 5) -> None:
        """Let minutes go by, with a sweep every few of them."""
        for _ in range(minutes // every):
            self.clock.now += every * MINUTE
            self.sweep()

    def change_policy(self, **values: Any) -> Policy:
        """Change the rules as a person would."""
        policy = Policy.objects.get(pk=self.site.policy.pk)
        for name, value in values.items():
            setattr(policy, name, value)
        return policy_services.save_policy(policy, actor=SERVICE, now=self.clock())

    def rows(self) -> list[RecoveryPoint]:
        """Return the catalogue's points, oldest first."""
        return list(RecoveryPoint.objects.order_by("completed_at"))

    def in_vault(self) -> set[str]:
        """Return the ids of the points that the vault itself shows."""
        return {name.point for name in repositories.open_vault(self.site.vault, clock=self.clock).points()}
