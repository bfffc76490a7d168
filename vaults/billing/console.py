"""Console pages of quotas."""

from typing import Any, ClassVar

from django import forms
from django.contrib import admin
from django.http import HttpRequest
from django.utils import timezone
from unfold.widgets import UnfoldAdminDecimalFieldWidget

from accounts.console import ServiceAdmin, actor_of, display, human_bytes
from vaults import quotas
from vaults.models import Quota

GIB = 1 << 30


def _gib(label: str, text: str) -> forms.DecimalField:
    return forms.DecimalField(
        label=label,
        help_text=text,
        required=False,
        min_value=0,
        max_digits=12,
        decimal_places=3,
        widget=UnfoldAdminDecimalFieldWidget,
    )


class QuotaForm(forms.ModelForm[Quota]):
    """Limits in GiB."""

    soft = _gib("Soft limit in GiB", "Above it an alert tells")
    hard = _gib("Hard limit in GiB", "From there on no backup begins")

    class Meta:
        model = Quota
        fields = ["account", "vault"]
        help_texts: ClassVar = {"vault": "Empty for all vaults of the account together"}


@admin.register(Quota)
class QuotaAdmin(ServiceAdmin):
    form = QuotaForm
    list_display = ["scope", "account", "used", "soft_shown", "hard_shown", "standing"]
    list_select_related = ["account", "vault"]
    list_filter: ClassVar = ["account"]
    fields = ["account", "vault", "soft", "hard"]

    def has_change_permission(self, request: HttpRequest, obj: Quota | None = None) -> bool:
        return False

    def get_fields(self, request: HttpRequest, obj: Quota | None = None) -> list[str]:
        return ["scope", "account", "used", "soft_shown", "hard_shown", "standing"] if obj else list(self.fields)

    def get_readonly_fields(self, request: HttpRequest, obj: Quota | None = None) -> list[str]:
        return ["scope", "used", "soft_shown", "hard_shown", "standing"] if obj else []

    def save_model(self, request: HttpRequest, obj: Quota, form: Any, change: bool) -> None:
        for name in ("soft", "hard"):
            given = form.cleaned_data[name]
            setattr(obj, f"bytes_{name}", None if given is None else int(given * GIB))
        kept = quotas.set_quota(obj, actor=actor_of(request), now=timezone.now())
        obj.pk, obj.created_at = kept.pk, kept.created_at
        obj._state.adding = False

    def delete_model(self, request: HttpRequest, obj: Quota) -> None:
        quotas.remove_quota(obj, actor=actor_of(request), now=timezone.now())

    @display(description="Of")
    def scope(self, quota: Quota) -> str:
        return str(quota.vault or "All vaults of the account")

    @display(description="Stored")
    def used(self, quota: Quota) -> str:
        return human_bytes(quotas.stored(quota))

    @display(description="Soft limit", ordering="bytes_soft")
    def soft_shown(self, quota: Quota) -> str:
        return "–" if quota.bytes_soft is None else human_bytes(quota.bytes_soft)

    @display(description="Hard limit", ordering="bytes_hard")
    def hard_shown(self, quota: Quota) -> str:
        return "–" if quota.bytes_hard is None else human_bytes(quota.bytes_hard)

    @display(description="State", label={"Within": "success", "Soft limit exceeded": "warning", "Full": "danger"})
    def standing(self, quota: Quota) -> str:
        used = quotas.stored(quota)
        if quota.bytes_hard is not None and used >= quota.bytes_hard:
            return "Full"
        return "Soft limit exceeded" if quota.bytes_soft is not None and used > quota.bytes_soft else "Within"
