"""The order of calls that expiry rests on (vault-format, section 6), and what happens at every moment in between."""

import concurrent.futures
import datetime as dt
import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest

from engine.errors import PointMissing, Unavailable
from engine.ids import new_ulid, pack_key
from engine.point import Expired, point_key
from engine.progress import Silent
from engine.retention import Rules
from engine.session import LEASE_S, Beat, Opened, Session, session_states
from engine.sources.files import files_source
from engine.storage import Memory, Storage
from engine.storage.faulty import Fault, Faulty, Mode
from engine.storage.port import Refusal
from engine.targets.files import files_target
from engine.vault import PointName
from engine.verbs import backup, restore
from engine.verbs.hold import Holds, hold
from engine.verbs.reap import mark
from tests.support.expiry import expire_job, expired, made_point, parts, run_expire, sign, text, visible
from tests.support.runs import backed_up, backup_job, landed
from tests.support.vaults import Bench, contents, flip, on_disk, write_files

KEEP_ONE = Rules(days=0, last=1)
HOUR = dt.timedelta(hours=1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_files(tmp_path / "home", {"a/one": b"1" * 1000, "a/two": b"2" * 2000})


@pytest.fixture
def store(bench: Bench) -> Memory:
    assert isinstance(bench.storage, Memory)
    return bench.storage


class Interrupted(Faulty):
    """A store at whose `moment`-th call something else happens first."""

    def __init__(self, inner: Storage, moment: int = 0) -> None:
        super().__init__(inner)
        self._moment = moment
        self._act: Callable[[], object] = lambda: None

    def at_the_moment(self, act: Callable[[], object]) -> None:
        """Say what happens."""
        self._act = act

    def _enter(self, verb: str, keys: Any) -> Fault | None:
        if len(self.calls) + 1 == self._moment:
            self._act()
        return super()._enter(verb, keys)


def changes(store: Memory, name: PointName) -> list[tuple[str, str]]:
    """Return what was written and deleted of one point, in order."""
    prefix = point_key(*name, "")
    return [
        (c.verb, c.key.removeprefix(prefix))
        for c in store.log
        if c.key.startswith(prefix) and c.verb in ("put", "delete")
    ]


def opened(bench: Bench, *names: PointName, verb: str = "restore") -> str:
    """Open a session that names points; return its name."""
    name = new_ulid(bench.clock())
    bench.open().open_session(name, verb=verb, now=bench.clock(), points=names)
    return name


class Restoring:
    """A restore that was planned and waits to go on."""

    def __init__(self, bench: Bench, name: PointName, target: Path) -> None:
        target.mkdir()
        self._bench, self.target = bench, target
        self._job = restore.RestoreJob(
            session=new_ulid(bench.clock()), series=name.series, point=name.point, target=files_target(target),
            started_at=bench.clock(),
        )  # fmt: skip
        self.session = self._job.session
        try:
            self._units = list(restore.plan(bench.open(), self._job, Silent(), now=bench.clock()))
        except PointMissing:
            Session(bench.storage, bench.open().keys, self.session).close("aborted", bench.clock())
            raise

    def end(self) -> restore.Outcome:
        results = [restore.work(self._bench.open(), self._job, unit, Silent()) for unit in self._units]
        return restore.finish(self._bench.open(), self._job, results, Silent(), clock=self._bench.clock)


class BackingUp:
    """A backup that was planned and waits to go on."""

    def __init__(self, bench: Bench, folder: Path) -> None:
        self._bench, self._job = bench, backup_job(bench, files_source([str(folder)], host="host"))
        self.session = self._job.session
        self._units = list(backup.plan(bench.open(), self._job, Silent(), now=bench.clock()))
        self.parent = self._units[0].parent

    def end(self) -> backup.Outcome:
        results = [backup.work(self._bench.open(), self._job, unit, Silent()) for unit in self._units]
        return backup.finish(self._bench.open(), self._job, results, Silent(), clock=self._bench.clock)


@pytest.mark.invariant(13)
def test_the_order_is_mark_then_commit_then_root_each_after_the_answer(bench: Bench, store: Memory, folder: Path):
    point = backed_up(bench, folder).point
    name = PointName("home", point)
    store.log.clear()
    expired(bench, points=(text(name),))
    assert changes(store, name) == [("put", "expired"), ("delete", "commit"), ("delete", "root")]
    assert {call.key.split("/")[0] for call in store.log if call.verb == "delete"} == {"points"}


@pytest.mark.invariant(13)
@pytest.mark.parametrize(
    ("verb", "part", "left"),
    [
        ("put", "expired", {"root", "commit"}),
        ("delete", "commit", {"root", "commit", "expired"}),
        ("delete", "root", {"root", "expired"}),
    ],
)
def test_a_step_without_an_answer_is_followed_by_none_and_the_next_run_goes_on(
    bench: Bench, store: Memory, verb: str, part: str, left: set[str]
):
    name = made_point(bench)
    bench.storage = Faulty(store, [Fault(1, Mode.BEFORE, verb, point_key(*name, part))])
    with pytest.raises(Unavailable):
        expired(bench, points=(text(name),))
    bench.storage = store
    assert parts(bench, name) == left
    outcome = expired(bench, points=(text(name),))
    assert outcome.deleted == [text(name)]
    assert parts(bench, name) == {"expired"}


def test_the_sessions_and_holds_are_listed_after_the_last_mark(bench: Bench, store: Memory):
    names = [made_point(bench) for _ in range(12)]
    store.log.clear()
    expired(bench, default=Rules(days=0, last=10))
    calls = [(call.verb, call.key) for call in store.log]
    marked = max(calls.index(("put", point_key(*name, "expired"))) for name in names[:2])
    deleted = min(calls.index(("delete", point_key(*name, "commit"))) for name in names[:2])
    for prefix in ("sessions/", "holds/", "points/"):
        assert any(call == ("scan", prefix) for call in calls[marked:deleted])


def test_all_commits_of_a_batch_go_before_the_roots(bench: Bench, store: Memory):
    names = [made_point(bench) for _ in range(10)]
    store.log.clear()
    expired(bench, default=Rules(days=0, last=8))
    for name in names[:2]:
        assert changes(store, name) == [("put", "expired"), ("delete", "commit"), ("delete", "root")]


def test_a_running_restore_is_never_undercut(bench: Bench, folder: Path, tmp_path: Path):
    point = PointName("home", backed_up(bench, folder).point)
    running = Restoring(bench, point, tmp_path / "target")
    outcome = expired(bench, points=(text(point),))
    assert (outcome.state, outcome.expired, outcome.deleted) == ("partial_complete", [text(point)], [])
    assert [(one.point, one.sessions) for one in outcome.waiting] == [(text(point), [running.session])]
    assert visible(bench) == set()
    with pytest.raises(PointMissing, match="expired a moment ago"):
        Restoring(bench, point, tmp_path / "late")
    assert running.end().state == "complete"
    assert on_disk(landed(running.target, folder)) == on_disk(folder)
    later = expired(bench)
    assert (later.state, later.deleted, later.waiting) == ("complete", [text(point)], [])


def test_a_running_backup_finishes_although_its_parent_expires(bench: Bench, folder: Path):
    parent = PointName("home", backed_up(bench, folder).point)
    write_files(folder, {"a/two": b"changed", "new": b"new"})
    running = BackingUp(bench, folder)
    assert running.parent == parent.point
    assert expired(bench, points=(text(parent),)).waiting[0].sessions == [running.session]
    outcome = running.end()
    assert outcome.state == "complete"
    vault = bench.open()
    assert contents(vault, vault.find(outcome.point), below=folder) == on_disk(folder)
    assert expired(bench).deleted == [text(parent)]


def moments(
    start: Bench, act: Callable[[Bench], object]
) -> Iterator[tuple[Bench, Bench, Callable[[Callable[[], object]], None]]]:
    """Yield, for each storage call that `act` makes, a copy of the start: as it is, and with something happening there.

    The third tells what is to happen.
    """
    counting = Interrupted(start.twin().storage)
    act(start.over(counting))
    for moment in range(1, len(counting.calls) + 1):
        bare = start.twin()
        interrupted = Interrupted(bare.storage, moment)
        yield bare, bare.over(interrupted), interrupted.at_the_moment


@pytest.mark.parametrize("kind", ["restore", "backup"])
def test_whatever_moment_a_session_begins_at_it_ends_well_or_does_not_begin(
    bench: Bench, folder: Path, tmp_path: Path, kind: str
):
    """A second process begins just before each storage call of an expiry, and goes on when the expiry has ended."""
    point = PointName("home", backed_up(bench, folder).point)
    began = refused = waited = 0
    for number, (bare, above, at_the_moment) in enumerate(
        moments(bench, lambda one: expired(one, points=(text(point),)))
    ):
        running: Restoring | BackingUp | None = None
        target = tmp_path / f"target{number}"

        def begin(bare: Bench = bare, target: Path = target) -> None:
            nonlocal running, refused
            try:
                running = BackingUp(bare, folder) if kind == "backup" else Restoring(bare, point, target)
            except PointMissing:
                refused += 1

        at_the_moment(begin)
        expired(above, points=(text(point),))
        if running is not None:
            began += 1
            waited += "root" in parts(bare, point)
            assert running.end().state == "complete"
            if kind == "restore":
                assert on_disk(landed(target, folder)) == on_disk(folder)
        expired(bare)
        assert parts(bare, point) == {"expired"}
    assert 0 < waited <= began
    assert bool(refused) == (kind == "restore")


@pytest.mark.parametrize("kind", ["restore", "backup"])
def test_whatever_moment_the_point_expires_at_a_session_ends_well_or_does_nothing(
    bench: Bench, folder: Path, tmp_path: Path, kind: str
):
    """A whole expiry runs just before each storage call of a restore, or of a backup that builds on the point."""
    point = PointName("home", backed_up(bench, folder).point)
    numbers = itertools.count()

    def act(one: Bench) -> None:
        target = tmp_path / f"target{next(numbers)}"
        if kind == "backup":
            outcome = BackingUp(one, folder).end()
            vault = one.open()
            assert contents(vault, vault.find(outcome.point), below=folder) == on_disk(folder)
            return
        try:
            assert Restoring(one, point, target).end().state == "complete"
            assert on_disk(landed(target, folder)) == on_disk(folder)
        except PointMissing:
            assert list(target.iterdir()) == []
            raise

    ended = refused = 0
    for bare, above, at_the_moment in moments(bench, act):
        at_the_moment(partial(expired, bare, points=(text(point),)))
        try:
            act(above)
            ended += 1
        except PointMissing:
            refused += 1
        expired(bare)
        assert parts(bare, point) == {"expired"}
    assert ended > 5
    assert bool(refused) == (kind == "restore")


def test_whatever_moment_a_hold_comes_at_it_holds_or_is_refused(bench: Bench):
    point = made_point(bench)
    held: list[bool] = []
    for bare, above, at_the_moment in moments(bench, lambda one: expired(one, points=(text(point),))):

        def put_hold(bare: Bench = bare) -> None:
            try:
                hold(bare.open(), point, reason="wait", now=bare.clock())
                held.append(True)
            except PointMissing:
                held.append(False)

        at_the_moment(put_hold)
        for _ in range(2):
            expired(above, points=(text(point),))
            assert (text(point) in visible(bare)) == held[-1]
            assert (point in Holds(bare.storage)) == held[-1]
    assert min(held.count(True), held.count(False)) > 5


def test_whatever_moment_of_a_hold_the_point_expires_at_it_holds_or_is_refused(bench: Bench):
    point = made_point(bench)
    held: list[bool] = []
    for bare, above, at_the_moment in moments(
        bench, lambda one: hold(one.open(), point, reason="wait", now=one.clock())
    ):
        at_the_moment(partial(expired, bare, points=(text(point),)))
        try:
            hold(above.open(), point, reason="wait", now=bare.clock())
            held.append(True)
        except PointMissing:
            held.append(False)
        expired(bare)
        assert (text(point) in visible(bare)) == (point in Holds(bare.storage)) == held[-1]
    assert True in held
    assert False in held


def test_a_mark_in_spite_of_a_hold_is_taken_back(bench: Bench):
    """As when the hold was stored between the last look of an expiry and its mark."""
    point = made_point(bench)
    hold(bench.open(), point, reason="wait", now=bench.clock())
    mark(bench.open(), point, reason="", now=bench.clock())
    assert visible(bench) == set()
    assert expired(bench).shown == [text(point)]
    assert visible(bench) == {text(point)}


@pytest.mark.parametrize("sign_of_life", ["open", "beat"])
def test_a_session_that_died_is_fenced_and_waited_for_no_more(bench: Bench, sign_of_life: str):
    point = made_point(bench)
    session = opened(bench, point)
    began = bench.clock.time
    if sign_of_life == "beat":
        bench.clock.time = began + HOUR
        sign(bench, f"sessions/{session}/beat", Beat(bench.clock.time))
    bench.clock.time += dt.timedelta(seconds=LEASE_S - 60)
    assert expired(bench, points=(text(point),)).waiting
    bench.clock.time += dt.timedelta(seconds=120)
    outcome = expired(bench)
    assert (outcome.fenced, outcome.deleted) == ([session], [text(point)])
    assert "fence" in session_states(bench.storage)[session]


def test_a_session_that_names_no_expired_point_is_left_alone_however_dead(bench: Bench):
    points = [made_point(bench), made_point(bench)]
    session = opened(bench, points[1])
    bench.clock.time += 5 * HOUR
    outcome = expired(bench, points=(text(points[0]),))
    assert (outcome.fenced, outcome.deleted) == ([], [text(points[0])])
    assert "fence" not in session_states(bench.storage)[session]


def test_a_session_whose_note_is_damaged_reads_everything_while_it_beats_and_is_fenced_when_not(bench: Bench):
    point = made_point(bench)
    session = opened(bench)
    flip(bench, f"sessions/{session}/open", 5)
    sign(bench, f"sessions/{session}/beat", Beat(bench.clock()))
    assert expired(bench, points=(text(point),)).waiting[0].sessions == [session]
    bench.clock.time += 3 * HOUR
    outcome = expired(bench)
    assert (outcome.fenced, outcome.deleted) == ([session], [text(point)])


def test_one_bad_read_makes_no_session_look_dead(bench: Bench, store: Memory, folder: Path, tmp_path: Path):
    point = PointName("home", backed_up(bench, folder).point)
    running = Restoring(bench, point, tmp_path / "target")
    bench.storage = Faulty(store, [Fault(1, Mode.WRONG, "get", f"sessions/{running.session}/open")])
    outcome = expired(bench, points=(text(point),))
    assert (outcome.fenced, len(outcome.waiting)) == ([], 1)
    bench.storage = store
    assert running.end().state == "complete"


def test_a_session_that_ended_and_was_forgotten_meanwhile_gets_no_fence(bench: Bench, store: Memory):
    point = made_point(bench)
    session = opened(bench, point)
    key = f"sessions/{session}/open"

    class Forgetting(Faulty):
        def get(self, name: str, *, offset: int = 0, length: int | None = None) -> bytes:
            if name == key:
                store.delete([key])
            return super().get(name, offset=offset, length=length)

    bench.storage = Forgetting(store)
    assert expired(bench, points=(text(point),)).fenced == []
    assert session not in session_states(store)


def test_what_a_killed_run_left_is_finished_by_the_next(bench: Bench):
    """Marked only; marked without its commit; and, left by a foreign hand, without its root."""
    names = [made_point(bench) for _ in range(4)]
    for name in names[:3]:
        mark(bench.open(), name, reason="", now=bench.clock())
    bench.storage.delete([point_key(*names[1], "commit"), point_key(*names[2], "root")])
    outcome = expired(bench)
    assert (outcome.expired, sorted(outcome.deleted)) == ([], sorted(text(name) for name in names[:3]))
    assert [parts(bench, name) for name in names] == [{"expired"}] * 3 + [{"root", "commit"}]


def test_a_prepared_point_is_left_to_its_writer(bench: Bench):
    """A root without commit is a backup that runs or died; neither rules nor leftovers concern it."""
    name = made_point(bench)
    bench.storage.delete([point_key(*name, "commit")])
    outcome = expired(bench, default=KEEP_ONE)
    assert (outcome.decisions, outcome.deleted) == ([], [])
    assert parts(bench, name) == {"root"}


def test_a_root_without_commit_under_a_foreign_mark_is_left_alone(bench: Bench):
    name = made_point(bench)
    key = point_key(*name, "expired")
    bench.storage.put(key, Bench().open().keys.sign(key, msgspec.json.encode(Expired(*name[::-1], "", bench.clock()))))
    bench.storage.delete([point_key(*name, "commit")])
    assert expired(bench).deleted == []
    bench.storage.delete([point_key(*name, "root")])
    assert expired(bench).deleted == []


def test_the_store_refuses_one_key_and_the_others_go(bench: Bench, store: Memory):
    """A key whose deletion is refused is told, and its root stays until its commit is gone."""
    names = [made_point(bench) for _ in range(10)]

    class Denying(Faulty):
        denied = point_key(*names[0], "commit")

        def delete(self, keys: Sequence[str]) -> list[Refusal]:
            allowed = [key for key in keys if key != self.denied]
            refused = [Refusal(key, "access denied", locked=False) for key in keys if key == self.denied]
            return refused + super().delete(allowed)

    bench.storage = Denying(store)
    outcome = expired(bench, default=Rules(days=0, last=8))
    assert outcome.state == "partial_complete"
    assert outcome.deleted == [text(names[1])]
    assert [(one.point, one.reason, one.until) for one in outcome.refused] == [
        (text(names[0]), "the store keeps its commit: access denied", None)
    ]
    assert parts(bench, names[0]) == {"root", "commit", "expired"}
    bench.storage = store
    assert expired(bench).deleted == [text(names[0])]


def test_two_expiries_at_once_do_the_same_twice(bench: Bench, store: Memory):
    names = [made_point(bench) for _ in range(20)]
    jobs = [expire_job(bench, default=Rules(days=0, last=16)) for _ in range(2)]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        for future in [pool.submit(run_expire, bench, job) for job in jobs]:
            future.result(timeout=60)
    assert visible(bench) == {text(name) for name in names[4:]}
    assert all(parts(bench, name) == {"expired"} for name in names[:4])


def test_an_expiry_at_every_moment_of_another_does_no_harm(bench: Bench):
    names = [made_point(bench) for _ in range(2)]
    for bare, above, at_the_moment in moments(bench, lambda one: expired(one, default=KEEP_ONE)):
        at_the_moment(partial(expired, bare, default=KEEP_ONE))
        expired(above, default=KEEP_ONE)
        assert parts(bare, names[0]) == {"expired"}
        assert parts(bare, names[1]) == {"root", "commit"}
        assert len(list(bare.storage.scan("expiry/"))) <= 2


@pytest.mark.invariant(1)
def test_the_packs_of_what_stays_are_untouched(bench: Bench, folder: Path):
    first = backed_up(bench, folder).point
    write_files(folder, {"a/two": b"changed"})
    backed_up(bench, folder)
    expired(bench, points=(f"home/{first}",))
    vault = bench.open()
    [name] = vault.points()
    present = {stored.key for stored in bench.storage.scan("")}
    assert {pack_key(pack.kind, pack.name) for pack in vault.root(name).needed} <= present
    assert contents(vault, name, below=folder) == on_disk(folder)


def test_an_open_note_that_is_named_by_nobody_costs_one_get_a_session(bench: Bench, store: Memory):
    """What a run costs does not grow with points times sessions."""
    names = [made_point(bench) for _ in range(10)]
    for _ in range(5):
        opened(bench, names[-1])
    store.log.clear()
    expired(bench, default=Rules(days=0, last=8))
    reads = [call for call in store.log if call.verb == "get" and call.key.endswith("/open")]
    assert len(reads) == 5
    assert msgspec.json.decode(store.get(reads[0].key).rpartition(b"\n")[0], type=Opened).points == [text(names[-1])]
