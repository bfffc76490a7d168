"""Write docs/rules.md: which tests prove which product rule, read from the `rule` markers in the test files.

Run `make rules` after adding or renaming a test that carries one.
"""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
PAGE = ROOT / "docs" / "rules.md"
CHAPTERS = {
    "A": "Scheduled backup of buckets",
    "B": "Files on servers of one's own",
    "C": "Files and disks of cloud hosts",
    "D": "Milvus clusters",
    "E": "Replication to another region",
}
RULE = re.compile(r"[A-E][1-9][0-9]?")
OPENING = """# The rules and their proofs

Each rule of the product has an id. A test that proves a rule carries the marker `@pytest.mark.rule("C27")`;
this page lists them and is written by `make rules`. Run one rule's tests with
`python -m tests.support.rules_page C27 | xargs python -m pytest`.
"""


class BadMarker(Exception):
    """A `rule` marker holds something other than rule ids."""


def proofs(path: str, text: str) -> Iterator[tuple[str, str]]:
    """Yield (rule id, test as pytest names it) for every marker in one test file. Raises BadMarker."""
    tree = ast.parse(text)
    whole_file = [rule for node in tree.body if _is_pytestmark(node) for rule in _rules(path, node)]
    yield from _in_body(path, tree.body, whole_file, prefix=f"{path}::")


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


def collect() -> dict[str, set[str]]:
    """Return the tests of each rule, from every test file."""
    found: dict[str, set[str]] = defaultdict(set)
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for rule, test in proofs(path.relative_to(ROOT).as_posix(), path.read_text()):
            found[rule].add(test)
    return dict(found)


def _in_body(path: str, body: list[ast.stmt], rules: list[str], *, prefix: str) -> Iterator[tuple[str, str]]:
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test"):
            for rule in [*rules, *(rule for one in node.decorator_list for rule in _rules(path, one))]:
                yield rule, prefix + node.name
        elif isinstance(node, ast.ClassDef) and node.name.startswith("Test"):
            own = [rule for one in node.decorator_list for rule in _rules(path, one)]
            yield from _in_body(path, node.body, [*rules, *own], prefix=f"{prefix}{node.name}::")


def _is_pytestmark(node: ast.stmt) -> bool:
    return isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "pytestmark" for t in node.targets)


def _rules(path: str, node: ast.AST) -> Iterator[str]:
    """Yield the ids in every `pytest.mark.rule(...)` at or below the node."""
    for call in ast.walk(node):
        if isinstance(call, ast.Call) and ast.unparse(call.func) == "pytest.mark.rule":
            for argument in call.args or [ast.Constant(None)]:
                rule = argument.value if isinstance(argument, ast.Constant) else None
                if not isinstance(rule, str) or not RULE.fullmatch(rule):
                    raise BadMarker(f"{path}:{call.lineno}: a rule marker takes ids such as 'C27', as literals")
                yield rule


def main(arguments: list[str]) -> str:
    """Write the page; with rule ids, return their tests instead, one a line."""
    found = collect()
    if arguments:
        return "\n".join(sorted({test for rule in arguments for test in found.get(rule, ())}))
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page(found))
    return f"{PAGE.relative_to(ROOT)}: {len(found)} rules"


if __name__ == "__main__":
    import sys

    sys.stdout.write(main(sys.argv[1:]) + "\n")
