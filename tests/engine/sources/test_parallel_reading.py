"""One tree read by several workers at once: each reads its own units and nothing else (E8, the CPFS row)."""

import contextlib
import datetime as dt
import itertools
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from engine.chunker import PART_BYTES
from engine.entries import Entry, Problem
from engine.ids import new_ulid
from engine.keyproviders.keyring import Keyring
from engine.keyproviders.spec import KeySpec
from engine.progress import Silent
from engine.runner import VaultOpener, run
from engine.sources.files import FilesSource
from engine.sources.reading import FileReader
from engine.storage.location import Location, open_storage
from engine.vault import Vault
from engine.verbs import backup, cutter
from tests.support.vaults import contents, on_disk, write_files


class RecordingReader(FileReader):
    """A reader that tells what it reads."""

    def __init__(self, source: "RecordedSource", inner: FileReader) -> None:
        self._source, self._inner = source, inner
        self.entry = inner.entry

    def __exit__(self, *exc: object) -> None:
        self._inner.__exit__(*exc)

    def spans(self, start: int, end: int) -> list[Any]:
        return self._inner.spans(start, end)

    def changed(self) -> bool:
        return self._inner.changed()

    def readinto(self, view: memoryview, offset: int) -> int:
        count = self._inner.readinto(view, offset)
        if count:
            self._source.note(read=os.fsdecode(self.entry.path), at=offset, end=offset + count)
        return count


class RecordedSource(FilesSource, frozen=True, tag="recorded", kw_only=True, dict=True):
    """A files source that writes down, per process, which unit it was given and which bytes it read."""

    log: str

    def note(self, **line: object) -> None:
        with open(os.path.join(self.log, str(os.getpid())), "a") as file:
            file.write(json.dumps(line) + "\n")

    def expect(self, entries: Sequence[Entry]) -> None:
        self.note(unit=[os.fsdecode(entry.path) for entry in entries])
        super().expect(entries)

    def read_small(self, entry: Entry, limit: int) -> tuple[Entry, bytes] | Problem | None:
        found = super().read_small(entry, limit)
        if isinstance(found, tuple):
            self.note(read=os.fsdecode(entry.path), at=0, end=len(found[1]))
        return found

    def open(self, entry: Entry) -> FileReader | Problem:
        opened = super().open(entry)
        return opened if isinstance(opened, Problem) else RecordingReader(self, opened)


def now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


@pytest.fixture
def opener(tmp_path: Path) -> VaultOpener:
    location = Location.parse(str(tmp_path / "vault"))
    ring = Keyring.generate()
    Vault.create(open_storage(location, create=True), providers=[ring], now=now())
    return VaultOpener(location=location, key=KeySpec.parse("keyring:", secret=ring.text()))


@contextlib.contextmanager
def units_of(monkeypatch: pytest.MonkeyPatch, *, bytes_each: int, part: int) -> Iterator[None]:
    """Let the planner, which is in this process, cut small units."""
    monkeypatch.setattr(cutter, "UNIT_BYTES", bytes_each)
    monkeypatch.setattr(cutter, "PART_BYTES", part)
    yield
    monkeypatch.undo()


def logs(folder: Path) -> dict[str, list[dict[str, Any]]]:
    return {path.name: [json.loads(line) for line in path.read_text().splitlines()] for path in folder.iterdir()}


def back_up(opener: VaultOpener, share: Path, log: Path, *, walkers: int) -> backup.Outcome:
    log.mkdir()
    source = RecordedSource(roots=(os.fsencode(share),), host="h", log=str(log), walkers=walkers)
    job = backup.BackupJob(session=new_ulid(now()), series="home", source=source, started_at=now())
    return run(opener, backup, job, workers=2, progress=Silent(), clock=now)


def assert_each_reads_its_own(kept: dict[str, list[dict[str, Any]]]) -> dict[str, list[tuple[int, int]]]:
    """Assert that workers read of their units only and no byte twice; return file -> what was read, sorted."""
    ranges: dict[str, list[tuple[int, int]]] = {}
    for lines in kept.values():
        unit: list[str] = []
        for line in lines:
            unit = line.get("unit", unit)
            if "read" in line:
                assert line["read"] in unit
                ranges.setdefault(line["read"], []).append((line["at"], line["end"]))
    for spans in ranges.values():
        spans.sort()
        assert all(end <= at for (_, end), (at, _) in itertools.pairwise(spans))
    return ranges


@pytest.mark.rule("E8")
@pytest.mark.parametrize("walkers", [1, 4])
def test_workers_share_one_tree_and_each_reads_only_its_units(
    tmp_path: Path, opener: VaultOpener, monkeypatch: pytest.MonkeyPatch, walkers: int
) -> None:
    files = {f"d{n % 5}/f{n:03}": os.urandom(30_000 + n) for n in range(120)} | {"d2/big": os.urandom(9 << 20)}
    share = write_files(tmp_path / "share", files)
    with units_of(monkeypatch, bytes_each=200_000, part=1 << 20):
        outcome = back_up(opener, share, tmp_path / "log", walkers=walkers)
    kept = logs(tmp_path / "log")
    assert len(kept) == 2
    assert str(os.getpid()) not in kept
    ranges = assert_each_reads_its_own(kept)
    assert len(ranges) == 121
    assert outcome.stats.bytes_read == sum(len(data) for data in files.values())
    assert sum(end - at for spans in ranges.values() for at, end in spans) == outcome.stats.bytes_read
    readers = [pid for pid, lines in kept.items() if any(line.get("read", "").endswith("/big") for line in lines)]
    assert len(readers) == 2
    vault = opener.open()
    (name,) = vault.points("home")
    assert contents(vault, name, below=share) == on_disk(share)


@pytest.mark.rule("E8")
def test_a_file_over_256_mib_is_read_in_parts(tmp_path: Path, opener: VaultOpener) -> None:
    share = tmp_path / "share"
    share.mkdir()
    size = 2 * PART_BYTES + 4096
    with open(share / "huge", "wb") as file:
        for at in (0, PART_BYTES - 2048, 2 * PART_BYTES + 100):
            os.pwrite(file.fileno(), os.urandom(3000), at)
        file.truncate(size)
    outcome = back_up(opener, share, tmp_path / "log", walkers=1)
    kept = logs(tmp_path / "log")
    units = [line["unit"] for lines in kept.values() for line in lines if "unit" in line]
    huge = os.fsdecode(os.fsencode(share / "huge").strip(b"/"))
    assert units.count([huge]) == 3
    assert len(kept) == 2
    assert_each_reads_its_own(kept)
    assert outcome.stats.bytes == size
