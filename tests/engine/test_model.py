"""The protocol of sessions and prunes, checked in every order of its steps, crashes included.

Each step that is left out leads to a point that lacks a pack, or to a success that is not there: no step is idle.
"""

import pytest

from tests.support.model import OLD, Checked, condemner, expirer, explore, resolver, sweeper, writer

pytestmark = pytest.mark.slow

WHOLE: frozenset[str] = frozenset()
STEPS = {
    "open": "a session is announced before it relies on anything",
    "forbidden": "it reads what is condemned or deleted",
    "check": "it looks for a fence between root and commit",
    "wait first": "packs are condemned before the sessions are listed",
    "barrier": "a prune waits for the sessions that were open",
    "fence": "those that are dead are fenced, not just passed over",
    "second look": "the roots are read again after the barrier",
    "claim": "one process alone decides what a run deletes",
    "tombstones": "what is deleted stays forbidden",
    "commit condemned": "a dead writer's point is not committed while a pack of it is condemned",
    "resolve running": "a running session's root is nobody else's",
}


def run(broken: frozenset[str], *, states_max: int = 1_000_000) -> Checked:
    processes = [
        writer("a", broken), condemner("1", broken), sweeper("1", "i", broken), sweeper("1", "j", broken),
        expirer(OLD), resolver(broken),
    ]  # fmt: skip
    return explore(processes, states_max=states_max)


@pytest.mark.invariant(1, 2, 4, 5, 6, 7)
def test_no_order_of_a_backup_a_prune_by_two_processes_expiry_and_the_resolver_loses_anything():
    checked = run(WHOLE)
    assert checked.violation == ""
    assert checked.states > 50_000


@pytest.mark.invariant(1, 6)
def test_no_order_of_two_backups_a_prune_and_expiry_loses_anything():
    processes = [writer("a", WHOLE), writer("b", WHOLE), condemner("1", WHOLE), sweeper("1", "i", WHOLE), expirer(OLD)]
    checked = explore(processes, states_max=150_000)
    assert checked.violation == ""
    assert checked.states > 50_000


@pytest.mark.invariant(1, 4)
@pytest.mark.parametrize("step", STEPS)
def test_every_step_of_the_protocol_is_needed(step: str):
    assert run(frozenset({step})).violation != "", f"nothing is lost without this: {STEPS[step]}"
