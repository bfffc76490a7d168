"""Metering: one row of usage per day, meter and subject, made by a sweep once the day (UTC) is over.

Two halves. What rows tell (points, hosts, jobs) is metered account by account. What only a store can tell is looked at
by a worker of its region, vault by vault. A row that is there is never changed, so to meter a day again, or by
two sweeps at once, changes nothing. A day that nobody metered is made up: flows from the jobs that ended on it, levels
from the last metered day or what is known now, and those rows say that they are estimated.
"""

import datetime as dt
import uuid
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import structlog
from django.conf import settings
from django.db.models import Count, F, Max, Min, OuterRef, Q, Subquery, Sum, Window
from django.db.models.functions import RowNumber

from accounts.metering import PARTS, Meter, NetworkClass
from accounts.models import Account, MeteredDay, Usage
from engine.errors import EngineError
from engine.progress import Silent
from engine.verbs.apportion import Shares, apportion
from jobs.models import HostDay, Job, Step
from jobs.states import Kind
from policies.models import PlanState, Source
from vaults import repositories
from vaults.models import RecoveryPoint, Vault, VaultReading, VaultState, VaultType

log = structlog.get_logger(__name__)

DAY = dt.timedelta(days=1)
# A day is metered no sooner: jobs that end in its last moments are stored by then.
SETTLE = dt.timedelta(minutes=10)
# What is looked at so long after a day's end still counts as how it was then; later it is an estimate.
ON_TIME = dt.timedelta(hours=6)
# How far back days are made up, and how long a host that is off keeps the disks that it told of.
BACKFILL = dt.timedelta(days=35)
READ_AGAIN = dt.timedelta(hours=1)
BATCH = 500
LIVE = (VaultState.READY, VaultState.ERROR, VaultState.DELETING)


def settled(now: dt.datetime) -> dt.date:
    """Return the last day that can be metered."""
    return (now - SETTLE).date() - DAY


def end_of(day: dt.date) -> dt.datetime:
    """Return the first moment after a day."""
    return dt.datetime.combine(day + DAY, dt.time(), dt.UTC)


def is_late(day: dt.date, now: dt.datetime) -> bool:
    """Say whether what is seen now is only an estimate of how it was at the day's end."""
    return now >= end_of(day) + ON_TIME


def sweep(*, now: dt.datetime, rows_max: int) -> Iterator[Vault]:
    """Meter what rows tell, make up what is late, and yield the vaults that a worker is to look at.

    A few queries while nothing is due, however many accounts and vaults there are.
    """
    day = settled(now)
    done = MeteredDay.objects.filter(account=OuterRef("pk"), day=day)
    waiting = Account.objects.filter(created_at__lt=end_of(day)).annotate(done=Subquery(done.values("pk")[:1]))
    for account in waiting.filter(done=None)[:rows_max]:
        for missing in _missing(account, day):
            meter_account(account, missing, now=now)
    vaults = Vault.objects.filter(state__in=LIVE, created_at__lt=end_of(day))
    fresh = vaults.filter(reading=None)[:rows_max]
    VaultReading.objects.bulk_create([VaultReading(vault=vault) for vault in fresh], ignore_conflicts=True)
    due = VaultReading.objects.filter(Q(day=None) | Q(day__lt=day), vault__in=vaults)
    for reading in due.select_related("vault__account", "vault__region").order_by("pk")[:rows_max]:
        if _is_to_be_read(reading, day, now=now):
            yield reading.vault


def _missing(account: Account, day: dt.date) -> list[dt.date]:
    """Return the days up to `day` that the account lacks, as far back as they are made up."""
    first = max(account.created_at.date(), day - BACKFILL)
    known = set(MeteredDay.objects.filter(account=account, day__gte=first).values_list("day", flat=True))
    days = [first + dt.timedelta(days=number) for number in range((day - first).days + 1)]
    return [one for one in days if one not in known]


def meter_account(account: Account, day: dt.date, *, now: dt.datetime) -> None:
    """Store what rows tell of an account's day, once; what a crash left out the next call adds."""
    if MeteredDay.objects.filter(account=account, day=day).exists():
        return
    trials = _trial_vaults(account.pk, day)
    for rows in (
        _protected(account, day, trials),
        _clients(account, day),
        _attached(account, day),
        _flows(account, day, trials),
    ):
        _store(rows, account=account, day=day, now=now)
    MeteredDay.objects.get_or_create(account=account, day=day, defaults={"mode": account.metering, "created_at": now})


def _store(rows: Iterable[dict[str, Any]], *, account: Account, day: dt.date, now: dt.datetime) -> None:
    """Store rows that are not there yet, in batches."""
    several = iter(rows)
    while batch := list(islice(several, BATCH)):
        named = {"account": account, "day": day, "created_at": now}
        Usage.objects.bulk_create([Usage(**named, **row) for row in batch], ignore_conflicts=True)


def _trial_vaults(account_id: uuid.UUID, day: dt.date) -> set[str]:
    """Return the vaults whose use on a day costs nothing, because a trial ran for some of it (A8)."""
    start = end_of(day) - DAY
    vaults = Vault.objects.filter(account=account_id, trial_started_at__lt=end_of(day))
    return {str(one.pk) for one in vaults if one.trial_started_at and one.free_at(max(start, one.trial_started_at))}


def _protected(account: Account, day: dt.date, trials: set[str]) -> Iterator[dict[str, Any]]:
    """Yield the size of the newest point of each source in each vault; also of sources that are gone (C16)."""
    points = RecoveryPoint.objects.filter(vault__account=account, completed_at__lt=end_of(day))
    series = ""
    while batch := list(
        points.filter(series__gt=series).order_by("series").values_list("series", flat=True).distinct()[:BATCH]
    ):
        series = batch[-1]
        newest = Window(RowNumber(), partition_by=["vault", "series"], order_by=[F("completed_at").desc(), "-pk"])
        ranked = points.filter(series__in=batch).annotate(rank=newest).filter(rank=1)
        names = ("series", "source_name", "host", "vault", "vault__name", "vault__region__name", "bytes_total")
        for row in ranked.order_by("series", "vault").values(*names):
            yield {
                "meter": Meter.PROTECTED_BYTES,
                "region": row["vault__region__name"],
                "vault": str(row["vault"]),
                "vault_name": row["vault__name"],
                "source": row["series"],
                "source_name": row["source_name"],
                "host": row["host"],
                "quantity": row["bytes_total"],
                "trial": str(row["vault"]) in trials,
            }


def _hosts(account: Account, day: dt.date) -> dict[str, dict[str, Any]]:
    """Return the hosts of the account's sources, each with its region and whether a plan of it is active."""
    active = Q(plans__state=PlanState.ACTIVE, plans__created_at__lt=end_of(day))
    rows = Source.objects.filter(account=account, created_at__lt=end_of(day)).exclude(host="").order_by("host")
    counted = rows.values("host").annotate(place=Min("region__name"), active=Count("plans", filter=active))
    return {row["host"]: dict(row) for row in counted}


def _clients(account: Account, day: dt.date) -> Iterator[dict[str, Any]]:
    """Yield each host that was active on the day: its worker ran, or a plan of it is active (B23)."""
    mine = Source.objects.filter(account=account).exclude(host="").values("host")
    ran = set(HostDay.objects.filter(day=day, host__in=mine).values_list("host", flat=True))
    for host, row in _hosts(account, day).items():
        if row["active"] or host in ran:
            yield {"meter": Meter.CLIENTS, "region": row["place"], "host": host, "quantity": 1}


def _attached(account: Account, day: dt.date) -> Iterator[dict[str, Any]]:
    """Yield what the disks of each host hold (C45); of one that is off and has a plan, what it told last."""
    mine = Source.objects.filter(account=account).exclude(host="").values("host")
    told = HostDay.objects.filter(host__in=mine, day__lte=day, day__gt=day - BACKFILL)
    newest = Window(RowNumber(), partition_by=["host"], order_by=[F("day").desc()])
    hosts = _hosts(account, day)
    for row in told.annotate(rank=newest).filter(rank=1).order_by("host"):
        host = hosts.get(row.host)
        if host is not None and (row.day == day or host["active"]):
            yield {
                "meter": Meter.ATTACHED_BYTES,
                "region": host["place"],
                "host": row.host,
                "quantity": row.bytes_attached,
                "estimated": row.day != day,
            }


def network_class(*, declared: str, region_says: str, is_home: bool) -> str:
    """Return how restored data travelled. `is_home`: from a replica to a source of the replica's own region (E44).

    A worker that says Internet is outside of any region, wherever its source is registered (E45).
    """
    if is_home and declared != NetworkClass.INTERNET:
        return NetworkClass.REGION
    return declared or region_says


def network_of(job: Job) -> str:
    """Return how the data of a restore that this machine does travels (B27)."""
    if job.source is None:
        return settings.NETWORK_CLASS or NetworkClass.LAN
    is_home = job.vault.type == VaultType.REPLICATION_TARGET and job.source.region_id == job.vault.region_id
    return network_class(declared=settings.NETWORK_CLASS, region_says=job.source.region.network, is_home=is_home)


def _flows(account: Account, day: dt.date, trials: set[str]) -> Iterator[dict[str, Any]]:
    """Yield requests (A2), restored (B27) and replicated (E43) bytes of the jobs that ended on the day."""
    sums: dict[tuple[Any, ...], int] = {}
    labels: dict[tuple[Any, ...], dict[str, Any]] = {}
    start = end_of(day) - DAY
    jobs = Job.objects.filter(account=account, ended_at__gte=start, ended_at__lt=end_of(day))
    names = (
        "pk", "kind",
        "vault", "vault__name", "vault__region", "vault__region__name", "vault__type", "vault__link__source",
        "source", "source__name", "source__host", "source__region", "source__region__network", "bytes_done",
        "report__requests", "report__bytes", "report__network",
    )  # fmt: skip
    kinds = (Kind.BACKUP, Kind.RESTORE, Kind.REPLICATE)
    unended = jobs.filter(kind=Kind.REPLICATE, report__bytes__isnull=True).order_by()
    passed = dict(Step.objects.filter(job__in=unended).values_list("job").annotate(Sum("bytes_done")).order_by())
    for row in jobs.filter(kind__in=kinds).order_by("pk").values(*names).iterator(BATCH):
        row["bytes_done"] = passed.get(row["pk"], row["bytes_done"])  # also of earlier rounds
        for meter, variant, quantity in _flows_of(row):
            vault, source = str(row["vault"]), str(row["source"] or "")
            host = (row["source__host"] or "") if meter == Meter.RESTORE_BYTES else ""
            key = (meter, row["vault__region__name"], vault, source, host, variant)
            sums[key] = sums.get(key, 0) + quantity
            labels[key] = {"vault_name": row["vault__name"], "source_name": row["source__name"] or ""}
    for key, quantity in sums.items():
        meter, region, vault, source, host, variant = key
        yield {
            "meter": meter,
            "region": region,
            "vault": vault,
            "source": source,
            "host": host,
            "variant": variant,
            "quantity": quantity,
            "trial": vault in trials,
            **labels[key],
        }


def _flows_of(row: dict[str, Any]) -> Iterator[tuple[Meter, str, int]]:
    """Yield meter, variant and quantity of one job; of one that failed, what it had done by then."""
    done = row["bytes_done"] if row["report__bytes"] is None else row["report__bytes"]
    if row["kind"] == Kind.BACKUP:
        for verb, count in (row["report__requests"] or {}).items():
            yield Meter.REQUESTS, str(verb), int(count)
    elif row["kind"] == Kind.RESTORE and done:
        is_home = row["vault__type"] == VaultType.REPLICATION_TARGET and row["source__region"] == row["vault__region"]
        region_says = row["source__region__network"] or NetworkClass.LAN
        guess = network_class(declared="", region_says=region_says, is_home=is_home)
        yield Meter.RESTORE_BYTES, row["report__network"] or guess, int(done)
    elif row["kind"] == Kind.REPLICATE and done:
        yield Meter.REPLICATION_BYTES, str(row["vault__link__source"] or ""), int(done)


# --- Vaults ------------------------------------------------------------------------------------------------------


def _is_to_be_read(reading: VaultReading, day: dt.date, *, now: dt.datetime) -> bool:
    """Make up the vault's days that nobody metered; say whether a worker is to look at its store for `day`.

    It is asked once an hour, until what it would see no longer is how it was at the day's end.
    """
    first = max(reading.day + DAY if reading.day else reading.vault.created_at.date(), day - BACKFILL)
    last = day if is_late(day, now) else day - DAY
    if first <= last:
        _make_up(reading, first, last, now=now)
    if last == day:
        return False
    again = Q(rung_at=None) | Q(rung_at__lte=now - READ_AGAIN)
    return bool(VaultReading.objects.filter(again, pk=reading.pk).update(rung_at=now))


def _make_up(reading: VaultReading, first: dt.date, last: dt.date, *, now: dt.datetime) -> None:
    """Store estimates of a vault's days: what was metered last, or else what its points say that they added."""
    vault = reading.vault
    before = Usage.objects.filter(
        account=vault.account_id, vault=str(vault.pk), meter__in=(_meter(vault), *PARTS), day=reading.day or dt.date.min
    )
    copied = ("meter", "region", "vault", "source", "vault_name", "source_name", "quantity")
    for number in range((last - first).days + 1):
        day = first + dt.timedelta(days=number)
        trials = _trial_vaults(vault.account_id, day)
        rows: Iterable[dict[str, Any]] = before.order_by("pk").values(*copied).iterator(BATCH)
        if reading.day is None:
            points = vault.points.filter(completed_at__lt=end_of(day))
            total = points.aggregate(total=Sum("bytes_stored", default=0))["total"]
            rows = [_of_vault(vault, _meter(vault), total, trials)]
        fixed = {"estimated": True, "trial": str(vault.pk) in trials}
        _store(({**row, **fixed} for row in rows), account=vault.account, day=day, now=now)
    _advance(vault, last)


def _advance(vault: Vault, day: dt.date, **values: Any) -> None:
    VaultReading.objects.filter(Q(day=None) | Q(day__lt=day), vault=vault).update(day=day, **values)


def _meter(vault: Vault) -> Meter:
    return Meter.REPLICA_BYTES if vault.type == VaultType.REPLICATION_TARGET else Meter.VAULT_BYTES


def _of_vault(vault: Vault, meter: Meter, quantity: int, trials: set[str], **subject: Any) -> dict[str, Any]:
    return {
        "meter": meter,
        "region": vault.region.name,
        "vault": str(vault.pk),
        "vault_name": vault.name,
        "quantity": quantity,
        "trial": str(vault.pk) in trials,
        **subject,
    }


def read_vault(vault: Vault, *, now: dt.datetime) -> bool:
    """Look at a vault's store and meter its last day (B24, E47). False when that was done, or the store is away.

    Safe to call twice. A crash leaves rows that count; the next look adds what is missing.
    """
    day = settled(now)
    reading, _ = VaultReading.objects.get_or_create(vault=vault)
    if (reading.day is not None and reading.day >= day) or vault.created_at >= end_of(day):
        return False
    try:
        shares = apportion(repositories.open_vault(vault), Silent())
    except (EngineError, OSError) as error:
        VaultReading.objects.filter(vault=vault).update(error=str(error))
        log.warning("metering.vault_away", vault=str(vault.pk), error=str(error))
        return False
    first = max(reading.day + DAY if reading.day else vault.created_at.date(), day - BACKFILL)
    if first < day:
        _make_up(reading, first, day - DAY, now=now)
    late = is_late(day, now)
    rows = ({**row, "estimated": late} for row in _rows_of(vault, shares, day))
    _store(rows, account=vault.account, day=day, now=now)
    seen = {"bytes_stored": shares.bytes_stored, "bytes_needed": shares.bytes_needed, "read_at": now}
    _advance(vault, day, error="", **seen)
    return True


def _rows_of(vault: Vault, shares: Shares, day: dt.date) -> Iterator[dict[str, Any]]:
    """Yield the vault's own row and the parts of its sources; names in batches."""
    trials = _trial_vaults(vault.account_id, day)
    yield _of_vault(vault, _meter(vault), shares.bytes_stored, trials)
    several = iter(shares.series.items())
    while batch := dict(islice(several, BATCH)):
        points = RecoveryPoint.objects.filter(vault=vault, series__in=batch).order_by("series").values("series")
        names = dict(points.annotate(name=Max("source_name")).values_list("series", "name"))
        for series, part in batch.items():
            subject = {"source": series, "source_name": names.get(series, "")}
            if part.unique:
                yield _of_vault(vault, Meter.SOURCE_BYTES_UNIQUE, part.unique, trials, **subject)
            if part.fair:
                yield _of_vault(vault, Meter.SOURCE_BYTES_SHARED, part.fair, trials, **subject)
