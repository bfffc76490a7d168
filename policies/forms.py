"""What the console asks: for a source, the fields of its kind; before it pauses a plan, whether that is meant."""

import calendar
from typing import Any, ClassVar

from django import forms
from django.core.exceptions import ValidationError
from django.http import HttpRequest
from django.utils import timezone
from rest_framework import serializers
from unfold.forms import BaseDialogForm
from unfold.widgets import (
    UnfoldAdminCheckboxSelectMultipleWidget,
    UnfoldAdminDecimalFieldWidget,
    UnfoldAdminIntegerFieldWidget,
    UnfoldAdminPasswordWidget,
    UnfoldAdminSelect2MultipleWidget,
    UnfoldAdminSelectWidget,
    UnfoldAdminTextareaWidget,
    UnfoldAdminTextInputWidget,
    UnfoldBooleanSwitchWidget,
)

from accounts import grants
from accounts.console import note_refusal
from accounts.models import Grant
from accounts.refusals import Refused
from policies import reading, retention, services
from policies.kinds import TYPES
from policies.models import Plan, Rule, RuleType, Source

Shown = serializers.Field[Any, Any, Any, Any]

SETTINGS, CREDENTIALS = "settings", "credentials"


class RuleForm(forms.ModelForm[Rule]):
    """One rule, its weekdays as boxes to tick."""

    weekdays = forms.TypedMultipleChoiceField(
        coerce=int,
        choices=list(enumerate(calendar.day_name, 1)),
        required=False,
        widget=UnfoldAdminCheckboxSelectMultipleWidget,
        help_text="None is every day",
    )

    class Meta:
        model = Rule
        fields = ("weekdays",)  # the page names the others
        help_texts: ClassVar = {
            "settings": 'Of a replication, which needs nothing else: {"region": "far"}, with "vault" where one waits '
            'there. Of tags: {"tags": {"team": "web"}}. Of a backup: {}'
        }


class RuleFormSet(forms.BaseInlineFormSet):  # type: ignore[type-arg]  # the class takes no parameters when it runs
    """A policy's rules; the services say which are fit."""

    def clean(self) -> None:
        super().clean()
        if any(self.errors):
            return
        kept = [form for form in self.forms if form not in self.deleted_forms]
        if not any(form.cleaned_data.get("type", RuleType.BACKUP) == RuleType.BACKUP for form in kept):
            raise ValidationError("A policy needs a rule of type backup: without one nothing is ever backed up.")


LONG = {"rows": 3}
KEPT = "Stored. Leave it empty to keep it"


class LinesField(forms.CharField):
    """A list of texts, typed one a line."""

    widget = UnfoldAdminTextareaWidget(attrs=LONG)

    def prepare_value(self, value: Any) -> Any:
        return "\n".join(str(one) for one in value) if isinstance(value, list | tuple) else value

    def clean(self, value: Any) -> Any:
        return [line.strip() for line in super().clean(value).splitlines() if line.strip()]


class SourceForm(forms.ModelForm[Source]):
    """A source with the fields of its kind; `form_of` makes the form of each kind for the request that it is in."""

    request: ClassVar[HttpRequest]
    kind: ClassVar[str]
    shapes: ClassVar[dict[str, dict[str, Shown]]]
    forget_credentials = forms.BooleanField(
        required=False, widget=UnfoldBooleanSwitchWidget, help_text="Before what is typed above is stored"
    )
    skip_check = forms.BooleanField(
        label="Save without trying the connection",
        required=False,
        widget=UnfoldBooleanSwitchWidget,
        help_text="The next backup fails when it can't be reached then",
    )

    class Meta:
        model = Source
        fields = ("account", "region", "name", "host")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.instance.kind = self.kind
        if "host" in self.fields:
            self.fields["host"].required = True
            self.fields["host"].help_text = "The machine whose worker reads it, by the name that its worker was given"
        new = self.instance._state.adding
        for name, value in ({} if new else self.instance.settings).items():
            self.initial.setdefault(f"{SETTINGS}_{name}", value)
        stored = {} if new else reading.stored_credentials(self.instance)
        for name in self.shapes[CREDENTIALS]:
            field = self.fields[f"{CREDENTIALS}_{name}"]
            if name in stored:
                field.required, field.help_text = False, f"{KEPT}. {field.help_text}".rstrip(". ")

    def clean(self) -> dict[str, Any]:
        values: dict[str, Any] = super().clean() or {}
        if not self.errors:
            self.instance.host = values.get("host", "")
            self.instance.settings = self._typed(SETTINGS)
            try:
                over = not values.get("forget_credentials")
                to_try = services.check_source(self.instance, credentials=self._new_credentials(), over=over)
                if to_try and not values.get("skip_check"):
                    # The console's pages are transactions: SOURCE_CHECK_S is short enough for whoever waits to write.
                    services.try_source(self.instance, now=timezone.now())
            except ValidationError as error:
                self._tell(error)
            except Refused as refusal:
                self.add_error(None, str(refusal))
                note_refusal(self.request, None, code=refusal.code, reason=str(refusal))
        return values

    def _new_credentials(self) -> dict[str, str] | None:
        """Return what was typed; None when nothing changes."""
        typed = {name: value for name, value in self._typed(CREDENTIALS).items() if value}
        return typed if typed or self.cleaned_data.get("forget_credentials") else None

    def _typed(self, part: str) -> dict[str, Any]:
        """Return the typed values of the kind's fields; what was left empty is left to its default."""
        found = {}
        for name, field in self.shapes[part].items():
            value = self.cleaned_data.get(f"{part}_{name}")
            blank = getattr(field, "allow_blank", False)
            if (value is not None or field.allow_null) and (value != "" or blank):
                found[name] = value
        return found

    def _tell(self, error: ValidationError) -> None:
        """Put errors by "settings.<field>" next to the fields."""
        for path, texts in error.message_dict.items():
            part, _, rest = path.partition(".")
            name = f"{part}_{rest.partition('.')[0]}" if rest else part
            self.add_error(name if name in self.fields else None, texts)


def form_of(kind: str, request: HttpRequest) -> type[SourceForm]:
    """Return the form of one kind: its settings and credentials as they are declared."""
    shapes = {part: dict(getattr(TYPES[kind], part)().fields) for part in (SETTINGS, CREDENTIALS)}
    fields = {f"{part}_{name}": _field(field, part) for part, shape in shapes.items() for name, field in shape.items()}
    return type("SourceForm", (SourceForm,), {"request": request, "kind": kind, "shapes": shapes, **fields})


def names_of(kind: str, part: str) -> list[str]:
    """Return the names of the form's fields for the kind's settings or credentials."""
    return [f"{part}_{name}" for name in getattr(TYPES[kind], part)().fields]


def _field(field: Shown, part: str) -> forms.Field:
    """Return the form's field for a serializer's."""
    options: dict[str, Any] = {
        "label": field.label,
        "help_text": field.help_text or "",
        "required": field.required,
    }
    if field.default is not serializers.empty:
        options["initial"] = field.default() if callable(field.default) else field.default
    if part == CREDENTIALS:
        return forms.CharField(widget=_secret_widget(field), **options | {"initial": None})
    if isinstance(field, serializers.BooleanField):
        return forms.BooleanField(widget=UnfoldBooleanSwitchWidget, **options | {"required": False})
    if isinstance(field, serializers.ChoiceField):
        choices = list(field.choices.items())
        return forms.ChoiceField(choices=choices, widget=UnfoldAdminSelectWidget, **options)
    if isinstance(field, serializers.ListField):
        options["help_text"] = f"{options['help_text']}. One a line".lstrip(". ")
        return LinesField(**options)
    if isinstance(field, serializers.IntegerField | serializers.FloatField):
        return _number(field, options)
    widget = UnfoldAdminTextareaWidget(attrs=LONG) if _is_long(field) else UnfoldAdminTextInputWidget()
    return forms.CharField(widget=widget, **options)


def _number(field: Any, options: dict[str, Any]) -> forms.Field:
    options |= {"min_value": field.min_value, "max_value": field.max_value}
    if isinstance(field, serializers.IntegerField):
        return forms.IntegerField(widget=UnfoldAdminIntegerFieldWidget, **options)
    return forms.FloatField(widget=UnfoldAdminDecimalFieldWidget, **options)


def _is_long(field: Shown) -> bool:
    return field.style.get("base_template") == "textarea.html"


def _secret_widget(field: Shown) -> Any:
    """Return a widget that never shows what is stored; what its kind calls a password is not shown while typed."""
    if _is_long(field):
        return UnfoldAdminTextareaWidget(attrs=LONG)
    if field.style.get("input_type") == "password":
        return UnfoldAdminPasswordWidget(attrs={"autocomplete": "new-password"})
    return UnfoldAdminTextInputWidget(attrs={"autocomplete": "off"})


class PauseForm(BaseDialogForm):
    """Tells when the last point goes, where nothing keeps it (C17)."""

    form_before_template = "admin/warnings.html"

    def get_before_template_context(self, request: HttpRequest, object_id: int | str | None = None) -> dict[str, Any]:
        plan = Plan.objects.select_related("source", "vault").get(pk=str(object_id))
        return {"lines": retention.warnings_on_pause(plan, now=timezone.now())}


class GrantForm(forms.ModelForm[Grant]):
    """Who gives what to whom (B8)."""

    chosen = forms.ModelMultipleChoiceField(
        queryset=Source.objects.select_related("account"),
        required=False,
        label="Sources",
        widget=UnfoldAdminSelect2MultipleWidget,
        help_text="Of the account that gives; none when all are granted",
    )
    privileges = forms.MultipleChoiceField(
        choices=[(name, name) for name in grants.GIVEN], widget=UnfoldAdminCheckboxSelectMultipleWidget
    )

    class Meta:
        model = Grant
        fields = ["grantor", "grantee", "all_sources", "privileges", "expires_at", "note"]
