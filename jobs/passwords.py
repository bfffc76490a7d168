"""Passwords that a restore made anew: sealed with the job until somebody is shown them, once (D5)."""

import datetime as dt
from collections.abc import Sequence

from django.db import transaction

from accounts import secrets
from accounts.refusals import Refused
from accounts.services import Actor, record
from jobs.models import Job

TOLD = "a new password was made: it is shown once, by New passwords on this job's page or POST jobs/<id>/passwords/"


class PasswordsShown(Refused):
    """There are none, or somebody was shown them already."""

    code = "passwords_shown"


def sealed(job: Job, texts: Sequence[str]) -> str:
    """Return lines that tell passwords as the job's row keeps them; empty without any."""
    return secrets.seal({"lines": list(texts)} if texts else {}, context=_context(job))


@transaction.atomic
def take(job: Job, *, actor: Actor, now: dt.datetime) -> list[str]:
    """Return the lines and forget them. Raises PasswordsShown; of two people at once one is shown them."""
    kept = Job.objects.select_for_update().values_list("passwords", flat=True).get(pk=job.pk)
    if not kept:
        raise PasswordsShown("This job made no new passwords, or somebody was shown them already.")
    lines: list[str] = secrets.unseal(kept, context=_context(job))["lines"]
    Job.objects.filter(pk=job.pk).update(passwords="")
    record(actor, "job.passwords", job, account=job.account, now=now, count=len(lines))
    return lines


def _context(job: Job) -> str:
    return f"job:{job.pk}"
