"""Console pages of editions: the scheduled backup of a source, the conversion of a trial, hosts."""

from typing import Any, ClassVar

from django.contrib import messages
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import path, reverse
from django.utils import timezone
from django.utils.html import format_html

from accounts.console import ServiceAdmin, action, actor_of, leave_dialog
from accounts.models import Account
from accounts.permissions import MANAGE, OWN, PAUSE_PLANS
from jobs import hosts, presence
from policies import editions, essential, trials
from policies.models import Edition, Plan, Source, SourceKind

LINK = '<a class="font-medium text-primary-600 dark:text-primary-500" href="{}">{}</a>'
HOSTS_SHOWN = 500
NEEDED = {"enable": MANAGE, "pause": PAUSE_PLANS, "resume": PAUSE_PLANS, "cancel": OWN}


class PlanningButtons(ServiceAdmin):
    """The scheduled backup of a source (A17), and the page of all hosts (C13, C18)."""

    planning: ClassVar[list[Any]] = ["scheduled_backup"]

    def get_urls(self) -> list[Any]:
        found: list[Any] = super().get_urls()
        return [path("hosts/", self.admin_site.admin_view(self.hosts), name="policies_source_hosts"), *found]

    @action(description="Scheduled backup", icon="event_repeat", permissions=["view"])
    def scheduled_backup(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Show a source's plans and how the editions differ; make the trial of a bucket when it is asked for."""
        source = Source.objects.select_related("account", "region").get(pk=object_id)
        now, made = timezone.now(), None
        if request.method == "POST":
            if not self.has_change_permission(request):
                raise PermissionDenied
            made = self.tell_refusals(request, lambda: trials.create(source, actor=actor_of(request), now=now))
        plans = list(source.plans.select_related("policy", "vault", "source"))
        rows = [
            [
                format_html(LINK, reverse("admin:policies_plan_change", args=[plan.pk]), plan.get_edition_display()),
                "–" if plan.policy.inline else str(plan.policy),
                str(plan.vault),
                plan.get_state_display(),
                f"{plan.next_run_at:%Y-%m-%d %H:%M}" if plan.next_run_at else "–",
            ]
            for plan in plans
        ]
        context = self.admin_site.each_context(request) | {
            "title": f"Scheduled backup of {source}",
            "source": source,
            "table": {"headers": ["Plan", "Policy", "Vault", "State", "Next run"], "rows": rows},
            "told": [text for plan in plans if (text := editions.trial_told(plan.vault, now=now))],
            "comparison": {
                "headers": ["", "Trial", "Full plan"],
                "rows": [list(line) for line in editions.COMPARISON],
            },
            "is_bucket": source.kind == SourceKind.BUCKET,
            "may_try": source.kind == SourceKind.BUCKET and not any(plan.vault.trial_started_at for plan in plans),
            "recovery_key": made.recovery_key if made else "",
            "opts": self.opts,
        }
        return TemplateResponse(request, "admin/source_plans.html", context, headers={"Cache-Control": "no-store"})

    def hosts(self, request: HttpRequest) -> HttpResponse:
        """Show the hosts, how each stands, and what can be done: enable, pause, resume, cancel."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        now, recovery_key = timezone.now(), ""
        if request.method == "POST":
            if not self.has_change_permission(request):
                raise PermissionDenied
            made = self.tell_refusals(request, lambda: self._do(request))
            recovery_key = getattr(made, "recovery_key", "")
            if not recovery_key:
                return HttpResponseRedirect(request.get_full_path())
        accounts = Account.objects.visible_to(request.user)
        rows = hosts.listed(accounts).order_by("host", "account")
        found = hosts.filled(list(rows[:HOSTS_SHOWN]), now=now)
        known = {host.name for host in found}
        context = self.admin_site.each_context(request) | {
            "title": "Hosts",
            "hosts": [(host, hosts.HostStatus(host.status).label, hosts.warnings(host, now=now)) for host in found],
            "free": sorted(presence.hosts(now=now) - known),
            "accounts": accounts,
            "excluded": editions.LINUX_EXCLUDED,
            "notes": editions.EXCLUDED_NOTES.values(),
            "recovery_key": recovery_key,
            "opts": self.opts,
        }
        return TemplateResponse(request, "admin/hosts.html", context, headers={"Cache-Control": "no-store"})

    def _do(self, request: HttpRequest) -> Any:
        """Do what a button of the page of hosts asks for."""
        actor, now = actor_of(request), timezone.now()
        account = Account.objects.visible_to(request.user).get(pk=request.POST["account"])
        if not request.user.has_perm(NEEDED[request.POST["do"]], account):
            raise PermissionDenied
        name = request.POST["host"].strip()
        host = hosts.get(account, name, now=now)
        match request.POST["do"]:
            case "enable":
                made = hosts.enable(host, actor=actor, now=now)
                messages.success(request, f"{name} is protected: {len(made.plans)} volumes, from the next run on.")
                return made
            case "pause":
                essential.pause(account, name, actor=actor, now=now)
                messages.success(request, f"{name} is paused.")
                for warning in hosts.warnings(hosts.get(account, name, now=now), now=now):
                    messages.warning(request, warning)
            case "resume":
                essential.resume(account, name, actor=actor, now=now)
                messages.success(request, f"{name} runs again.")
            case "cancel":
                gone = hosts.cancel(host, confirmation=request.POST["confirmation"], actor=actor, now=now)
                ends = f"; locks keep {gone.locked} until {gone.ends_at:%Y-%m-%d %H:%M} UTC" if gone.ends_at else ""
                messages.success(request, f"{gone.points} recovery points of {name} are being deleted{ends}.")
        return None


class ConversionButton(ServiceAdmin):
    """The end of a trial, on the page of its plan (A19)."""

    @action(
        description="Convert to a full plan",
        icon="upgrade",
        permissions=["change"],
        dialog={
            "title": "Convert this trial to a full plan",
            "description": "A full plan costs by use from now on, never becomes a trial again, and keeps its vault for "
            "ever. To store in a shared vault, make a full plan instead.",
            "form_class": None,
            "form_submit_text": "Confirm",
        },
    )
    def convert(self, request: HttpRequest, form: Any, object_id: str) -> HttpResponse:
        plan = Plan.objects.select_related("account", "source", "policy", "vault").get(pk=object_id)
        call = lambda: trials.convert(  # noqa: E731
            plan, policy=None, confirmed=True, actor=actor_of(request), now=timezone.now()
        )
        if self.tell_refusals(request, call):
            messages.success(request, "It is a full plan now.")
        return leave_dialog(request, reverse("admin:policies_plan_change", args=[object_id]))

    def get_actions_detail(self, request: HttpRequest, object_id: Any = None) -> list[Any]:
        """Offer the conversion of trials alone."""
        found: list[Any] = super().get_actions_detail(request, object_id)
        if Plan.objects.filter(pk=object_id, edition=Edition.TRIAL).exists():
            return found
        return [one for one in found if "convert" not in one.action_name]
