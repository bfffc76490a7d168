"""What each edition of a plan lays down, in one place: retention, schedule, speed, what stays out, trials.

Asks no clock and no database.
"""

import datetime as dt
from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Any, NamedTuple

from accounts.refusals import Refused
from policies.models import RETENTION_DAYS_MAX, Edition, Plan, Policy, Priority, Rule, RuleType, Unit
from vaults.models import Vault

GIB, TIB = 1 << 30, 1 << 40


class Terms(NamedTuple):
    """What an edition lays down: how many days a policy may keep points, and whether they are kept for ever.

    Where `counts` is off, nothing keeps points beyond their days but "keep at least one". `daily`: one run a day.
    `start_fixed`: not even its time can be changed.
    """

    days_min: int = 1
    days_max: int = RETENTION_DAYS_MAX
    counts: bool = True
    daily: bool = False
    start_fixed: bool = False


TRIAL_DAYS = 30
TRIAL_RETENTION_DAYS = 7
# From the end of a trial to the release of its vault: the last point outlives its retention, and a day is left.
TRIAL_RELEASE_DAYS = 8
ESSENTIAL_RETENTION_DAYS = 30

TERMS: dict[str, Terms] = {
    Edition.STANDARD: Terms(),
    Edition.ESSENTIAL: Terms(ESSENTIAL_RETENTION_DAYS, ESSENTIAL_RETENTION_DAYS, counts=False, daily=True),
    Edition.TRIAL: Terms(TRIAL_RETENTION_DAYS, TRIAL_RETENTION_DAYS, counts=False, daily=True, start_fixed=True),
    Edition.CLUSTER: Terms(1, 30, counts=False),
}
COUNTS = ("keep_last", "keep_daily", "keep_weekly", "keep_monthly", "keep_yearly")


class RetentionFixed(Refused):
    """The edition fixes how long points stay, or within which limits (C9, A26, D28)."""

    code = "retention_fixed"


class ScheduleFixed(Refused):
    """The edition fixes when backups run (A10)."""

    code = "schedule_fixed"


class TrialEnded(Refused):
    """The trial is over and was not converted."""

    code = "trial_ended"


class ScopeFixed(Refused):
    """A trial covers the whole bucket (A9)."""

    code = "trial_covers_the_bucket"


class Speed(NamedTuple):
    """What a priority means: the most that a job reads and sends, steps at once, and above what a day may not do."""

    bytes_per_s: int
    parallel_max: int
    day_bytes: int


SPEEDS: dict[str, Speed] = {
    Priority.LOW: Speed(bytes_per_s=10_000_000, parallel_max=1, day_bytes=600 * GIB),
    Priority.HIGH: Speed(bytes_per_s=30_000_000, parallel_max=2, day_bytes=2 * TIB),
}


def limits_of(plan: Plan) -> tuple[int, int]:
    """Return the most bytes per second and steps at once that the plan's edition allows a job, 0 each for any number.

    Only essential host backup has a priority (C10, C15).
    """
    if plan.edition != Edition.ESSENTIAL:
        return 0, 0
    speed = SPEEDS[plan.priority]
    return speed.bytes_per_s, speed.parallel_max


def long_run_warning(plan: Plan, *, bytes_total: int) -> str:
    """Return what a person should know of a run over so many bytes; empty when it should end within a day (C53)."""
    if plan.edition != Edition.ESSENTIAL or bytes_total <= SPEEDS[plan.priority].day_bytes:
        return ""
    limit = SPEEDS[plan.priority].day_bytes
    shown = f"{limit // TIB} TiB" if limit >= TIB else f"{limit // GIB} GiB"
    advice = " High priority is faster." if plan.priority == Priority.LOW else ""
    return (
        f"More than {shown} with {plan.get_priority_display().lower()} priority: a run may take longer than 24 hours. "
        f"The next day's run is skipped then.{advice}"
    )


# Essential host backup leaves these out (C50): all that is in them, on Linux.
LINUX_EXCLUDED = (
    *("/bin/", "/usr/bin/", "/sbin/", "/boot/", "/proc/", "/sys/", "/srv/", "/lib/", "/selinux/", "/usr/sbin/"),
    *("/run/", "/lib32/", "/lib64/", "/lost+found/"),
)
# And these of each Windows drive, in any case of letters (C51); without a backslash at the end it is one file.
WINDOWS_EXCLUDED = (
    *("Windows\\", "python27\\", "Program Files (x86)\\", "Program Files\\", "ProgramData\\", "Boot\\"),
    *("$RECYCLE.BIN\\", "System Volume Information\\"),
    *("Users\\Administrator\\NTUSER.DAT", "pagefile.sys", "Users\\Administrator\\ntuser.dat.LOG1"),
)
EXCLUDED_NOTES = {"/srv/": "Many hosts keep data of their own in /srv. Take it out of the source's list then."}


def windows_pattern(path: str) -> str:
    """Return the pattern (engine.patterns) of a path below a drive's root that leaves the case of letters open."""
    open_case = "".join(f"[{c.lower()}{c.upper()}]" if c.isalpha() else "/" if c == "\\" else c for c in path)
    return f"/[A-Za-z]:/{open_case}"


def excluded_patterns(root: str) -> list[str]:
    """Return the patterns that essential host backup begins with for a root, which is a path or a drive such as C:."""
    if not root.startswith("/"):
        return [windows_pattern(path) for path in WINDOWS_EXCLUDED]
    return [path for path in LINUX_EXCLUDED if path.startswith(f"{root.rstrip('/')}/")]


def is_excluded(root: str) -> bool:
    """Say whether a folder of a Linux host lies inside what stays out."""
    return f"{root.rstrip('/')}/".startswith(LINUX_EXCLUDED)


class Aspect(NamedTuple):
    """One line of the comparison of a trial and a full plan."""

    aspect: str
    trial: str
    full: str


# Shown side by side before a plan of a bucket is made (A7, A16).
COMPARISON = (
    Aspect(
        "Cost", f"Free for {TRIAL_DAYS} days; what is used is counted and costs nothing", "By use, from the first day"
    ),
    Aspect("Scope", "The whole bucket", "The whole bucket, or the objects whose keys begin with a prefix"),
    Aspect(
        "Interval",
        f"Once a day, kept for {TRIAL_RETENTION_DAYS} days; neither can be changed",
        "By any policy, an existing one or one of its own",
    ),
    Aspect(
        "Vault",
        "One of its own, which nothing else uses; a plan that is converted keeps it for ever",
        "Any vault; all plans may share one",
    ),
    Aspect("Best for", "Trying it out", "Production, with full control"),
)


def daily_rule(start: dt.time | None = None) -> Rule:
    """Return the one rule, not saved, of the editions that run daily; without a start it is drawn (C8)."""
    return Rule(every=1, unit=Unit.DAY, start_time=start)


def check_policy(edition: str, policy: Policy, rules: Iterable[Rule]) -> None:
    """See that a policy keeps to what a plan's edition lays down. Raises RetentionFixed, ScheduleFixed."""
    terms, rules = TERMS[edition], [rule for rule in rules if rule.type == RuleType.BACKUP]
    named = Edition(edition).label
    low, high = terms.days_min, terms.days_max
    allowed = f"{low} days" if low == high else f"{low} to {high} days"
    unlimited = high == RETENTION_DAYS_MAX
    for days in (policy.retention_days, *(rule.retention_days or policy.retention_days for rule in rules)):
        if not (low <= days <= high if days else unlimited):
            shown = f"{days} days" if days else "no end"
            raise RetentionFixed(f"{named} keeps points for {allowed}, not {shown}.", days_min=low, days_max=high)
    if not terms.counts and any(getattr(policy, name) for name in COUNTS):
        raise RetentionFixed(
            f"{named} keeps points for {allowed}, and nothing but the newest longer: set {', '.join(COUNTS)} to 0.",
            days_min=low,
            days_max=high,
        )
    if terms.daily and [_shape(rule) for rule in rules] != [_shape(daily_rule())]:
        raise ScheduleFixed(f"{named} runs once a day: it takes one rule that says so.")
    if terms.start_fixed and any(rule.start_time for rule in rules):
        raise ScheduleFixed(f"{named} runs at the time that was drawn for it: convert it to a full plan to choose.")


def _shape(rule: Rule) -> tuple[object, ...]:
    return rule.cron, rule.every, rule.unit, tuple(rule.weekdays), rule.window_minutes


def check_start(plan: Plan) -> None:
    """Raise ScheduleFixed where no person chooses when the plan runs (A10)."""
    if TERMS[plan.edition].start_fixed:
        raise ScheduleFixed(
            f"{Edition(plan.edition).label} runs when it was drawn to, once a day: convert it to a full plan to choose."
        )


def check_scope(settings: Mapping[str, Any]) -> None:
    """Raise ScopeFixed for a bucket's settings that leave a part of it out: a trial covers all of it (A9)."""
    narrowed = [name for name in ("prefix", "include", "exclude") if settings.get(name)]
    if narrowed:
        raise ScopeFixed(
            f"A trial covers the whole bucket: leave {', '.join(narrowed)} empty, or take a full plan.", fields=narrowed
        )


class TrialState(StrEnum):
    """Where a trial stands: it runs, its backups have stopped, or it became a full plan."""

    RUNNING = "running"
    ENDED = "ended"
    CONVERTED = "converted"


def trial_state(vault: Vault, *, now: dt.datetime) -> str:
    """Return where the trial stands that the vault was made with, empty for a vault of none."""
    if vault.trial_started_at is None or vault.trial_expires_at is None:
        return ""
    if vault.trial_converted_at is not None:
        return TrialState.CONVERTED
    return TrialState.RUNNING if now < vault.trial_expires_at else TrialState.ENDED


def trial_told(vault: Vault, *, now: dt.datetime) -> str:
    """Return what a person should know of a trial that was not converted; empty for any other vault."""
    ends, goes = vault.trial_expires_at, vault.trial_release_at
    if not vault.is_trial or ends is None or goes is None:
        return ""
    if now < ends:
        return f"The trial runs until {_moment(ends)}. Convert the plan to go on after that."
    return (
        f"The trial ended on {_moment(ends)}: there are no more backups, and each point goes when its "
        f"{TRIAL_RETENTION_DAYS} days are over. The vault goes on {_moment(goes)}, or when its last lock ends. "
        "Convert the plan before then to keep both."
    )


def check_running(vault: Vault, *, now: dt.datetime) -> None:
    """Raise TrialEnded for the vault of a trial that is over."""
    if trial_state(vault, now=now) == TrialState.ENDED:
        raise TrialEnded(trial_told(vault, now=now))


def _moment(moment: dt.datetime) -> str:
    return f"{moment.astimezone(dt.UTC):%Y-%m-%d %H:%M} UTC"
