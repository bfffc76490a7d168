"""What the console asks before it starts a job."""

from typing import Any

from django import forms
from django.conf import settings
from django.core.exceptions import ValidationError
from django.http import HttpRequest
from django.utils import timezone
from unfold.forms import BaseDialogForm
from unfold.widgets import (
    UnfoldAdminIntegerFieldWidget,
    UnfoldAdminSelectWidget,
    UnfoldAdminSingleTimeWidget,
    UnfoldAdminTextareaWidget,
    UnfoldAdminTextInputWidget,
    UnfoldBooleanSwitchWidget,
)

from accounts.console import ConfirmedForm
from accounts.refusals import Refused
from jobs import removal, starts
from jobs.models import Job
from jobs.services import VERIFY_LEVELS, Selection, destinations
from jobs.states import RECURRING, Kind
from policies import reading, retention
from policies.kinds import TYPES
from policies.models import Plan, Source, SourceKind
from vaults.models import RecoveryPoint, Vault


class PlaceField(forms.ModelChoiceField[Source]):
    """Shows sources as places to restore to."""

    def label_from_instance(self, obj: Source) -> str:
        where = f"on {obj.host}" if obj.host else f"in region {obj.region}"
        return f"{obj}: {obj.get_kind_display()} {where}"


class RestoreForm(BaseDialogForm):
    """Offers the destinations that take the point, and tells of each kind what "to" means and what has to be there."""

    form_before_template = "admin/restore_places.html"
    destination = PlaceField(queryset=Source.objects.none(), label="To", required=False, widget=UnfoldAdminSelectWidget)
    to = forms.CharField(
        label="Place there (empty: the original one)",
        max_length=4096,
        required=False,
        widget=UnfoldAdminTextInputWidget,
    )
    mode = forms.ChoiceField(
        label="Restore",
        choices=[("all", "Everything"), ("include", "Only these paths"), ("exclude", "All but these paths")],
        widget=UnfoldAdminSelectWidget,
    )
    patterns = forms.CharField(
        label="Paths or patterns, one a line",
        required=False,
        widget=UnfoldAdminTextareaWidget(attrs={"rows": 2}),
    )
    same_name = forms.ChoiceField(
        label="A file or object of the same name",
        choices=[("skip", "stays as it is"), ("overwrite", "is overwritten")],
        widget=UnfoldAdminSelectWidget,
    )
    overwrite_confirmed = forms.BooleanField(
        label="Overwriting loses the present content: I am sure", required=False, widget=UnfoldBooleanSwitchWidget
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        point = RecoveryPoint.objects.select_related("vault").get(pk=str(self.object_id))
        found = destinations(point)
        self.kind = point.source_kind
        self.kinds = sorted({source.kind for source in found})
        field = self.fields["destination"]
        assert isinstance(field, forms.ModelChoiceField)
        field.queryset = Source.objects.filter(pk__in=[source.pk for source in found]).select_related("region")
        field.initial = next((source.pk for source in found if source.series == point.series), None)
        field.empty_label = None if field.initial else "Choose where"

    def get_before_template_context(self, request: HttpRequest, object_id: int | str | None = None) -> dict[str, Any]:
        return {"kinds": [{"label": SourceKind(kind).label, "type": TYPES[kind]} for kind in self.kinds]}

    def clean(self) -> dict[str, Any]:
        values: dict[str, Any] = super().clean() or {}
        if destination := values.get("destination"):
            try:
                reading.check_place(destination, kind=self.kind, to=values.get("to", ""))
            except ValidationError as error:
                self.add_error("to", error)
        if (values.get("mode") == "all") == bool(values.get("patterns", "").strip()):
            self.add_error("patterns", "Name paths for a part of the point, none for everything.")
        return values

    def selection(self) -> Selection:
        """Return what was asked for as the service takes it."""
        values = self.cleaned_data
        return Selection(
            mode=values["mode"],
            patterns=[line.strip() for line in values["patterns"].splitlines() if line.strip()],
            to=values["to"],
            same_name=values["same_name"],
            overwrite_confirmed=values["overwrite_confirmed"],
            destination=values["destination"],
        )


class RetryForm(BaseDialogForm):
    """Asks of a restore whether all of it is wanted again."""

    failed_only = forms.BooleanField(
        label="Only what failed (what was restored is left as it is)",
        required=False,
        widget=UnfoldBooleanSwitchWidget,
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if Job.objects.get(pk=str(self.object_id)).kind != Kind.RESTORE:
            self.fields["failed_only"].widget = forms.HiddenInput()


class VerifyForm(BaseDialogForm):
    level = forms.ChoiceField(
        choices=[(level, level) for level in VERIFY_LEVELS], initial="structure", widget=UnfoldAdminSelectWidget
    )


def _points(count: int) -> str:
    return "1 recovery point" if count == 1 else f"{count} recovery points"


class PointDeletionForm(ConfirmedForm):
    named = "source"

    def told(self) -> list[str]:
        point = RecoveryPoint.objects.get(pk=str(self.object_id))
        told = [f"The recovery point {point} is deleted for good. Its name is {point.source_name or point.series}."]
        if point.held_at:
            told.append("It is held: release it first.")
        if point.locked_until and point.locked_until > timezone.now():
            told.append(f"It is locked until {point.locked_until:%Y-%m-%d %H:%M}: nobody can delete it before.")
        return told


class ErasureForm(ConfirmedForm):
    named = "source"

    def told(self) -> list[str]:
        source = Source.objects.get(pk=str(self.object_id))
        found = removal.erasure(source, now=timezone.now())
        told = [
            f"{_points(found.points)} of {source}, all there are in any vault, are deleted for good.",
            "Its plans end at once. The source itself goes with its last point.",
        ]
        if found.locked and found.ends_at:
            told.append(f"{_points(found.locked)} locked: gone by themselves at {found.ends_at:%Y-%m-%d %H:%M}.")
        if found.held:
            told.append(f"{_points(found.held)} held: gone once released.")
        return told


class HoldForm(BaseDialogForm):
    reason = forms.CharField(label="Why", max_length=255, widget=UnfoldAdminTextInputWidget)


class DryRunForm(BaseDialogForm):
    dry_run = forms.BooleanField(
        label="Only tell what would be done", required=False, initial=True, widget=UnfoldBooleanSwitchWidget
    )


class ExpireForm(DryRunForm):
    confirmed = forms.BooleanField(
        label="Expire more than a fifth of the points, or by a clock that jumped, if need be: I am sure",
        required=False,
        widget=UnfoldBooleanSwitchWidget,
    )


class ConfirmExpiryForm(BaseDialogForm):
    """Tells again what the guard objected to."""

    form_before_template = "admin/warnings.html"

    def get_before_template_context(self, request: HttpRequest, object_id: int | str | None = None) -> dict[str, Any]:
        return {"lines": [Job.objects.get(pk=str(object_id)).error]}


class IntervalsForm(BaseDialogForm):
    """Hours between two runs of each kind of maintenance."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        vault = Vault.objects.get(pk=str(self.object_id))
        for kind in RECURRING:
            usual = settings.MAINTENANCE_EVERY_S[kind] / 3600
            own = vault.maintenance.get(kind)
            self.fields[kind.value] = forms.FloatField(
                label=f"{kind.label}: hours (empty: {usual:g}, 0: never)",
                required=False,
                min_value=0,
                initial=own / 3600 if own is not None else None,
                widget=UnfoldAdminTextInputWidget,
            )

    def intervals(self) -> dict[str, int | None]:
        """Return what was typed, in seconds; None follows the installation."""
        typed = {kind.value: self.cleaned_data[kind.value] for kind in RECURRING}
        return {kind: None if hours is None else round(hours * 3600) for kind, hours in typed.items()}


class DrillForm(BaseDialogForm):
    vault = forms.ModelChoiceField(
        queryset=Vault.objects.none(), label="From the vault", empty_label=None, widget=UnfoldAdminSelectWidget
    )
    percent = forms.IntegerField(
        label="Percent of its files", min_value=1, max_value=100, initial=100, widget=UnfoldAdminIntegerFieldWidget
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        source = Source.objects.get(pk=str(self.object_id))
        field = self.fields["vault"]
        assert isinstance(field, forms.ModelChoiceField)
        field.queryset = Vault.objects.filter(pk__in=[vault.pk for vault in retention.vaults_of(source)])


class StartTimeForm(BaseDialogForm):
    """Asks for another time of day, and tells what it would mean now for today's run (C38-C41)."""

    form_before_template = "admin/warnings.html"
    start_time = forms.TimeField(
        label="Time of day (empty: as the policy says)", required=False, widget=UnfoldAdminSingleTimeWidget
    )

    def get_before_template_context(self, request: HttpRequest, object_id: int | str | None = None) -> dict[str, Any]:
        plan = Plan.objects.select_related("policy").get(pk=str(object_id))
        try:
            starts.check(plan)
        except Refused as refusal:
            return {"lines": [str(refusal)]}
        return {"lines": starts.told(plan, now=timezone.now())}
