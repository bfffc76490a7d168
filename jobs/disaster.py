"""From a bucket alone to a control plane: find its vaults, open them, make the rows anew (engine invariant 23)."""

import contextlib
import datetime as dt
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from django.contrib.auth import get_user_model
from django.db import IntegrityError, connections, models, transaction
from django.db.utils import load_backend

from accounts.models import Account, Member
from accounts.refusals import Refused
from accounts.services import SERVICE, record
from engine import rotation, system
from engine.errors import EngineError, WrongKey
from engine.ids import new_ulid
from engine.keyproviders.keyring import RecoveryKey
from engine.keyproviders.port import KeyProvider
from engine.progress import Progress
from engine.storage.location import Location, open_storage
from engine.storage.port import Storage
from engine.system import Found
from engine.vault import INFO_KEY, PointName
from engine.vault import Vault as EngineVault
from engine.verbs import rebuild
from engine.verbs.hold import holds
from engine.verbs.rebuild import Outcome, RebuildJob, Row
from jobs import scratch
from jobs import system as rows
from jobs.models import Job
from jobs.states import Kind
from jobs.system import TABLES, Tables
from vaults import catalogue, repositories
from vaults.models import KeyProvider as Providers
from vaults.models import RecoveryPoint, Vault

VAULTS = "vaults/"
SCRATCH: tuple[type[models.Model], ...] = (*TABLES, Member, RecoveryPoint)
Clock = Callable[[], dt.datetime]


class DatabaseTaken(Refused):
    """Other rows stand in the way."""

    code = "database_taken"


class NothingFound(Refused):
    """There is no vault that the keys open."""

    code = "nothing_found"


@dataclass
class Recovered:
    """One vault of the bucket, read: its points, its newest export, what is damaged. `place` is its address."""

    place: Location
    opened: EngineVault
    provider: KeyProvider
    outcome: Outcome
    found: Found | None


@dataclass
class Rebuilt:
    """What a rebuild of the control plane did. `closed` are vaults that none of the keys opens."""

    vaults: int = 0
    rows: int = 0
    points: int = 0
    closed: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def places(location: Location) -> Iterator[Location]:
    """Yield the addresses of the vaults at a region's address, or the one that is a vault's itself."""
    storage = open_storage(location)
    if _has(storage, INFO_KEY):
        yield location
        return
    after = ""
    while (stored := next(iter(storage.scan(VAULTS, after=after)), None)) is not None:
        name = stored.key.split("/")[1]
        # Past everything below the folder: "0" is the character behind "/".
        after = f"{VAULTS}{name}0"
        if _has(storage, f"{VAULTS}{name}/{INFO_KEY}"):
            yield _below(location, f"{VAULTS}{name}")


def _has(storage: Storage, key: str) -> bool:
    return any(stored.key == key for stored in storage.scan(key))


def _below(location: Location, prefix: str) -> Location:
    fields = {name: getattr(location, name) for name in location.__struct_fields__}
    return Location(**fields | {"url": f"{location.url.rstrip('/')}/{prefix}"})


def recover(place: Location, keys: Sequence[KeyProvider], *, progress: Progress, clock: Clock) -> Recovered:
    """Open a vault with the first key that fits, mend its index, read its points. Raises WrongKey when none fits."""
    problem: EngineError = WrongKey("none of the keys opens this vault")
    for provider in keys:
        try:
            opened = EngineVault.open(open_storage(place), provider=provider)
        except WrongKey as error:
            problem = error
            continue
        job = RebuildJob(session=new_ulid(clock()), started_at=clock())
        results = (
            rebuild.work(opened, job, unit, progress) for unit in rebuild.plan(opened, job, progress, now=clock())
        )
        outcome = rebuild.finish(opened, job, results, progress, clock=clock)
        return Recovered(place, opened, provider, outcome, system.newest(opened.storage, opened.keys))
    raise problem


def restore(
    location: Location, keys: Sequence[KeyProvider], *, resume: bool, progress: Progress, clock: Clock
) -> Rebuilt:
    """Make the rows of every vault at `location` that one of `keys` opens. Rows that are there already stay.

    Everything is read first and stored in one transaction: a crash leaves the database as it was. The service's key
    is let into vaults that only another key opens. Raises NothingFound, DatabaseTaken, and what the store raises.
    """
    result = Rebuilt()
    read: list[Recovered] = []
    for place in places(location):
        try:
            read.append(recover(place, keys, progress=progress, clock=clock))
        except WrongKey:
            result.closed.append(place.url)
    if not any(one.found for one in read):
        _nothing(location, read, result)
    try:
        with transaction.atomic():
            _store(read, result, resume=resume, now=clock())
            _reach(location, read, result)
            for account in {Vault.objects.get(pk=one.found.export.vault).account for one in read if one.found}:
                record(SERVICE, "system.rebuild", account, account=account, now=clock(), url=location.url)
    except IntegrityError as error:
        raise DatabaseTaken(
            f"Rows of the database have the names of rows in the bucket, and other ids: {error}. "
            "Rebuild into an empty database."
        ) from error
    for one in read:
        _admit(one, now=clock())
    return result


def _nothing(location: Location, read: list[Recovered], result: Rebuilt) -> None:
    if result.closed and not read:
        raise NothingFound(f"None of the keys opens {', '.join(result.closed)}. Give the recovery key of the vault.")
    if read:
        raise NothingFound(
            f"No vault at {location.url} holds a readable export of the control plane. Its points are whole: make the "
            "region and the sources by hand, or restore with `python -m engine restore`."
        )
    raise NothingFound(f"There is no vault at {location.url}. Give the address of a region or of a vault.")


def _store(read: list[Recovered], result: Rebuilt, *, resume: bool, now: dt.datetime) -> None:
    exports = [one.found.export for one in read if one.found]
    stored = rows.restore(exports, now=now, resume=resume)
    result.rows = len(stored)
    for one in read:
        result.problems += [f"{broken.object}: {broken.detail}" for broken in one.outcome.broken]
        if one.found is None:
            result.problems.append(f"{one.place.url} holds no readable export: its points are not in the catalogue")
            continue
        result.problems += one.found.problems
        vault = Vault.objects.get(pk=one.found.export.vault)
        if f"{Vault._meta.label_lower} {vault.pk}" in stored or not vault.points.exists():
            result.points += adopt(vault, one.opened, one.outcome.rows, now=now)
            rows.hold_again(one.found.export)
        result.vaults += 1


def adopt(vault: Vault, opened: EngineVault, points: Sequence[Row], *, now: dt.datetime) -> int:
    """Store the rows of a vault's points and tell which are held; return how many there are."""
    for row in points:
        catalogue.register(vault, row, now=now)
    catalogue.note_policy(vault, opened.lock_policy)
    catalogue.mark_held(vault, {held.name: held.hold for held in holds(opened)}, now=now)
    return len(points)


def _reach(location: Location, read: list[Recovered], result: Rebuilt) -> None:
    """Let a region whose bucket lies elsewhere now be reached where it was just read."""
    for one in read:
        if one.found is None:
            continue
        vault = Vault.objects.select_related("region").get(pk=one.found.export.vault)
        region = vault.region
        kept = repositories.location(region, prefix=vault.prefix)
        if (kept.url, kept.endpoint) == (one.place.url, one.place.endpoint):
            continue
        if not one.place.url.endswith(f"/{vault.prefix}"):
            result.problems.append(f"{vault} was read at {one.place.url}, and its region {region} says {kept.url}")
            continue
        region.url, region.endpoint = one.place.url.removesuffix(f"/{vault.prefix}"), location.endpoint
        region.path_style, region.tls_verify = location.path_style, location.tls_verify
        region.ca_file, region.store_region = location.ca_file, location.region if location.is_s3 else ""
        repositories.seal_credentials(region, {"access_key": location.access_key, "secret_key": location.secret_key})
        region.save()


def _admit(one: Recovered, *, now: dt.datetime) -> None:
    """Let the service's key open the vault too; nothing is rewritten but the small set of wrapped keys."""
    if one.found is None:
        return
    vault = Vault.objects.select_related("region").get(pk=one.found.export.vault)
    if vault.key_provider != Providers.KEYRING or one.provider.name != RecoveryKey.name:
        return
    ring = repositories.keyring()
    if not rotation.opens(one.opened.storage, ring):
        rotation.rotate(one.opened, one.provider, now=now, add=[ring])


def compare(vault: Vault, opened: EngineVault, points: Sequence[Row], found: Found, *, now: dt.datetime) -> list[str]:
    """Rebuild the vault's account from its export, and the vault's points, into a scratch database; compare with ours.

    What changes meanwhile is no difference: a row counts only when it differs from what it was before and from what it
    is afterwards, and points that came or went since they were read are left to the next check.
    """
    before = _live(vault)
    visible = set(opened.points())
    steady = [row for row in points if PointName(row.series, row.point) in visible]
    with scratch_database() as alias:
        rows.restore([found.export], now=now, resume=True, using=alias)
        copy = Vault.objects.using(alias).get(pk=vault.pk)
        adopt(copy, opened, steady, now=now)
        rows.hold_again(found.export, using=alias)
        made = rows.tables_of(Account.objects.using(alias).get(pk=vault.account_id), using=alias)
        made[rows.HOLDS] = [row for row in made[rows.HOLDS] if row["vault"] == str(vault.pk)]
        made[rows.POINT] = rows.rows_of(copy.points.all())
    came = visible - {PointName(row.series, row.point) for row in points}
    busy = {
        str(pk) for pk in Job.objects.active().filter(vault=vault, kind=Kind.BACKUP).values_list("source", flat=True)
    }
    texts = [set(rows.differences(_without(one, came), _only_known(made, one, busy))) for one in (before, _live(vault))]
    return sorted(texts[0] & texts[1])


def _live(vault: Vault) -> Tables:
    """Return what a rebuild of this vault should make."""
    tables = rows.tables_of(vault.account)
    tables[rows.HOLDS] = [row for row in tables[rows.HOLDS] if row["vault"] == str(vault.pk)]
    tables[rows.POINT] = rows.rows_of(vault.points.all())
    return tables


def _without(tables: Tables, came: set[PointName]) -> Tables:
    kept = [row for row in tables[rows.POINT] if PointName(row["series"], row["point_id"]) not in came]
    return tables | {rows.POINT: kept}


def _only_known(made: Tables, live: Tables, busy: set[str]) -> Tables:
    """Leave out points of sources that are backed up right now, and whose row is about to be stored."""
    known = {(row["series"], row["point_id"]) for row in live[rows.POINT]}
    kept = [row for row in made[rows.POINT] if row["series"] not in busy or (row["series"], row["point_id"]) in known]
    return made | {rows.POINT: kept}


@contextlib.contextmanager
def scratch_database() -> Iterator[str]:
    """Have an empty SQLite database with the tables of a rebuild inside the block; give its alias."""
    alias = f"scratch-{uuid.uuid4().hex}"
    with scratch.folder("disaster") as path:
        configured = connections.configure_settings({"default": {}, alias: _sqlite(path / "rows.sqlite3")})[alias]
        # For this thread alone: nobody else ever sees the scratch database.
        connections[alias] = load_backend(configured["ENGINE"]).DatabaseWrapper(configured, alias)
        try:
            with connections[alias].schema_editor() as editor:
                for model in (get_user_model(), *SCRATCH):
                    editor.create_model(model)
            yield alias
        finally:
            connections[alias].close()
            del connections[alias]


def _sqlite(path: Path) -> dict[str, Any]:
    return {"ENGINE": "django.db.backends.sqlite3", "NAME": str(path)}
