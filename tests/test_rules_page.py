"""docs/rules.md lists every rule with the tests that prove it or the reason why none does, and is current."""

import pytest

from tests.support.markers import BadMarker
from tests.support.rules_page import MARKER, PAGE, Rules, mistakes, page, read, without_proven

CHAPTERS = {"A": 30, "B": 29, "C": 55, "D": 30, "E": 50}
SMALL = Rules(
    chapters={"A": "First", "C": "Third"},
    titles={"A1": "One", "C10": "Ten", "C9": "Nine", "C11": "Eleven"},
    unproven={
        "C9": {"status": "not yet", "reason": "because"},
        "C11": {"status": "documented", "page": "operations.md#what-runs", "reason": "told"},
    },
)
PROVEN = {"A1": {"t.py::b", "t.py::a"}, "C10": {"t.py::b"}}


def test_the_page_is_current():
    is_current = PAGE.read_text() == page(MARKER.collect(), read())
    assert is_current, "docs/rules.md is out of date: run `make rules`"


def test_every_rule_is_there_and_is_proven_or_explained():
    assert list(read().titles) == [f"{letter}{n}" for letter, last in CHAPTERS.items() for n in range(1, last + 1)]
    assert {rule for rule, says in read().titles.items() if not 3 <= len(says.split()) <= 12} == set()
    assert mistakes(MARKER.collect(), read()) == []


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


@pytest.mark.parametrize("arguments", ["'c27'", "'F1'", "'C027'", "'A31'", "RULE", ""])
def test_a_marker_that_names_no_rule_is_refused(arguments: str):
    with pytest.raises(BadMarker, match=r"t\.py:1: a rule marker takes ids"):
        list(MARKER.proofs("t.py", f"@pytest.mark.rule({arguments})\ndef test_x(): ..."))


def test_rules_are_listed_by_chapter_and_number_and_counted():
    assert [line for line in page(PROVEN, SMALL).splitlines() if line.startswith(("##", "| "))] == [
        "| chapter | rules | proven | documented | waits | not yet |",
        "| A. First | 1 | 1 | 0 | 0 | 0 |",
        "| C. Third | 3 | 1 | 1 | 0 | 1 |",
        "| all | 4 | 2 | 1 | 0 | 1 |",
        "## A. First",
        "| rule | what it says | status | proven by |",
        "| A1 | One | proven | `t.py::a`<br>`t.py::b` |",
        "## C. Third",
        "| rule | what it says | status | proven by |",
        "| C9 | Nine | not yet | because |",
        "| C10 | Ten | proven | `t.py::b` |",
        "| C11 | Eleven | documented | [operations.md#what-runs](operations.md#what-runs): told |",
    ]
    assert mistakes(PROVEN, SMALL) == []


@pytest.mark.parametrize(
    ("unproven", "told"),
    [
        ({"C9": None}, "C9: no test proves it, and nothing explains why"),
        ({"A1": {"status": "not yet", "reason": "x"}}, "A1: it is explained why no test proves it, and one does"),
        ({"C12": {"status": "not yet", "reason": "x"}}, "C12: there is no such rule"),
        ({"C9": {"status": "proven", "reason": "x"}}, "C9: needs a reason and one of the statuses"),
        ({"C9": {"status": "waits"}}, "C9: needs a reason and one of the statuses"),
        ({"C9": {"status": "documented", "reason": "x"}}, "C9: a documented rule, and no other, names a page"),
        ({"C9": {"status": "waits", "page": "api.md", "reason": "x"}}, "C9: a documented rule, and no other, names"),
        ({"C9": {"status": "documented", "page": "gone.md", "reason": "x"}}, "C9: a documented rule, and no other"),
        ({"C9": {"status": "documented", "page": "api.md#gone", "reason": "x"}}, "C9: a documented rule, and no other"),
    ],
)
def test_what_is_wrong_with_the_reasons_is_found(unproven: dict[str, dict[str, str] | None], told: str):
    reasons = {rule: why for rule, why in (SMALL.unproven | unproven).items() if why is not None}
    (found,) = mistakes(PROVEN, SMALL._replace(unproven=reasons))
    assert found.startswith(told)


def test_an_explanation_goes_when_its_rule_is_proven():
    before, explained, after = (
        'C9 = "title"\n',
        'C9 = { status = "waits", reason = "x" }\n',
        'C90 = { status = "waits" }\n',
    )
    assert without_proven(before + explained + after, {"C9": {"t.py::a"}}) == before + after
