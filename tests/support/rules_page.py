"""Write docs/rules.md: which tests prove which product rule, read from the `rule` markers in the test files.

Run `make rules` after adding or renaming a test that carries one.
"""

import re

from tests.support.markers import ROOT, Marker

PAGE = ROOT / "docs" / "rules.md"
CHAPTERS = {
    "A": "Scheduled backup of buckets",
    "B": "Files on servers of one's own",
    "C": "Files and disks of cloud hosts",
    "D": "Milvus clusters",
    "E": "Replication to another region",
}
_RULE = re.compile(r"[A-E][1-9][0-9]?")
MARKER = Marker(
    "rule",
    lambda name: isinstance(name, str) and bool(_RULE.fullmatch(name)),
    takes="a rule marker takes ids such as 'C27'",
)
OPENING = """# The rules and their proofs

Each rule of the product has an id. A test that proves a rule carries the marker `@pytest.mark.rule("C27")`;
this page lists them and is written by `make rules`. Run one rule's tests with
`python -m tests.support.rules_page C27 | xargs python -m pytest`.
"""


def page(found: dict[str, set[str]]) -> str:
    """Return the page's text for the tests of each rule."""
    lines = [OPENING]
    for letter, title in CHAPTERS.items():
        rules = sorted((rule for rule in found if rule[0] == letter), key=lambda rule: int(rule[1:]))
        if rules:
            lines += [f"## {letter}. {title}", "", "| rule | proven by |", "|---|---|"]
            lines += [f"| {rule} | {'<br>'.join(f'`{test}`' for test in sorted(found[rule]))} |" for rule in rules]
            lines.append("")
    return "\n".join(lines)


def main(arguments: list[str]) -> str:
    """Write the page; with rule ids, return their tests instead, one a line."""
    found = MARKER.collect()
    if arguments:
        return "\n".join(sorted({test for rule in arguments for test in found.get(rule, ())}))
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page(found))
    return f"{PAGE.relative_to(ROOT)}: {len(found)} rules"


if __name__ == "__main__":
    import sys

    sys.stdout.write(main(sys.argv[1:]) + "\n")
