"""Console pages of jobs and workers, and the buttons that start jobs on the pages of plans, points and vaults."""

from typing import Any, ClassVar

from django.contrib import admin, messages
from django.core.exceptions import ValidationError
from django.db import transaction
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils import timezone
from django.utils.html import format_html

from accounts.console import ReadOnlyAdmin, ReadOnlyInline, action, actor_of, display, human_bytes, leave_dialog, lines
from jobs import passwords, removal, services
from jobs.console import (
    PointButtons,
    SourceButtons,
    VaultButtons,
    decision_lines,
    dialog,
    done_so_far,
    problem_lines,
    report_lines,
    start,
    started,
)
from jobs.forms import ConfirmExpiryForm, RestoreForm, VerifyForm
from jobs.models import Job, JobEvent, Step, Worker
from policies.admin import PlanAdmin, SourceAdmin
from policies.models import Plan, Source
from vaults.admin import RecoveryPointAdmin, VaultAdmin
from vaults.models import RecoveryPoint, Vault

STATE_LABELS = {
    "Complete": "success",
    "Partially complete": "warning",
    "Failed": "danger",
    "Running": "info",
    "Queued": "info",
    "Canceling": "warning",
    "Missed": "danger",
}


CHANGE_SOURCE = "policies.change_source"


class EventInline(ReadOnlyInline):
    model = JobEvent
    fields: ClassVar = ["happened_at", "level", "text"]
    readonly_fields = fields
    verbose_name_plural = "Story"


class StepInline(ReadOnlyInline):
    model = Step
    fields: ClassVar = ["stage", "number", "round", "status", "attempt", "worker", "amount", "error"]
    readonly_fields = fields
    per_page = 20
    verbose_name_plural = "Steps"

    @display(description="State", label=STATE_LABELS)
    def status(self, step: Step) -> str:
        return step.get_state_display()

    @display(description="Done")
    def amount(self, step: Step) -> str:
        return f"{step.entries_done} entries, {human_bytes(step.bytes_done)}"


@admin.register(Job)
class JobAdmin(ReadOnlyAdmin):
    list_display = ["created_at", "kind", "status", "about", "vault", "amount", "duration", "trigger"]
    list_filter: ClassVar = ["state", "kind", "trigger", "vault"]
    list_select_related = ["source", "vault", "point"]
    search_fields = ["id", "source__name", "error"]
    date_hierarchy = "created_at"
    actions_detail: ClassVar = ["confirm", "passwords", "cancel"]
    inlines = [EventInline, StepInline]
    fieldsets = [
        (None, {"fields": ["kind", "status", "about", "vault", "point", "trigger", "requested_by", "error_shown"]}),
        ("Progress", {"fields": ["progress", "amount", "stored", "requests", "problems_count", "problems", "mounts"]}),
        ("Result", {"fields": ["report_shown", "decisions"]}),
        ("Time", {"fields": ["created_at", "scheduled_for", "started_at", "ended_at", "duration"]}),
    ]

    @display(description="State", label=STATE_LABELS, ordering="state")
    def status(self, job: Job) -> str:
        return job.get_state_display()

    @display(description="Source", ordering="source__name")
    def about(self, job: Job) -> str:
        return str(job.source or "–")

    @display(description="Read")
    def amount(self, job: Job) -> str:
        return f"{job.entries_done:,} entries, {human_bytes(job.bytes_done)}" if job.started_at else "–"

    @display(description="Added to the vault")
    def stored(self, job: Job) -> str:
        return human_bytes(job.bytes_stored)

    @display(description="Took")
    def duration(self, job: Job) -> str:
        if not job.started_at:
            return "–"
        seconds = ((job.ended_at or timezone.now()) - job.started_at).total_seconds()
        return f"{seconds:.1f} s" if seconds < 120 else f"{seconds / 60:.0f} min"

    @display(description="Progress")
    def progress(self, job: Job) -> str:
        return f"{job.get_stage_display()}{f' ({job.phase})' if job.phase else ''}: {done_so_far(job)}"

    @display(description="Error")
    def error_shown(self, job: Job) -> str:
        return format_html('<span class="text-red-700 dark:text-red-400">{}</span>', job.error) if job.error else "–"

    @display(description="Requests to the source")
    def requests(self, job: Job) -> str:
        return lines([f"{verb}: {count:,}" for verb, count in sorted(job.report.get("requests", {}).items())])

    @display(description="Problems")
    def problems(self, job: Job) -> str:
        return problem_lines(job)

    @display(description="Report")
    def report_shown(self, job: Job) -> str:
        return report_lines(job)

    @display(description="Points")
    def decisions(self, job: Job) -> str:
        return decision_lines(job)

    @action(
        description="Let it pass",
        icon="done_all",
        permissions=["view"],
        dialog=dialog(
            "Run this expiry past its guards",
            "Look at a dry run and at the clock first. Points that are held or locked stay all the same.",
            ConfirmExpiryForm,
            "Expire",
        ),
    )
    def confirm(self, request: HttpRequest, form: ConfirmExpiryForm, object_id: str) -> HttpResponse:
        job = Job.objects.select_related("vault__account", "vault__region").get(pk=object_id)
        return start(
            self,
            request,
            lambda: removal.confirm_expiry(job, actor=actor_of(request), now=timezone.now()),
            reverse("admin:jobs_job_change", args=[object_id]),
        )

    def get_actions_detail(self, request: HttpRequest, object_id: Any) -> list[Any]:
        """Offer to let pass only what a guard refused."""
        found: list[Any] = super().get_actions_detail(request, object_id)
        if Job.objects.filter(pk=object_id, error_code=removal.EXPIRY_REFUSED).exists():
            return found
        return [one for one in found if one.method.__name__ != "confirm"]

    @display(description="Other file systems inside")
    def mounts(self, job: Job) -> str:
        return lines(job.report.get("mounts", []))

    @action(
        description="New passwords",
        icon="password",
        permissions=["view"],
        dialog=dialog(
            "Show the passwords that this restore made",
            "They are shown this once, and kept nowhere afterwards.",
            None,
            "Show them",
        ),
    )
    def passwords(self, request: HttpRequest, form: Any, object_id: str) -> HttpResponse:
        job = Job.objects.select_related("account").get(pk=object_id)
        shown = self.tell_refusals(request, lambda: passwords.take(job, actor=actor_of(request), now=timezone.now()))
        if not shown:
            return leave_dialog(request, reverse("admin:jobs_job_change", args=[object_id]))
        answer = TemplateResponse(request, "admin/passwords_shown.html", {"passwords": shown})
        answer["Cache-Control"] = "no-store"
        answer["HX-Retarget"] = answer["HX-Reselect"] = "#dialog"  # take the place of the whole dialog
        return answer

    @action(
        description="Cancel",
        icon="cancel",
        permissions=["view"],
        dialog={
            "title": "Cancel this job",
            "description": "Waiting steps end at once, running ones at their next check. Earlier points stay.",
            "form_class": None,
            "form_submit_text": "Cancel the job",
        },
    )
    def cancel(self, request: HttpRequest, form: Any, object_id: str) -> HttpResponse:
        job = Job.objects.select_related("account").get(pk=object_id)
        call = self.tell_refusals(
            request, lambda: services.request_cancel(job, actor=actor_of(request), now=timezone.now())
        )
        if call:
            messages.success(request, f"{call.get_state_display()}.")
        return leave_dialog(request, reverse("admin:jobs_job_change", args=[object_id]))


@admin.register(Worker)
class WorkerAdmin(ReadOnlyAdmin):
    list_display = ["name", "queues_shown", "seen_at"]

    @display(description="Queues")
    def queues_shown(self, worker: Worker) -> str:
        return ", ".join(worker.queues)


admin.site.unregister([Plan, RecoveryPoint, Source, Vault])


@admin.register(Plan)
class RunnablePlanAdmin(PlanAdmin):
    """The page of a plan, with the button that runs it."""

    actions_detail = ["run_now", *PlanAdmin.actions_detail]

    @action(
        description="Back up now",
        icon="backup",
        permissions=["change"],
        dialog={
            "title": "Back up now",
            "description": "Starts a backup of this plan's source.",
            "form_class": None,
            "form_submit_text": "Start",
        },
    )
    def run_now(self, request: HttpRequest, form: Any, object_id: str) -> HttpResponse:
        plan = Plan.objects.select_related("account", "source", "vault__region").get(pk=object_id)
        with transaction.atomic():
            job = self.tell_refusals(
                request, lambda: services.request_backup(plan, actor=actor_of(request), now=timezone.now())
            )
            return started(request, job, reverse("admin:policies_plan_change", args=[object_id]))


@admin.register(RecoveryPoint)
class RestorablePointAdmin(PointButtons, RecoveryPointAdmin):
    """The page of a point, with the buttons that restore, hold and delete it."""

    actions_detail: ClassVar = ["restore", *PointButtons.buttons]
    fieldsets = [
        RecoveryPointAdmin.fieldsets[0],
        ("Time", {"fields": ["started_at", "completed_at"]}),
        ("How long it is kept", {"fields": ["retention_days", "expires_at", "locked_until", "hold_shown"]}),
        *RecoveryPointAdmin.fieldsets[2:],
    ]

    @action(
        description="Restore",
        icon="settings_backup_restore",
        permissions=["view"],
        dialog={
            "title": "Restore this point",
            "description": "A file /a/b lands at /a/b below the place you name, or at its original place.",
            "form_class": RestoreForm,
            "form_submit_text": "Restore",
        },
    )
    def restore(self, request: HttpRequest, form: RestoreForm, object_id: str) -> HttpResponse:
        point = RecoveryPoint.objects.select_related("vault__account", "vault__region").get(pk=object_id)

        def ask() -> Job:
            if services.shows_credentials(point, form.selection()) and not request.user.has_perm(CHANGE_SOURCE):
                raise ValidationError("Only who may change the destination may show its credentials to another server.")
            return services.request_restore(point, form.selection(), actor=actor_of(request), now=timezone.now())

        with transaction.atomic():
            job = self.tell_refusals(request, ask)
            return started(request, job, reverse("admin:vaults_recoverypoint_change", args=[object_id]))


@admin.register(Source)
class ErasableSourceAdmin(SourceButtons, SourceAdmin):
    """The page of a source, with the buttons that try a restore and delete all its backups."""

    actions_detail: ClassVar = [*SourceAdmin.actions_detail, *SourceButtons.buttons]

    def get_fieldsets(self, request: HttpRequest, obj: Source | None = None) -> Any:
        told = [("Deletion", {"fields": ["erasing"]})] if obj and obj.erasing_since else []
        return [*super().get_fieldsets(request, obj), *told]

    def get_readonly_fields(self, request: HttpRequest, obj: Source | None = None) -> Any:
        return [*super().get_readonly_fields(request, obj), "erasing"]


@admin.register(Vault)
class VerifiableVaultAdmin(VaultButtons, VaultAdmin):
    """The page of a vault, with the buttons that verify and maintain it."""

    actions_detail: ClassVar = [*VaultButtons.buttons, *VaultAdmin.actions_detail]

    @action(
        description="Verify",
        icon="verified",
        permissions=["view"],
        dialog={
            "title": "Verify this vault",
            "description": "inventory is quickest, content reads and decrypts everything.",
            "form_class": VerifyForm,
            "form_submit_text": "Verify",
        },
    )
    def verify(self, request: HttpRequest, form: VerifyForm, object_id: str) -> HttpResponse:
        vault = Vault.objects.select_related("account", "region").get(pk=object_id)
        job = services.request_verify(
            vault, level=form.cleaned_data["level"], actor=actor_of(request), now=timezone.now()
        )
        return started(request, job, reverse("admin:vaults_vault_change", args=[object_id]))
