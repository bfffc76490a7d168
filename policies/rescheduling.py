"""Plans follow a policy that changed: at once where they are few, by a sweep where they are thousands.

Every plan is marked in the transaction of the change, and runs nothing while it is. Its next moment counts from the
change, whenever it is worked out; so a crash or a late sweep loses no run, and two sweeps at once do no harm.
"""

import datetime as dt

from django.db import transaction

from policies import moments
from policies.models import Plan, PlanState, Policy

BATCH = 500
AT_ONCE_MAX = 1000


def begin(policy: Policy, *, now: dt.datetime) -> None:
    """Mark the policy's plans, and go on with the first of them. The caller holds the transaction."""
    policy.plans.filter(rules_changed_at=None).update(rules_changed_at=now)
    for _ in range(AT_ONCE_MAX // BATCH):
        if go_on(policy=policy) < BATCH:
            return


@transaction.atomic
def go_on(*, policy: Policy | None = None) -> int:
    """Give a batch of marked plans their next moments; return how many. The number of queries doesn't grow with it."""
    marked = Plan.objects.filter(rules_changed_at__isnull=False).order_by("rules_changed_at", "pk")
    if policy is not None:
        marked = marked.filter(policy=policy)
    free = marked.select_for_update(skip_locked=True, no_key=True, of=("self",))
    plans = list(free.select_related("policy", "next_rule").prefetch_related("policy__rules")[:BATCH])
    for plan in plans:
        assert plan.rules_changed_at is not None
        plan.next_drill_at = moments.next_drill_at(plan, plan.policy, after=plan.rules_changed_at)
        if plan.state == PlanState.ACTIVE:
            moments.follow(plan, changed_at=plan.rules_changed_at)
        plan.rules_changed_at = None
    Plan.objects.bulk_update(plans, ["next_run_at", "next_rule", "next_drill_at", "rules_changed_at"])
    return len(plans)
