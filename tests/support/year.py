"""A made-up year of plans, and what must come of it by a model that knows nothing of the product's own arithmetic.

A beat ticks every hour while one lives. The model walks the same year: moments by the calendar and the clock on
the wall, one host doing one backup at a time, and what is told of moments that passed without one.
"""

import bisect
import datetime as dt
import hashlib
import random
import uuid
import zoneinfo
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

from policies.schedule import Schedule
from tests.support.naive_schedule import takes

TICK = dt.timedelta(hours=1)
DAY = dt.timedelta(days=1)
LATE = dt.timedelta(hours=1)
BEGIN = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
ZONES = ("UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata", "Australia/Lord_Howe")


@dataclass(frozen=True)
class RuleSpec:
    """One rule: every `every` units at a time of day, on weekdays if some; how many days its points stay."""

    unit: str
    every: int = 1
    time: dt.time = dt.time(2)
    weekdays: tuple[int, ...] = ()
    window_minutes: int = 0
    days: int = 30
    cron: bool = False

    @property
    def cron_text(self) -> str:
        """Return the same as a cron expression; its days are Sunday 0 to Saturday 6."""
        days = ",".join(str(day % 7) for day in self.weekdays) or "*"
        return f"{self.time.minute} {self.time.hour} * * {days}"


@dataclass
class PlanSpec:
    """One plan: its host, its rules, those from a later moment on, its pauses, and what keeps its points longer."""

    number: int
    host: int
    zone: str
    rules: tuple[RuleSpec, ...]
    keep_last: int = 0
    keep_one: bool = False
    catch_up: bool = False
    not_before: dt.datetime | None = None
    pauses: list[tuple[dt.datetime, dt.datetime]] = field(default_factory=list)
    edited: tuple[dt.datetime, tuple[RuleSpec, ...]] | None = None
    key: uuid.UUID = field(default_factory=uuid.uuid4)


Spans = list[tuple[dt.datetime, dt.datetime]]


@dataclass
class World:
    """Plans, when their hosts' workers and every beat were away, and how long each backup takes."""

    plans: list[PlanSpec]
    end: dt.datetime
    away: dict[int, Spans]
    dead: Spans

    def beats(self, at: dt.datetime) -> bool:
        return not any(begin <= at < end for begin, end in self.dead)

    def tick(self, at: dt.datetime) -> dt.datetime:
        """Return the first tick from `at` on at which a beat lives."""
        found = BEGIN + -((BEGIN - at) // TICK) * TICK
        while not self.beats(found):
            found += TICK
        return found

    def serves(self, host: int, at: dt.datetime) -> bool:
        return not any(begin <= at < end for begin, end in self.away.get(host, ()))

    def changes(self) -> list[tuple[dt.datetime, PlanSpec, str]]:
        """Return what people do to plans, in order: pause, resume, edit."""
        found: list[tuple[dt.datetime, PlanSpec, str]] = []
        for plan in self.plans:
            for begin, end in plan.pauses:
                found += [(begin, plan, "pause"), (end, plan, "resume")]
            if plan.edited:
                found.append((plan.edited[0], plan, "edit"))
        return sorted(found, key=lambda one: one[0])

    def takes(self, plan: PlanSpec, moment: dt.datetime) -> dt.timedelta:
        """Return how long the backup of a moment takes: minutes mostly, days once in a while."""
        rng = random.Random(f"{plan.number}/{moment.isoformat()}")
        return (
            dt.timedelta(hours=rng.uniform(10, 60))
            if rng.random() < 0.02
            else dt.timedelta(minutes=rng.randint(3, 200))
        )

    def fails(self, plan: PlanSpec, moment: dt.datetime) -> bool:
        return random.Random(f"fails/{plan.number}/{moment.isoformat()}").random() < 0.03


def make_world(seed: int, *, plans: int, days: int) -> World:
    """Return a world of that many plans for that many days."""
    rng = random.Random(seed)
    hosts = max(plans * 3 // 10, 2)
    end = BEGIN + DAY * days

    def some(most: int, longest_h: float) -> Spans:
        begins = sorted(BEGIN + (end - BEGIN) * rng.random() for _ in range(rng.randint(0, most)))
        return [(_half(begin), _half(begin + dt.timedelta(hours=rng.uniform(1, longest_h)))) for begin in begins]

    made = [_make_plan(rng, number, hosts, end, days) for number in range(plans)]
    return World(made, end, {host: some(4, 100) for host in range(hosts)}, [*some(6, 90), _edge(end)])


def _edge(end: dt.datetime) -> tuple[dt.datetime, dt.datetime]:
    """Return an outage over a change of clocks, if the year has one."""
    spring = dt.datetime(2026, 3, 29, tzinfo=dt.UTC)
    return (spring, spring + dt.timedelta(hours=9)) if end > spring else (BEGIN + DAY * 9, BEGIN + DAY * 10)


def _half(at: dt.datetime) -> dt.datetime:
    """Return a moment off every tick, so that nothing depends on what comes first at one."""
    return at.replace(minute=at.minute // 30 * 30 + 7, second=13, microsecond=0)


def _make_plan(rng: random.Random, number: int, hosts: int, end: dt.datetime, days: int) -> PlanSpec:
    plan = PlanSpec(number, rng.randrange(hosts), rng.choice(ZONES), _rules(rng, number))
    plan.key = uuid.UUID(int=rng.getrandbits(128))
    plan.keep_last, plan.keep_one = rng.choice((0, 0, 3)), rng.random() < 0.5
    plan.catch_up = rng.random() < 0.2
    if rng.random() < 0.1:
        plan.not_before = _half(BEGIN + DAY * rng.uniform(0, days / 4))
    if rng.random() < 0.2:
        begin = _half(BEGIN + DAY * rng.uniform(0, days * 0.6))
        plan.pauses = [(begin, _half(begin + DAY * rng.uniform(1, days * 0.2)))]
    elif rng.random() < 0.2:
        plan.edited = _half(BEGIN + DAY * rng.uniform(days * 0.3, days * 0.7)), _rules(rng, number)
    return plan


def _rules(rng: random.Random, number: int) -> tuple[RuleSpec, ...]:
    """Return rules whose moments no other plan has: every plan has minutes of its own."""
    time = dt.time(rng.choice((0, 4, 7, 22)), number * 7 % 60)
    days = rng.choice((3, 7, 30, 90))
    weekdays = tuple(sorted(rng.sample(range(1, 8), rng.randint(1, 2))))
    early = dt.time(rng.choice((1, 2, 3)), time.minute)  # what clocks jump over, or show twice
    kinds = [
        (RuleSpec("day", time=early, days=days),),
        (RuleSpec("hour", every=12, time=time, days=3),),
        (RuleSpec("day", weekdays=weekdays, time=early, days=days),),
        (RuleSpec("week", every=rng.choice((2, 3)), weekdays=weekdays, time=time, days=days),),
        (RuleSpec("day", weekdays=weekdays[:1], time=time.replace(hour=7), days=days, cron=True),),
        (RuleSpec("week", time=time, window_minutes=120, days=days),),
        (RuleSpec("week", time=early, days=7), RuleSpec("month", time=time, days=365)),
        (RuleSpec("week", time=time, days=14), RuleSpec("week", every=4, time=time, days=180)),
        (RuleSpec("month", time=time, days=days),),
        (RuleSpec("month", every=3, time=early, days=365), RuleSpec("year", time=time, days=3650)),
    ]
    return rng.choices(kinds, weights=(1, 1, 2, 8, 2, 4, 4, 4, 44, 30))[0]


STARTS_ON = dt.date(2024, 1, 31)  # many months have no such day


def _takes_day(rule: RuleSpec, day: dt.date) -> bool:
    if rule.cron:
        return not rule.weekdays or day.isoweekday() in rule.weekdays
    return takes(Schedule("UTC", every=rule.every, unit=rule.unit, starts_on=STARTS_ON, weekdays=rule.weekdays), day)


def on_the_wall(day: dt.date, time: dt.time, zone: dt.tzinfo) -> dt.datetime:
    """Return when a clock on the wall shows that first, or jumps over it."""
    wall = dt.datetime.combine(day, time)
    at = wall.replace(tzinfo=dt.UTC) - dt.timedelta(hours=14)
    end = at + dt.timedelta(hours=27)
    step = dt.timedelta(hours=1)
    while at + step < end and (at + step).astimezone(zone).replace(tzinfo=None) < wall:
        at += step
    while at.astimezone(zone).replace(tzinfo=None) < wall:
        at += dt.timedelta(minutes=1)
    return at


def moments(rule: RuleSpec, plan: PlanSpec, begin: dt.datetime, end: dt.datetime) -> Iterator[dt.datetime]:
    """Yield when the plan is due by a rule, later than `begin` and before `end`."""
    zone = zoneinfo.ZoneInfo(plan.zone)
    if rule.unit == "hour":
        at = on_the_wall(STARTS_ON, rule.time, zone)
        while at < end:
            if at > begin:
                yield at
            at += dt.timedelta(hours=rule.every)
        return
    day = begin.date() - dt.timedelta(days=2)
    while day <= end.date() + dt.timedelta(days=1):
        if _takes_day(rule, day):
            at = on_the_wall(day, rule.time, zone)
            if rule.window_minutes:
                name = f"{plan.key}/{at:%Y-%m-%dT%H:%M}"
                drawn = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") % (rule.window_minutes * 60)
                at += dt.timedelta(seconds=drawn)
            if begin < at < end:
                yield at
        day += dt.timedelta(days=1)


def due(plan: PlanSpec, rules: tuple[RuleSpec, ...], begin: dt.datetime, end: dt.datetime) -> dict[dt.datetime, int]:
    """Return the plan's moments, each with the days of the rule that keeps longest."""
    found: dict[dt.datetime, int] = defaultdict(int)
    for rule in rules:
        for at in moments(rule, plan, begin, end):
            if plan.not_before is None or at >= plan.not_before:
                found[at] = max(found[at], rule.days)
    return found


@dataclass
class Point:
    """What a backup that ended well left: when, and for how many days."""

    completed_at: dt.datetime
    days: int


class Model:
    """Walks a world's year. `ends` are the states that moments came to, `points` what is there at the end, by plan."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.ends: dict[tuple[int, dt.datetime], str] = {}
        self.points: dict[int, list[Point]] = defaultdict(list)
        self._due = {plan.number: due(plan, plan.rules, BEGIN, world.end) for plan in world.plans}
        self._order = {number: sorted(found) for number, found in self._due.items()}
        self._next = {plan.number: self._after(plan, BEGIN) for plan in world.plans}
        self._rest = {plan.number: BEGIN for plan in world.plans}  # no look at the plan before
        self._running: dict[int, tuple[dt.datetime, PlanSpec, dt.datetime]] = {}  # by host

    def _after(self, plan: PlanSpec, at: dt.datetime) -> dt.datetime | None:
        order = self._order[plan.number]
        place = bisect.bisect_right(order, at)
        return order[place] if place < len(order) else None

    def run(self) -> "Model":
        todo = self.world.changes()
        month = 1
        while True:
            now = min(self._moments(todo, month), default=self.world.end)
            if now >= self.world.end:
                return self
            for host in [host for host, (end, *_) in self._running.items() if end <= now]:
                self._ended(host)
            while todo and todo[0][0] <= now:
                self._change(*todo.pop(0))
            if now == month_noon(month):
                self._expire(now)
                month += 1
            if (now - BEGIN) % TICK == dt.timedelta() and self.world.beats(now):
                self._sweep(now)

    def _moments(self, todo: list[tuple[dt.datetime, PlanSpec, str]], month: int) -> Iterator[dt.datetime]:
        yield month_noon(month)
        yield from (end for end, *_ in self._running.values())
        yield from (at for at, *_ in todo[:1])
        waits = [max(at, self._rest[number]) for number, at in self._next.items() if at is not None]
        if waits:
            yield self.world.tick(min(waits))

    def _change(self, now: dt.datetime, plan: PlanSpec, what: str) -> None:
        if what == "pause":
            self._next[plan.number] = None
        elif what == "resume":
            self._next[plan.number] = self._after(plan, now)
        elif plan.edited:
            old, new = self._due[plan.number], due(plan, plan.edited[1], BEGIN, self.world.end)
            merged = {at: days for at, days in old.items() if at <= now} | {at: d for at, d in new.items() if at > now}
            self._due[plan.number], self._order[plan.number] = merged, sorted(merged)
            waiting = self._next[plan.number]
            if waiting is None or waiting > now:  # what has come already is dealt with first
                self._next[plan.number] = self._after(plan, now)
            for point in self.points[plan.number]:
                point.days = max(rule.days for rule in plan.edited[1])

    def _sweep(self, now: dt.datetime) -> None:
        waiting = [(at, plan) for plan in self.world.plans if (at := self._next[plan.number]) is not None and at <= now]
        for first, plan in sorted(waiting, key=lambda one: one[0]):
            order = self._order[plan.number]
            come = order[bisect.bisect_left(order, first) : bisect.bisect_right(order, now)]
            state = self._state(plan, come[-1], now)
            for at in come[:-1]:
                self.ends[(plan.number, at)] = "missed"
            if state == "waits":
                self._next[plan.number], self._rest[plan.number] = come[-1], now + TICK
                continue
            self._next[plan.number] = self._after(plan, now)
            if state == "runs":
                self._running[plan.host] = (now + self.world.takes(plan, come[-1]), plan, come[-1])
            else:
                self.ends[(plan.number, come[-1])] = state

    def _state(self, plan: PlanSpec, at: dt.datetime, now: dt.datetime) -> str:
        if now - at > LATE and not plan.catch_up:
            return "missed"
        if plan.host in self._running:
            return "skipped"
        if not self.world.serves(plan.host, now):
            return "waits" if plan.catch_up else "missed"
        return "runs"

    def _ended(self, host: int) -> None:
        end, plan, at = self._running.pop(host)
        failed = self.world.fails(plan, at)
        self.ends[(plan.number, at)] = "failed" if failed else "complete"
        # Of a rule that is gone a point has the longest days of those that took its place.
        gone = plan.edited is not None and at <= plan.edited[0] <= end
        days = max(rule.days for rule in plan.edited[1]) if gone and plan.edited else self._due[plan.number][at]
        if not failed:
            self.points[plan.number].append(Point(end, days))

    def _expire(self, now: dt.datetime) -> None:
        for plan in self.world.plans:
            points = self.points[plan.number]
            number = max(plan.keep_last, int(plan.keep_one))
            kept = points[-number:] if number else []
            self.points[plan.number] = [one for one in points if one in kept or one.completed_at + DAY * one.days > now]


def month_noon(number: int) -> dt.datetime:
    """Return the noon of the first of the year's month with that number."""
    return dt.datetime(2026 + number // 12, number % 12 + 1, 1, 12, 11, tzinfo=dt.UTC)
