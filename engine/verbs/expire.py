"""Let points go whose retention is over, or that a person names (vault-format, section 8): plan -> work -> finish.

plan reads the roots and judges them: its units are the preview. finish looks again at what may have changed (points,
holds, locks), asks the guards, and only then marks and deletes (`verbs.reap`). Everything comes from the bucket.

Two guards stand before the first mark; a person's confirmation opens both:

- no run expires more than a fifth of the vault's visible points (one is always allowed);
- no run goes by a clock that jumped (`verbs.timeguard`).

A point whose root can't be read is never judged: it stays, is listed, and can be named. Held and locked points stay
whoever asks.
"""

import datetime as dt
from collections.abc import Callable, Iterable, Iterator

import msgspec

from engine.errors import ExpiryRefused, FormatError, IntegrityError, NotFound, PointMissing
from engine.ids import valid_series
from engine.locks import in_threads
from engine.point import Body, decode_root, point_key
from engine.progress import Progress
from engine.retention import Rules, Version, judge
from engine.session import LEASE_S
from engine.vault import PointName, Vault
from engine.verbs.hold import Holds
from engine.verbs.reap import Reaped, Refused, Waiting, mark, reap, shown_name
from engine.verbs.timeguard import TimeGuard

UNIT_POINTS = 500
SHARE = 5


class ExpireJob(msgspec.Struct, frozen=True, kw_only=True):
    """What to expire. `run` is a fresh ULID.

    `rules` by series, `default` for all other series; without either a series is left alone. `points`, as
    `<series>/<point>`, go because a person asked, for `reason`, whatever the rules say. `held` are points (so, or bare
    ids) that somebody holds beside the holds of the bucket. `confirmed` opens the guards; a `dry_run` changes nothing.
    A session that gave no sign of life for `lease_s` seconds is taken for dead.
    """

    run: str
    started_at: dt.datetime
    rules: dict[str, Rules] = {}
    default: Rules | None = None
    held: tuple[str, ...] = ()
    points: tuple[str, ...] = ()
    reason: str = ""
    confirmed: bool = False
    dry_run: bool = False
    lease_s: int = LEASE_S


class Decision(msgspec.Struct, kw_only=True):
    """What becomes of one point, and why. `asked` says that a person named it.

    `state` is complete, partial_complete or damaged; a damaged one has no `completed_at`. `locked_until` is the end of
    a lock that is in force.
    """

    series: str
    point: str
    keep: bool
    reasons: list[str]
    expires_at: dt.datetime | None = None
    completed_at: dt.datetime | None = None
    locked_until: dt.datetime | None = None
    state: str = "complete"
    asked: bool = False

    @property
    def name(self) -> PointName:
        """Return the point's place."""
        return PointName(self.series, self.point)

    @property
    def text(self) -> str:
        """Return the decision as a sentence."""
        return f"{'kept' if self.keep else 'goes'}: {', '.join(self.reasons)}"


class Unit(msgspec.Struct):
    """A part of the preview, as it looked at `judged_at`. `missing` are points that were named and are not there."""

    number: int
    judged_at: dt.datetime
    decisions: list[Decision]
    missing: list[str] = []

    @property
    def needs_work(self) -> bool:
        """Say whether a worker has anything to do: never."""
        return False


class Result(msgspec.Struct):
    """A unit, as it was."""

    number: int
    judged_at: dt.datetime
    decisions: list[Decision]
    missing: list[str] = []


class Outcome(msgspec.Struct):
    """How an expiry ended; points as `<series>/<point>`.

    `state` is complete; or partial_complete when something waits, was refused or could not be judged. `objections` are
    what the guards said: of a dry run, or of one that was confirmed in spite of them. `visible` counts the points there
    were. `expired` are invisible since this run, `missing` were so before; `deleted` are gone, those that earlier runs
    expired too; `waiting` are expired and still read by a session. `shown` had been expired in spite of a hold or a
    lock and are visible again. `refused` says why, and until when. `damaged` can't be judged. `fenced` are dead
    sessions.
    """

    state: str
    run: str
    dry_run: bool
    decisions: list[Decision]
    visible: int = 0
    objections: list[str] = []
    expired: list[str] = []
    deleted: list[str] = []
    missing: list[str] = []
    shown: list[str] = []
    waiting: list[Waiting] = []
    refused: list[Refused] = []
    damaged: list[str] = []
    fenced: list[str] = []


def plan(vault: Vault, job: ExpireJob, progress: Progress, *, now: dt.datetime) -> Iterator[Unit]:
    """Judge every point that the job is about and yield the decisions; changes nothing.

    Raises ValueError for rules or names that are wrong, FormatError for a vault that this program must not prune.
    """
    vault.know("read" if job.dry_run else "prune")
    for rules in [*job.rules.values(), *([job.default] if job.default is not None else [])]:
        rules.check()
    asked = {_parsed(text) for text in job.points}
    progress.phase("read")
    decisions: list[Decision] = []
    number = 0
    found: set[PointName] = set()
    holds = Holds(vault.storage, job.held)
    for series, names in _by_series(vault).items():
        found.update(names)
        rules_of = job.rules.get(series, job.default)
        judging = _Judge(vault, job, holds, now)
        for name in names:
            if rules_of is not None or name in asked:
                progress.check()
                judging.look(name, asked=name in asked)
        decisions += judging.decide(rules_of)
        while len(decisions) >= UNIT_POINTS:
            yield Unit(number, now, decisions[:UNIT_POINTS])
            decisions, number = decisions[UNIT_POINTS:], number + 1
    wrecks = {name for name in asked - found if _is_wreck(vault, name)}
    for name in sorted(wrecks):
        decision = Decision(series=name.series, point=name.point, keep=True, reasons=[], state="damaged", asked=True)
        _ask(decision, job.reason, is_held=name in holds)
        decisions.append(decision)
    yield Unit(number, now, decisions, sorted(shown_name(name) for name in asked - found - wrecks))


def work(vault: Vault, job: ExpireJob, unit: Unit, progress: Progress) -> Result:
    """Pass the unit on: judging costs less than sending it."""
    return Result(unit.number, unit.judged_at, unit.decisions, unit.missing)


def finish(
    vault: Vault, job: ExpireJob, results: Iterable[Result], progress: Progress, *, clock: Callable[[], dt.datetime]
) -> Outcome:
    """Look again, ask the guards, mark what goes, delete what is marked and read by nobody.

    Raises ExpiryRefused before anything is written when a guard objects and nobody confirmed. After any other error
    some points may be marked or deleted; the next run goes on. Safe to run twice.
    """
    outcome = Outcome("complete", job.run, job.dry_run, [])
    moments = []
    for result in results:
        outcome.decisions += result.decisions
        outcome.missing += result.missing
        moments.append(result.judged_at)
        progress.check()
    now = clock()
    going = _settle(vault, job, outcome, now)
    guard = TimeGuard(vault)
    jumped = guard.objection([*moments, now])
    outcome.objections = [text for text in (jumped, _too_many(len(going), outcome.visible)) if text]
    if not job.dry_run:
        if outcome.objections and not job.confirmed:
            raise ExpiryRefused("; ".join(outcome.objections))
        vault.know("prune")
        progress.phase("expire")
        progress.total(entries=len(going))
        guard.note(job.run, now)
        for decision in going:
            progress.check()
            mark(vault, decision.name, reason=", ".join(decision.reasons), now=now)
            outcome.expired.append(shown_name(decision.name))
            progress.add(entries=1)
        fresh = {decision.name for decision in going}
        _take(outcome, reap(vault, progress, held=job.held, fresh=fresh, now=now, lease_s=job.lease_s))
    if outcome.waiting or outcome.refused or outcome.damaged:
        outcome.state = "partial_complete"
    return outcome


class _Judge:
    """Decides for the points of one series. Memory: one line per point; roots are read one at a time."""

    def __init__(self, vault: Vault, job: ExpireJob, holds: Holds, now: dt.datetime) -> None:
        self._vault, self._job, self._holds, self._now = vault, job, holds, now
        self._decisions: dict[str, Decision] = {}
        self._versions: list[Version] = []

    def look(self, name: PointName, *, asked: bool) -> None:
        """Read a point's root. What a person asked for is decided at once, and counts for no rule."""
        decision = Decision(series=name.series, point=name.point, keep=True, reasons=[], asked=asked)
        try:
            body = self._vault.root(name).body
        except PointMissing:
            return  # expired since the LIST
        except (IntegrityError, FormatError) as error:
            decision.state = "damaged"
            decision.reasons = [f"it can't be judged: {error}"]
        else:
            self._fill(decision, body)
        self._decisions[name.point] = decision
        if asked:
            _ask(decision, self._job.reason, is_held=name in self._holds)

    def decide(self, rules: Rules | None) -> list[Decision]:
        """Return the decisions on all points that were looked at, oldest first."""
        if rules is not None:
            for verdict in judge(self._versions, rules, self._now):
                decision = self._decisions[verdict.point]
                decision.keep, decision.reasons = verdict.keep, verdict.reasons
                decision.expires_at = verdict.expires_at
        return sorted(
            self._decisions.values(), key=lambda decision: (decision.completed_at or self._now, decision.point)
        )

    def _fill(self, decision: Decision, body: Body) -> None:
        decision.completed_at = body.ended_at
        decision.state = "complete" if body.complete else "partial_complete"
        if body.locked_until is not None and body.locked_until > self._now:
            decision.locked_until = body.locked_until
        if not decision.asked:
            self._versions.append(
                Version(
                    point=decision.point, completed_at=body.ended_at, retention_days=body.retention_days,
                    complete=body.complete, held=decision.name in self._holds, locked_until=body.locked_until,
                    rule=body.rule, manual=body.manual,
                )
            )  # fmt: skip


def _ask(decision: Decision, reason: str, *, is_held: bool) -> None:
    """Decide on a point that a person named: no rule counts, holds and locks do."""
    decision.keep = True
    if is_held:
        decision.reasons = ["held: release it first"]
    elif decision.locked_until is not None:
        decision.reasons = [_locked(decision.locked_until)]
    else:
        decision.keep, decision.reasons = False, [reason or "a person asked for it"]


def _settle(vault: Vault, job: ExpireJob, outcome: Outcome, now: dt.datetime) -> list[Decision]:
    """Look at points, holds and the store's locks as they are now; return what is to go, and tell what is refused."""
    visible = set(vault.points())
    outcome.visible = len(visible)
    holds = Holds(vault.storage, job.held)
    # A rule kept others because these would stay: without them its series has to be judged anew, by the next run.
    shaken = {d.series for d in outcome.decisions if d.keep and not d.asked and d.name not in visible}
    going: list[Decision] = []
    for decision in outcome.decisions:
        if decision.keep:
            continue
        if decision.name not in visible and not (decision.asked and _is_wreck(vault, decision.name)):
            outcome.missing.append(shown_name(decision.name))
        elif decision.name in holds:
            _keep(decision, "held: release it first" if decision.asked else "held")
        elif decision.series in shaken and not decision.asked:
            _keep(decision, "other points of its series went meanwhile: the next run looks again")
        else:
            going.append(decision)
    ends = in_threads(_lock_end(vault), [point_key(*decision.name, "root") for decision in going])
    for decision, end in zip(going, ends, strict=True):
        if end is not None and end > now:
            _keep(decision, _locked(end))
            decision.locked_until = end
    for decision in outcome.decisions:
        if decision.asked and decision.keep:
            outcome.refused.append(Refused(shown_name(decision.name), decision.reasons[0], decision.locked_until))
        elif decision.state == "damaged" and decision.keep:
            outcome.damaged.append(shown_name(decision.name))
    return [decision for decision in going if not decision.keep]


def _keep(decision: Decision, reason: str) -> None:
    decision.keep, decision.reasons, decision.expires_at = True, [reason], None


def _is_wreck(vault: Vault, name: PointName) -> bool:
    """Say whether a point that is not visible has a damaged root, which would stop every prune for ever."""
    key = point_key(*name, "root")
    try:
        decode_root(vault.keys, key, vault.storage.get(key))
    except NotFound:
        return False
    except IntegrityError:
        return not vault.is_expired(name)
    return False


def _lock_end(vault: Vault) -> Callable[[str], dt.datetime | None]:
    def look(key: str) -> dt.datetime | None:
        try:
            return vault.storage.locked_until(key)
        except NotFound:
            return None  # deleted meanwhile: marking it does no harm

    return look


def _too_many(going: int, visible: int) -> str:
    if going <= max(1, visible // SHARE):
        return ""
    return f"{going:,} of {visible:,} recovery points would go, more than a fifth"


def _take(outcome: Outcome, reaped: Reaped) -> None:
    outcome.deleted, outcome.shown, outcome.fenced = reaped.deleted, reaped.shown, reaped.fenced
    outcome.waiting = reaped.waiting
    outcome.refused += reaped.refused
    shown = set(reaped.shown)
    outcome.expired = [point for point in outcome.expired if point not in shown]


def _by_series(vault: Vault) -> dict[str, list[PointName]]:
    series: dict[str, list[PointName]] = {}
    for name in vault.points():
        series.setdefault(name.series, []).append(name)
    return series


def _parsed(text: str) -> PointName:
    series, _, point = text.partition("/")
    if not valid_series(series) or not valid_series(point):
        raise ValueError(f"{text!r} names no recovery point: give <series>/<point>")
    return PointName(series, point)


def _locked(end: dt.datetime) -> str:
    return f"locked until {end.astimezone(dt.UTC):%Y-%m-%d %H:%M UTC}"
