"""A schedule as a person with a calendar and a clock on the wall would follow it: quarter by quarter."""

import calendar
import datetime as dt
import zoneinfo
from collections.abc import Iterator

from policies.schedule import Schedule

QUARTER = dt.timedelta(minutes=15)


def moments(schedule: Schedule, begin: dt.datetime, end: dt.datetime) -> list[dt.datetime]:
    """Return when windows begin (runs, where there are none) from `begin` up to `end`, both on a quarter of an hour.

    Starts lie on quarters too: every zone's clock jumps by whole ones.
    """
    zone = zoneinfo.ZoneInfo(schedule.zone)
    if schedule.unit == "hour" and not schedule.cron:
        first = _coming(dt.datetime.combine(schedule.starts_on, schedule.start), zone)
        return [
            at for at in _quarters(begin, end) if at >= first and (at - first) % _hours(schedule.every) == _hours(0)
        ]
    found = []
    for at in _quarters(begin, end):
        shown = _shown(at, zone)
        before = _shown(at - QUARTER, zone)
        if shown < before:
            continue  # put back: these minutes have been already; below, `seen` leaves them out
        skipped = shown - before > QUARTER
        for wall in _walls(before, shown) if skipped else [shown]:
            if wall.time() == schedule.start and takes(schedule, wall.date()) and not _came_before(wall, at, zone):
                found.append(at)
    return sorted(set(found))


def _hours(count: int) -> dt.timedelta:
    return dt.timedelta(hours=count)


def _quarters(begin: dt.datetime, end: dt.datetime) -> Iterator[dt.datetime]:
    at = begin
    while at < end:
        yield at
        at += QUARTER


def _shown(at: dt.datetime, zone: dt.tzinfo) -> dt.datetime:
    """Return what a clock on the wall shows."""
    return at.astimezone(zone).replace(tzinfo=None, fold=0)


def _walls(before: dt.datetime, shown: dt.datetime) -> Iterator[dt.datetime]:
    """Yield what the clock did not show when it jumped, and what it shows now."""
    wall = before + QUARTER
    while wall <= shown:
        yield wall
        wall += QUARTER


def _came_before(wall: dt.datetime, at: dt.datetime, zone: dt.tzinfo) -> bool:
    """Say whether the clock showed this some time in the three hours before."""
    return any(_shown(at - QUARTER * back, zone) == wall for back in range(1, 13))


def _coming(wall: dt.datetime, zone: dt.tzinfo) -> dt.datetime:
    """Return when the clock shows `wall` for the first time, or jumps over it."""
    at = wall.replace(tzinfo=dt.UTC) - dt.timedelta(hours=27)
    while _shown(at, zone) < wall:
        at += QUARTER
    return at


def takes(schedule: Schedule, day: dt.date) -> bool:
    """Say whether the schedule takes a day."""
    start = schedule.starts_on
    if day < start:
        return False
    if schedule.weekdays:
        if day.isoweekday() not in schedule.weekdays:
            return False
        weeks = (_monday(day) - _monday(start)).days // 7
        return schedule.unit == "day" or weeks % schedule.every == 0
    if schedule.unit in ("day", "week"):
        return (day - start).days % (schedule.every * (7 if schedule.unit == "week" else 1)) == 0
    months = (day.year - start.year) * 12 + day.month - start.month
    last = calendar.monthrange(day.year, day.month)[1]
    return months % (schedule.every * (12 if schedule.unit == "year" else 1)) == 0 and day.day == min(start.day, last)


def _monday(day: dt.date) -> dt.date:
    return day - dt.timedelta(days=day.weekday())
