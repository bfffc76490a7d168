"""The SMB target on a real Samba: what it writes, what it refuses, and that it never leaves its folder."""

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from engine.connections.smb import ATTRIBUTES, CREATED, SECURITY, to_filetime
from engine.entries import Entry, Kind, Problem
from engine.errors import TargetDenied, TargetError, TargetMissing, TargetUnavailable, UnsafePath
from engine.targets.smb import SmbTarget
from tests.services import Samba
from tests.support.shares import SharedFolder
from tests.support.vaults import write_files

TIME_NS = 1_234_567_890_123_456_700


@pytest.fixture
def shared(samba_service: Samba) -> Iterator[SharedFolder]:
    folder = SharedFolder(samba_service)
    yield folder
    shutil.rmtree(folder.disk)


def file(path: bytes, size: int = 0, **fields: Any) -> Entry:
    return Entry(path, Kind.FILE, 0o600, size=size, mtime_ns=TIME_NS, **fields)


def folder(path: bytes, **fields: Any) -> Entry:
    return Entry(path, Kind.DIRECTORY, 0o700, mtime_ns=TIME_NS, **fields)


def written(target: SmbTarget, entry: Entry, data: bytes) -> list[Problem]:
    """Write a file through a writer, its end first."""
    writer = target.create(entry)
    middle = len(data) // 2
    writer.write(memoryview(data)[middle:], middle)
    writer.write(memoryview(data)[:middle], 0)
    return writer.commit()


def on_disk(shared: SharedFolder) -> list[str]:
    return sorted(str(path.relative_to(shared.disk)) for path in shared.disk.rglob("*"))


def test_files_and_folders_arrive_with_content_and_times(shared: SharedFolder) -> None:
    target, big = shared.target(), os.urandom(3_000_001)
    target.check()
    assert target.make(folder(b"d")) == []
    assert target.write_small(file(b"d/small", 5), b"small") == []
    assert target.write_small(file(b"d/empty"), b"") == []
    assert target.write_small(file(b"made/on the way/\xc3\xa9", 1), b"x") == []
    assert written(target, file(b"d/big", len(big)), big) == []
    assert target.finish(folder(b"d")) == []
    target.flush()
    assert (shared.disk / "d/small").read_bytes() == b"small"
    assert (shared.disk / "d/empty").read_bytes() == b""
    assert (shared.disk / "made/on the way/é").read_bytes() == b"x"
    assert (shared.disk / "d/big").read_bytes() == big
    assert {(shared.disk / name).stat().st_mtime_ns for name in ("d", "d/small", "d/empty", "d/big")} == {TIME_NS}
    assert not [name for name in on_disk(shared) if "backupsite-part" in name]


def test_gaps_are_zeros(shared: SharedFolder) -> None:
    writer = shared.target().create(file(b"gaps", 100_000))
    writer.write(memoryview(b"end"), 99_997)
    assert writer.commit() == []
    assert (shared.disk / "gaps").read_bytes() == bytes(99_997) + b"end"


def test_windows_attributes_and_the_time_of_creation_are_set_again(shared: SharedFolder) -> None:
    created = to_filetime(1_111_111_111_000_000_000)
    kept = {ATTRIBUTES: (3).to_bytes(4, "little"), CREATED: created.to_bytes(8, "little")}
    target = shared.target()
    assert target.write_small(file(b"hidden", 1, xattrs=kept), b"x") == []
    assert target.make(folder(b"d")) == []
    assert target.finish(folder(b"d", xattrs=kept)) == []
    for name in ("hidden", "d"):
        told = shared.program(f"allinfo {name}")
        attributes = re.search(r"attributes: (\w+)", told)
        assert attributes
        assert {"R", "H"} <= set(attributes[1])
        assert re.search(r"create_time: +Fri Mar 18 .* 2005", told)


@pytest.mark.parametrize("way", ["at once", "by a writer"])
def test_a_file_in_the_place_is_replaced_even_a_read_only_one(shared: SharedFolder, way: str) -> None:
    write_files(shared.disk, {"f": b"longer than the new one"})
    shared.program("setmode f +r")
    target = shared.target()
    assert target.existing(b"f") == Kind.FILE
    if way == "at once":
        assert target.write_small(file(b"f", 3), b"new") == []
    else:
        assert written(target, file(b"f", 3), b"new") == []
    assert (shared.disk / "f").read_bytes() == b"new"
    assert on_disk(shared) == ["f"]


def test_names_that_differ_only_in_case_never_replace_each_other(shared: SharedFolder) -> None:
    target = shared.target()
    assert target.write_small(file(b"Name", 3), b"one") == []
    (problem,) = target.write_small(file(b"name", 3), b"two")
    assert (problem.reason, problem.lost) == ("write-failed", True)
    assert "'Name' stands there" in problem.detail
    assert (shared.disk / "Name").read_bytes() == b"one"
    assert on_disk(shared) == ["Name"]


def test_what_stands_is_told_and_folders_are_never_replaced(shared: SharedFolder) -> None:
    write_files(shared.disk, {"d/f": b"f", "file": b""})
    target = shared.target()
    assert target.existing(b"d") == Kind.DIRECTORY
    assert target.existing(b"nothing") is None
    assert target.existing(b"d/f/below a file") is None
    assert [one.reason for one in target.write_small(file(b"d", 1), b"x")] == ["exists"]
    assert [one.reason for one in target.make(folder(b"file"))] == ["exists"]
    assert [one.reason for one in target.write_small(file(b"file/x", 1), b"x")] == ["exists"]
    assert (shared.disk / "d/f").read_bytes() == b"f"


UNSAFE = [
    b"..", b"../x", b"a/../../x", b".", b"a//b", b"/x", b"a\\b", b"..\\x", b"a:stream", b"C:", b"a\0b", b"a\nb",
    b"wild*", b"q?", b'"', b"<", b"|", b"CON", b"nul.txt", b"d/Com1", b"LPT9.log", b"dot.", b"space ",
    b"\xff", b"n" * 256,
]  # fmt: skip


@pytest.mark.parametrize("path", UNSAFE)
def test_a_path_that_means_something_else_there_is_refused(shared: SharedFolder, path: bytes) -> None:
    before = on_disk(shared), sorted(os.listdir(shared.samba.data))
    target = shared.target()
    assert [one.reason for one in target.write_small(file(path, 1), b"x")] == ["unsafe-path"]
    assert [one.reason for one in target.make(folder(path))] == ["unsafe-path"]
    assert [one.reason for one in target.link(file(path), b"f")] == ["unsafe-path"]
    for call in (lambda: target.create(file(path)), lambda: target.existing(path)):
        with pytest.raises(UnsafePath):
            call()
    assert (on_disk(shared), sorted(os.listdir(shared.samba.data))) == before


def test_nothing_is_written_through_a_link_that_leads_outside(shared: SharedFolder, tmp_path: Path) -> None:
    (shared.disk / "out").symlink_to(tmp_path)
    target = shared.target()
    for problems in (target.write_small(file(b"out/f", 1), b"x"), target.make(folder(b"out/d"))):
        assert [one.lost for one in problems] == [True]
    assert os.listdir(tmp_path) == []


def test_links_between_restored_files_are_made_and_others_are_losses(shared: SharedFolder) -> None:
    target = shared.target()
    assert target.write_small(file(b"first", 1), b"x") == []
    write_files(shared.disk, {"stands": b"old"})
    assert target.link(file(b"second", 1), b"first") == []
    assert target.link(file(b"stands", 1), b"first") == []
    assert {(shared.disk / name).stat().st_ino for name in ("second", "stands")} == {
        (shared.disk / "first").stat().st_ino
    }
    (problem,) = target.make(Entry(b"link", Kind.SYMLINK, target=b"first"))
    assert (problem.reason, problem.lost) == ("write-failed", True)


def test_what_a_share_cannot_hold_of_unix_is_reported_once(shared: SharedFolder) -> None:
    target = shared.target()
    entries = [msgspec.structs.replace(file(b"f%d" % n, 1), uid=1000, user="someone", mode=0o644) for n in range(3)]
    problems = [problem for entry in entries for problem in target.write_small(entry, b"x")]
    assert [(one.reason, one.lost) for one in problems] == [("attributes", False)]


def test_an_aborted_file_leaves_nothing(shared: SharedFolder) -> None:
    writer = shared.target().create(file(b"f", 100))
    writer.write(memoryview(b"x" * 50), 0)
    assert on_disk(shared) != []
    writer.abort()
    assert on_disk(shared) == []


def test_a_file_that_cannot_take_its_place_leaves_nothing_aside(shared: SharedFolder) -> None:
    target = shared.target()
    writer = target.create(file(b"f", 1))
    (shared.disk / "f").mkdir()
    writer.write(memoryview(b"x"), 0)
    assert [one.reason for one in writer.commit()] == ["exists"]
    assert on_disk(shared) == ["f"]


def test_owners_and_access_lists_are_set_when_asked_for(shared: SharedFolder) -> None:
    write_files(shared.disk, {"f": b"x"})
    os.chmod(shared.disk / "f", 0o705)
    source = shared.source(security=True)
    entry = next(found for found in source.walk() if isinstance(found, Entry) and found.path.endswith(b"/f"))
    small = source.read_small(entry, 9)
    assert isinstance(small, tuple)
    assert SECURITY in small[0].xattrs
    kept = msgspec.structs.replace(small[0], path=b"again")
    assert shared.target().write_small(msgspec.structs.replace(kept, path=b"plain"), b"x") == []
    assert shared.target(security=True).write_small(kept, b"x") == []
    # Samba turns an access list into a mode of its disk; the group's part of it may be the mask of an ACL.
    modes = {name: (shared.disk / name).stat().st_mode & 0o707 for name in ("f", "again", "plain")}
    assert modes["again"] == modes["f"] == 0o705
    assert modes["plain"] != 0o705


@pytest.mark.parametrize(
    ("fields", "error", "text"),
    [
        ({"path": "not/there"}, TargetMissing, "cannot be restored into"),
        ({"path": "a/../b"}, TargetError, "can't be restored into"),
        ({"share": "nowhere"}, TargetMissing, "has no share"),
        ({"password": "wrong"}, TargetDenied, "refused the log-in"),
        ({"port": 1}, TargetUnavailable, "does not answer"),
    ],
)
def test_a_target_that_cannot_be_used_is_refused(
    shared: SharedFolder, fields: dict[str, Any], error: type[TargetError], text: str
) -> None:
    with pytest.raises(error, match=re.escape(text)) as caught:
        shared.target(**fields).check()
    assert shared.samba.password not in str(caught.value) + repr(shared.target())


def test_a_file_is_no_target(shared: SharedFolder) -> None:
    write_files(shared.disk, {"f": b""})
    with pytest.raises(TargetMissing, match="is not a folder"):
        shared.target(path=f"{shared.name}/f").check()
