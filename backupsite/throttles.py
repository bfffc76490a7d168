"""Limits of requests per person and per address, which never make the API depend on their counters' store."""

from typing import Any

import structlog
from redis.exceptions import RedisError
from rest_framework.request import Request
from rest_framework.throttling import AnonRateThrottle, SimpleRateThrottle, UserRateThrottle

log = structlog.get_logger(__name__)


class Lenient(SimpleRateThrottle):
    """Allow the request when its count cannot be kept: a backup is more important than a limit."""

    def allow_request(self, request: Request, view: Any) -> bool:
        try:
            return super().allow_request(request, view)
        except RedisError as error:
            log.warning("throttle.uncounted", error=str(error))
            return True


class AddressThrottle(Lenient, AnonRateThrottle):
    """Counts requests of people who are not logged in, by address."""


class PersonThrottle(Lenient, UserRateThrottle):
    """Counts requests of people who are, by person."""
