"""When a plan runs next. Pure: no clock, no database. Moments in and out are aware; results are UTC.

Wall-clock rules on the two odd days of a year: a moment that the clock jumps over runs right after the jump, a moment
that comes twice runs at its first coming. Hours are elapsed time and know no odd days.
"""

import calendar
import datetime as dt
import hashlib
import random
import zoneinfo
from dataclasses import dataclass, field
from functools import lru_cache

from cronsim import CronSim, CronSimError

DAY_MINUTES = 1440
DRAWN_START_MINUTES = 360  # a drawn start lies between 00:00 and 06:00 (C8)


@dataclass(frozen=True, slots=True)
class Schedule:
    """`cron`, when not empty, decides alone; else every `every` `unit` since `starts_on` at `start` (wall clock).

    `weekdays` (1 Monday to 7 Sunday) are the days of a daily schedule, or of the weeks of a weekly one. With `window_s`
    a run starts anywhere in the window that begins then: the place is drawn by `seed` and the window's begin, so that
    it differs from run to run and asking again gives the same answer (D14, D19). A window has its length in elapsed
    time, also on odd days. Schedules that differ in the seed alone are equal: their windows begin together.
    """

    zone: str
    cron: str = ""
    every: int = 1
    unit: str = "day"
    starts_on: dt.date = dt.date(2024, 1, 1)
    start: dt.time = dt.time(0, 0)
    weekdays: tuple[int, ...] = ()
    window_s: int = 0
    seed: str = field(default="", compare=False)


def check_cron(text: str) -> None:
    """Raise ValueError, with what to do, when `text` is not a cron expression of five fields that ever matches."""
    if len(text.split()) != 5:
        raise ValueError("A cron expression has five fields: minute, hour, day of month, month, day of week.")
    try:
        next(CronSim(text, dt.datetime(2024, 1, 1, tzinfo=dt.UTC)))
    except (CronSimError, StopIteration) as error:
        raise ValueError(f"{text!r} is not a cron expression: {str(error) or 'it never matches'}.") from error


def next_after(schedule: Schedule, after: dt.datetime) -> dt.datetime:
    """Return the first moment of `schedule` later than `after` (aware), in UTC. Raises OverflowError: never again.

    Windows that overlap may draw their moments in another order than they begin in.
    """
    if not schedule.window_s:
        return next_begin(schedule, after)
    begin, first = after - dt.timedelta(seconds=schedule.window_s), None
    while True:
        begin = next_begin(schedule, begin)
        if first is not None and begin >= first:
            return first
        moment = begin + dt.timedelta(seconds=drawn(schedule, begin))
        if moment > after and (first is None or moment < first):
            first = moment


def drawn(schedule: Schedule, begin: dt.datetime) -> int:
    """Return how many seconds into the window that begins then the run starts."""
    if not schedule.window_s:
        return 0
    return place(f"{schedule.seed}/{begin:%Y-%m-%dT%H:%M}", schedule.window_s)


def place(name: str, length: int) -> int:
    """Return a number from 0 to below `length`, the same for a name each time, spread evenly over many names."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") % length


def draw_start() -> int:
    """Draw a minute between 00:00 and 06:00, once for each plan (C8)."""
    return random.SystemRandom().randrange(DRAWN_START_MINUTES)


@lru_cache(maxsize=4096)  # thousands of plans share a policy, and come due together
def next_begin(schedule: Schedule, after: dt.datetime) -> dt.datetime:
    """Return the first moment later than `after` at which the schedule's windows begin: its runs when it has none."""
    begin = _next_begin(schedule, after)
    while begin <= after:  # the library knows the hour that comes twice by its wall-clock time alone
        begin = _next_begin(schedule, begin)
    return begin


def _next_begin(schedule: Schedule, after: dt.datetime) -> dt.datetime:
    zone = zoneinfo.ZoneInfo(schedule.zone)
    if schedule.cron:
        try:
            return next(CronSim(schedule.cron, after.astimezone(zone))).astimezone(dt.UTC)
        except StopIteration:
            raise OverflowError(f"{schedule.cron} never comes again") from None
    first = _moment(schedule.starts_on, schedule.start, zone)
    if schedule.unit == "hour":
        period = dt.timedelta(hours=schedule.every)
        return first + max((after - first) // period + 1, 0) * period
    if schedule.weekdays:
        return _next_weekday(schedule, after, zone)
    steps = _periods_before(schedule, after.astimezone(zone).date())
    while True:
        moment = _moment(_date(schedule, steps), schedule.start, zone)
        if moment > after:
            return moment
        steps += 1


def _next_weekday(schedule: Schedule, after: dt.datetime, zone: zoneinfo.ZoneInfo) -> dt.datetime:
    """Return the first moment on one of the schedule's weekdays, in the weeks that it takes."""
    every = schedule.every if schedule.unit == "week" else 1
    monday = schedule.starts_on - dt.timedelta(days=schedule.starts_on.weekday())
    day = max(after.astimezone(zone).date() - dt.timedelta(days=1), schedule.starts_on)
    while True:
        week = (day - monday).days // 7
        if week % every:
            day = monday + dt.timedelta(weeks=week + every - week % every)
        elif day.isoweekday() in schedule.weekdays and (moment := _moment(day, schedule.start, zone)) > after:
            return moment
        else:
            day += dt.timedelta(days=1)


def spread(name: str, every_s: int, *, after: dt.datetime) -> dt.datetime:
    """Return the first moment later than `after` of a grid with that period, shifted by a hash of `name`.

    So things of many names that come round as often don't do so at once.
    """
    shift = place(name, every_s)
    rounds = (int(after.timestamp()) - shift) // every_s + 1
    return dt.datetime.fromtimestamp(rounds * every_s + shift, dt.UTC)


def _moment(day: dt.date, time: dt.time, zone: zoneinfo.ZoneInfo) -> dt.datetime:
    """Return the wall-clock time in UTC; a time inside a gap becomes the end of the gap."""
    wall = dt.datetime.combine(day, time.replace(tzinfo=None))
    before = wall.replace(tzinfo=zone)
    moment = before.astimezone(dt.UTC)
    if moment.astimezone(zone).replace(tzinfo=None) == wall:
        return moment
    # In a gap fold=0 uses the offset before it and fold=1 the one after: their difference is the gap's length.
    early, late = before.utcoffset(), wall.replace(tzinfo=zone, fold=1).utcoffset()
    assert early is not None
    assert late is not None
    low, high = moment - abs(late - early), moment
    while high - low > dt.timedelta(seconds=1):
        middle = low + (high - low) / 2
        if middle.astimezone(zone).utcoffset() == early:
            low = middle
        else:
            high = middle
    return high.replace(microsecond=0)


def _periods_before(schedule: Schedule, day: dt.date) -> int:
    """Return a number of periods since the start that certainly does not lie beyond `day`."""
    days = (day - schedule.starts_on).days - 1
    longest = {"day": 1, "week": 7, "month": 31, "year": 366}[schedule.unit]
    return max(days // (longest * schedule.every), 0)


def _date(schedule: Schedule, steps: int) -> dt.date:
    """Return the day of the `steps`-th run; the 31st of a shorter month is its last day."""
    start, count = schedule.starts_on, steps * schedule.every
    if schedule.unit in ("day", "week"):
        return start + dt.timedelta(days=count * (7 if schedule.unit == "week" else 1))
    months = start.year * 12 + start.month - 1 + count * (12 if schedule.unit == "year" else 1)
    year, month = divmod(months, 12)
    if year > dt.MAXYEAR:
        raise OverflowError("the calendar ends before")
    return dt.date(year, month + 1, min(start.day, calendar.monthrange(year, month + 1)[1]))
