"""Console pages of sources, policies and plans."""

import calendar
import datetime as dt
import zoneinfo
from typing import Any, ClassVar

from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.db import models
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils import timezone
from django.utils.html import format_html
from unfold.admin import StackedInline

from accounts import grants
from accounts.console import ServiceAdmin, action, actor_of, display, leave_dialog, lines
from accounts.models import Grant
from policies import copies, moments, retention, services
from policies.forms import (
    CREDENTIALS,
    SETTINGS,
    GrantForm,
    PauseForm,
    RuleForm,
    RuleFormSet,
    SourceForm,
    form_of,
    names_of,
)
from policies.kinds import TYPES
from policies.models import Plan, Policy, Rule, RuleType, Source, SourceKind
from vaults.admin import drills_shown
from vaults.models import Vault

RUNS_SHOWN = 10
COUNTED = ("keep_last", "keep_daily", "keep_weekly", "keep_monthly", "keep_yearly")


ICONS: dict[str, str] = {
    SourceKind.FILES: "folder",
    SourceKind.SMB: "lan",
    SourceKind.BUCKET: "inventory_2",
    SourceKind.POSTGRES: "database",
    SourceKind.MARIADB: "database",
    SourceKind.MILVUS: "scatter_plot",
    SourceKind.TABLESTORE: "table",
    SourceKind.DYNAMODB: "table_chart",
    SourceKind.COMMAND: "terminal",
    SourceKind.BACKINT: "memory",
}


def _kind_of(request: HttpRequest, source: Source | None) -> str:
    return source.kind if source else request.GET["kind"]


class RemovableAdmin(ServiceAdmin):
    """What nothing uses may be deleted, through the service."""

    def delete_model(self, request: HttpRequest, obj: Any) -> None:
        services.delete(obj, actor=actor_of(request), now=timezone.now())


def rules_text(policy: Policy) -> str:
    """Return how long a policy keeps points, in few words."""
    texts = [f"{policy.retention_days:,} days" if policy.retention_days else "for ever"]
    texts += [f"{getattr(policy, name)} {name.removeprefix('keep_')}" for name in COUNTED if getattr(policy, name)]
    if policy.keep_at_least_one:
        texts.append("at least one")
    return ", ".join(texts)


def _verdicts(source: Source, vault: Vault, now: dt.datetime) -> dict[str, Any]:
    """Return what the page says of one vault: the rules in force, and a row for each point, newest first."""
    plans = Plan.objects.filter(source=source, vault=vault).select_related("policy")
    told = [f"{plan.policy} keeps {rules_text(plan.policy)}" for plan in plans]
    judged = retention.preview(vault, source.series, retention.source_rules(source, vault, now=now), now=now)
    rows = [
        [
            format_html(
                '<a class="font-medium text-primary-600 dark:text-primary-500" href="{}">{}</a>',
                reverse("admin:vaults_recoverypoint_change", args=[one.row.pk]),
                f"{one.row.completed_at:%Y-%m-%d %H:%M}",
            ),
            one.row.get_state_display(),
            format_html(
                '<span class="font-semibold {}">{}</span>',
                "text-green-700 dark:text-green-400" if one.verdict.keep else "text-red-700 dark:text-red-400",
                "stays" if one.verdict.keep else "goes",
            ),
            lines(one.verdict.reasons),
            f"{one.verdict.expires_at:%Y-%m-%d %H:%M}" if one.verdict.expires_at else "–",
        ]
        for one in judged
    ]
    going = sum(not one.verdict.keep for one in judged)
    return {
        "title": f"{vault}: {len(judged)} points, {going or 'none'} of them to go",
        "rules": "; ".join(told) or "No plan: each point keeps the retention that it was made with",
        "table": {"headers": ["Completed", "State", "Verdict", "Why", "Expires"], "rows": rows},
    }


@admin.register(Source)
class SourceAdmin(RemovableAdmin):
    list_display = ["name", "kind", "account", "place", "what", "tried", "warned", "branch"]
    list_filter: ClassVar = ["region__branch", "account", "kind", "host", "region"]
    list_select_related = ["account", "region"]
    search_fields = ["name", "host"]
    readonly_fields = ["kind_shown", "connection_shown", "warnings_shown", "drills"]
    actions_detail: ClassVar = ["retention"]

    def add_view(
        self, request: HttpRequest, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """Let a person choose the kind first: it says which fields there are, and never changes."""
        if not self.has_add_permission(request):
            raise PermissionDenied
        kind = request.GET.get("kind", "")
        if kind in TYPES:
            context = {"title": f"Add a source: {SourceKind(kind).label}"} | (extra_context or {})
            page: HttpResponse = super().add_view(request, form_url, context)
            return page
        kinds = [
            {"name": name, "label": SourceKind(name).label, "icon": ICONS.get(name, "folder"), "type": one}
            for name, one in TYPES.items()
        ]
        context = self.admin_site.each_context(request) | {
            "title": "Add a source: what shall be protected?",
            "kinds": kinds,
            "opts": self.opts,
        }
        return TemplateResponse(request, "admin/source_kinds.html", context)

    def get_form(self, request: HttpRequest, obj: Source | None = None, change: bool = False, **kwargs: Any) -> Any:
        return super().get_form(request, obj, change, **kwargs | {"form": form_of(_kind_of(request, obj), request)})

    def get_fieldsets(self, request: HttpRequest, obj: Source | None = None) -> Any:
        kind = _kind_of(request, obj)
        own = TYPES[kind]
        place = ["host"] if own.on_host else []
        named = ["account", "name", *place, "region"]
        sets: list[Any] = [
            (None, {"fields": ["kind_shown", *named]}),
            ("What to protect", {"fields": names_of(kind, SETTINGS), "description": own.about}),
        ]
        if credentials := names_of(kind, CREDENTIALS):
            forget = ["forget_credentials"] if obj and obj.credentials else []
            told = "Kept encrypted and never shown again."
            sets.append(("Credentials", {"fields": [*credentials, *forget], "description": told}))
        shown = ["connection_shown", "warnings_shown"] if obj else []
        if not own.on_host:
            shown.append("skip_check")
        if shown:
            sets.append(("Connection", {"fields": shown}))
        return [*sets, ("Proof", {"fields": ["drills"]})] if obj else sets

    @display(description="Trial restores")
    def drills(self, source: Source) -> str:
        return drills_shown(source.jobs)

    def save_model(self, request: HttpRequest, obj: Source, form: SourceForm, change: bool) -> None:
        # The form has checked it, and tried the connection where nobody told it not to.
        services.store_source(obj, actor=actor_of(request), now=timezone.now())
        for warning in obj.warnings:
            messages.warning(request, warning)

    @display(description="Branch", ordering="region__branch")
    def branch(self, source: Source) -> str:
        return source.region.branch or "–"

    @display(description="Kind")
    def kind_shown(self, source: Source) -> str:
        return source.get_kind_display()

    @display(description="Read by", ordering="host")
    def place(self, source: Source) -> str:
        return source.host or f"region {source.region}"

    @display(description="Connection", label={"Works": "success", "Fails": "danger", "Not tried": "info"})
    def tried(self, source: Source) -> str:
        return "Fails" if source.check_error else "Works" if source.checked_at else "Not tried"

    @display(description="Last trial")
    def connection_shown(self, source: Source) -> str:
        if not source.checked_at:
            return "Not tried yet. Press Test connection."
        told = source.check_error or "It can be reached, with these credentials."
        color = "text-red-700 dark:text-red-400" if source.check_error else "text-green-700 dark:text-green-400"
        return format_html('{} UTC: <span class="{}">{}</span>', f"{source.checked_at:%Y-%m-%d %H:%M}", color, told)

    @action(description="What stays", icon="event_available", permissions=["view"])
    def retention(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Show of each point in each vault why it stays or goes, and when."""
        source = Source.objects.select_related("account").get(pk=object_id)
        now = timezone.now()
        context = self.admin_site.each_context(request) | {
            "title": f"What stays of {source}",
            "source": source,
            "vaults": [_verdicts(source, vault, now) for vault in retention.vaults_of(source)],
            "opts": self.opts,
        }
        return TemplateResponse(request, "admin/retention.html", context)

    @display(description="Protects")
    def what(self, source: Source) -> str:
        """Show the settings without which there is nothing to read."""
        wanted = [name for name, field in TYPES[source.kind].settings().fields.items() if field.required]
        found = [source.settings.get(name) for name in wanted]
        return lines([" ".join(map(str, one)) if isinstance(one, list) else str(one) for one in found if one])

    @display(description="Warnings", label={"None": "success"})
    def warned(self, source: Source) -> str:
        return str(len(source.warnings)) if source.warnings else "None"

    @display(description="Warnings")
    def warnings_shown(self, source: Source) -> str:
        return lines(source.warnings)


def schedule_text(rule: Rule) -> str:
    """Return when a backup rule's runs are, in few words."""
    if rule.cron:
        return rule.cron
    unit = rule.unit if rule.every == 1 else f"{rule.every} {rule.unit}s"
    if rule.weekdays:
        days = ", ".join(calendar.day_abbr[day - 1] for day in sorted(rule.weekdays))
        unit = days if unit in ("day", "week") else f"{unit} on {days}"
    start = f"{rule.start_time:%H:%M}" if rule.start_time else "a drawn time"
    if rule.unit == "hour":
        return f"every {unit}"
    return f"every {unit} {f'within {rule.window_minutes} min of' if rule.window_minutes else 'at'} {start}"


def rule_text(rule: Rule) -> str:
    """Return what a rule of any type says, in few words."""
    if rule.type == RuleType.TAG:
        tags = ", ".join(f"{name} = {value}" for name, value in rule.settings.get("tags", {}).items())
        return f"Sources with the tags {tags} are backed up by themselves"
    if rule.type == RuleType.REPLICATION:
        vault = rule.settings.get("vault")
        where = f"the region {rule.settings.get('region')}{f', into {vault}' if vault else ''}"
        return f"Vaults that its plans store in are replicated to {where}"
    kept = f", kept for {rule.retention_days:,} days" if rule.retention_days else ""
    text = schedule_text(rule)
    return f"{text[:1].upper()}{text[1:]}{kept}"


def _local(moment: dt.datetime, zone: str) -> str:
    return f"{moment.astimezone(zoneinfo.ZoneInfo(zone)):%a %Y-%m-%d %H:%M %Z}"


def _spans_shown(policy: Policy, now: dt.datetime) -> str:
    """Return when plans of the policy run next; where starts are drawn, between which times."""
    spans = moments.preview(policy, list(policy.rules.all()), count=RUNS_SHOWN, now=now)
    texts = []
    for span in spans:
        until = "" if span.earliest == span.latest else f" to {_local(span.latest, policy.time_zone)[15:]}"
        texts.append(f"{_local(span.earliest, policy.time_zone)}{until}, by rule {span.rule.position}")
    return lines(texts)


class RuleInline(StackedInline):
    """The rules of a policy, 1 to 10."""

    model = Rule
    form = RuleForm
    formset = RuleFormSet
    fields: ClassVar = [
        "in_words",
        ("type", "retention_days"),
        ("every", "unit"),
        "weekdays",
        ("start_time", "window_minutes"),
        ("starts_on", "cron"),
        "settings",
    ]
    readonly_fields: ClassVar = ["in_words"]

    @display(description="In words")
    def in_words(self, rule: Rule) -> str:
        return "–" if rule._state.adding else rule_text(rule)

    extra = 0
    min_num = 1
    max_num = services.RULES_MAX


def _rules_of(formset: Any) -> list[Rule]:
    """Return the rules as the page has them, in its order, without those to delete; not saved."""
    formset.save(commit=False)  # tells Django's history what changed
    return [form.instance for form in formset.forms if form not in formset.deleted_forms]


@admin.register(Grant)
class GrantAdmin(ServiceAdmin):
    """Grants between accounts (B8): given once, then only revoked."""

    form = GrantForm
    list_display = ["grantor", "grantee", "what", "may", "status", "expires_at", "created_at"]
    list_filter: ClassVar = ["grantor", "grantee"]
    list_select_related = ["grantor", "grantee"]
    search_fields = ["grantor__name", "grantee__name", "note"]
    fields = ["grantor", "grantee", "all_sources", "chosen", "privileges", "expires_at", "note"]
    shown: ClassVar = ["grantor", "grantee", "what", "may", "status", "expires_at", "revoked_at", "note", "created_at"]
    actions_detail: ClassVar = ["revoke"]

    def get_queryset(self, request: HttpRequest) -> Any:
        return super().get_queryset(request).prefetch_related("sources")

    def has_change_permission(self, request: HttpRequest, obj: Grant | None = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Grant | None = None) -> bool:
        return False

    def get_fields(self, request: HttpRequest, obj: Grant | None = None) -> list[str]:
        return list(self.shown) if obj else list(self.fields)

    def get_readonly_fields(self, request: HttpRequest, obj: Grant | None = None) -> list[str]:
        return list(self.shown) if obj else []

    def save_model(self, request: HttpRequest, obj: Grant, form: GrantForm, change: bool) -> None:
        grants.give(obj, sources=form.cleaned_data["chosen"], actor=actor_of(request), now=timezone.now())

    @display(description="Sources")
    def what(self, grant: Grant) -> str:
        if grant.all_sources:
            return "all"
        names = Source.objects.filter(pk__in=[named.source_id for named in grant.sources.all()])
        return ", ".join(str(source) for source in names) or "none that is left"

    @display(description="May")
    def may(self, grant: Grant) -> str:
        return ", ".join(name for name in grant.privileges if name in grants.GIVEN)

    @display(description="State", label={"active": "success", "expired": "warning", "revoked": "danger"})
    def status(self, grant: Grant) -> str:
        return grants.state(grant, now=timezone.now())

    @action(
        description="Revoke",
        icon="block",
        permissions=["view"],
        dialog={
            "title": "Revoke this grant",
            "description": "At once: due plans under it are skipped, new jobs refused. Points that were made stay.",
            "form_class": None,
            "form_submit_text": "Revoke",
        },
    )
    def revoke(self, request: HttpRequest, form: Any, object_id: str) -> HttpResponse:
        grant = Grant.objects.select_related("grantor", "grantee").get(pk=object_id)
        if self.tell_refusals(request, lambda: grants.revoke(grant, actor=actor_of(request), now=timezone.now())):
            messages.success(request, "Revoked.")
        return leave_dialog(request, reverse("admin:accounts_grant_change", args=[object_id]))


@admin.register(Policy)
class PolicyAdmin(RemovableAdmin):
    list_display = ["name", "account", "schedule_shown", "time_zone", "kept"]
    list_filter: ClassVar = ["account"]
    list_select_related = ["account"]
    search_fields = ["name"]
    inlines: ClassVar = [RuleInline]
    fieldsets = [
        (None, {"fields": ["account", "name", "vault"]}),
        ("How long", {"fields": ["retention_days", "keep_at_least_one", "time_zone"]}),
        (
            "Beyond that",
            {"fields": ["keep_last", "keep_daily", "keep_weekly", "keep_monthly", "keep_yearly"]},
        ),
        ("Trial restores", {"fields": ["drill_every_days", "drill_percent"]}),
    ]

    def get_fieldsets(self, request: HttpRequest, obj: Policy | None = None) -> Any:
        sets = super().get_fieldsets(request, obj)
        told = "As stored, in the policy's time zone. A change takes effect on all plans at once."
        return [*sets, ("Next runs", {"fields": ["runs_shown", "copies_shown"], "description": told})] if obj else sets

    def get_readonly_fields(self, request: HttpRequest, obj: Policy | None = None) -> Any:
        return [*super().get_readonly_fields(request, obj), "runs_shown", "copies_shown"]

    @display(description="Copies in another region")
    def copies_shown(self, policy: Policy) -> str:
        return lines([copy.text for copy in copies.told(policy)]) or "–"

    @display(description="Next runs")
    def runs_shown(self, policy: Policy) -> str:
        return _spans_shown(policy, timezone.now())

    def get_queryset(self, request: HttpRequest) -> models.QuerySet[Policy]:
        found: models.QuerySet[Policy] = super().get_queryset(request)
        return found.filter(inline=False).prefetch_related("rules")

    def save_model(self, request: HttpRequest, obj: Policy, form: Any, change: bool) -> None:
        """Leave it to save_related: a policy and its rules are stored together."""

    def save_related(self, request: HttpRequest, form: Any, formsets: Any, change: bool) -> None:
        obj, now = form.instance, timezone.now()
        services.save_policy(obj, rules=_rules_of(formsets[0]), actor=actor_of(request), now=now)
        for warning in [*retention.warnings_on_disable(obj, now=now), *copies.warnings(obj)]:
            messages.warning(request, warning)
        changes = retention.preview_change(obj, now=now)
        if going := sum(len(one.going) for one in changes):
            total = sum(one.points for one in changes)
            messages.warning(request, f"By these rules {going} of {total} recovery points go with the next expiries.")

    @display(description="Schedule")
    def schedule_shown(self, policy: Policy) -> str:
        return lines([schedule_text(rule) for rule in policy.rules.all() if rule.type == RuleType.BACKUP])

    @display(description="Kept", ordering="retention_days")
    def kept(self, policy: Policy) -> str:
        return rules_text(policy)


@admin.register(Plan)
class PlanAdmin(RemovableAdmin):
    list_display = ["source", "policy", "vault", "status", "next_run_at", "account"]
    list_filter: ClassVar = ["state", "account", "policy", "vault"]
    list_select_related = ["source", "policy", "vault", "account"]
    search_fields = ["source__name", "policy__name", "vault__name"]
    fields = ["source", "policy", "vault", "time_zone", "start_not_before", "catch_up"]
    shown: ClassVar = ["status", "start_shown", "next_drill_at", "runs_shown"]
    actions_detail = ["pause", "resume"]

    def get_fields(self, request: HttpRequest, obj: Plan | None = None) -> list[str]:
        return [*self.fields, *self.shown] if obj else list(self.fields)

    def get_readonly_fields(self, request: HttpRequest, obj: Plan | None = None) -> list[str]:
        return ["source", "policy", "vault", *self.shown] if obj else []

    def save_model(self, request: HttpRequest, obj: Plan, form: Any, change: bool) -> None:
        if change:
            services.change_plan(obj, actor=actor_of(request), now=timezone.now())
        else:
            services.create_plan(obj, actor=actor_of(request), now=timezone.now())

    @display(description="State", label={"Active": "success", "Paused": "warning"})
    def status(self, plan: Plan) -> str:
        return plan.get_state_display()

    @display(description="Start")
    def start_shown(self, plan: Plan) -> str:
        if plan.start_time is not None:
            return f"{plan.start_time:%H:%M}, set for this plan"
        return f"{plan.start_minute // 60:02d}:{plan.start_minute % 60:02d}, drawn once; a time of the rule comes first"

    @display(description="Next runs")
    def runs_shown(self, plan: Plan) -> str:
        zone = moments.zone_of(plan)
        runs = moments.upcoming(plan, count=RUNS_SHOWN, now=timezone.now())
        return lines([f"{_local(run.moment, zone)}, by rule {run.rule.position}" for run in runs])

    @action(
        description="Pause",
        icon="pause",
        permissions=["change"],
        dialog={
            "title": "Pause this plan",
            "description": "No more runs until it is resumed. Points stay and expire as they would.",
            "form_class": PauseForm,
            "form_submit_text": "Pause",
        },
    )
    def pause(self, request: HttpRequest, form: Any, object_id: str) -> HttpResponse:
        return self._call(request, services.pause, object_id, "Paused.")

    @action(
        description="Resume",
        icon="play_arrow",
        permissions=["change"],
        dialog={
            "title": "Resume this plan",
            "description": "It runs again from its next moment on.",
            "form_class": None,
            "form_submit_text": "Resume",
        },
    )
    def resume(self, request: HttpRequest, form: Any, object_id: str) -> HttpResponse:
        return self._call(request, services.resume, object_id, "Resumed.")

    def _call(self, request: HttpRequest, service: Any, object_id: str, done: str) -> HttpResponse:
        plan = Plan.objects.select_related("account", "source", "policy", "vault").get(pk=object_id)
        if self.tell_refusals(request, lambda: service(plan, actor=actor_of(request), now=timezone.now())):
            messages.success(request, done)
        return leave_dialog(request, reverse("admin:policies_plan_change", args=[object_id]))
