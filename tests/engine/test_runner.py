"""The local runner: what the pool promises to the verbs."""

import datetime as dt
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from engine import runner
from engine.errors import Canceled, Locked, WrongKey
from engine.ids import new_ulid
from engine.keyproviders.keyring import Keyring
from engine.keyproviders.spec import KeySpec
from engine.progress import Silent
from engine.runner import VaultOpener, WorkerDied, run
from engine.sources.files import files_source
from engine.storage.location import Location, open_storage
from engine.vault import Vault
from engine.verbs import backup, cutter
from engine.verbs.backup import BackupJob
from tests.engine import toy_verb
from tests.engine.toy_verb import ToyJob


def now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


@pytest.fixture
def opener(tmp_path: Path) -> VaultOpener:
    """A new vault in a folder."""
    location = Location.parse(str(tmp_path / "vault"))
    ring = Keyring.generate()
    Vault.create(open_storage(location, create=True), providers=[ring], now=now())
    return VaultOpener(
        location=location, key=KeySpec.parse("keyring:", secret=ring.text()), cache=str(tmp_path / "cache")
    )


@pytest.fixture
def spread(opener: VaultOpener) -> Callable[..., toy_verb.Outcome]:
    """Run the toy verb on two workers."""

    def call(*, workers: int = 2, progress: Silent | None = None, **fields: Any) -> toy_verb.Outcome:
        job = ToyJob(**fields)
        return run(opener, toy_verb, job, workers=workers, progress=progress or Silent(), clock=now)

    return call


@pytest.fixture(autouse=True)
def no_process_is_left() -> Iterator[None]:
    yield
    assert multiprocessing.active_children() == []


class Counting(Silent):
    """Progress that adds up, and cancels at the n-th check."""

    def __init__(self, *, cancel_at: int = 0) -> None:
        super().__init__()
        self.entries = self.bytes = self.bytes_stored = self.checks = 0
        self._cancel_at = cancel_at

    def add(self, *, entries: int = 0, bytes: int = 0, bytes_stored: int = 0) -> None:
        self.entries += entries
        self.bytes += bytes
        self.bytes_stored += bytes_stored

    def check(self) -> None:
        self.checks += 1
        if self.checks == self._cancel_at:
            self.cancel()
        super().check()


def test_results_reach_finish_in_unit_order_although_later_units_end_first(spread) -> None:
    outcome = spread(units=20, special="slow", at=0)
    assert outcome.numbers == list(range(20))


def test_units_without_work_keep_their_place_between_the_others(spread) -> None:
    outcome = spread(units=20, idle=(0, 3, 4, 5, 19), special="slow", at=1)
    assert outcome.numbers == list(range(20))


def test_work_is_done_by_other_processes(spread) -> None:
    assert os.getpid() not in spread(units=8).pids


def test_no_more_than_a_few_units_a_worker_are_planned_ahead(spread) -> None:
    outcome = spread(units=100, special="slow", at=0)
    assert outcome.ahead_max <= 2 * runner.LOOK_AHEAD


def test_a_unit_that_stays_alone_starts_no_process(spread) -> None:
    assert spread(units=3, idle=(0, 2)).pids == [os.getpid()] * 3


def test_a_lone_unit_waits_only_for_a_bounded_number_of_others(spread) -> None:
    outcome = spread(units=100, idle=tuple(range(1, 100)))
    assert outcome.numbers == list(range(100))
    assert outcome.ahead_max <= 2 * runner.LOOK_AHEAD


def test_one_worker_starts_no_process(spread) -> None:
    assert set(spread(units=8, workers=1).pids) == {os.getpid()}


def test_fewer_than_one_worker_is_refused(spread) -> None:
    with pytest.raises(ValueError, match="give at least 1"):
        spread(units=1, workers=0)


def test_a_pool_spawns_where_a_thread_forbids_to_fork(spread) -> None:
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    try:
        outcome = spread(units=6)
    finally:
        done.set()
        thread.join()
    assert outcome.numbers == list(range(6))
    assert outcome.spawned


def test_what_workers_count_arrives_once(spread) -> None:
    progress = Counting()
    spread(units=10, idle=(2,), progress=progress)
    assert (progress.entries, progress.bytes, progress.bytes_stored) == (10, 100, 30)


def test_a_killed_worker_fails_the_run_and_does_not_hang_it(spread) -> None:
    with pytest.raises(WorkerDied, match="killed by signal 9"):
        spread(units=10, special="die", at=3)


def test_an_error_of_a_worker_arrives_with_its_type_and_fields(spread) -> None:
    with pytest.raises(Locked, match="locked for the test") as raised:
        spread(units=10, special="locked", at=3)
    assert raised.value.until == toy_verb.UNTIL


def test_a_surprise_in_a_worker_arrives_with_the_place_it_happened_at(spread) -> None:
    with pytest.raises(ZeroDivisionError) as raised:
        spread(units=10, special="surprise", at=3)
    assert "toy_verb.py" in raised.value.__notes__[0]


def test_a_wrong_key_is_told_before_any_process_starts(opener: VaultOpener) -> None:
    other = VaultOpener(location=opener.location, key=KeySpec(url="keyring:", secret=Keyring.generate().text()))
    with pytest.raises(WrongKey):
        run(other, toy_verb, ToyJob(units=4), workers=2, progress=Silent(), clock=now)


def test_cancel_reaches_the_workers(spread) -> None:
    with pytest.raises(Canceled):
        spread(units=10, special="hang", at=0, progress=Counting(cancel_at=3))


def test_a_worker_that_does_not_heed_a_cancel_is_killed(spread, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "GRACE_S", 0.2)
    with pytest.raises(Canceled):
        spread(units=10, special="stuck", at=0, progress=Counting(cancel_at=3))


def backup_job(tmp_path: Path, *, files: int) -> BackupJob:
    (tmp_path / "tree").mkdir()
    for number in range(files):
        (tmp_path / "tree" / f"{number:05}").write_bytes(b"%d" % number)
    source = files_source([str(tmp_path / "tree")], host="h")
    return BackupJob(session=new_ulid(now()), series="s", source=source, started_at=now())


def test_a_canceled_backup_closes_its_session_and_leaves_no_point(
    opener: VaultOpener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cutter, "UNIT_FILES", 50)
    job = backup_job(tmp_path, files=500)
    with pytest.raises(Canceled):
        run(opener, backup, job, workers=2, progress=Counting(cancel_at=5), clock=now)
    assert opener.open().points() == []
    assert b"aborted" in (tmp_path / "vault" / "sessions" / job.session / "closed").read_bytes()


def test_a_plan_that_fails_at_once_closes_its_session(opener: VaultOpener, tmp_path: Path) -> None:
    job = backup_job(tmp_path, files=3)
    with pytest.raises(Canceled):
        run(opener, backup, job, workers=2, progress=Counting(cancel_at=1), clock=now)
    assert (tmp_path / "vault" / "sessions" / job.session / "closed").exists()


def test_a_backup_on_a_pool_beats_and_commits(
    opener: VaultOpener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cutter, "UNIT_FILES", 50)
    monkeypatch.setattr(runner, "BEAT_S", 0.0)
    job = backup_job(tmp_path, files=500)
    outcome = run(opener, backup, job, workers=2, progress=Silent(), clock=now)
    assert (outcome.state, outcome.stats.files) == ("complete", 500)
    assert (tmp_path / "vault" / "sessions" / job.session / "beat").exists()


ORPHANS = """
import datetime as dt, sys
from engine.keyproviders.spec import KeySpec
from engine.progress import Silent
from engine.runner import VaultOpener, run
from engine.storage.location import Location
from tests.engine import toy_verb

opener = VaultOpener(location=Location.parse(sys.argv[1]), key=KeySpec.parse("keyring:", secret=sys.argv[2]))
job = toy_verb.ToyJob(units=10, special="hang", at=0, folder=sys.argv[3])
run(opener, toy_verb, job, workers=2, progress=Silent(), clock=lambda: dt.datetime.now(dt.timezone.utc))
"""


def test_workers_end_by_themselves_when_their_parent_is_killed(opener: VaultOpener, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    pids.mkdir()
    command = [sys.executable, "-c", ORPHANS, opener.location.url, opener.key.secret, str(pids)]
    with subprocess.Popen(command) as parent:
        wait_for(lambda: len(list(pids.iterdir())) == 2)
        parent.send_signal(signal.SIGKILL)
    wait_for(lambda: not any(is_running(int(path.name)) for path in pids.iterdir()))


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_running(pid: int) -> bool:
    """Say whether the process exists and is no zombie that its new parent has yet to bury."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
