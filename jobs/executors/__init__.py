"""Kind of job -> executor."""

import datetime as dt
from collections.abc import Callable

from jobs.models import Job, Step


def worker_name() -> str:
    return ""


def run(step: Step, *, clock: Callable[[], dt.datetime]) -> None: ...


def clean(job: Job, *, now: dt.datetime) -> None: ...
