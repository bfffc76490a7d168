"""Where a job's order, units and results lie while it runs: staging/<job>/<round>/ in the vault's own storage.

Only the vault's bucket is reachable from every worker, so what does not fit into a row travels through it. Free to
delete once the job has ended. Each object is sealed with the vault's keys: paths never lie there in the clear.
"""

import contextlib
import uuid
from collections.abc import Iterator
from typing import TypeVar

import msgspec

from engine.codec import Purpose, seal, unseal
from engine.vault import Vault

T = TypeVar("T", bound=msgspec.Struct)
PREFIX = "staging/"
DELETE_MANY = 500
RESULTS_READ = 200


class Staging:
    """The staging area of one round of a job. Every put may be repeated: the same step writes the same key."""

    def __init__(self, vault: Vault, job_id: object, round_: int) -> None:
        self._vault = vault
        self._prefix = f"{prefix(job_id)}{round_}/"

    def put_order(self, order: msgspec.Struct) -> None:
        self._put("order", order)

    def order(self, kind: type[T]) -> T:
        return self._get("order", kind)

    def put_unit(self, number: int, unit: msgspec.Struct) -> None:
        self._put(f"units/{number:08d}", unit)

    def unit(self, number: int, kind: type[T]) -> T:
        return self._get(f"units/{number:08d}", kind)

    def put_result(self, number: int, result: msgspec.Struct) -> None:
        self._put(f"results/{number:08d}", result)

    def results(self, count: int, kind: type[T]) -> Iterator[T]:
        """Yield the results of all units in order. Raises NotFound when one is missing."""
        for number in range(count):
            yield self._get(f"results/{number:08d}", kind)

    def results_there(self, kind: type[T]) -> Iterator[T]:
        """Yield the results of the first units that have one: a job that did not finish may lack any of them."""
        start = f"{self._prefix}results/"
        for _, stored in zip(range(RESULTS_READ), self._vault.storage.scan(start), strict=False):
            yield self._get(stored.key.removeprefix(self._prefix), kind)

    def _put(self, name: str, value: msgspec.Struct) -> None:
        key = self._prefix + name
        data = msgspec.msgpack.encode(value)
        self._vault.storage.put(key, seal(self._vault.keys, Purpose.STAGED, data, context=key.encode()))

    def _get(self, name: str, kind: type[T]) -> T:
        key = self._prefix + name
        data = unseal(self._vault.keys, Purpose.STAGED, self._vault.storage.get(key), context=key.encode())
        return msgspec.msgpack.decode(data, type=kind)


def prefix(job_id: object) -> str:
    """Return the prefix of all rounds of a job."""
    return f"{PREFIX}{job_id}/"


def job_ids(vault: Vault) -> list[uuid.UUID]:
    """Return the jobs that have something in the staging area."""
    found: set[uuid.UUID] = set()
    for stored in vault.storage.scan(PREFIX):
        with contextlib.suppress(ValueError):
            found.add(uuid.UUID(stored.key.removeprefix(PREFIX).partition("/")[0]))
    return sorted(found)


def remove(vault: Vault, job_id: object) -> None:
    """Delete everything that the job's rounds left. Safe to call twice."""
    keys = [stored.key for stored in vault.storage.scan(prefix(job_id))]
    for start in range(0, len(keys), DELETE_MANY):
        vault.storage.delete(keys[start : start + DELETE_MANY])
