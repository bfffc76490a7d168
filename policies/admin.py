"""Console pages of sources, policies and plans."""

import datetime as dt
from typing import Any, ClassVar

from django import forms
from django.contrib import admin, messages
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils import timezone
from django.utils.html import format_html
from unfold.widgets import UnfoldAdminTextareaWidget, UnfoldBooleanSwitchWidget

from accounts.console import ServiceAdmin, action, actor_of, display, leave_dialog, lines
from policies import retention, services
from policies.forms import PauseForm
from policies.models import Plan, Policy, Source
from vaults.admin import drills_shown
from vaults.models import Vault

COUNTED = ("keep_last", "keep_daily", "keep_weekly", "keep_monthly", "keep_yearly")


class LinesField(forms.CharField):
    """A list of texts, typed one a line."""

    widget = UnfoldAdminTextareaWidget

    def prepare_value(self, value: Any) -> Any:
        return "\n".join(value) if isinstance(value, list) else value

    def clean(self, value: Any) -> Any:
        return [line.strip() for line in super().clean(value).splitlines() if line.strip()]


class SourceForm(forms.ModelForm[Source]):
    roots = LinesField(label="Folders and files", help_text="Absolute paths on the host, one a line")
    include = LinesField(required=False, help_text="Only what matches these patterns, one a line; empty is everything")
    exclude = LinesField(required=False, help_text="Never what matches these patterns, one a line")
    one_file_system = forms.BooleanField(
        required=False, widget=UnfoldBooleanSwitchWidget, help_text="Leave out other file systems mounted inside"
    )

    class Meta:
        model = Source
        fields = ("account", "region", "name", "kind", "host")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for name in ("roots", "include", "exclude", "one_file_system"):
            self.initial.setdefault(name, self.instance.settings.get(name))

    def settings(self) -> dict[str, Any]:
        """Return the source's settings as typed."""
        return {name: self.cleaned_data[name] for name in ("roots", "include", "exclude", "one_file_system")}


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
    form = SourceForm
    list_display = ["name", "account", "host", "kind", "folders", "warned"]
    list_filter: ClassVar = ["account", "kind", "host"]
    list_select_related = ["account"]
    search_fields = ["name", "host"]
    readonly_fields = ["warnings_shown", "drills"]
    actions_detail: ClassVar = ["retention"]
    fieldsets = [
        (None, {"fields": ["account", "name", "kind", "host", "region"]}),
        ("What to protect", {"fields": ["roots", "include", "exclude", "one_file_system", "warnings_shown"]}),
    ]

    def get_fieldsets(self, request: HttpRequest, obj: Source | None = None) -> Any:
        return [*self.fieldsets, ("Proof", {"fields": ["drills"]})] if obj else self.fieldsets

    @display(description="Trial restores")
    def drills(self, source: Source) -> str:
        return drills_shown(source.jobs)

    def save_model(self, request: HttpRequest, obj: Source, form: SourceForm, change: bool) -> None:
        obj.settings = form.settings()
        services.save_source(obj, actor=actor_of(request), now=timezone.now())
        for warning in obj.warnings:
            messages.warning(request, warning)

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

    @display(description="Folders")
    def folders(self, source: Source) -> str:
        return lines(source.settings.get("roots", []))

    @display(description="Warnings", label={"None": "success"})
    def warned(self, source: Source) -> str:
        return str(len(source.warnings)) if source.warnings else "None"

    @display(description="Warnings")
    def warnings_shown(self, source: Source) -> str:
        return lines(source.warnings)


@admin.register(Policy)
class PolicyAdmin(RemovableAdmin):
    list_display = ["name", "account", "schedule_shown", "time_zone", "kept"]
    list_filter: ClassVar = ["account"]
    list_select_related = ["account"]
    search_fields = ["name"]
    fieldsets = [
        (None, {"fields": ["account", "name"]}),
        ("When", {"fields": ["every", "unit", "start_time", "starts_on", "cron", "time_zone"]}),
        ("How long", {"fields": ["retention_days", "keep_at_least_one"]}),
        (
            "Beyond that",
            {"fields": ["keep_last", "keep_daily", "keep_weekly", "keep_monthly", "keep_yearly"]},
        ),
        ("Trial restores", {"fields": ["drill_every_days", "drill_percent"]}),
    ]

    def save_model(self, request: HttpRequest, obj: Policy, form: Any, change: bool) -> None:
        now = timezone.now()
        services.save_policy(obj, actor=actor_of(request), now=now)
        for warning in retention.warnings_on_disable(obj, now=now):
            messages.warning(request, warning)
        changes = retention.preview_change(obj, now=now)
        if going := sum(len(one.going) for one in changes):
            total = sum(one.points for one in changes)
            messages.warning(request, f"By these rules {going} of {total} recovery points go with the next expiries.")

    @display(description="Schedule")
    def schedule_shown(self, policy: Policy) -> str:
        if policy.cron:
            return policy.cron
        unit = policy.unit if policy.every == 1 else f"{policy.every} {policy.unit}s"
        start = f"{policy.start_time:%H:%M}" if policy.start_time else "a drawn time"
        return f"every {unit} at {start}" if policy.unit != "hour" else f"every {unit}"

    @display(description="Kept", ordering="retention_days")
    def kept(self, policy: Policy) -> str:
        return rules_text(policy)


@admin.register(Plan)
class PlanAdmin(RemovableAdmin):
    list_display = ["source", "policy", "vault", "status", "next_run_at", "account"]
    list_filter: ClassVar = ["state", "account", "policy", "vault"]
    list_select_related = ["source", "policy", "vault", "account"]
    search_fields = ["source__name", "policy__name", "vault__name"]
    fields = ["source", "policy", "vault", "catch_up"]
    shown: ClassVar = ["status", "next_run_at", "start_shown", "next_drill_at"]
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

    @display(description="Drawn start")
    def start_shown(self, plan: Plan) -> str:
        return f"{plan.start_minute // 60:02d}:{plan.start_minute % 60:02d}"

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
