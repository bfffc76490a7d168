"""A prune frees what no point needs, nothing else, and only in the order that safety rests on (vault-format, 6)."""

import datetime as dt
import random
from pathlib import Path

import msgspec
import pytest

from engine.errors import Canceled, Forbidden, FormatError, SessionFenced
from engine.ids import digest_name, new_ulid, pack_key
from engine.moves import Move, MoveCommit, move_key
from engine.point import Expired, PackRef, point_key
from engine.progress import Silent
from engine.session import Closed, fence, open_sessions, put_note
from engine.sources.files import FilesSource, files_source
from engine.storage import Directory, Memory, Retrying
from engine.storage.faulty import Fault, Faulty, Mode
from engine.vault import PointName
from engine.verbs import backup, prune, sweep
from engine.verbs.needs import Known
from engine.verbs.resolve import resolve
from tests.support.runs import Stopping, backed_up, backup_job, run_backup
from tests.support.vaults import Bench, Clock, contents, on_disk, pruned, replace, travelled, verified, write_files

NOISE = random.Random(4)


@pytest.fixture
def bench() -> Bench:
    return Bench()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return write_files(tmp_path / "home", {"big": NOISE.randbytes(200_000), "small": b"small" * 30})


def source(folder: Path) -> FilesSource:
    return files_source([str(folder)], host="host")


def expire(bench: Bench, point: str, *, series: str = "home") -> None:
    vault = bench.open()
    note = Expired(point, series, "test", bench.clock())
    put_note(bench.storage, vault.keys, point_key(series, point, "expired"), note)
    for part in ("commit", "root"):
        bench.storage.delete([point_key(series, point, part)])


def packs(bench: Bench) -> set[str]:
    return {stored.key for folder in ("packs/", "meta/") for stored in bench.storage.scan(folder)}


def needed(bench: Bench) -> set[str]:
    vault = bench.open()
    return {pack_key(p.kind, p.name) for name in vault.points() for p in vault.root(name).needed}


@pytest.fixture
def waste(bench: Bench, home: Path) -> Bench:
    """A vault with one visible point, and the packs of one that is gone."""
    first = backed_up(bench, home).point
    write_files(home, {"big": NOISE.randbytes(210_000), "small": b"other" * 30})
    backed_up(bench, home)
    expire(bench, first)
    assert packs(bench) > needed(bench)
    return bench


def test_a_prune_deletes_exactly_what_no_point_needs(waste: Bench, home: Path):
    before = packs(waste)
    outcome = pruned(waste)
    assert outcome.state == "complete"
    assert packs(waste) == needed(waste)
    assert outcome.packs_deleted == len(before) - len(packs(waste)) > 0
    assert outcome.bytes_freed == outcome.bytes_unneeded
    vault = waste.open()
    assert contents(vault, vault.find("latest"), below=home) == on_disk(home)
    assert verified(waste, "content").state == "complete"


def test_a_dry_run_says_the_same_and_changes_nothing(waste: Bench):
    before = waste.objects()
    told = pruned(waste, dry_run=True)
    changed = {key for key in waste.objects().keys() ^ before.keys() if not key.startswith("verify/")}
    assert not changed
    done = pruned(waste)
    assert (told.packs_unneeded, told.bytes_unneeded) == (done.packs_deleted, done.bytes_freed)


@pytest.mark.invariant(4, 13)
def test_packs_go_after_condemnation_barrier_second_look_and_tombstones(waste: Bench):
    memory = waste.storage
    assert isinstance(memory, Memory)
    memory.log.clear()
    pruned(waste)
    calls = [(call.verb, call.key) for call in memory.log]

    def first(verb: str, text: str, after: int = 0) -> int:
        return next(at for at, call in enumerate(calls) if at >= after and call[0] == verb and text in call[1])

    condemned = first("put", "/condemned")
    sessions = first("scan", "sessions/", condemned)
    roots = first("scan", "points/", sessions)
    tombstones = first("put", "/tombstones", roots)
    deletes = [at for at, (verb, key) in enumerate(calls) if verb == "delete" and key.startswith(("packs/", "meta/"))]
    assert deletes
    assert condemned < sessions < roots < tombstones < min(deletes)
    assert max(deletes) < first("put", "/done")
    assert first("put", "/done") < first("delete", "/condemned")


def test_a_second_prune_finds_nothing_to_do_and_a_third_leaves_no_trace(waste: Bench):
    assert pruned(waste).packs_deleted > 0
    assert pruned(waste).packs_deleted == 0
    pruned(waste)
    left = {key.rpartition("/")[0] for key in waste.objects() if key.startswith(("prune/", "sessions/"))}
    assert left == {"prune/seen"}
    assert not any(key.endswith("/expired") for key in waste.objects())


@pytest.mark.invariant(17)
def test_when_all_points_are_gone_nothing_is_left_but_the_vault_itself(bench: Bench, home: Path):
    for series in ("one", "two"):
        for _ in range(3):
            write_files(home, {"big": NOISE.randbytes(90_000)})
            backed_up(bench, home, series=series)
    pruned(bench)
    for name in bench.open().points():
        expire(bench, name.point, series=name.series)
    for _ in range(4):
        pruned(bench)
    assert {key.split("/")[0] for key in bench.objects()} <= {"vault.json", "keys", "verify"}


def test_what_a_running_session_may_have_written_is_left_until_it_ended(waste: Bench, home: Path):
    write_files(home, {"more": NOISE.randbytes(80_000)})
    told = []
    run_backup(
        waste,
        backup_job(waste, source(home)),
        between=lambda: told.append(pruned(waste)),
    )
    assert told[0].packs_waiting == told[0].packs_unneeded > 0
    assert told[0].packs_condemned == 0
    assert pruned(waste).packs_deleted > 0
    assert packs(waste) == needed(waste)


def test_garbage_that_an_earlier_prune_saw_is_condemned_beside_a_later_session_and_waits_for_it(
    waste: Bench, home: Path
):
    first = waste.open().open_session(new_ulid(waste.clock()), verb="restore", now=waste.clock())
    seen = pruned(waste)
    assert seen.packs_waiting > 0
    second = waste.open().open_session(new_ulid(waste.clock()), verb="restore", now=waste.clock())
    first.close("done", waste.clock())
    begun = pruned(waste)
    assert begun.packs_condemned == seen.packs_waiting
    assert begun.packs_deleted == 0
    assert begun.waiting == [second.name]
    assert begun.state == "partial_complete"
    third = waste.open().open_session(new_ulid(waste.clock()), verb="restore", now=waste.clock())
    second.close("done", waste.clock())
    ended = pruned(waste)
    assert ended.packs_deleted == begun.packs_condemned
    assert third.name in open_sessions(waste.storage)
    assert packs(waste) == needed(waste)


@pytest.mark.invariant(5)
def test_a_backup_that_opens_after_a_condemnation_stores_the_chunks_anew(waste: Bench, home: Path, tmp_path: Path):
    old = waste.open().open_session(new_ulid(waste.clock()), verb="restore", now=waste.clock())
    pruned(waste)
    young = waste.open().open_session(new_ulid(waste.clock()), verb="restore", now=waste.clock())
    old.close("done", waste.clock())
    assert pruned(waste).waiting == [young.name]
    doomed = packs(waste) - needed(waste)
    again = write_files(tmp_path / "again", {"small": b"small" * 30})
    outcome = backed_up(waste, again, series="again")
    assert outcome.stats.bytes_new == 150
    vault = waste.open()
    assert not {pack_key(p.kind, p.name) for p in vault.root(vault.find(outcome.point)).needed} & doomed


def test_a_dead_session_is_fenced_and_what_it_left_is_freed(waste: Bench, home: Path):
    write_files(home, {"more": NOISE.randbytes(80_000)})
    job = backup_job(waste, source(home))
    planner = waste.open()
    results = [
        backup.work(waste.open(), job, unit, Silent())
        for unit in backup.plan(planner, job, Silent(), now=waste.clock())
    ]
    waste.clock.time += dt.timedelta(hours=3)
    outcome = pruned(waste)
    assert outcome.fenced == [job.session]
    with pytest.raises(SessionFenced, match="is over"):
        backup.finish(waste.open(), job, results, Silent(), clock=waste.clock)
    pruned(waste)
    assert packs(waste) == needed(waste)


def test_points_are_checked_once_and_the_ledger_remembers(waste: Bench):
    def units() -> int:
        job = prune.PruneJob(run=new_ulid(waste.clock()), started_at=waste.clock())
        return sum(unit.needs_work for unit in prune.plan(waste.open(), job, Silent(), now=waste.clock()))

    assert units() == 1
    pruned(waste)
    assert units() == 0


def assert_refused(bench: Bench, damage: str) -> None:
    before = packs(bench)
    outcome = pruned(bench)
    assert outcome.state == "failed"
    assert damage in {finding.damage for finding in outcome.findings}
    assert packs(bench) == before
    assert not any(key.endswith("/condemned") for key in bench.objects())


@pytest.mark.invariant(18)
@pytest.mark.parametrize("how", ["missing", "size"])
def test_a_prune_refuses_while_a_visible_point_lacks_a_pack(waste: Bench, how: str):
    key = min(key for key in needed(waste) if key.startswith("packs/"))
    if how == "missing":
        waste.storage.delete([key])
    else:
        replace(waste, key, waste.storage.get(key)[:-1])
    assert_refused(waste, how)


@pytest.mark.invariant(18)
def test_a_prune_refuses_while_a_root_cannot_be_read(waste: Bench):
    (name,) = waste.open().points()
    replace(waste, point_key(*name, "root"), b"rotten")
    assert_refused(waste, "point")


@pytest.mark.invariant(18)
def test_a_prune_refuses_while_a_listing_cannot_be_read(waste: Bench):
    key = min(key for key in needed(waste) if key.startswith("meta/"))
    data = bytearray(waste.storage.get(key))
    data[200:260] = bytes(60)
    replace(waste, key, bytes(data))
    assert_refused(waste, "listing")


@pytest.mark.invariant(18, 30)
def test_a_prune_refuses_a_vault_that_only_a_newer_program_may_prune(waste: Bench):
    vault = waste.open()
    vault.info = msgspec.structs.replace(vault.info, features={"read": [], "write": [], "prune": ["shards"]})
    job = prune.PruneJob(run=new_ulid(waste.clock()), started_at=waste.clock())
    with pytest.raises(FormatError, match="to prune this vault a program must know shards"):
        next(prune.plan(vault, job, Silent(), now=waste.clock()))


def test_the_packs_of_a_prepared_point_of_a_running_session_are_kept(bench: Bench, home: Path):
    point = backed_up(bench, home).point
    key = point_key("home", point, "commit")
    session = bench.open().root(PointName("home", point)).body.session
    bench.storage.delete([key, f"sessions/{session}/closed"])
    before = packs(bench)
    outcome = pruned(bench)
    assert (outcome.packs_unneeded, outcome.resolved.dropped, outcome.resolved.committed) == (0, [], [])
    assert packs(bench) == before


def prepared(bench: Bench, home: Path) -> tuple[PointName, str, bytes]:
    """Leave a point whose writer died before its commit; return it, its session, and the commit that was missing."""
    name = PointName("home", backed_up(bench, home).point)
    session = bench.open().root(name).body.session
    commit = bench.storage.get(point_key(*name, "commit"))
    bench.storage.delete([point_key(*name, "commit"), f"sessions/{session}/closed"])
    return name, session, commit


def say_closed(bench: Bench, session: str, outcome: str) -> None:
    key = f"sessions/{session}/closed"
    note = msgspec.json.encode(Closed(outcome, bench.clock()))
    replace(bench, key, bench.open().keys.sign(key, note))


@pytest.mark.invariant(2)
def test_the_point_of_a_fenced_writer_is_committed_in_its_name_byte_for_byte(bench: Bench, home: Path):
    name, session, commit = prepared(bench, home)
    fence(bench.storage, bench.open().keys, session)
    done = resolve(bench.open(), Silent())
    assert done.committed == [f"home/{name.point}"]
    assert bench.storage.get(point_key(*name, "commit")) == commit
    assert verified(bench, "content").state == "complete"


def test_the_point_of_a_fenced_writer_waits_while_a_pack_of_it_is_condemned(bench: Bench, home: Path):
    name, session, _ = prepared(bench, home)
    vault = bench.open()
    fence(bench.storage, vault.keys, session)
    sweep.condemn(vault, new_ulid(bench.clock()), [one_pack(bench)], Known(), [])
    done = resolve(bench.open(), Silent())
    assert (done.committed, done.dropped, done.sessions_forgotten) == ([], [], 0)
    assert point_key(*name, "root") in bench.objects()


def one_pack(bench: Bench) -> PackRef:
    key = min(packs(bench))
    kind = 0 if key.startswith("packs/") else 1
    return PackRef(key.rpartition("/")[2], kind, len(bench.storage.get(key)))


@pytest.mark.parametrize("end", ["fenced without a pack", "aborted", "forgotten"])
def test_the_root_of_a_writer_that_can_never_commit_is_dropped(bench: Bench, home: Path, end: str):
    name, session, _ = prepared(bench, home)
    keys = bench.open().keys
    if end == "fenced without a pack":
        fence(bench.storage, keys, session)
        bench.storage.delete([min(packs(bench))])
    elif end == "aborted":
        say_closed(bench, session, "aborted")
    else:
        bench.storage.delete([f"sessions/{session}/open"])
    done = resolve(bench.open(), Silent())
    assert (done.committed, done.dropped) == ([], [f"home/{name.point}"])
    assert not any(key.startswith("points/") for key in bench.objects())


def test_a_session_that_says_it_committed_never_loses_its_root(bench: Bench, home: Path):
    name, session, _ = prepared(bench, home)
    say_closed(bench, session, "committed")
    done = resolve(bench.open(), Silent())
    assert done.dropped == []
    assert point_key(*name, "root") in bench.objects()


def test_notes_of_sessions_that_are_over_go_and_a_zombie_finds_itself_fenced(bench: Bench, home: Path):
    zombie = bench.open().open_session(new_ulid(bench.clock()), verb="backup", now=bench.clock())
    bench.clock.time += dt.timedelta(hours=3)
    outcome = pruned(bench)
    assert outcome.fenced == [zombie.name]
    assert not any(key.startswith("sessions/") for key in bench.objects())
    with pytest.raises(SessionFenced):
        zombie.commit(b"root", series="home", point=new_ulid(bench.clock()), now=bench.clock())
    assert bench.open().points() == []
    assert resolve(bench.open(), Silent()).dropped == []  # its root can't be read: a person must look at it


def test_a_session_whose_announcement_is_damaged_is_fenced_at_once(bench: Bench, home: Path):
    session = bench.open().open_session(new_ulid(bench.clock()), verb="backup", now=bench.clock())
    replace(bench, f"sessions/{session.name}/open", b"rotten")
    assert pruned(bench).fenced == [session.name]


def moved(bench: Bench, *, committed: bool) -> Move:
    """Note that a pack of the only point moved to a copy of it under an alias."""
    (name,) = bench.open().points()
    vault = bench.open()
    old = next(pack for pack in vault.root(name).packs if pack.kind == 0)
    new = PackRef(f"{old.name}.1", old.kind, old.size)
    bench.storage.put(pack_key(new.kind, new.name), bench.storage.get(pack_key(old.kind, old.name)))
    move = Move("run", "session", [f"{name.series}/{name.point}"], {old.name: [new]})
    put_note(bench.storage, vault.keys, move_key("run", "move"), move)
    if committed:
        digest = digest_name(bench.storage.get(move_key("run", "move")))
        put_note(bench.storage, vault.keys, move_key("run", "commit"), MoveCommit("run", digest))
    return move


def test_what_was_moved_is_freed_and_its_new_place_is_needed(bench: Bench, home: Path):
    backed_up(bench, home)
    move = moved(bench, committed=True)
    (old,), ((new,),) = move.packs.keys(), move.packs.values()
    assert pruned(bench).packs_deleted == 1
    assert pack_key(0, old) not in packs(bench)
    assert pack_key(0, new.name) in packs(bench)


def test_a_move_that_never_counted_is_dropped_and_its_packs_with_the_next_prune(bench: Bench, home: Path):
    backed_up(bench, home)
    moved(bench, committed=False)
    assert pruned(bench).resolved.moves_dropped == 1
    assert pruned(bench).packs_deleted == 1
    assert packs(bench) == needed(bench)


def test_a_move_goes_when_all_its_points_are_gone(bench: Bench, home: Path):
    point = backed_up(bench, home).point
    moved(bench, committed=True)
    assert pruned(bench).resolved.moves_dropped == 0
    expire(bench, point)
    assert pruned(bench).resolved.moves_dropped == 1
    pruned(bench)
    assert packs(bench) == set()


def test_packs_that_are_locked_stay_and_the_date_is_told(home: Path):
    clock = Clock()
    bench = Bench(Memory(clock=clock))
    bench.clock = clock
    point = backed_up(bench, home).point
    until = clock() + dt.timedelta(days=30)
    for key in packs(bench):
        bench.storage.extend_lock(key, until=until)
    bench.storage.put("locks/1/hint", b"any")
    expire(bench, point)
    outcome = pruned(bench)
    assert outcome.state == "partial_complete"
    assert (outcome.packs_condemned, outcome.locked, outcome.locked_until) == (0, len(packs(bench)), until)
    clock.time += dt.timedelta(days=31)
    assert pruned(bench).packs_deleted == outcome.locked
    assert packs(bench) == set()


def stuck(bench: Bench) -> str:
    """Leave a run whose decider was killed before its tombstones; return the run."""
    vault, run = bench.open(), new_ulid(bench.clock())
    job = prune.PruneJob(run=run, started_at=bench.clock())
    (seen,) = [unit.look for unit in prune.plan(vault, job, Silent(), now=bench.clock()) if unit.look]
    sweep.condemn(vault, run, seen.garbage, Known(seen.points, seen.moves), [])
    put_note(bench.storage, vault.keys, f"prune/{run}/sweep-{new_ulid(bench.clock())}", sweep.Waiting([]))
    return run


def test_a_run_whose_decider_was_killed_stays_and_the_next_one_frees_its_garbage(waste: Bench):
    run = stuck(waste)
    outcome = pruned(waste)
    assert outcome.stuck == [run]
    assert outcome.state == "partial_complete"
    assert packs(waste) == needed(waste)
    assert f"prune/{run}/condemned" in waste.objects()


def test_a_decider_that_fails_withdraws_so_that_another_may(waste: Bench):
    memory = waste.storage
    job = prune.PruneJob(run=new_ulid(waste.clock()), started_at=waste.clock())
    results = [
        prune.work(waste.open(), job, u, Silent()) for u in prune.plan(waste.open(), job, Silent(), now=waste.clock())
    ]
    # The points are listed by the resolver, by whoever looks for notes to retire, and then by the second look.
    waste.storage = Faulty(memory, [Fault(3, Mode.BEFORE, "scan", "points/", error=Forbidden)])
    with pytest.raises(Forbidden):
        prune.finish(waste.open(), job, results, Silent(), clock=waste.clock)
    waste.storage = memory
    assert any("/sweep-" in key for key in waste.objects())
    assert any("/withdrawn-" in key for key in waste.objects())
    again = pruned(waste)
    assert again.stuck == []
    assert packs(waste) == needed(waste)


def test_a_prune_that_is_canceled_leaves_a_whole_vault_and_the_next_one_ends_it(waste: Bench, home: Path):
    for at in range(1, 40):
        bench = waste.twin()
        job = prune.PruneJob(run=new_ulid(bench.clock()), started_at=bench.clock())
        progress = Stopping(at)
        try:
            units = list(prune.plan(bench.open(), job, progress, now=bench.clock()))
            results = [travelled(prune.work(bench.open(), job, travelled(unit), progress)) for unit in units]
            prune.finish(bench.open(), job, results, progress, clock=bench.clock)
        except Canceled:
            pass
        assert verified(bench, "content").state == "complete"
        pruned(bench)
        assert packs(bench) == needed(bench)
        if progress.checks < at:
            return
    raise AssertionError("it checks more often than this test knows")


def test_leftovers_of_dead_writers_are_swept_from_a_folder(tmp_path: Path, home: Path):
    bench = Bench(Retrying(Directory(str(tmp_path / "vault"), create=True)))
    backed_up(bench, home)
    (tmp_path / "vault" / ".tmp").mkdir(exist_ok=True)
    (tmp_path / "vault" / ".tmp" / "dead").write_bytes(b"half")
    assert pruned(bench).temporary_removed == 1
