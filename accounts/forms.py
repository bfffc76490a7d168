"""Forms of the console's pages of accounts: a member's role, the privileges of a custom one, and those of a token."""

import datetime as dt
from typing import Any, ClassVar

from django import forms
from django.conf import settings
from unfold.widgets import (
    UnfoldAdminCheckboxSelectMultipleWidget,
    UnfoldAdminIntegerFieldWidget,
    UnfoldAdminSelectWidget,
)

from accounts.models import Account, ApiToken, CustomRole, Member, Role
from accounts.states import Privilege

Choices = list[tuple[str, str]]
PRIVILEGES = [(one.value, f"{one.value}: {one.label}") for one in Privilege]


def role_choices(account: Account) -> Choices:
    """Return what a member of the account may be: the ready made roles, then the account's own."""
    own = account.custom_roles.values_list("pk", "name")
    return [*((role.value, role.label) for role in Role), *((str(pk), name) for pk, name in own)]


class MemberForm(forms.ModelForm[Member]):
    """A person and one role, ready made or custom."""

    given = forms.ChoiceField(label="Role", widget=UnfoldAdminSelectWidget)

    class Meta:
        model = Member
        fields = ["user"]

    def __init__(self, *args: Any, choices: Choices, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        given = self.fields["given"]
        assert isinstance(given, forms.ChoiceField)
        given.choices = choices
        given.initial = str(self.instance.custom_role_id or self.instance.role)

    def clean(self) -> dict[str, Any]:
        """Put the chosen role where the member keeps it; the service stores it."""
        values: dict[str, Any] = super().clean() or {}
        chosen = values.get("given", "")
        ready_made = chosen in Role.values
        self.instance.role = chosen if ready_made else ""
        self.instance.custom_role = CustomRole.objects.filter(pk=chosen).first() if chosen and not ready_made else None
        return values


class CustomRoleForm(forms.ModelForm[CustomRole]):
    privileges = forms.MultipleChoiceField(
        choices=PRIVILEGES,
        initial=[Privilege.VIEW.value],
        widget=UnfoldAdminCheckboxSelectMultipleWidget,
        help_text="Whoever is a member sees the account, so view is always among them",
    )

    class Meta:
        model = CustomRole
        fields = ["account", "name", "privileges"]


class TokenForm(forms.ModelForm[ApiToken]):
    """What a new token is for, what it may do, and for how long."""

    days = forms.IntegerField(min_value=1, label="Days until it ends", widget=UnfoldAdminIntegerFieldWidget)
    privileges = forms.MultipleChoiceField(
        choices=PRIVILEGES,
        required=False,
        widget=UnfoldAdminCheckboxSelectMultipleWidget,
        help_text="As far as you have them yourself. Tick none for a token that only reads. This never changes.",
    )

    class Meta:
        model = ApiToken
        fields = ["name", "account", "privileges"]
        help_texts: ClassVar = {
            "name": "What it is for: so you find it again to revoke it",
            "account": "Only in this account; none is all of yours",
        }

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["days"].initial = settings.TOKEN_DAYS
        self.fields["days"].help_text = f"{settings.TOKEN_DAYS_MAX} at most"

    def life(self) -> dt.timedelta:
        """Return how long the token is to live."""
        return dt.timedelta(days=self.cleaned_data["days"])
