"""A replication keeps to its limits: what is read at one end, what is sent to the other, and the way back."""

import datetime as dt
import random
import threading
from bisect import bisect_left
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from accounts.services import SERVICE
from engine.storage.location import Location, open_storage
from engine.storage.port import Storage
from engine.storage.throttle import Budget, Pace, unpaced
from jobs import maintenance, presence, speed
from jobs.models import Job
from jobs.states import JobState, Kind
from tests.support.people import T0
from tests.support.story import Story
from vaults import replication, repositories
from vaults.limits import load
from vaults.models import Region, ReplicationLink, Vault, VaultType
from vaults.services import save_region

pytestmark = pytest.mark.django_db

RATE, SLOW = 400_000, 100_000
SPAN_S = 10


class Line:
    """A clock that waiting for a limit moves on, and what passed each store by it. Threads wait side by side."""

    def __init__(self) -> None:
        self._mine = threading.local()
        self._mutex = threading.Lock()
        self.s = 0.0
        self.passed: list[tuple[str, float, int]] = []

    def __call__(self) -> dt.datetime:
        return T0 + dt.timedelta(seconds=self.s)

    @property
    def now(self) -> dt.datetime:
        return self()

    def monotonic(self) -> float:
        self._mine.s = self.s
        return self.s

    def sleep(self, seconds: float) -> None:
        self._mine.s += seconds
        with self._mutex:
            self.s = max(self.s, self._mine.s)

    def open(self, location: Location, *, pace: Pace = unpaced, **options: Any) -> Storage:
        """Open a store whose every byte is noted, with the moment at which it was let through."""

        def take(count: int) -> None:
            self.monotonic()
            pace(count)
            self.passed.append((location.url, self._mine.s, count))

        return open_storage(location, pace=take, **options)

    def at(self, store: str) -> list[tuple[float, int]]:
        return sorted((moment, count) for url, moment, count in self.passed if f"/{store}/" in url)

    def spans(self, store: str) -> list[tuple[float, int]]:
        """Return each moment at which something passed, with the bytes of the ten seconds from then on."""
        found = self.at(store)
        moments = [moment for moment, _ in found]
        return [
            (moment, sum(count for _, count in found[number : bisect_left(moments, moment + SPAN_S)]))
            for number, moment in enumerate(moments)
        ]


@pytest.fixture
def story(tmp_path: Path) -> Story:
    """A vault with two points of 3 MB each, and an empty replica of it."""
    story = Story(tmp_path)
    for seed in "ab":
        story.backup(**{seed: random.Random(seed).randbytes(3_000_000)})
    far = save_region(Region(name="far", url=str(tmp_path / "far")), actor=SERVICE, now=T0)
    presence.seen("w", [far.queue], now=T0)
    target = Vault(account=story.site.account, region=far, name="replica", type=VaultType.REPLICATION_TARGET)
    replication.start(story.site.vault, target, actor=SERVICE, now=story.now)
    return story


@pytest.fixture
def line(story: Story, monkeypatch: pytest.MonkeyPatch) -> Line:
    line = Line()
    line.s = (story.now - T0).total_seconds()
    monkeypatch.setattr(story, "clock", line)
    monkeypatch.setattr(repositories, "open_storage", line.open)
    monkeypatch.setattr(speed, "Budget", partial(Budget, clock=line.monotonic, sleep=line.sleep))
    return line


def limit(**wanted: object) -> ReplicationLink:
    link = ReplicationLink.objects.select_related("target__region", "target__account", "source", "account").get()
    return replication.limit(link, wanted, actor=SERVICE, now=T0)


def replicate(story: Story, link: ReplicationLink) -> Job:
    job = maintenance.request(link.target, Kind.REPLICATE, {}, actor=SERVICE, now=story.clock())
    done = story.do(job)
    assert (done.state, done.error) == (JobState.COMPLETE, "")
    return done


def test_no_ten_seconds_see_more_than_the_limit_at_either_end(story, line):
    replicate(story, limit(bytes_per_s=RATE, parallel_max=1))
    for store in ("store", "far"):
        assert sum(count for _, count in line.at(store)) > 6_000_000
        most = max(count for _, count in line.spans(store))
        assert 0.7 * RATE * SPAN_S < most <= RATE * SPAN_S


def test_steps_at_once_divide_the_limit(story, line):
    replicate(story, limit(bytes_per_s=RATE))  # one unit of work: one of two steps
    assert max(count for _, count in line.spans("store")) <= RATE // 2 * SPAN_S


def test_a_job_that_runs_into_a_window_goes_by_it_from_its_first_second_on(story, line):
    begins_s = line.s + 10
    window = [(T0 + dt.timedelta(seconds=moment_s)).time() for moment_s in (begins_s, begins_s + 3600)]
    by_day = {"start": window[0].isoformat(), "end": window[1].isoformat(), "bytes_per_s": SLOW}
    replicate(story, limit(bytes_per_s=RATE, parallel_max=1, windows=[by_day]))
    assert line.s > begins_s + 4 * SPAN_S
    for store in ("store", "far"):
        inside = [count for moment, count in line.spans(store) if moment >= begins_s]
        assert 0.7 * SLOW * SPAN_S < max(inside) <= SLOW * SPAN_S
    assert sum(count for moment, count in line.at("store") if moment < begins_s) > 2 * SLOW * SPAN_S


def test_without_a_limit_nothing_waits(story, line):
    began_s = line.s
    replicate(story, limit())
    assert line.s == began_s


def test_what_heals_the_source_keeps_to_the_limit_too(story, line, tmp_path):
    replicate(story, limit())
    packs = (path for path in (tmp_path / "store").rglob("packs/*/*") if path.is_file())
    pack = max(packs, key=lambda path: path.stat().st_size)
    pack.chmod(0o600)
    pack.write_bytes(pack.read_bytes()[:-5000] + bytes(5000))
    assert story.maintain(Kind.VERIFY, level="scrub").state == JobState.FAILED
    line.passed.clear()
    job = replicate(story, limit(bytes_per_s=RATE, parallel_max=1))
    assert job.report["healed_at_source"] == [pack.name]
    assert sum(count for _, count in line.at("store")) > 3 * 3_000_000  # read as damaged, put back, and read again
    for store in ("store", "far"):
        assert max(count for _, count in line.spans(store)) <= RATE * SPAN_S


@pytest.mark.rule("C37")
def test_what_is_changed_later_holds_for_the_next_job(story, line):
    story.sweep()
    link = limit(bytes_per_s=RATE)
    job = maintenance.request(link.target, Kind.REPLICATE, {}, actor=SERVICE, now=story.clock())
    limit(bytes_per_s=SLOW)
    job.refresh_from_db()
    assert load(job.limits).bytes_per_s == RATE
    assert story.do(job).state == JobState.COMPLETE
    story.backup(more=b"more")  # the duty is due at once
    [following] = [job for job in story.sweep() if job.kind == Kind.REPLICATE]
    assert load(following.limits).bytes_per_s == SLOW


def test_other_maintenance_of_a_replica_has_no_limits(story):
    link = limit(bytes_per_s=RATE)
    assert maintenance.request(link.target, Kind.PRUNE, {}, actor=SERVICE, now=story.clock()).limits == {}
