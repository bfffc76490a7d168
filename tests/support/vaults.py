"""Vaults to test with: made in memory, filled through plan -> work -> finish in this process, read back whole."""

import copy
import datetime as dt
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from engine.entries import Entry, Kind
from engine.ids import new_ulid
from engine.keyproviders.keyring import Keyring
from engine.progress import Silent
from engine.session import LEASE_S
from engine.sources.files import files_source
from engine.sources.kinds import AnySource
from engine.storage import Memory, Storage
from engine.vault import PointName, Vault
from engine.verbs import backup, prune, rebuild, verify

T = TypeVar("T")
START = dt.datetime(2031, 5, 6, 7, 8, 9, tzinfo=dt.UTC)


class Clock:
    """A clock that moves one second at every look; so far ahead that no file of a test is racily clean."""

    def __init__(self, start: dt.datetime = START) -> None:
        self.time = start

    def __call__(self) -> dt.datetime:
        self.time += dt.timedelta(seconds=1)
        return self.time


class Bench:
    """One vault in a storage, with its keys, a clock and a folder of index copies (or none)."""

    def __init__(self, storage: Storage | None = None, *, cache: Path | None = None) -> None:
        self.storage = storage if storage is not None else Memory()
        self.clock = Clock()
        self.ring = Keyring.generate()
        self.cache = cache
        _, self.recovery = Vault.create(self.storage, providers=[self.ring], now=self.clock())

    def open(self) -> Vault:
        """Open the vault anew, as another process would."""
        return Vault.open(self.storage, provider=self.ring, cache=self.cache)

    def back_up(self, folder: Path, *, series: str = "home", deep: bool = False) -> backup.Outcome:
        """Back up `folder` as one more point of `series`; units and results travel as bytes, as between machines."""
        return self.back_up_from(files_source([str(folder)], host="host"), series=series, deep=deep)

    def back_up_from(self, source: AnySource, *, series: str = "home", deep: bool = False) -> backup.Outcome:
        """Back up any source likewise."""
        job = backup.BackupJob(
            session=new_ulid(self.clock()), series=series, source=source, started_at=self.clock(), deep=deep
        )
        planner, worker, silent = self.open(), self.open(), Silent()
        results = [
            travelled(backup.work(worker, job, travelled(unit), silent))
            for unit in backup.plan(planner, job, silent, now=self.clock())
        ]
        return backup.finish(planner, job, results, silent, clock=self.clock)

    def twin(self) -> "Bench":
        """Return a bench on a copy of everything stored, with a clock of its own; write-once is asserted anew."""
        other = self.over(Memory())
        other.clock = Clock(self.clock.time)
        for key, data in self.objects().items():
            other.storage.put(key, data)
        return other

    def over(self, storage: Storage) -> "Bench":
        """Return the same bench on another store, such as its own behind a wrapper."""
        other = copy.copy(self)
        other.storage = storage
        return other

    def objects(self) -> dict[str, bytes]:
        """Return every object of the bucket."""
        return {stored.key: self.storage.get(stored.key) for stored in self.storage.scan("")}


def travelled(thing: T) -> T:
    """Return what arrives when a unit or result is sent to another process."""
    return msgspec.msgpack.decode(msgspec.msgpack.encode(thing), type=type(thing))


def write_files(folder: Path, files: Mapping[str, bytes]) -> Path:
    """Write files below `folder`, which is made; return it."""
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def entries(vault: Vault, name: PointName) -> Iterator[Entry]:
    """Yield the whole listing of a point."""
    root = vault.root(name)
    fetcher = vault.fetcher(root)
    for block in root.body.blocks:
        yield from fetcher.entries(block)


def contents(vault: Vault, name: PointName, *, below: Path | None = None) -> dict[bytes, bytes]:
    """Return path -> content of every file of a point, read chunk by chunk; paths are relative to `below`."""
    fetcher = vault.fetcher(vault.root(name))
    cut = len(os.fsencode(below)) if below is not None else 0
    files = [entry for entry in entries(vault, name) if entry.kind == Kind.FILE]
    ids = list({extent.id for entry in files for extent in entry.extents if extent.id})
    chunks = dict(zip(ids, fetcher.chunks(ids), strict=True))
    return {e.path[cut:]: b"".join(chunks[x.id] if x.id else bytes(x.length) for x in e.extents) for e in files}


def on_disk(folder: Path) -> dict[bytes, bytes]:
    """Return path (relative) -> content of every file below a folder, in the shape of `contents(..., below=folder)`."""
    return {
        os.fsencode(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def verified(bench: Bench, level: verify.Level, **options: Any) -> verify.Outcome:
    """Verify a bench's vault as a fresh process would; `options` are those of VerifyJob."""
    job = verify.VerifyJob(session=new_ulid(bench.clock()), level=level, started_at=bench.clock(), **options)
    planner, worker, silent = bench.open(), bench.open(), Silent()
    results = (
        travelled(verify.work(worker, job, travelled(unit), silent))
        for unit in verify.plan(planner, job, silent, now=bench.clock())
    )
    return verify.finish(planner, job, results, silent, clock=bench.clock)


def rebuilt(bench: Bench) -> rebuild.Outcome:
    """Rebuild catalogue and index of a bench's vault as a fresh process would."""
    job = rebuild.RebuildJob(session=new_ulid(bench.clock()), started_at=bench.clock())
    planner, worker, silent = bench.open(), bench.open(), Silent()
    results = (
        travelled(rebuild.work(worker, job, travelled(unit), silent))
        for unit in rebuild.plan(planner, job, silent, now=bench.clock())
    )
    return rebuild.finish(planner, job, results, silent, clock=bench.clock)


def pruned(bench: Bench, *, dry_run: bool = False, lease_s: int = LEASE_S) -> prune.Outcome:
    """Prune a bench's vault as a fresh process would."""
    job = prune.PruneJob(run=new_ulid(bench.clock()), started_at=bench.clock(), dry_run=dry_run, lease_s=lease_s)
    planner, worker, finisher, silent = bench.open(), bench.open(), bench.open(), Silent()
    results = [
        travelled(prune.work(worker, job, travelled(unit), silent))
        for unit in prune.plan(planner, job, silent, now=bench.clock())
    ]
    return prune.finish(finisher, job, results, silent, clock=bench.clock)


def flip(bench: Bench, key: str, at: int, *, mask: int = 1) -> None:
    """Change one bit of a stored object behind the engine's back."""
    data = bytearray(bench.storage.get(key))
    data[at] ^= mask
    replace(bench, key, bytes(data))


def replace(bench: Bench, key: str, data: bytes) -> None:
    """Put other bytes in the place of a stored object, as rot or a foreign hand would."""
    assert isinstance(bench.storage, Memory)
    bench.storage.write_once, before = False, bench.storage.write_once
    bench.storage.put(key, data)
    bench.storage.write_once = before
