"""lock: make a vault immutable, or its lock longer; show its lock."""

import sys
from pathlib import Path
from typing import Any

from engine.cli.audit import audited, lines
from engine.cli.display import Display
from engine.cli.opening import clock, opener, workers
from engine.cli.options import LockOptions
from engine.cli.output import COMPLETE, PARTIAL, Answer, WrongUsage, plain, warn
from engine.cli.stopping import Stopping
from engine.locks import LOCK_DAYS_MAX, LockPolicy, enable, read_policy
from engine.storage.probe import IMMUTABLE

_WARNING = (
    "A lock cannot be undone or made shorter, by anybody. Until it ends, what is backed up stays and fills the store, "
    "also what was backed up by mistake."
)


def run(options: LockOptions) -> Answer:
    """Show the lock; with --days set it, then lock what the vault holds already."""
    if options.days is None:
        return _shown(options)
    if not 1 <= options.days <= LOCK_DAYS_MAX:
        raise WrongUsage(f"--days {options.days} is not possible: give 1 to {LOCK_DAYS_MAX}")
    count = workers(options.workers)
    vault = opener(options)
    opened = vault.vault
    if _is_news(read_policy(opened.storage, opened.keys), options.days):
        _confirm(options)
    policy = enable(opened, days=options.days, now=clock())
    with Stopping() as stopping, Display(stopping, quiet=options.quiet) as display:
        outcome = audited(vault, count, display)
    document = {"command": "lock", "state": outcome.state, **_fields(policy), "audit": plain(outcome)}
    code = COMPLETE if outcome.state == "complete" else PARTIAL
    return Answer(document, [_sentence(policy), *lines(outcome)], code=code)


def _shown(options: LockOptions) -> Answer:
    opened = opener(options).vault
    policy = read_policy(opened.storage, opened.keys)
    if policy is None:
        return Answer({"command": "lock", "state": "complete", "days": 0}, ["The vault is not locked."], always=True)
    return Answer({"command": "lock", "state": "complete", **_fields(policy)}, [_sentence(policy)], always=True)


def _fields(policy: LockPolicy) -> dict[str, Any]:
    return {**plain(policy), "retention": policy.level}


def _sentence(policy: LockPolicy) -> str:
    whose = "" if policy.level == IMMUTABLE else ": the store itself does not lock, only this program does"
    return f"Locked for {policy.days} days since {policy.since:%Y-%m-%d}, {policy.level}{whose}."


def _is_news(present: LockPolicy | None, days: int) -> bool:
    return present is None or days > present.days


def _confirm(options: LockOptions) -> None:
    """Let the person type what will be. Raises WrongUsage."""
    expected = f"lock {Path(options.vault).name} for {options.days} days"
    given = options.confirm
    if not given and sys.stdin is not None and sys.stdin.isatty():
        warn(f"{_WARNING}\nType: {expected}")
        given = sys.stdin.readline().strip()
    if given != expected:
        raise WrongUsage(f"{_WARNING} To go on, give --confirm '{expected}'")
