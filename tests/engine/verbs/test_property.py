"""Properties over hostile trees: what was backed up comes back; an incremental backup says what a deep one says."""

import os
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine import listing as listings
from engine.entries import Entry, Kind
from engine.sources.files import files_source
from engine.storage import Directory
from tests.support.runs import backed_up, backup_job, landed, listing, restored, run_backup
from tests.support.trees import NAMES, Tree, build, difference, snapshot, trees
from tests.support.vaults import Bench

MODEST = settings(
    max_examples=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large],
)


CHANGES = ("new", "changed", "unchanged", "deleted")


@contextmanager
def scratch() -> Iterator[Path]:
    """Give a folder that goes away, whatever modes and depths are in it."""
    with tempfile.TemporaryDirectory(prefix="tree-", ignore_cleanup_errors=True) as name:
        yield Path(name)


@contextmanager
def tiny_blocks() -> Iterator[None]:
    """Let listing blocks end after two to four entries, so that few entries make many blocks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(listings, "BLOCK_ROWS_MIN", 2)
        patch.setattr(listings, "_END_MASK", 1)
        yield


def come_back(bench: Bench, folder: Path, where: Path, point: str) -> dict[bytes, dict[str, object]]:
    """Restore a point into a new folder and return what it looks like."""
    where.mkdir()
    outcome = restored(bench, where, point=point)
    assert outcome.problems == []
    return snapshot(landed(where, folder))


@pytest.mark.invariant(14)
@pytest.mark.rule("B1", "C24")
@MODEST
@given(tree=trees(), in_folder=st.booleans())
def test_what_was_backed_up_comes_back_as_it_was(tree: Tree, in_folder: bool):
    with scratch() as top:
        folder = top / "source"
        folder.mkdir()
        build(tree, folder)
        if in_folder:
            (top / "vault").mkdir()
        bench = Bench(Directory(top / "vault")) if in_folder else Bench()
        before = snapshot(folder)
        outcome = backed_up(bench, folder)
        assert {problem.reason for problem in outcome.problems} <= {"socket"}
        assert difference(before, come_back(bench, folder, top / "target", outcome.point)) == []


EDITS = st.lists(
    st.tuples(
        st.sampled_from(
            ["write", "same size and time", "append", "truncate", "delete", "rename", "folder", "link", "mode", "touch"]
        ),
        st.integers(0, 50),
        NAMES,
        st.binary(max_size=50),
    ),
    max_size=6,
)


def edit(folder: Path, script: list[tuple[str, int, bytes, bytes]]) -> None:
    """Change a tree as the script says; what can't be done (a name too long, a folder to be written) is left out."""
    for what, which, name, data in script:
        paths = sorted(os.path.join(base, one) for base, _, files in os.walk(os.fsencode(folder)) for one in files)
        path = paths[which % len(paths)] if paths else os.path.join(os.fsencode(folder), name)
        try:
            _edit(what, path, os.path.join(os.path.dirname(path), name), data)
        except OSError:
            continue


def _edit(what: str, path: bytes, beside: bytes, data: bytes) -> None:
    if (
        os.path.lexists(path)
        and (os.path.islink(path) or not os.path.isfile(path))
        and what not in ("delete", "rename")
    ):
        return
    if what == "same size and time":
        status = os.stat(path)
        with open(path, "r+b") as file:
            file.write(data[: status.st_size])
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    elif what in ("write", "append"):
        with open(path if what == "append" else beside, "ab" if what == "append" else "wb") as file:
            file.write(data)
    elif what == "truncate":
        os.truncate(path, len(data))
    elif what == "delete":
        os.unlink(path)
    elif what == "rename":
        os.rename(path, beside)
    elif what == "folder":
        os.mkdir(beside)
    elif what == "link":
        os.link(path, beside)
    elif what == "mode":
        os.chmod(path, len(data) * 8 + 0o400)
    else:
        os.utime(path, ns=(0, len(data)))


def rows(bench: Bench, point: str) -> list[Entry]:
    return listing(bench.open(), point)


def naive_diff(before: list[Entry], after: list[Entry]) -> dict[str, int]:
    """Count by the names of Stats, path by path."""
    old, new = {row.path: row for row in before}, {row.path: row for row in after}
    counts: Counter[str] = Counter()
    for path in {*old, *new}:
        was, now = old.get(path), new.get(path)
        if now is not None:
            counts["entries_" + word(was, now)] += 1
            if now.kind == Kind.FILE:
                counts["files_" + ("new" if was and was.kind != Kind.FILE else word(was, now))] += 1
        if was is not None:
            counts["entries_deleted"] += now is None
            counts["files_deleted"] += was.kind == Kind.FILE and (now is None or now.kind != Kind.FILE)
    return {f"{what}_{how}": counts[f"{what}_{how}"] for what in ("files", "entries") for how in CHANGES}


def word(was: Entry | None, now: Entry) -> str:
    if was is None:
        return "new"
    same = all(getattr(was, name) == getattr(now, name) for name in ("kind", "size", "mtime_ns", "ctime_ns", "inode"))
    return "unchanged" if same else "changed"


@pytest.mark.invariant(14, 16)
@pytest.mark.rule("B12")
@MODEST
@given(tree=trees(max_size=10), scripts=st.lists(EDITS, min_size=1, max_size=3))
def test_an_incremental_backup_says_what_a_deep_one_says_and_every_point_keeps_its_own_state(
    tree: Tree, scripts: list[list[tuple[str, int, bytes, bytes]]]
):
    with scratch() as top, tiny_blocks():
        folder = top / "source"
        folder.mkdir()
        build(tree, folder)
        bench = Bench()
        source = files_source([str(folder)], host="host")
        states: list[tuple[str, dict[bytes, dict[str, object]]]] = []
        for script in [[], *scripts]:
            edit(folder, script)
            point = backed_up(bench, folder).point
            states.append((point, snapshot(folder)))
            deep = run_backup(bench, backup_job(bench, source, series="deep", deep=True)).point
            assert rows(bench, point) == rows(bench, deep)
            expected = naive_diff(rows(bench, states[-2][0]) if len(states) > 1 else [], rows(bench, point))
            for counted in (bench.open().root(bench.open().find(one)).body.stats for one in (point, deep)):
                assert {name: getattr(counted, name) for name in expected} == expected
        for number, (point, state) in enumerate(states):
            assert difference(state, come_back(bench, folder, top / f"target{number}", point)) == []
