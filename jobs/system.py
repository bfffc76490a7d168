"""The control plane's rows as one document for each vault's bucket, and back (vault-format, section System exports).

What cannot be had from a bucket's recovery points: accounts, people and their roles, regions, vaults and which of them
follows which, sources, policies, plans. An export holds the rows of one account. Of its secrets it tells what the
vault that it lies in needs anyway (its region's credentials, its own key's) and those of the account's sources, never
another vault's. Passwords and rights over the installation are never exported: people come back without either.
"""

import datetime as dt
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec
import structlog
from django.contrib.auth import get_user_model
from django.core import serializers
from django.db import models, transaction

from accounts import secrets
from accounts.models import Account, CustomRole, Member
from engine.system import Export
from policies import moments
from policies.models import Plan, PlanState, Policy, Rule, Source
from vaults.models import RecoveryPoint, Region, ReplicationLink, Vault, VaultState

log = structlog.get_logger(__name__)

MEMBERS, PEOPLE, HOLDS = "accounts.member", "accounts.user", "vaults.hold"
# In the order in which they can be stored.
TABLES: tuple[type[models.Model], ...] = (
    Account,
    CustomRole,
    Region,
    Vault,
    ReplicationLink,
    Source,
    Policy,
    Rule,
    Plan,
)
POINT = RecoveryPoint._meta.label_lower
# What is secret, what a job or a sweep finds out again, and what the database makes up.
LEFT_OUT: dict[str, set[str]] = {
    Region._meta.label_lower: {"credentials", "probed_at"},
    Vault._meta.label_lower: {"key_credentials", "coverage_total", "coverage_read", "coverage_at"},
    ReplicationLink._meta.label_lower: {
        "points_behind",
        "historical_done",
        "bytes_replicated",
        "latest_at",
        "checked_at",
    },
    Source._meta.label_lower: {"credentials", "warnings", "checked_at", "check_error"},
    Policy._meta.label_lower: {"tags_changed_at"},
    Plan._meta.label_lower: {
        "next_run_at",
        "next_rule",
        "last_run_at",
        "last_rule",
        "rules_changed_at",
        "next_drill_at",
    },
    POINT: {"pk", "created_at", "expires_at", "locked_until"},
}
PERSON = ("username", "email", "first_name", "last_name", "is_active", "date_joined")
Rows = list[dict[str, Any]]
Tables = dict[str, Rows]


def tables_of(account: Account, *, using: str = "default") -> Tables:
    """Return the account's rows by model, in a fixed order, as plain values."""
    mine: dict[type[models.Model], models.Q] = {
        Account: models.Q(pk=account.pk),
        Rule: models.Q(policy__account=account.pk),
        # What another account granted is not this one's to keep: it grants again.
        Plan: models.Q(account=account.pk, source__account=account.pk),
        Region: models.Q(vaults__account=account.pk) | models.Q(sources__account=account.pk),
    }
    tables = {
        model._meta.label_lower: rows_of(
            model._default_manager.using(using).filter(mine.get(model, models.Q(account=account.pk)))
        )
        for model in TABLES
    }
    members = Member.objects.using(using).filter(account=account.pk).order_by("user__username").select_related("user")
    tables[MEMBERS] = [
        _plain({"user": m.user.username, "role": m.role, "custom_role": m.custom_role_id, "created_at": m.created_at})
        for m in members
    ]
    tables[PEOPLE] = [_plain({name: getattr(m.user, name) for name in PERSON}) for m in members]
    held = RecoveryPoint.objects.using(using).filter(vault__account=account.pk, held_at__isnull=False)
    names = ("vault", "series", "point_id", "held_by")
    tables[HOLDS] = [_plain(row) for row in held.order_by(*names).values(*names)]
    return tables


def rows_of(queryset: models.QuerySet[Any]) -> Rows:
    """Return rows with all their columns but those left out; moments, dates and ids as text.

    A point is known by its name: rows from before rebuilds have ids of their own.
    """
    if queryset.model is Vault:
        queryset = queryset.exclude(state=VaultState.DELETED)
    if queryset.model is ReplicationLink:
        queryset = queryset.exclude(source__state=VaultState.DELETED).exclude(target__state=VaultState.DELETED)
    found = serializers.serialize("python", queryset.order_by("pk").distinct())
    left_out = LEFT_OUT.get(queryset.model._meta.label_lower, set())
    return [
        _plain({name: value for name, value in ({"pk": row["pk"]} | row["fields"]).items() if name not in left_out})
        for row in found
    ]


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    plain: dict[str, Any] = msgspec.to_builtins(row)
    return plain


def export_of(vault: Vault, tables: Tables, *, now: dt.datetime) -> Export:
    """Return what belongs into the vault's bucket: its account's `tables`, and the secrets it may hold."""
    holders: Iterator[Any] = iter((vault.region, vault, *Source.objects.filter(account=vault.account_id)))
    found: dict[str, dict[str, dict[str, str]]] = {}
    for row in holders:
        if values := _secret(row):
            found.setdefault(row._meta.label_lower, {})[str(row.pk)] = values
    return Export(at=now, vault=str(vault.pk), tables=tables, secrets=found)


def _sealed_field(row: Any) -> tuple[str, str]:
    """Return the column of a row's sealed secret, and the context that binds it to the row."""
    field = "key_credentials" if isinstance(row, Vault) else "credentials"
    return field, f"{row._meta.model_name}:{row.pk}"


def _secret(row: Any) -> dict[str, str]:
    """Return a row's secret; nothing when no configured key opens it: the rest of the export is worth having."""
    field, context = _sealed_field(row)
    try:
        return secrets.unseal(getattr(row, field), context=context)
    except secrets.SecretUnreadable as error:
        log.warning("system.secret_left_out", row=context, error=str(error))
        return {}


def restore(exports: Iterable[Export], *, now: dt.datetime, resume: bool = False, using: str = "default") -> list[str]:
    """Store the rows of these exports that are not there yet; return the models and ids of the stored ones.

    Of an account the newest export counts. Rows that are there stay as they are: safe to call twice. Plans are paused
    unless `resume`. Raises IntegrityError when other rows have taken a name: the caller starts with an empty database.
    """
    newest = sorted(exports, key=lambda export: export.at, reverse=True)
    stored: list[str] = []
    done: set[str] = set()
    with transaction.atomic(using=using):
        for export in newest:
            account = export.tables[Account._meta.label_lower][0]["pk"]
            if account not in done:
                done.add(account)
                stored += _store_tables(export.tables, resume=resume, using=using)
                _store_people(export.tables, account, using=using)
        for export in newest:
            _store_secrets(export, using=using)
        _schedule([key.partition(" ")[2] for key in stored if key.startswith(Plan._meta.label_lower)], now, using)
    return stored


def _store_tables(tables: Tables, *, resume: bool, using: str) -> list[str]:
    stored = []
    for model in TABLES:
        label = model._meta.label_lower
        known = {str(pk) for pk in model._default_manager.using(using).values_list("pk", flat=True)}
        fresh = [row for row in tables.get(label, []) if row["pk"] not in known]
        if model is Plan and not resume:
            fresh = [row | {"state": PlanState.PAUSED} for row in fresh]
        objects = [
            {"model": label, "pk": row["pk"], "fields": {k: v for k, v in row.items() if k != "pk"}} for row in fresh
        ]
        for one in serializers.deserialize("python", objects, using=using, ignorenonexistent=True):
            one.save(using=using)
        stored += [f"{label} {row['pk']}" for row in fresh]
    return stored


def _store_people(tables: Tables, account: str, *, using: str) -> None:
    """Store people who are not there, without passwords and without rights over the installation, and their roles."""
    people = get_user_model()._default_manager.using(using)
    for row in tables[PEOPLE]:
        if not people.filter(username=row["username"]).exists():
            values = row | {"date_joined": dt.datetime.fromisoformat(row["date_joined"])}
            person = get_user_model()(**values)
            person.set_unusable_password()
            person.save(using=using)
    for row in tables[MEMBERS]:
        person = people.get(username=row["user"])
        # Exports from before there were custom roles tell of none.
        values = {"role": row["role"], "custom_role_id": row.get("custom_role")}
        values |= {"created_at": dt.datetime.fromisoformat(row["created_at"])}
        Member.objects.using(using).get_or_create(account_id=account, user=person, defaults=values)


def _store_secrets(export: Export, *, using: str) -> None:
    """Seal the secrets with this installation's keys, where a row has none."""
    for model in (Region, Vault, Source):
        for pk, values in export.secrets.get(model._meta.label_lower, {}).items():
            row = model._default_manager.using(using).filter(pk=pk).first()
            field, context = _sealed_field(row) if row is not None else ("", "")
            if row is not None and not getattr(row, field):
                model._default_manager.using(using).filter(pk=pk).update(
                    **{field: secrets.seal(values, context=context)}
                )


def _schedule(plans: list[str], now: dt.datetime, using: str) -> None:
    """Give restored plans their next moments."""
    for plan in Plan.objects.using(using).filter(pk__in=plans).select_related("policy"):
        plan.next_drill_at = moments.next_drill_at(plan, plan.policy, after=now)
        if plan.state == PlanState.ACTIVE:
            moments.move_on(plan, after=now)
        plan.save(using=using, update_fields=["next_run_at", "next_rule", "next_drill_at"])


def hold_again(export: Export, *, using: str = "default") -> None:
    """Tell again who holds points; that they are held lies in the vault itself."""
    for row in export.tables.get(HOLDS, []):
        held = RecoveryPoint.objects.using(using).filter(
            vault=row["vault"], series=row["series"], point_id=row["point_id"], held_at__isnull=False, held_by=""
        )
        held.update(held_by=row["held_by"])


def differences(expected: Tables, found: Tables) -> list[str]:
    """Return, for people, in what two sets of tables differ: rows that are missing or too many, and columns."""
    texts = []
    for label in sorted(expected.keys() | found.keys()):
        wanted, got = _by_key(expected.get(label, [])), _by_key(found.get(label, []))
        texts += [f"{label} {key} is missing" for key in wanted if key not in got]
        texts += [f"{label} {key} is not in the database" for key in got if key not in wanted]
        for key in wanted.keys() & got.keys():
            texts += [
                f"{label} {key}: {name} is {wanted[key].get(name)!r}, rebuilt as {got[key].get(name)!r}"
                for name in sorted(wanted[key].keys() | got[key].keys())
                if wanted[key].get(name) != got[key].get(name)
            ]
    return texts


def _by_key(rows: Rows) -> dict[str, dict[str, Any]]:
    names = ("pk", "username", "user", "series", "point_id")
    return {"/".join(str(row[name]) for name in names if name in row): row for row in rows}
