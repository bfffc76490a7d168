"""The buttons that jobs put on the pages of sources, points and vaults."""

from collections.abc import Callable
from typing import Any, ClassVar

from django.contrib import messages
from django.db import transaction
from django.http import HttpRequest, HttpResponse
from django.urls import reverse
from django.utils import timezone

from accounts.console import ServiceAdmin, action, actor_of, display, human_bytes, leave_dialog
from jobs import doorbell, maintenance, removal, services
from jobs.forms import (
    DrillForm,
    DryRunForm,
    ErasureForm,
    ExpireForm,
    HoldForm,
    IntervalsForm,
    PointDeletionForm,
)
from jobs.models import Job
from jobs.states import Kind
from policies.models import Source
from vaults import freed
from vaults.models import RecoveryPoint, Vault


def dialog(title: str, text: str, form: Any, submit: str) -> dict[str, Any]:
    """Return what unfold needs for the dialog of a button."""
    return {"title": title, "description": text, "form_class": form, "form_submit_text": submit}


def started(request: HttpRequest, job: Job | None, back: str) -> HttpResponse:
    """Go to the job that was started, or back to where the refusal is shown."""
    if job is None:
        return leave_dialog(request, back)
    doorbell.ring(services.first_step(job), now=timezone.now())
    messages.success(request, "The job is on its way.")
    return leave_dialog(request, reverse("admin:jobs_job_change", args=[job.pk]))


def start(admin: ServiceAdmin, request: HttpRequest, call: Callable[[], Job], back: str) -> HttpResponse:
    """Start a job and go to it; a refusal is shown where one came from."""
    with transaction.atomic():
        return started(request, admin.tell_refusals(request, call), back)


def told_of(found: freed.Freed) -> str:
    """Say what deleting points of one vault would free."""
    points = "this point" if found.points == 1 else f"these {found.points:,} points"
    when = f" (as metered on {found.as_of})" if found.as_of else ""
    if not found.bytes:
        return f"{found.vault}: deleting {points} frees nothing by itself: other points need every pack of it{when}."
    return f"{found.vault}: deleting {points} frees about {human_bytes(found.bytes)} at the next prune{when}."


class PointButtons(ServiceAdmin):
    """Hold, release and delete on the page of a point."""

    buttons: ClassVar[list[Any]] = ["hold", "release", "freed", "request_deletion"]

    def get_actions_detail(self, request: HttpRequest, object_id: Any) -> list[Any]:
        """Offer to hold what nobody holds, and to release what somebody does."""
        found: list[Any] = super().get_actions_detail(request, object_id)
        held = RecoveryPoint.objects.filter(pk=object_id, held_at__isnull=False).exists()
        return [one for one in found if one.method.__name__ != ("hold" if held else "release")]

    @display(description="Hold")
    def hold_shown(self, point: RecoveryPoint) -> str:
        if point.delete_due_at:
            return (
                f"{point.delete_asked_by} deleted it at its source: it goes here on "
                f"{point.delete_due_at:%Y-%m-%d %H:%M} UTC, unless somebody holds it"
            )
        if not point.held_at:
            return "–"
        who = f" by {point.held_by}" if point.held_by else ""
        return f"Held since {point.held_at:%Y-%m-%d %H:%M}{who}: {point.hold_reason or 'no reason was given'}"

    def _point(self, object_id: str) -> RecoveryPoint:
        return RecoveryPoint.objects.select_related("vault__account", "vault__region").get(pk=object_id)

    @action(
        description="Hold",
        icon="front_hand",
        permissions=["view"],
        dialog=dialog("Hold this point", "It stays, whatever the rules say, until it is released.", HoldForm, "Hold"),
    )
    def hold(self, request: HttpRequest, form: HoldForm, object_id: str) -> HttpResponse:
        point, reason = self._point(object_id), form.cleaned_data["reason"]
        if self.tell_refusals(
            request, lambda: removal.hold(point, reason=reason, actor=actor_of(request), now=timezone.now())
        ):
            messages.success(request, "The point is held.")
        return leave_dialog(request, reverse("admin:vaults_recoverypoint_change", args=[object_id]))

    @action(
        description="Release",
        icon="lock_open",
        permissions=["view"],
        dialog=dialog("Release this point", "The rules decide over it again at the next expiry.", None, "Release"),
    )
    def release(self, request: HttpRequest, form: Any, object_id: str) -> HttpResponse:
        point = self._point(object_id)
        if self.tell_refusals(request, lambda: removal.release(point, actor=actor_of(request), now=timezone.now())):
            messages.success(request, "Nobody holds the point any more.")
        return leave_dialog(request, reverse("admin:vaults_recoverypoint_change", args=[object_id]))

    @action(description="What deleting frees", icon="data_usage", permissions=["view"])
    def freed(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Say what deleting the point would free; nothing is deleted."""
        point = self._point(object_id)
        found = self.tell_refusals(request, lambda: freed.by_points(point.vault, [point]))
        if found:
            messages.info(request, told_of(found))
        return leave_dialog(request, reverse("admin:vaults_recoverypoint_change", args=[object_id]))

    @action(
        description="Delete",
        icon="delete_forever",
        permissions=["view"],
        dialog=dialog("Delete this point", "", PointDeletionForm, "Delete for good"),
    )
    def request_deletion(self, request: HttpRequest, form: PointDeletionForm, object_id: str) -> HttpResponse:
        point, typed = self._point(object_id), form.cleaned_data["confirmation"]
        return start(
            self,
            request,
            lambda: removal.delete_point(point, confirmation=typed, actor=actor_of(request), now=timezone.now()),
            reverse("admin:vaults_recoverypoint_change", args=[object_id]),
        )


class SourceButtons(ServiceAdmin):
    """Trial connection, trial restore, and deletion of all backups, on the page of a source."""

    buttons: ClassVar[list[Any]] = ["test_connection", "drill", "freed", "erase"]

    @action(description="Test connection", icon="electrical_services", permissions=["change"])
    def test_connection(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Try the source as it is stored, and show the result."""
        source = Source.objects.select_related("account", "region").get(pk=object_id)
        known = self.tell_refusals(
            request, lambda: services.try_source(source, actor=actor_of(request), now=timezone.now())
        )
        if known is False:
            messages.info(request, f"The worker on {source.host} tries it now. Look again in a few seconds.")
        elif known and source.check_error:
            messages.error(request, source.check_error)
        elif known:
            messages.success(request, "The source can be reached.")
        return leave_dialog(request, reverse("admin:policies_source_change", args=[object_id]))

    @display(description="Deletion")
    def erasing(self, source: Source) -> str:
        if not source.erasing_since:
            return "–"
        asked = f"All backups are being deleted since {source.erasing_since:%Y-%m-%d %H:%M}"
        if source.erase_ends_at:
            return f"{asked}; locks keep some until {source.erase_ends_at:%Y-%m-%d %H:%M}. The rest goes by itself."
        return f"{asked}. The source goes with its last point."

    @action(
        description="Trial restore",
        icon="experiment",
        permissions=["change"],
        dialog=dialog(
            "Restore the newest point on trial",
            "Into a scratch folder of a worker, compared with what was backed up, and removed again.",
            DrillForm,
            "Start",
        ),
    )
    def drill(self, request: HttpRequest, form: DrillForm, object_id: str) -> HttpResponse:
        source = Source.objects.select_related("account").get(pk=object_id)
        vault, percent = form.cleaned_data["vault"], form.cleaned_data["percent"]
        return start(
            self,
            request,
            lambda: maintenance.request_drill(
                source, vault, percent=percent, actor=actor_of(request), now=timezone.now()
            ),
            reverse("admin:policies_source_change", args=[object_id]),
        )

    @action(description="What deleting frees", icon="data_usage", permissions=["view"])
    def freed(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Say, vault by vault, what deleting all backups of the source would free; nothing is deleted."""
        source = Source.objects.get(pk=object_id)
        vaults = freed.vaults_of(source.series, source.account_id)
        found = self.tell_refusals(request, lambda: freed.by_series(source.series, vaults))
        for one in found or []:
            messages.info(request, told_of(one))
        if found == []:
            messages.info(request, "The source has no recovery points.")
        return leave_dialog(request, reverse("admin:policies_source_change", args=[object_id]))

    @action(
        description="Delete all backups",
        icon="delete_forever",
        permissions=["delete"],
        dialog=dialog("Cancel the protection and delete all backups", "", ErasureForm, "Delete for good"),
    )
    def erase(self, request: HttpRequest, form: ErasureForm, object_id: str) -> HttpResponse:
        source = Source.objects.select_related("account").get(pk=object_id)
        typed = form.cleaned_data["confirmation"]
        found = self.tell_refusals(
            request, lambda: removal.erase(source, confirmation=typed, actor=actor_of(request), now=timezone.now())
        )
        if found:
            locked = f" Locked: {found.locked}, the last until {found.ends_at:%Y-%m-%d %H:%M}." if found.locked else ""
            messages.success(request, f"The source's recovery points are being deleted: {found.points}.{locked}")
        return leave_dialog(request, reverse("admin:policies_source_change", args=[object_id]))


class VaultButtons(ServiceAdmin):
    """Maintenance on the page of a vault."""

    buttons: ClassVar[list[Any]] = [
        {
            "title": "Maintenance",
            "icon": "build",
            "items": ["verify", "expire", "prune", "compact", "audit", "rebuild", "intervals"],
        }
    ]

    def _ask(self, request: HttpRequest, object_id: str, kind: Kind, **wanted: bool) -> HttpResponse:
        vault = Vault.objects.select_related("account", "region").get(pk=object_id)
        asked = {name: value for name, value in wanted.items() if value}
        return start(
            self,
            request,
            lambda: maintenance.request(vault, kind, asked, actor=actor_of(request), now=timezone.now()),
            reverse("admin:vaults_vault_change", args=[object_id]),
        )

    @action(
        description="Expire",
        icon="event_busy",
        permissions=["change"],
        dialog=dialog("Expire points", "Lets points go that no rule keeps any more.", ExpireForm, "Start"),
    )
    def expire(self, request: HttpRequest, form: ExpireForm, object_id: str) -> HttpResponse:
        wanted = {name: form.cleaned_data[name] for name in ("dry_run", "confirmed")}
        return self._ask(request, object_id, Kind.EXPIRE, **wanted)

    @action(
        description="Prune",
        icon="mop",
        permissions=["change"],
        dialog=dialog("Prune the vault", "Deletes stored packs that no point needs any more.", DryRunForm, "Start"),
    )
    def prune(self, request: HttpRequest, form: DryRunForm, object_id: str) -> HttpResponse:
        return self._ask(request, object_id, Kind.PRUNE, dry_run=form.cleaned_data["dry_run"])

    @action(
        description="Compact",
        icon="compress",
        permissions=["change"],
        dialog=dialog(
            "Compact the vault", "Copies what is alive out of packs that are mostly dead.", DryRunForm, "Start"
        ),
    )
    def compact(self, request: HttpRequest, form: DryRunForm, object_id: str) -> HttpResponse:
        return self._ask(request, object_id, Kind.COMPACT, dry_run=form.cleaned_data["dry_run"])

    @action(
        description="Audit locks",
        icon="policy",
        permissions=["change"],
        dialog=dialog(
            "Audit the locks", "Compares every lock with what points need, and tries the store's.", None, "Start"
        ),
    )
    def audit(self, request: HttpRequest, form: Any, object_id: str) -> HttpResponse:
        return self._ask(request, object_id, Kind.AUDIT)

    @action(
        description="Rebuild",
        icon="restart_alt",
        permissions=["change"],
        dialog=dialog(
            "Rebuild index and catalogue",
            "Makes both anew from the bucket alone. Deletes nothing there.",
            None,
            "Start",
        ),
    )
    def rebuild(self, request: HttpRequest, form: Any, object_id: str) -> HttpResponse:
        return self._ask(request, object_id, Kind.REBUILD)

    @action(
        description="How often",
        icon="schedule",
        permissions=["change"],
        dialog=dialog("How often this vault is maintained", "", IntervalsForm, "Save"),
    )
    def intervals(self, request: HttpRequest, form: IntervalsForm, object_id: str) -> HttpResponse:
        vault = Vault.objects.select_related("account").get(pk=object_id)
        wanted = form.intervals()
        if self.tell_refusals(
            request,
            lambda: maintenance.set_intervals(vault, wanted, actor=actor_of(request), now=timezone.now()),
        ):
            messages.success(request, "Saved.")
        return leave_dialog(request, reverse("admin:vaults_vault_change", args=[object_id]))
