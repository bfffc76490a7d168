"""What every source must do. A new source adds one line to SOURCES."""

import os
import pickle
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from engine.entries import Entry, Kind, Problem
from engine.sources.files import FilesSource, files_source
from engine.sources.port import Reader, Source
from tests.support.trees import Node, build

TREE = {
    b"b": Node("folder", 0o755),
    b"b!": Node("file", data=((0, b"exclamation"),), size=11),
    b"b/a": Node("file", data=((0, b"a" * 100_000),), size=100_000),
    b"b/empty": Node("file"),
    b"b/\xff\n": Node("file", data=((0, b"odd"),), size=3),
    b"b/sparse": Node("file", data=((8192, b"x" * 4096),), size=1 << 20),
    b"link": Node("symlink", target=b"nowhere"),
    b"pipe": Node("fifo"),
    b"talk": Node("socket"),
}

SOURCES: dict[str, Callable[[Path], Source]] = {
    "files": lambda folder: files_source([folder], host="here"),
    "share": lambda folder: FilesSource(
        roots=(os.fsencode(folder),), host="here", walkers=3, ignore_inode=True, ignore_ctime=True
    ),
}


@pytest.fixture(params=sorted(SOURCES))
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Source:
    folder = tmp_path / "tree"
    folder.mkdir()
    build(TREE, folder)
    made = SOURCES[request.param](folder)
    made.check()
    return made


def entries(source: Source) -> list[Entry]:
    return [found for found in source.walk() if isinstance(found, Entry)]


def files(source: Source) -> list[Entry]:
    return [entry for entry in entries(source) if entry.kind == Kind.FILE]


def opened(source: Source, entry: Entry) -> Reader:
    reader = source.open(entry)
    assert not isinstance(reader, Problem), reader
    return reader


def content(source: Source, entry: Entry) -> bytes:
    with opened(source, entry) as reader:
        buffer = bytearray(reader.entry.size)
        assert reader.readinto(memoryview(buffer), 0) == len(buffer)
        assert reader.readinto(memoryview(bytearray(10)), len(buffer)) == 0
        assert not reader.changed()
    return bytes(buffer)


def test_the_walk_is_in_listing_order_and_yields_each_path_once(source: Source) -> None:
    keys = [entry.sort_key for entry in entries(source)]
    assert keys == sorted(set(keys))
    assert len(keys) >= len(TREE) - 1


def test_paths_are_relative_to_the_root_of_everything_and_well_formed(source: Source) -> None:
    for entry in entries(source):
        assert not {b"", b".", b".."} & set(entry.path.split(b"/"))


def test_a_walk_leaves_targets_xattrs_and_extents_empty(source: Source) -> None:
    assert all(not (entry.target or entry.xattrs or entry.extents) for entry in entries(source))


def test_a_file_reads_as_it_is(source: Source) -> None:
    by_name = {entry.path.rpartition(b"/")[2]: content(source, entry) for entry in files(source)}
    assert by_name[b"a"] == b"a" * 100_000
    assert by_name[b"empty"] == b""
    assert by_name[b"sparse"] == bytes(8192) + b"x" * 4096 + bytes((1 << 20) - 8192 - 4096)


def test_reading_at_an_offset_gives_that_part(source: Source) -> None:
    entry = next(entry for entry in files(source) if entry.path.endswith(b"/sparse"))
    with opened(source, entry) as reader:
        buffer = bytearray(8)
        assert reader.readinto(memoryview(buffer), 8188) == 8
    assert buffer == b"\0\0\0\0xxxx"


@pytest.mark.parametrize(("start", "end"), [(0, 1 << 20), (5000, 9000), (8192, 8193), (0, 1 << 30), (7, 7)])
def test_spans_cover_the_range_in_order_without_gaps_and_holes_are_zero(source: Source, start: int, end: int) -> None:
    for entry in files(source):
        data = content(source, entry)
        with opened(source, entry) as reader:
            at = min(start, entry.size)
            for span in reader.spans(start, end):
                assert span.offset == at
                assert span.length > 0
                at += span.length
                assert not span.hole or not any(data[span.offset : at])
            assert at == max(min(end, entry.size), min(start, entry.size))


def test_read_small_gives_what_open_gives(source: Source) -> None:
    for entry in files(source):
        whole = source.read_small(entry, 1 << 19)
        if whole is None:
            assert entry.path.endswith(b"/sparse")
            continue
        assert not isinstance(whole, Problem)
        with opened(source, entry) as reader:
            assert whole == (reader.entry, content(source, entry))


def test_read_small_leaves_a_file_above_the_limit_to_open(source: Source) -> None:
    entry = next(entry for entry in files(source) if entry.path.endswith(b"/a"))
    assert source.read_small(entry, 99_999) is None
    assert source.read_small(entry, 100_000) is not None


def test_opening_gives_the_attributes_that_the_walk_saw(source: Source) -> None:
    for entry in files(source):
        with opened(source, entry) as reader:
            assert msgspec.structs.replace(reader.entry, xattrs={}) == entry


def test_filling_keeps_the_entry_and_adds_a_links_target(source: Source) -> None:
    for entry in entries(source):
        if entry.kind == Kind.FILE:
            continue
        filled = source.fill(entry)
        assert isinstance(filled, Entry)
        assert msgspec.structs.replace(filled, xattrs={}, target=b"") == entry
        assert (filled.target == b"nowhere") == (entry.kind == Kind.SYMLINK)


def test_a_socket_is_a_counted_problem_and_no_loss(source: Source) -> None:
    problems = [found for found in source.walk() if isinstance(found, Problem)]
    assert [(problem.reason, problem.lost) for problem in problems] == [("socket", False)]


def test_a_pickled_source_sees_the_same(source: Source) -> None:
    assert entries(pickle.loads(pickle.dumps(source))) == entries(source)
    assert pickle.loads(pickle.dumps(source)).identity() == source.identity()


@pytest.mark.parametrize("codec", [msgspec.json, msgspec.msgpack])
def test_a_files_source_survives_being_stored_with_any_path(codec: object) -> None:
    source = files_source([b"/a/\xff\n", "/b"], host="h", include=["*.x"], one_file_system=True)
    assert codec.decode(codec.encode(source), type=FilesSource) == source  # type: ignore[attr-defined] # two modules
    assert source.identity().roots == ["/a/\\xff\n", "/b"]
