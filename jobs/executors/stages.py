"""Run one claimed step: plan, work or finish, the same for every kind of job."""

import errno
import os
import socket
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import structlog
from django.db import Error as DatabaseTrouble
from django.db import transaction

from accounts.refusals import Refused
from accounts.secrets import SecretUnreadable
from engine import halt
from engine.errors import Canceled, EngineError, SessionFenced, Unreachable
from engine.vault import Vault
from jobs import doorbell, freezing, services, speed, steps
from jobs.executors.port import Clock, Executor
from jobs.executors.staging import Staging
from jobs.models import Step
from jobs.progress import StepProgress
from jobs.states import ACROSS, Kind, Stage
from vaults import repositories
from vaults.limits import load

log = structlog.get_logger(__name__)

_NO_ROUTE = (errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH)

AnyExecutor = Executor[Any, Any, Any, Any]


class _Opened(threading.local):
    """The vault that this worker used last, kept open between the units of one round."""

    key: tuple[object, ...] | None = None
    vault: Vault | None = None


_opened = _Opened()


def worker_name() -> str:
    """Return the name under which this process claims steps."""
    return f"{socket.gethostname()}:{os.getpid()}"


def open_vault(step: Step, clock: Clock) -> Vault:
    """Return the job's vault, open. An open one is used again only inside the same round of the same job."""
    key = (step.job.vault_id, step.job_id, step.round)
    if _opened.key != key or _opened.vault is None:
        across = step.job.kind in ACROSS
        limits = load(step.job.limits)
        _opened.vault = repositories.open_vault(
            step.job.vault,
            clock=clock,
            across=across,
            reading=speed.pace(limits, clock=clock),
            sending=speed.pace(limits, clock=clock),
        )
        _opened.key = key
    return _opened.vault


def run(executor: AnyExecutor, step: Step, *, clock: Clock) -> None:
    """Do the step and write down how it ended. What a lost lease makes worthless is dropped silently."""
    try:
        _attempt(executor, step, clock)
    except steps.Fenced as fenced:
        log.info("step.fenced", reason=str(fenced))
        steps.clean_again([step.job_id])  # what this worker wrote late lies where it was tidied up already
    if step.queue == step.job.queue_work:
        freezing.settle(step.job, clock=clock)


def _attempt(executor: AnyExecutor, step: Step, clock: Clock) -> None:
    progress = StepProgress(step, clock=clock)
    end = partial(_end, executor, step, progress)

    def fail(text: str, code: str, *, transient: bool = False) -> None:
        end(lambda: steps.fail(step, error=text, code=code, transient=transient, now=clock()))

    stage = {Stage.PLAN: _plan, Stage.WORK: _work, Stage.FINISH: _finish}[Stage(step.stage)]
    try:
        with progress.lease_kept(), halt.heard(progress.halt, flowing=progress.flowing):
            stage(executor, step, progress, clock)
    except (steps.Fenced, DatabaseTrouble):
        raise  # without the database nothing can be written down: the lease runs out and the step is claimed anew
    except Canceled:
        end(lambda: steps.cancel(step, now=clock()))
    except SessionFenced as error:
        steps.plan_anew(step, error=str(error), now=clock())
    except EngineError as error:
        transient = error.transient or _is_away(error)
        if transient and step.stage == Stage.FINISH:
            steps.plan_anew(step, error=str(error), now=clock())  # a failed finish has closed its session
        else:
            fail(str(error), _code(error), transient=transient)
    except Refused as refusal:
        fail(str(refusal), refusal.code)
    except SecretUnreadable as error:
        fail(str(error), "secret_unreadable")
    except OSError as error:
        fail(f"The worker's machine failed: {error}", "os_error", transient=True)
    except Exception as error:
        log.exception("step.crashed")
        text = f"The program failed: {type(error).__name__}: {error}. The worker's log tells more."
        fail(text, "internal")


def _end(executor: AnyExecutor, step: Step, progress: StepProgress, ending: Callable[[], None]) -> None:
    """End a step early. What a unit had done is counted when that is for good: another attempt counts it anew."""
    if step.stage != Stage.WORK:
        ending()
        return
    progress.leave()
    with transaction.atomic():
        ending()
        if steps.is_over(step):
            executor.broken_off(step.job, progress.bytes_done)


def _is_away(error: EngineError) -> bool:
    """Say whether nothing answers at the store's address. The address was proven when the region was made, so this is
    a restart or a broken line: what is permanent for a person who types an address is worth another attempt here.
    """
    cause: BaseException | None = error if isinstance(error, Unreachable) else None
    while cause is not None:
        if isinstance(cause, socket.gaierror) or (isinstance(cause, OSError) and cause.errno in _NO_ROUTE):
            return True
        cause = cause.__cause__ or getattr(cause, "reason", None)
    return False


def _code(error: EngineError) -> str:
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in type(error).__name__).strip("_")


def _plan(executor: AnyExecutor, step: Step, progress: StepProgress, clock: Clock) -> None:
    order = executor.prepare(step.job, clock())
    vault = open_vault(step, clock)
    freezing.freeze(step.job, clock=clock, check=progress.check)
    staging = Staging(vault, step.job_id, step.round)
    staging.put_order(order)
    _keep_session(executor, vault, order, progress)
    total = done = 0
    most = load(step.job.limits).steps_max
    for unit in executor.plan(vault, order, progress, clock):
        progress.check()
        if unit.needs_work:
            staging.put_unit(total, unit)
            added = steps.add_work(step, number=total, now=clock())
            _ring([added] if most != 1 else [], clock)  # else there is no room before this step ends
        else:
            staging.put_result(total, executor.work(vault, order, unit, progress))
            done += 1
        total += 1
    progress.flush()
    if step.job.kind == Kind.BACKUP:
        services.warn_of_size(step.job, bytes_to_read=progress.bytes_expected, now=clock())
    _ring(steps.end_plan(step, units_total=total, units_done=done, now=clock()), clock)


def _work(executor: AnyExecutor, step: Step, progress: StepProgress, clock: Clock) -> None:
    vault = open_vault(step, clock)
    staging = Staging(vault, step.job_id, step.round)
    order = staging.order(executor.order)
    _keep_session(executor, vault, order, progress)
    unit = staging.unit(step.number, executor.unit)
    result = executor.work(vault, order, unit, progress)
    staging.put_result(step.number, result)
    progress.flush()
    with transaction.atomic():
        waiting = steps.end_work(step, now=clock())
        executor.worked(step.job, result)
    _ring(waiting, clock)


def _finish(executor: AnyExecutor, step: Step, progress: StepProgress, clock: Clock) -> None:
    vault = open_vault(step, clock)
    staging = Staging(vault, step.job_id, step.round)
    order = staging.order(executor.order)
    _keep_session(executor, vault, order, progress)
    if not executor.is_current(step.job, order, clock()):
        steps.plan_anew(step, error="what the job goes by was changed while it ran", now=clock())
        return
    results = staging.results(step.job.units_total, executor.result)
    outcome = executor.finish(vault, order, results, progress, clock)
    fields = executor.conclude(step.job, vault, outcome, clock())
    steps.end_finish(step, now=clock(), **fields)


def _keep_session(executor: AnyExecutor, vault: Vault, order: Any, progress: StepProgress) -> None:
    if name := executor.session(order):
        progress.keep_alive(partial(_beat, vault, name))


def _beat(vault: Vault, name: str, now: Any) -> None:
    for session in vault.sessions(name):
        session.beat(now)


def _ring(waiting: list[Step], clock: Clock) -> None:
    for step in waiting:
        doorbell.ring(step, now=clock())
