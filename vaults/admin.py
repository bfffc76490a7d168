"""Console pages of regions, vaults and recovery points."""

from typing import Any, ClassVar

from django import forms
from django.contrib import admin, messages
from django.db.models import Count, QuerySet, Sum
from django.db.models.functions import Coalesce
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils import timezone
from django.utils.html import format_html
from unfold.widgets import UnfoldAdminPasswordWidget

from accounts.console import ReadOnlyAdmin, ServiceAdmin, action, actor_of, display, human_bytes, leave_dialog, lines
from vaults import services
from vaults.models import RecoveryPoint, Region, Vault

POINT_LABELS = {"Complete": "success", "Partially complete": "warning"}


class RegionForm(forms.ModelForm[Region]):
    access_key = forms.CharField(max_length=256, required=False, widget=UnfoldAdminPasswordWidget)
    secret_key = forms.CharField(
        max_length=256,
        required=False,
        widget=UnfoldAdminPasswordWidget,
        help_text="Kept encrypted and never shown; leave both empty to keep what is stored",
    )

    class Meta:
        model = Region
        exclude: ClassVar[list[str]] = []

    def credentials(self) -> dict[str, str] | None:
        """Return what was typed; None when nothing was."""
        given = {name: self.cleaned_data.get(name, "") for name in ("access_key", "secret_key")}
        return given if any(given.values()) else None


@admin.register(Region)
class RegionAdmin(ServiceAdmin):
    form = RegionForm
    list_display = ["name", "url", "health", "retention", "probed_at"]
    search_fields = ["name", "url"]
    readonly_fields = ["health", "retention", "findings", "probed_at"]
    actions_detail = ["probe"]
    fieldsets = [
        (None, {"fields": ["name", "url"]}),
        (
            "S3 service",
            {"fields": ["endpoint", "store_region", "access_key", "secret_key", "path_style", "tls_verify", "ca_file"]},
        ),
        ("Declared", {"fields": ["redundancy", "supports_policies", "supports_replication", "bytes_per_s"]}),
        ("Found by the last probe", {"fields": ["health", "retention", "findings", "probed_at"]}),
    ]

    def get_readonly_fields(self, request: HttpRequest, obj: Region | None = None) -> list[str]:
        return [*self.readonly_fields, *(services.FIXED if obj else ())]

    def save_model(self, request: HttpRequest, obj: Region, form: RegionForm, change: bool) -> None:
        services.save_region(obj, credentials=form.credentials(), actor=actor_of(request), now=timezone.now())

    def has_delete_permission(self, request: HttpRequest, obj: Region | None = None) -> bool:
        return False

    @display(description="State", label={"Usable": "success", "Unusable": "danger", "Not probed": "info"})
    def health(self, region: Region) -> str:
        if region.probed_at is None:
            return "Not probed"
        return "Unusable" if region.probe_error else "Usable"

    @display(description="Retention")
    def retention(self, region: Region) -> str:
        return str(region.capabilities.get("retention", "–"))

    @display(description="Findings")
    def findings(self, region: Region) -> str:
        problems = list(region.capabilities.get("problems", []))
        return lines([region.probe_error, *problems] if region.probe_error else problems)

    @action(
        description="Probe now",
        icon="network_check",
        permissions=["change"],
        dialog={
            "title": "Probe the store",
            "description": "Writes, reads and deletes a small object to find out what the store can do.",
            "form_class": None,
            "form_submit_text": "Probe",
        },
    )
    def probe(self, request: HttpRequest, form: Any, object_id: str) -> HttpResponse:
        region = services.probe_region(Region.objects.get(pk=object_id), actor=actor_of(request), now=timezone.now())
        if region.probe_error:
            messages.error(request, region.probe_error)
        else:
            messages.success(request, "The store can hold vaults.")
        return leave_dialog(request, reverse("admin:vaults_region_change", args=[object_id]))


@admin.register(Vault)
class VaultAdmin(ServiceAdmin):
    list_display = ["name", "account", "region", "type", "status", "points_shown", "stored_shown"]
    list_filter: ClassVar = ["region", "type", "state", "account"]
    list_select_related = ["account", "region"]
    search_fields = ["name"]
    fields = ["account", "region", "name", "description", "type"]

    def get_queryset(self, request: HttpRequest) -> QuerySet[Vault]:
        vaults: QuerySet[Vault] = super().get_queryset(request)
        return vaults.annotate(points_count=Count("points"), bytes_stored=Coalesce(Sum("points__bytes_stored"), 0))

    def get_readonly_fields(self, request: HttpRequest, obj: Vault | None = None) -> list[str]:
        return ["account", "region", "type"] if obj else []

    def has_delete_permission(self, request: HttpRequest, obj: Vault | None = None) -> bool:
        return False

    def save_model(self, request: HttpRequest, obj: Vault, form: Any, change: bool) -> None:
        if change:
            services.change_vault(obj, actor=actor_of(request), now=timezone.now())
        else:
            obj.recovery_key = services.create_vault(  # type: ignore[attr-defined]  # for response_add, this once
                obj, actor=actor_of(request), now=timezone.now()
            )

    def response_add(self, request: HttpRequest, obj: Vault, post_url_continue: str | None = None) -> HttpResponse:
        """Show the recovery key: in this answer alone, never in a cookie or a session."""
        context = self.admin_site.each_context(request) | {
            "title": "Recovery key",
            "vault": obj,
            "recovery_key": getattr(obj, "recovery_key", ""),
            "opts": self.opts,
        }
        answer = TemplateResponse(request, "admin/recovery_key.html", context)
        answer["Cache-Control"] = "no-store"
        return answer

    @display(description="State", label={"Ready": "success", "Error": "danger"})
    def status(self, vault: Vault) -> str:
        return vault.get_state_display()

    @display(description="Points", ordering="points_count")
    def points_shown(self, vault: Vault) -> int:
        return int(getattr(vault, "points_count", 0))

    @display(description="Stored", ordering="bytes_stored")
    def stored_shown(self, vault: Vault) -> str:
        return human_bytes(getattr(vault, "bytes_stored", 0))


@admin.register(RecoveryPoint)
class RecoveryPointAdmin(ReadOnlyAdmin):
    list_display = ["completed_at", "source_name", "host", "vault", "status", "size", "stored", "expires_at"]
    list_filter: ClassVar = ["state", "vault"]
    list_select_related = ["vault"]
    search_fields = ["source_name", "host", "series", "point_id"]
    date_hierarchy = "completed_at"
    fieldsets = [
        (None, {"fields": ["source_name", "host", "roots_shown", "vault", "status"]}),
        ("Time", {"fields": ["started_at", "completed_at", "expires_at"]}),
        ("Content", {"fields": ["entries_count", "size", "stored", "problems_count", "skipped"]}),
        ("Identity", {"fields": ["point_id", "series", "id"]}),
    ]

    @display(description="State", label=POINT_LABELS)
    def status(self, point: RecoveryPoint) -> str:
        return point.get_state_display()

    @display(description="Size", ordering="bytes_total")
    def size(self, point: RecoveryPoint) -> str:
        return human_bytes(point.bytes_total)

    @display(description="Added to the vault", ordering="bytes_stored")
    def stored(self, point: RecoveryPoint) -> str:
        return human_bytes(point.bytes_stored)

    @display(description="Folders")
    def roots_shown(self, point: RecoveryPoint) -> str:
        return lines(point.roots)

    @display(description="Left out")
    def skipped(self, point: RecoveryPoint) -> str:
        found = point.stats.get("skipped") or {}
        return format_html("{}", ", ".join(f"{count} {reason}" for reason, count in sorted(found.items())) or "nothing")
