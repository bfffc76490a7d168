"""Console pages of people, accounts and the audit trail."""

from typing import Any, ClassVar

from django.contrib import admin, messages
from django.contrib.auth.admin import UserAdmin as DjangoUserAdmin
from django.contrib.auth.models import Group
from django.db import connection
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect, StreamingHttpResponse
from django.http.response import HttpResponseBase
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils import timezone
from unfold.admin import TabularInline
from unfold.forms import AdminPasswordChangeForm, UserChangeForm, UserCreationForm

from accounts import chain, exports, guards, services, tokens
from accounts.console import ReadOnlyAdmin, ServiceAdmin, action, actor_of, display, lines
from accounts.forms import CustomRoleForm, MemberForm, TokenForm, role_choices
from accounts.models import Account, ApiToken, CustomRole, Event, Member, User

admin.site.unregister(Group)


@admin.register(User)
class UserAdmin(DjangoUserAdmin, ServiceAdmin):  # type: ignore[misc,type-arg]  # both say which actions there are
    form = UserChangeForm
    add_form = UserCreationForm
    change_password_form = AdminPasswordChangeForm
    list_display = ["username", "email", "is_active", "is_staff", "is_superuser", "last_login"]
    fieldsets = [
        (None, {"fields": ["username", "password"]}),
        ("Person", {"fields": ["first_name", "last_name", "email"]}),
        ("Access", {"fields": ["is_active", "is_staff", "is_superuser", "last_login", "date_joined"]}),
    ]
    readonly_fields = ["last_login", "date_joined"]
    filter_horizontal = []

    def log_addition(self, request: HttpRequest, obj: User, message: Any) -> Any:
        services.record(actor_of(request), "user.create", obj, account=None, now=timezone.now())
        return super().log_addition(request, obj, message)

    def log_change(self, request: HttpRequest, obj: User, message: Any) -> Any:
        """Say which fields changed, of a password only that it did; Django calls this for either page."""
        changed = message if isinstance(message, list) else [{"changed": {"fields": ["Password"]}}]
        fields = [name for part in changed for name in part.get("changed", {}).get("fields", [])]
        services.record(actor_of(request), "user.change", obj, account=None, now=timezone.now(), fields=fields)
        return super().log_change(request, obj, message)

    def log_deletions(self, request: HttpRequest, queryset: Any) -> Any:
        for user in queryset:
            services.record(actor_of(request), "user.delete", user, account=None, now=timezone.now())
        return super().log_deletions(request, queryset)


class MemberInline(TabularInline):
    model = Member
    form = MemberForm
    fields = ["user", "given"]
    autocomplete_fields = ["user"]
    extra = 0

    def get_queryset(self, request: HttpRequest) -> Any:
        return super().get_queryset(request).select_related("user", "custom_role")


@admin.register(CustomRole)
class CustomRoleAdmin(ServiceAdmin):
    form = CustomRoleForm
    list_display = ["name", "account", "may", "held_by"]
    list_filter: ClassVar = ["account"]
    list_select_related = ["account"]
    search_fields = ["name", "account__name"]
    fields = ["account", "name", "privileges", "held_by"]

    def get_queryset(self, request: HttpRequest) -> Any:
        return super().get_queryset(request).prefetch_related("members__user")

    def get_readonly_fields(self, request: HttpRequest, obj: CustomRole | None = None) -> list[str]:
        return ["account", "held_by"] if obj else ["held_by"]

    def get_fields(self, request: HttpRequest, obj: CustomRole | None = None) -> list[str]:
        return [name for name in self.fields if obj or name != "held_by"]

    def save_model(self, request: HttpRequest, obj: CustomRole, form: Any, change: bool) -> None:
        services.save_custom_role(obj, actor=actor_of(request), now=timezone.now())

    def delete_model(self, request: HttpRequest, obj: CustomRole) -> None:
        services.delete_custom_role(obj, actor=actor_of(request), now=timezone.now())

    @display(description="May")
    def may(self, role: CustomRole) -> str:
        return ", ".join(role.privileges)

    @display(description="Members")
    def held_by(self, role: CustomRole) -> str:
        return ", ".join(sorted(member.user.get_username() for member in role.members.all())) or "nobody"


@admin.register(Account)
class AccountAdmin(ServiceAdmin):
    list_display = ["name", "created_at"]
    search_fields = ["name"]
    fields = ["name"]
    inlines = [MemberInline]

    def get_formset_kwargs(self, request: HttpRequest, obj: Account, inline: Any, prefix: str) -> dict[str, Any]:
        kwargs: dict[str, Any] = super().get_formset_kwargs(request, obj, inline, prefix)
        return kwargs | {"form_kwargs": {"choices": role_choices(obj)}}

    def get_inlines(self, request: HttpRequest, obj: Account | None) -> list[Any]:
        return [MemberInline] if obj else []

    def has_delete_permission(self, request: HttpRequest, obj: Account | None = None) -> bool:
        return False

    def save_model(self, request: HttpRequest, obj: Account, form: Any, change: bool) -> None:
        if change:
            services.rename_account(obj, actor=actor_of(request), now=timezone.now())
            return
        assert isinstance(request.user, User)
        made = services.create_account(name=obj.name, owner=request.user, actor=actor_of(request), now=timezone.now())
        obj.pk, obj.created_at = made.pk, made.created_at
        obj._state.adding = False

    def save_formset(self, request: HttpRequest, form: Any, formset: Any, change: bool) -> None:
        actor, now = actor_of(request), timezone.now()
        for member in formset.save(commit=False):
            given = member.custom_role or member.role
            services.set_role(account=member.account, user=member.user, role=given, actor=actor, now=now)
        for member in formset.deleted_objects:
            services.remove_member(member, actor=actor, now=now)


@admin.register(ApiToken)
class ApiTokenAdmin(ServiceAdmin):
    """The tokens of the person at the console; everybody there has some, nobody sees another's."""

    form = TokenForm
    list_display = ["name", "key", "may", "account", "made_at", "ends_at", "used_at"]
    list_select_related = ["token", "account"]
    fields = ["name", "account", "privileges", "days"]

    def get_queryset(self, request: HttpRequest) -> Any:
        return super().get_queryset(request).filter(token__user=request.user.pk)

    def has_module_permission(self, request: HttpRequest) -> bool:
        return True

    def has_view_permission(self, request: HttpRequest, obj: ApiToken | None = None) -> bool:
        return True

    def has_add_permission(self, request: HttpRequest) -> bool:
        return True

    def has_change_permission(self, request: HttpRequest, obj: ApiToken | None = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: ApiToken | None = None) -> bool:
        return True

    def get_fields(self, request: HttpRequest, obj: ApiToken | None = None) -> list[str]:
        return ["name", "key", "may", "account", "made_at", "ends_at", "used_at"] if obj else list(self.fields)

    def get_readonly_fields(self, request: HttpRequest, obj: ApiToken | None = None) -> list[str]:
        return self.get_fields(request, obj) if obj else []

    def formfield_for_foreignkey(self, db_field: Any, request: HttpRequest, **kwargs: Any) -> Any:
        if db_field.name == "account":
            kwargs["queryset"] = Account.objects.visible_to(request.user)
        return super().formfield_for_foreignkey(db_field, request, **kwargs)

    def save_model(self, request: HttpRequest, obj: ApiToken, form: TokenForm, change: bool) -> None:
        made, text = tokens.create(
            obj.name,
            privileges=form.cleaned_data["privileges"],
            account=obj.account,
            life=form.life(),
            actor=actor_of(request),
            now=timezone.now(),
        )
        obj.pk, obj.token = made.pk, made.token
        obj.text = text  # type: ignore[attr-defined]  # for response_add, this once

    def response_add(self, request: HttpRequest, obj: ApiToken, post_url_continue: str | None = None) -> HttpResponse:
        """Show the token's text: in this answer alone, never in a cookie or a session."""
        context = self.admin_site.each_context(request) | {
            "title": "New API token",
            "token": obj,
            "text": getattr(obj, "text", ""),
            "opts": self.opts,
        }
        answer = TemplateResponse(request, "admin/token.html", context)
        answer["Cache-Control"] = "no-store"
        return answer

    def delete_model(self, request: HttpRequest, obj: ApiToken) -> None:
        tokens.revoke(obj.token, actor=actor_of(request), now=timezone.now())

    @display(description="Begins with")
    def key(self, own: ApiToken) -> str:
        return str(own.token.token_key)

    @display(description="May")
    def may(self, own: ApiToken) -> str:
        return "what you may" if own.privileges is None else ", ".join(own.privileges)

    @display(description="Made")
    def made_at(self, own: ApiToken) -> str:
        return f"{own.token.created:%Y-%m-%d %H:%M}"

    @display(description="Ends", ordering="token__expiry")
    def ends_at(self, own: ApiToken) -> str:
        return f"{own.token.expiry:%Y-%m-%d %H:%M}" if own.token.expiry else "never"

    @display(description="Last used", ordering="last_used_at")
    def used_at(self, own: ApiToken) -> str:
        return f"{own.last_used_at:%Y-%m-%d %H:%M}" if own.last_used_at else "never"


@admin.register(Event)
class EventAdmin(ReadOnlyAdmin):
    list_display = ["happened_at", "person", "action", "result", "what", "account", "address", "line"]
    list_filter: ClassVar = ["outcome", "action", "object_type", "account_name"]
    search_fields = ["user_name", "object_name", "object_id", "address", "account_name"]
    list_select_related = ["link"]
    date_hierarchy = "happened_at"
    list_before_template = "admin/audit_chain.html"
    actions_list: ClassVar = ["verify", "export_lines", "export_table"]
    fieldsets = [
        (None, {"fields": ["happened_at", "person", "address", "action", "result"]}),
        ("Object", {"fields": ["object_type", "object_name", "object_id", "account", "detail_shown"]}),
        ("Chain", {"fields": ["line", "digest"]}),
    ]

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        answer: HttpResponse = super().changelist_view(
            request, (extra_context or {}) | {"chain": chain.state(), "guarded": guards.stand(connection)}
        )
        return answer

    @display(description="Who", ordering="user_name")
    def person(self, event: Event) -> str:
        return event.user_name or "somebody unknown"

    @display(description="Result", ordering="outcome", label={"Done": "success", "Refused": "danger"})
    def result(self, event: Event) -> str:
        return event.get_outcome_display()

    @display(description="What")
    def what(self, event: Event) -> str:
        return " ".join(part for part in (event.object_type, event.object_name) if part) or "–"

    @display(description="Account", ordering="account_name")
    def account(self, event: Event) -> str:
        return event.account_name or "–"

    @display(description="Line", ordering="link__sequence")
    def line(self, event: Event) -> str:
        return str(event.link.sequence) if hasattr(event, "link") else "–"

    @display(description="Digest")
    def digest(self, event: Event) -> str:
        return event.link.digest if hasattr(event, "link") else "linked in a moment"

    @display(description="Details")
    def detail_shown(self, event: Event) -> str:
        return lines([f"{name}: {value}" for name, value in event.detail.items()])

    @action(description="Verify the chain", icon="verified", url_path="verify-chain", permissions=["view"])
    def verify(self, request: HttpRequest) -> HttpResponse:
        chain.sweep(now=timezone.now())
        found = chain.verify_chain()
        if found.intact:
            messages.success(request, f"All {found.sequence} lines are what they were when they were written.")
        else:
            messages.error(request, f"The audit trail was tampered with: {found.problem}.")
        return HttpResponseRedirect(reverse("admin:accounts_event_changelist"))

    @action(description="Export JSON lines", icon="download", url_path="export-jsonl", permissions=["view"])
    def export_lines(self, request: HttpRequest) -> HttpResponseBase:
        return self._export("jsonl")

    @action(description="Export table", icon="table", url_path="export-csv", permissions=["view"])
    def export_table(self, request: HttpRequest) -> HttpResponseBase:
        return self._export("csv")

    def _export(self, form: str) -> HttpResponseBase:
        chain.sweep(now=timezone.now())
        parts = exports.stream(Event.objects.all(), form=form)
        answer = StreamingHttpResponse(parts, content_type=exports.TYPES[form])
        answer["Content-Disposition"] = f'attachment; filename="audit-trail.{form}"'
        return answer
