"""Console pages of people, accounts and the audit trail."""

from typing import Any, ClassVar

from django.contrib import admin
from django.contrib.auth.admin import UserAdmin as DjangoUserAdmin
from django.contrib.auth.models import Group
from django.http import HttpRequest
from django.utils import timezone
from unfold.admin import TabularInline
from unfold.forms import AdminPasswordChangeForm, UserChangeForm, UserCreationForm

from accounts import services
from accounts.console import ReadOnlyAdmin, ServiceAdmin, actor_of
from accounts.models import Account, Event, Member, User

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


class MemberInline(TabularInline):
    model = Member
    fields = ["user", "role"]
    autocomplete_fields = ["user"]
    extra = 0


@admin.register(Account)
class AccountAdmin(ServiceAdmin):
    list_display = ["name", "created_at"]
    search_fields = ["name"]
    fields = ["name"]
    inlines = [MemberInline]

    def get_inlines(self, request: HttpRequest, obj: Account | None) -> list[Any]:
        return [MemberInline] if obj else []

    def has_delete_permission(self, request: HttpRequest, obj: Account | None = None) -> bool:
        return False

    def save_model(self, request: HttpRequest, obj: Account, form: Any, change: bool) -> None:
        if change:
            super().save_model(request, obj, form, change)
            return
        assert isinstance(request.user, User)
        made = services.create_account(name=obj.name, owner=request.user, actor=actor_of(request), now=timezone.now())
        obj.pk, obj.created_at = made.pk, made.created_at
        obj._state.adding = False

    def save_formset(self, request: HttpRequest, form: Any, formset: Any, change: bool) -> None:
        actor, now = actor_of(request), timezone.now()
        for member in formset.save(commit=False):
            services.set_role(account=member.account, user=member.user, role=member.role, actor=actor, now=now)
        for member in formset.deleted_objects:
            services.remove_member(member, actor=actor, now=now)


@admin.register(Event)
class EventAdmin(ReadOnlyAdmin):
    list_display = ["happened_at", "user_name", "action", "object_type", "object_name", "account", "address"]
    list_filter: ClassVar = ["action", "account"]
    search_fields = ["user_name", "object_name", "object_id"]
    list_select_related = ["account"]
    date_hierarchy = "happened_at"
