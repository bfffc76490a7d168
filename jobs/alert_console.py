"""Console pages of alerts: the inbox, and who hears of what, through which channel."""

from typing import Any, ClassVar

from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.urls import reverse
from django.utils import timezone
from django.utils.html import format_html

from accounts.console import ReadOnlyAdmin, ReadOnlyInline, ServiceAdmin, action, actor_of, display, leave_dialog
from accounts.models import Account
from jobs import channels, senders, watches
from jobs.alert_forms import AlertRuleForm, ChannelForm, SilenceForm, WatchForm
from jobs.alert_models import Alert, AlertRule, AlertState, Channel, Delivery, Severity, Silence
from policies.models import Plan

SEVERITY_LABELS = {"Critical": "danger", "Warning": "warning", "Info": "info"}
STATE_LABELS = {
    "Open": "danger",
    "Acknowledged": "info",
    "Silenced": "warning",
    "Resolved": "success",
    "Sent": "success",
    "Queued": "info",
    "Being sent": "info",
    "Given up": "danger",
    "Dropped": "warning",
}
NARROWED = ["source", "vault", "plan"]


def state_of(alert: Alert) -> str:
    """Return the state of an alert in one word."""
    if alert.state == AlertState.RESOLVED:
        return "Resolved"
    if alert.silenced_until and alert.silenced_until > timezone.now():
        return "Silenced"
    return "Acknowledged" if alert.acknowledged_at else "Open"


def unheeded(request: HttpRequest) -> str:
    """Return what the sidebar shows beside the inbox: how many alerts nobody heeded, nothing for none."""
    count = Alert.objects.unheeded(timezone.now()).count()
    return str(count) if count else ""


class DeliveryInline(ReadOnlyInline):
    model = Delivery
    fields: ClassVar = ["created_at", "channel", "told", "status", "attempt", "next_at", "error"]
    readonly_fields = fields
    per_page = 20

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        found: QuerySet[Any] = super().get_queryset(request).select_related("channel", "alert")
        return found

    @display(description="State", label=STATE_LABELS)
    def status(self, delivery: Delivery) -> str:
        return delivery.get_state_display()


class ChannelDeliveryInline(DeliveryInline):
    fields: ClassVar = ["created_at", "alert", "told", "status", "attempt", "next_at", "error"]
    readonly_fields = fields


@admin.register(Alert)
class AlertAdmin(ReadOnlyAdmin):
    list_display = ["what", "severity_shown", "status", "since", "last_at", "count", "account", "work"]
    list_display_links = ["what"]
    list_filter: ClassVar = ["state", "severity", "type", "account", "vault"]
    list_select_related = ["account", "job"]
    search_fields = ["title", "text"]
    ordering: ClassVar = ["state", "-last_at"]
    list_before_template = "admin/alerts_note.html"
    actions_detail: ClassVar = ["acknowledge", "silence"]
    inlines = [DeliveryInline]
    fieldsets = [
        (None, {"fields": ["title", "severity_shown", "status", "explained", "type"]}),
        ("About", {"fields": ["account", "source", "vault", "plan", "work"]}),
        ("Time", {"fields": ["since", "last_at", "count", "resolved_at", "heeded"]}),
    ]

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        found: QuerySet[Any] = super().get_queryset(request)
        in_list = request.resolver_match and request.resolver_match.url_name == "jobs_alert_changelist"
        return found.filter(in_inbox=True) if in_list else found

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        note = "" if senders.is_email_on() else f"{senders.EMAIL_OFF}. Alerts stand here, and go out by other channels."
        answer: HttpResponse = super().changelist_view(request, (extra_context or {}) | {"note": note})
        return answer

    @display(description="What", ordering="title")
    def what(self, alert: Alert) -> str:
        return alert.title

    @display(description="Severity", ordering="severity", label=SEVERITY_LABELS)
    def severity_shown(self, alert: Alert) -> str:
        return Severity(alert.severity).label

    @display(description="State", ordering="state", label=STATE_LABELS)
    def status(self, alert: Alert) -> str:
        return state_of(alert)

    @display(description="Since", ordering="first_at")
    def since(self, alert: Alert) -> str:
        return f"{alert.first_at:%Y-%m-%d %H:%M}"

    @display(description="What it says")
    def explained(self, alert: Alert) -> str:
        return format_html('<div class="whitespace-pre-line">{}</div>', alert.text) if alert.text else "–"

    @display(description="Job")
    def work(self, alert: Alert) -> str:
        if alert.job is None:
            return "–"
        link = reverse("admin:jobs_job_change", args=[alert.job_id])
        return format_html('<a class="font-medium text-primary-600 dark:text-primary-500" href="{}">{}</a>', link,
                           alert.job)  # fmt: skip

    @display(description="Heeded")
    def heeded(self, alert: Alert) -> str:
        told = []
        if alert.acknowledged_at:
            told.append(f"Acknowledged by {alert.acknowledged_by} on {alert.acknowledged_at:%Y-%m-%d %H:%M}")
        if alert.silenced_until and alert.silenced_until > timezone.now():
            told.append(f"Silenced until {alert.silenced_until:%Y-%m-%d %H:%M}")
        return "; ".join(told) or "–"

    def get_actions_detail(self, request: HttpRequest, object_id: Any) -> list[Any]:
        """Offer nothing about what is over, and to acknowledge only what nobody did."""
        found: list[Any] = super().get_actions_detail(request, object_id)
        alert = Alert.objects.filter(pk=object_id).first()
        if alert is None or alert.state == AlertState.RESOLVED:
            return []
        return [one for one in found if one.method.__name__ != "acknowledge" or not alert.acknowledged_at]

    def _alert(self, object_id: str) -> Alert:
        return Alert.objects.select_related("account", "plan", "source", "vault").get(pk=object_id)

    @action(description="Acknowledge", icon="done", permissions=["view"])
    def acknowledge(self, request: HttpRequest, object_id: str) -> HttpResponse:
        alert = self._alert(object_id)
        if self.tell_refusals(
            request, lambda: channels.acknowledge(alert, actor=actor_of(request), now=timezone.now())
        ):
            messages.success(request, "Acknowledged: it stays in the list and counts no more.")
        return leave_dialog(request, reverse("admin:jobs_alert_change", args=[object_id]))

    @action(
        description="Silence",
        icon="notifications_off",
        permissions=["view"],
        dialog={
            "title": "Silence alerts like this one",
            "description": "Of this type, about the same plan, or the same source and vault. They stand in the list, "
            "marked, and are not delivered.",
            "form_class": SilenceForm,
            "form_submit_text": "Silence",
        },
    )
    def silence(self, request: HttpRequest, form: SilenceForm, object_id: str) -> HttpResponse:
        now = timezone.now()
        wanted = channels.alike(self._alert(object_id))
        wanted.until, wanted.reason = form.until(now), form.cleaned_data["reason"]
        if self.tell_refusals(request, lambda: channels.silence(wanted, actor=actor_of(request), now=now)):
            messages.success(request, f"Silenced until {wanted.until:%Y-%m-%d %H:%M} UTC.")
        return leave_dialog(request, reverse("admin:jobs_alert_change", args=[object_id]))


class _ManagedAdmin(ServiceAdmin):
    """Every account has its own rules and channel before somebody looks."""

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        channels.of_accounts(Account.objects.all(), now=timezone.now())
        answer: HttpResponse = super().changelist_view(request, extra_context)
        return answer

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> list[str]:
        return ["account", *self.readonly_fields] if obj else list(self.readonly_fields)

    def delete_model(self, request: HttpRequest, obj: Any) -> None:
        channels.delete(obj, actor=actor_of(request), now=timezone.now())


@admin.register(Channel)
class ChannelAdmin(_ManagedAdmin):
    form = ChannelForm
    list_display = ["name", "kind", "account", "enabled", "goes_to", "note_shown"]
    list_filter: ClassVar = ["account", "kind", "enabled"]
    list_select_related = ["account"]
    search_fields = ["name"]
    actions_detail: ClassVar = ["test"]
    # Only what the kind needs is shown.
    conditional_fields: ClassVar = {
        "roles": "kind == 'email'",
        "addresses": "kind == 'email'",
        "url": "kind != 'email'",
        "secret": "kind == 'webhook'",
    }
    fieldsets = [
        (None, {"fields": ["account", "name", "kind", "enabled"]}),
        ("Where to", {"fields": ["roles", "addresses", "url", "secret"]}),
    ]

    def get_fieldsets(self, request: HttpRequest, obj: Channel | None = None) -> Any:
        told = [("Condition", {"fields": ["goes_to", "note_shown"]})] if obj else []
        return [*super().get_fieldsets(request, obj), *told]

    def get_readonly_fields(self, request: HttpRequest, obj: Channel | None = None) -> list[str]:
        return [*super().get_readonly_fields(request, obj), "goes_to", "note_shown"]

    def get_inlines(self, request: HttpRequest, obj: Channel | None) -> list[Any]:
        return [ChannelDeliveryInline] if obj else []

    def get_changelist_instance(self, request: HttpRequest) -> Any:
        """Find out for all rows of a page at once who has somebody to write to."""
        page = super().get_changelist_instance(request)
        reached = channels.addressed(page.result_list)
        for row in page.result_list:
            row.reached = reached
        return page

    @display(description="Goes to")
    def goes_to(self, channel: Channel) -> str:
        return channel.shown or "–"

    @display(description="To know")
    def note_shown(self, channel: Channel) -> str:
        reached = getattr(channel, "reached", None)
        return channels.note(channel, reached=channels.addressed([channel]) if reached is None else reached) or "–"

    def save_model(self, request: HttpRequest, obj: Channel, form: ChannelForm, change: bool) -> None:
        obj.settings = form.people()
        channels.save_channel(obj, form.given(), actor=actor_of(request), now=timezone.now())

    @action(description="Send test", icon="send", permissions=["change"])
    def test(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Let a worker send a test; the list of deliveries tells the result."""
        channel = Channel.objects.select_related("account").get(pk=object_id)
        channels.send_test(channel, actor=actor_of(request), now=timezone.now())
        messages.info(request, "A test is on its way. Look again in a few seconds: Deliveries tells how it went.")
        return leave_dialog(request, reverse("admin:jobs_channel_change", args=[object_id]))


@admin.register(AlertRule)
class AlertRuleAdmin(_ManagedAdmin):
    form = AlertRuleForm
    list_display = ["name", "account", "enabled", "what", "where_to"]
    list_filter: ClassVar = ["account", "enabled"]
    list_select_related = ["account", "source", "vault", "plan__source", "plan__vault", "plan__policy"]
    search_fields = ["name"]
    fieldsets = [
        (None, {"fields": ["account", "name", "enabled"]}),
        ("Which alerts", {"fields": ["severity_min", "types", *NARROWED]}),
        ("Where to", {"fields": ["inbox", "channels", "tell_resolved"]}),
        ("Quiet hours", {"fields": ["quiet_from", "quiet_until", "time_zone"]}),
    ]

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        found: QuerySet[Any] = super().get_queryset(request)
        return found.prefetch_related("channels")

    @display(description="Which alerts")
    def what(self, rule: AlertRule) -> str:
        kinds = f"{len(rule.types)} types" if rule.types else "all types"
        level = Severity(rule.severity_min).label.lower()
        about = [str(part) for part in (rule.source, rule.vault, rule.plan) if part]
        return ", ".join([kinds, level if rule.severity_min == Severity.CRITICAL else f"{level} and worse", *about])

    @display(description="Where to")
    def where_to(self, rule: AlertRule) -> str:
        names = [*(["inbox"] if rule.inbox else []), *(channel.name for channel in rule.channels.all())]
        return ", ".join(names) or "nowhere"

    def save_model(self, request: HttpRequest, obj: AlertRule, form: AlertRuleForm, change: bool) -> None:
        chosen = list(form.cleaned_data["channels"])
        channels.save_rule(obj, chosen, actor=actor_of(request), now=timezone.now())


@admin.register(Silence)
class SilenceAdmin(ServiceAdmin):
    list_display = ["what", "status", "until", "reason", "created_by", "account"]
    list_filter: ClassVar = ["account", "type"]
    list_select_related = ["account", "source", "vault", "plan__source", "plan__vault", "plan__policy"]
    fields = ["account", "type", *NARROWED, "until", "reason"]
    actions_detail: ClassVar = ["end"]

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    @display(description="What")
    def what(self, silence: Silence) -> str:
        return str(silence)

    @display(description="State", label={"In force": "warning", "Over": "info"})
    def status(self, silence: Silence) -> str:
        return "In force" if silence.until > timezone.now() else "Over"

    def save_model(self, request: HttpRequest, obj: Silence, form: Any, change: bool) -> None:
        channels.silence(obj, actor=actor_of(request), now=timezone.now())

    @action(description="End it", icon="notifications_active", permissions=["view"])
    def end(self, request: HttpRequest, object_id: str) -> HttpResponse:
        silence = Silence.objects.select_related("account").get(pk=object_id)
        channels.end_silence(silence, actor=actor_of(request), now=timezone.now())
        messages.success(request, "The silence is over.")
        return leave_dialog(request, reverse("admin:jobs_silence_change", args=[object_id]))


class PlanWatchButton(ServiceAdmin):
    """On the page of a plan: after how long without a backup somebody is told."""

    @action(
        description="Overdue after",
        icon="notification_important",
        permissions=["change"],
        dialog={
            "title": "After how long without a successful backup is somebody told?",
            "description": "",
            "form_class": WatchForm,
            "form_submit_text": "Save",
        },
    )
    def watch(self, request: HttpRequest, form: WatchForm, object_id: str) -> HttpResponse:
        now = timezone.now()
        plan = Plan.objects.select_related("account", "policy").get(pk=object_id)
        found = watches.of_plan(plan, now=now)
        watches.set_hours(found, form.cleaned_data["hours"], actor=actor_of(request), now=now)
        limit = watches.overdue_at(found)
        messages.success(request, f"Somebody is told if none succeeds until {limit:%Y-%m-%d %H:%M} UTC." if limit
                         else "Nobody is told.")  # fmt: skip
        return leave_dialog(request, reverse("admin:policies_plan_change", args=[object_id]))
