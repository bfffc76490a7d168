"""What the console asks before it makes a region or a vault, and before what can't be undone."""

from typing import Any, ClassVar

from django import forms
from django.db.models import Max, Sum
from django.utils import timezone
from unfold.forms import BaseDialogForm
from unfold.widgets import (
    UnfoldAdminIntegerFieldWidget,
    UnfoldAdminPasswordWidget,
    UnfoldAdminTextareaWidget,
    UnfoldAdminTextInputWidget,
)

from accounts.console import ConfirmedForm, human_bytes
from engine.keyproviders.shares import MOST as SHARES_MAX
from engine.locks import LOCK_DAYS_MAX
from engine.storage.probe import IMMUTABLE
from vaults.models import Region, Vault


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


class VaultForm(forms.ModelForm[Vault]):
    """A new vault: who holds its key, and how its recovery key is handed out."""

    key_secret = forms.CharField(
        label="Secret of the key",
        max_length=4096,
        required=False,
        widget=UnfoldAdminPasswordWidget,
        help_text="The token, secret id or PIN that reaching the key needs; kept encrypted and never shown",
    )
    key_url = forms.CharField(
        label="Address of the key",
        max_length=500,
        required=False,
        widget=UnfoldAdminTextInputWidget,
        help_text="transit:https://host:8200/mount/key or pkcs11:/module.so?token=NAME&label=NAME. It never changes",
    )
    shares = forms.IntegerField(
        label="Shares to make",
        min_value=0,
        max_value=SHARES_MAX,
        initial=0,
        required=False,
        widget=UnfoldAdminIntegerFieldWidget,
        help_text="0 hands the recovery key out whole; else give each share to another person",
    )
    shares_needed = forms.IntegerField(
        label="Shares needed together",
        min_value=0,
        max_value=SHARES_MAX,
        initial=0,
        required=False,
        widget=UnfoldAdminIntegerFieldWidget,
    )

    class Meta:
        model = Vault
        exclude: ClassVar[list[str]] = []

    def clean(self) -> dict[str, Any]:
        values: dict[str, Any] = super().clean() or {}
        for name in ("shares", "shares_needed"):
            values[name] = values.get(name) or 0
        return values


class _VaultConfirmedForm(ConfirmedForm):
    named = "vault"

    def _vault(self) -> Vault:
        return Vault.objects.select_related("region").get(pk=self.object_id)

    def clean_confirmation(self) -> str:
        typed: str = self.cleaned_data["confirmation"]
        if typed != self._vault().name:
            raise forms.ValidationError("This is not the vault's name.")
        return typed


class ImmutabilityForm(_VaultConfirmedForm):
    days = forms.IntegerField(
        label="Lock every point for at least so many days",
        min_value=1,
        max_value=LOCK_DAYS_MAX,
        initial=30,
        widget=UnfoldAdminIntegerFieldWidget,
        help_text="A point whose retention is longer is locked for as long as that",
    )
    field_order: ClassVar = ["days", "confirmation"]

    def told(self) -> list[str]:
        vault = self._vault()
        stored = vault.points.aggregate(total=Sum("bytes_stored"))["total"] or 0
        told = [
            "This can't be undone by anybody: it is never turned off, and the days are never reduced.",
            f"Until its lock ends nobody deletes a point, whatever it costs. The {human_bytes(stored)} that are there, "
            "and all that comes, have to be paid for at least that long. Locks end up to 10 days later than asked.",
        ]
        if vault.retention_label != IMMUTABLE:
            told.append(
                "This store has no object lock: this is application-level retention. This service refuses to delete, "
                "but whoever can write to the store past it still can."
            )
        return told


class DeletionForm(_VaultConfirmedForm):
    def told(self) -> list[str]:
        vault = self._vault()
        points = vault.points.count()
        locked = vault.points.filter(locked_until__gt=timezone.now())
        last = locked.aggregate(last=Max("locked_until"))["last"]
        told = [
            f"All of this vault goes for good: {points} recovery point{'s' if points != 1 else ''}, and its keys.",
            "From now on it takes no backups and no plans.",
        ]
        if last:
            told.append(f"Locks keep {locked.count()} of them until {last:%Y-%m-%d}; until then they can be restored.")
        return told


class NewRecoveryKeyForm(BaseDialogForm):
    shares = forms.IntegerField(
        label="Shares to make (0: hand it out whole)",
        min_value=0,
        max_value=SHARES_MAX,
        initial=0,
        widget=UnfoldAdminIntegerFieldWidget,
    )
    threshold = forms.IntegerField(
        label="Shares needed together",
        min_value=0,
        max_value=SHARES_MAX,
        initial=0,
        widget=UnfoldAdminIntegerFieldWidget,
    )


class RecoveryProofForm(BaseDialogForm):
    typed = forms.CharField(
        label="The recovery key, or its shares, one a line",
        widget=UnfoldAdminTextareaWidget,
        max_length=16 * 400,
    )

    def typed_lines(self) -> list[str]:
        """Return the key, or the shares, as they were typed."""
        return [line.strip() for line in self.cleaned_data["typed"].splitlines() if line.strip()]
