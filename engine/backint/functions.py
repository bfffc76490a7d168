"""What HANA can ask for: backup, restore, inquire, delete. Each yields the lines of its output as they become true."""

import logging
import platform
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import NamedTuple

import msgspec

from engine.backint.catalogue import Backup, Catalogue
from engine.backint.crew import Crew, Done, Lane, Waking
from engine.backint.directives import Directive, line
from engine.backint.parameters import Parameters, clock, opener, series_of
from engine.errors import EngineError, PointMissing, SourceIncomplete
from engine.ids import new_ulid
from engine.progress import Silent
from engine.runner import VaultOpener, run
from engine.sources.backint import BackintSource, entry_path
from engine.targets.backint import BackintTarget
from engine.vault import PointName
from engine.verbs import backup, expire, restore
from engine.verbs.backup import BackupJob
from engine.verbs.expire import ExpireJob
from engine.verbs.reap import shown_name
from engine.verbs.restore import RestoreJob

_NAME_MAX = 64
_LOG = "log_backup_"
_TIMESTAMPS_SINCE = (1, 50)
_log = logging.getLogger("engine.backint")


class Asked(NamedTuple):
    """One call of HANA: `database` is -u, `level` is -l, `backup` is -s; `version` is what #SOFTWAREID told."""

    function: str
    database: str
    level: str
    backup: str
    version: tuple[int, int]


class _Asking(Silent):
    """Progress that nobody counts, and that ends when HANA asked to stop."""

    def __init__(self, check: Callable[[], None]) -> None:
        super().__init__()
        self.check = check  # type: ignore[method-assign] # the caller's, as it is


class Wanted(NamedTuple):
    """One object that a restore is asked for, and the point that has it."""

    name: str
    destination: str
    found: Backup


class Agent:
    """Answers one call. `check` raises Canceled when HANA asked to stop."""

    def __init__(self, asked: Asked, parameters: Parameters, check: Callable[[], None]) -> None:
        self._asked, self._parameters, self._check = asked, parameters, check
        self._opener = opener(parameters)

    def answer(self, lines: list[Directive]) -> Iterator[Done]:
        """Yield one line or more for each directive. Raises EngineError when nothing can be answered any more."""
        functions = {"backup": self._backup, "restore": self._restore, "inquire": self._inquire, "delete": self._delete}
        if lines and self._asked.function != "backup":
            assert self._catalogue is not None  # a vault that can't be opened is tried once, not for every line
        yield from functions[self._asked.function](lines)

    @property
    def _own_series(self) -> str:
        return series_of(self._parameters.prefix, self._asked.database)

    @property
    def _read_series(self) -> str:
        return series_of(self._parameters.prefix, self._parameters.reads_from or self._asked.database)

    @cached_property
    def _catalogue(self) -> Catalogue:
        series = self._own_series if self._asked.function == "delete" else self._read_series
        return Catalogue(self._opener.vault, series, self._parameters.cache)

    def _backup(self, lines: list[Directive]) -> Iterator[Done]:
        """Make one point of each object. Every pipe has a lane of its own; files share as many as there are cores."""
        processes = self._parameters.processes
        pipes = [number for number, one in enumerate(lines) if one.keyword == "PIPE"]
        files = [number for number, one in enumerate(lines) if one.keyword == "FILE"]
        lanes = [Lane([number]) for number in pipes]
        lanes += [Lane(files[number::processes]) for number in range(min(processes, len(files)))]
        host = platform.node() or "localhost"

        def act(vault: VaultOpener, number: int, wake: int) -> Done:
            return self._back_up(vault, lines[number], host, wake)

        yield from self._spread(lanes, act, lambda number: [lines[number].words[0]])

    def _back_up(self, vault: VaultOpener, one: Directive, host: str, wake: int) -> Done:
        name, now = one.words[0], clock()
        patience = self._parameters
        source = BackintSource(
            name=name, host=host, database=self._asked.database, is_pipe=one.keyword == "PIPE",
            level=self._asked.level, backup=self._asked.backup,
            open_s=patience.open_timeout_s, idle_s=patience.idle_timeout_s, wake=wake,
        )  # fmt: skip
        job = BackupJob(
            session=new_ulid(now), series=self._own_series, source=source, started_at=now,
            name=name.rpartition("/")[2][:_NAME_MAX], retention_days=patience.retention_days,
        )  # fmt: skip
        outcome = run(vault, backup, job, workers=1, progress=Waking(wake), clock=clock)
        if outcome.state != "complete":
            raise SourceIncomplete(f"point {outcome.point} lacks something: {outcome.problems}")
        stats = outcome.stats
        return Done(
            f"{line('SAVED', outcome.point, name)} {stats.bytes}", True,
            f"saved {name}: {stats.bytes} bytes, {stats.bytes_new} new, {stats.bytes_stored} stored",
        )  # fmt: skip

    def _restore(self, lines: list[Directive]) -> Iterator[Done]:
        """Write each object where HANA wants it. All pipes at once, but logs one by one: HANA opens them so."""
        wanted: list[Wanted] = []
        for one in lines:
            found = self._wanted(one)
            if isinstance(found, Done):
                yield found
            else:
                wanted.append(found)
        logs = [number for number, one in enumerate(wanted) if one.name.rpartition("/")[2].startswith(_LOG)]
        lanes = [Lane([number]) for number in sorted(set(range(len(wanted))) - set(logs))]
        lanes += [Lane(logs)] if logs else []

        def act(vault: VaultOpener, number: int, wake: int) -> Done:
            return self._give_back(vault, wanted[number], wake)

        yield from self._spread(lanes, act, lambda number: [wanted[number].name])

    def _wanted(self, one: Directive) -> Wanted | Done:
        """Return what the line asks for, with its point; else the answer."""
        ebid, words = (one.words[0], one.words[1:]) if one.keyword == "EBID" else ("", one.words)
        name = words[0]
        try:
            entry_path(name)
            found = self._found(ebid, name)
        except EngineError as error:
            return _failed([name], str(error))
        if found is None:
            return Done(line("NOTFOUND", name), False, f"there is no backup {ebid} of {name} in {self._read_series}")
        return Wanted(name, words[1] if len(words) > 1 else name, found)

    def _found(self, ebid: str, name: str) -> Backup | None:
        """Return the point of this id and name (either may be empty), the newest of the name without an id."""
        if not ebid:
            return next(iter(self._catalogue.newest_first(name)), None)
        found = self._catalogue.find(ebid)
        return found if found is not None and name in ("", found.known.name) else None

    def _give_back(self, vault: VaultOpener, wanted: Wanted, wake: int) -> Done:
        ebid, now = wanted.found.ebid, clock()
        target = BackintTarget(
            destination=wanted.destination, is_pipe=wanted.found.known.is_pipe,
            open_s=self._parameters.open_timeout_s, idle_s=self._parameters.idle_timeout_s, wake=wake,
        )  # fmt: skip
        job = RestoreJob(
            session=new_ulid(now), series=self._read_series, point=ebid, target=target, started_at=now,
        )  # fmt: skip
        try:
            outcome = run(vault, restore, job, workers=1, progress=Waking(wake), clock=clock)
        except PointMissing as error:
            return Done(line("NOTFOUND", wanted.name), False, str(error))
        if outcome.state != "complete" or outcome.files != 1:
            return _failed([wanted.name], "; ".join(one.detail for one in outcome.problems) or "nothing was restored")
        return Done(line("RESTORED", ebid, wanted.name), True, f"restored {wanted.name}: {outcome.bytes} bytes")

    def _inquire(self, lines: list[Directive]) -> Iterator[Done]:
        """Say which backups there are, newest first."""
        for one in lines:
            ebid = one.words[0] if one.keyword == "EBID" else ""
            names = one.words[1:2] if one.keyword == "EBID" else one.words[:1]
            given = [word for word in (ebid, *names) if word]
            try:
                if ebid:
                    single = self._found(ebid, *names or [""])
                    found = [] if single is None else [single]
                else:
                    found = self._catalogue.newest_first(*names)
            except EngineError as error:
                yield _failed(given, str(error))
                continue
            if not found:
                yield Done(line("NOTFOUND", *given), True)
            for backup_ in found:
                yield Done(self._shown(backup_), True)
        for ebid, why in self._catalogue.damaged.items():
            _log.error("%s is not listed: %s", ebid, why)

    def _shown(self, one: Backup) -> str:
        words = [one.ebid, one.known.name]
        if self._asked.version >= _TIMESTAMPS_SINCE:
            words.append(one.timestamp)
        return line("BACKUP", *words)

    def _delete(self, lines: list[Directive]) -> Iterator[Done]:
        """Delete what HANA names, all in one expiry; what is locked or held stays, and the log says until when."""
        going: dict[PointName, list[str]] = {}
        for one in lines:
            ebid, name = one.words[:2]
            try:
                found = self._found(ebid, name)
            except EngineError as error:
                yield _failed([ebid, name], str(error))
                continue
            if found is None:
                yield Done(line("NOTFOUND", ebid, name), True)
            else:
                going[self._catalogue.place(ebid)] = [ebid, name]
        if going:
            yield from self._expire(going)

    def _expire(self, going: dict[PointName, list[str]]) -> Iterator[Done]:
        now = clock()
        # Confirmed: HANA names each of them, and its own catalogue has forgotten them already.
        job = ExpireJob(
            run=new_ulid(now), started_at=now, points=tuple(shown_name(name) for name in going),
            reason=f"deleted by SAP HANA {self._asked.database}", confirmed=True,
        )  # fmt: skip
        try:
            outcome = run(self._opener, expire, job, workers=1, progress=_Asking(self._check), clock=clock)
        except EngineError as error:
            yield from (_failed(words, str(error)) for words in going.values())
            return
        refused = {one.point: one.reason for one in outcome.refused}
        gone = {*outcome.expired, *outcome.missing}
        for name, words in going.items():
            shown = shown_name(name)
            if shown in refused or shown not in gone:
                yield _failed(words, refused.get(shown, "it is visible again: a hold or a lock came first"))
            else:
                yield Done(line("DELETED", *words), True, f"deleted {words[1]} {words[0]}")

    def _spread(
        self, lanes: list[Lane], act: Callable[[VaultOpener, int, int], Done], words: Callable[[int], list[str]]
    ) -> Iterator[Done]:
        if not lanes:
            return
        # Processes open the vault themselves: nothing that is open here goes over the fork.
        crew = Crew(msgspec.structs.replace(self._opener), act, lambda number, why: _failed(words(number), why))
        yield from crew.run(lanes, processes=self._parameters.processes, check=self._check)


def refuse(asked: Asked, lines: list[Directive], why: str) -> Iterator[Done]:
    """Yield #ERROR for each directive, as its function writes it."""
    for one in lines:
        words = one.words[:2] if one.keyword == "EBID" else one.words[:1]
        if asked.function == "restore" and one.keyword == "EBID":
            words = one.words[1:2]
        yield _failed(words, why)


def _failed(words: list[str], why: str) -> Done:
    return Done(line("ERROR", *words), False, f"{' '.join(words)}: {why}")
