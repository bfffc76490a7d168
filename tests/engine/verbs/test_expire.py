"""Expiry: what goes and what stays, told in words; the guards; holds, locks, and points that can't be read."""

import datetime as dt

import msgspec
import pytest

from engine.errors import ExpiryRefused, FormatError
from engine.ids import new_ulid
from engine.point import Expired, point_key
from engine.progress import Silent
from engine.retention import Rules
from engine.storage import Memory
from engine.vault import PointName
from engine.verbs import expire
from engine.verbs.hold import hold, release
from engine.verbs.timeguard import Ran
from tests.support.expiry import (
    expire_job,
    expired,
    made_point,
    mark_of,
    parts,
    run_expire,
    sign,
    text,
    visible,
)
from tests.support.vaults import START, Bench, Clock, flip, replace

DAY = dt.timedelta(days=1)
NIGHT = START.replace(hour=2, minute=0, second=0)


@pytest.fixture
def locking() -> Bench:
    """A vault in a store that locks objects by the bench's own clock."""
    clock = Clock()
    bench = Bench(Memory(clock=lambda: clock.time))
    bench.clock = clock
    return bench


def nights(bench: Bench, count: int, *, series: str = "home", **fields) -> list[PointName]:
    """Make a point a night, the last one a night before START; return them, oldest first."""
    return [
        made_point(bench, series=series, ended_at=NIGHT - DAY * age, **fields) for age in range(count, 0, -1)
    ]  # fmt: skip


def test_what_no_rule_keeps_goes_and_the_rest_stays(bench: Bench):
    points = nights(bench, 8)
    outcome = expired(bench, default=Rules(days=0, last=7))
    assert (outcome.state, outcome.visible) == ("complete", 8)
    assert outcome.expired == outcome.deleted == [text(points[0])]
    assert visible(bench) == {text(name) for name in points[1:]}
    assert parts(bench, points[0]) == {"expired"}


def test_each_point_has_a_decision_and_its_reason_stands_in_the_mark(bench: Bench):
    points = nights(bench, 8, retention_days=8)
    outcome = expired(bench, default=Rules())
    assert [decision.name for decision in outcome.decisions] == points
    assert outcome.decisions[0].text == "goes: 8 days since completion were over on 2031-05-06 02:00 UTC"
    assert outcome.decisions[1].text == "kept: 8 days since completion are over on 2031-05-07 02:00 UTC"
    assert mark_of(bench, points[0]).reason == "8 days since completion were over on 2031-05-06 02:00 UTC"


def test_a_dry_run_tells_the_same_and_changes_nothing(bench: Bench):
    nights(bench, 8, retention_days=8)
    before = bench.objects()
    outcome = expired(bench, default=Rules(), dry_run=True)
    assert [decision.keep for decision in outcome.decisions] == [False] + [True] * 7
    assert (outcome.dry_run, outcome.expired, outcome.deleted) == (True, [], [])
    assert bench.objects() == before


def test_a_series_without_rules_is_left_alone(bench: Bench):
    for series in ("home", "other"):
        nights(bench, 8, series=series)
    outcome = expired(bench, rules={"home": Rules(days=0, last=7)})
    assert len(outcome.decisions) == 8
    assert len(visible(bench, "other")) == 8
    assert len(visible(bench, "home")) == 7


def test_a_series_has_its_own_rules_before_the_default(bench: Bench):
    for series in ("home", "other"):
        nights(bench, 8, series=series)
    expired(bench, rules={"other": Rules(days=0, last=8)}, default=Rules(days=0, last=6))
    assert (len(visible(bench, "home")), len(visible(bench, "other"))) == (6, 8)


@pytest.mark.rule("C9")
@pytest.mark.rule("C16")
def test_the_last_point_and_the_last_complete_one_are_never_expired_by_keep_at_least_one(bench: Bench):
    old = nights(bench, 1, retention_days=1)
    newer = made_point(bench, ended_at=START - DAY * 0.5, retention_days=1, complete=False)
    outcome = expired(bench, default=Rules(at_least_one=True), now=START + 400 * DAY, confirmed=True)
    assert outcome.expired == []
    assert visible(bench) == {text(old[0]), text(newer)}


@pytest.mark.rule("C35")
@pytest.mark.rule("C36")
def test_without_it_the_last_expired_point_goes_at_the_next_run(bench: Bench):
    nights(bench, 1, retention_days=1)
    assert expired(bench, default=Rules(at_least_one=True)).expired == []
    assert len(expired(bench, default=Rules()).expired) == 1
    assert visible(bench) == set()


def test_wrong_rules_and_wrong_names_are_refused(bench: Bench):
    with pytest.raises(ValueError, match="keep nothing"):
        expired(bench, default=Rules(days=0))
    for name in ("home", "home/", "/x", "home/a/b", "Home/x"):
        with pytest.raises(ValueError, match="give <series>/<point>"):
            expired(bench, points=(name,))


def test_a_vault_that_a_newer_program_must_prune_is_left_alone(bench: Bench):
    [name] = nights(bench, 1)
    vault = bench.open()
    vault.info.features["prune"].append("lunar")
    job = expire_job(bench, points=(text(name),))
    with pytest.raises(FormatError, match="to prune this vault a program must know lunar"):
        list(expire.plan(vault, job, Silent(), now=bench.clock()))


@pytest.mark.invariant(28)
def test_a_run_that_would_expire_more_than_a_fifth_is_refused_and_marks_nothing(bench: Bench):
    nights(bench, 10)
    before = bench.objects()
    with pytest.raises(ExpiryRefused, match=r"3 of 10 recovery points would go, more than a fifth.*confirm"):
        expired(bench, default=Rules(days=0, last=7))
    assert bench.objects() == before
    assert len(expired(bench, default=Rules(days=0, last=8)).expired) == 2
    assert expired(bench, default=Rules(days=0, last=1), confirmed=True).objections == [
        "7 of 8 recovery points would go, more than a fifth"
    ]
    assert len(visible(bench)) == 1


@pytest.mark.invariant(28)
def test_one_point_may_go_from_the_smallest_vault(bench: Bench):
    nights(bench, 2)
    assert len(expired(bench, default=Rules(days=0, last=1)).expired) == 1


@pytest.mark.invariant(28)
def test_points_that_a_person_names_count_too(bench: Bench):
    points = nights(bench, 4)
    with pytest.raises(ExpiryRefused, match="2 of 4"):
        expired(bench, points=(text(points[0]), text(points[1])))
    assert len(visible(bench)) == 4


@pytest.mark.invariant(28)
@pytest.mark.parametrize("years", [-10, -1, 1, 10, 100])
def test_a_clock_that_jumped_expires_nothing_without_being_confirmed(bench: Bench, years: int):
    nights(bench, 30, retention_days=31)
    expired(bench, default=Rules(), now=START)
    before = bench.objects()
    with pytest.raises(ExpiryRefused, match=r"the clock says .*, the last expiry was at 2031-05-06 07:08 UTC"):
        expired(bench, default=Rules(), now=START + years * 365 * DAY)
    assert bench.objects() == before
    dry = expired(bench, default=Rules(), now=START + years * 365 * DAY, dry_run=True)
    assert dry.objections[0].startswith("the clock says")


@pytest.mark.invariant(28)
@pytest.mark.parametrize(
    ("ahead", "refused"),
    [
        (dt.timedelta(hours=24, minutes=10), False),  # a run once a day comes a little late
        (dt.timedelta(hours=26), True),
        (dt.timedelta(minutes=-59), False),
        (dt.timedelta(minutes=-61), True),
    ],
)
def test_a_clock_may_be_a_day_ahead_of_the_last_run_and_an_hour_behind(
    bench: Bench, ahead: dt.timedelta, refused: bool
):
    expired(bench, now=START)
    if refused:
        with pytest.raises(ExpiryRefused):
            expired(bench, now=START + ahead)
    assert expired(bench, now=START + ahead, confirmed=refused).state == "complete"
    # A confirmed time is the new measure, backwards too.
    assert expired(bench, now=START + ahead + DAY).objections == []


@pytest.mark.invariant(28)
def test_the_stores_own_clock_vouches_for_a_long_break_and_against_a_first_run(locking: Bench):
    now = locking.clock.time
    expired(locking, now=now)
    locking.clock.time = now + 30 * DAY
    assert expired(locking, now=now + 30 * DAY).objections == []
    with pytest.raises(ExpiryRefused, match="the store's clock says 2031-06-05"):
        expired(locking, now=now + 90 * DAY)
    fresh = Bench(Memory(clock=lambda: START))
    with pytest.raises(ExpiryRefused, match="the store's clock says 2031-05-06"):
        expired(fresh, now=START + 90 * DAY)


@pytest.mark.invariant(28)
def test_a_clock_that_jumps_between_preview_and_end_is_noticed(bench: Bench):
    job = expire_job(bench)

    def jump() -> None:
        bench.clock.time += 400 * DAY

    with pytest.raises(ExpiryRefused, match=r"this run began at 2031-05-06 .* would end at 2032-06"):
        run_expire(bench, job, between=jump)


def test_each_run_leaves_one_note_and_drops_the_ones_before(bench: Bench):
    for hours in range(3):
        expired(bench, now=START + dt.timedelta(hours=hours))
    [key] = [stored.key for stored in bench.storage.scan("expiry/")]
    assert b"2031-05-06T09:08:09" in bench.storage.get(key)


@pytest.mark.invariant(9)
def test_a_forged_note_of_time_says_nothing(bench: Bench):
    expired(bench, now=START)
    real = next(iter(bench.storage.scan("expiry/"))).key
    keys = [f"expiry/{new_ulid(START + 300 * DAY)}" for _ in range(2)]
    bench.storage.put(keys[0], bench.storage.get(real))  # authentic bytes under another key
    foreign = msgspec.json.encode(Ran("x", START + 300 * DAY))
    bench.storage.put(keys[1], Bench().open().keys.sign(keys[1], foreign))
    with pytest.raises(ExpiryRefused):
        expired(bench, now=START + 300 * DAY)
    assert expired(bench, now=START).objections == []
    assert len(list(bench.storage.scan("expiry/"))) == 1


def test_a_named_point_goes_whatever_the_rules_say(bench: Bench):
    points = nights(bench, 5)
    outcome = expired(bench, points=(text(points[-1]),), reason="the customer asked")
    assert outcome.deleted == [text(points[-1])]
    assert mark_of(bench, points[-1]).reason == "the customer asked"
    assert len(outcome.decisions) == 1
    assert outcome.decisions[0].asked


def test_a_named_point_counts_for_no_rule(bench: Bench):
    points = nights(bench, 6)
    outcome = expired(bench, points=(text(points[-1]),), rules={"home": Rules(days=0, last=5)})
    assert outcome.expired == [text(points[-1])]
    assert visible(bench) == {text(name) for name in points[:5]}


def test_a_named_point_that_is_not_there_is_told(bench: Bench):
    [name] = nights(bench, 1)
    expired(bench, points=(text(name),))
    again = expired(bench, points=(text(name), "home/01jt0000000000000000000000"))
    assert (again.state, again.missing) == ("complete", [text(name), "home/01jt0000000000000000000000"][::-1])


def test_a_point_that_went_after_the_preview_is_not_expired_again(bench: Bench):
    points = nights(bench, 8)
    job = expire_job(bench, default=Rules(days=0, last=7))
    outcome = run_expire(bench, job, between=lambda: expired(bench, points=(text(points[0]),)))
    assert (outcome.expired, outcome.missing) == ([], [text(points[0])])


def test_when_a_kept_point_went_after_the_preview_its_series_is_judged_anew(bench: Bench):
    points = nights(bench, 8)
    job = expire_job(bench, default=Rules(days=0, last=7))
    outcome = run_expire(bench, job, between=lambda: expired(bench, points=(text(points[-1]),)))
    assert outcome.expired == []
    assert visible(bench) == {text(name) for name in points[:-1]}
    assert "looks again" in outcome.decisions[0].text


def test_a_finish_that_runs_twice_does_it_once(bench: Bench):
    points = nights(bench, 8)
    job = expire_job(bench, default=Rules(days=0, last=7))
    units = list(expire.plan(bench.open(), job, Silent(), now=bench.clock()))
    results = [expire.work(bench.open(), job, unit, Silent()) for unit in units]
    first = expire.finish(bench.open(), job, results, Silent(), clock=bench.clock)
    second = expire.finish(bench.open(), job, results, Silent(), clock=bench.clock)
    assert first.expired == first.deleted == second.missing == [text(points[0])]
    assert (second.expired, second.deleted, second.state) == ([], [], "complete")


def test_a_held_point_stays_until_it_is_released(bench: Bench):
    points = nights(bench, 2)
    hold(bench.open(), points[0], reason="lawsuit", now=bench.clock())
    outcome = expired(bench, default=Rules(days=0, last=1))
    assert (outcome.state, outcome.expired) == ("complete", [])
    assert outcome.decisions[0].reasons == ["held"]
    refused = expired(bench, points=(text(points[0]),))
    assert refused.state == "partial_complete"
    assert (refused.refused[0].point, refused.refused[0].reason) == (text(points[0]), "held: release it first")
    assert release(bench.open(), points[0]) == 1
    assert expired(bench, default=Rules(days=0, last=1)).expired == [text(points[0])]


def test_points_that_somebody_else_holds_stay(bench: Bench):
    points = nights(bench, 3)
    held = (points[0].point, text(points[1]))
    assert expired(bench, default=Rules(days=0, last=1), held=held).expired == []
    assert expired(bench, points=(text(points[0]),), held=held).refused[0].reason == "held: release it first"


def test_a_hold_that_comes_after_the_preview_counts(bench: Bench):
    points = nights(bench, 2)
    job = expire_job(bench, default=Rules(days=0, last=1))
    outcome = run_expire(bench, job, between=lambda: hold(bench.open(), points[0], reason="", now=bench.clock()))
    assert (outcome.expired, outcome.decisions[0].reasons) == ([], ["held"])
    assert len(visible(bench)) == 2


def test_a_point_with_a_lock_stays_and_its_deletion_is_refused_with_the_date(bench: Bench):
    """Where the store can't lock, the root tells the lock's end."""
    until = START + 9 * DAY
    points = nights(bench, 2, locked_until=until)
    outcome = expired(bench, default=Rules(days=0, last=1))
    assert (outcome.expired, outcome.state) == ([], "complete")
    refused = expired(bench, points=(text(points[0]),))
    assert refused.state == "partial_complete"
    assert refused.refused[0].reason == "locked until 2031-05-15 07:08 UTC"
    assert refused.refused[0].until == until
    bench.clock.time = until + DAY
    assert expired(bench, points=(text(points[0]),), confirmed=True).deleted == [text(points[0])]


@pytest.mark.rule("B6")
def test_a_lock_of_the_store_is_asked_before_the_mark(locking: Bench):
    points = nights(locking, 2)
    until = locking.clock.time + 9 * DAY
    locking.storage.extend_lock(point_key(*points[0], "root"), until=until)
    for fields in ({"default": Rules(days=0, last=1)}, {"points": (text(points[0]),)}):
        outcome = expired(locking, **fields)
        assert outcome.expired == []
        assert outcome.decisions[0].reasons == ["locked until 2031-05-15 07:08 UTC"]
        assert "expired" not in parts(locking, points[0])
    locking.clock.time = until
    assert expired(locking, default=Rules(days=0, last=1)).deleted == [text(points[0])]


@pytest.mark.rule("B6")
def test_what_the_store_refuses_to_delete_is_visible_again_and_told_with_the_date(locking: Bench):
    """A clock ahead of the store's, confirmed by a person, does not get past the store."""
    points = nights(locking, 2)
    until = locking.clock.time + 9 * DAY
    for part in ("root", "commit"):
        locking.storage.extend_lock(point_key(*points[0], part), until=until)
    outcome = expired(locking, points=(text(points[0]),), now=until + DAY, confirmed=True)
    assert outcome.state == "partial_complete"
    assert (outcome.refused[0].point, outcome.refused[0].until) == (text(points[0]), until)
    assert "the store keeps its commit: locked until" in outcome.refused[0].reason
    assert (outcome.shown, outcome.expired, outcome.deleted) == ([text(points[0])], [], [])
    assert parts(locking, points[0]) == {"root", "commit"}
    assert len(visible(locking)) == 2


@pytest.mark.rule("B6")
def test_a_mark_from_the_future_is_taken_back_while_the_lock_lasts(locking: Bench):
    points = nights(locking, 2)
    until = locking.clock.time + 9 * DAY
    locking.storage.extend_lock(point_key(*points[0], "root"), until=until)
    sign(
        locking,
        point_key(*points[0], "expired"),
        Expired(points[0].point, "home", "by a clock that was wrong", until + DAY),
    )
    assert len(visible(locking)) == 1
    assert expired(locking).shown == [text(points[0])]
    assert len(visible(locking)) == 2


@pytest.mark.invariant(9)
@pytest.mark.parametrize("damage", ["flipped", "forged", "another's"])
def test_a_mark_that_is_not_ours_says_nothing_and_hinders_nothing(bench: Bench, damage: str):
    points = nights(bench, 8)
    key = point_key(*points[0], "expired")
    note = Expired(points[0].point, "home", "", START)
    if damage == "flipped":
        sign(bench, key, note)
        flip(bench, key, 3)
    elif damage == "forged":
        bench.storage.put(key, Bench().open().keys.sign(key, b"{}"))
    else:
        other = point_key(*points[1], "expired")
        bench.storage.put(key, bench.open().keys.sign(other, b"{}"))
    assert len(visible(bench)) == 8
    untouched = expired(bench)
    assert (untouched.deleted, untouched.shown) == ([], [])
    assert parts(bench, points[0]) == {"root", "commit", "expired"}
    assert expired(bench, default=Rules(days=0, last=7)).deleted == [text(points[0])]


@pytest.mark.parametrize("part", ["root", "commit"])
def test_a_point_that_cannot_be_read_is_never_judged_and_can_be_named(bench: Bench, part: str):
    points = nights(bench, 8, retention_days=1)
    flip(bench, point_key(*points[0], part), 30)
    outcome = expired(bench, default=Rules(days=0, last=7))
    assert (outcome.state, outcome.damaged, outcome.expired) == ("partial_complete", [text(points[0])], [])
    assert outcome.decisions[-1].state == "damaged"
    assert outcome.decisions[-1].reasons[0].startswith("it can't be judged: ")
    named = expired(bench, points=(text(points[0]),))
    assert (named.state, named.deleted) == ("complete", [text(points[0])])


def test_a_damaged_root_without_a_commit_can_be_named(bench: Bench):
    """It would stop every prune for ever."""
    [name] = nights(bench, 1)
    bench.storage.delete([point_key(*name, "commit")])
    assert expired(bench, points=(text(name),)).missing == [text(name)]  # a writer may still commit it
    replace(bench, point_key(*name, "root"), b"rot")
    assert expired(bench, points=(text(name),)).deleted == [text(name)]
    assert parts(bench, name) == {"expired"}


def test_everything_comes_from_the_bucket(bench: Bench):
    """Another host, without a cache and with the recovery key alone, does the same."""
    points = nights(bench, 8, retention_days=8)
    hold(bench.open(), points[1], reason="", now=bench.clock())
    assert len(expired(bench, default=Rules(days=0, last=6)).expired) == 1
    twin = Bench()
    twin.storage, twin.ring = bench.storage, bench.ring
    assert [d.keep for d in expired(twin, default=Rules(days=0, last=6), dry_run=True).decisions] == [True] * 7
