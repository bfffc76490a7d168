"""Wide-column services as their sources and targets see them: tables of rows, and how both lie in a recovery point.

A table is `tables/<name>/`: `0-schema.json` describes it, `rows/NNNN-of-NNNN….jsonl` hold a range of its rows each,
`z-finish.json` says what is set once the rows are there. A rows file has one JSON document a line and ends with
`{"end":{"rows":…,"digest":…}}`; the digest is the sum of the lines' hashes, so that it tells nothing of their order.
"""

import hashlib
import re
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, Protocol
from urllib.parse import quote_from_bytes, unquote_to_bytes

import msgspec

from engine import halt

Schema = dict[str, Any]

FORMAT = 1
SCHEMA, ROWS, FINISH = "0-schema.json", "rows", "z-finish.json"
RANGES_MAX = 1024
_ROWS_NAME = re.compile(r"(\d{4})-of-(\d{4})(?:-(.+))?\.jsonl")
_END = b'{"end":'
_DIGEST_BYTES = 16


class Fault(Exception):
    """What a service answered instead of doing what was asked; the text is for people and holds no secret."""


class Gone(Fault):
    """The table does not exist."""


class Denied(Fault):
    """The service does not know the credentials, or they do not allow this."""


class Silent(Fault):
    """The service does not answer, answers that it can't now, or throttles for longer than retries take."""


class Described(NamedTuple):
    """A table: its schema, what tells it from a later one of its name, and when it was made (0: nobody knows).

    `unread` says what the service would not tell of it.
    """

    schema: Schema
    identity: str = ""
    created_ns: int = 0
    unread: tuple[str, ...] = ()


class Range(NamedTuple):
    """A part of a table's rows: number `number` (from 1) of `total`; `bounds` is what the service makes of it."""

    number: int = 1
    total: int = 1
    bounds: str = ""

    @property
    def name(self) -> str:
        tail = f"-{self.bounds}" if self.bounds else ""
        return f"{self.number:04}-of-{self.total:04}{tail}.jsonl"


class Page(NamedTuple):
    """Some rows as lines without their ends, and the read capacity that they cost."""

    lines: list[bytes]
    units: float


class Service(Protocol):
    """One service's tables. Every call may raise Fault, Gone, Denied and Silent, and nothing of a vendor's.

    The same row always becomes the same line, whatever order the service gives its columns in.
    """

    def tables(self) -> list[str]: ...

    def describe(self, table: str) -> Described: ...

    def ranges(self, table: str, schema: Schema) -> list[Range]:
        """Cut a table into ranges that several workers read at once; the same ones next time, as far as it goes."""
        ...

    def pages(self, table: str, schema: Schema, part: Range) -> Iterator[Page]:
        """Yield the rows of a range, in the service's order."""
        ...

    def holds_rows(self, table: str) -> bool:
        """Say whether there is a row in the table; a table that is not there has none."""
        ...

    def create(self, table: str, schema: Schema) -> bool:
        """Make the table as rows need it, wait until it takes them, and say whether it was made now.

        One that is there is kept when its keys are the same, and is a Fault when they are others.
        """
        ...

    @property
    def batch(self) -> tuple[int, int]:
        """Return how many rows, and how many bytes of lines, `put` takes at once."""
        ...

    def put(self, table: str, schema: Schema, lines: list[bytes]) -> list[str]:
        """Write these rows, over those of the same keys; return what the service said of each that it refused."""
        ...

    def settle(self, table: str, schema: Schema) -> list[str]:
        """Set what waits for the rows (indexes, expiry, tags); return for people what could not be set."""
        ...

    def close(self) -> None: ...


class Tally:
    """Counts rows and adds up their digests; tallies of ranges add up to the table's."""

    def __init__(self) -> None:
        self.rows = 0
        self._sum = 0

    def add(self, lines: Iterable[bytes]) -> None:
        for line in lines:
            self._sum += int.from_bytes(hashlib.blake2b(line, digest_size=_DIGEST_BYTES).digest(), "big")
            self.rows += 1
        self._sum %= 1 << 8 * _DIGEST_BYTES

    def merge(self, other: "Tally") -> None:
        self.rows += other.rows
        self._sum = (self._sum + other._sum) % (1 << 8 * _DIGEST_BYTES)

    @property
    def digest(self) -> str:
        return self._sum.to_bytes(_DIGEST_BYTES, "big").hex()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Tally) and (self.rows, self._sum) == (other.rows, other._sum)

    __hash__ = None  # type: ignore[assignment]  # it changes while it counts

    @property
    def line(self) -> bytes:
        """Return the last line of a rows file."""
        return msgspec.json.encode({"end": {"rows": self.rows, "digest": self.digest}})


def is_end(line: bytes) -> bool:
    """Say whether a line of a rows file is its last one and no row."""
    return line.startswith(_END)


class Pace:
    """Keep what is taken within `per_s` on average, without saving up idle time; 0 is no limit. One thread's."""

    def __init__(
        self,
        per_s: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = halt.sleep,
    ) -> None:
        self._per_s, self._clock, self._sleep = per_s, clock, sleep
        self._free_at = clock()

    def take(self, units: float) -> None:
        """Wait until what was taken before is paid for, then take `units`."""
        if not self._per_s:
            return
        now = self._clock()
        if self._free_at > now:
            self._sleep(self._free_at - now)
        self._free_at = max(self._free_at, now) + units / self._per_s


def patiently(act: Callable[[], bool], *, tries: int, first_s: float, most_s: float) -> bool:
    """Call `act` until it says that it is done, waiting twice as long each time; say whether it ever was."""
    wait_s = first_s
    for number in range(tries):
        if act():
            return True
        if number + 1 < tries:
            halt.sleep(wait_s)
            wait_s = min(wait_s * 2, most_s)
    return False


def document(value: Any) -> bytes:
    """Return JSON for people and for digests: keys sorted, indented."""
    return msgspec.json.format(msgspec.json.encode(value, order="sorted"), indent=2) + b"\n"


def fingerprint(*parts: bytes) -> int:
    """Return 63 bits that change with any of the parts."""
    hashed = hashlib.blake2b(digest_size=8)
    for part in parts:
        hashed.update(len(part).to_bytes(8, "big") + part)
    return int.from_bytes(hashed.digest(), "big") >> 1


def escaped(text: str | bytes) -> str:
    """Return a name or key with everything but letters, digits, `_`, `.`, `-` and `~` percent-encoded."""
    return quote_from_bytes(text.encode() if isinstance(text, str) else text, safe="")


def unescaped(text: str) -> bytes:
    return unquote_to_bytes(text)


def path_of(table: str, *names: str) -> bytes:
    """Return the path of a table's file."""
    return "/".join(("tables", escaped(table), *names)).encode()


class Place(NamedTuple):
    """What a path means: a table and its SCHEMA, FINISH or ROWS file (then with the range)."""

    table: str
    kind: str
    part: Range = Range()


def place_of(path: bytes) -> Place | None:
    """Return what a path of a point means; None when it is no table's."""
    try:
        names = path.decode().split("/")
        table = unescaped(names[1]).decode() if len(names) > 2 else ""
    except UnicodeDecodeError:
        return None
    if not table or names[0] != "tables":
        return None
    if len(names) == 3 and names[2] in (SCHEMA, FINISH):
        return Place(table, names[2])
    found = _ROWS_NAME.fullmatch(names[3]) if len(names) == 4 and names[2] == ROWS else None
    return Place(table, ROWS, Range(int(found[1]), int(found[2]), found[3] or "")) if found else None
