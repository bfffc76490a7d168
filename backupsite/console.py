"""The console's sidebar and dashboard."""

import datetime as dt
import json
from typing import Any

from django.db.models import Count, Max, Q, Sum
from django.db.models.functions import TruncDate
from django.http import HttpRequest
from django.urls import reverse
from django.utils.html import format_html
from django.utils.timesince import timesince

from accounts.console import human_bytes
from backupsite.celery import app
from jobs.models import Job, Worker
from jobs.states import JobState, Kind
from policies.models import Plan, PlanState, Source
from vaults.models import RecoveryPoint, Vault

CHART = {
    "maintainAspectRatio": False,
    "scales": {"x": {"stacked": True}, "y": {"stacked": True, "ticks": {"precision": 0}}},
}
DAYS = 14
JOBS_SHOWN = 10
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


def navigation(request: HttpRequest) -> list[dict[str, Any]]:
    """Return the sidebar."""
    return [
        {
            "items": [
                {"title": "Overview", "icon": "dashboard", "link": reverse("admin:index")},
                _item("Jobs", "sync", "jobs_job"),
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
            ],
        },
        {
            "title": "Storage",
            "separator": True,
            "items": [_item("Vaults", "lock", "vaults_vault"), _item("Regions", "public", "vaults_region")],
        },
        {
            "title": "Administration",
            "separator": True,
            "items": [
                _item("Accounts", "apartment", "accounts_account"),
                _item("Users", "person", "accounts_user"),
                _item("Workers", "dns", "jobs_worker"),
                _item("Audit trail", "history", "accounts_event"),
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
        {"title": "Recovery points", "value": f"{points['count']:,}", "note": f"vaults: {Vault.objects.count()}"},
        {"title": "Stored", "value": human_bytes(stored), "note": ratio},
        {"title": "Failed or missed", "value": str(bad), "note": "in the last seven days", "bad": "1" if bad else ""},
    ]


def _chart(now: dt.datetime) -> str:
    days = [(now - dt.timedelta(days=back)).date() for back in range(DAYS - 1, -1, -1)]
    since = dt.datetime.combine(days[0], dt.time(), dt.UTC)
    good = Q(state__in=(JobState.COMPLETE, JobState.PARTIAL_COMPLETE))
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
                format_html(
                    '<a class="font-medium text-primary-600 dark:text-primary-500" href="{}">{}</a>',
                    link,
                    job.get_kind_display(),
                ),
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
                format_html(
                    '<a class="font-medium text-primary-600 dark:text-primary-500" href="{}">{}</a>',
                    reverse("admin:policies_source_change", args=[source.pk]),
                    source.name,
                ),
                f"{timesince(last, now, depth=1)} ago" if last else "never",
                "active" if source.active else "no active plan",
            ]
        )
    return {"headers": ["Source", "Last point", "Plan"], "rows": rows}


def dashboard(request: HttpRequest, context: dict[str, Any]) -> dict[str, Any]:
    """Fill in the overview."""
    now = app.now()
    alive = Worker.objects.filter(seen_at__gte=now - dt.timedelta(minutes=2)).count()
    context.update(
        title="Overview",
        cards=_cards(now), chart=_chart(now), jobs=_jobs(), sources=_sources(now), workers=alive,
        chart_options=json.dumps(CHART),
    )  # fmt: skip
    return context
