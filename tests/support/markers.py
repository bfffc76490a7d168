"""Which tests carry which marker, read from the test files without importing them."""

import ast
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


class BadMarker(Exception):
    """A marker holds something that it does not take."""


class Marker:
    """A marker that names what a test proves: `check` says whether an argument is a name, `takes` tells people."""

    def __init__(self, name: str, check: Callable[[object], bool], *, takes: str) -> None:
        self._name, self._check, self._takes = f"pytest.mark.{name}", check, takes

    def proofs(self, path: str, text: str) -> Iterator[tuple[str, str]]:
        """Yield (what is proven, test as pytest names it) for every marker in one test file. Raises BadMarker."""
        tree = ast.parse(text)
        whole_file = [name for node in tree.body if _is_pytestmark(node) for name in self._names(path, node)]
        yield from self._in_body(path, tree.body, whole_file, prefix=f"{path}::")

    def collect(self) -> dict[str, set[str]]:
        """Return the tests of everything that is proven, from every test file."""
        found: dict[str, set[str]] = defaultdict(set)
        for path in sorted((ROOT / "tests").rglob("test_*.py")):
            for name, test in self.proofs(path.relative_to(ROOT).as_posix(), path.read_text()):
                found[name].add(test)
        return dict(found)

    def _in_body(self, path: str, body: list[ast.stmt], names: list[str], *, prefix: str) -> Iterator[tuple[str, str]]:
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test"):
                for name in [*names, *(name for one in node.decorator_list for name in self._names(path, one))]:
                    yield name, prefix + node.name
            elif isinstance(node, ast.ClassDef) and node.name.startswith("Test"):
                own = [name for one in node.decorator_list for name in self._names(path, one)]
                yield from self._in_body(path, node.body, [*names, *own], prefix=f"{prefix}{node.name}::")

    def _names(self, path: str, node: ast.AST) -> Iterator[str]:
        """Yield the arguments of every such marker at or below the node."""
        for call in ast.walk(node):
            if isinstance(call, ast.Call) and ast.unparse(call.func) == self._name:
                for argument in call.args or [ast.Constant(None)]:
                    name = argument.value if isinstance(argument, ast.Constant) else None
                    if not self._check(name):
                        raise BadMarker(f"{path}:{call.lineno}: {self._takes}, as literals")
                    yield str(name)


def _is_pytestmark(node: ast.stmt) -> bool:
    return isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "pytestmark" for t in node.targets)
