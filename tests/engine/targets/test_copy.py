"""A tree that goes from the files source into the files target comes out the same (invariant 14)."""

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.entries import Kind
from engine.sources.files import files_source
from engine.targets.files import files_target
from tests.support.copying import copy
from tests.support.trees import Node, Tree, build, build_deep, difference, snapshot, trees


def copied(folder: Path, *, small: int) -> list[str]:
    """Copy folder/in below folder/out; return how they differ."""
    out = folder / "out"
    out.mkdir()
    target = files_target(out)
    target.check()
    problems = copy(files_source([folder / "in"], host="h"), target, small=small)
    assert [problem for problem in problems if problem.reason != "socket"] == []
    restored = os.fsencode(out) + os.fsencode(folder / "in")
    return difference(snapshot(folder / "in"), snapshot(restored))


@pytest.mark.invariant(14)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(tree=trees(), small=st.sampled_from([0, 1 << 19]))
def test_any_tree_comes_out_as_it_went_in(tree: Tree, small: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "in").mkdir()
        build(tree, folder / "in")
        assert copied(folder, small=small) == []


@pytest.mark.invariant(14)
@pytest.mark.parametrize("levels", [20, 150])
def test_paths_beyond_path_max_come_out_as_they_went_in(tmp_path: Path, levels: int) -> None:
    (tmp_path / "in").mkdir()
    deepest = build_deep(tmp_path / "in", levels=levels, width=255)
    assert len(deepest) > 4096
    try:
        assert copied(tmp_path, small=0) == []
    finally:
        for name in ("in", "out"):
            _remove(tmp_path / name)


def _remove(folder: Path) -> None:
    """Remove a tree too deep for shutil: bring its folders up to the top first."""
    while below := [path for path in folder.iterdir() if path.is_dir() and not path.is_symlink()]:
        for path in below:
            for inner in path.iterdir():
                inner.rename(folder / f"moved-{inner.stat().st_ino}")
            path.rmdir()


@pytest.mark.invariant(14)
def test_hard_links_stay_links_also_across_folders(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    tree = {
        b"a": Node("folder", 0o755),
        b"a/one": Node("file", data=((0, b"x"),), size=1),
        b"b": Node("folder", 0o755),
        b"b/two": Node("hardlink", target=b"a/one"),
    }
    build(tree, tmp_path / "in")
    assert copied(tmp_path, small=1 << 19) == []
    inside = tmp_path / "out" / str(tmp_path)[1:] / "in"
    assert (inside / "a/one").stat().st_ino == (inside / "b/two").stat().st_ino


def test_a_second_copy_over_the_first_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    tree = {
        b"d": Node("folder", 0o700, mtime_ns=7),
        b"d/f": Node("file", 0o4711, data=((0, b"x"),), size=1),
        b"d/l": Node("symlink", target=b"f"),
        b"d/same": Node("hardlink", target=b"d/f"),
    }
    build(tree, tmp_path / "in")
    source, target = files_source([tmp_path / "in"], host="h"), files_target(tmp_path / "out")
    for _ in range(2):
        assert copy(source, target) == []
        assert difference(snapshot(tmp_path / "in"), snapshot(tmp_path / "out" / str(tmp_path)[1:] / "in")) == []


def test_a_root_that_is_one_file_or_one_link_is_kept(tmp_path: Path) -> None:
    build({b"f": Node("file", data=((0, b"x"),), size=1), b"l": Node("symlink", target=b"f")}, tmp_path)
    source = files_source([tmp_path / "f", tmp_path / "l"], host="h")
    assert [entry.kind for entry in source.walk()] == [Kind.FILE, Kind.SYMLINK]  # type: ignore[union-attr] # no problems
    (tmp_path / "out").mkdir()
    assert copy(source, files_target(tmp_path / "out")) == []
    assert os.readlink(tmp_path / "out" / str(tmp_path)[1:] / "l") == "f"
