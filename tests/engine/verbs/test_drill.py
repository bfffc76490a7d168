"""A drill restores for real, notices whatever came out otherwise, and stays within its space."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.entries import Kind
from engine.errors import PointMissing
from engine.ids import new_ulid
from engine.point import Expired, point_key
from engine.progress import Progress, Silent
from engine.session import open_sessions, put_note
from engine.verbs import drill
from engine.verbs.drill import DrillJob, Outcome, Unit
from tests.support.runs import backed_up, landed
from tests.support.vaults import Bench, travelled, write_files


class Acting(Silent):
    """Progress that does something between the restore and the comparison."""

    def __init__(self, act: Callable[[], None]) -> None:
        super().__init__()
        self._act = act

    def check(self) -> None:
        self._act()
        super().check()


@pytest.fixture
def tree(tmp_path) -> Path:
    """Files small and large, sparse and empty, read-only and odd; links, a fifo, nested folders."""
    tree = write_files(
        tmp_path / "tree",
        {"a/one": b"1" * 1000, "a/b/two": os.urandom(700_000), "empty": b"", "caf\xe9 \n": b"odd", "secret": b"s"},
    )
    with (tree / "sparse").open("wb") as file:
        file.write(b"head")
        file.seek(8 << 20)
        file.write(b"tail")
    (tree / "link").symlink_to("a/one")
    os.link(tree / "a/one", tree / "hard")
    os.mkfifo(tree / "fifo")
    os.setxattr(tree / "empty", "user.note", b"kept")
    (tree / "secret").chmod(0o000)
    os.utime(tree / "a", ns=(10**18, 10**18 + 7))
    return tree


@pytest.fixture
def bench() -> Bench:
    return Bench()


def order(bench: Bench, **options: object) -> DrillJob:
    name = bench.open().find("latest")
    values = {"session": new_ulid(bench.clock()), "series": name.series, "point": name.point, "percent": 100}
    return DrillJob(**values | {"started_at": bench.clock()} | options)  # type: ignore[arg-type]  # a test's own options


def drilled(
    bench: Bench, job: DrillJob, scratch: Path, *, progress: Progress | None = None, seen: list[Unit] | None = None
) -> Outcome:
    """Do a drill, each unit in an empty folder of its own."""
    planner, worker, silent = bench.open(), bench.open(), progress or Silent()
    results = []
    for unit in drill.plan(planner, job, Silent(), now=bench.clock()):
        folder = scratch / str(unit.number)
        folder.mkdir(parents=True)
        if seen is not None:
            seen.append(unit)
        placed = DrillJob(**{name: getattr(job, name) for name in job.__struct_fields__} | {"folder": bytes(folder)})
        results.append(travelled(drill.work(worker, placed, travelled(unit), silent)))
    return drill.finish(bench.open(), job, results, silent, clock=bench.clock)


def test_everything_comes_out_as_it_went_in(bench, tree, tmp_path):
    backup = backed_up(bench, tree)
    outcome = drilled(bench, order(bench), tmp_path / "scratch")
    assert (outcome.state, outcome.differences, outcome.notes) == ("complete", [], [])
    assert outcome.entries == backup.stats.entries
    assert outcome.files == backup.stats.files
    assert open_sessions(bench.storage) == []


@pytest.mark.parametrize(
    ("act", "path", "what"),
    [
        (lambda top: flip(top / "a/b/two", 300_000), "a/b/two", "content differs"),
        (lambda top: flip(top / "sparse", 4 << 20), "sparse", "content differs"),
        (lambda top: os.truncate(top / "a/one", 999), "a/one", "size is 999 instead of 1000"),
        (lambda top: (top / "empty").chmod(0o600), "empty", "mode is"),
        (lambda top: os.utime(top / "empty", ns=(1, 1)), "empty", "time is 1 "),
        (lambda top: os.setxattr(top / "empty", "user.note", b"other"), "empty", "attribute user.note"),
        (lambda top: again(top / "link", lambda path: path.symlink_to("elsewhere")), "link", "link target"),
        (lambda top: again(top / "fifo", lambda path: path.write_bytes(b"")), "fifo", "another kind"),
        (lambda top: (top / "hard").unlink(missing_ok=True), "hard", "it is missing"),
    ],
)
def test_whatever_comes_out_otherwise_is_found(bench, tree, tmp_path, act, path, what):
    backed_up(bench, tree)
    scratch = tmp_path / "scratch"
    top = landed(scratch / "0", tree)
    outcome = drilled(bench, order(bench), scratch, progress=Acting(lambda: act(top)))
    assert outcome.state == "failed"
    told = [one.what for one in outcome.differences if one.path.endswith(f"/{path}".encode())]
    assert any(what in text for text in told), outcome.differences


def flip(path: Path, at: int) -> None:
    if path.exists():
        with path.open("r+b") as file:
            file.seek(at)
            byte = file.read(1)
            file.seek(at)
            file.write(bytes([byte[0] | 1 if byte[0] != 255 else 0]) if byte[0] % 2 == 0 else bytes([byte[0] ^ 2]))


def again(path: Path, make: Callable[[Path], object]) -> None:
    if path.parent.exists():
        path.unlink(missing_ok=True)
        make(path)


def test_a_damaged_pack_fails_the_drill(bench, tree, tmp_path):
    backed_up(bench, tree)
    for stored in bench.storage.scan("packs/"):
        data = bytearray(bench.storage.get(stored.key))
        data[200:100_000] = bytes(99_800)
        bench.storage.overwrite(stored.key, bytes(data))
    outcome = drilled(bench, order(bench), tmp_path / "scratch")
    assert outcome.state == "failed"
    assert any("damaged" in one.what for one in outcome.differences)


def test_a_seed_draws_a_share_and_draws_the_same_again(bench, tmp_path):
    backed_up(bench, write_files(tmp_path / "tree", {f"{number:03}": b"x" for number in range(200)}))

    def drawn(seed: int) -> list[bytes]:
        seen: list[Unit] = []
        drilled(bench, order(bench, percent=20, seed=seed), tmp_path / os.urandom(4).hex(), seen=seen)
        return [entry.path for unit in seen for entry in unit.entries]

    first = drawn(1)
    assert 15 <= len(first) <= 75
    assert first == drawn(1) != drawn(2)


def test_a_small_share_of_a_few_files_is_still_one_of_them(bench, tmp_path):
    backed_up(bench, write_files(tmp_path / "tree", {"one": b"1", "two": b"2"}))
    for seed in range(5):
        outcome = drilled(bench, order(bench, percent=1, seed=seed), tmp_path / f"scratch{seed}")
        assert outcome.files >= 1


def test_the_folder_never_holds_more_than_it_may_and_larger_files_are_streamed(bench, tmp_path):
    files = {f"small{number}": os.urandom(40_000) for number in range(9)} | {"large": os.urandom(300_000)}
    backed_up(bench, write_files(tmp_path / "tree", files))
    seen: list[Unit] = []
    outcome = drilled(bench, order(bench, bytes_max=100_000), tmp_path / "scratch", seen=seen)
    assert (outcome.state, outcome.files, outcome.streamed) == ("complete", 10, 1)
    for unit in seen:
        assert sum(entry.size for entry in unit.entries if entry.kind == Kind.FILE) <= 100_000
    written = [path.name for path in (tmp_path / "scratch").rglob("*") if path.is_file()]
    assert "large" not in written


def test_a_point_that_was_expired_is_refused(bench, tree, tmp_path):
    backed_up(bench, tree)
    job = order(bench)
    vault = bench.open()
    note = Expired(job.point, job.series, "too old", bench.clock())
    put_note(bench.storage, vault.keys, point_key(job.series, job.point, "expired"), note)
    with pytest.raises(PointMissing, match="was expired"):
        next(drill.plan(vault, job, Silent(), now=bench.clock()))


@pytest.mark.parametrize("percent", [0, 101])
def test_a_share_that_cannot_be_is_refused(bench, tree, percent):
    backed_up(bench, tree)
    with pytest.raises(ValueError, match="give 1 to 100"):
        order(bench, percent=percent)
