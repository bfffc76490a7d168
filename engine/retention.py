"""Which versions of a series stay and which go (vault-format, section 8): arithmetic on times, nothing else.

Any rule that keeps a version keeps it, so another rule never makes one go. A period's rule counts periods that have a
version, not days that pass: a source that is switched off loses nothing by it. Retention counts from completion, by the
service's clock.
"""

import datetime as dt
from collections.abc import Callable, Iterable, Sequence
from zoneinfo import ZoneInfo

import msgspec

DAYS_MAX = 364_635


class Rules(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What keeps a version of a series.

    `days` since completion; None means each version's own retention, 0 that days alone keep nothing. `last` counts
    versions; `daily`, `weekly` (ISO), `monthly` and `yearly` count periods in the time zone `zone`, of which the first
    complete version stays (the first at all when none is complete). `at_least_one` keeps the newest version and the
    newest complete one (C9, C16). `by_rule` holds the days for versions that the named rule made, in the place of
    `days`: one policy may keep what it makes daily for a week and what it makes monthly for a year.
    """

    days: int | None = None
    last: int = 0
    daily: int = 0
    weekly: int = 0
    monthly: int = 0
    yearly: int = 0
    at_least_one: bool = False
    zone: str = "UTC"
    by_rule: dict[str, int] = {}

    def check(self) -> None:
        """Raise ValueError telling what is wrong with the rules."""
        for name, number in (("days", self.days), *self.by_rule.items(), *self.counts().items()):
            if number is not None and number < 0:
                raise ValueError(f"{name} is {number}: give 0 or more")
        if (longest := max([self.days or 0, *self.by_rule.values()])) > DAYS_MAX:
            raise ValueError(f"days is {longest:,}: give at most {DAYS_MAX:,}")
        if self.days == 0 and not any(self.counts().values()) and not self.at_least_one:
            raise ValueError("these rules keep nothing: to delete everything, name the points that are to go")
        _zone(self.zone)

    def counts(self) -> dict[str, int]:
        """Return the rules that count, by name."""
        names = ("last", "daily", "weekly", "monthly", "yearly")
        return {name: getattr(self, name) for name in names}


class Version(msgspec.Struct, frozen=True, kw_only=True):
    """What the rules look at. Times are aware; `retention_days` 0 keeps it until somebody deletes it.

    `complete` says that nothing is missing from it; `locked_until` is None without a lock. `rule` is what made it,
    empty when it was made on demand: then `manual` says that it goes by its own retention, whatever the rules.
    """

    point: str
    completed_at: dt.datetime
    retention_days: int = 0
    complete: bool = True
    held: bool = False
    locked_until: dt.datetime | None = None
    rule: str = ""
    manual: bool = False


class Verdict(msgspec.Struct, frozen=True):
    """What becomes of a version, and why.

    `expires_at` is when time lets go of it: for one that goes the moment that has passed, for one that stays None when
    no date can be told, because something else than days or a lock keeps it.
    """

    point: str
    keep: bool
    reasons: list[str]
    expires_at: dt.datetime | None

    @property
    def text(self) -> str:
        """Return the verdict as a sentence."""
        return f"{'kept' if self.keep else 'goes'}: {', '.join(self.reasons)}"


def judge(versions: Iterable[Version], rules: Rules, now: dt.datetime) -> list[Verdict]:
    """Return a verdict for each version of one series, oldest first. Raises ValueError for rules that are wrong."""
    rules.check()
    zone = _zone(rules.zone)
    ordered = sorted(versions, key=lambda version: (version.completed_at, version.point))
    counted: dict[str, list[str]] = {version.point: [] for version in ordered}
    for place, version in enumerate(reversed(ordered[max(len(ordered) - rules.last, 0) :]), 1):
        counted[version.point].append(f"number {place} of the last {rules.last}")
    for name, number in rules.counts().items():
        if number and name in _PERIODS:
            for version, label in _firsts(ordered, _PERIODS[name], zone, number):
                counted[version.point].append(label)
    if rules.at_least_one and ordered:
        counted[ordered[-1].point].append("the newest")
        complete = next((version for version in reversed(ordered) if version.complete), ordered[-1])
        if complete is not ordered[-1]:
            counted[complete.point].append("the newest complete one")
    return [_verdict(version, rules, now, counted[version.point]) for version in ordered]


def _verdict(version: Version, rules: Rules, now: dt.datetime, counted: list[str]) -> Verdict:
    days = _days(version, rules)
    end = None if days is None else _end(version.completed_at, days)
    until = version.locked_until if version.locked_until is not None and version.locked_until > now else None
    reasons = []
    if version.held:
        reasons.append("held")
    if until is not None:
        reasons.append(f"locked until {_moment(until, rules.zone)}")
    if days is None or end is None:
        reasons.append("stays until somebody deletes it")
    elif version.completed_at > now:
        reasons.append("by its time it was completed in the future")
    elif end > now:
        reasons.append(f"{_count(days)} since completion are over on {_moment(end, rules.zone)}")
    reasons += counted
    if reasons:
        expires_at = None if end is None or version.held or counted else max(end, until or end)
        return Verdict(version.point, True, reasons, expires_at)
    assert days is not None
    assert end is not None
    over = f"{_count(days)} since completion were over on {_moment(end, rules.zone)}" if days else "no rule keeps it"
    return Verdict(version.point, False, [over], end)


def _days(version: Version, rules: Rules) -> int | None:
    """Return for how many days a version stays, None until somebody deletes it."""
    if version.rule in rules.by_rule:
        return rules.by_rule[version.rule]
    if rules.days is None or (version.manual and not version.rule):
        return version.retention_days or None
    return rules.days


def _firsts(
    ordered: Sequence[Version], period: Callable[[dt.datetime], str], zone: dt.tzinfo, number: int
) -> list[tuple[Version, str]]:
    """Return what stands for each of the newest `number` periods that have a version, with the period's name."""
    first: dict[str, Version] = {}
    for version in ordered:
        label = period(version.completed_at.astimezone(zone))
        if version.complete and not first.setdefault(label, version).complete:
            first[label] = version
        first.setdefault(label, version)
    # Names of periods sort as the periods do. The order of instants would not: clocks are put back over midnight.
    return [(first[label], f"first of {label}") for label in sorted(first, reverse=True)[:number]]


def _week(local: dt.datetime) -> str:
    year, week, _ = local.isocalendar()
    return f"week {year:04}-W{week:02}"


_PERIODS: dict[str, Callable[[dt.datetime], str]] = {
    "daily": lambda local: f"day {local.year:04}-{local.month:02}-{local.day:02}",
    "weekly": _week,
    "monthly": lambda local: f"month {local.year:04}-{local.month:02}",
    "yearly": lambda local: f"year {local.year:04}",
}


def _end(completed_at: dt.datetime, days: int) -> dt.datetime | None:
    """Return when the days are over; None when the calendar ends before."""
    try:
        return completed_at + dt.timedelta(days=days)
    except OverflowError:
        return None


def _count(days: int) -> str:
    return "1 day" if days == 1 else f"{days:,} days"


def _moment(moment: dt.datetime, zone: str) -> str:
    try:
        return f"{moment.astimezone(_zone(zone)):%Y-%m-%d %H:%M %Z}"
    except OverflowError:  # in the last hours of the calendar
        return f"{moment:%Y-%m-%d %H:%M %Z}"


def _zone(name: str) -> dt.tzinfo:
    if name == "UTC":
        return dt.UTC  # also where a machine has no table of time zones
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        raise ValueError(f"this machine knows no time zone {name!r}: give one such as Europe/Paris, or UTC") from None
