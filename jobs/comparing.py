"""Offer, after a restore, to compare what was restored with its recovery point (C29)."""

import datetime as dt

from django.db import transaction

from accounts.refusals import Refused
from accounts.services import Actor, record
from jobs import services
from jobs.models import Job
from jobs.states import ENDED_WELL, Kind


class NotComparable(Refused):
    """There is nothing on a host that could be compared with a point."""

    code = "not_comparable"


def offered(job: Job) -> bool:
    """Say whether the job wrote files onto a host that can be compared with its point."""
    restored = job.kind == Kind.RESTORE and job.state in ENDED_WELL
    return restored and job.source is not None and job.source.kind == "files"


@transaction.atomic
def request_comparison(job: Job, *, actor: Actor, now: dt.datetime) -> Job:
    """Start the comparison of what a restore job wrote with its point; its report tells the differences.

    Raises NotComparable, DestinationOffline.
    """
    if not offered(job) or job.source is None:
        raise NotComparable(
            "Only files that a restore wrote onto a host, and that ended well, can be compared with their point."
        )
    if job.point is None:
        raise NotComparable("The recovery point expired, or was deleted.", code="point_gone")
    services.check_served(job.source, now=now)
    wanted = {name: job.settings[name] for name in ("mode", "patterns", "to")}
    made = services.create(
        job.account,
        now=now,
        kind=Kind.COMPARE,
        vault=job.vault,
        source=job.source,
        point=job.point,
        requested_by=actor.user,
        settings={**wanted, "restore": str(job.pk), "skipped": job.report.get("skipped", 0)},
        queue_work=job.source.queue,
        queue_finish=job.source.queue,
    )
    record(actor, "job.compare", made, account=job.account, now=now, restore=str(job.pk))
    return made
