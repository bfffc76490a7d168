"""What the console says and asks before it pauses a plan."""

from typing import Any

from django.http import HttpRequest
from django.utils import timezone
from unfold.forms import BaseDialogForm

from policies import retention
from policies.models import Plan


class PauseForm(BaseDialogForm):
    """Tells when the last point goes, where nothing keeps it (C17)."""

    form_before_template = "admin/warnings.html"

    def get_before_template_context(self, request: HttpRequest, object_id: int | str | None = None) -> dict[str, Any]:
        plan = Plan.objects.select_related("source", "vault").get(pk=str(object_id))
        return {"lines": retention.warnings_on_pause(plan, now=timezone.now())}
