"""The console's ground: a window on the services. What the services don't offer can't be done here either."""

from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

import structlog
from django import forms
from django.contrib import messages
from django.core.exceptions import ValidationError
from django.db import DatabaseError
from django.db.models import Model
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.utils import timezone
from django.utils.html import format_html_join
from unfold.admin import ModelAdmin, TabularInline
from unfold.decorators import action as unfold_action
from unfold.decorators import display as unfold_display
from unfold.forms import BaseDialogForm
from unfold.widgets import UnfoldAdminTextInputWidget

from accounts import services
from accounts.models import User
from accounts.refusals import Refused
from engine.errors import EngineError

log = structlog.get_logger(__name__)

F = TypeVar("F", bound=Callable[..., Any])
UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def display(**options: Any) -> Callable[[F], F]:
    """Describe a shown column or field; unfold's decorator, with its type kept."""
    decorator: Callable[[F], F] = unfold_display(**options)
    return decorator


def action(**options: Any) -> Callable[[F], F]:
    """Make a button of a page; unfold's decorator, with its type kept."""
    decorator: Callable[[F], F] = unfold_action(**options)
    return decorator


def actor_of(request: HttpRequest) -> services.Actor:
    """Return who uses the console, and from where."""
    assert isinstance(request.user, User)
    return services.Actor(user=request.user, address=services.address_of(request.META))


def note_refusal(request: HttpRequest, thing: Model | None, *, code: str, reason: str) -> None:
    """Put into the audit trail what the console refused; the page's address tells what was asked.

    A database that is away must not hide the refusal from the person: it is logged instead.
    """
    place = request.resolver_match
    page = (place.url_name if place else "") or request.path
    model, _, verb = page.partition("_")[2].partition("_")
    asked = f"{model}.{verb}" if verb else page
    try:
        services.record_refusal(
            actor_of(request), f"console.{asked}", thing, now=timezone.now(), code=code, reason=reason
        )
    except DatabaseError:
        log.exception("audit.refusal_not_recorded", page=page, code=code)


def leave_dialog(request: HttpRequest, url: str) -> HttpResponse:
    """Go to `url` after a button's dialog: dialogs post in the background, where a plain redirect would go unseen."""
    if request.headers.get("HX-Request"):
        return HttpResponse(headers={"HX-Redirect": url})
    return HttpResponseRedirect(url)


def human_bytes(count: float) -> str:
    """Return a size as people read it, with binary units."""
    for unit in UNITS:
        if count < 1024 or unit == UNITS[-1]:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError


def lines(texts: list[str]) -> str:
    """Return texts one below the other, escaped."""
    return format_html_join("", "<div>{}</div>", ((text,) for text in texts)) or "–"


class ConfirmedForm(BaseDialogForm):
    """Says what can't be undone, and asks for a name to be typed: that of the `named` thing."""

    form_before_template = "admin/irreversible.html"
    named: ClassVar[str]
    confirmation = forms.CharField(max_length=64, widget=UnfoldAdminTextInputWidget)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["confirmation"].label = f"Type the {self.named}'s name to confirm"

    def get_before_template_context(self, request: HttpRequest, object_id: int | str | None = None) -> dict[str, Any]:
        return {"lines": self.told()}

    def told(self) -> list[str]:
        """Return what a person has to know before."""
        raise NotImplementedError


class ServiceAdmin(ModelAdmin):
    """Rows are stored and removed by services; a refusal becomes a message, never an error page."""

    list_filter_submit = False
    compressed_fields = True
    warn_unsaved_form = True
    list_fullwidth = True
    actions: ClassVar[list[str]] = []

    def get_actions(self, request: HttpRequest) -> dict[str, Any]:
        """Offer no bulk deletion: it would go around the services."""
        found: dict[str, Any] = super().get_actions(request)
        found.pop("delete_selected", None)
        return found

    def changeform_view(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        answer = self.tell_refusals(
            request, lambda: super(ServiceAdmin, self).changeform_view(request, *args, **kwargs)
        )
        return answer or HttpResponseRedirect(request.get_full_path())

    def delete_view(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        answer = self.tell_refusals(request, lambda: super(ServiceAdmin, self).delete_view(request, *args, **kwargs))
        return answer or HttpResponseRedirect(request.get_full_path())

    def tell_refusals(self, request: HttpRequest, call: Any) -> Any:
        """Return what `call` returns; None after showing why it was refused."""
        try:
            return call()
        except ValidationError as error:
            for text in error.messages:
                messages.error(request, text)
        except (Refused, EngineError) as error:
            messages.error(request, str(error))
            if isinstance(error, Refused):
                note_refusal(request, self._asked(request), code=error.code, reason=str(error))
        return None

    def _asked(self, request: HttpRequest) -> Model | None:
        """Return the row that the page is about."""
        key = request.resolver_match.kwargs.get("object_id") if request.resolver_match else None
        return self.get_object(request, key) if key else None


class ReadOnlyAdmin(ServiceAdmin):
    """Rows that services alone make and change."""

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False


class ReadOnlyInline(TabularInline):
    """Related rows, shown only."""

    extra = 0
    can_delete = False
    tab = True

    def has_add_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False
