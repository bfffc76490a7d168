"""The order of calls that safety rests on (vault-format, section 6), read from the log of a store."""

import concurrent.futures
import datetime as dt
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from engine.errors import CommitUnknown, IntegrityError, SessionFenced, Unavailable
from engine.fetch import cut_chunk, read_footer
from engine.ids import new_ulid, pack_key
from engine.keys import Keys
from engine.pack import HEADER_BYTES
from engine.point import Commit, encode_commit, point_key, root_packs
from engine.session import Closed, Session
from engine.sources.files import files_source
from engine.storage import Memory
from engine.storage.faulty import Fault, Faulty, Mode
from engine.storage.port import Bytes
from engine.verbs import backup, cutter, verify
from engine.verbs.inspect import scrub
from tests.support.runs import Stopping, backed_up, backup_job, listing, restored, run_backup
from tests.support.vaults import Bench, contents, on_disk, travelled, verified, write_files

NOISE = random.Random(3)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return write_files(tmp_path / "home", {"a/one": b"1" * 100, "a/two": b"2" * 200, "big": NOISE.randbytes(3 << 20)})


@pytest.fixture
def store(bench: Bench) -> Memory:
    assert isinstance(bench.storage, Memory)
    return bench.storage


def puts(store: Memory) -> list[str]:
    return [call.key for call in store.log if call.verb == "put"]


def kind_of(key: str) -> str:
    """Return what an object is: packs, index, open, root, commit, closed."""
    top = key.split("/")[0]
    return key.rpartition("/")[2] if top in ("sessions", "points") else {"meta": "packs"}.get(top, top)


def put_by_hand(bench: Bench, key: str, thing: msgspec.Struct | dict[str, Any]) -> None:
    bench.storage.put(key, bench.open().keys.sign(key, msgspec.json.encode(thing)))


@pytest.mark.invariant(13)
def test_the_order_is_open_packs_segments_root_commit_closed(bench: Bench, store: Memory, home: Path):
    store.log.clear()
    backed_up(bench, home)
    kinds = [kind_of(key) for key in puts(store)]
    assert kinds == ["open", "packs", "index", "packs", "index", "root", "commit", "closed"]


@pytest.mark.invariant(13)
def test_each_segment_comes_after_all_packs_that_it_lists(bench: Bench, store: Memory, home: Path):
    store.log.clear()
    backed_up(bench, home)
    written = puts(store)
    for segment in bench.open().index.segments:
        at = written.index(f"index/0/{segment.name}")
        assert all(written.index(head.key) < at for head in segment.heads)


def test_the_session_is_announced_before_the_prunes_and_the_index_are_read(bench: Bench, store: Memory, home: Path):
    backed_up(bench, home)
    store.log.clear()
    backed_up(bench, home)
    calls = [(call.verb, call.key) for call in store.log]
    opened = next(at for at, (verb, key) in enumerate(calls) if verb == "put" and key.endswith("/open"))
    for prefix in ("prune/", "index/"):
        assert min(at for at, (_, key) in enumerate(calls) if key.startswith(prefix)) > opened
    points = [at for at, (_, key) in enumerate(calls) if key.startswith("points/") and key.endswith("/root")]
    assert min(points) > opened


def test_backup_restore_and_verify_delete_nothing_but_stale_notes_of_the_ledger(
    bench: Bench, store: Memory, home: Path, tmp_path: Path
):
    (tmp_path / "back").mkdir()
    for _ in range(2):
        backed_up(bench, home)
        restored(bench, tmp_path / "back", same_name="overwrite")
        verified(bench, "content")
        verified(bench, "scrub")
        (home / "a/one").write_bytes(b"changed")
    assert {call.verb for call in store.log} == {"put", "get", "scan", "delete"}
    assert {kind_of(call.key) for call in store.log if call.verb == "delete"} == {"verify"}
    assert all(kind_of(key) != "beat" for key in puts(store))
    opened = {key.rpartition("/")[0] for key in puts(store) if key.endswith("/open")}
    assert opened == {key.rpartition("/")[0] for key in puts(store) if key.endswith("/closed")}


@pytest.mark.invariant(6)
@pytest.mark.parametrize("moment", range(1, 12))
def test_a_session_that_is_fenced_before_its_root_is_checked_never_commits(bench: Bench, home: Path, moment: int):
    """Engine invariant 6: the fence appears before the `moment`-th put of the run."""
    job = backup_job(bench, files_source([str(home)], host="host"))
    fence = f"sessions/{job.session}/fence"
    memory = bench.storage
    assert isinstance(memory, Memory)

    class Fencing(Faulty):
        def put(self, key: str, data: Bytes, *, locked_until: dt.datetime | None = None, sha256: str = "") -> None:
            if self.count("put") + 1 == moment and not any(memory.scan(fence)):
                memory.put(fence, b"")
            super().put(key, data, locked_until=locked_until, sha256=sha256)

    bench.storage = Fencing(memory)
    try:
        run_backup(bench, job)
    except SessionFenced:
        assert bench.open().points() == []
        assert not any(key.endswith("/commit") for key in puts(memory))
    else:
        log = [(call.verb, call.key) for call in memory.log]
        fenced = log.index(("put", fence)) if ("put", fence) in log else len(log)
        checked = max(at for at, (verb, key) in enumerate(log[:fenced]) if verb == "scan" and job.session in key)
        root = next(at for at, (verb, key) in enumerate(log) if verb == "put" and key.endswith("/root"))
        assert checked > root
        assert len(bench.open().points()) == 1


@pytest.mark.invariant(6)
@pytest.mark.parametrize("outcome", ["committed", "aborted"])
def test_a_late_coordinator_commits_nothing_after_its_session_was_closed(bench: Bench, home: Path, outcome: str):
    vault = bench.open()
    session = vault.open_session(new_ulid(bench.clock()), verb="backup", now=bench.clock())
    put_by_hand(bench, f"sessions/{session.name}/closed", Closed(outcome, bench.clock()))
    with pytest.raises(SessionFenced, match="or ended"):
        session.commit(b"root", series="home", point=new_ulid(bench.clock()), now=bench.clock())
    with pytest.raises(SessionFenced):
        bench.open().join_session(session.name)
    with pytest.raises(SessionFenced):
        bench.open().open_session(session.name, verb="backup", now=bench.clock())
    assert bench.open().points() == []


@pytest.mark.invariant(2)
def test_a_session_whose_commit_may_have_arrived_is_left_open(bench: Bench, home: Path):
    memory = bench.storage
    bench.storage = faulty = Faulty(memory, [Fault(1, Mode.DELAYED, "put", "points/home/", later=10_000)])
    with pytest.raises(Unavailable, match="effect later"):  # the root itself: the point can never be visible
        backed_up(bench, home)
    faulty.settle()
    assert bench.open().points() == []

    class LateCommit(Faulty):
        def put(self, key: str, data: Bytes, *, locked_until: dt.datetime | None = None, sha256: str = "") -> None:
            if key.endswith("/commit"):
                self.plan = (Fault(1, Mode.DELAYED, "put", key, later=10_000),)
                self._counts = [0]
            super().put(key, data, locked_until=locked_until, sha256=sha256)

    bench.storage = late = LateCommit(memory)
    with pytest.raises(CommitUnknown, match="run the backup again"):
        backed_up(bench, home)
    closed = {key.split("/")[1] for key in bench.objects() if key.endswith("/closed")}
    opened = {key.split("/")[1] for key in bench.objects() if key.endswith("/open")}
    assert len(opened - closed) == 1
    late.settle()
    assert len(bench.open().points()) == 1


@pytest.mark.invariant(2)
def test_finish_done_twice_commits_once(bench: Bench, home: Path):
    job = backup_job(bench, files_source([str(home)], host="host"))
    vault = bench.open()
    units = list(backup.plan(vault, job, Stopping(), now=bench.clock()))
    results = [backup.work(vault, job, unit, Stopping()) for unit in units]
    first = backup.finish(bench.open(), job, results, Stopping(), clock=bench.clock)
    second = backup.finish(bench.open(), job, results, Stopping(), clock=bench.clock)
    assert first == second
    assert len(bench.open().points()) == 1


def test_work_done_twice_or_by_others_gives_the_same_point(bench: Bench, home: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cutter, "UNIT_FILES", 2)
    source = files_source([str(home)], host="host")
    once = run_backup(bench, backup_job(bench, source, series="once"))
    job = backup_job(bench, source, series="twice")
    planner = bench.open()
    results = []
    for unit in backup.plan(planner, job, Stopping(), now=bench.clock()):
        sent = msgspec.json.decode(msgspec.json.encode(unit), type=cutter.Unit)
        backup.work(bench.open(), travelled(job), travelled(unit), Stopping())
        results.append(travelled(backup.work(bench.open(), travelled(job), sent, Stopping())))
    assert len(results) > 2
    twice = backup.finish(bench.open(), travelled(job), results, Stopping(), clock=bench.clock)
    assert listing(bench.open(), once.point) == listing(bench.open(), twice.point)
    assert once.stats.bytes == twice.stats.bytes


def test_two_backups_of_one_series_at_once_both_commit_and_both_restore(bench: Bench, home: Path):
    backed_up(bench, home)
    (home / "a/one").write_bytes(b"new for both")
    source = files_source([str(home)], host="host")
    jobs = [backup_job(bench, source), backup_job(bench, source)]
    vaults = [bench.open(), bench.open()]
    runs = [list(backup.plan(v, job, Stopping(), now=bench.clock())) for v, job in zip(vaults, jobs, strict=True)]
    results = [
        [backup.work(v, job, u, Stopping()) for u in units] for v, job, units in zip(vaults, jobs, runs, strict=True)
    ]
    points = [
        backup.finish(v, job, done, Stopping(), clock=bench.clock).point
        for v, job, done in zip(vaults, jobs, results, strict=True)
    ]
    assert len(set(points)) == 2
    for point in points:
        vault = bench.open()
        assert contents(vault, vault.find(point), below=home) == on_disk(home)
    assert verified(bench, "content").state == "complete"


@pytest.mark.invariant(1)
def test_concurrent_backups_in_threads_leave_a_whole_vault(bench: Bench, tmp_path: Path):
    folders = [write_files(tmp_path / f"{n}", {"same": b"same" * 99, "own": b"%d" % n}) for n in range(4)]

    def run(number: int) -> backup.Outcome:
        source = files_source([str(folders[number])], host="host")
        job = backup.BackupJob(
            session=new_ulid(bench.clock()), series=f"s{number}", source=source, started_at=bench.clock()
        )
        return run_backup(bench, job)

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert {outcome.state for outcome in pool.map(run, range(4))} == {"complete"}
    assert verified(bench, "content").state == "complete"
    for number, folder in enumerate(folders):
        vault = bench.open()
        assert contents(vault, vault.find("latest", series=f"s{number}"), below=folder) == on_disk(folder)


def salts(bench: Bench) -> list[bytes]:
    """Return the salt of everything that is encrypted: packs, segments, roots."""
    found = []
    for key, data in bench.objects().items():
        if key.startswith(("packs/", "meta/")):
            found.append(data[28:60])
        elif key.startswith("index/"):
            found.append(data[12:44])
        elif key.endswith("/root"):
            at = root_packs(key, data)[1]
            found.append(data[at + 12 : at + 44])
    return found


@pytest.mark.invariant(8)
def test_no_salt_is_ever_used_twice(bench: Bench, home: Path):
    """Engine invariant 8, over repeated units and repeated runs; for forks see the pack's own tests."""
    source = files_source([str(home)], host="host")
    job = backup_job(bench, source)
    units = list(backup.plan(bench.open(), job, Stopping(), now=bench.clock()))
    shared = bench.open()
    for _ in range(3):
        for unit in units:
            backup.work(bench.open(), job, unit, Stopping())
            backup.work(shared, job, unit, Stopping())
    for _ in range(3):
        (home / "a/one").write_bytes(NOISE.randbytes(50))
        backed_up(bench, home)
    found = salts(bench)
    assert len(found) > 12
    assert len(set(found)) == len(found)


@pytest.mark.invariant(10)
def test_chunks_are_checked_against_their_ids_on_every_read(bench: Bench, home: Path):
    """Engine invariant 10: a slot that decrypts is still not believed."""
    backed_up(bench, home)
    vault = bench.open()
    entry = next(entry for entry in listing(vault, "latest") if entry.path.endswith(b"two"))
    (place,) = vault.fetcher(vault.root(vault.find("latest"))).places([entry.extents[0].id])
    right = b"\0" * place.offset + b"2" * 200
    assert cut_chunk(vault.keys, right, entry.extents[0].id, place) == b"2" * 200
    with pytest.raises(IntegrityError, match="not what its id says"):
        cut_chunk(vault.keys, right[:-1] + b"3", entry.extents[0].id, place)


def with_epochs(keys: Keys, epochs: Sequence[int]) -> Keys:
    return Keys(keys.vault_id, keys._root, {epoch: keys._data_keys.get(epoch, b"new" * 10 + b"!!") for epoch in epochs})


@pytest.mark.invariant(24)
def test_keys_without_an_old_epoch_cannot_read_its_packs_and_inventories_need_no_key(bench: Bench, home: Path):
    """Engine invariant 24."""
    backed_up(bench, home)
    vault = bench.open()
    root = vault.root(vault.find("latest"))
    old, new = with_epochs(vault.keys, [1, 2]), with_epochs(vault.keys, [2])
    assert len(read_footer(bench.storage, old, root.packs[0]).table.ids)
    with pytest.raises(IntegrityError, match="data key 1"):
        read_footer(bench.storage, new, root.packs[0])
    for name in vault.points():
        key = point_key(*name, "root")
        packs, _ = root_packs(key, bench.storage.get(key))
        sizes = {stored.key: stored.size for stored in bench.storage.scan("")}
        assert all(sizes[pack_key(pack.kind, pack.name)] == pack.size for pack in packs)
    scrubbed = [scrub(bench.storage, key) for unit in verify.scrub_units(bench.storage) for key, _ in unit.objects]
    assert len(scrubbed) >= 5
    assert set(scrubbed) == {None}


@pytest.mark.invariant(9)
def test_a_commit_of_one_point_does_not_make_another_visible(bench: Bench, home: Path):
    first = backed_up(bench, home).point
    vault = bench.open()
    name = vault.find(first)
    other = new_ulid(bench.clock())
    root = bench.storage.get(point_key(*name, "root"))
    bench.storage.put(f"points/home/{other}/root", root)
    bench.storage.put(f"points/home/{other}/commit", bench.storage.get(point_key(*name, "commit")))
    with pytest.raises(IntegrityError, match="damaged or forged"):
        vault.root(vault.find(other))
    session = Session.open(bench.storage, vault.keys, name=new_ulid(bench.clock()), verb="backup", now=bench.clock())
    moved = new_ulid(bench.clock())
    session.commit(root, series="home", point=moved, now=bench.clock())
    with pytest.raises(IntegrityError):
        bench.open().root(bench.open().find(moved))
    assert bench.open().latest("home").name.point == first  # type: ignore[union-attr] # there is one


@pytest.mark.invariant(9)
def test_a_root_swapped_after_its_commit_is_refused(bench: Bench, home: Path):
    first, second = backed_up(bench, home).point, backed_up(bench, home).point
    vault = bench.open()
    key = point_key("home", second, "commit")
    forged = Commit(second, "home", "x", "0" * 64, bench.clock())
    assert isinstance(bench.storage, Memory)
    bench.storage.overwrite(key, encode_commit(vault.keys, forged))
    with pytest.raises(IntegrityError, match="not the root that was committed"):
        vault.root(vault.find(second))
    found = vault.latest("home")
    assert found is not None
    assert found.name.point == first


@pytest.mark.invariant(26)
def test_nothing_readable_stands_in_the_bucket(bench: Bench, tmp_path: Path):
    """Engine invariant 26."""
    folder = write_files(tmp_path / "SECRETFOLDER", {"SECRETNAME": b"SECRETCONTENT" * 9})
    folder.joinpath("SECRETLINK").symlink_to("SECRETTARGET")
    backed_up(bench, folder, exclude=["SECRETPATTERN"])
    everything = b"".join(key.encode() + data for key, data in bench.objects().items())
    assert b"SECRET" not in everything
    sizes = {len(data) % (64 << 10) for key, data in bench.objects().items() if key.startswith(("packs/", "meta/"))}
    assert sizes == {0}
    assert all(len(data) > HEADER_BYTES for data in bench.objects().values() if data.startswith(b"BSPK"))


def test_a_backup_relies_on_what_a_prune_condemns_while_it_runs_its_own_packs_included(bench: Bench, home: Path):
    """The prune waits for the session and then finds the packs in its root, so they stay."""
    backed_up(bench, home)
    (home / "a/one").write_bytes(b"new")
    job = backup_job(bench, files_source([str(home)], host="host"))
    planner = bench.open()
    units = [travelled(unit) for unit in backup.plan(planner, job, Stopping(), now=bench.clock())]
    results = [travelled(backup.work(bench.open(), job, unit, Stopping())) for unit in units]
    everything = [stored.key.rpartition("/")[2] for top in ("packs/", "meta/") for stored in bench.storage.scan(top)]
    put_by_hand(bench, "prune/01/condemned", {"packs": everything})
    backup.work(bench.open(), job, units[0], Stopping())  # a worker that joins late may store more, never less
    outcome = backup.finish(bench.open(), job, results, Stopping(), clock=bench.clock)
    assert outcome.state == "complete"
    vault = bench.open()
    needed = {pack.name for pack in vault.root(vault.find(outcome.point)).packs}
    assert needed & set(everything)
    assert contents(vault, vault.find(outcome.point), below=home) == on_disk(home)


def test_chunks_are_read_from_the_packs_of_their_point_alone(bench: Bench, home: Path):
    """Other packs may hold them too, and may be deleted at any time."""
    points = []
    for run in range(4):
        points.append(backed_up(bench, home).point)
        vault = bench.open()
        names = [pack.name for pack in vault.root(vault.find(points[-1])).packs]
        put_by_hand(bench, f"prune/{run:02}/condemned", {"packs": names})
    for point in points:
        vault = bench.open()
        root = vault.root(vault.find(point))
        ids = [extent.id for entry in listing(vault, point) for extent in entry.extents]
        assert {place.head.name for place in vault.fetcher(root).places(ids)} <= {pack.name for pack in root.packs}
