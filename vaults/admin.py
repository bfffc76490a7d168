"""Console pages of regions, vaults and recovery points."""

from typing import Any, ClassVar

from django.contrib import admin, messages
from django.db.models import Count, QuerySet, Sum
from django.db.models.functions import Coalesce
from django.http import HttpRequest, HttpResponse
from django.template.loader import render_to_string
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils import timezone
from django.utils.html import format_html
from unfold.enums import ActionVariant

from accounts.console import ReadOnlyAdmin, ServiceAdmin, action, actor_of, display, human_bytes, leave_dialog, lines
from engine.storage.probe import IMMUTABLE
from vaults import condition, deletion, recovery, services
from vaults.console import ReplicationAdmin
from vaults.forms import (
    DeletionForm,
    ImmutabilityForm,
    NewRecoveryKeyForm,
    RecoveryProofForm,
    RegionForm,
    VaultForm,
)
from vaults.models import FEATURES, RecoveryPoint, Region, Vault, VaultReading, VaultState

DAMAGE_ON_PAGE = 50
PILL = "font-semibold inline-block leading-6 mr-2 px-2 rounded-default text-[11px] uppercase whitespace-nowrap"
WARNING = "bg-orange-100 dark:bg-orange-500/20 dark:text-orange-400 text-orange-800"
POINT_LABELS = {"Complete": "success", "Partially complete": "warning"}


@admin.register(Region)
class RegionAdmin(ServiceAdmin):
    form = RegionForm
    list_display = ["name", "branch", "url", "health", "retention", "probed_at"]
    search_fields = ["name", "url"]
    readonly_fields = ["health", "retention", "findings", "probed_at"]
    actions_detail = ["probe"]
    fieldsets = [
        (None, {"fields": ["name", "branch", "url"]}),
        (
            "S3 service",
            {"fields": ["endpoint", "store_region", "access_key", "secret_key", "path_style", "tls_verify", "ca_file"]},
        ),
        ("Declared", {"fields": ["redundancy", *FEATURES, "bytes_per_s"]}),
        ("Found by the last probe", {"fields": ["health", "retention", "findings", "probed_at"]}),
    ]

    def get_readonly_fields(self, request: HttpRequest, obj: Region | None = None) -> list[str]:
        return [*self.readonly_fields, *(services.FIXED if obj else ())]

    def save_model(self, request: HttpRequest, obj: Region, form: RegionForm, change: bool) -> None:
        services.save_region(obj, credentials=form.credentials(), actor=actor_of(request), now=timezone.now())

    def delete_model(self, request: HttpRequest, obj: Region) -> None:
        services.delete_region(obj, actor=actor_of(request), now=timezone.now())

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
class VaultAdmin(ReplicationAdmin):
    form = VaultForm
    list_display = ["name", "account", "region", "status", "immutability", "recovery", "points_shown", "stored_shown"]
    list_filter: ClassVar = ["region__branch", "region", "type", "state", "account"]
    list_select_related = ["account", "region"]
    search_fields = ["name"]
    actions_detail: ClassVar = [
        {"title": "Keys", "icon": "key", "items": ["prove_recovery_key", "replace_recovery_key", "rotate_keys"]},
        {
            "title": "Second region",
            "icon": "cloud_sync",
            "items": ["replicate", "limit_replication", "stop_replication"],
        },
        {"title": "Lock, delete", "icon": "lock_clock", "items": ["make_immutable", "request_deletion"]},
    ]
    shown: ClassVar = [
        "status", "locked", "retention", "key", "recovery_told", "points_shown", "stored_shown",
        "held_shown", "redundancy", "replicated", "paced",
        "coverage", "verified", "damaged", "work", "export", "deletion",
    ]  # fmt: skip

    def get_queryset(self, request: HttpRequest) -> QuerySet[Vault]:
        vaults: QuerySet[Vault] = super().get_queryset(request)
        if "state__exact" not in request.GET and not (request.resolver_match and request.resolver_match.kwargs):
            vaults = vaults.exclude(state=VaultState.DELETED)
        return vaults.annotate(points_count=Count("points"), bytes_stored=Coalesce(Sum("points__bytes_stored"), 0))

    def get_readonly_fields(self, request: HttpRequest, obj: Vault | None = None) -> list[str]:
        return ["account", "region", "type", *self.shown] if obj else []

    def get_fieldsets(self, request: HttpRequest, obj: Vault | None = None) -> Any:
        if obj is None:
            return [
                (None, {"fields": ["account", "region", "name", "description", "type"]}),
                ("Key: empty for the service's own", {"fields": ["key_url", "key_secret"]}),
                ("Recovery key", {"fields": ["shares", "shares_needed"]}),
            ]
        gone = [("Deletion", {"fields": ["deletion"]})] if obj.delete_requested_at else []
        return [
            (None, {"fields": ["name", "description", "status", "account", "region", "type"]}),
            *gone,
            ("Immutability", {"fields": ["locked", "retention"]}),
            ("Keys", {"fields": ["key", "recovery_told"]}),
            ("Content", {"fields": ["points_shown", "stored_shown", "held_shown", "redundancy"]}),
            ("Second region", {"fields": ["replicated", "paced"]}),
            ("Proof", {"fields": ["coverage", "verified", "damaged"]}),
            ("Upkeep", {"fields": ["work", "export"]}),
        ]

    def has_delete_permission(self, request: HttpRequest, obj: Vault | None = None) -> bool:
        return False

    def save_model(self, request: HttpRequest, obj: Vault, form: VaultForm, change: bool) -> None:
        if change:
            services.change_vault(obj, actor=actor_of(request), now=timezone.now())
            return
        values = form.cleaned_data
        obj.recovery_shares, obj.recovery_threshold = values["shares"], values["shares_needed"]
        key = services.create_vault(obj, key_secret=values["key_secret"], actor=actor_of(request), now=timezone.now())
        obj.recovery_key = key  # type: ignore[attr-defined]  # for response_add, this once

    def response_add(self, request: HttpRequest, obj: Vault, post_url_continue: str | None = None) -> HttpResponse:
        key = getattr(obj, "recovery_key", "")
        if not key:  # a replication target opens with its source's
            answer: HttpResponse = super().response_add(request, obj, post_url_continue)
            return answer
        return self._handed_out(request, obj, key)

    def _handed_out(self, request: HttpRequest, vault: Vault, key: str) -> HttpResponse:
        """Show the recovery key, or its shares: in this answer alone, never in a cookie or a session."""
        shares = recovery.shares_of(vault, key) if key else []
        context = self.admin_site.each_context(request) | {
            "title": "Recovery key",
            "vault": vault,
            "key": "" if shares else key,
            "shares": shares,
            "opts": self.opts,
        }
        in_dialog = bool(request.headers.get("HX-Request"))
        page = "admin/recovery_key_shown.html" if in_dialog else "admin/recovery_key.html"
        answer = TemplateResponse(request, page, context)
        answer["Cache-Control"] = "no-store"
        if in_dialog:  # take the place of the whole dialog, its button too
            answer["HX-Retarget"] = answer["HX-Reselect"] = "#dialog"
        return answer

    @display(description="State", label={"Ready": "success", "Error": "danger", "Being deleted": "warning"})
    def status(self, vault: Vault) -> str:
        return vault.get_state_display()

    @display(description="Immutable", label={"Off": "info", "Immutable": "success", "Service only": "warning"})
    def immutability(self, vault: Vault) -> str:
        if not vault.immutable_since:
            return "Off"
        return "Immutable" if vault.retention_label == IMMUTABLE else "Service only"

    @display(description="Locks")
    def locked(self, vault: Vault) -> str:
        if not vault.immutable_since:
            return "Points are not locked: who may delete them can do so at any time."
        return (
            f"Since {vault.immutable_since:%Y-%m-%d %H:%M} every point is locked for at least {vault.lock_days} days "
            "from its completion, or for as long as its retention. Nobody can turn this off or shorten it."
        )

    @display(description="What the store can do")
    def retention(self, vault: Vault) -> str:
        if vault.retention_label == IMMUTABLE:
            return "Immutable: the last probe proved that it refuses to delete what is locked."
        return "Application-level retention: it has no object lock, or does not keep it. Only this service refuses."

    @display(description="Key")
    def key(self, vault: Vault) -> str:
        return f"{vault.get_key_provider_display()} {vault.key_url}".strip()

    @display(description="Recovery key", label={"Proven": "success", "Unproven": "warning"})
    def recovery(self, vault: Vault) -> str:
        return "Proven" if vault.recovery_proven_at else "Unproven"

    @display(description="Recovery key")
    def recovery_told(self, vault: Vault) -> str:
        handed = (
            f" It was handed out in {vault.recovery_shares} shares, of which {vault.recovery_threshold} are needed."
        )
        shares = handed if vault.recovery_shares else ""
        if vault.recovery_proven_at:
            return f"Proven on {vault.recovery_proven_at:%Y-%m-%d}: somebody who has it typed it.{shares}"
        text = f"Nobody has typed it since it was handed out, it may be lost. Try it: Keys, Prove recovery key.{shares}"
        return format_html('<span class="{} {}">Unproven</span> {}', PILL, WARNING, text)

    @display(description="Points", ordering="points_count")
    def points_shown(self, vault: Vault) -> int:
        return int(getattr(vault, "points_count", 0))

    @display(description="Stored", ordering="bytes_stored")
    def stored_shown(self, vault: Vault) -> str:
        return human_bytes(getattr(vault, "bytes_stored", 0))

    @display(description="In its packs")
    def held_shown(self, vault: Vault) -> str:
        reading = VaultReading.objects.filter(vault=vault).first()
        if reading is None or reading.read_at is None:
            return "Not metered yet: it is, soon after the day is over (UTC)."
        waiting = max(0, reading.bytes_stored - reading.bytes_needed)
        needed = f"of which {human_bytes(waiting)} wait for a prune" if waiting else "all of it needed by points"
        return f"{human_bytes(reading.bytes_stored)}, {needed}, as of {reading.read_at:%Y-%m-%d %H:%M}"

    @display(description="Redundancy")
    def redundancy(self, vault: Vault) -> str:
        return f"{vault.region.redundancy}: {vault.region.get_redundancy_display().lower()}, as its region declares"

    @display(description="Read within 30 days")
    def coverage(self, vault: Vault) -> str:
        share = vault.coverage_share
        if share is None or vault.coverage_at is None:
            return "Nothing was verified yet."
        read, total = human_bytes(vault.coverage_read), human_bytes(vault.coverage_total)
        return f"{int(share * 100)} %: {read} of {total} that points need, as of {vault.coverage_at:%Y-%m-%d %H:%M}"

    @display(description="Last verification")
    def verified(self, vault: Vault) -> str:
        found = condition.damage(vault)
        if found["verified_at"] is None:
            return "–"
        return f"{found['verified_at']:%Y-%m-%d %H:%M}: {found['damaged_total'] or 'nothing'} damaged"

    @display(description="Damage")
    def damaged(self, vault: Vault) -> str:
        found = condition.damage(vault)["damaged"][:DAMAGE_ON_PAGE]
        return render_to_string("admin/vault_damage.html", {"damaged": found}) if found else "–"

    @display(description="Jobs")
    def work(self, vault: Vault) -> str:
        return render_to_string("admin/vault_work.html", {"work": condition.work(vault)})

    @display(description="Control plane")
    def export(self, vault: Vault) -> str:
        told = condition.of_export(vault)
        return told or "Its rows are not in the bucket yet: a sweep puts them there within minutes."

    @display(description="Deletion")
    def deletion(self, vault: Vault) -> str:
        if vault.deleted_at:
            return f"Deleted on {vault.deleted_at:%Y-%m-%d %H:%M}. Only the history of its jobs is left."
        asked = f"Asked for on {vault.delete_requested_at:%Y-%m-%d %H:%M}." if vault.delete_requested_at else "–"
        if vault.deletable_at:
            return f"{asked} Locks keep the rest until {vault.deletable_at:%Y-%m-%d %H:%M}; then it goes by itself."
        return f"{asked} It is going now."

    @action(
        description="Make immutable",
        icon="lock_clock",
        permissions=["change"],
        dialog={
            "title": "Make this vault immutable",
            "description": "",
            "form_class": ImmutabilityForm,
            "form_submit_text": "Lock it for good",
        },
    )
    def make_immutable(self, request: HttpRequest, form: ImmutabilityForm, object_id: str) -> HttpResponse:
        vault = Vault.objects.select_related("account", "region").get(pk=object_id)
        wanted = form.cleaned_data
        done = self.tell_refusals(
            request,
            lambda: services.make_immutable(
                vault,
                days=wanted["days"],
                confirmation=wanted["confirmation"],
                actor=actor_of(request),
                now=timezone.now(),
            ),
        )
        if done:
            text = "Points are locked for at least {} days now. An audit locks those that are there, within minutes."
            messages.success(request, text.format(vault.lock_days))
        return leave_dialog(request, reverse("admin:vaults_vault_change", args=[object_id]))

    @action(
        description="Prove recovery key",
        icon="key",
        permissions=["change"],
        dialog={
            "title": "Prove that the recovery key is at hand",
            "description": "Type the key, or as many of its shares as are needed. It is tried, and kept nowhere.",
            "form_class": RecoveryProofForm,
            "form_submit_text": "Try it",
        },
    )
    def prove_recovery_key(self, request: HttpRequest, form: RecoveryProofForm, object_id: str) -> HttpResponse:
        vault = Vault.objects.select_related("account", "region").get(pk=object_id)
        typed = form.typed_lines()
        if self.tell_refusals(
            request, lambda: recovery.prove(vault, typed, actor=actor_of(request), now=timezone.now())
        ):
            messages.success(request, "The recovery key opens the vault. Put it back where it is safe.")
        return leave_dialog(request, reverse("admin:vaults_vault_change", args=[object_id]))

    @action(
        description="New recovery key",
        icon="vpn_key_alert",
        permissions=["change"],
        dialog={
            "title": "Make a new recovery key",
            "description": "It takes the place of every earlier one and is shown once. No data is rewritten.",
            "form_class": NewRecoveryKeyForm,
            "form_submit_text": "Make it and show it",
        },
    )
    def replace_recovery_key(self, request: HttpRequest, form: NewRecoveryKeyForm, object_id: str) -> HttpResponse:
        vault = Vault.objects.select_related("account", "region").get(pk=object_id)
        wanted = {name: form.cleaned_data[name] for name in ("threshold", "shares")}
        key = self.tell_refusals(
            request, lambda: recovery.replace(vault, actor=actor_of(request), now=timezone.now(), **wanted)
        )
        if key:
            return self._handed_out(request, vault, key)
        return leave_dialog(request, reverse("admin:vaults_vault_change", args=[object_id]))

    @action(
        description="Rotate keys",
        icon="autorenew",
        permissions=["change"],
        dialog={
            "title": "Rotate the keys of this vault",
            "description": "The key in force wraps them anew, earlier ones of its provider are revoked, and what is "
            "written from now on gets a new data key. No data is rewritten.",
            "form_class": None,
            "form_submit_text": "Rotate",
        },
    )
    def rotate_keys(self, request: HttpRequest, form: Any, object_id: str) -> HttpResponse:
        vault = Vault.objects.select_related("account", "region").get(pk=object_id)
        rotated = self.tell_refusals(
            request, lambda: recovery.rotate_keys(vault, actor=actor_of(request), now=timezone.now())
        )
        if rotated:
            messages.success(request, f"The keys are of generation {rotated.generation} now.")
            if rotated.remaining:
                last = max((one.until for one in rotated.remaining if one.until), default=None)
                kept = f" until {last:%Y-%m-%d}" if last else ""
                messages.warning(request, f"The store keeps {len(rotated.remaining)} replaced key sets{kept}.")
        return leave_dialog(request, reverse("admin:vaults_vault_change", args=[object_id]))

    @action(
        description="Delete vault",
        icon="delete_forever",
        variant=ActionVariant.DANGER,
        permissions=["change"],
        dialog={
            "title": "Delete this vault and all in it",
            "description": "",
            "form_class": DeletionForm,
            "form_submit_text": "Delete for good",
        },
    )
    def request_deletion(self, request: HttpRequest, form: DeletionForm, object_id: str) -> HttpResponse:
        vault = Vault.objects.select_related("account", "region").get(pk=object_id)
        typed = form.cleaned_data["confirmation"]
        if self.tell_refusals(
            request, lambda: deletion.request(vault, confirmation=typed, actor=actor_of(request), now=timezone.now())
        ):
            until = f"what is locked stays until {vault.deletable_at:%Y-%m-%d %H:%M}" if vault.deletable_at else ""
            messages.success(request, f"The vault is being deleted{f'; {until}' if until else ''}.")
        return leave_dialog(request, reverse("admin:vaults_vault_change", args=[object_id]))


def drills_shown(jobs: Any) -> str:
    """Return the last trial restores among the jobs of a source or a point, for a page."""
    found = condition.drills(jobs)
    return render_to_string("admin/drills.html", {"drills": found}) if found else "None yet"


@admin.register(RecoveryPoint)
class RecoveryPointAdmin(ReadOnlyAdmin):
    list_display = ["completed_at", "source_name", "host", "vault", "status", "size", "stored", "expires_at"]
    list_filter: ClassVar = ["state", "manual", "vault"]
    list_select_related = ["vault"]
    search_fields = ["source_name", "host", "series", "point_id"]
    date_hierarchy = "completed_at"
    fieldsets = [
        (None, {"fields": ["source_name", "source_kind", "host", "roots_shown", "vault", "status"]}),
        ("Time", {"fields": ["started_at", "completed_at", "expires_at"]}),
        ("Content", {"fields": ["entries_count", "size", "stored", "problems_count", "skipped"]}),
        ("Proof", {"fields": ["drills"]}),
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

    @display(description="What")
    def roots_shown(self, point: RecoveryPoint) -> str:
        return lines(point.roots)

    @display(description="Left out")
    def skipped(self, point: RecoveryPoint) -> str:
        found = point.stats.get("skipped") or {}
        return format_html("{}", ", ".join(f"{count} {reason}" for reason, count in sorted(found.items())) or "nothing")

    @display(description="Trial restores")
    def drills(self, point: RecoveryPoint) -> str:
        return drills_shown(point.jobs)
