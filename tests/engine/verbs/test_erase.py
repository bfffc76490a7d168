"""A whole vault is deleted, and nothing that a lock protects: all or nothing, done again after any failure."""

import copy
import datetime as dt
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.errors import EngineError, Forbidden, Unavailable, VaultMissing
from engine.ids import new_ulid
from engine.locks import enable, generation_end, generation_of
from engine.point import PackRef, encode_root, point_key
from engine.progress import Silent
from engine.storage import Memory
from engine.storage.faulty import Fault, Faulty, Mode
from engine.verbs import erase
from tests.support.runs import backed_up
from tests.support.vaults import Bench, Clock, contents, on_disk, travelled, write_files

DAY = dt.timedelta(days=1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_files(tmp_path / "home", {"a/one": b"1" * 1000, "a/two": b"2" * 2000, "empty": b""})


def lockable() -> Bench:
    """Make a vault in a store with object lock, whose clock is the bench's."""
    clock = Clock()
    bench = Bench(Memory(clock=lambda: clock.time, write_once=False))
    bench.clock = clock
    return bench


def lock(bench: Bench, until: dt.datetime, *prefixes: str) -> None:
    """Lock what stands below the prefixes; all of a point and what it needs unless told."""
    for prefix in prefixes or ("points/", "packs/", "meta/", "keys/", "vault.json"):
        for stored in list(bench.storage.scan(prefix)):
            bench.storage.extend_lock(stored.key, until=until)


def erased(bench: Bench, *, vault_id: str = "", dry_run: bool = False) -> erase.Outcome:
    """Erase as fresh processes would, units and results travelling as bytes."""
    planner, worker, silent = bench.open(), bench.open(), Silent()
    job = erase.EraseJob(
        vault_id=vault_id or planner.info.vault_id, started_at=bench.clock(), lease_s=60, dry_run=dry_run
    )
    results = [
        travelled(erase.work(worker, job, travelled(unit), silent))
        for unit in erase.plan(planner, job, silent, now=bench.clock())
    ]
    return erase.finish(planner, job, results, silent, clock=bench.clock)


def whole(bench: Bench, folder: Path) -> bool:
    vault = bench.open()
    return contents(vault, vault.find("latest"), below=folder) == on_disk(folder)


def test_nothing_of_a_vault_is_left(folder):
    bench = Bench()
    backed_up(bench, folder)
    stored = len(bench.objects())
    outcome = erased(bench)
    assert (outcome.state, outcome.objects_deleted, outcome.locked_until) == ("complete", stored, None)
    assert bench.objects() == {}
    with pytest.raises(VaultMissing):
        bench.open()


def test_another_vault_than_the_one_that_is_meant_is_not_touched(folder):
    bench = Bench()
    backed_up(bench, folder)
    before = bench.objects()
    for vault_id in ("0" * 32, bench.open().info.vault_id[:-1]):
        with pytest.raises(erase.EraseRefused, match="is to be erased"):
            erased(bench, vault_id=vault_id)
    assert bench.objects() == before


def test_a_dry_run_counts_and_deletes_nothing(folder):
    bench = Bench()
    backed_up(bench, folder)
    before = bench.objects()
    outcome = erased(bench, dry_run=True)
    assert outcome.state == "complete"
    assert outcome.bytes_freed >= sum(len(data) for key, data in before.items() if key.startswith("packs/"))
    assert bench.objects() == before


@pytest.mark.rule("B6")
@pytest.mark.invariant(19)
def test_while_one_point_is_locked_nothing_goes_and_the_date_is_told(folder):
    bench = lockable()
    backed_up(bench, folder)
    until = bench.clock() + 30 * DAY
    lock(bench, until)
    lock(bench, until + DAY, "keys/")
    backed_up(bench, folder)  # needs no lock of its own for this: one locked point keeps all
    before = bench.objects()
    outcome = erased(bench)
    assert (outcome.state, outcome.locked_until, outcome.objects_deleted) == ("partial_complete", until + DAY, 0)
    assert bench.objects() == before
    assert whole(bench, folder)
    bench.clock.time = until + 2 * DAY
    assert erased(bench).state == "complete"
    assert bench.objects() == {}


@pytest.mark.rule("B6")
def test_a_locked_point_that_somebody_hid_still_keeps_the_vault(folder):
    bench = lockable()
    backed_up(bench, folder)
    lock(bench, bench.clock() + 30 * DAY)
    assert isinstance(bench.storage, Memory)
    for stored in list(bench.storage.scan("points/")):
        bench.storage.hide(stored.key)
    assert erased(bench).objects_deleted == 0


def test_packs_that_no_point_needs_stay_until_their_lock_ends_and_the_rest_goes(folder):
    bench = lockable()
    backed_up(bench, folder)
    until = bench.clock() + 5 * DAY
    lock(bench, until, "packs/")
    outcome = erased(bench)
    assert (outcome.state, outcome.locked_until) == ("partial_complete", until)
    assert {key.partition("/")[0] for key in bench.objects()} == {"packs", "keys", "vault.json"}
    assert all("locked" in line for line in outcome.refused)
    bench.clock.time = until
    assert erased(bench).state == "complete"
    assert bench.objects() == {}


def test_the_keys_outlive_what_they_open_while_they_are_locked(folder):
    bench = lockable()
    backed_up(bench, folder)
    policy = enable(bench.open(), days=7, now=bench.clock())
    end = generation_end(generation_of(policy.since + 7 * DAY))
    outcome = erased(bench)
    assert (outcome.state, outcome.locked_until) == ("partial_complete", end)
    assert not [key for key in bench.objects() if key.startswith(("points/", "packs/"))]
    assert bench.open().points() == []
    bench.clock.time = end
    assert erased(bench).state == "complete"
    assert bench.objects() == {}


def test_what_was_overwritten_or_hidden_goes_with_all_its_versions(folder):
    bench = lockable()
    backed_up(bench, folder)
    assert isinstance(bench.storage, Memory)
    key = next(iter(bench.storage.scan("packs/"))).key
    bench.storage.hide(key)
    assert erased(bench).state == "complete"
    assert bench.storage.versions(key) == []


def test_it_waits_for_sessions_that_run_and_fences_those_that_died(folder):
    bench = Bench()
    backed_up(bench, folder)
    name = new_ulid(bench.clock())
    session = bench.open().open_session(name, verb="restore", now=bench.clock())
    assert erased(bench).waiting == [name]
    assert whole(bench, folder)
    bench.clock.time += DAY
    outcome = erased(bench)
    assert (outcome.state, outcome.fenced) == ("complete", [name])
    session.close("done", bench.clock())
    assert bench.objects() == {}


def cloned(bench: Bench) -> Bench:
    twin = copy.copy(bench)
    twin.storage = Memory(write_once=False)
    for key, data in bench.objects().items():
        twin.storage.put(key, data)
    return twin


def broken(start: Bench) -> Iterator[tuple[Bench, Bench]]:
    """Yield, for every call of an erase and every way to fail, the bench below the fault and above it."""
    counting = cloned(start)
    counting.storage = faulty = Faulty(counting.storage)
    erased(counting)
    for at, call in enumerate(faulty.calls, 1):
        modes = (Mode.BEFORE, Mode.AFTER, Mode.DELAYED) if call.verb == "delete" else (Mode.BEFORE,)
        for mode in modes:
            for error, times in ((Unavailable, 1), (Forbidden, 0)):
                below = cloned(start)
                above = copy.copy(below)
                above.storage = Faulty(below.storage, [Fault(at, mode, times=times, error=error)])
                yield below, above


def test_whatever_call_fails_the_next_erase_finishes_and_no_point_is_half_there(folder, monkeypatch):
    monkeypatch.setattr(erase, "_BATCH", 2)
    start = Bench()
    backed_up(start, folder)
    runs = 0
    for below, above in broken(start):
        runs += 1
        try:
            erased(above)
        except EngineError:
            pass
        assert isinstance(above.storage, Faulty)
        above.storage.settle()
        try:
            vault = below.open()
        except VaultMissing:
            erase.remove_rest(below.storage)
        else:
            # Points go first: one that is still visible is whole.
            assert vault.points() == [] or whole(below, folder)
            assert erased(below).state == "complete"
        assert below.objects() == {}
    assert runs > 30


def test_the_rest_of_a_vault_is_removed_and_a_vault_is_not(folder):
    bench = Bench()
    backed_up(bench, folder)
    with pytest.raises(erase.EraseRefused, match="there is"):
        erase.remove_rest(bench.storage)
    bench.storage.delete(["vault.json"])
    with pytest.raises(erase.EraseRefused, match="there is"):
        erase.remove_rest(bench.storage)
    bench.storage.delete([key for key in bench.objects() if not key.startswith("keys/")])
    assert erase.remove_rest(bench.storage) == []
    assert erase.remove_rest(bench.storage) == []
    assert bench.objects() == {}


def test_a_hidden_vault_is_not_the_rest_of_one(folder):
    bench = lockable()
    assert isinstance(bench.storage, Memory)
    bench.storage.hide("vault.json")
    with pytest.raises(erase.EraseRefused, match=r"vault\.json"):
        erase.remove_rest(bench.storage)


def test_a_root_that_was_never_committed_counts_as_locked_too(folder):
    bench = lockable()
    backed_up(bench, folder)
    vault = bench.open()
    name = vault.find("latest")
    body = vault.root(name).body
    body.point = new_ulid(bench.clock())
    until = bench.clock() + 3 * DAY
    data = encode_root(vault.keys, body, list[PackRef]())
    bench.storage.put(point_key(name.series, body.point, "root"), data, locked_until=until)
    assert erased(bench).locked_until == until
    assert whole(bench, folder)
