"""The tree keeps its own rules, and the checker of those rules sees each breach."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.tidy import PACKAGES, breaches, machine_paths

ROOT = Path(__file__).parent.parent
PROSE = {".py", ".md", ".toml", ".txt", ".yaml", ".yml", ".service", ".example", ".html", ".css", ".js", ""}


def modules() -> Iterator[Path]:
    for package in PACKAGES:
        yield from (path for path in sorted((ROOT / package).rglob("*.py")) if "migrations" not in path.parts)


def written_files() -> Iterator[Path]:
    folders = (*PACKAGES, "tests", "docs", "deploy", "bench", ".ci")
    inside = (path for folder in folders for path in sorted((ROOT / folder).rglob("*")))
    for path in (*sorted(ROOT.glob("*")), *inside):
        if path.name != ".git" and path.is_file() and path.suffix in PROSE and "__pycache__" not in path.parts:
            yield path


def test_the_tree_is_tidy():
    found = [breach for path in modules() for breach in breaches(str(path.relative_to(ROOT)), path.read_text())]
    assert not found, "\n" + "\n".join(map(str, found))


def test_no_file_names_a_path_of_the_machine_it_was_written_on():
    texts = ((str(path.relative_to(ROOT)), path.read_text(errors="replace")) for path in written_files())
    found = [breach for path, text in texts for breach in machine_paths(path, text)]
    assert not found, "\n" + "\n".join(map(str, found))


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        ("file over 500 lines", "x = 1\n" * 501),
        ("long has 61 lines", "def long():\n" + "    x = 1\n" * 60),
        ("wide takes 7 parameters", "def wide(a, b, c, *, d, e, f, g): ...\n"),
        ("reads the clock", "import datetime as dt\nx = dt.datetime.now(dt.UTC)\n"),
        ("reads the clock", "from datetime import date as d\nx = d.today()\n"),
        ("reads the clock", "from django.utils import timezone\nx = dict(default=timezone.now)\n"),
        ("reads the clock", "from time import time as seconds\nx = seconds()\n"),
        ("auto_now_add reads the clock", "x = field(auto_now_add=True)\n"),
        ("reads the environment", "import os\nx = os.environ['HOME']\n"),
        ("reads the environment", "from os import getenv\nx = getenv('HOME')\n"),
        ("star import", "from os import *\n"),
        ("prints", "print('x')\n"),
        ("type: ignore without", "x = 1  # type: ignore[assignment]\n"),
        ("type: ignore without", "x = 1  # type: ignore # because\n"),
    ],
)
def test_the_checker_sees_a_breach(rule: str, text: str):
    assert [str(breach) for breach in breaches("vaults/services.py", text) if rule in breach.rule]


@pytest.mark.parametrize("path", ["vaults/utils.py", "engine/helpers/x.py", "jobs/common.py"])
def test_the_checker_sees_a_name_that_says_nothing(path: str):
    assert [breach.rule for breach in breaches(path, "")] == ["module name says nothing; name what it holds"]


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("jobs/tasks.py", "from django.utils import timezone\nx = timezone.now()\n"),
        ("jobs/management/commands/demo.py", "import time\nprint(time.time())\n"),
        ("engine/cli.py", "import datetime as dt\nprint(dt.datetime.now(dt.UTC))\n"),
        ("engine/cli/backup.py", "@app.command()\ndef backup(a, b, c, d, e, f, g): ...\n"),
        ("backupsite/settings.py", "import os\nx = os.environ\n"),
        ("engine/session.py", "import time\nx = time.monotonic() + self.now\n"),
        ("engine/session.py", "def six(self, a, b, c, d, e, f): ...\n"),
        ("engine/session.py", "x = 1  # type: ignore[misc]  # the stub is wrong: the call returns bytes\n"),
    ],
)
def test_the_checker_lets_pass_what_is_allowed(path: str, text: str):
    assert breaches(path, text) == []


@pytest.mark.parametrize(
    ("line", "count"), [("see /wor" + "k/x", 1), ("in /tmp/bash_" + "jobs.0", 1), ("a/wor" + "k", 0)]
)
def test_the_checker_sees_machine_paths(line: str, count: int):
    assert len(machine_paths("docs/a.md", f"one\n{line}\n")) == count
