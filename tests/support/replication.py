"""A vault and its replica, and replications between them."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from engine import replica
from engine.ids import FOLDERS, new_ulid
from engine.keyproviders.keyring import Keyring
from engine.progress import Silent
from engine.storage import Memory, Storage
from engine.vault import PointName, Vault
from engine.verbs import replicate
from tests.support.vaults import Bench, contents, travelled


class Replica(Bench):
    """The replica of another bench's vault, in a storage of its own, with a key of its own and the source's clock."""

    def __init__(self, source: Bench, storage: Storage | None = None, *, cache: Path | None = None) -> None:
        self.storage = storage if storage is not None else Memory()
        self.source = source
        self.clock = source.clock
        self.ring = Keyring.generate()
        self.recovery = source.recovery
        self.cache = cache
        replica.link(source.open(), self.storage, providers=[self.ring], name="far away", now=self.clock())

    def open(self) -> Vault:
        vault = super().open()
        vault.other = self.source.storage
        return vault

    def beside(self, source: Bench) -> "Replica":
        """Return the same replica, following the source through another bench."""
        other = copy.copy(self)
        other.source = source
        return other

    def pair(self) -> "Replica":
        """Return a copy of both vaults, each with everything that is stored."""
        twin = self.twin()
        assert isinstance(twin, Replica)
        twin.source = self.source.twin()
        twin.clock = twin.source.clock
        return twin


def replicate_job(target: Replica, **fields: Any) -> replicate.ReplicateJob:
    """Return an order with a fresh session."""
    return replicate.ReplicateJob(session=new_ulid(target.clock()), started_at=target.clock(), **fields)


def replicated(target: Replica, **fields: Any) -> replicate.Outcome:
    """Replicate as fresh processes would: units and results travel as bytes while the plan goes on."""
    job = replicate_job(target, **fields)
    planner, worker, finisher, silent = target.open(), target.open(), target.open(), Silent()

    def results() -> Iterator[replicate.Result]:
        for unit in replicate.plan(planner, job, silent, now=target.clock()):
            yield travelled(replicate.work(worker, job, travelled(unit), silent))

    return travelled(replicate.finish(finisher, job, results(), silent, clock=target.clock))


def everything(bench: Bench) -> dict[PointName, dict[bytes, bytes]]:
    """Return the whole content of every visible point, read as a fresh process would without its source."""
    vault = bench.open()
    vault.other = None
    return {name: contents(vault, name) for name in vault.points()}


def packs(bench: Bench) -> set[str]:
    """Return the names of all packs in the bucket."""
    return {s.key.rpartition("/")[2] for folder in FOLDERS for s in bench.storage.scan(f"{folder}/")}
