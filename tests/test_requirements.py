"""What the product imports stands in the requirements of those who run it, not only of those who test it."""

import ast
import re
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SERVICE = ("backupsite", "accounts", "vaults", "policies", "jobs")
OWN = {*SERVICE, "engine"}
# Loaded only where such a key or source is used; whoever lacks the package is told what to install.
KEYS = {"hvac", "pkcs11", "requests"}
SOURCES = {
    "boto3",
    "botocore",
    "google",
    "grpc",
    "orjson",
    "pyarrow",
    "pymilvus",
    "smbclient",
    "smbprotocol",
    "spnego",
    "tablestore",
}
EXTRAS = KEYS | SOURCES


def pinned(name: str) -> set[str]:
    """Return the distributions that a requirements file names, those of the files it includes too."""
    found = set()
    for line in (ROOT / name).read_text().splitlines():
        if included := re.match(r"-r (\S+)", line):
            found |= pinned(included[1])
        elif requirement := re.match(r"([\w.-]+)(?:\[\w+\])?==", line):
            found.add(requirement[1].lower().replace("_", "-"))
    return found


def imported(*packages: str) -> set[str]:
    """Return the top-level names that these packages import from elsewhere."""
    names = set()
    for path in (path for package in packages for path in (ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names.add(node.module.partition(".")[0])
    return names - OWN - set(sys.stdlib_module_names)


@pytest.mark.parametrize(
    ("file", "packages", "extras"),
    [
        ("requirements-engine.txt", ("engine",), EXTRAS),
        ("requirements-keys.txt", ("engine",), SOURCES),
        ("requirements-sources.txt", ("engine",), KEYS),
        ("requirements.txt", ("engine", *SERVICE), EXTRAS),
    ],
)
def test_what_is_imported_is_pinned(file, packages, extras):
    provided = packages_distributions()
    names = pinned(file)
    missing = [
        name
        for name in sorted(imported(*packages) - extras)
        if not {one.lower().replace("_", "-") for one in provided.get(name, [])} & names
    ]
    assert missing == []
