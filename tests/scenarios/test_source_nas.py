"""A NAS for real: a Samba share backed up without an agent on it, lost and given back, compared on its disk."""

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from engine.sources.files import FilesSource
from engine.targets.files import FilesTarget
from tests.scenarios.relay import Door
from tests.services import Samba
from tests.support.engine_program import EngineProgram, ended
from tests.support.shares import SharedFolder
from tests.support.vaults import on_disk, write_files

pytestmark = [pytest.mark.scenario, pytest.mark.timeout(120)]

Tree = dict[bytes, tuple[bytes, int]]
OLD_NS = 1_600_000_000_123_456_700
SLOW = 12_000_000


@pytest.fixture
def share(samba_service: Samba) -> Iterator[Callable[[], SharedFolder]]:
    """Make fresh folders on the share."""
    made: list[SharedFolder] = []

    def make() -> SharedFolder:
        made.append(SharedFolder(samba_service))
        return made[-1]

    yield make
    for one in made:
        shutil.rmtree(one.disk)


@pytest.fixture
def engine(tmp_path: Path) -> EngineProgram:
    return EngineProgram(tmp_path)


def fill(folder: Path) -> None:
    """Write a tree of many small files and some large ones, with old times."""
    files = {f"projects/p{n % 9}/f{n:03}.txt": os.urandom(700 + n) for n in range(250)}
    files |= {"media/clip.bin": os.urandom(12_000_001), "media/é 漢字.txt": b"names", "empty": b""}
    write_files(folder, files)
    for path in folder.rglob("*"):
        os.utime(path, ns=(OLD_NS, OLD_NS))


def large(folder: Path) -> None:
    """Write two units of work."""
    write_files(folder, {f"f{n}": os.urandom(1 << 20) * 66 for n in range(2)})


def seen(folder: Path) -> Tree:
    """Return path -> (content, time in the 100 ns of the protocol) of every file of a folder of this host."""
    return {
        path: (data, os.stat(folder / os.fsdecode(path)).st_mtime_ns // 100) for path, data in on_disk(folder).items()
    }


def workers_of(pid: int) -> list[int]:
    """Return the processes that work for a command."""
    children = [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return [one for one in children if b"resource_tracker" not in Path(f"/proc/{one}/cmdline").read_bytes()]


def wait_until(happened: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not happened():
        assert time.monotonic() < deadline, "it did not happen within 30 s"
        time.sleep(0.02)


@pytest.mark.rule("E8", "E37")
def test_a_share_is_backed_up_changed_lost_and_given_back(
    share: Callable[[], SharedFolder], engine: EngineProgram, tmp_path: Path
) -> None:
    one, other = share(), share()
    fill(one.disk)
    first = engine.back_up(one.source())
    total = sum(len(data) for data, _ in seen(one.disk).values())
    assert first["state"] == "complete"
    assert first["stats"]["bytes_read"] == total

    again = engine.back_up(one.source())
    assert again["stats"]["bytes_read"] == 0

    with (one.disk / "media/clip.bin").open("r+b") as file:
        file.seek(6_000_000)
        file.write(b"changed in the middle")
    (one.disk / "projects/p1/f001.txt").unlink()
    write_files(one.disk, {"projects/p1/new.txt": b"new"})
    changed = engine.back_up(one.source())
    assert changed["stats"]["bytes_read"] == 12_000_001 + 3
    assert changed["stats"]["bytes_new"] < 2_500_000

    expected = seen(one.disk)
    for path in one.disk.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    # Paths of entries begin at the share's top: the same place is the top.
    restored = engine.restore(one.target(path=""), point=changed["point"])
    assert (restored["state"], restored["problems_total"]) == ("complete", 0)
    assert seen(one.disk) == expected
    assert os.stat(one.disk / "media").st_mtime_ns == OLD_NS
    engine.restore(other.target(), point=changed["point"])
    assert seen(other.disk / one.name) == expected
    folder = tmp_path / "folder"
    folder.mkdir()
    engine.restore(FilesTarget(root=os.fsencode(folder)), point=first["point"])
    kept = seen(folder / one.name)
    assert len(kept) == 253
    assert kept[b"projects/p1/f001.txt"][1] == OLD_NS // 100

    listed = one.program("recurse; ls")  # Debian's own client sees the same names
    assert len(re.findall(r"\.txt ", listed)) == 251


def test_what_stands_on_the_share_is_left_or_overwritten_as_asked(
    share: Callable[[], SharedFolder], engine: EngineProgram
) -> None:
    one = share()
    write_files(one.disk, {"a": b"kept", "b": b"kept"})
    point = engine.back_up(one.source())["point"]
    write_files(one.disk, {"a": b"later"})
    assert engine.restore(one.target(path=""), point=point)["stats"]["skipped"] == 2
    assert on_disk(one.disk) == {b"a": b"later", b"b": b"kept"}
    target = engine.folder / "target.json"
    target.touch(0o600)
    target.write_bytes(msgspec.json.encode(one.target(path="")))
    engine.run("restore", point, "--target", str(target), "--same-name", "overwrite")
    assert on_disk(one.disk) == {b"a": b"kept", b"b": b"kept"}


def test_a_point_of_a_hosts_files_is_restored_to_a_share(
    share: Callable[[], SharedFolder], engine: EngineProgram, tmp_path: Path
) -> None:
    files = write_files(tmp_path / "files", {"d/f": b"f", "d/CON": b"device", "g:h": b"stream"})
    (files / "link").symlink_to("d/f")
    one = share()
    source = FilesSource(roots=(os.fsencode(files),), host="h", walkers=4, ignore_inode=True, ignore_ctime=True)
    point = engine.back_up(source)["point"]
    restored = engine.restore(one.target(), point=point, expect=3)
    assert restored["state"] == "partial_complete"
    told = sorted((os.path.basename(one["path"]), one["reason"]) for one in restored["problems"])
    assert [reason for name, reason in told if name in ("CON", "g:h")] == ["unsafe-path", "unsafe-path"]
    assert ("link", "write-failed") in told
    assert [reason for _, reason in told].count("attributes") == 1
    assert on_disk(one.disk) == {os.fsencode(files / "d/f").strip(b"/"): b"f"}


def in_the_middle(running: "subprocess.Popen[bytes]") -> None:
    """Wait until both workers of a backup have begun to read; at SLOW they need seconds."""
    wait_until(lambda: len(workers_of(running.pid)) == 2)
    time.sleep(1)


def test_a_killed_worker_leaves_no_point_and_the_next_run_makes_a_complete_one(
    share: Callable[[], SharedFolder], engine: EngineProgram
) -> None:
    one, other = share(), share()
    large(one.disk)
    running = engine.backing_up(one.source(bytes_per_s=SLOW))
    in_the_middle(running)
    os.kill(workers_of(running.pid)[0], signal.SIGKILL)
    assert "a worker process was killed by signal 9" in ended(running, expect=1)
    assert engine.points("home") == []
    outcome = engine.back_up(one.source())
    assert outcome["state"] == "complete"
    engine.restore(other.target(), point=outcome["point"])
    assert on_disk(other.disk / one.name) == on_disk(one.disk)


def test_a_server_that_goes_in_mid_backup_makes_no_point(
    share: Callable[[], SharedFolder], engine: EngineProgram
) -> None:
    one = share()
    large(one.disk)
    door = Door(f"{one.samba.host}:{one.samba.port}")
    port = int(door.endpoint.rpartition(":")[2])
    running = engine.backing_up(one.source(port=port, bytes_per_s=SLOW, timeout_s=5.0))
    try:
        in_the_middle(running)
    finally:
        door.close()
    said = ended(running, expect=1)
    assert re.search("went away|does not answer", said)
    assert one.samba.password not in said
    assert engine.points("home") == []


@pytest.mark.parametrize(
    ("fields", "text"),
    [({"password": "wrong"}, "refused the log-in"), ({"share": "nowhere"}, "has no share 'nowhere'")],
)
def test_wrong_credentials_are_told_before_anything_is_written(
    share: Callable[[], SharedFolder], engine: EngineProgram, fields: dict[str, str], text: str
) -> None:
    one = share()
    before = engine.stored()
    said = engine.back_up(one.source(**fields), expect=1)
    assert text in said
    assert one.samba.password not in said
    assert engine.stored() == before
