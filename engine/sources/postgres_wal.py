"""The write-ahead log of a PostgreSQL server, gathered in a folder of the host (PITR)."""

import contextlib
import datetime as dt
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from engine import halt
from engine.connections import walfiles
from engine.connections.pgnames import WAL
from engine.connections.postgres import Client, literal, source_error
from engine.connections.process import end, quoted, start
from engine.entries import Entry, Problem
from engine.errors import SourceError, SourceMissing, SourceUnavailable
from engine.sources.attributes import Attributes
from engine.sources.breath import breathing
from engine.sources.reading import READ, FileReader

_SYSTEM = ".system"
_TICK_S = 0.05
_DAY_NS = 86_400_000_000_000
_MARGIN_NS = 3_600_000_000_000  # clocks of the host and of whoever starts jobs may differ by so much
_STATE = """
SELECT json_build_object('active', active, 'status', wal_status,
  'behind', coalesce(pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn), 0))
FROM pg_replication_slots WHERE slot_name = {slot}
"""
# Reserved at once: pg_receivewal would make one that keeps nothing before it streams for the first time.
_NEW_SLOT = "SELECT to_json(slot_name) FROM pg_create_physical_replication_slot({slot}, true)"
_SWITCH = """
SELECT json_build_object('end', ended.at::text, 'name', pg_walfile_name(ended.at),
  'size', (SELECT setting::bigint FROM pg_settings WHERE name = 'wal_segment_size'))
FROM (SELECT pg_switch_wal() AS at OFFSET 0) AS ended
"""


class Keeping(NamedTuple):
    """How long segments stay in the spool: `held` is when the run began whose complete point is the newest."""

    days: int
    held: dt.datetime | None


@dataclass(frozen=True)
class Spool:
    """The folder that pg_receivewal fills through a replication slot, or that archive_command fills (`archive`).

    The slot makes the server keep what the folder doesn't have yet. Written by one run at a time: the slot admits one.
    """

    client: Client
    folder: Path
    slot: str
    archive: bool = False

    def check(self) -> None:
        """Raise SourceMissing for a folder that is not there, SourceError for one that is another server's."""
        if not self.folder.is_dir():
            raise SourceMissing(f"the folder {str(self.folder)!r} does not exist on this host: make it first")
        wanted, word = (os.R_OK, "readable") if self.archive else (os.R_OK | os.W_OK, "writable")
        if not os.access(self.folder, wanted | os.X_OK):
            raise SourceError(f"the folder {str(self.folder)!r} is not {word} for this worker's account")
        mark = self.folder / _SYSTEM
        if not self.archive and mark.exists() and mark.read_text() != self.client.system():
            raise SourceError(
                f"the folder {str(self.folder)!r} holds the log of another server (or of this one before it was made "
                "anew): name an empty folder and take a base backup"
            )

    def fill(self, *, warn_bytes: int) -> Iterator[Problem | None]:
        """Bring the folder up to this moment; yield what people should know, and None while it takes long.

        Raises SourceError and its kinds.
        """
        if self.archive:
            state = None
        else:
            state = self.client.ask(_STATE.format(slot=literal(self.slot)))
            if state is None:
                self.client.ask(_NEW_SLOT.format(slot=literal(self.slot)))
            elif state["active"]:
                raise SourceUnavailable(f"the replication slot {self.slot!r} is in use: does another run read the log?")
            (self.folder / _SYSTEM).write_text(self.client.system())
        last = self.client.ask(_SWITCH)
        if self.archive:
            yield from breathing(lambda: self._await_archived(last))
        else:
            whole = (walfiles.position(last["end"]) - 1) // last["size"] * last["size"] + last["size"] - 1
            end = f"{whole >> 32:X}/{whole & 0xFFFFFFFF:X}"
            yield from breathing(lambda: self._run("--no-loop", "--endpos", end))
        if state and (state["behind"] > warn_bytes or state["status"] not in ("reserved", "extended")):
            yield Problem(
                *(WAL.rstrip(b"/"), "lag"),
                f"the server kept {state['behind'] >> 20} MiB of log for this backup (state: {state['status']}): "
                "run it more often, or its disk may fill",
                lost=False,
            )

    def trim(self, keeping: Keeping) -> None:
        """Delete segments that are older than the newest by `days` and that a complete point is known to hold."""
        if self.archive or keeping.held is None or not keeping.days:
            return
        segments = [(path, path.stat().st_mtime_ns) for path in self._files() if walfiles.SEGMENT.fullmatch(path.name)]
        newest_ns = max((mtime_ns for _, mtime_ns in segments), default=0)
        held_ns = int(keeping.held.timestamp() * 1e9) - _MARGIN_NS
        for path, mtime_ns in segments:
            if mtime_ns < min(held_ns, newest_ns - keeping.days * _DAY_NS):
                path.unlink()

    def entries(self) -> Iterator[Entry | Problem]:
        """Yield the folder's files of the log, in listing order, and what is wrong with them."""
        attributes = Attributes()
        segments: dict[str, int] = {}
        for path in self._files():
            try:
                status = path.stat()
            except FileNotFoundError:
                continue  # whoever cleans an archive up has just removed it
            entry = attributes.entry(WAL + path.name.encode(), status, 0)
            if entry is None:
                continue
            yield entry
            if walfiles.SEGMENT.fullmatch(path.name):
                segments[path.name] = status.st_size
        if not segments:
            raise SourceError(f"the folder {str(self.folder)!r} holds no segment of a log")
        size = max(segments.values())
        for name in (name for name, length in segments.items() if length != size):
            yield Problem(WAL + name.encode(), "damaged", "the segment is shorter than the others")
        for first, last in walfiles.gaps(segments, size):
            yield Problem(
                *(WAL + first.encode(), "vanished"),
                f"the log is missing from here to {last}: nothing behind it can be reached from an older base backup; "
                "take a new one, then remove the segments before it from the folder",
            )

    def open(self, entry: Entry) -> FileReader | Problem:
        """Open a file of the log."""
        try:
            fd = os.open(self.folder / os.fsdecode(entry.path.removeprefix(WAL)), READ)
        except OSError as error:
            reason = "vanished" if isinstance(error, FileNotFoundError) else "unreadable"
            return Problem(entry.path, reason, error.strerror or str(error))
        status = os.fstat(fd)
        fresh = Attributes().entry(entry.path, status, 0)
        if fresh is None or fresh.kind != entry.kind:
            os.close(fd)
            return Problem(entry.path, "changed", "something else stands at this path than when it was listed")
        return FileReader(fd, fresh, status)

    def _files(self) -> list[Path]:
        known = (walfiles.SEGMENT, walfiles.BESIDE)
        return sorted(
            (path for path in self.folder.iterdir() if any(one.fullmatch(path.name) for one in known)),
            key=lambda path: path.name,
        )

    def _await_archived(self, last: dict[str, Any]) -> None:
        """Wait until the server has put the segment that just ended into the folder."""
        path = self.folder / last["name"]
        deadline_s = time.monotonic() + self.client.idle_s
        while not path.exists() or path.stat().st_size < last["size"]:
            if time.monotonic() > deadline_s:
                raise SourceUnavailable(
                    f"archive_command has not put {path.name} into {str(self.folder)!r} within "
                    f"{self.client.idle_s:g} s: the server's view pg_stat_archiver tells why"
                )
            halt.sleep(_TICK_S)

    def _run(self, *options: str) -> None:
        """Run pg_receivewal to its end; what writes nothing into the folder for `idle_s` hangs."""
        argv = [self.client.program("pg_receivewal"), "-w", "-D", str(self.folder), "-S", self.slot, *options]
        with tempfile.TemporaryFile() as errors:
            process = start(argv, env=self.client.env(), errors=errors, stdin=subprocess.DEVNULL, stdout=errors)
            try:
                seen, deadline_s = -1, 0.0
                while process.poll() is None:
                    now_s = time.monotonic()
                    if (written := self._written()) != seen:
                        seen, deadline_s = written, now_s + self.client.idle_s
                    elif now_s > deadline_s:
                        raise SourceUnavailable(f"pg_receivewal has written nothing for {self.client.idle_s:g} s")
                    halt.sleep(_TICK_S)
                if process.returncode:
                    raise source_error("pg_receivewal", quoted(errors))
            finally:
                end(process)

    def _written(self) -> int:
        """Return the time of the newest change in the folder."""
        newest = 0
        with os.scandir(self.folder) as found:
            for one in found:
                with contextlib.suppress(FileNotFoundError):  # renamed meanwhile
                    newest = max(newest, one.stat().st_mtime_ns)
        return newest
