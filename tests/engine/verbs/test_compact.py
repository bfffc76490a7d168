"""Compaction frees dead chunks; no point ever notices (vault-format, section 6)."""

import contextlib
import datetime as dt
from pathlib import Path

import msgspec
import pytest

from engine.errors import EngineError, SessionFenced
from engine.ids import digest_name, new_ulid, pack_key
from engine.moves import Move, Moves, commit_move
from engine.pack import DATA
from engine.point import Expired, point_key
from engine.progress import Silent
from engine.session import Names, fence, open_sessions, put_note
from engine.storage import Memory
from engine.storage.faulty import Fault, Faulty, Mode
from engine.verbs import candidates, compact
from engine.verbs.candidates import Task
from engine.verbs.mark import mark
from engine.verbs.repack import Repacker
from tests.support.compaction import (
    assert_whole,
    compact_job,
    compacted,
    end_point,
    everything,
    needed,
    noise,
    packs,
    sparse_vault,
)
from tests.support.interleaving import Actor
from tests.support.runs import backed_up
from tests.support.vaults import (
    Bench,
    Clock,
    contents,
    on_disk,
    pruned,
    travelled,
    verified,
    write_files,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "home"


def test_what_is_alive_moves_and_a_prune_frees_the_rest(bench: Bench, folder: Path):
    point = sparse_vault(bench, folder)
    pruned(bench)
    old = packs(bench)
    before = everything(bench.open())
    outcome = compacted(bench)
    assert (outcome.state, outcome.choice.chosen) == ("complete", {"sparse": 1})
    assert outcome.packs_moved == outcome.packs_written == 1
    assert everything(bench.open()) == before
    assert contents(bench.open(), point, below=folder) == on_disk(folder)
    freed = old - needed(bench)
    assert len(freed) == 1
    assert outcome.bytes_moved == sum(len(bench.storage.get(key)) for key in freed)
    assert_whole(bench)
    result = pruned(bench)
    assert (result.state, result.packs_deleted) == ("complete", 1)
    assert packs(bench).isdisjoint(freed)
    assert packs(bench) | packs(bench, "meta/") == needed(bench)
    assert everything(bench.open()) == before
    assert_whole(bench)
    assert open_sessions(bench.storage) == []
    again = compacted(bench)
    assert (again.packs_moved, again.choice.chosen) == (0, {})


def test_the_next_backups_carry_blocks_over_from_a_moved_parent_and_need_the_new_packs(
    bench: Bench, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("engine.listing.BLOCK_ROWS_MAX", 4)
    sparse_vault(bench, folder)
    write_files(folder, {f"m{n}": b"" for n in range(20)})
    parent = backed_up(bench, folder)
    compacted(bench)
    assert pruned(bench).packs_deleted > 0
    (folder / "zz").write_bytes(b"new")
    child = backed_up(bench, folder)
    assert child.stats.entries_read < 10
    vault = bench.open()
    for point in (parent, child):
        assert contents(vault, vault.find(point.point))
    assert contents(vault, vault.find(child.point), below=folder) == on_disk(folder)
    end_point(bench, "home", parent.point)
    pruned(bench)
    assert contents(bench.open(), bench.open().find(child.point), below=folder) == on_disk(folder)
    assert bench.back_up(folder, deep=True).stats.bytes_new == 0
    assert_whole(bench)


def test_moved_packs_are_moved_on(bench: Bench, folder: Path):
    sparse_vault(bench, folder, files=24)
    for kept in (4, 2, 1):
        compacted(bench)
        pruned(bench)
        backed_up(bench, folder)
        for path in sorted(folder.glob("f*"))[kept:]:
            path.unlink()
        names = bench.open().points()
        last = backed_up(bench, folder)
        for name in names:
            end_point(bench, *name)
        before = everything(bench.open())
        assert compacted(bench).packs_moved > 0
        assert everything(bench.open()) == before
        pruned(bench)
        pruned(bench)
        assert packs(bench) | packs(bench, "meta/") == needed(bench)
        assert contents(bench.open(), bench.open().find(last.point), below=folder) == on_disk(folder)
    assert_whole(bench)


def test_a_pack_of_which_nothing_is_alive_any_more_is_moved_to_nothing(
    bench: Bench, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    """After a move a block may name two packs and use one: when the other has nothing alive, nobody needs it."""
    monkeypatch.setattr("engine.listing.BLOCK_ROWS_MAX", 4)
    made = backed_up(bench, write_files(folder, {f"m{n}": b"" for n in range(20)} | {"m5x": noise(1)}))
    idle = backed_up(bench, write_files(folder.parent / "idle", {"c": noise(3)}), series="idle")
    vault = bench.open()
    session = vault.open_session(new_ulid(bench.clock()), verb="compact", now=bench.clock())
    (old,) = [pack for pack in vault.root(vault.find(made.point)).needed if pack.kind == DATA]
    (other,) = [pack for pack in vault.root(vault.find(idle.point)).needed if pack.kind == DATA]
    with Repacker(vault, Silent(), kind=DATA) as repacker:
        repacker.take(Task(old, "sparse", mark(vault, Silent()).live_ids({old.name})[old.name]))
        moved = repacker.close()
    move = Move(session.name, session.name, [f"home/{made.point}"], {old.name: [*moved[old.name], other]})
    commit_move(session, bench.storage, vault.keys, move, now=bench.clock())
    session.close("done", bench.clock())
    (folder / "zz").write_bytes(b"")
    child = backed_up(bench, folder)
    assert child.stats.entries_read < 10
    end_point(bench, "idle", idle.point)
    for point in (made, child):
        assert other in bench.open().root(vault.find(point.point)).needed
    before = everything(bench.open())
    compacted(bench)
    for point in (made, child):
        assert other not in bench.open().root(vault.find(point.point)).needed
    pruned(bench)
    assert pack_key(other.kind, other.name) not in packs(bench)
    assert everything(bench.open()) == before
    assert_whole(bench)
    assert backed_up(bench, folder).stats.entries_read == 0


def test_a_point_that_comes_after_the_marks_goes_on_needing_the_old_pack(bench: Bench, folder: Path):
    point = sparse_vault(bench, folder)
    job, vault, silent = compact_job(bench), bench.open(), Silent()
    planned = compact.plan(vault, job, silent, now=bench.clock())
    units = [next(planned)]
    dead = noise(1, 20_000)  # of the point that ended: still in the pack, not alive
    late = backed_up(bench, write_files(folder.parent / "late", {"dead": dead}), series="late")
    units += planned
    results = [compact.work(bench.open(), job, travelled(unit), silent) for unit in units]
    outcome = compact.finish(bench.open(), job, results, silent, clock=bench.clock)
    assert outcome.packs_moved == 1
    (move,) = Moves(bench.storage, vault.keys).committed
    assert move.points == [f"home/{point.point}"]
    (old,) = move.packs
    vault = bench.open()
    assert late.stats.bytes_new == 0
    assert old in {pack.name for pack in vault.root(vault.find(late.point)).needed}
    assert old not in {pack.name for pack in vault.root(point).needed}
    pruned(bench)
    vault = bench.open()
    assert contents(vault, vault.find(late.point), below=folder.parent / "late") == {b"dead": dead}
    assert_whole(bench)
    again = compacted(bench)
    assert again.choice.chosen == {"sparse": 1}
    assert pruned(bench).packs_deleted == 1
    assert everything(bench.open()).keys() == {point, vault.find(late.point)}
    assert_whole(bench)


def test_a_pack_whose_live_chunks_were_moved_already_is_not_copied_again(bench: Bench, folder: Path):
    """A backup may refer to the old pack until a prune condemns it: then the next move only names the copies."""
    sparse_vault(bench, folder)
    old = {max(packs(bench) & needed(bench), key=lambda key: len(bench.storage.get(key)))}
    job, vault, silent = compact_job(bench), bench.open(), Silent()
    units = list(compact.plan(vault, job, silent, now=bench.clock()))
    late = backed_up(bench, write_files(folder.parent / "late", {"alive": noise(3, 20_000)}), series="late")
    results = [compact.work(bench.open(), job, travelled(unit), silent) for unit in units]
    compact.finish(bench.open(), job, results, silent, clock=bench.clock)
    assert old <= needed(bench)
    again = compacted(bench)
    assert (again.packs_moved, again.packs_written) == (1, 0)
    assert again.bytes_read > 20_000  # what is relied on was read first
    assert pruned(bench).packs_deleted > 0
    assert old.isdisjoint(packs(bench))
    vault = bench.open()
    assert contents(vault, vault.find(late.point), below=folder.parent / "late") == {b"alive": noise(3, 20_000)}
    assert_whole(bench)


def test_a_backup_after_the_move_refers_to_the_new_packs(tmp_path: Path):
    """Else it would keep the old ones, which hold the same chunks until a prune has deleted them."""
    for n in range(5):  # which of the two the index finds first is chance
        bench = Bench()
        sparse_vault(bench, tmp_path / f"home{n}")
        compacted(bench)
        late = backed_up(bench, write_files(tmp_path / "late", {"a": noise(3, 20_000)}), series="late")
        assert late.stats.bytes_new == 0
        vault = bench.open()
        (move,) = vault.moves.committed
        assert {pack.name for pack in vault.root(vault.find(late.point)).needed}.isdisjoint(move.packs)


def test_nothing_is_moved_back_to_where_it_was_moved_from(bench: Bench, folder: Path):
    sparse_vault(bench, folder, files=24)
    old = max(packs(bench) & needed(bench), key=lambda key: len(bench.storage.get(key)))
    compacted(bench)  # and no prune yet: the old pack is still there, and listed
    assert old in packs(bench) - needed(bench)
    names = bench.open().points()
    for path in sorted(folder.glob("f*"))[2:]:
        path.unlink()
    backed_up(bench, folder)
    for name in names:
        end_point(bench, *name)
    again = compacted(bench)
    assert (again.choice.chosen["sparse"], again.packs_written) == (1, 1)
    assert old not in needed(bench)
    assert_whole(bench)


def test_copies_in_packs_that_a_prune_condemned_are_not_relied_on(bench: Bench, folder: Path):
    kept = noise(1, 20_000)
    first = backed_up(bench, write_files(folder.parent / "first", {"a": kept}), series="first")
    vault = bench.open()
    condemned = [pack.name for pack in vault.root(vault.find(first.point)).needed if pack.kind == DATA]
    put_note(bench.storage, vault.keys, f"prune/{new_ulid(bench.clock())}/condemned", Names(condemned))
    second = backed_up(bench, write_files(folder, {"a": kept, "b": noise(2, 60_000)}))
    assert second.stats.bytes_new == 80_000
    (folder / "b").unlink()
    third = backed_up(bench, folder)
    end_point(bench, "home", second.point)
    outcome = compacted(bench)
    assert (outcome.choice.chosen, outcome.packs_written) == ({"sparse": 1}, 1)
    vault = bench.open()
    assert {pack.name for pack in vault.root(vault.find(third.point)).needed}.isdisjoint(condemned)
    assert_whole(bench)


def test_a_dry_run_only_tells_what_it_would_do(bench: Bench, folder: Path):
    sparse_vault(bench, folder)
    before = {key for key in bench.objects() if not key.startswith("sessions/")}
    dry = compacted(bench, dry_run=True)
    assert {key for key in bench.objects() if not key.startswith("sessions/")} == before
    assert open_sessions(bench.storage) == []
    wet = compacted(bench)
    assert dry.choice == wet.choice
    assert dry.choice.bytes_freed > dry.choice.bytes_read > 0
    assert dry.choice.bytes > dry.choice.bytes_dead > dry.choice.bytes_freed // 2
    assert (dry.packs_moved, wet.packs_moved) == (0, 1)


@pytest.mark.parametrize("share", [0.0, -1.0, 1.5])
def test_a_share_that_is_none_is_refused(bench: Bench, share: float):
    with pytest.raises(ValueError, match="use more than 0 and at most 1"):
        compacted(bench, dead_share=share)
    assert open_sessions(bench.storage) == []


def test_packs_with_less_dead_than_asked_for_are_left_alone(bench: Bench, folder: Path):
    sparse_vault(bench, folder)
    assert compacted(bench, dead_share=0.9, dry_run=True).choice.chosen == {}
    assert compacted(bench, dead_share=0.5, dry_run=True).choice.chosen == {"sparse": 1}


def test_a_run_reads_no_more_than_allowed(bench: Bench, folder: Path):
    sparse_vault(bench, folder)
    outcome = compacted(bench, bytes_max=1000)
    assert (outcome.choice.later, outcome.packs_moved, outcome.bytes_read) == (1, 0, 0)


def test_tiny_packs_are_joined_when_there_are_several(bench: Bench, folder: Path):
    for number in range(candidates.TINY_LEAST - 1):
        backed_up(bench, write_files(folder, {f"f{number}": noise(number)}))
    assert compacted(bench).packs_moved == 0
    backed_up(bench, write_files(folder, {"f": noise(99)}))
    before = everything(bench.open())
    outcome = compacted(bench)
    assert outcome.choice.chosen["tiny"] >= candidates.TINY_LEAST
    assert outcome.packs_written <= 2
    assert everything(bench.open()) == before
    pruned(bench)
    assert len(packs(bench)) == 1
    assert everything(bench.open()) == before
    assert_whole(bench)


def test_what_only_expired_points_need_is_not_copied_and_keeps_its_pack_until_they_are_gone(bench: Bench, folder: Path):
    first = backed_up(bench, write_files(folder, {f"f{n}": noise(n, 20_000) for n in range(6)}))
    for n in range(4):
        (folder / f"f{n}").unlink()
    backed_up(bench, folder)
    vault = bench.open()
    note = Expired(first.point, "home", "", bench.clock())
    put_note(bench.storage, vault.keys, point_key("home", first.point, "expired"), note)
    outcome = compacted(bench)
    assert outcome.packs_moved == 1
    assert outcome.bytes_written < 120_000
    assert pruned(bench).packs_deleted == 0
    end_point(bench, "home", first.point)
    assert pruned(bench).packs_deleted > 0
    assert_whole(bench)


def test_a_pack_whose_lock_is_in_force_is_left_alone(tmp_path: Path):
    clock = Clock()
    bench = Bench(Memory(clock=lambda: clock.time))
    bench.clock = clock
    sparse_vault(bench, tmp_path / "home")
    bench.storage.put("locks/policy/x", b"this vault knows locks")
    for key in packs(bench):
        bench.storage.extend_lock(key, until=clock.time + dt.timedelta(days=1))
    outcome = compacted(bench)
    assert (outcome.packs_moved, outcome.choice.locked) == (0, 1)
    clock.time += dt.timedelta(days=2)
    assert compacted(bench).packs_moved == 1


def test_needed_packs_that_a_stuck_prune_condemned_are_rewritten(bench: Bench, folder: Path):
    """Its decider was killed: the names stay forbidden, so what is alive must move, however little is dead."""
    made = backed_up(bench, write_files(folder, {"a": noise(1, 20_000)}))
    vault = bench.open()
    names = [pack.name for pack in vault.root(vault.find(made.point)).needed]
    run = new_ulid(bench.clock())
    put_note(bench.storage, vault.keys, f"prune/{run}/condemned", Names(names))
    assert compacted(bench).packs_moved == 0  # a run that can go on rescues them
    put_note(bench.storage, vault.keys, f"prune/{run}/sweep-{new_ulid(bench.clock())}", Names([]))
    outcome = compacted(bench)
    assert outcome.choice.chosen == {"stuck": len(names)}
    now_needed = {pack.name for pack in bench.open().root(vault.find(made.point)).needed}
    assert now_needed.isdisjoint(names)
    assert backed_up(bench, folder).stats.entries_read == 0
    assert_whole(bench)


def test_a_fenced_compaction_moves_nothing(bench: Bench, folder: Path):
    sparse_vault(bench, folder)
    before = everything(bench.open())
    job, vault, silent = compact_job(bench), bench.open(), Silent()
    units = list(compact.plan(vault, job, silent, now=bench.clock()))
    results = [compact.work(bench.open(), job, unit, silent) for unit in units]
    fence(bench.storage, vault.keys, job.session)
    with pytest.raises(SessionFenced):
        compact.finish(bench.open(), job, results, silent, clock=bench.clock)
    assert Moves(bench.storage, vault.keys).committed == []
    with pytest.raises(SessionFenced):
        compact.work(bench.open(), job, units[0], silent)
    pruned(bench)
    assert everything(bench.open()) == before
    assert compacted(bench).packs_moved == 1
    assert_whole(bench)


def test_finishing_twice_moves_once(bench: Bench, folder: Path):
    sparse_vault(bench, folder)
    job, vault, silent = compact_job(bench), bench.open(), Silent()
    results = [
        compact.work(bench.open(), job, unit, silent) for unit in compact.plan(vault, job, silent, now=bench.clock())
    ]
    first = compact.finish(bench.open(), job, results, silent, clock=bench.clock)
    second = compact.finish(bench.open(), job, results, silent, clock=bench.clock)
    assert msgspec.structs.replace(second, segments_merged=first.segments_merged) == first
    assert len(Moves(bench.storage, vault.keys).committed) == 1


def test_two_compactions_at_once_leave_every_point_whole(bench: Bench, folder: Path):
    sparse_vault(bench, folder)
    before = everything(bench.open())
    silent = Silent()
    jobs = [compact_job(bench) for _ in range(2)]
    units = [list(compact.plan(bench.open(), job, silent, now=bench.clock())) for job in jobs]
    for job, planned in zip(jobs, units, strict=True):
        results = [compact.work(bench.open(), job, unit, silent) for unit in planned]
        compact.finish(bench.open(), job, results, silent, clock=bench.clock)
        assert everything(bench.open()) == before
    pruned(bench)
    pruned(bench)
    assert packs(bench) | packs(bench, "meta/") == needed(bench)
    assert everything(bench.open()) == before
    assert_whole(bench)


def test_packs_that_two_compactions_put_in_each_others_place_both_stay(bench: Bench, folder: Path):
    made = backed_up(bench, write_files(folder, {"a": noise(1)}))
    vault = bench.open()
    point = vault.find(made.point)
    packs_ = vault.root(point).needed
    there, back = packs_[0], packs_[1]
    for old, new in ((there, back), (back, there)):
        session = vault.open_session(new_ulid(bench.clock()), verb="compact", now=bench.clock())
        move = Move(new_ulid(bench.clock()), session.name, [f"home/{made.point}"], {old.name: [new]})
        commit_move(session, bench.storage, vault.keys, move, now=bench.clock())
        session.close("done", bench.clock())
    assert set(bench.open().root(point).needed) == set(packs_)


def test_no_key_is_needed_to_see_that_all_that_a_compacted_vault_needs_is_there(bench: Bench, folder: Path):
    """Old packs stand in the roots, new ones are there under names that are their own digests."""
    sparse_vault(bench, folder)
    compacted(bench)
    assert verified(bench, "inventory").state == "complete"
    assert verified(bench, "scrub").state == "complete"
    for key in packs(bench) | packs(bench, "meta/"):
        assert key.endswith(digest_name(bench.storage.get(key)))


@pytest.mark.slow
@pytest.mark.parametrize("mode", [Mode.BEFORE, Mode.AFTER, Mode.DELAYED, Mode.SHORT, Mode.WRONG])
def test_an_error_at_any_storage_call_leaves_every_point_whole(tmp_path: Path, mode: Mode):
    start = Bench()
    sparse_vault(start, tmp_path / "home")
    before = everything(start.open())
    at, fired = 0, True
    while fired:
        at += 1
        bench = start.twin()
        inner = bench.storage
        faulty = Faulty(inner, [Fault(at, mode)])
        bench.storage = faulty
        with contextlib.suppress(EngineError):
            outcome = compacted(bench)
            assert outcome.packs_moved == 1 or outcome.left or outcome.findings or outcome.choice.doubtful
        fired = bool(faulty.fired) or at <= len(faulty.calls)
        bench.storage = inner
        for _ in range(2):
            assert everything(bench.open()) == before
            pruned(bench, lease_s=0)
            faulty.settle()
        compacted(bench)
        pruned(bench, lease_s=0)
        assert everything(bench.open()) == before
        assert packs(bench) | packs(bench, "meta/") == needed(bench)
    assert at > 30


def test_killed_between_any_two_writes_it_can_be_run_again(tmp_path: Path):
    start = Bench()
    sparse_vault(start, tmp_path / "home")
    before = everything(start.open())
    killed, at = True, 0
    while killed:
        at += 1
        bench = start.twin()
        actor = Actor("compact", bench, compacted)
        while not actor.is_over and actor.calls < at:
            actor.greenlet.switch()
        killed = not actor.is_over
        actor.kill()
        assert everything(bench.open()) == before
        assert compacted(bench).state == "complete"
        pruned(bench, lease_s=0)
        assert everything(bench.open()) == before
        assert packs(bench) | packs(bench, "meta/") == needed(bench)
    assert at > 30
