"""What the page of a cluster has beside that of other sources: its automatic backup, and its manual ones."""

import calendar
import datetime as dt
from collections.abc import Callable
from typing import Any, ClassVar

from django import forms
from django.contrib import messages
from django.db import transaction
from django.http import HttpRequest, HttpResponse
from django.urls import reverse
from django.utils import timezone
from django.utils.html import format_html, format_html_join
from unfold.forms import BaseDialogForm
from unfold.widgets import (
    UnfoldAdminCheckboxSelectMultipleWidget,
    UnfoldAdminIntegerFieldWidget,
    UnfoldAdminSelectWidget,
    UnfoldAdminTextInputWidget,
)

from accounts.console import ServiceAdmin, action, actor_of, display, human_bytes, leave_dialog
from jobs import clusters, doorbell, services
from jobs.console import dialog, start
from policies.clusters import EVERY_DAY, RETENTION_DAYS_MAX, automatic_of, is_enabled, plan_of, vaults_for
from policies.kinds import TYPES
from policies.models import Source
from vaults.models import RecoveryPoint, Vault

EAST = dt.timezone(dt.timedelta(hours=8))
_LINK = '<a class="font-medium text-primary-600 dark:text-primary-500" href="{}">{}</a>'
POINTS_SHOWN = 20


def _east(time: dt.time) -> str:
    """Return a time of day in UTC as it is in UTC+08:00."""
    return f"{dt.datetime.combine(dt.date(2024, 1, 1), time, dt.UTC).astimezone(EAST):%H:%M}"


def _window(start: dt.time, end: dt.time) -> str:
    return f"{start:%H:%M}-{end:%H:%M} UTC ({_east(start)}-{_east(end)} UTC+08:00)"


def _days(days: tuple[int, ...]) -> str:
    return "Daily" if days == EVERY_DAY else ", ".join(calendar.day_abbr[day - 1] for day in days)


class VaultForm(BaseDialogForm):
    """Asks for one of the vaults that the cluster can go to; its region's come first."""

    vault = forms.ModelChoiceField(queryset=Vault.objects.none(), empty_label=None, widget=UnfoldAdminSelectWidget)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.source = Source.objects.get(pk=str(self.object_id))
        found = vaults_for(self.source)
        field = self.fields["vault"]
        assert isinstance(field, forms.ModelChoiceField)
        field.queryset = Vault.objects.filter(pk__in=[vault.pk for vault in found])
        plan = plan_of(self.source)
        field.initial = plan.vault_id if plan else found[0].pk if found else None


class AutomaticForm(VaultForm):
    """Offers what is set; where nothing is, daily between 8 and 10 a.m. in UTC+08:00, for 7 days (D13-D15)."""

    form_before_template = "admin/warnings.html"
    days = forms.TypedMultipleChoiceField(
        choices=[(day, calendar.day_name[day - 1]) for day in EVERY_DAY],
        coerce=int,
        widget=UnfoldAdminCheckboxSelectMultipleWidget,
    )
    start = forms.TimeField(label="Between (UTC)", widget=UnfoldAdminTextInputWidget(attrs={"type": "time"}))
    end = forms.TimeField(label="and (UTC)", widget=UnfoldAdminTextInputWidget(attrs={"type": "time"}))
    retention_days = forms.IntegerField(
        label=f"Keep each backup for days, 1 to {RETENTION_DAYS_MAX}",
        min_value=1,
        max_value=RETENTION_DAYS_MAX,
        widget=UnfoldAdminIntegerFieldWidget,
    )
    field_order: ClassVar = ["days", "start", "end", "retention_days", "vault"]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        found = automatic_of(plan_of(self.source))
        shown = {"days": list(found.days), "start": f"{found.start:%H:%M}", "end": f"{found.end:%H:%M}"}
        for name, value in (shown | {"retention_days": found.retention_days}).items():
            self.fields[name].initial = value
        self.fields["start"].help_text = f"Now {_window(found.start, found.end)}. It may end on the next day."

    def get_before_template_context(self, request: HttpRequest, object_id: int | str | None = None) -> dict[str, Any]:
        if is_enabled(plan_of(self.source)):
            return {"lines": []}
        return {"lines": ["Stored backups take space, which may cost money. The first one starts at once."]}


class ClusterButtons(ServiceAdmin):
    """Automatic and manual backups on the page of a cluster; other sources have none of it."""

    buttons: ClassVar[list[Any]] = [
        {"title": "Backups", "icon": "backup", "items": ["automatic", "disable_automatic", "back_up"]}
    ]
    panel: ClassVar[list[str]] = ["automatic_state", "automatic_schedule", "automatic_next", "manual_points"]

    def get_actions_detail(self, request: HttpRequest, object_id: Any) -> list[Any]:
        """Offer to a cluster what can be done with it now, and nothing to others."""
        found: list[Any] = super().get_actions_detail(request, object_id)
        source = Source.objects.filter(pk=object_id).first()
        left_out = set(self.buttons[0]["items"])
        if source and TYPES[source.kind].is_cluster and not source.erasing_since:
            left_out = set() if is_enabled(plan_of(source)) else {"disable_automatic"}
        return [one for one in found if one.method.__name__ not in left_out]

    def _set(self, request: HttpRequest, object_id: str, done: str, **wanted: Any) -> HttpResponse:
        source, now = Source.objects.select_related("account", "region").get(pk=object_id), timezone.now()
        call: Callable[[], Any] = lambda: clusters.set_automatic(  # noqa: E731
            source, actor=actor_of(request), now=now, **wanted
        )
        with transaction.atomic():
            found = self.tell_refusals(request, call)
            if found:
                messages.success(request, done)
                if found[1] is not None:
                    doorbell.ring(services.first_step(found[1]), now=now)
                    messages.info(request, "The first backup is on its way. The job centre shows how it goes.")
        return leave_dialog(request, reverse("admin:policies_source_change", args=[object_id]))

    @action(
        description="Automatic backup",
        icon="event_repeat",
        permissions=["change"],
        dialog=dialog("Back up this cluster automatically", "All of it, each time.", AutomaticForm, "Enable"),
    )
    def automatic(self, request: HttpRequest, form: AutomaticForm, object_id: str) -> HttpResponse:
        typed = form.cleaned_data
        changes = {name: typed[name] for name in ("start", "end", "retention_days")} | {"days": tuple(typed["days"])}
        told = "Automatic backup is enabled."
        return self._set(request, object_id, told, changes=changes, enabled=True, vault=typed["vault"])

    @action(
        description="Disable automatic backup",
        icon="event_busy",
        permissions=["change"],
        dialog=dialog(
            "Disable automatic backup", "Its points stay for their days. The settings stay, too.", None, "Disable"
        ),
    )
    def disable_automatic(self, request: HttpRequest, form: Any, object_id: str) -> HttpResponse:
        return self._set(request, object_id, "Automatic backup is disabled.", changes={}, enabled=False)

    @action(
        description="Back up now",
        icon="backup",
        permissions=["change"],
        dialog=dialog("Back up by hand", "The point stays until somebody deletes it.", VaultForm, "Start"),
    )
    def back_up(self, request: HttpRequest, form: VaultForm, object_id: str) -> HttpResponse:
        source, vault = form.source, form.cleaned_data["vault"]
        return start(
            self,
            request,
            lambda: services.request_on_demand(source, vault, actor=actor_of(request), now=timezone.now()),
            reverse("admin:policies_source_change", args=[object_id]),
        )

    @display(description="State")
    def automatic_state(self, source: Source) -> str:
        plan = plan_of(source)
        if not is_enabled(plan):
            return "Disabled"
        assert plan is not None
        return f"Enabled, into the vault {plan.vault}"

    @display(description="When, and for how long")
    def automatic_schedule(self, source: Source) -> str:
        plan = plan_of(source)
        found = automatic_of(plan)
        days = f"{found.retention_days} days" if found.retention_days > 1 else "1 day"
        told = f"{_days(found.days)}, {_window(found.start, found.end)}, kept {days}"
        return told if plan else f"Not set. Offered: {told}"

    @display(description="Next run")
    def automatic_next(self, source: Source) -> str:
        plan = plan_of(source)
        if plan is None or plan.next_run_at is None:
            return "–"
        east = plan.next_run_at.astimezone(EAST)
        return f"{plan.next_run_at:%a %Y-%m-%d %H:%M} UTC ({east:%H:%M} UTC+08:00)"

    @display(description="Manual backups")
    def manual_points(self, source: Source) -> str:
        """List them with a way to the page that deletes each; they stay until then (D30)."""
        found = RecoveryPoint.objects.filter(series=source.series, vault__account=source.account_id, manual=True)
        rows = [
            (
                reverse("admin:vaults_recoverypoint_change", args=[point.pk]),
                f"{point.completed_at:%Y-%m-%d %H:%M}",
                f"{human_bytes(point.bytes_total)} in {point.vault}",
            )
            for point in found.select_related("vault").order_by("-completed_at")[:POINTS_SHOWN]
        ]
        if not rows:
            return "None. They stay until somebody deletes them, also when the cluster goes."
        more = f"{reverse('admin:vaults_recoverypoint_changelist')}?manual__exact=1&q={source.name}"
        return format_html(
            "{}{}",
            format_html_join("", "<div>" + _LINK + ' <span class="ml-4">{}</span></div>', rows),
            format_html("<div>" + _LINK + "</div>", more, "All of them. Open one to restore or delete it"),
        )
