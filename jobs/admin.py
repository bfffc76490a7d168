"""Console pages of jobs and workers, and the buttons that start jobs on the pages of plans, points and vaults."""

from typing import Any, ClassVar
from uuid import UUID

from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied, ValidationError
from django.db import transaction
from django.db.models import QuerySet
from django.http import Http404, HttpRequest, HttpResponse, StreamingHttpResponse
from django.template.response import TemplateResponse
from django.urls import path, reverse
from django.utils import timezone
from django.utils.html import format_html

from accounts.console import ReadOnlyAdmin, ReadOnlyInline, action, actor_of, display, human_bytes, leave_dialog, lines
from jobs import comparing, course, jobpage, passwords, problems, removal, retrying, services, starts
from jobs.alert_console import PlanWatchButton
from jobs.cluster_console import ClusterButtons
from jobs.console import (
    PointButtons,
    SourceButtons,
    VaultButtons,
    dialog,
    start,
    started,
)
from jobs.edition_console import ConversionButton, PlanningButtons
from jobs.forms import ConfirmExpiryForm, RestoreForm, RetryForm, StartTimeForm, VerifyForm
from jobs.models import Job, JobEvent, Step, Worker
from jobs.states import JobState
from policies.admin import PlanAdmin, SourceAdmin
from policies.kinds import TYPES
from policies.models import Plan, Source
from policies.services import long_run
from vaults.admin import RecoveryPointAdmin, VaultAdmin
from vaults.models import RecoveryPoint, Vault

STATE_LABELS = {JobState(state).label: variant for state, variant in jobpage.VARIANTS.items()}


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
    list_display = ["created_at", "kind", "status", "about", "vault", "told", "read", "added", "duration", "trigger"]
    list_filter: ClassVar = ["vault__region__branch", "state", "kind", "trigger", "vault"]
    list_select_related = ["source", "vault__region", "point"]
    search_fields = ["id", "source__name", "error"]
    date_hierarchy = "created_at"
    actions_detail: ClassVar = ["cancel", "retry", "compare", "confirm", "passwords"]
    inlines = [EventInline, StepInline]
    fieldsets = [
        ("State", {"fields": ["live", "error_shown", "problems"]}),
        ("About", {"fields": ["kind", "about", "vault", "point", "trigger", "requested_by", "retry_of", "retried_by"]}),
        ("Result", {"fields": ["report_shown", "requests", "mounts", "decisions"]}),
        ("Time", {"fields": ["created_at", "scheduled_for", "started_at", "ended_at", "duration"]}),
    ]

    def get_queryset(self, request: HttpRequest) -> QuerySet[Job]:
        found: QuerySet[Job] = super().get_queryset(request)
        is_list = request.resolver_match is not None and request.resolver_match.url_name == "jobs_job_changelist"
        return found.defer("report") if is_list else found.select_related("source", "vault__region")

    def get_fieldsets(self, request: HttpRequest, obj: Job | None = None) -> Any:
        """Show only what there is something to tell of."""
        found = super().get_fieldsets(request, obj)
        if obj is None:
            return found
        told = [(title, [name for name in shown["fields"] if self._tells(obj, str(name))]) for title, shown in found]
        return [(title, {"fields": names}) for title, names in told if names]

    def _tells(self, job: Job, name: str) -> bool:
        if name == "live":
            return True
        value = getattr(self, name)(job) if hasattr(self, name) else getattr(job, name)
        return value not in (None, "", "–")

    def get_urls(self) -> list[Any]:
        return [
            path("<uuid:object_id>/live/", self.admin_site.admin_view(self.live_view), name="jobs_job_live"),
            path(
                "<uuid:object_id>/problems.<str:format>",
                self.admin_site.admin_view(self.problems_view),
                name="jobs_job_problems",
            ),
            *super().get_urls(),
        ]

    def live_view(self, request: HttpRequest, object_id: UUID) -> HttpResponse:
        """Return the page's moving part; once the job has ended, let the browser load the whole page a last time."""
        job = self._visible(request, object_id)
        return HttpResponse(
            jobpage.live(job, now=timezone.now()), headers={"HX-Refresh": "true"} if job.ended else None
        )

    def problems_view(self, request: HttpRequest, object_id: UUID, format: str) -> StreamingHttpResponse:
        if format not in problems.FORMATS:
            raise Http404
        return jobpage.problems_download(self._visible(request, object_id), format)

    def _visible(self, request: HttpRequest, object_id: UUID) -> Job:
        job: Job | None = self.get_object(request, str(object_id))
        if job is None:
            raise Http404
        if not self.has_view_permission(request, job):
            raise PermissionDenied
        return job

    @display(description="State", label=STATE_LABELS, ordering="state")
    def status(self, job: Job) -> str:
        return job.get_state_display()

    @display(description="Source", ordering="source__name")
    def about(self, job: Job) -> str:
        return str(job.source or "–")

    @display(description="How it goes")
    def told(self, job: Job) -> str:
        return jobpage.outcome(job, now=timezone.now())

    @display(description="Processed")
    def read(self, job: Job) -> str:
        return human_bytes(course.statistics(job)["bytes_processed"]) if job.started_at else "–"

    @display(description="New")
    def added(self, job: Job) -> str:
        new = course.statistics(job)["bytes_new"]
        return "–" if new is None else human_bytes(new)

    @display(description="Took")
    def duration(self, job: Job) -> str:
        if not job.started_at:
            return "–"
        return jobpage.span(((job.ended_at or timezone.now()) - job.started_at).total_seconds())

    @display(description="Progress")
    def live(self, job: Job) -> str:
        return jobpage.live(job, now=timezone.now())

    @display(description="Done again by")
    def retried_by(self, job: Job) -> str:
        return lines([f"{one} ({one.get_state_display().lower()})" for one in job.retries.all()])

    @display(description="Error")
    def error_shown(self, job: Job) -> str:
        return format_html('<span class="text-red-700 dark:text-red-400">{}</span>', job.error) if job.error else "–"

    @display(description="Requests to the source")
    def requests(self, job: Job) -> str:
        return lines([f"{verb}: {count:,}" for verb, count in sorted(job.report.get("requests", {}).items())])

    @display(description="Problems and what was left out")
    def problems(self, job: Job) -> str:
        return jobpage.problem_lines_and_files(job)

    @display(description="Report")
    def report_shown(self, job: Job) -> str:
        return jobpage.report_lines(job)

    @display(description="Points")
    def decisions(self, job: Job) -> str:
        return jobpage.decision_lines(job)

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
        """Offer what the job's state allows: to let pass only what a guard refused, to retry what ended badly."""
        found: list[Any] = super().get_actions_detail(request, object_id)
        job = Job.objects.filter(pk=object_id).select_related("source").first()
        if job is None:
            return []
        offered = {
            "cancel": not job.ended,
            "retry": retrying.offered(job),
            "compare": comparing.offered(job),
            "confirm": job.error_code == removal.EXPIRY_REFUSED,
            "passwords": bool(job.passwords),
        }
        return [one for one in found if offered.get(one.method.__name__, True)]

    @action(
        description="Retry",
        icon="replay",
        permissions=["view"],
        dialog=dialog("Retry this job", "Starts a new job of the same request.", RetryForm, "Start"),
    )
    def retry(self, request: HttpRequest, form: RetryForm, object_id: str) -> HttpResponse:
        job = Job.objects.select_related("point", "source", "vault__account").get(pk=object_id)

        def ask() -> Job:
            if retrying.shows_credentials(job) and not request.user.has_perm(CHANGE_SOURCE):
                raise ValidationError("Only who may change the destination may show its credentials to another server.")
            return retrying.retry(
                job, failed_only=form.cleaned_data["failed_only"], actor=actor_of(request), now=timezone.now()
            )

        return start(self, request, ask, reverse("admin:jobs_job_change", args=[object_id]))

    @action(
        description="Verify what was restored",
        icon="fact_check",
        permissions=["view"],
        dialog=dialog(
            "Verify what was restored",
            "Reads the restored files on their host and compares each, and its attributes, with the recovery point.",
            None,
            "Start",
        ),
    )
    def compare(self, request: HttpRequest, form: Any, object_id: str) -> HttpResponse:
        job = Job.objects.select_related("account", "point", "source", "vault").get(pk=object_id)
        return start(
            self,
            request,
            lambda: comparing.request_comparison(job, actor=actor_of(request), now=timezone.now()),
            reverse("admin:jobs_job_change", args=[object_id]),
        )

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
class RunnablePlanAdmin(ConversionButton, PlanWatchButton, PlanAdmin):
    """The page of a plan, with the buttons that run it and say when it is overdue."""

    actions_detail = ["run_now", *PlanAdmin.actions_detail, "start_time", "watch", "convert"]

    @action(
        description="Change time",
        icon="schedule",
        permissions=["change"],
        dialog={
            "title": "Run at another time of day",
            "description": "",
            "form_class": StartTimeForm,
            "form_submit_text": "Change",
        },
    )
    def start_time(self, request: HttpRequest, form: StartTimeForm, object_id: str) -> HttpResponse:
        plan = Plan.objects.select_related("account", "source", "policy", "vault__region").get(pk=object_id)
        wanted = form.cleaned_data["start_time"]
        found = self.tell_refusals(
            request, lambda: starts.change(plan, wanted, actor=actor_of(request), now=timezone.now())
        )
        if found:
            messages.success(request, found.case.label)
        return leave_dialog(request, reverse("admin:policies_plan_change", args=[object_id]))

    def get_fields(self, request: HttpRequest, obj: Plan | None = None) -> list[str]:
        return [*super().get_fields(request, obj), *(["size_warning"] if obj and long_run(obj) else [])]

    def get_readonly_fields(self, request: HttpRequest, obj: Plan | None = None) -> list[str]:
        return [*super().get_readonly_fields(request, obj), "size_warning"]

    @display(description="Before the next run")
    def size_warning(self, plan: Plan) -> str:
        return format_html('<span class="text-orange-700 dark:text-orange-400">{}</span>', long_run(plan))

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
class ErasableSourceAdmin(PlanningButtons, ClusterButtons, SourceButtons, SourceAdmin):
    """The page of a source, with the buttons that try a restore and delete all its backups; and a cluster's own."""

    actions_detail: ClassVar = [
        *PlanningButtons.planning,
        *ClusterButtons.buttons,
        *SourceAdmin.actions_detail,
        *SourceButtons.buttons,
    ]

    def get_fieldsets(self, request: HttpRequest, obj: Source | None = None) -> Any:
        told = [("Deletion", {"fields": ["erasing"]})] if obj and obj.erasing_since else []
        sets = [*super().get_fieldsets(request, obj), *told]
        if obj and TYPES[obj.kind].is_cluster:
            sets.insert(1, ("Automatic backup", {"fields": self.panel}))
        return sets

    def get_readonly_fields(self, request: HttpRequest, obj: Source | None = None) -> Any:
        return [*super().get_readonly_fields(request, obj), "erasing", *self.panel]


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
