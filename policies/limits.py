"""How fast a plan's backups may run (C10, C15)."""

import msgspec

from policies import editions, moments
from policies.models import Plan
from vaults.limits import Limits, load


def of(plan: Plan) -> Limits:
    """Return the limits of a backup of the plan that begins now: its edition's, where it has some, or its policy's."""
    bytes_per_s, parallel_max = editions.limits_of(plan)
    if bytes_per_s:
        return Limits(bytes_per_s=bytes_per_s, parallel_max=parallel_max, zone=moments.zone_of(plan))
    return msgspec.structs.replace(load(plan.policy.limits), zone=moments.zone_of(plan))
