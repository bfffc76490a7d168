"""docs/rules.md lists every test that proves a rule, and is current."""

import pytest

from tests.support.markers import BadMarker
from tests.support.rules_page import MARKER, PAGE, page


def test_the_page_is_current():
    is_current = PAGE.read_text() == page(MARKER.collect())
    assert is_current, "docs/rules.md is out of date: run `make rules`"


def test_markers_count_on_functions_classes_parameters_and_whole_files():
    text = """
pytestmark = [pytest.mark.slow, pytest.mark.rule("A1")]

@pytest.mark.rule("C27", "C28")
def test_one(): ...

@pytest.mark.rule("E2")
class TestTwo:
    @pytest.mark.parametrize("x", [pytest.param(1, marks=pytest.mark.rule("B10"))])
    def test_three(self, x): ...

    def not_a_test(self): ...
"""
    assert sorted(MARKER.proofs("t.py", text)) == [
        ("A1", "t.py::TestTwo::test_three"),
        ("A1", "t.py::test_one"),
        ("B10", "t.py::TestTwo::test_three"),
        ("C27", "t.py::test_one"),
        ("C28", "t.py::test_one"),
        ("E2", "t.py::TestTwo::test_three"),
    ]


@pytest.mark.parametrize("arguments", ["'c27'", "'F1'", "'C027'", "RULE", ""])
def test_a_marker_that_names_no_rule_is_refused(arguments: str):
    with pytest.raises(BadMarker, match=r"t\.py:1: a rule marker takes ids"):
        list(MARKER.proofs("t.py", f"@pytest.mark.rule({arguments})\ndef test_x(): ..."))


def test_rules_are_listed_by_chapter_and_number():
    text = page({"C10": {"t.py::b"}, "C9": {"t.py::b", "t.py::a"}, "A1": {"t.py::a"}})
    assert [line for line in text.splitlines() if line.startswith(("##", "| A", "| C"))] == [
        "## A. Scheduled backup of buckets",
        "| A1 | `t.py::a` |",
        "## C. Files and disks of cloud hosts",
        "| C9 | `t.py::a`<br>`t.py::b` |",
        "| C10 | `t.py::b` |",
    ]
