"""Expiries on a bench, and points that cost nothing to make."""

import datetime as dt
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from engine.ids import new_ulid
from engine.point import Body, Expired, PackRef, Stats, encode_root, point_key
from engine.progress import Silent
from engine.session import read_note
from engine.storage import Memory
from engine.vault import PointName
from engine.verbs import expire
from tests.support.vaults import Bench, travelled


def expire_job(bench: Bench, **fields: Any) -> expire.ExpireJob:
    """Return an order to expire."""
    return expire.ExpireJob(run=new_ulid(bench.clock()), started_at=bench.clock(), **fields)


def run_expire(
    bench: Bench, job: expire.ExpireJob, *, between: Callable[[], object] = lambda: None, now: dt.datetime | None = None
) -> expire.Outcome:
    """Do an expiry with a vault of its own for plan and finish; `between` happens after the preview."""
    planner, finisher, silent = bench.open(), bench.open(), Silent()

    def results() -> Iterator[expire.Result]:
        for unit in expire.plan(planner, job, silent, now=now or bench.clock()):
            yield travelled(expire.work(planner, job, travelled(unit), silent))
        between()

    outcome = expire.finish(finisher, job, results(), silent, clock=(lambda: now) if now else bench.clock)
    return travelled(outcome)


def expired(bench: Bench, *, now: dt.datetime | None = None, **fields: Any) -> expire.Outcome:
    """Expire as a fresh process would; `fields` are those of ExpireJob, `now` a clock that stands still."""
    return run_expire(bench, expire_job(bench, **fields), now=now)


def made_point(
    bench: Bench,
    *,
    series: str = "home",
    ended_at: dt.datetime | None = None,
    packs: list[PackRef] | None = None,
    **fields: Any,
) -> PointName:
    """Commit a point without entries; `fields` are those of its Body."""
    vault, now = bench.open(), ended_at or bench.clock()
    session = vault.open_session(new_ulid(now), verb="backup", now=now)
    body = Body(
        vault_id=vault.keys.vault_id, series=series, point=new_ulid(now), session=session.name, kind="files",
        host="host", roots=["/"], started_at=now, ended_at=now, scan_ns=0, profile="general", engine="0",
        stats=Stats(), blocks=[], **fields,
    )  # fmt: skip
    root = encode_root(vault.keys, body, packs or [])
    locked = fields.get("locked_until") if can_lock(bench) else None
    session.commit(root, series=series, point=body.point, now=now, locked_until=locked)
    return PointName(series, body.point)


def can_lock(bench: Bench) -> bool:
    """Say whether the bench's store locks objects."""
    return isinstance(bench.storage, Memory) and bench.storage.describe().object_lock


def visible(bench: Bench, series: str | None = None) -> set[str]:
    """Return the visible points as `<series>/<point>`."""
    return {text(name) for name in bench.open().points(series)}


def text(name: PointName) -> str:
    """Return a point as jobs and outcomes name it."""
    return f"{name.series}/{name.point}"


def parts(bench: Bench, name: PointName) -> set[str]:
    """Return what stands of a point: root, commit, expired."""
    return {stored.key.rpartition("/")[2] for stored in bench.storage.scan(point_key(*name, ""))}


def mark_of(bench: Bench, name: PointName) -> Expired:
    """Return what a point's mark says."""
    vault = bench.open()
    return read_note(vault.storage, vault.keys, point_key(*name, "expired"), Expired)


def sign(bench: Bench, key: str, thing: msgspec.Struct) -> None:
    """Store a control object as somebody who has the keys could."""
    bench.storage.put(key, bench.open().keys.sign(key, msgspec.json.encode(thing)))
