"""What targets of wide-column services share: tables made from descriptions, rows in batches, a proof at the end."""

from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import msgspec

from engine.connections.tables import (
    FINISH,
    FORMAT,
    SCHEMA,
    Denied,
    Fault,
    Gone,
    Pace,
    Place,
    Range,
    Schema,
    Service,
    Silent,
    Tally,
    is_end,
    place_of,
)
from engine.entries import Entry, Problem
from engine.errors import TargetDenied, TargetFailed, TargetNotEmpty, TargetUnavailable, UnsafePath
from engine.perprocess import PerProcess
from engine.targets.port import BaseTarget

_THREADS = 4
_AHEAD = 2 * _THREADS
_TEXT_BYTES = 64 << 20


class TablesTarget(BaseTarget, frozen=True, kw_only=True):
    """Makes tables of the point's names with `suffix` behind them, fills them, and compares them with the point.

    A table that holds rows is refused unless `overwrite` is set: then rows of the same keys are replaced, others stay,
    and nothing is compared. `verify` reads each made table once more. `rows_per_s` bounds what is written.
    """

    suffix: str = ""
    overwrite: bool = False
    verify: bool = True
    rows_per_s: float = 0

    def connect(self) -> Service:
        """Return the service; its kind says how."""
        raise NotImplementedError

    @property
    def service_name(self) -> str:
        """Return what descriptions call the service."""
        raise NotImplementedError

    @property
    def one_by_one(self) -> bool:
        """Say yes: rows need their table, and what ends a table needs its rows."""
        return True

    @property
    def _service(self) -> Service:
        return self._connected()

    @cached_property
    def _connected(self) -> PerProcess[Service]:
        return PerProcess(_told()(self.connect))

    @cached_property
    def _held(self) -> dict[str, bool]:
        return {}

    @cached_property
    def _tables(self) -> dict[str, "_Table"]:
        return {}

    def check(self) -> None:
        """List the tables: raises TargetDenied and TargetUnavailable."""
        with _told():
            self._service.tables()

    def existing(self, path: bytes) -> int | None:
        """Raise TargetNotEmpty for a file of a table that holds rows, unless they may be overwritten."""
        table = self._name(_place(path))
        if table not in self._held:
            with _told():
                self._held[table] = not self.overwrite and self._service.holds_rows(table)
        if self._held[table]:
            raise TargetNotEmpty(
                f"the table {table} holds rows: restore with a suffix for the tables' names, "
                "or set overwrite to put the point's rows over them"
            )
        return None

    def _name(self, place: Place) -> str:
        return place.table + self.suffix

    def _table(self, place: Place) -> "_Table":
        name = self._name(place)
        if name not in self._tables:
            self._tables[name] = _Table(self, self._service, name)
        return self._tables[name]

    def create(self, entry: Entry) -> "_TextWriter | _RowsWriter":
        """Begin a table's description, a range of its rows, or its end."""
        place = _place(entry.path)
        table = self._table(place)
        if place.kind == SCHEMA:
            return _TextWriter(entry, table.make)
        if place.kind == FINISH:
            return _TextWriter(entry, table.finish)
        return _RowsWriter(entry, table, place.part)


class _Table:
    """One table on its way; `ranges` are the ranges of rows that were written whole, with what they added up to."""

    def __init__(self, target: TablesTarget, service: Service, name: str) -> None:
        self.target, self.service, self.name = target, service, name
        self.pace = Pace(target.rows_per_s)
        self.ranges: dict[Range, Tally] = {}
        self._schema: Schema | None = None
        self._made = False

    @property
    def schema(self) -> Schema:
        """Return the description that the table was made from; of a table that is there, its own."""
        if self._schema is None:
            with _told():
                try:
                    self._schema = self.service.describe(self.name).schema
                except Gone:
                    raise TargetFailed(f"there is no table {self.name}: restore its {SCHEMA} with the rows") from None
        return self._schema

    def make(self, entry: Entry, data: bytes) -> list[Problem]:
        schema = self._read(entry, data)
        if isinstance(schema, Problem):
            return [schema]
        with _told():
            self._made = self.service.create(self.name, schema)
        self._schema = schema
        return []

    def finish(self, entry: Entry, data: bytes) -> list[Problem]:
        """Compare, then set what waited for the rows. The table keeps what was written whatever comes out."""
        after = self._read(entry, data)
        if isinstance(after, Problem):
            return [after]
        problems = self._compare(entry)
        with _told():
            missed = self.service.settle(self.name, self.schema | {"after": after["after"]})
        return problems + [Problem(entry.path, "attributes", f"not set: {what}", lost=False) for what in missed]

    def _compare(self, entry: Entry) -> list[Problem]:
        if not self.target.verify:
            return []
        if self.target.overwrite and not self._made:
            detail = "not compared: the table was there and may hold rows that are not the point's"
            return [Problem(entry.path, "attributes", detail, lost=False)]
        whole = {part.number for part in self.ranges}
        if not whole or whole != set(range(1, next(iter(self.ranges)).total + 1)):
            return []  # a part of the table was chosen, or its loss has been told
        wanted, found = Tally(), Tally()
        for tally in self.ranges.values():
            wanted.merge(tally)
        with _told():
            for page in self.service.pages(self.name, self.schema, Range()):
                found.add(page.lines)
        if found == wanted:
            return []
        detail = f"the table has {found.rows} rows that add up to {found.digest}, not {wanted.rows} to {wanted.digest}"
        return [Problem(entry.path, "write-failed", detail)]

    def _read(self, entry: Entry, data: bytes) -> "Schema | Problem":
        try:
            found: Schema = msgspec.json.decode(data, type=dict[str, Any])
        except msgspec.DecodeError as error:
            return Problem(entry.path, "damaged", f"it describes no table: {error}")
        if found.get("service") != self.target.service_name:
            wrong = f"it is a table of {found.get('service')}, which {self.target.service_name} can't take"
            return Problem(entry.path, "write-failed", wrong)
        if found.get("format") != FORMAT:
            return Problem(entry.path, "write-failed", "its description is of a newer format")
        return found


class _TextWriter:
    """Gathers a small file and hands it on (the Writer port)."""

    def __init__(self, entry: Entry, done: Any) -> None:
        self._entry, self._done, self._data = entry, done, bytearray()

    def write(self, data: memoryview, offset: int) -> None:
        if len(self._data) + len(data) > _TEXT_BYTES:
            raise OSError(0, "it is too large for a description of a table")
        self._data += data

    def commit(self) -> list[Problem]:
        problems: list[Problem] = self._done(self._entry, bytes(self._data))
        return problems

    def abort(self) -> None: ...


class _RowsWriter:
    """Cuts a range of rows into batches that several threads write (the Writer port). Memory: _AHEAD batches."""

    def __init__(self, entry: Entry, table: _Table, part: Range) -> None:
        self._entry, self._table, self._part = entry, table, part
        self._rows_most, self._bytes_most = table.service.batch
        self._schema = table.schema
        self._rest = b""
        self._end = b""
        self._batch: list[bytes] = []
        self._batch_bytes = 0
        self._tally = Tally()
        self._pool = ThreadPoolExecutor(_THREADS, "rows")
        self._running: set[Future[list[str]]] = set()
        self._refused = 0
        self._first_refusal = ""

    def write(self, data: memoryview, offset: int) -> None:
        """Take more of the file. Raises TargetUnavailable and TargetDenied of an earlier batch too."""
        *lines, self._rest = (self._rest + bytes(data)).split(b"\n")
        for line in lines:
            if self._end:
                raise OSError(0, "something stands behind the end of the rows")
            if is_end(line):
                self._end = line
                continue
            if self._batch_bytes + len(line) > self._bytes_most or len(self._batch) >= self._rows_most:
                self._send()
            self._batch.append(line)
            self._batch_bytes += len(line)

    def _send(self) -> None:
        batch, self._batch, self._batch_bytes = self._batch, [], 0
        if not batch:
            return
        self._tally.add(batch)
        self._table.pace.take(len(batch))
        self._running.add(self._pool.submit(self._table.service.put, self._table.name, self._schema, batch))
        if len(self._running) >= _AHEAD:
            self._settle(*wait(self._running, return_when=FIRST_COMPLETED))

    def _settle(self, done: set[Future[list[str]]], running: set[Future[list[str]]]) -> None:
        self._running = running
        for future in done:
            with _told():
                try:
                    refused = future.result()
                except ValueError as error:
                    raise OSError(0, str(error)) from error
            self._first_refusal = self._first_refusal or next(iter(refused), "")
            self._refused += len(refused)

    def commit(self) -> list[Problem]:
        """Wait for the last batch; compare what was written with the last line."""
        try:
            self._send()
            self._settle(*wait(self._running))
        finally:
            self._pool.shutdown(cancel_futures=True)
        if self._rest or self._end != self._tally.line:
            return [Problem(self._entry.path, "damaged", "its last line does not tell of these rows; they are written")]
        if self._refused:
            detail = f"{self._table.name} refused {self._refused} of {self._tally.rows} rows: {self._first_refusal}"
            return [Problem(self._entry.path, "write-failed", detail)]
        self._table.ranges[self._part] = self._tally
        return []

    def abort(self) -> None:
        """Write nothing more; what was written stays in the table."""
        self._pool.shutdown(cancel_futures=True)


def _place(path: bytes) -> Place:
    place = place_of(path)
    if place is None:
        raise UnsafePath(f"{path.decode('utf-8', 'replace')!r} is no file of a table")
    return place


@contextmanager
def _told() -> Iterator[None]:
    """Tell a service's faults as a target's."""
    try:
        yield
    except Gone as error:
        raise TargetFailed(f"{error}: somebody drops tables while they are restored") from error
    except Denied as error:
        raise TargetDenied(str(error)) from error
    except Silent as error:
        raise TargetUnavailable(str(error)) from error
    except Fault as error:
        raise TargetFailed(str(error)) from error
