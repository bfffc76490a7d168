"""A directory as a store: what a crash, a full disk and a hostile neighbour can do to it."""

import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from engine.errors import Forbidden, IntegrityError, NotFound, StorageFull, Unreachable
from engine.storage import Directory
from tests.engine.storage.conftest import NOON, HandClock

ENDLESS_WRITER = """
import sys
from engine.storage import Directory
store = Directory(sys.argv[1])
body = bytes(range(256)) * 32768
print("ready", flush=True)
for number in range(10_000):
    store.put(f"packs/{number % 5}/{number}", body)
"""


def files(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a file system of one MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", folder], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"FULL DISK NOT TESTED: cannot mount a small file system here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.parametrize("delay_s", [0.02, 0.05, 0.1, 0.2, 0.4])
def test_a_writer_killed_at_any_moment_leaves_whole_objects_only(tmp_path: Path, delay_s: float) -> None:
    command = [sys.executable, "-c", ENDLESS_WRITER, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[3]) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"ready\n"
        time.sleep(delay_s)
        writer.send_signal(signal.SIGKILL)
    store = Directory(tmp_path)
    body = bytes(range(256)) * 32768
    assert all(stored.size == len(body) and store.get(stored.key) == body for stored in store.scan(""))
    left = len(list((tmp_path / ".tmp").iterdir()))
    assert store.sweep_temporary() == left
    assert not any((tmp_path / ".tmp").iterdir())


def test_a_sweep_spares_the_file_of_a_living_writer(tmp_path: Path) -> None:
    store, other = Directory(tmp_path), Directory(tmp_path)
    swept: list[int] = []
    Directory(tmp_path, pace=lambda count: swept.append(other.sweep_temporary())).put("a", b"body")
    assert swept == [0]
    assert store.get("a") == b"body"


def test_a_put_whose_temporary_file_is_taken_away_starts_anew(tmp_path: Path) -> None:
    taken: list[Path] = []

    def take_once(count: int) -> None:
        if not taken:
            taken.extend((tmp_path / ".tmp").iterdir())
            taken[0].unlink()

    Directory(tmp_path, pace=take_once).put("p/a", b"body")
    assert len(taken) == 1
    assert files(tmp_path) == ["p/a"]


def test_a_full_disk_is_reported_and_leaves_nothing(small_disk: Path) -> None:
    store = Directory(small_disk)
    store.put("packs/small", b"x" * 1000)
    with pytest.raises(StorageFull, match="Free some space"):
        store.put("packs/large", b"x" * (2 << 20))
    assert files(small_disk) == ["packs/small"]
    store.put("packs/after", b"x" * 1000)
    assert [stored.key for stored in store.scan("")] == ["packs/after", "packs/small"]


def test_a_file_size_limit_counts_as_full(tmp_path: Path) -> None:
    program = (
        "import resource, signal, sys\n"
        "from engine.errors import StorageFull\n"
        "from engine.storage import Directory\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))\n"
        "try:\n    Directory(sys.argv[1]).put('a', bytes(100_000))\n"
        "except StorageFull:\n    sys.exit(7)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], cwd=Path(__file__).parents[3])
    assert done.returncode == 7
    assert files(tmp_path) == []


def _put_and_delete(root: str, start: float, putting: bool) -> None:
    store = Directory(root)
    time.sleep(max(0.0, start - time.time()))
    for number in range(300):
        if putting:
            store.put(f"deep/down/here/{number}", b"x")
        else:
            store.delete([f"deep/down/here/{number}"])


def test_puts_survive_deletes_that_empty_their_folder_from_another_process(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    start = time.time() + 1.5
    workers = [
        context.Process(target=_put_and_delete, args=(str(tmp_path), start, putting)) for putting in (True, False)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0]
    store = Directory(tmp_path)
    assert store.delete([f"deep/down/here/{number}" for number in range(300)]) == []
    assert files(tmp_path) == [".guard"]


def _put_same(root: str, start: float, byte: int) -> None:
    store = Directory(root)
    time.sleep(max(0.0, start - time.time()))
    for number in range(20):
        store.put(f"packs/{number}", bytes([byte]) * 300_000)


def test_processes_putting_the_same_key_leave_one_whole_object(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    start = time.time() + 1.5
    workers = [context.Process(target=_put_same, args=(str(tmp_path), start, byte)) for byte in (1, 2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0]
    store = Directory(tmp_path)
    bodies = [store.get(f"packs/{number}") for number in range(20)]
    assert all(body in (b"\1" * 300_000, b"\2" * 300_000) for body in bodies)
    assert not any((tmp_path / ".tmp").iterdir())


def test_deleting_the_last_object_removes_the_folders(tmp_path: Path) -> None:
    store = Directory(tmp_path)
    store.put("a/b/c", b"x")
    store.put("a/d", b"x")
    store.delete(["a/b/c"])
    assert not (tmp_path / "a" / "b").exists()
    store.delete(["a/d"])
    assert not (tmp_path / "a").exists()
    assert tmp_path.exists()


def test_a_link_inside_the_root_is_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(b"secret")
    root = tmp_path / "root"
    root.mkdir()
    (root / "link").symlink_to(outside)
    (root / "file").symlink_to(outside / "secret")
    store = Directory(root)
    for key in ("link/secret", "file"):
        with pytest.raises((NotFound, Forbidden)):
            store.get(key)
    for key in ("link/new", "file"):
        with pytest.raises(Forbidden):
            store.put(key, b"x")
    assert list(store.scan("")) == []
    assert (outside / "secret").read_bytes() == b"secret"
    assert files(outside) == ["secret"]


def test_a_fifo_in_the_place_of_an_object_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(NotFound):
        Directory(tmp_path).get("pipe")


@pytest.mark.parametrize("call", ["put", "get", "scan", "delete"])
def test_a_missing_root_is_not_made_but_reported(tmp_path: Path, call: str) -> None:
    store = Directory(tmp_path / "unmounted")
    calls: dict[str, Callable[[], object]] = {
        "put": partial(store.put, "a", b""),
        "get": partial(store.get, "a"),
        "scan": lambda: list(store.scan("")),
        "delete": partial(store.delete, ["a"]),
    }
    with pytest.raises(Unreachable, match="there is no folder"):
        calls[call]()
    assert not (tmp_path / "unmounted").exists()


def test_a_missing_root_is_made_on_request(tmp_path: Path) -> None:
    Directory(tmp_path / "new" / "vault", create=True).put("a", b"x")
    assert (tmp_path / "new" / "vault" / "a").read_bytes() == b"x"


def test_a_read_only_disk_is_forbidden(small_disk: Path) -> None:
    store = Directory(small_disk)
    store.put("a", b"x")
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(Forbidden, match=re.escape("Read-only file system")):
        store.put("b", b"x")
    with pytest.raises(Forbidden):
        store.delete(["a"])
    assert store.get("a") == b"x"


def test_an_object_that_ends_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    store = Directory(tmp_path, pace=lambda count: os.truncate(tmp_path / "a", 0))
    (tmp_path / "a").write_bytes(b"0123456789")
    with pytest.raises(Exception, match="ended 10 bytes early"):
        store.get("a")


def test_a_lock_outlives_the_program_that_set_it(tmp_path: Path) -> None:
    end = NOON.replace(year=2031)
    Directory(tmp_path, clock=HandClock()).put("p/a", b"x", locked_until=end)
    clock = HandClock()
    again = Directory(tmp_path, clock=clock)
    assert again.locked_until("p/a") == end
    assert [refusal.locked for refusal in again.delete(["p/a"])] == [True]
    clock.advance(days=400)
    assert again.delete(["p/a"]) == []
    assert files(tmp_path) == [".guard"]


def test_without_a_clock_every_lock_holds(tmp_path: Path) -> None:
    Directory(tmp_path).put("p/a", b"x", locked_until=NOON.replace(year=1999))
    assert [refusal.locked for refusal in Directory(tmp_path).delete(["p/a"])] == [True]


def test_a_damaged_lock_file_holds(tmp_path: Path) -> None:
    store = Directory(tmp_path, clock=HandClock())
    store.put("p/a", b"x", locked_until=NOON.replace(year=2031))
    (tmp_path / ".locks" / "p" / "a").write_bytes(b"\xff\0soon")
    with pytest.raises(IntegrityError, match="lock of p/a is damaged"):
        store.locked_until("p/a")
    assert [refusal.locked for refusal in store.delete(["p/a"])] == [True]
    assert store.get("p/a") == b"x"


def test_a_lock_needs_a_time_zone(tmp_path: Path) -> None:
    store = Directory(tmp_path, clock=HandClock())
    with pytest.raises(ValueError, match="time zone"):
        store.put("a", b"x", locked_until=NOON.replace(tzinfo=None))


def test_a_key_that_passes_through_an_object_is_refused(tmp_path: Path) -> None:
    store = Directory(tmp_path)
    store.put("a", b"x")
    with pytest.raises(Forbidden, match="a/b"):
        store.put("a/b", b"x")
    store.put("c/d", b"x")
    with pytest.raises(Forbidden, match="has this name"):
        store.put("c", b"x")
    assert files(tmp_path) == ["a", "c/d"]
