"""What the console asks before it starts a job."""

from typing import Any

from django import forms
from unfold.forms import BaseDialogForm
from unfold.widgets import (
    UnfoldAdminSelectWidget,
    UnfoldAdminTextareaWidget,
    UnfoldAdminTextInputWidget,
    UnfoldBooleanSwitchWidget,
)

from jobs.services import VERIFY_LEVELS, Selection


class RestoreForm(BaseDialogForm):
    mode = forms.ChoiceField(
        label="Restore",
        choices=[("all", "Everything"), ("include", "Only these paths"), ("exclude", "All but these paths")],
        widget=UnfoldAdminSelectWidget,
    )
    patterns = forms.CharField(label="Paths or patterns, one a line", required=False, widget=UnfoldAdminTextareaWidget)
    to = forms.CharField(
        label="Into this existing folder (empty: original place)", required=False, widget=UnfoldAdminTextInputWidget
    )
    same_name = forms.ChoiceField(
        label="A file of the same name",
        choices=[("skip", "stays as it is"), ("overwrite", "is overwritten")],
        widget=UnfoldAdminSelectWidget,
    )
    overwrite_confirmed = forms.BooleanField(
        label="Overwriting loses the present content: I am sure", required=False, widget=UnfoldBooleanSwitchWidget
    )

    def clean(self) -> dict[str, Any]:
        values: dict[str, Any] = super().clean() or {}
        to = values.get("to", "")
        if to and (not to.startswith("/") or ".." in to.split("/")):
            self.add_error("to", "Give an absolute path without '..'.")
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
        )


class VerifyForm(BaseDialogForm):
    level = forms.ChoiceField(
        choices=[(level, level) for level in VERIFY_LEVELS], initial="structure", widget=UnfoldAdminSelectWidget
    )
