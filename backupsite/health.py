"""Health for load balancers and supervisors. Says nothing that an outsider should not know."""

from django.db import DatabaseError, connection
from django.http import HttpRequest, JsonResponse
from kombu import Connection
from kombu.exceptions import OperationalError

from backupsite.celery import app

BROKER_TIMEOUT_S = 2


def live(request: HttpRequest) -> JsonResponse:
    """Say that the process answers."""
    return JsonResponse({"status": "ok"})


def ready(request: HttpRequest) -> JsonResponse:
    """Say whether the parts that a request needs are there: 503 without the database.

    A missing broker delays jobs and loses none, so it is reported and makes nothing unready.
    """
    database, broker = _database(), _broker()
    status = "ok" if database and broker else "degraded" if database else "down"
    return JsonResponse({"status": status, "database": database, "broker": broker}, status=200 if database else 503)


def _database() -> bool:
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
    except DatabaseError:
        return False
    return True


def _broker() -> bool:
    link: Connection = app.connection_for_read()
    try:
        link.ensure_connection(max_retries=1, timeout=BROKER_TIMEOUT_S)
    except (OperationalError, OSError):
        return False
    finally:
        link.release()
    return True
