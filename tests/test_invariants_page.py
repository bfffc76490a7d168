"""docs/invariants.md lists every test that proves a promise of the engine, and is current."""

import pytest

from tests.support.invariants_page import MARKER, PAGE, PROMISES, page, unproven
from tests.support.markers import BadMarker


def test_the_page_is_current():
    is_current = PAGE.read_text() == page(MARKER.collect())
    assert is_current, "docs/invariants.md is out of date: run `make invariants`"


def test_every_promise_has_a_proof():
    assert unproven(MARKER.collect()) == []
    assert list(PROMISES) == list(range(1, 31))


def test_a_promise_without_a_proof_is_found():
    found = {"1": {"t.py::b", "t.py::a"}}
    assert f"| 1 | {PROMISES[1]} | `t.py::a`<br>`t.py::b` |" in page(found).splitlines()
    assert unproven(found) == list(range(2, 31))


@pytest.mark.parametrize("arguments", ["'4'", "0", "31", "True", "FOUR", ""])
def test_a_marker_that_names_no_promise_is_refused(arguments: str):
    with pytest.raises(BadMarker, match=r"t\.py:1: an invariant marker takes numbers from 1 to 30"):
        list(MARKER.proofs("t.py", f"@pytest.mark.invariant({arguments})\ndef test_x(): ..."))
