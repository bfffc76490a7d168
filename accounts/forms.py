"""Forms of the console's pages of accounts: a member's role, and the privileges of a custom one."""

from typing import Any

from django import forms
from unfold.widgets import UnfoldAdminCheckboxSelectMultipleWidget, UnfoldAdminSelectWidget

from accounts.models import Account, CustomRole, Member, Role
from accounts.states import Privilege

Choices = list[tuple[str, str]]


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
        choices=[(one.value, f"{one.value}: {one.label}") for one in Privilege],
        initial=[Privilege.VIEW.value],
        widget=UnfoldAdminCheckboxSelectMultipleWidget,
        help_text="Whoever is a member sees the account, so view is always among them",
    )

    class Meta:
        model = CustomRole
        fields = ["account", "name", "privileges"]
