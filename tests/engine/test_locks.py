"""Locks of a vault: how long, of what, only ever longer; and no point without the locks that it needs."""

import datetime as dt
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.errors import Forbidden, LockCannotLoosen, LockFailed, LockUnsupported, StorageError
from engine.ids import new_ulid, pack_key
from engine.locks import (
    GENERATION_DAYS,
    LOCK_DAYS_MAX,
    POLICIES,
    PREFIX,
    Ledger,
    LockPolicy,
    enable,
    extend,
    generation_end,
    generation_of,
    lock_until,
    read_policy,
)
from engine.point import PackRef, point_key
from engine.sources.files import files_source
from engine.storage import APPLICATION_LEVEL, IMMUTABLE, Directory, Memory
from engine.storage.faulty import Fault, Faulty, Mode
from engine.storage.port import Broken, Claims
from engine.vault import PointName
from engine.verbs import backup
from tests.support.locking import LockingBench, audited, locked, through
from tests.support.runs import backup_job, run_backup
from tests.support.vaults import Bench, replace, write_files

DAY = dt.timedelta(days=1)
moments = st.integers(0, 4 * 10**9).map(lambda second: dt.datetime.fromtimestamp(second, dt.UTC))


@pytest.fixture
def vault() -> LockingBench:
    return LockingBench()


def backed_up(bench: Bench, folder: Path, *, days: int = 0, series: str = "home") -> backup.Outcome:
    job = backup_job(bench, files_source([str(folder)], host="host"), series=series)
    return run_backup(bench, msgspec.structs.replace(job, retention_days=days))


def ends(bench: Bench, name: PointName) -> dict[str, dt.datetime | None]:
    """Return the real lock of everything that a point needs."""
    root = bench.open().root(name)
    keys = [pack_key(pack.kind, pack.name) for pack in root.needed]
    keys += [point_key(*name, "root"), point_key(*name, "commit"), "vault.json"]
    keys += [stored.key for stored in bench.storage.scan("keys/")]
    return {key: bench.storage.locked_until(key) for key in keys}


def assert_locked(bench: Bench) -> None:
    """Engine invariant 19: nothing that a point needs is locked for less long than the point."""
    vault = bench.open()
    for name in vault.points():
        until = vault.root(name).body.locked_until
        if until is not None:
            assert [key for key, end in ends(bench, name).items() if end is None or end < until] == []


@given(moments, st.integers(1, 4000), st.integers(0, 4000))
def test_a_lock_ends_with_a_generation_at_most_ten_days_late(ended: dt.datetime, days: int, retention: int) -> None:
    end = lock_until(LockPolicy(days, ended), ended, retention)
    wanted = ended + max(days, retention) * DAY
    assert wanted < end <= wanted + GENERATION_DAYS * DAY
    assert end == generation_end(generation_of(wanted))
    assert generation_of(end) == generation_of(wanted) + 1


def test_a_lock_never_exceeds_a_hundred_years() -> None:
    now = dt.datetime(2030, 1, 1, tzinfo=dt.UTC)
    assert lock_until(LockPolicy(LOCK_DAYS_MAX, now), now, 10**9) <= now + 36_500 * DAY


@pytest.mark.parametrize("days", [0, -1, LOCK_DAYS_MAX + 1])
def test_a_senseless_number_of_days_is_refused(vault: LockingBench, days: int) -> None:
    with pytest.raises(ValueError, match="give 1 to"):
        enable(vault.open(), days=days, now=vault.clock())


@pytest.mark.rule("B6")
def test_a_vault_is_locked_tightened_and_never_loosened(vault: LockingBench) -> None:
    assert vault.open().lock_policy is None
    first = locked(vault, 30)
    assert (first.days, first.level) == (30, IMMUTABLE)
    assert vault.open().lock_policy == first
    assert locked(vault, 30) == first
    assert locked(vault, 60).days == 60
    for days in (59, 30, 1):
        with pytest.raises(LockCannotLoosen, match="locked for 60 days"):
            locked(vault, days)
    policy = vault.open().lock_policy
    assert policy is not None
    assert policy.days == 60
    assert len(list(vault.storage.scan(POLICIES))) == 2


def test_policy_keys_and_vault_json_are_locked_at_once(vault: LockingBench) -> None:
    now = vault.clock.time
    locked(vault, 30)
    for prefix in (POLICIES, "keys/", "vault.json"):
        for stored in vault.storage.scan(prefix):
            assert (vault.storage.locked_until(stored.key) or now) > now + 30 * DAY


def test_a_policy_is_read_once_for_each_session(vault: LockingBench) -> None:
    opened = vault.open()
    opened.open_session(new_ulid(vault.clock()), verb="restore", now=vault.clock())
    assert opened.lock_policy is None
    locked(vault)
    assert opened.lock_policy is None
    opened.open_session(new_ulid(vault.clock()), verb="restore", now=vault.clock())
    assert opened.lock_policy is not None


@pytest.mark.rule("B6")
def test_hidden_covered_and_deleted_policies_still_count(vault: LockingBench) -> None:
    locked(vault, 30)
    key = next(stored.key for stored in vault.storage.scan(POLICIES))
    loose = vault.open().keys.sign("locks/policy/other", msgspec.json.encode(LockPolicy(1, vault.clock())))
    attacks = [
        lambda: vault.memory.hide(key),
        lambda: replace(vault, key, b"{}"),
        lambda: replace(vault, key, loose),
        lambda: vault.memory.delete([key]),
    ]
    for attack in attacks:
        attack()
        policy = vault.open().lock_policy
        assert policy is not None
        assert policy.days == 30


def test_who_may_not_list_versions_reads_the_policy_that_stands_on_top(vault: LockingBench) -> None:
    policy = locked(vault, 30)
    plan = [Fault(1, Mode.BEFORE, verb=verb, times=0, error=Forbidden) for verb in ("versions", "get_version")]
    assert through(vault, Faulty(vault.storage, plan)).open().lock_policy == policy


def test_forged_and_senseless_policies_count_for_nothing(vault: LockingBench) -> None:
    keys = vault.open().keys
    vault.storage.put(f"{POLICIES}a", b'{"days":10,"since":"2030-01-01T00:00:00Z"}\n' + b"0" * 64)
    vault.storage.put(f"{POLICIES}b", keys.sign(f"{POLICIES}b", b'{"days":0,"since":"2030-01-01T00:00:00Z"}'))
    vault.storage.put(f"{POLICIES}c", keys.sign(f"{POLICIES}c", b"no json"))
    assert read_policy(vault.storage, keys) is None


def test_a_store_without_object_lock_is_refused() -> None:
    for storage in (Memory(), Memory(versioned=True)):
        with pytest.raises(LockUnsupported, match="object lock"):
            locked(Bench(storage))


@pytest.mark.parametrize("attack", range(4))
def test_a_store_whose_lock_gives_way_is_refused(attack: int) -> None:
    class Weak(LockingMemory):
        def attack_lock(self, key: str, *, earlier: dt.datetime) -> Broken:
            return Broken(*(number == attack for number in range(4)))

    bench = Bench(Weak())
    with pytest.raises(LockUnsupported, match="lock"):
        locked(bench)
    assert bench.open().lock_policy is None


class LockingMemory(Memory):
    """Locks by a clock that stands still."""

    skew = dt.timedelta(0)

    def __init__(self) -> None:
        super().__init__(clock=lambda: dt.datetime(2031, 5, 6, tzinfo=dt.UTC))

    def describe(self) -> Claims:
        said = super().describe()
        assert said.server_time is not None
        return said._replace(server_time=said.server_time + self.skew)


@pytest.mark.parametrize("hours", [-30, 30, 24 * 365])
def test_nothing_is_locked_while_the_clocks_disagree(vault: LockingBench, tmp_path: Path, hours: int) -> None:
    locked(vault)
    folder = write_files(tmp_path / "home", {"a": b"a"})
    true_time = vault.clock.time
    vault.memory._clock = lambda: true_time
    vault.clock.time += dt.timedelta(hours=hours)
    with pytest.raises(LockUnsupported, match="set them right"):
        backed_up(vault, folder)
    assert vault.open().points() == []
    with pytest.raises(LockUnsupported, match="set them right"):
        locked(vault, 60)


def test_a_folder_is_locked_by_the_application_and_says_so(tmp_path: Path) -> None:
    bench = Bench(Directory(tmp_path / "vault", create=True))
    assert locked(bench).level == APPLICATION_LEVEL
    folder = write_files(tmp_path / "home", {"a": b"a"})
    backed_up(bench, folder)
    assert_locked(bench)
    with pytest.raises(LockCannotLoosen):
        locked(bench, 7)


@pytest.mark.invariant(19)
@pytest.mark.rule("B6")
def test_a_point_of_a_locked_vault_is_locked_with_all_that_it_needs(vault: LockingBench, tmp_path: Path) -> None:
    locked(vault, 30)
    folder = write_files(tmp_path / "home", {"a": b"a" * 50_000, "b/c": b"c"})
    outcome = backed_up(vault, folder, days=100)
    body = vault.open().root(PointName("home", outcome.point)).body
    assert body.locked_until == lock_until(LockPolicy(30, body.ended_at), body.ended_at, 100)
    assert_locked(vault)
    name = PointName("home", outcome.point)
    assert {refusal.locked for key in ends(vault, name) for refusal in vault.storage.delete([key])} == {True}
    segments = [stored.key for stored in vault.storage.scan("index/")]
    assert {vault.storage.locked_until(key) for key in segments} == {None}


def test_points_of_a_vault_without_a_policy_are_not_locked(vault: LockingBench, tmp_path: Path) -> None:
    outcome = backed_up(vault, write_files(tmp_path / "home", {"a": b"a"}), days=100)
    name = PointName("home", outcome.point)
    assert vault.open().root(name).body.locked_until is None
    assert set(ends(vault, name).values()) == {None}


def test_a_pack_is_locked_anew_once_in_a_generation(vault: LockingBench, tmp_path: Path) -> None:
    locked(vault, 30)
    vault.clock.time = generation_end(generation_of(vault.clock.time)) + dt.timedelta(hours=1)
    folder = write_files(tmp_path / "home", {"a": b"a" * 50_000})
    backed_up(vault, folder)

    def extended() -> int:
        before = len(vault.memory.log)
        backed_up(vault, folder)
        calls = vault.memory.log[before:]
        return sum(call.verb == "extend_lock" and call.key.startswith("packs/") for call in calls)

    vault.pass_days(5)
    assert extended() == 0
    vault.pass_days(5)
    assert extended() == 1
    assert extended() == 0
    assert_locked(vault)


def test_the_ledger_forgets_nothing_and_believes_no_forgery(vault: LockingBench) -> None:
    until = generation_end(generation_of(vault.clock.time))
    pack = PackRef("ab" * 32, 0, 10)
    vault.storage.put(pack_key(0, pack.name), b"0123456789")
    opened = vault.open()
    assert extend(opened, [pack], until=until) == (1, 0, 1)
    assert extend(opened, [pack], until=until) == (0, 1, 1)
    assert Ledger.load(vault.storage, opened.keys, since=until).until == {pack.name: until}
    assert Ledger.load(vault.storage, opened.keys, since=until + DAY).until == {}
    assert len(Ledger.load(vault.storage, opened.keys, since=until + DAY).ended) == 1
    more = [msgspec.structs.replace(pack, name=f"{number:064x}") for number in range(5)]
    for one in more:
        vault.storage.put(pack_key(0, one.name), b"x")
        extend(opened, [one], until=until)
    before = Ledger.load(vault.storage, opened.keys, since=until)
    before.merge(opened)
    merged = Ledger.load(vault.storage, opened.keys, since=until)
    assert merged.until == before.until == dict.fromkeys([pack.name, *(one.name for one in more)], until)
    assert [len(notes) for notes in (*before.notes.values(), *merged.notes.values())] == [6, 1]
    later = generation_of(until) + 5
    vault.storage.put(f"{PREFIX}{later}/{'cd' * 32}", b'{"packs":["' + pack.name.encode() + b'"]}\n' + b"0" * 64)
    for strange in ("x", "999999/x", "99999/x", "1/x", "policy/x", "1"):
        vault.storage.put(f"{PREFIX}{strange}", b"")
    assert not Ledger.load(vault.storage, opened.keys, since=until).covers(pack.name, until + DAY)


@pytest.mark.parametrize("is_there", [False, True])
def test_a_ledger_that_is_wrong_is_noticed_and_all_locks_are_made_good(vault: LockingBench, is_there: bool) -> None:
    until = generation_end(generation_of(vault.clock.time) + 3)
    packs = [PackRef(f"{number:064x}", 0, 1) for number in range(20)]
    for pack in packs:
        vault.storage.put(pack_key(0, pack.name), b"x")
    opened = vault.open()
    extend(opened, packs, until=until)
    for pack in packs:
        end = until - dt.timedelta(seconds=1) if is_there else None
        vault.memory.versions(pack_key(0, pack.name))[-1].locked_until = end
    extended = extend(opened, packs, until=until)
    assert (extended.skipped, extended.checked) == (20, 20)
    assert {vault.storage.locked_until(pack_key(0, pack.name)) for pack in packs} == {until}


def test_a_store_that_drops_locks_gets_no_point(tmp_path: Path) -> None:
    class Forgetful(LockingBench):
        pass

    bench = Forgetful()
    locked(bench)
    folder = write_files(tmp_path / "home", {"a": b"a"})

    class Silent(Faulty):
        def extend_lock(self, key: str, *, until: dt.datetime) -> None:
            pass

    with pytest.raises(LockFailed, match="Run audit"):
        backed_up(through(bench, Silent(bench.storage)), folder)
    assert bench.open().points() == []


@pytest.mark.invariant(19)
@pytest.mark.parametrize("mode", [Mode.BEFORE, Mode.AFTER])
def test_no_point_is_committed_when_any_call_about_locks_fails(tmp_path: Path, mode: Mode) -> None:
    folder = write_files(tmp_path / "home", {f"{n}": bytes([n]) * 3000 for n in range(3)})
    for verb, prefix in (("extend_lock", ""), ("locked_until", ""), ("versions", POLICIES), ("get_version", POLICIES)):
        at = 0
        while True:
            at += 1
            bench = LockingBench()
            locked(bench)
            faulty = Faulty(bench.storage, [Fault(at, mode, verb=verb, prefix=prefix, error=Forbidden)])
            try:
                backed_up(through(bench, faulty), folder)
            except StorageError:
                assert faulty.fired
                assert bench.open().points() == [], (verb, at)
                assert not any(stored.key.endswith("/root") for stored in bench.storage.scan("points/"))
            if not faulty.fired:
                break
        assert at > 1, f"{verb} is never called"
        assert len(bench.open().points()) == 1
        assert_locked(bench)


steps = st.lists(
    st.one_of(
        st.tuples(st.just("backup"), st.integers(0, 90)),
        st.tuples(st.just("change"), st.integers(0, 9)),
        st.tuples(st.just("days"), st.integers(1, 25)),
        st.tuples(st.just("lock"), st.integers(1, 80)),
        st.tuples(st.just("audit"), st.just(0)),
        st.tuples(st.just("hide"), st.integers(0, 30)),
    ),
    min_size=3,
    max_size=10,
)


@pytest.mark.invariant(19)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps)
def test_locks_cover_what_points_need_and_never_get_shorter(
    tmp_path_factory: pytest.TempPathFactory, todo: list[tuple[str, int]]
) -> None:
    bench = LockingBench()
    folder = write_files(tmp_path_factory.mktemp("x") / "home", {f"{n}": bytes([n]) * 40_000 for n in range(3)})
    longest: dict[str, dt.datetime] = {}
    for verb, number in todo:
        if verb == "backup":
            hidden = backed_up_or_refused(bench, folder, number)
            if not hidden:
                assert_locked(bench)
        elif verb == "change":
            (folder / "1").write_bytes(bytes([number]) * (30_000 + number))
        elif verb == "days":
            bench.pass_days(number)
        elif verb == "lock":
            tightened(bench, number)
        elif verb == "audit":
            assert audited(bench).state != "failed"
            assert_locked(bench)
        else:
            locked_keys = [key for key in longest if bench.memory.versions(key)]
            if locked_keys:
                bench.memory.hide(locked_keys[number % len(locked_keys)])
                audited(bench)
        longest = grown(bench, longest)


def backed_up_or_refused(bench: LockingBench, folder: Path, days: int) -> bool:
    try:
        backed_up(bench, folder, days=days)
        return False
    except StorageError:
        return True


def tightened(bench: LockingBench, days: int) -> None:
    policy = bench.open().lock_policy
    if policy is not None and days < policy.days:
        with pytest.raises(LockCannotLoosen):
            locked(bench, days)
    else:
        locked(bench, days)


def grown(bench: LockingBench, before: dict[str, dt.datetime]) -> dict[str, dt.datetime]:
    """Return the longest lock of each object; fail when one became shorter while it was in force."""
    after = {}
    for stored in bench.storage.scan(""):
        found = [version.locked_until for version in bench.memory.versions(stored.key) if version.locked_until]
        if found and not stored.key.startswith("canary/"):
            after[stored.key] = max(found)
    now = bench.clock.time
    assert {key for key, end in before.items() if end > now and after.get(key, now) < end} == set()
    return after
