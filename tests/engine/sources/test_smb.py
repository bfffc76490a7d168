"""The SMB source on a real Samba: what it finds and keeps, what it reports, what it refuses."""

import contextlib
import os
import pickle
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import smbclient

from engine.chunker import PART_BYTES
from engine.connections.smb import ATTRIBUTES, CREATED, SECURITY, Facts
from engine.connections.smb_messages import Listed
from engine.entries import Entry, Kind, Problem
from engine.errors import ExtraMissing, SourceDenied, SourceError, SourceMissing, SourceUnavailable
from engine.sources import smb
from engine.sources.smb import SmbSource
from engine.sources.smb_walk import SmbWalk
from tests.services import Samba
from tests.support.shares import SharedFolder
from tests.support.vaults import Bench, contents, on_disk, write_files

FILES = {
    "b!": b"exclamation",
    "b/a": b"a" * 100_000,
    "b/empty": b"",
    "b/é 漢字": b"names",
    "b/deep/er/f": b"deep",
    "c.bin": os.urandom(9_000_001),
}


@pytest.fixture
def shared(samba_service: Samba) -> Iterator[SharedFolder]:
    folder = SharedFolder(samba_service)
    yield folder
    shutil.rmtree(folder.disk)


def walked(source: SmbSource) -> list[Entry]:
    return [found for found in source.walk() if isinstance(found, Entry)]


def problems(source: SmbSource) -> list[tuple[str, str, bool]]:
    found = [one for one in source.walk() if isinstance(one, Problem)]
    return [(os.fsdecode(os.path.basename(one.path)), one.reason, one.lost) for one in found]


def find(source: SmbSource, name: str) -> Entry:
    return next(entry for entry in walked(source) if os.fsdecode(entry.path).endswith("/" + name))


def whole(source: SmbSource, entry: Entry) -> bytes:
    opened = source.open(entry)
    assert not isinstance(opened, Problem), opened
    with opened as reader:
        buffer = bytearray(reader.entry.size)
        assert reader.readinto(memoryview(buffer), 0) == len(buffer)
        assert reader.readinto(memoryview(bytearray(10)), len(buffer)) == 0
        assert not reader.changed()
    return bytes(buffer)


@pytest.mark.parametrize("walkers", [1, 6])
def test_the_walk_is_in_listing_order_below_the_path_in_the_share(shared: SharedFolder, walkers: int) -> None:
    write_files(shared.disk, FILES)
    source = shared.source(walkers=walkers)
    source.check()
    found = walked(source)
    top = shared.name.encode()
    names = [
        b"",
        b"b",
        b"b!",
        b"b/a",
        b"b/deep",
        b"b/deep/er",
        b"b/deep/er/f",
        b"b/empty",
        "b/é 漢字".encode(),
        b"c.bin",
    ]
    expected = [top + b"/" + name if name else top for name in names]
    assert [entry.path for entry in found] == sorted(expected, key=lambda path: path.replace(b"/", b"\0"))
    assert all(not (entry.xattrs or entry.target or entry.extents) for entry in found)
    whole_share = [entry.path for entry in walked(shared.source(path="", walkers=walkers))]
    assert set(expected) <= set(whole_share)
    assert whole_share == sorted(whole_share, key=lambda path: path.replace(b"/", b"\0"))


def test_files_read_as_they_are_by_every_way(shared: SharedFolder) -> None:
    write_files(shared.disk, FILES)
    source = shared.source()
    files = [entry for entry in walked(source) if entry.kind == Kind.FILE]
    for ahead in (False, True):
        if ahead:
            source.expect(files)
        for entry in files:
            expected = FILES[os.fsdecode(entry.path[len(shared.name) + 1 :])]
            small = source.read_small(entry, 1 << 19)
            if len(expected) > 1 << 19:
                assert small is None
            else:
                assert isinstance(small, tuple)
                assert small[1] == expected
                assert msgspec.structs.replace(small[0], xattrs={}) == entry
            assert whole(source, entry) == expected


def test_reading_in_pieces_out_of_order_gives_those_pieces(shared: SharedFolder) -> None:
    data = FILES["c.bin"]
    write_files(shared.disk, {"c": data})
    source = shared.source()
    opened = source.open(find(source, "c"))
    assert not isinstance(opened, Problem)
    with opened as reader:
        for start, end in ((0, 5_000_000), (8_000_000, 1 << 40), (100, 101), (7, 7)):
            (*spans,) = reader.spans(start, end)
            assert [(span.offset, span.length) for span in spans] == [(start, min(end, len(data)) - start)][
                : start < end
            ]
            at = start
            for step in (1, 70_000, 3_000_000, 1 << 22):
                buffer = bytearray(min(step, min(end, len(data)) - at))
                assert reader.readinto(memoryview(buffer), at) == len(buffer)
                assert buffer == data[at : at + len(buffer)]
                at += len(buffer)


def test_times_are_kept_to_100_ns_and_windows_attributes_beside_them(shared: SharedFolder) -> None:
    write_files(shared.disk, {"hidden": b"h", "plain": b"p", "d/f": b""})
    os.utime(shared.disk / "plain", ns=(1, 1_234_567_890_123_456_789))
    shared.program("setmode hidden +hr")
    source = shared.source()
    plain, hidden = (source.read_small(find(source, name), 9) for name in ("plain", "hidden"))
    assert isinstance(plain, tuple)
    assert isinstance(hidden, tuple)
    assert plain[0].mtime_ns == 1_234_567_890_123_456_700
    assert hidden[0].xattrs[ATTRIBUTES] == (3).to_bytes(4, "little")
    assert set(plain[0].xattrs) == {CREATED}
    folder = source.fill(find(source, "d"))
    assert isinstance(folder, Entry)
    assert set(folder.xattrs) == {CREATED}


def test_owners_and_access_lists_are_kept_when_asked_for(shared: SharedFolder) -> None:
    write_files(shared.disk, {"d/f": b"f", "d/big": FILES["c.bin"]})
    source = shared.source(security=True)
    small = source.read_small(find(source, "f"), 9)
    assert isinstance(small, tuple)
    opened = source.open(find(source, "big"))
    assert not isinstance(opened, Problem)
    with opened:
        pass
    folder = source.fill(find(source, "d"))
    for entry in (small[0], opened.entry, folder):
        assert isinstance(entry, Entry)
        assert entry.xattrs[SECURITY][0] == 1  # the revision of a security descriptor


def test_an_unchanged_share_is_not_read_again_and_a_changed_file_is(shared: SharedFolder) -> None:
    write_files(shared.disk, FILES)
    bench = Bench()
    first = bench.back_up_from(shared.source())
    assert (first.state, first.stats.bytes_read) == ("complete", sum(map(len, FILES.values())))
    assert bench.back_up_from(shared.source()).stats.bytes_read == 0
    (shared.disk / "b/a").write_bytes(b"other")
    assert bench.back_up_from(shared.source()).stats.bytes_read == 5
    vault = bench.open()
    kept = contents(vault, vault.points("home")[-1], below=Path(shared.name))
    assert {path.lstrip(b"/"): data for path, data in kept.items()} == on_disk(shared.disk)


def test_a_change_in_mid_reading_is_seen(shared: SharedFolder) -> None:
    write_files(shared.disk, {"f": b"x" * 3_000_000})
    source = shared.source()
    opened = source.open(find(source, "f"))
    assert not isinstance(opened, Problem)
    with opened as reader:
        reader.readinto(memoryview(bytearray(10)), 0)
        (shared.disk / "f").write_bytes(b"y" * 2_000_000)
        assert reader.readinto(memoryview(bytearray(3_000_000)), 10) < 3_000_000
        assert reader.changed()


def test_parts_of_a_large_file_are_read_of_the_listed_version_alone(
    shared: SharedFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert smb.PARTS_ABOVE == PART_BYTES
    monkeypatch.setattr(smb, "PARTS_ABOVE", 100)
    write_files(shared.disk, {"f": b"x" * 200})
    source = shared.source()
    entry = find(source, "f")
    assert whole(source, entry) == b"x" * 200
    write_files(shared.disk, {"new": b"y" * 200})
    os.utime(shared.disk / "new", ns=(1, 1))
    (shared.disk / "new").rename(shared.disk / "f")
    refused = source.open(entry)
    assert isinstance(refused, Problem)
    assert (refused.reason, refused.lost) == ("changed", True)


def test_a_file_that_another_program_holds_for_itself_is_a_loss_by_name(shared: SharedFolder) -> None:
    write_files(shared.disk, {"held": b"h" * 10, "free": b"f"})
    one, cache = shared.samba, dict[str, Any]()
    place = rf"\\{one.host}\{one.share}\{shared.name}\held"
    login = {"username": one.user, "password": one.password, "port": one.port, "connection_cache": cache}
    with smbclient.open_file(place, mode="r+b", share_access="", **login):
        outcome = Bench().back_up_from(shared.source())
        refused = shared.source().open(find(shared.source(), "held"))
    smbclient.reset_connection_cache(connection_cache=cache)
    assert outcome.state == "partial_complete"
    (problem,) = outcome.problems
    assert (os.path.basename(problem.path), problem.reason, problem.lost) == (b"held", "unreadable", True)
    assert "another program has it open" in problem.detail
    assert isinstance(refused, Problem)


def test_what_vanished_or_was_replaced_since_the_walk_is_told(shared: SharedFolder) -> None:
    write_files(shared.disk, {"gone": b"g", "folder": b"now", "d/f": b""})
    source = shared.source()
    gone, now_folder, now_file = (find(source, name) for name in ("gone", "folder", "d"))
    (shared.disk / "gone").unlink()
    (shared.disk / "folder").unlink()
    (shared.disk / "folder").mkdir()
    shutil.rmtree(shared.disk / "d")
    (shared.disk / "d").touch()
    for found, reason in (
        (source.open(gone), "vanished"),
        (source.read_small(gone, 9), "vanished"),
        (source.open(now_folder), "changed"),
        (source.read_small(now_folder, 9), "changed"),
        (source.fill(now_file), "changed"),
    ):
        assert isinstance(found, Problem)
        assert found.reason == reason


def test_a_loop_is_told_and_not_followed(shared: SharedFolder) -> None:
    write_files(shared.disk, {"d/f": b""})
    (shared.disk / "d/loop").symlink_to("..")
    assert problems(shared.source()) == [("loop", "link", False)]
    assert [entry.path for entry in walked(shared.source())].count(b"%s/d/f" % shared.name.encode()) == 1


def test_patterns_are_tried_on_paths_in_the_share(shared: SharedFolder) -> None:
    write_files(shared.disk, FILES)
    top = shared.name
    found = [os.fsdecode(entry.path) for entry in walked(shared.source(include=("f",), exclude=("empty",)))]
    assert found == [top, f"{top}/b", f"{top}/b/deep", f"{top}/b/deep/er", f"{top}/b/deep/er/f"]
    anchored = [os.fsdecode(entry.path) for entry in walked(shared.source(exclude=(f"/{top}/b/",)))]
    assert anchored == [top, f"{top}/b!", f"{top}/c.bin"]
    assert walked(shared.source(include=("/elsewhere/x",))) == []


def test_a_root_that_is_replaced_in_mid_walk_makes_no_point(shared: SharedFolder) -> None:
    write_files(shared.disk, {"root/f": b"x"})
    walk = shared.source(path=f"{shared.name}/root").walk()
    next(walk)
    (shared.disk / "root").rename(shared.disk / "other")
    (shared.disk / "root").mkdir()
    with pytest.raises(SourceUnavailable, match="is another one now"):
        list(walk)


@pytest.mark.parametrize(
    ("fields", "error", "text"),
    [
        ({"password": "wrong"}, SourceDenied, "refused the log-in"),
        ({"user": "nobody-here"}, SourceDenied, "refused the log-in"),
        ({"share": "nowhere"}, SourceMissing, "has no share 'nowhere'"),
        ({"path": "not/there"}, SourceMissing, "can't be reached"),
        ({"path": "a/../b"}, SourceError, "without '.' and '..'"),
        ({"walkers": 0}, SourceError, "give 1 to 64"),
    ],
)
def test_a_source_that_cannot_be_read_is_refused(
    shared: SharedFolder, fields: dict[str, Any], error: type[SourceError], text: str
) -> None:
    with pytest.raises(error, match=re.escape(text)) as caught:
        shared.source(**fields).check()
    assert shared.samba.password not in str(caught.value)


def test_a_file_is_no_root(shared: SharedFolder) -> None:
    write_files(shared.disk, {"f": b""})
    with pytest.raises(SourceMissing, match="is not a folder"):
        shared.source(path=f"{shared.name}/f").check()


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def test_a_server_that_is_not_there_is_unavailable(shared: SharedFolder, listener: socket.socket) -> None:
    port = listener.getsockname()[1]
    listener.close()
    with pytest.raises(SourceUnavailable, match="does not answer"):
        shared.source(port=port).check()


def test_a_server_that_says_nothing_is_unavailable_after_the_time_limit(
    shared: SharedFolder, listener: socket.socket
) -> None:
    with pytest.raises(SourceUnavailable, match="does not answer"):
        shared.source(port=listener.getsockname()[1], timeout_s=1.0).check()


def test_a_missing_package_is_named_with_what_to_do(shared: SharedFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "engine.connections.smb_share", None)
    with pytest.raises(ExtraMissing, match="pip install smbprotocol=="):
        shared.source().check()


def test_secrets_are_shown_nowhere(shared: SharedFolder) -> None:
    source = shared.source()
    for shown in (repr(source), str(source.identity()), str(source.options()), repr(source._address)):
        assert shared.samba.password not in shown


def test_a_source_survives_being_stored_and_sent(shared: SharedFolder) -> None:
    write_files(shared.disk, {"f": b"x"})
    source = shared.source(include=("f",))
    found = walked(source)
    for copy in (
        msgspec.json.decode(msgspec.json.encode(source), type=SmbSource),
        pickle.loads(pickle.dumps(source)),
    ):
        assert copy == source
        assert walked(copy) == found


def test_no_thread_is_left_behind(shared: SharedFolder) -> None:
    write_files(shared.disk, {f"d{n}/f": b"x" for n in range(20)})
    before = set(threading.enumerate())
    Bench().back_up_from(shared.source(walkers=5))
    deadline = time.monotonic() + 5
    while set(threading.enumerate()) - before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert set(threading.enumerate()) - before == set()


def test_a_program_that_still_holds_connections_ends(shared: SharedFolder, tmp_path: Path) -> None:
    write_files(shared.disk, {"d/f": b"x"})
    described = tmp_path / "source.json"
    described.write_bytes(msgspec.json.encode(shared.source()))
    program = (
        "import msgspec, pathlib, sys; from engine.sources.smb import SmbSource; "
        "source = msgspec.json.decode(pathlib.Path(sys.argv[1]).read_bytes(), type=SmbSource); "
        "print(len(list(source.walk())))"
    )
    done = subprocess.run([sys.executable, "-c", program, described], capture_output=True, timeout=30, check=True)
    assert (done.stdout, done.stderr) == (b"3\n", b"")


class Lying:
    """A server that tells names which no file can have."""

    def facts(self, path: str) -> Facts:
        return Facts(0x10, 0, 1, 1, 1, ident=1)

    def list(self, path: str) -> list[Listed]:
        names = [b"..", b".", b"", b"a/b", b"..\\up", b"n\0l", b"good"]
        return [Listed(name, Facts(0, 1, 1, 1, 1, ident=n + 2)) for n, name in enumerate(names)]


class LyingShares:
    @contextlib.contextmanager
    def borrowed(self) -> Iterator[Lying]:
        yield Lying()


def test_names_that_would_lead_elsewhere_are_left_out(shared: SharedFolder) -> None:
    shares: Callable[[], Any] = LyingShares
    found = list(SmbWalk(shares(), b"", None, entry_of=smb.entry_of).run(1))
    assert [one.path for one in found if isinstance(one, Entry)] == [b"good"]
    assert {one.reason for one in found if isinstance(one, Problem)} == {"unsafe-path"}
    assert len(found) == 7
