"""What the console asks about channels, rules and silences."""

import datetime as dt
from typing import Any, ClassVar

from django import forms
from django.core.exceptions import ValidationError
from django.core.validators import validate_email
from unfold.forms import BaseDialogForm
from unfold.widgets import (
    UnfoldAdminCheckboxSelectMultipleWidget,
    UnfoldAdminIntegerFieldWidget,
    UnfoldAdminPasswordWidget,
    UnfoldAdminSelectWidget,
    UnfoldAdminTextareaWidget,
    UnfoldAdminTextInputWidget,
)

from accounts.states import Role
from jobs.alert_models import HOURS_MAX, AlertRule, AlertType, Channel, ChannelKind

LASTS = (
    (1, "an hour"),
    (4, "four hours"),
    (24, "a day"),
    (72, "three days"),
    (24 * 7, "a week"),
    (24 * 30, "thirty days"),
)


class SilenceForm(BaseDialogForm):
    hours = forms.TypedChoiceField(label="For", choices=LASTS, coerce=int, initial=24, widget=UnfoldAdminSelectWidget)
    reason = forms.CharField(label="Why", max_length=255, widget=UnfoldAdminTextInputWidget)

    def until(self, now: dt.datetime) -> dt.datetime:
        """Return when the silence ends."""
        return now + dt.timedelta(hours=self.cleaned_data["hours"])


class WatchForm(BaseDialogForm):
    hours = forms.IntegerField(
        label="Hours (empty: two runs of the schedule, 0: never)",
        required=False,
        min_value=0,
        max_value=HOURS_MAX,
        widget=UnfoldAdminIntegerFieldWidget,
    )


class ChannelForm(forms.ModelForm[Channel]):
    """A channel of any kind; its sealed address and secret are typed, and never shown."""

    roles = forms.MultipleChoiceField(
        label="Members",
        choices=Role.choices,
        required=False,
        initial=[Role.OWNER, Role.ADMIN],
        widget=UnfoldAdminCheckboxSelectMultipleWidget,
        help_text="Who of the account's members is written to, if an e-mail address is known",
    )
    addresses = forms.CharField(
        label="Other addresses, one a line",
        required=False,
        widget=UnfoldAdminTextareaWidget(attrs={"rows": 3}),
    )
    url = forms.CharField(
        label="Address",
        required=False,
        max_length=2000,
        widget=UnfoldAdminPasswordWidget(attrs={"autocomplete": "new-password"}),
        help_text="Of a webhook: https://…; else as Apprise writes it, such as slack://… or tgram://… "
        "Kept sealed, never shown again. Empty leaves the stored one",
    )
    secret = forms.CharField(
        label="Secret",
        required=False,
        max_length=200,
        widget=UnfoldAdminPasswordWidget(attrs={"autocomplete": "new-password"}),
        help_text="At least 16 characters, known to the receiver: with it messages are signed",
    )

    class Meta:
        model = Channel
        fields = ["account", "name", "kind", "enabled"]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        kept = self.instance.settings
        if not self.instance._state.adding:
            self.fields["kind"].disabled = True  # it never changes
            self.initial["roles"] = kept.get("roles", [])
            self.initial["addresses"] = "\n".join(kept.get("addresses", []))

    def clean_addresses(self) -> list[str]:
        found = [line.strip() for line in self.cleaned_data["addresses"].splitlines() if line.strip()]
        for one in found:
            try:
                validate_email(one)
            except ValidationError as error:
                raise ValidationError(f"{one!r} is no e-mail address.") from error
        return found

    def clean(self) -> dict[str, Any]:
        values: dict[str, Any] = super().clean() or {}
        kind = values.get("kind") or self.instance.kind
        if kind == ChannelKind.EMAIL and "addresses" in values and not (values.get("roles") or values["addresses"]):
            self.add_error("roles", "Say whom to write to: members, other addresses, or both.")
        if kind != ChannelKind.EMAIL and self.instance._state.adding and not values.get("url"):
            self.add_error("url", "Give the address.")
        return values

    def given(self) -> dict[str, str] | None:
        """Return the secrets that were typed, None for none."""
        typed = {name: self.cleaned_data.get(name, "") for name in ("url", "secret")}
        return typed if any(typed.values()) else None

    def people(self) -> dict[str, list[str]]:
        """Return whom an e-mail channel writes to."""
        return {"roles": self.cleaned_data.get("roles", []), "addresses": self.cleaned_data.get("addresses", [])}


class AlertRuleForm(forms.ModelForm[AlertRule]):
    types = forms.MultipleChoiceField(
        choices=AlertType.choices,
        required=False,
        widget=UnfoldAdminCheckboxSelectMultipleWidget,
        help_text="None is all of them",
    )

    class Meta:
        model = AlertRule
        fields = [
            "account", "name", "enabled", "types", "severity_min", "source", "vault", "plan", "inbox", "channels",
            "tell_resolved", "quiet_from", "quiet_until", "time_zone",
        ]  # fmt: skip
        labels: ClassVar = {
            "severity_min": "At least",
            "channels": "Channels",
            "tell_resolved": "The end",
            "quiet_from": "From",
            "quiet_until": "Until",
        }
        help_texts: ClassVar = {"quiet_from": "Meanwhile only what is critical goes out; the rest waits for the end"}

    def clean_types(self) -> list[str]:
        return list(self.cleaned_data["types"])
