"""The tree's non-functional rules (docs/architecture.md, conventions), checked on the syntax tree."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

PACKAGES = ("backupsite", "accounts", "vaults", "policies", "jobs", "engine")
FILE_LINES_MAX = 500
FUNCTION_LINES_MAX = 60
PARAMETERS_MAX = 6
VAGUE_MODULES = {"utils", "util", "helpers", "helper", "common", "misc"}
# Edges: what a request, a message or a command comes to first.
CLOCK_READERS = {
    "tasks",
    "views",
    "alert_views",
    "edition_views",
    "host_views",
    "admin",
    "console",
    "alert_console",
    "edition_console",
    "cluster_console",
    "forms",
    "signals",
    "commands",
    "management",
    "authentication",
    "zilliz",
}
CLOCKS = {
    "datetime.datetime.now",
    "datetime.datetime.utcnow",
    "datetime.datetime.today",
    "datetime.date.today",
    "django.utils.timezone.now",
    "django.utils.timezone.localtime",
    "django.utils.timezone.localdate",
    "django.db.models.functions.Now",
    "time.time",
    "time.time_ns",
    "time.localtime",
    "time.gmtime",
}
ENVIRONMENT = {"os.environ", "os.environb", "os.getenv", "os.putenv"}
# The settings, the entry points, which only name the settings module or the number of threads, and what hands a minimal
# environment on to programs.
ENVIRONMENT_READERS = {
    "backupsite/settings.py",
    "backupsite/celery.py",
    "backupsite/wsgi.py",
    "engine/__main__.py",
    "engine/backint/__main__.py",
    "engine/connections/process.py",
}
# Spelled in two parts, so that these lines don't find themselves.
MACHINE_PATHS = re.compile(r"(?<![\w./-])/(?:wor" r"k|tmp/bash_" r"jobs)(?![\w-])")
BARE_IGNORE = re.compile(r"#\s*type:\s*ignore(?!\[[\w, -]+\]\s+#\s*\S)")


class Breach(NamedTuple):
    """One broken rule at one line."""

    path: str
    line: int
    rule: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.rule}"


def breaches(path: str, text: str) -> list[Breach]:
    """List what breaks a rule in one module; `path` is relative to the tree's root and decides what is allowed."""
    where = Path(path)
    tree = ast.parse(text)
    found = [*_text_breaches(where, text)]
    found += [(line, rule) for node in ast.walk(tree) for line, rule in _size_breaches(where, node)]
    found += _name_breaches(where, tree)
    return [Breach(path, line, rule) for line, rule in sorted(set(found))]


def machine_paths(path: str, text: str) -> list[Breach]:
    """List the lines that name a place of the machine they were written on."""
    lines = enumerate(text.splitlines(), 1)
    return [Breach(path, number, "names a path of one machine") for number, line in lines if MACHINE_PATHS.search(line)]


def _text_breaches(path: Path, text: str) -> Iterator[tuple[int, str]]:
    if text.count("\n") > FILE_LINES_MAX:
        yield 1, f"file over {FILE_LINES_MAX} lines"
    if VAGUE_MODULES & {Path(part).stem for part in path.parts}:
        yield 1, "module name says nothing; name what it holds"
    for number, line in enumerate(text.splitlines(), 1):
        if BARE_IGNORE.search(line):
            yield number, "type: ignore without a code and a reason beside it"


def _size_breaches(path: Path, node: ast.AST) -> Iterator[tuple[int, str]]:
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return
    lines = (node.end_lineno or node.lineno) - node.lineno + 1
    if lines > FUNCTION_LINES_MAX:
        yield node.lineno, f"{node.name} has {lines} lines; {FUNCTION_LINES_MAX} at most"
    arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    count = sum(argument.arg not in {"self", "cls"} for argument in arguments)
    if count > PARAMETERS_MAX and not _is_command(path, node):
        yield node.lineno, f"{node.name} takes {count} parameters; {PARAMETERS_MAX} at most"


def _is_command(path: Path, node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Say whether the function is a command of the command line, whose parameters are its options."""
    calls = (one.func for one in node.decorator_list if isinstance(one, ast.Call))
    return _is_cli(path) and any(isinstance(f, ast.Attribute) and f.attr in {"command", "callback"} for f in calls)


def _name_breaches(path: Path, tree: ast.Module) -> Iterator[tuple[int, str]]:
    imported = _imported(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and any(alias.name == "*" for alias in node.names):
            yield node.lineno, "star import"
        elif isinstance(node, ast.Attribute | ast.Name):
            name = _full_name(node, imported)
            if name in CLOCKS and not _may_read_clock(path):
                yield node.lineno, f"reads the clock ({name}); take `now` instead"
            if name in ENVIRONMENT and path.as_posix() not in ENVIRONMENT_READERS:
                yield node.lineno, "reads the environment; take a setting instead"
            if name == "print" and not _may_print(path):
                yield node.lineno, "prints; log it or return it"
        elif isinstance(node, ast.keyword) and node.arg in {"auto_now", "auto_now_add"}:
            yield node.value.lineno, f"{node.arg} reads the clock; the service sets the moment"


def _imported(tree: ast.Module) -> dict[str, str]:
    """Map each local name that an import makes to the full name behind it."""
    names = {"print": "print"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {
                a.asname or a.name.partition(".")[0]: a.name if a.asname else a.name.partition(".")[0]
                for a in node.names
            }
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
    return names


def _full_name(node: ast.expr, imported: dict[str, str]) -> str | None:
    if isinstance(node, ast.Name):
        return imported.get(node.id)
    if isinstance(node, ast.Attribute):
        base = _full_name(node.value, imported)
        return base and f"{base}.{node.attr}"
    return None


def _is_cli(path: Path) -> bool:
    return path.parts[0] == "engine" and Path(path.parts[1]).stem in ("cli", "backint")


def _may_read_clock(path: Path) -> bool:
    return _is_cli(path) or bool(CLOCK_READERS & {Path(part).stem for part in path.parts})


def _may_print(path: Path) -> bool:
    return _is_cli(path) or "management" in path.parts
