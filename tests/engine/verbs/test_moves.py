"""What becomes of the moves that dead compactions leave, whoever settles them and whenever."""

from pathlib import Path

import pytest

from engine.errors import IntegrityError, SessionFenced
from engine.ids import digest_name, new_ulid
from engine.moves import Move, MoveCommit, Moves, commit_move, move_key
from engine.point import PackRef
from engine.progress import Silent
from engine.session import Names, Session, fence, put_note
from engine.verbs.needs import look
from engine.verbs.resolve import Resolved, resolve
from tests.support.compaction import end_point
from tests.support.hooks import Hooked
from tests.support.runs import backed_up
from tests.support.vaults import Bench, flip, write_files


class Prepared:
    """A point whose data pack a compaction copied, and a move that is stored and not committed."""

    def __init__(self, bench: Bench, folder: Path) -> None:
        self.bench = bench
        made = backed_up(bench, write_files(folder, {"a": b"a" * 5000}))
        self.vault = bench.open()
        self.point = self.vault.find(made.point)
        self.old = self.vault.root(self.point).needed[0]
        key = f"packs/{self.old.name[:2]}/{self.old.name}"
        bench.storage.put(f"{key}.1", bench.storage.get(key))
        self.new = PackRef(f"{self.old.name}.1", self.old.kind, self.old.size)
        now = bench.clock()
        self.session = self.vault.open_session(new_ulid(now), verb="compact", now=now)
        run = new_ulid(now)
        self.move = Move(run, self.session.name, [f"home/{made.point}"], {self.old.name: [self.new]})
        put_note(bench.storage, self.vault.keys, move_key(run, "move"), self.move)

    def commit(self) -> None:
        """Do what is left for the writer to do, after it has looked for a fence."""
        session = Session(self.bench.storage, self.vault.keys, self.session.name)
        commit_move(session, self.bench.storage, self.vault.keys, self.move, now=self.bench.clock())

    def resolve(self) -> Resolved:
        return resolve(self.bench.open(), Silent())

    @property
    def state(self) -> str:
        moves = Moves(self.bench.storage, self.vault.keys)
        return "committed" if moves.committed else "prepared" if moves.prepared else "gone"


@pytest.fixture
def prepared(bench: Bench, tmp_path: Path) -> Prepared:
    return Prepared(bench, tmp_path / "home")


def test_of_a_running_session_a_move_is_left_alone(prepared: Prepared):
    assert prepared.resolve().moves_dropped == 0
    assert prepared.state == "prepared"


def test_of_an_aborted_session_a_move_is_dropped_and_never_counts(prepared: Prepared):
    prepared.session.close("aborted", prepared.bench.clock())
    assert prepared.resolve().moves_dropped == 1
    assert prepared.state == "gone"
    with pytest.raises(SessionFenced):
        prepared.commit()


def test_of_a_fenced_session_a_move_is_committed_in_its_name_byte_for_byte(prepared: Prepared):
    """Its writer may have looked for the fence just before: whether it counts must not hang on when it wakes up."""
    bench = prepared.bench
    fence(bench.storage, prepared.vault.keys, prepared.session.name)
    assert prepared.resolve().moves_dropped == 0
    assert prepared.state == "committed"
    key = move_key(prepared.move.run, "move")
    late = MoveCommit(prepared.move.run, digest_name(bench.storage.get(key)))
    put_note(bench.storage, prepared.vault.keys, move_key(prepared.move.run, "commit"), late)
    assert bench.open().root(prepared.point).needed[0] == prepared.new


def test_of_a_fenced_session_a_move_whose_packs_are_condemned_waits(prepared: Prepared):
    bench = prepared.bench
    fence(bench.storage, prepared.vault.keys, prepared.session.name)
    condemned = f"prune/{new_ulid(bench.clock())}/condemned"
    put_note(bench.storage, prepared.vault.keys, condemned, Names([prepared.new.name]))
    for _ in range(2):  # nor is its session forgotten
        assert prepared.resolve().moves_dropped == 0
        assert prepared.state == "prepared"
    bench.storage.delete([condemned])
    prepared.resolve()
    assert prepared.state == "committed"


def test_of_a_fenced_session_a_move_whose_packs_were_deleted_is_dropped(prepared: Prepared):
    """The prune that deleted them had looked before the move was written, so the writer finds the fence."""
    bench = prepared.bench
    fence(bench.storage, prepared.vault.keys, prepared.session.name)
    bench.storage.delete([f"packs/{prepared.new.name[:2]}/{prepared.new.name}"])
    assert prepared.resolve().moves_dropped == 1
    assert prepared.state == "gone"


def test_a_move_that_is_damaged_is_never_committed_for_its_writer(prepared: Prepared):
    key = move_key(prepared.move.run, "move")
    fence(prepared.bench.storage, prepared.vault.keys, prepared.session.name)
    flip(prepared.bench, key, 10)
    with pytest.raises(IntegrityError, match="forged"):
        prepared.resolve()
    assert not any(stored.key.endswith("/commit") for stored in prepared.bench.storage.scan("moves/"))


def test_a_move_that_is_committed_while_another_looks_is_not_dropped(bench: Bench, tmp_path: Path):
    """The writer commits and ends between any two calls of a resolver that saw the move without its commit."""
    at, calls = 0, 1
    while at < calls:
        at += 1
        own = Bench()
        prepared = Prepared(own, tmp_path / f"home{at}")

        def end(number: int, *, prepared: Prepared = prepared, at: int = at) -> None:
            if number == at:
                prepared.commit()
                prepared.session.close("done", prepared.bench.clock())
                prepared.resolve()  # which forgets how the session ended

        vault = own.open()
        hooked = Hooked(own.storage, end)
        vault.storage = hooked
        resolve(vault, Silent())
        calls = hooked.calls
        assert prepared.state == "committed"
        prepared.resolve()
        assert prepared.state == "committed"


def test_a_session_that_is_fenced_while_another_looks_is_not_forgotten_before_its_move_is_settled(tmp_path: Path):
    """A move is written, its writer sees no fence, the fence comes: wherever that happens, the move is settled."""
    at, calls = 0, 1
    while at < calls:
        at += 1
        own = Bench()
        prepared = Prepared(own, tmp_path / f"home{at}")
        key = move_key(prepared.move.run, "move")
        data = own.storage.get(key)
        own.storage.delete([key])

        def write_and_fence(
            number: int, *, prepared: Prepared = prepared, at: int = at, key: str = key, data: bytes = data
        ) -> None:
            if number == at:
                prepared.bench.storage.put(key, data)
                fence(prepared.bench.storage, prepared.vault.keys, prepared.session.name)

        vault = own.open()
        hooked = Hooked(own.storage, write_and_fence)
        vault.storage = hooked
        resolve(vault, Silent())
        calls = hooked.calls
        prepared.resolve()
        assert prepared.state == "committed"


def test_a_committed_move_goes_with_the_last_of_its_points(prepared: Prepared):
    prepared.commit()
    prepared.session.close("done", prepared.bench.clock())
    assert prepared.resolve().moves_dropped == 0
    end_point(prepared.bench, *prepared.point)
    assert prepared.resolve().moves_dropped == 1
    assert list(prepared.bench.storage.scan("moves/")) == []


def test_what_a_prepared_move_names_counts_as_needed_and_so_does_what_it_is_to_replace(prepared: Prepared):
    """Its writer may commit after a prune has looked, or never."""
    needs = look(prepared.bench.open(), Silent())
    assert {prepared.old.name, prepared.new.name} <= needs.packs.keys()
    assert prepared.new.name not in needs.required
    prepared.commit()
    needs = look(prepared.bench.open(), Silent())
    assert prepared.new.name in needs.required
    assert prepared.old.name not in needs.packs


def test_a_damaged_move_stops_who_writes_also_a_worker_that_joins_and_nobody_who_reads(bench: Bench, tmp_path: Path):
    backed_up(bench, write_files(tmp_path / "home", {"a": b"a" * 500}))
    bench.storage.put("moves/run/move", b"rotten")
    bench.storage.put("moves/run/commit", b"rotten")
    name = bench.open().points()[0]
    for verb in ("restore", "backup"):
        opened = bench.open().open_session(new_ulid(bench.clock()), verb=verb, now=bench.clock(), points=[name])
        worker = bench.open()
        worker.join_session(opened.name)
        if verb == "restore":
            assert worker.root(name).moved == {}
        else:
            with pytest.raises(IntegrityError, match="moves/run"):
                worker.root(name)
    assert bench.open().root(name).moved == {}
