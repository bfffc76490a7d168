"""The console's sidebar and dashboard."""

import datetime as dt
import json
from typing import Any

from django.db.models import Count, F, Max, Model, OuterRef, Q, Subquery, Sum
from django.db.models.functions import TruncDate
from django.http import HttpRequest
from django.urls import reverse
from django.utils.html import format_html
from django.utils.timesince import timesince

from accounts.console import human_bytes
from backupsite.celery import app
from jobs.alert_console import unheeded
from jobs.models import Job, Worker
from jobs.states import JobState, Kind
from policies.models import Plan, PlanState, Source
from vaults.models import RecoveryPoint, Vault, VaultReading, VaultState

CHART = {
    "maintainAspectRatio": False,
    "scales": {"x": {"stacked": True}, "y": {"stacked": True, "ticks": {"precision": 0}}},
}
DAYS = 14
JOBS_SHOWN = 10
COVERED = 0.95
GOOD = (JobState.COMPLETE, JobState.PARTIAL_COMPLETE)
LINK = '<a class="font-medium text-primary-600 dark:text-primary-500" href="{}">{}</a>'
BADGES = {
    JobState.COMPLETE: "bg-green-100 text-green-800 dark:bg-green-500/20 dark:text-green-400",
    JobState.PARTIAL_COMPLETE: "bg-orange-100 text-orange-800 dark:bg-orange-500/20 dark:text-orange-400",
    JobState.FAILED: "bg-red-100 text-red-800 dark:bg-red-500/20 dark:text-red-400",
    JobState.MISSED: "bg-red-100 text-red-800 dark:bg-red-500/20 dark:text-red-400",
}
PILL = (
    '<span class="inline-block font-semibold h-6 leading-6 px-2 rounded-default text-[11px] uppercase '
    'whitespace-nowrap {}">{}</span>'
)
BADGE = "bg-blue-100 text-blue-800 dark:bg-blue-500/20 dark:text-blue-400"


def _item(title: str, icon: str, model: str) -> dict[str, Any]:
    return {"title": title, "icon": icon, "link": reverse(f"admin:{model}_changelist")}


def _alerts(request: HttpRequest) -> dict[str, Any]:
    """Return the item of the inbox, with the number of alerts that nobody heeded."""
    return _item("Alerts", "notifications", "jobs_alert") | {"badge": unheeded(request), "badge_variant": "danger"}


def navigation(request: HttpRequest) -> list[dict[str, Any]]:
    """Return the sidebar."""
    return [
        {
            "items": [
                {"title": "Overview", "icon": "dashboard", "link": reverse("admin:index")},
                _item("Jobs", "sync", "jobs_job"),
                _alerts(request),
                _item("Recovery points", "restore", "vaults_recoverypoint"),
            ]
        },
        {
            "title": "Protection",
            "separator": True,
            "items": [
                _item("Sources", "folder_copy", "policies_source"),
                _item("Policies", "policy", "policies_policy"),
                _item("Plans", "event_repeat", "policies_plan"),
                {"title": "Hosts", "icon": "computer", "link": reverse("admin:policies_source_hosts")},
            ],
        },
        {
            "title": "Storage",
            "separator": True,
            "items": [_item("Vaults", "lock", "vaults_vault"), _item("Regions", "public", "vaults_region")],
        },
        {
            "title": "Usage",
            "separator": True,
            "items": [
                _item("Usage and costs", "monitoring", "accounts_usage"),
                _item("Prices", "sell", "accounts_price"),
                _item("Allowances", "redeem", "accounts_allowance"),
                _item("Quotas", "production_quantity_limits", "vaults_quota"),
            ],
        },
        {
            "title": "Administration",
            "separator": True,
            "items": [
                _item("Accounts", "apartment", "accounts_account"),
                _item("Roles", "badge", "accounts_customrole"),
                _item("Grants", "handshake", "accounts_grant"),
                _item("Users", "person", "accounts_user"),
                _item("Workers", "dns", "jobs_worker"),
                _item("Alert rules", "rule", "jobs_alertrule"),
                _item("Channels", "outgoing_mail", "jobs_channel"),
                _item("Silences", "notifications_off", "jobs_silence"),
                _item("Audit trail", "history", "accounts_event"),
                _item("My API tokens", "vpn_key", "accounts_apitoken"),
                {"title": "API", "icon": "api", "link": reverse("docs")},
            ],
        },
    ]


def _cards(now: dt.datetime) -> list[dict[str, str]]:
    week = now - dt.timedelta(days=7)
    points = RecoveryPoint.objects.aggregate(count=Count("pk"), stored=Sum("bytes_stored"), size=Sum("bytes_total"))
    protected = Plan.objects.filter(state=PlanState.ACTIVE).values("source").distinct().count()
    bad = Job.objects.filter(created_at__gte=week, state__in=(JobState.FAILED, JobState.MISSED)).count()
    stored = points["stored"] or 0
    ratio = f"{points['size'] / stored:.1f} × smaller than what it protects" if stored else "nothing stored yet"
    return [
        {
            "title": "Protected sources",
            "value": f"{protected} of {Source.objects.count()}",
            "note": "with an active plan",
        },
        {
            "title": "Recovery points",
            "value": f"{points['count']:,}",
            "note": f"vaults: {Vault.objects.present().count()}",
        },
        {"title": "Added by points", "value": human_bytes(stored), "note": ratio},
        {"title": "Failed or missed", "value": str(bad), "note": "in the last seven days", "bad": "1" if bad else ""},
    ]


def _chart(now: dt.datetime) -> str:
    days = [(now - dt.timedelta(days=back)).date() for back in range(DAYS - 1, -1, -1)]
    since = dt.datetime.combine(days[0], dt.time(), dt.UTC)
    good = Q(state__in=GOOD)
    bad = Q(state__in=(JobState.FAILED, JobState.MISSED))
    rows = (
        Job.objects.filter(kind=Kind.BACKUP, created_at__gte=since)
        .annotate(day=TruncDate("created_at"))
        .values("day")
        .annotate(good=Count("pk", filter=good), bad=Count("pk", filter=bad))
    )
    found: dict[dt.date, dict[str, Any]] = {row["day"]: dict(row) for row in rows}
    series = [
        ("Completed", "good", "oklch(62.7% .194 149.214)"),
        ("Failed or missed", "bad", "oklch(63.7% .237 25.331)"),
    ]
    return json.dumps(
        {
            "labels": [f"{day:%d %b}" for day in days],
            "datasets": [
                {
                    "label": label,
                    "data": [int(found[day][name]) if day in found else 0 for day in days],
                    "backgroundColor": color,
                }
                for label, name, color in series
            ],
        }
    )


def _jobs() -> dict[str, Any]:
    rows = []
    for job in Job.objects.select_related("source", "vault")[:JOBS_SHOWN]:
        link = reverse("admin:jobs_job_change", args=[job.pk])
        rows.append(
            [
                format_html(LINK, link, job.get_kind_display()),
                format_html(
                    PILL,
                    BADGES.get(JobState(job.state), BADGE),
                    job.get_state_display(),
                ),
                str(job.source or "–"),
                str(job.vault),
                human_bytes(job.bytes_done),
                f"{job.created_at:%Y-%m-%d %H:%M}",
            ]
        )
    return {"headers": ["Job", "State", "Source", "Vault", "Read", "Started"], "rows": rows}


def _sources(now: dt.datetime) -> dict[str, Any]:
    """Return each source with the age of its newest point: how much work would be lost now."""
    newest = dict(RecoveryPoint.objects.values_list("series").annotate(Max("completed_at")))
    rows = []
    for source in Source.objects.annotate(active=Count("plans", filter=Q(plans__state=PlanState.ACTIVE)))[:JOBS_SHOWN]:
        last = newest.get(source.series)
        rows.append(
            [
                _link(source, "policies_source"),
                f"{timesince(last, now, depth=1)} ago" if last else "never",
                "active" if source.active else "no active plan",
            ]
        )
    return {"headers": ["Source", "Last point", "Plan"], "rows": rows}


def _stored() -> dict[str, Any]:
    """Return what each vault's packs held when it was metered last, the largest first, and all together (B24)."""
    vaults = Vault.objects.present()
    largest = vaults.select_related("account", "region", "reading").order_by(
        F("reading__bytes_stored").desc(nulls_last=True), "name"
    )
    rows = []
    for vault in largest[:JOBS_SHOWN]:
        reading: VaultReading | None = getattr(vault, "reading", None)
        known = reading is not None and reading.read_at is not None
        rows.append(
            [
                _link(vault, "vaults_vault"),
                str(vault.account),
                str(vault.region),
                human_bytes(reading.bytes_stored) if known and reading else "not metered yet",
                f"{reading.read_at:%Y-%m-%d %H:%M}" if known and reading else "–",
            ]
        )
    total = vaults.aggregate(total=Sum("reading__bytes_stored"), count=Count("pk"))
    if rows:
        rows.append([f"All vaults: {total['count']:,}", "", "", human_bytes(total["total"] or 0), ""])
    return {"headers": ["Vault", "Account", "Region", "In its packs", "As of"], "rows": rows}


def _of_vault(kind: Kind, field: str) -> Subquery:
    """Return a field of the last job of a kind that came to its end in the vault."""
    ended = Job.objects.filter(vault=OuterRef("pk"), kind=kind, state__in=(*GOOD, JobState.FAILED))
    return Subquery(ended.values(field)[:1])


def _attention(now: dt.datetime) -> dict[str, Any]:
    """Return what somebody should look at, vault by vault: damage and failed audits first."""
    found: list[tuple[int, Vault, str]] = []
    vaults = Vault.objects.present().annotate(
        damaged=_of_vault(Kind.VERIFY, "problems_count"), audit=_of_vault(Kind.AUDIT, "state")
    )
    for vault in vaults:
        damaged = int(getattr(vault, "damaged", 0) or 0)
        if damaged:
            found.append((0, vault, f"{damaged} damaged object{'s' if damaged != 1 else ''}"))
        if getattr(vault, "audit", "") == JobState.FAILED:
            found.append((0, vault, "the last lock audit failed"))
        share = vault.coverage_share
        if share is not None and share < COVERED and vault.created_at < now - dt.timedelta(days=30):
            found.append((1, vault, f"only {int(share * 100)} % was read within 30 days"))
        if vault.state == VaultState.DELETING:
            until = f"; locks keep the rest until {vault.deletable_at:%Y-%m-%d}" if vault.deletable_at else ""
            found.append((2, vault, f"is being deleted{until}"))
        elif not vault.recovery_proven_at:
            found.append((3, vault, "nobody has proven that the recovery key is at hand"))
    found.sort(key=lambda one: (one[0], one[1].name))
    rows = [[_link(vault, "vaults_vault"), text] for _, vault, text in found[:JOBS_SHOWN]]
    return {"headers": ["Vault", "What"], "rows": rows}


def _link(row: Model, model: str) -> str:
    return format_html(LINK, reverse(f"admin:{model}_change", args=[row.pk]), str(row))


def dashboard(request: HttpRequest, context: dict[str, Any]) -> dict[str, Any]:
    """Fill in the overview."""
    now = app.now()
    alive = Worker.objects.filter(seen_at__gte=now - dt.timedelta(minutes=2)).count()
    context.update(
        title="Overview",
        cards=_cards(now), chart=_chart(now), jobs=_jobs(), sources=_sources(now), workers=alive,
        attention=_attention(now), stored=_stored(),
        chart_options=json.dumps(CHART),
    )  # fmt: skip
    return context
