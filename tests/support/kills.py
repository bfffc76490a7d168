"""Real processes on one vault that are killed, stopped and continued at random moments.

`python -m tests.support.kills FOLDER --kills 1000` runs backups, restores, expiry, prunes and compactions beside each
other, each in a process of its own, and sends SIGKILL (or SIGSTOP, and SIGCONT once the session's lease is over) to
one after the other. Then every point that is there must be whole and must hold exactly what its folder held, and no
backup that reported success may be missing but by expiry. Every folder describes itself: it holds the digests of its
own files, so that a point proves its content without anybody's memory.
"""

import argparse
import contextlib
import datetime as dt
import hashlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from engine.errors import EngineError
from engine.ids import new_ulid
from engine.keyproviders.keyring import Keyring
from engine.keyproviders.spec import KeySpec
from engine.progress import Silent
from engine.retention import Rules
from engine.runner import VaultOpener, run
from engine.sources.files import files_source
from engine.storage import Directory
from engine.storage.location import Location
from engine.targets.files import files_target
from engine.vault import PointName, Vault
from engine.verbs import backup, compact, expire, prune, restore, verify
from engine.verbs.needs import look

KEPT = 4
LEASE_S = 2
STOP_S = LEASE_S + 1.5
SERIES = ("a", "b")
MANIFEST = "digests.json"


class Failed(Exception):
    """What must never happen has happened."""


class Tally(NamedTuple):
    """How the run went: signals sent, and how the processes ended, by verb and end."""

    kills: int
    stops: int
    ends: dict[str, int]
    points: int


def clock() -> dt.datetime:
    """Return the moment."""
    return dt.datetime.now(dt.UTC)


def write_tree(folder: Path, rng: random.Random) -> None:
    """Change some files of a folder, and write down what it holds now."""
    folder.mkdir(exist_ok=True)
    for _ in range(rng.randrange(1, 6)):
        (folder / f"f{rng.randrange(30)}").write_bytes(rng.randbytes(rng.choice((10, 3_000, 90_000))))
    (folder / f"f{rng.randrange(30)}").unlink(missing_ok=True)
    digests = {path.name: digest(path) for path in folder.iterdir() if path.name != MANIFEST}
    (folder / MANIFEST).write_text(json.dumps(digests))


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def assert_tree(folder: Path, what: str) -> None:
    """Raise Failed unless a restored folder holds just what it says."""
    digests = json.loads((folder / MANIFEST).read_text())
    found = {path.name: digest(path) for path in folder.iterdir() if path.name != MANIFEST}
    if found != digests:
        raise Failed(f"{what} came back with other content")


class Site:
    """A vault in a folder, and the verbs as one process does them. `tell` is called with the point of a success."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ring = Keyring.generate()
        Vault.create(Directory(str(folder / "vault"), create=True), providers=[self.ring], now=clock())

    def opener(self) -> VaultOpener:
        """Return a fresh opener: an open vault is never taken over a fork."""
        place = Location.parse(str(self.folder / "vault"))
        key = KeySpec.parse("keyring:", secret=self.ring.text())
        return VaultOpener(location=place, key=key, cache=str(self.folder / "cache"))

    def tree(self, series: str) -> Path:
        return self.folder / f"tree-{series}"

    def back_up(self, series: str, *, workers: int = 1) -> str:
        source = files_source([str(self.tree(series))], host="host")
        job = backup.BackupJob(session=new_ulid(clock()), series=series, source=source, started_at=clock())
        return run(self.opener(), backup, job, workers=workers, progress=Silent(), clock=clock).point

    def restore(self, name: PointName, into: Path) -> None:
        shutil.rmtree(into, ignore_errors=True)
        into.mkdir()
        job = restore.RestoreJob(
            session=new_ulid(clock()), series=name.series, point=name.point, target=files_target(str(into)),
            started_at=clock(),
        )  # fmt: skip
        outcome = run(self.opener(), restore, job, workers=1, progress=Silent(), clock=clock)
        if outcome.state != "complete":
            raise Failed(f"{name} could not be restored: {outcome.problems}")
        assert_tree(into / str(self.tree(name.series)).lstrip("/"), str(name))

    def restore_newest(self) -> None:
        points = self.opener().vault.points()
        if points:
            self.restore(points[-1], self.folder / f"back-{os.getpid()}")
            shutil.rmtree(self.folder / f"back-{os.getpid()}", ignore_errors=True)

    def expire(self) -> None:
        job = expire.ExpireJob(
            run=new_ulid(clock()), started_at=clock(), default=Rules(days=0, last=KEPT), confirmed=True, lease_s=LEASE_S
        )
        run(self.opener(), expire, job, workers=1, progress=Silent(), clock=clock)

    def prune(self) -> prune.Outcome:
        job = prune.PruneJob(run=new_ulid(clock()), started_at=clock(), lease_s=LEASE_S)
        outcome = run(self.opener(), prune, job, workers=1, progress=Silent(), clock=clock)
        if outcome.findings:
            raise Failed(f"a prune found damage: {outcome.findings}")
        return outcome

    def compact(self) -> None:
        job = compact.CompactJob(
            session=new_ulid(clock()), run=new_ulid(clock()), started_at=clock(), dead_share=0.1, bytes_max=64 << 20
        )
        outcome = run(self.opener(), compact, job, workers=1, progress=Silent(), clock=clock)
        if outcome.findings or outcome.left:
            raise Failed(f"a compaction found damage: {outcome.findings} {outcome.left}")

    def verify(self) -> None:
        job = verify.VerifyJob(session=new_ulid(clock()), level="content", started_at=clock())
        outcome = run(self.opener(), verify, job, workers=1, progress=Silent(), clock=clock)
        if outcome.findings:
            raise Failed(f"the vault is damaged: {outcome.findings}")


class Child:
    """One verb in a process of its own. It ends with `ok`, `failed` or `wrong`, or is killed."""

    def __init__(self, site: Site, verb: str, act: Callable[[], object]) -> None:
        self.verb = verb
        self._receiver, self._sender = multiprocessing.Pipe(duplex=False)
        self.process = multiprocessing.get_context("fork").Process(target=self._run, args=(act,))
        self.process.start()
        self._sender.close()
        self.continue_at_s = 0.0

    def _run(self, act: Callable[[], object]) -> None:
        os.setsid()
        try:
            self._sender.send(("ok", str(act())))
        except Failed as error:
            self._sender.send(("wrong", str(error)))
        except EngineError as error:
            self._sender.send(("failed", f"{type(error).__name__}: {error}"))

    def signal(self, number: int) -> None:
        """Signal the process and those that it started, if it is still there."""
        assert self.process.pid
        try:
            os.killpg(self.process.pid, number)
        except ProcessLookupError:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.process.pid, number)  # before its setsid

    def end(self) -> tuple[str, str]:
        """Return how it ended and what it said."""
        try:
            said = self._receiver.recv() if self._receiver.poll() else None
        except EOFError:
            said = None
        self._receiver.close()
        if said is not None:
            return (str(said[0]), str(said[1]))
        return ("killed" if self.process.exitcode == -signal.SIGKILL else "crashed", str(self.process.exitcode))


class Loop:
    """Keeps one process of each kind going, and disturbs them."""

    def __init__(self, site: Site, rng: random.Random, *, kills: int) -> None:
        self._site, self._rng, self._left = site, rng, kills
        self._kills = kills
        self._stops = 0
        self._ends: Counter[str] = Counter()
        self.promised: dict[str, list[str]] = {series: [] for series in SERIES}
        self._acts: dict[str, Callable[[], object]] = {
            **{f"backup-{series}": partial(site.back_up, series) for series in SERIES},
            "restore": site.restore_newest, "expire": site.expire, "prune": site.prune, "compact": site.compact,
        }  # fmt: skip

    def run(self) -> Tally:
        """Go on until all kills are done and all processes have ended by themselves."""
        children = {verb: self._start(verb) for verb in self._acts}
        try:
            self._watch(children)
        finally:
            for child in children.values():
                child.signal(signal.SIGKILL)
        return Tally(self._kills, self._stops, dict(self._ends), len(self._site.opener().vault.points()))

    def _watch(self, children: dict[str, Child]) -> None:
        next_s = time.monotonic()
        while children:
            for verb, child in list(children.items()):
                if child.continue_at_s and time.monotonic() >= child.continue_at_s:
                    child.continue_at_s = 0.0
                    child.signal(signal.SIGCONT)
                if not child.process.is_alive():
                    del children[verb]
                    self._note(child)
                    if self._left:
                        children[verb] = self._start(verb)
            if self._left and time.monotonic() >= next_s:
                next_s = time.monotonic() + self._rng.uniform(0.02, 0.35)
                if awake := [child for child in children.values() if not child.continue_at_s]:
                    self._disturb(self._rng.choice(awake))
            time.sleep(0.005)

    def _start(self, verb: str) -> Child:
        if verb.startswith("backup-"):
            write_tree(self._site.tree(verb[-1]), self._rng)
        return Child(self._site, verb, self._acts[verb])

    def _disturb(self, child: Child) -> None:
        if not child.process.is_alive():
            return
        if self._rng.random() < 0.1:
            child.continue_at_s = time.monotonic() + STOP_S
            self._stops += 1
            child.signal(signal.SIGSTOP)
        else:
            self._left -= 1
            child.signal(signal.SIGKILL)

    def _note(self, child: Child) -> None:
        child.process.join()
        end, said = child.end()
        self._ends[f"{child.verb.partition('-')[0]} {end}"] += 1
        if end in ("wrong", "crashed"):
            raise Failed(f"{child.verb}: {said}")
        if end == "failed" and not said.startswith(("SessionFenced", "PointMissing", "NotFound", "MissingObject")):
            raise Failed(f"{child.verb} failed: {said}")
        if end == "ok" and child.verb.startswith("backup-"):
            self.promised[child.verb[-1]].append(said)


def prove(site: Site, promised: dict[str, list[str]]) -> None:
    """Raise Failed unless every point is whole and every success is there, and garbage goes."""
    points = site.opener().vault.points()
    visible = {name.point for name in points}
    for series in SERIES:
        newest = [name.point for name in points if name.series == series][-KEPT:]
        lost = [point for point in promised[series] if point not in visible and point >= min(newest, default="")]
        if lost:
            raise Failed(f"these were reported as done and are not there: {lost}")
    site.verify()
    for name in points:
        site.restore(name, site.folder / "proof")
    time.sleep(LEASE_S + 0.5)
    for _ in range(3):
        outcome = site.prune()
        if outcome.waiting:
            raise Failed("a prune waits for sessions that are dead")
    vault = site.opener().vault
    present = {s.key.rpartition("/")[2] for folder in ("packs/", "meta/") for s in vault.storage.scan(folder)}
    if garbage := present - look(vault, Silent()).packs.keys():
        raise Failed(f"{len(garbage)} packs that nothing needs are still there: {outcome}")
    site.verify()


def torment(folder: Path, *, kills: int, seed: int) -> Tally:
    """Run the loop in an empty folder, prove the vault, and return how it went. Raises Failed."""
    rng = random.Random(seed)
    site = Site(folder)
    write_tree(site.tree(SERIES[0]), rng)
    site.back_up(SERIES[0])  # here, so that every process inherits what a backup leaves in memory
    loop = Loop(site, rng, kills=kills)
    tally = loop.run()
    prove(site, loop.promised)
    return tally


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    sys.stdout.write(f"{torment(given.folder, kills=given.kills, seed=given.seed)}\n")
