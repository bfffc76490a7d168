"""What an executor is: how one kind of job asks a verb of the engine, and what the outcome means in rows."""

import datetime as dt
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import msgspec

from engine.entries import Problem
from engine.errors import PointMissing
from engine.progress import Progress
from engine.vault import Vault
from engine.verbs.findings import Finding
from jobs.models import Job
from jobs.problems import row
from vaults.models import RecoveryPoint

Clock = Callable[[], dt.datetime]
J = TypeVar("J", bound=msgspec.Struct)
U = TypeVar("U", bound=msgspec.Struct)
R = TypeVar("R", bound=msgspec.Struct)
O = TypeVar("O")  # noqa: E741  # an outcome

PROBLEMS_SHOWN = 1000


@dataclass(frozen=True, slots=True)
class Executor(Generic[J, U, R, O]):
    """One kind of job. `order`, `unit` and `result` are the verb's structs; they travel through the staging area.

    `prepare` makes the order for one round, before the vault is opened. `conclude` stores the outcome and returns the
    fields of the ended job. `session` names the engine session behind an order, empty when there is none. `is_current`
    says, before the end, whether the order is still what the job is about; else the job is planned anew. `worked` notes
    a unit's result in the transaction that ends its step: once, whatever becomes of the job; `broken_off` notes the
    bytes of one that was canceled, or failed for good.
    """

    order: type[J]
    unit: type[U]
    result: type[R]
    prepare: Callable[[Job, dt.datetime], J]
    plan: Callable[[Vault, J, Progress, Clock], Iterator[U]]
    work: Callable[[Vault, J, U, Progress], R]
    finish: Callable[[Vault, J, Iterable[R], Progress, Clock], O]
    conclude: Callable[[Job, Vault, O, dt.datetime], dict[str, Any]]
    session: Callable[[J], str]
    is_current: Callable[[Job, J, dt.datetime], bool] = lambda job, order, now: True
    worked: Callable[[Job, R], None] = lambda job, result: None
    broken_off: Callable[[Job, int], None] = lambda job, done: None


def point_of(job: Job) -> RecoveryPoint:
    """Return the point that the job is about. Raises PointMissing when it went while the job waited for its turn."""
    if job.point is None:
        raise PointMissing("the recovery point expired, or was deleted, before this job began")
    return job.point


def shown(problems: Iterable[Problem]) -> list[dict[str, Any]]:
    """Return the first problems as the job's report keeps them."""
    return [row(problem) for _, problem in zip(range(PROBLEMS_SHOWN), problems, strict=False)]


def found(findings: Iterable[Finding]) -> list[dict[str, Any]]:
    """Return the first findings as the job's report keeps them."""
    return [
        {
            "path": one.object,
            "reason": one.damage,
            "detail": one.detail,
            "lost": bool(one.points),
            "points": one.points[:PROBLEMS_SHOWN],
            "files": one.files,
            "first_files": ["/" + path.decode("utf-8", "backslashreplace") for path in one.paths],
            "advice": one.advice,
        }
        for _, one in zip(range(PROBLEMS_SHOWN), findings, strict=False)
    ]
