"""Streams as sources: read once from the front, kept only when their end was proven."""

from collections.abc import Iterator

import pytest

from engine.entries import Entry, Problem
from engine.errors import SourceIncomplete, SourceUnavailable
from engine.ids import new_ulid
from engine.progress import Silent
from engine.session import open_sessions
from engine.sources.port import STREAM_BYTES, STREAM_NS, BaseSource, Identity
from engine.sources.stream import StreamReader, stream_entry
from engine.verbs import backup
from tests.support.runs import Stopping
from tests.support.vaults import Bench, contents, entries


class Tape:
    """A producer of bytes that lie ready; `at_once` bytes a call."""

    def __init__(self, data: bytes, *, at_once: int = 1 << 20, error: Exception | None = None) -> None:
        self._data, self._at_once, self._error = data, at_once, error
        self.closed = 0

    def readinto(self, view: memoryview) -> int:
        count = min(len(view), self._at_once, len(self._data))
        if not count and self._error:
            raise self._error
        view[:count] = self._data[:count]
        self._data = self._data[count:]
        return count

    def close(self) -> None:
        self.closed += 1
        if self._error:
            raise OSError("and it can't be closed either")


class TapeSource(BaseSource, frozen=True, kw_only=True):
    """One stream of each name. `proofs` are the answers to whether the end was the true one, one for each reading."""

    streams: dict[str, bytes]
    proofs: list[object] = []
    error: Exception | None = None

    def identity(self) -> Identity:
        return Identity("tape", "host", ["tape"])

    def check(self) -> None: ...

    def walk(self) -> Iterator[Entry | Problem]:
        for name in sorted(self.streams):
            yield stream_entry(name.encode())

    def open(self, entry: Entry) -> StreamReader | Problem:
        def prove() -> bool | None:
            proof = self.proofs.pop(0) if self.proofs else None
            if isinstance(proof, Exception):
                raise proof
            return bool(proof)

        return StreamReader(entry, Tape(self.streams[entry.path.decode()], error=self.error), prove)


def job(bench: Bench, source: TapeSource) -> backup.BackupJob:
    return backup.BackupJob(
        session=new_ulid(bench.clock()), series="tape", source=source, started_at=bench.clock()  # type: ignore[arg-type] # any source does
    )  # fmt: skip


def run_in_place(bench: Bench, order: backup.BackupJob) -> backup.Outcome:
    """Back up without sending units anywhere: a tape does not travel."""
    vault, silent = bench.open(), Silent()
    results = (backup.work(vault, order, unit, silent) for unit in backup.plan(vault, order, silent, now=bench.clock()))
    return backup.finish(vault, order, results, silent, clock=bench.clock)


def test_a_stream_is_walked_without_a_size_and_opened_without_an_end() -> None:
    entry = stream_entry(b"dump.sql")
    assert (entry.size, entry.mtime_ns, entry.mode) == (0, STREAM_NS, 0o600)
    with StreamReader(entry, Tape(b"abc"), lambda: None) as reader:
        assert reader.entry.size == STREAM_BYTES
        (span,) = reader.spans(0, STREAM_BYTES)
        assert (span.offset, span.length, span.hole) == (0, STREAM_BYTES, False)
        view = memoryview(bytearray(10))
        assert reader.readinto(view[:2], 0) == 2
        assert reader.readinto(view, 2) == 1
        assert reader.readinto(view, 3) == 0
        assert reader.changed() is False


def test_a_stream_is_never_read_at_another_place_than_where_it_stands() -> None:
    reader = StreamReader(stream_entry(b"dump"), Tape(b"abc"), lambda: None)
    reader.readinto(memoryview(bytearray(1)), 0)
    for offset in (0, 2, 17):
        with pytest.raises(SourceIncomplete, match="stands at 1"):
            reader.readinto(memoryview(bytearray(1)), offset)


def test_the_first_error_is_the_one_that_is_told_and_the_producer_is_closed() -> None:
    tape = Tape(b"", error=SourceUnavailable("the server went away"))
    with pytest.raises(SourceUnavailable, match="went away"):
        with StreamReader(stream_entry(b"dump"), tape, lambda: None) as reader:
            reader.readinto(memoryview(bytearray(1)), 0)
    assert tape.closed == 1
    with pytest.raises(OSError, match="can't be closed"):
        with StreamReader(stream_entry(b"dump"), tape, lambda: None):
            pass


def test_streams_become_files_of_their_true_size_made_when_the_backup_began() -> None:
    bench = Bench()
    data = {"a": b"", "b": b"short", "c": bytes(range(256)) * 40_000}
    order = job(bench, TapeSource(streams=data))
    outcome = run_in_place(bench, order)
    (name,) = bench.open().points("tape")
    assert outcome.state == "complete"
    assert contents(bench.open(), name) == {path.encode(): content for path, content in data.items()}
    rows = list(entries(bench.open(), name))
    assert [row.size for row in rows] == [0, 5, 256 * 40_000]
    assert {row.mtime_ns for row in rows} == {int(order.started_at.timestamp() * 1e9)}


def test_a_stream_is_read_again_by_every_backup_and_stored_once() -> None:
    bench = Bench()
    source = TapeSource(streams={"dump": bytes(range(256)) * 20_000})
    first, second = (run_in_place(bench, job(bench, source)) for _ in range(2))
    assert first.stats.bytes_read == second.stats.bytes_read == 256 * 20_000
    assert (second.stats.bytes_new, second.stats.entries_read) == (0, 1)


def test_each_stream_is_a_unit_of_its_own_so_that_workers_read_them_side_by_side() -> None:
    bench = Bench()
    order = job(bench, TapeSource(streams={"a": b"1", "b": b"2", "c": b"3"}))
    units = list(backup.plan(bench.open(), order, Silent(), now=bench.clock()))
    assert [len(unit.todo) for unit in units] == [1, 1, 1, 0]


@pytest.mark.parametrize("proof", [SourceIncomplete("no marker"), SourceUnavailable("gone")])
def test_an_end_that_is_not_proven_leaves_no_point_and_no_open_session(proof: Exception) -> None:
    bench = Bench()
    order = job(bench, TapeSource(streams={"a": b"fine", "b": b"half"}, proofs=[None, proof]))
    with pytest.raises(type(proof)):
        run_in_place(bench, order)
    assert bench.open().points() == []
    assert open_sessions(bench.storage) == []


def test_an_error_in_the_middle_leaves_no_point() -> None:
    bench = Bench()
    source = TapeSource(streams={"a": b"x" * 9_000_000}, error=SourceUnavailable("connection reset"))
    with pytest.raises(SourceUnavailable, match="connection reset"):
        run_in_place(bench, job(bench, source))
    assert bench.open().points() == []


def test_a_stream_that_saw_a_change_is_read_once_more_and_told_when_it_happens_again() -> None:
    bench = Bench()
    calm = run_in_place(bench, job(bench, TapeSource(streams={"a": b"rows"}, proofs=[True, None])))
    assert (calm.state, calm.problems) == ("complete", [])
    busy = run_in_place(bench, job(bench, TapeSource(streams={"a": b"rows"}, proofs=[True, True])))
    assert (busy.state, [(one.reason, one.lost) for one in busy.problems]) == ("complete", [("changed", False)])
    assert busy.stats.bytes_read == 8


def test_a_slow_stream_can_be_stopped_between_any_two_reads() -> None:
    bench = Bench()
    source = TapeSource(streams={"a": b"x" * 3_000_000})
    order, counting = job(bench, source), Stopping()
    vault = bench.open()
    (unit, _) = backup.plan(vault, order, counting, now=bench.clock())
    before = counting.checks
    backup.work(vault, order, unit, counting)
    assert counting.checks - before >= 4  # one for each read of the tape, far less than a window
