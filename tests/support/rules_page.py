"""Write docs/rules.md: what each product rule says, and which tests prove it or why none does.

The rules and the reasons are in docs/rules.toml, the proofs are read from the `rule` markers in the test files. Run
`make rules` after adding or renaming a test that carries one.
"""

import re
import tomllib
from pathlib import Path
from typing import NamedTuple

from tests.support.markers import ROOT, Marker

PAGE = ROOT / "docs" / "rules.md"
RULES = ROOT / "docs" / "rules.toml"
COUNTED = ("proven", "documented", "waits", "not yet")
OPENING = """# The rules and their proofs

Each rule of the product has an id. A test that proves a rule carries the marker `@pytest.mark.rule("C27")`; a rule
without such a test says why. This page is written by `make rules` from those markers and from `docs/rules.toml`. Run
one rule's tests with `python -m tests.support.rules_page C27 | xargs python -m pytest`.

- **proven**: the tests named beside it prove it;
- **documented**: a page says it, and there is nothing to run;
- **waits**: it belongs to a part of the product that does not exist yet;
- **not yet**: it can be proven, and is not.
"""


class Rules(NamedTuple):
    """docs/rules.toml: the chapters by letter, what each rule says by id, and why some have no proof."""

    chapters: dict[str, str]
    titles: dict[str, str]
    unproven: dict[str, dict[str, str]]

    def of(self, letter: str) -> list[str]:
        """Return the ids of one chapter, by number."""
        return sorted((rule for rule in self.titles if rule[0] == letter), key=lambda rule: int(rule[1:]))

    def status(self, rule: str, found: dict[str, set[str]]) -> str:
        return "proven" if rule in found else self.unproven.get(rule, {}).get("status", "not explained")


def read() -> Rules:
    """Return what docs/rules.toml holds."""
    return Rules(**tomllib.loads(RULES.read_text()))


MARKER = Marker("rule", read().titles.__contains__, takes="a rule marker takes ids of docs/rules.toml such as 'C27'")


def page(found: dict[str, set[str]], rules: Rules) -> str:
    """Return the page's text for the tests of each rule."""
    lines = [OPENING, f"| chapter | rules | {' | '.join(COUNTED)} |", "|---|" + "---:|" * (len(COUNTED) + 1)]
    for letter, title in rules.chapters.items():
        lines.append(f"| {letter}. {title} | {_counts([rules.status(rule, found) for rule in rules.of(letter)])} |")
    lines += [f"| all | {_counts([rules.status(rule, found) for rule in rules.titles])} |", ""]
    for letter, title in rules.chapters.items():
        lines += [f"## {letter}. {title}", "", "| rule | what it says | status | proven by |", "|---|---|---|---|"]
        for rule in rules.of(letter):
            lines.append(
                f"| {rule} | {rules.titles[rule]} | {rules.status(rule, found)} | {_proof(rule, found, rules)} |"
            )
        lines.append("")
    return "\n".join(lines)


def mistakes(found: dict[str, set[str]], rules: Rules) -> list[str]:
    """Return what is wrong with docs/rules.toml, one line for each rule."""
    known, wrong = set(rules.titles), []
    wrong += [
        f"{rule}: no test proves it, and nothing explains why" for rule in known - set(found) - set(rules.unproven)
    ]
    wrong += [
        f"{rule}: it is explained why no test proves it, and one does" for rule in set(rules.unproven) & set(found)
    ]
    wrong += [f"{rule}: there is no such rule" for rule in (set(rules.unproven) | set(found)) - known]
    for rule, why in rules.unproven.items():
        if why.get("status") not in COUNTED[1:] or not why.get("reason"):
            wrong.append(f"{rule}: needs a reason and one of the statuses {', '.join(COUNTED[1:])}")
        if (why.get("status") == "documented") != ("page" in why) or not _is_there(why.get("page", PAGE.name)):
            wrong.append(f"{rule}: a documented rule, and no other, names a page and heading that are there")
    return sorted(wrong)


def without_proven(text: str, found: dict[str, set[str]]) -> str:
    """Return docs/rules.toml without the explanations of rules that are proven."""
    explains = re.compile(r"([A-Z]\d+) = \{")
    lines = text.splitlines(keepends=True)
    return "".join(line for line in lines if not ((seen := explains.match(line)) and seen[1] in found))


def _counts(statuses: list[str]) -> str:
    return " | ".join(str(count) for count in (len(statuses), *map(statuses.count, COUNTED)))


def _proof(rule: str, found: dict[str, set[str]], rules: Rules) -> str:
    if rule in found:
        return "<br>".join(f"`{test}`" for test in sorted(found[rule]))
    why = rules.unproven.get(rule, {})
    told = why.get("reason", "")
    return f"[{why['page']}]({why['page']}): {told}" if "page" in why else told


def _is_there(link: str) -> bool:
    """Tell whether a page, seen from docs/, exists and has the heading that the link names."""
    path, _, anchor = link.partition("#")
    at: Path = PAGE.parent / path
    if not at.is_file():
        return False
    headings = [line.lstrip("# ").lower() for line in at.read_text().splitlines() if line.startswith("#")]
    return not anchor or anchor in {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in headings}


def main(arguments: list[str]) -> str:
    """Write the page; with rule ids, return their tests instead, one a line."""
    found = MARKER.collect()
    if arguments:
        return "\n".join(sorted({test for rule in arguments for test in found.get(rule, ())}))
    RULES.write_text(without_proven(RULES.read_text(), found))
    rules = read()
    PAGE.write_text(page(found, rules))
    return "\n".join([f"{PAGE.relative_to(ROOT)}: {len(found)} of {len(rules.titles)} rules", *mistakes(found, rules)])


if __name__ == "__main__":
    import sys

    sys.stdout.write(main(sys.argv[1:]) + "\n")
