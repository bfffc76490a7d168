"""The ground of commands that use services: a refusal is told, and goes into the audit trail."""

import getpass
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone

from accounts.refusals import Refused
from accounts.services import SERVICE, record_refusal


class ServiceCommand(BaseCommand):
    """Ends with the refusal's text; the trail names the command and the person logged in to the machine."""

    def execute(self, *args: Any, **options: Any) -> str | None:
        try:
            return super().execute(*args, **options)
        except Refused as refusal:
            name = type(self).__module__.rpartition(".")[2]
            reason = f"{refusal} ({_login()} on this machine)"
            record_refusal(SERVICE, f"command.{name}", None, now=timezone.now(), code=refusal.code, reason=reason)
            raise CommandError(str(refusal)) from refusal


def _login() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "somebody"  # no entry in the machine's list of users, as in many containers
