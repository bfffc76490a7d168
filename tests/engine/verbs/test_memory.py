"""Memory does not grow with the source (engine invariant 27): real processes' peaks beyond that of a small backup."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from engine.entries import Entry
from tests.support.large import ONE_FOLDER

pytestmark = [pytest.mark.invariant(27), pytest.mark.slow]

ROOT = Path(__file__).parents[3]
MIB = 1 << 20
FILES = 300_000


def backed_up_apart(folder: Path, files: int, sparse_bytes: int) -> dict[str, int]:
    """Back up a generated source in another process; return what it measured."""
    command = [sys.executable, "-m", "tests.support.large", str(folder), str(files), str(sparse_bytes)]
    # Threads of numerical libraries and arenas of threads would blur the figures.
    quiet = {**os.environ, "MALLOC_ARENA_MAX": "2", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=quiet, capture_output=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr.decode()
    found: dict[str, int] = json.loads(done.stdout)
    return found


@pytest.mark.slow
def test_three_hundred_thousand_entries_two_thirds_of_them_in_one_folder_are_never_held_at_once(tmp_path: Path):
    found = backed_up_apart(tmp_path / "vault", FILES, 0)
    assert FILES > ONE_FOLDER
    assert found["entries"] == FILES + 101
    assert found["entries_read_again"] == 0
    held = FILES * (sys.getsizeof(Entry(b"x", 0)) + sys.getsizeof(b"x" * 55))
    assert found["grown_bytes"] < 32 * MIB < held


def test_a_sparse_file_of_one_tebibyte_needs_no_more_than_a_small_one(tmp_path: Path):
    found = backed_up_apart(tmp_path / "vault", 0, 1 << 40)
    assert (found["bytes"], found["bytes_read"]) == (1 << 40, 24)
    assert found["grown_bytes"] < 24 * MIB
