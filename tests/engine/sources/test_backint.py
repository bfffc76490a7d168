"""One object of HANA as a source: its name survives, and nothing of it may be missing from a point."""

import os
import threading
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.entries import Kind
from engine.errors import SourceError, SourceIncomplete, SourceMissing, SourceUnavailable
from engine.ids import new_ulid
from engine.sources.backint import BackintSource, entry_path
from engine.sources.kinds import AnySource
from engine.sources.stream import StreamReader
from engine.verbs import backup
from tests.support.runs import run_backup
from tests.support.vaults import Bench, contents

PARTS = st.text(st.characters(exclude_characters="/\0", codec="utf-8"), min_size=1).filter(
    lambda p: p not in (".", "..")
)


def source(path: Path | str, **options: object) -> BackintSource:
    return BackintSource(name=str(path), host="h", database="SYSTEMDB@HDB", **options)  # type: ignore[arg-type] # as given


def saved(bench: Bench, given: BackintSource) -> backup.Outcome:
    order = backup.BackupJob(session=new_ulid(bench.clock()), series="hana", source=given, started_at=bench.clock())
    return run_backup(bench, order)


@given(st.lists(PARTS, min_size=1))
def test_hanas_name_and_the_path_of_the_entry_are_each_others_inverse(parts: list[str]) -> None:
    name = "/" + "/".join(parts)
    assert "/" + entry_path(name).decode() == name


@pytest.mark.parametrize("name", ["", "/", "relative", "/a//b", "/a/../b", "/a/.", "/a/", "/nul\0"])
def test_a_name_that_no_entry_can_have_is_refused(name: str) -> None:
    with pytest.raises(SourceError, match="can't be kept"):
        source(name).check()


def test_a_point_says_what_the_object_was(tmp_path: Path) -> None:
    bench = Bench()
    (tmp_path / "a b").write_bytes(b"content")
    saved(bench, source(tmp_path / "a b", is_pipe=False, level="COMPLETE", backup="17"))
    (name,) = bench.open().points()
    body = bench.open().root(name).body
    assert (body.kind, body.roots) == ("backint", [str(tmp_path / "a b")])
    assert body.options == {
        "database": ["SYSTEMDB@HDB"], "level": ["COMPLETE"], "backup": ["17"], "object": ["file"],
    }  # fmt: skip
    assert contents(bench.open(), name) == {str(tmp_path / "a b")[1:].encode(): b"content"}


def test_a_pipe_is_read_to_its_end(tmp_path: Path) -> None:
    bench, data = Bench(), os.urandom(3_000_000)
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=lambda: (tmp_path / "pipe").write_bytes(data))
    writer.start()
    outcome = saved(bench, source(tmp_path / "pipe", open_s=20))
    writer.join()
    assert outcome.stats.bytes == len(data)


def test_whatever_cannot_be_read_makes_no_point(tmp_path: Path) -> None:
    bench = Bench()
    with pytest.raises(SourceMissing, match="is not there"):
        saved(bench, source(tmp_path / "nothing", is_pipe=False))
    with pytest.raises(SourceUnavailable, match="can't be opened"):
        saved(bench, source(tmp_path / "nothing", open_s=0.1))
    with pytest.raises(SourceUnavailable, match="can't be read"):
        saved(bench, source(tmp_path, is_pipe=False))
    assert bench.open().points() == []


def test_a_file_that_grows_or_shrinks_while_it_is_read_is_incomplete(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"content")
    given = source(path, is_pipe=False)
    (entry,) = given.walk()
    assert getattr(entry, "kind", None) == Kind.FILE
    reader = given.open(entry)  # type: ignore[arg-type] # no problem
    assert isinstance(reader, StreamReader)
    with reader:
        assert reader.readinto(memoryview(bytearray(100)), 0) == 7
        path.write_bytes(b"more content")
        with pytest.raises(SourceIncomplete, match="7 of 12 bytes"):
            reader.changed()


def test_it_travels_as_json(tmp_path: Path) -> None:
    given = source("/a/b", level="LOG")
    assert msgspec.json.decode(msgspec.json.encode(given), type=AnySource) == given
