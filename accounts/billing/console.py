"""Console pages of usage, prices and allowances."""

import json
from collections.abc import Iterable
from decimal import Decimal
from typing import Any, ClassVar

from django import forms
from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied, ValidationError
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect, QueryDict
from django.shortcuts import get_object_or_404
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils import timezone
from unfold.forms import BaseDialogForm
from unfold.widgets import UnfoldAdminDateWidget, UnfoldAdminDecimalFieldWidget

from accounts import chargeback, pricebook
from accounts.chargeback import Month
from accounts.console import ReadOnlyAdmin, ServiceAdmin, action, actor_of, display, human_bytes, leave_dialog
from accounts.metering import FLOWS, AllowanceKind, Meter, MeteringMode
from accounts.models import Account, Allowance, Price, Usage
from accounts.permissions import accounts_where
from accounts.pricing import GIB, TOTAL_DECIMALS, UNITS, rounded
from accounts.states import Privilege

ROWS_SHOWN = 50
MONTHS_SHOWN = 13
COLORS = {
    "vault_bytes": ("Vaults", "oklch(52% .135 241.966)"),
    "replica_bytes": ("Replicas", "oklch(74.6% .16 232.661)"),
}
CHART = {
    "maintainAspectRatio": False,
    "scales": {"x": {"stacked": True}, "y": {"stacked": True, "title": {"display": True, "text": "GiB"}}},
}
Row = dict[str, Any]


def _money(amounts: Iterable[Row]) -> str:
    """Return amounts as people read them; the API and the CSV have all decimals."""
    return ", ".join(f"{rounded(one['amount'], TOTAL_DECIMALS):,} {one['currency']}" for one in amounts) or "–"


def _sums(lines: Iterable[Row]) -> list[Row]:
    """Return what amounts add up to, by currency."""
    found: dict[str, Decimal] = {}
    for line in lines:
        for one in line["amounts"]:
            found[one["currency"]] = found.get(one["currency"], Decimal(0)) + one["amount"]
    return [{"currency": currency, "amount": amount} for currency, amount in sorted(found.items())]


def _quantity(meter: str, count: int) -> str:
    """Return a quantity of a meter as people read it: bytes over days as GiB-days."""
    if not count:
        return "–"
    if UNITS[meter][1] != GIB:
        return f"{count:,}"
    return human_bytes(count) if meter in FLOWS else f"{count / GIB:,.1f} GiB-days"


def _months(now: Month) -> list[str]:
    year, month = now.first.year, now.first.month
    several = [(year * 12 + month - 1) - back for back in range(MONTHS_SHOWN)]
    return [f"{one // 12}-{one % 12 + 1:02}" for one in several]


def _meters(found: Row) -> Row:
    """Return a line per meter: what it adds up to, and what of that costs."""
    rows = []
    for meter in Meter:
        lines = [line for line in found["lines"] if line["meter"] == meter]
        if not lines:
            continue
        shown = [_quantity(meter, sum(line[name] for line in lines)) for name in ("quantity", "free", "prepaid")]
        subjects = len({(line["vault"], line["source"], line["host"]) for line in lines})
        rows.append([meter.label, f"{subjects:,}", *shown, UNITS[meter][0], _money(_sums(lines))])
    headers = ["Meter", "Subjects", "Used", "Free", "Prepaid", "Priced by", "Amount"]
    return {"headers": headers, "rows": rows}


def _vaults(found: Row) -> Row:
    kinds = {Meter.VAULT_BYTES: "Vault", Meter.REPLICA_BYTES: "Replica"}
    rows = [
        [
            line["vault_name"],
            f"{kinds[line['meter']]}{' (trial)' if line['trial'] else ''}",
            line["region"],
            human_bytes(line["average"] or 0),
            _money(line["amounts"]),
        ]
        for line in found["lines"]
        if line["meter"] in kinds
    ]
    return {"headers": ["Vault", "Kind", "Region", "Stored on average", "Amount"], "rows": rows[:ROWS_SHOWN]}


def _sources(found: Row) -> Row:
    largest = sorted(found["sources"], key=lambda row: row["unique"] + row["shared"], reverse=True)
    rows = [
        [
            row["source_name"] or row["source"],
            row["vault_name"],
            human_bytes(row["unique"]),
            human_bytes(row["shared"]),
            _money(row["amounts"]),
        ]
        for row in largest[:ROWS_SHOWN]
    ]
    headers = ["Source", "Vault", "For it alone", "Fair part of what is shared", "Its part of the vault's costs"]
    return {"headers": headers, "rows": rows}


def _clients(found: Row) -> Row:
    by_host: dict[str, list[Row]] = {}
    for line in found["lines"]:
        if line["host"]:
            by_host.setdefault(line["host"], []).append(line)

    def of(lines: list[Row], meter: Meter, name: str) -> int:
        return sum(line[name] or 0 for line in lines if line["meter"] == meter)

    rows = [
        [
            host,
            str(of(lines, Meter.CLIENTS, "days")),
            human_bytes(of(lines, Meter.PROTECTED_BYTES, "average")),
            human_bytes(of(lines, Meter.ATTACHED_BYTES, "average")),
            human_bytes(of(lines, Meter.RESTORE_BYTES, "quantity")),
            _money(_sums(lines)),
        ]
        for host, lines in sorted(by_host.items())[:ROWS_SHOWN]
    ]
    headers = ["Client", "Days active", "Protected on average", "Attached on average", "Restored", "Amount"]
    return {"headers": headers, "rows": rows}


def _chart(found: Row) -> str:
    return json.dumps(
        {
            "labels": [f"{day['day']:%d}" for day in found["days"]],
            "datasets": [
                {
                    "label": label,
                    "data": [round(day[name] / GIB, 3) for day in found["days"]],
                    "backgroundColor": color,
                }
                for name, (label, color) in COLORS.items()
            ],
        }
    )


def _cards(found: Row) -> list[Row]:
    last = found["days"][-1] if found["days"] else {}
    metered = f"{found['days_metered']} days metered"
    guessed = f", {found['days_estimated']} partly estimated" if found["days_estimated"] else ""
    hosts = len({line["host"] for line in found["lines"] if line["meter"] == Meter.CLIENTS})
    stored = last.get("vault_bytes", 0) + last.get("replica_bytes", 0)
    protected = human_bytes(last.get("protected_bytes", 0))
    return [
        {
            "title": "Charged",
            "value": _money(found["totals"]),
            "note": "The month is over" if found["closed"] else "So far; the month goes on",
        },
        {"title": "Stored", "value": human_bytes(stored), "note": f"on the last metered day, for {protected}"},
        {"title": "Clients", "value": f"{hosts:,}", "note": "active on at least one day"},
        {"title": "Days", "value": str(found["days_metered"]), "note": f"{metered}{guessed}"},
    ]


class AllowanceForm(forms.ModelForm[Allowance]):
    """An allowance in GiB."""

    gib = forms.DecimalField(
        label="GiB each day", min_value=0, max_digits=12, decimal_places=3, widget=UnfoldAdminDecimalFieldWidget
    )

    class Meta:
        model = Allowance
        fields = ["kind", "account", "meter", "starts_on", "ends_on", "note"]
        help_texts: ClassVar = {
            "account": "Empty for a free allowance of every account",
            "meter": "What is prepaid; a free allowance is for what is priced of the capacity",
        }


@admin.register(Usage)
class UsageAdmin(ReadOnlyAdmin):
    """The monthly report. Single rows of usage are the API's."""

    def has_view_permission(self, request: HttpRequest, obj: Usage | None = None) -> bool:
        allowed: bool = super().has_view_permission(request, obj)
        return allowed and obj is None

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        if not self.has_view_permission(request):
            raise PermissionDenied
        now = timezone.now()
        assert request.user.is_authenticated
        if request.method == "POST":
            return self._set_mode(request)
        accounts = list(accounts_where(request.user, Privilege.SEE_USAGE))
        asked = request.GET.get("account", "")
        account = next((one for one in accounts if str(one.pk) == asked), accounts[0] if accounts else None)
        month = Month.of(now.date())
        try:
            month = Month.parse(request.GET["month"]) if "month" in request.GET else month
        except ValidationError as error:
            messages.error(request, error.messages[0])
        context = self.admin_site.each_context(request) | {
            "title": "Usage",
            "opts": self.opts,
            "accounts": accounts,
            "account": account,
            "months": _months(Month.of(now.date())),
            "month": str(month),
        }
        if account is not None:
            context |= self._shown(account, month)
        return TemplateResponse(request, "admin/usage.html", context)

    def _set_mode(self, request: HttpRequest) -> HttpResponse:
        """Say what of an account's capacity is priced from the next metered day on (C45); for who may change it."""
        if not request.user.has_perm("accounts.change_account"):
            raise PermissionDenied
        account = get_object_or_404(Account, pk=request.POST.get("account"))
        mode = request.POST.get("mode", "")
        changed = self.tell_refusals(
            request, lambda: pricebook.set_metering(account, mode, actor=actor_of(request), now=timezone.now())
        )
        if changed:
            messages.success(request, "From the next metered day on that is what costs.")
        return HttpResponseRedirect(f"{reverse('admin:accounts_usage_changelist')}?account={account.pk}")

    def _shown(self, account: Account, month: Month) -> dict[str, Any]:
        found = chargeback.report(account, month, now=timezone.now())
        query = QueryDict(mutable=True)
        query.update({"account": str(account.pk), "month": str(month)})
        address = f"{reverse('usage-report')}?{query.urlencode()}"
        tables = [
            ("Vaults", _vaults(found)),
            ("Sources", _sources(found)),
            ("Clients", _clients(found)),
        ]
        return {
            "cards": _cards(found),
            "chart": _chart(found) if found["days"] else "",
            "chart_options": json.dumps(CHART),
            "meters": _meters(found),
            "tables": [{"title": title, "table": table} for title, table in tables if table["rows"]],
            "rows_shown": ROWS_SHOWN,
            "modes": MeteringMode.choices,
            "csv": f"{address}&as=csv",
            "json": address,
        }


@admin.register(Price)
class PriceAdmin(ServiceAdmin):
    list_display = ["meter_shown", "variant", "shown", "unit", "of", "valid_from"]
    list_filter: ClassVar = ["meter", "account"]
    list_select_related = ["account"]
    fields = ["account", "meter", "variant", "price", "currency", "valid_from"]

    def has_change_permission(self, request: HttpRequest, obj: Price | None = None) -> bool:
        return False

    def save_model(self, request: HttpRequest, obj: Price, form: Any, change: bool) -> None:
        pricebook.set_price(obj, actor=actor_of(request), now=timezone.now())

    def delete_model(self, request: HttpRequest, obj: Price) -> None:
        pricebook.withdraw_price(obj, actor=actor_of(request), now=timezone.now())

    @display(description="Meter", ordering="meter")
    def meter_shown(self, price: Price) -> str:
        return price.get_meter_display()

    @display(description="Price", ordering="price")
    def shown(self, price: Price) -> str:
        return f"{price.price.normalize():f} {price.currency}"

    @display(description="For")
    def unit(self, price: Price) -> str:
        return UNITS[price.meter][0]

    @display(description="Account")
    def of(self, price: Price) -> str:
        return str(price.account or "all without their own")


class EndForm(BaseDialogForm):
    ends_on = forms.DateField(label="The last day on which it holds", widget=UnfoldAdminDateWidget)


@admin.register(Allowance)
class AllowanceAdmin(ServiceAdmin):
    list_display = ["kind", "of", "covers", "size", "starts_on", "ends_on", "note"]
    list_filter: ClassVar = ["kind", "account"]
    list_select_related = ["account"]
    form = AllowanceForm
    fields = ["kind", "account", "meter", "gib", "starts_on", "ends_on", "note"]
    actions_detail: ClassVar = ["end"]

    def get_fields(self, request: HttpRequest, obj: Allowance | None = None) -> list[str]:
        return ["kind", "of", "covers", "size", "starts_on", "ends_on", "note"] if obj else list(self.fields)

    def get_readonly_fields(self, request: HttpRequest, obj: Allowance | None = None) -> list[str]:
        return ["of", "covers", "size"] if obj else []

    def has_change_permission(self, request: HttpRequest, obj: Allowance | None = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Allowance | None = None) -> bool:
        return False

    def has_end_permission(self, request: HttpRequest, object_id: str | None = None) -> bool:
        return bool(self.has_add_permission(request))

    def save_model(self, request: HttpRequest, obj: Allowance, form: Any, change: bool) -> None:
        obj.bytes = int(form.cleaned_data["gib"] * GIB)
        pricebook.add_allowance(obj, actor=actor_of(request), now=timezone.now())

    @display(description="Account")
    def of(self, allowance: Allowance) -> str:
        return str(allowance.account or "all")

    @display(description="Covers")
    def covers(self, allowance: Allowance) -> str:
        if allowance.kind == AllowanceKind.FREE:
            return "What is priced, in all regions together"
        return Meter(allowance.meter).label

    @display(description="Each day", ordering="bytes")
    def size(self, allowance: Allowance) -> str:
        return human_bytes(allowance.bytes)

    @action(
        description="End it",
        icon="event_busy",
        permissions=["end"],
        dialog={
            "title": "End this allowance",
            "description": "Months that are over keep it.",
            "form_class": EndForm,
            "form_submit_text": "End it",
        },
    )
    def end(self, request: HttpRequest, form: EndForm, object_id: str) -> HttpResponse:
        allowance = Allowance.objects.get(pk=object_id)
        last = form.cleaned_data["ends_on"]
        ended = self.tell_refusals(
            request,
            lambda: pricebook.end_allowance(allowance, on=last, actor=actor_of(request), now=timezone.now()),
        )
        if ended:
            messages.success(request, f"It holds for the last time on {last:%Y-%m-%d}.")
        return leave_dialog(request, reverse("admin:accounts_allowance_changelist"))
