"""The part of a vault's page that is about its second region."""

import re
from decimal import Decimal
from typing import Any

from django import forms
from django.contrib import messages
from django.core.exceptions import ValidationError
from django.db.models import Q
from django.http import HttpRequest, HttpResponse
from django.urls import reverse
from django.utils import timezone
from django.utils.html import format_html
from unfold.forms import BaseDialogForm
from unfold.widgets import (
    UnfoldAdminIntegerFieldWidget,
    UnfoldAdminPasswordWidget,
    UnfoldAdminSelectWidget,
    UnfoldAdminTextareaWidget,
    UnfoldAdminTextInputWidget,
)

from accounts.console import ConfirmedForm, ServiceAdmin, action, actor_of, display, human_bytes, leave_dialog, lines
from vaults import replication
from vaults.limits import PARALLEL_MAX, Limits, Window, load
from vaults.models import LinkState, Region, ReplicationLink, Vault, VaultState, VaultType


def link_of(vault: Vault) -> ReplicationLink | None:
    """Return the replication from or to a vault, the one that goes on before those that ended."""
    links = ReplicationLink.objects.filter(Q(source=vault) | Q(target=vault)).select_related(
        "source__region", "target__region"
    )
    return links.order_by("state", "-created_at").first()


class ReplicateForm(BaseDialogForm):
    """Where to replicate to: a target that waits, or a new one."""

    target = forms.ModelChoiceField(
        queryset=Vault.objects.none(),
        required=False,
        empty_label="A new one, named below",
        label="Replication target",
        widget=UnfoldAdminSelectWidget,
    )
    region = forms.ModelChoiceField(
        queryset=Region.objects.none(), required=False, label="Region of a new one", widget=UnfoldAdminSelectWidget
    )
    name = forms.CharField(max_length=64, required=False, label="Name of a new one", widget=UnfoldAdminTextInputWidget)
    key_url = forms.CharField(
        max_length=500,
        required=False,
        label="Address of its key",
        widget=UnfoldAdminTextInputWidget,
        help_text="Only where this vault has a key service or token: the target has a key of its own there",
    )
    key_secret = forms.CharField(
        max_length=4096, required=False, label="Secret of its key", widget=UnfoldAdminPasswordWidget
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        source = Vault.objects.get(pk=str(self.object_id))
        targets, regions = self.fields["target"], self.fields["region"]
        assert isinstance(targets, forms.ModelChoiceField)
        assert isinstance(regions, forms.ModelChoiceField)
        targets.queryset = Vault.objects.filter(
            account=source.account_id, type=VaultType.REPLICATION_TARGET, state=VaultState.EMPTY
        ).exclude(region=source.region_id)
        regions.queryset = Region.objects.exclude(pk=source.region_id)
        self.source = source

    def clean(self) -> dict[str, Any]:
        values: dict[str, Any] = super().clean() or {}
        if not values.get("target") and not (values.get("region") and values.get("name")):
            self.add_error("region", "Choose a target that waits, or a region and a name for a new one.")
        return values

    def wanted(self) -> Vault:
        """Return the target that was chosen, or a new one that is not stored yet."""
        values = self.cleaned_data
        chosen: Vault | None = values["target"]
        return chosen or Vault(
            account=self.source.account,
            region=values["region"],
            name=values["name"],
            key_url=values["key_url"],
            type=VaultType.REPLICATION_TARGET,
        )


WINDOW = re.compile(r"(\d\d?:\d\d)\s*(?:-|–|to)\s*(\d\d?:\d\d)[\s:,]+(.+)")
RATE = re.compile(r"(\d+(?:\.\d+)?)\s*(k|[KMG]i|[MG])?(?:B(?:/s)?)?")
UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30}
NO_LIMIT = "no limit"


def rate_text(bytes_per_s: int) -> str:
    """Return a rate as people write it, without losing a byte."""
    unit = next((name for name in "GMk" if bytes_per_s >= UNITS[name] and not bytes_per_s % (UNITS[name] // 1000)), "")
    return f"{(Decimal(bytes_per_s) / UNITS[unit]).normalize():f} {unit}B/s" if bytes_per_s else NO_LIMIT


def rate_of(text: str) -> int:
    """Return the bytes per second that a person wrote. Raises ValidationError."""
    if text.strip().lower() in ("", NO_LIMIT, "none", "0"):
        return 0
    found = RATE.fullmatch(text.strip())
    if found is None:
        raise forms.ValidationError(f"{text.strip()!r} is no rate. Write it like 2 MB/s or 500 kB/s, or {NO_LIMIT}.")
    return int(Decimal(found[1]) * UNITS[found[2] or ""])


def window_text(window: Window) -> str:
    """Return a window as people write it."""
    return f"{window.start:%H:%M}-{window.end:%H:%M} {rate_text(window.bytes_per_s)}"


def window_of(line: str) -> dict[str, Any]:
    """Return the window that a person wrote on one line. Raises ValidationError."""
    found = WINDOW.fullmatch(line.strip())
    if found is None:
        raise forms.ValidationError(f"{line.strip()!r} is no window. Write it like 08:00-18:00 2 MB/s.")
    return {"start": found[1], "end": found[2], "bytes_per_s": rate_of(found[3])}


class LimitForm(BaseDialogForm):
    """How fast the replica may follow, by time of day."""

    windows = forms.CharField(
        required=False,
        label="Windows, one a line",
        widget=UnfoldAdminTextareaWidget(attrs={"rows": 4, "placeholder": "08:00-18:00 2 MB/s"}),
        help_text="Over midnight when it ends before it begins; the first that fits counts",
    )
    rate = forms.CharField(
        required=False,
        label="At all other times",
        widget=UnfoldAdminTextInputWidget(attrs={"placeholder": NO_LIMIT}),
        help_text="Like 10 MB/s; empty is no limit",
    )
    zone = forms.CharField(
        max_length=64, label="Time zone", widget=UnfoldAdminTextInputWidget, help_text="Like Europe/Berlin"
    )
    parallel_max = forms.IntegerField(
        label="Steps at once",
        min_value=0,
        max_value=PARALLEL_MAX,
        widget=UnfoldAdminIntegerFieldWidget,
        help_text="The rate is divided among them; 0 is two when there is a rate, else any number",
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.link = link_of(Vault.objects.get(pk=str(self.object_id)))
        self.limits = load(self.link.limits) if self.link else Limits()
        self.initial |= {
            "windows": "\n".join(window_text(window) for window in self.limits.windows),
            "rate": rate_text(self.limits.bytes_per_s) if self.limits.bytes_per_s else "",
            "zone": self.limits.zone,
            "parallel_max": self.limits.parallel_max,
        }

    def clean_windows(self) -> list[dict[str, Any]]:
        return [window_of(line) for line in self.cleaned_data["windows"].splitlines() if line.strip()]

    def clean_rate(self) -> int:
        return rate_of(self.cleaned_data["rate"])

    def clean(self) -> dict[str, Any]:
        values: dict[str, Any] = super().clean() or {}
        if not self.errors:
            try:
                self.wanted = replication.complete_limits(
                    {
                        "bytes_per_s": values["rate"],
                        "windows": values["windows"],
                        "zone": values["zone"],
                        "parallel_max": values["parallel_max"],
                        "cpu_percent": self.limits.cpu_percent,
                    }
                )
            except ValidationError as error:
                for path, texts in error.message_dict.items():
                    name = next((field for field in ("windows", "zone") if f".{field}" in path), "rate")
                    self.add_error(name, texts)
        return values


class StopForm(ConfirmedForm):
    named = "vault"

    def told(self) -> list[str]:
        return [
            "Nothing of this vault reaches its target any more, and that can't be resumed.",
            "The target stays with all its points. It lives by itself from then on: it expires, and can be deleted.",
        ]


class ReplicationAdmin(ServiceAdmin):
    """A vault's replication: how far it is, its beginning and its end."""

    @display(description="Replication")
    def replicated(self, vault: Vault) -> str:
        link = link_of(vault)
        if link is None:
            waits = "It waits until a vault of another region is replicated to it."
            return waits if vault.state == VaultState.EMPTY else "This vault is in one region only."
        other = link.target if link.source_id == vault.pk else link.source
        place = format_html(
            '{} <a class="font-medium text-primary-600 dark:text-primary-500" href="{}">{}</a> in {}.',
            "To" if other == link.target else "From",
            reverse("admin:vaults_vault_change", args=[other.pk]),
            other,
            other.region,
        )
        if link.state == LinkState.STOPPED:
            return format_html("{} It ended on {}.", place, f"{link.stopped_at:%Y-%m-%d %H:%M}")
        return format_html("{} {}{}", place, self._progress(link), self._asked_by(link))

    def _asked_by(self, link: ReplicationLink) -> str:
        if not link.policy:
            return ""
        page = reverse("admin:policies_policy_change", args=[link.policy])
        return format_html(
            ' A <a class="font-medium text-primary-600 dark:text-primary-500" href="{}">policy</a> asked for it.', page
        )

    def _progress(self, link: ReplicationLink) -> str:
        lag_s = replication.lag_s(link, now=timezone.now())
        if not lag_s:
            told = "Every point is there."
        else:
            told = f"{link.points_behind or 'Some'} points are to come, the oldest for {lag_s // 60} minutes."
        history = f"{link.historical_done} of {link.historical_total} points of before it began."
        newest = f"The newest there is of {link.latest_at:%Y-%m-%d %H:%M}." if link.latest_at else ""
        return f"{told} {newest} {history} {human_bytes(link.bytes_replicated)} copied so far.".replace("  ", " ")

    @action(
        description="Replicate",
        icon="cloud_sync",
        permissions=["change"],
        dialog={
            "title": "Replicate this vault to another region",
            "description": "All points that it has, and each new one. The target opens with a key of its own.",
            "form_class": ReplicateForm,
            "form_submit_text": "Replicate",
        },
    )
    def replicate(self, request: HttpRequest, form: ReplicateForm, object_id: str) -> HttpResponse:
        secret = form.cleaned_data["key_secret"]
        link = self.tell_refusals(
            request,
            lambda: replication.start_at_vault(
                form.source, form.wanted(), key_secret=secret, actor=actor_of(request), now=timezone.now()
            ),
        )
        if link:
            messages.success(request, f"{link.target} in {link.target.region} follows from now on.")
        return leave_dialog(request, reverse("admin:vaults_vault_change", args=[object_id]))

    @display(description="Speed")
    def paced(self, vault: Vault) -> str:
        link = link_of(vault)
        if link is None or link.state == LinkState.STOPPED:
            return "–"
        limits = load(link.limits)
        if not limits.is_limited:
            return "As fast as it goes."
        if not limits.windows:
            return rate_text(limits.bytes_per_s)
        windows = [window_text(window) for window in limits.windows]
        return lines(
            [*windows, f"at all other times {rate_text(limits.bytes_per_s)}", f"by the clock of {limits.zone}"]
        )

    @action(
        description="Limit replication",
        icon="speed",
        permissions=["change"],
        dialog={
            "title": "Limit how fast the replica follows",
            "description": "What is read at the source and what is sent to the target each keep to it, over any ten "
            "seconds. A job that runs keeps the limits that it began with.",
            "form_class": LimitForm,
            "form_submit_text": "Limit it",
        },
    )
    def limit_replication(self, request: HttpRequest, form: LimitForm, object_id: str) -> HttpResponse:
        def limit() -> ReplicationLink:
            if form.link is None:
                raise replication.NotReplicated("This vault is not replicated: there is nothing to limit.")
            return replication.limit(form.link, form.wanted, actor=actor_of(request), now=timezone.now())

        if self.tell_refusals(request, limit):
            messages.success(request, "The next replication keeps to these limits.")
        return leave_dialog(request, reverse("admin:vaults_vault_change", args=[object_id]))

    @action(
        description="Stop replication",
        icon="cloud_off",
        permissions=["change"],
        dialog={
            "title": "Stop the replication of this vault",
            "description": "",
            "form_class": StopForm,
            "form_submit_text": "Stop it for good",
        },
    )
    def stop_replication(self, request: HttpRequest, form: StopForm, object_id: str) -> HttpResponse:
        vault = Vault.objects.select_related("account", "region").get(pk=object_id)
        typed = form.cleaned_data["confirmation"]
        link = self.tell_refusals(
            request,
            lambda: replication.stop(vault, confirmation=typed, actor=actor_of(request), now=timezone.now()),
        )
        if link:
            text = (
                f"Replication ended. {link.target} may be made immutable, or deleted; this vault may be deleted, too."
            )
            messages.success(request, text)
        return leave_dialog(request, reverse("admin:vaults_vault_change", args=[object_id]))
