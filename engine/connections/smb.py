"""Reaching a share of an SMB server (Windows, Samba, a NAS): addresses, names, and a pool of connections."""

import contextlib
import os
import sys
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from engine.errors import (
    EngineError,
    ExtraMissing,
    SourceDenied,
    SourceError,
    SourceMissing,
    SourceUnavailable,
    TargetDenied,
    TargetError,
    TargetMissing,
    TargetUnavailable,
)

if TYPE_CHECKING:
    from engine.connections.smb_share import Share

PORT = 445
TIMEOUT_S = 60.0

READONLY, HIDDEN, SYSTEM, DIRECTORY, REPARSE = 0x1, 0x2, 0x4, 0x10, 0x400
_KEPT = READONLY | HIDDEN | SYSTEM
_SURROGATE = 0x20000000
_FILETIME_OF_1970 = 116_444_736_000_000_000
# The names under which a Linux client of SMB shows the same things: restored onto such a mount they take effect.
ATTRIBUTES = b"user.cifs.dosattrib"
CREATED = b"user.cifs.creationtime"
SECURITY = b"user.cifs.ntsd"


class Address(NamedTuple):
    """One share and who reads it. Holds a secret: keep it out of texts."""

    server: str
    share: str
    user: str
    password: str
    domain: str = ""
    port: int = PORT
    encrypt: bool = True
    timeout_s: float = TIMEOUT_S

    def __repr__(self) -> str:
        return f"Address({self.shown!r})"

    @property
    def shown(self) -> str:
        """Return the share for people."""
        port = "" if self.port == PORT else f":{self.port}"
        return f"//{self.server}{port}/{self.share}"


class Side(NamedTuple):
    """What failures are called on this side of a copy."""

    base: type[EngineError]
    missing: type[EngineError]
    denied: type[EngineError]
    unavailable: type[EngineError]


SOURCE = Side(SourceError, SourceMissing, SourceDenied, SourceUnavailable)
TARGET = Side(TargetError, TargetMissing, TargetDenied, TargetUnavailable)


class Facts(NamedTuple):
    """What the server says of a file or folder. Times are FILETIME: steps of 100 ns since 1601; `ident` 0 = untold."""

    attributes: int
    size: int
    modified: int
    changed: int
    created: int
    ident: int = 0
    tag: int = 0

    @property
    def is_folder(self) -> bool:
        return bool(self.attributes & DIRECTORY)

    @property
    def is_link(self) -> bool:
        """Say whether it stands for something elsewhere: a symbolic link or a junction."""
        return bool(self.attributes & REPARSE and (self.tag & _SURROGATE or not self.tag))


def to_ns(filetime: int) -> int:
    """Return nanoseconds since 1970."""
    return (filetime - _FILETIME_OF_1970) * 100


def to_filetime(ns: int) -> int:
    """Return a FILETIME; what lies before 1601 becomes its beginning."""
    return max(ns // 100 + _FILETIME_OF_1970, 1)


def kept_attributes(facts: Facts, security: bytes) -> dict[bytes, bytes]:
    """Return what of a file's Windows attributes is kept, as extended attributes."""
    found = {CREATED: facts.created.to_bytes(8, "little")} if facts.created > 0 else {}
    if facts.attributes & _KEPT:
        found[ATTRIBUTES] = (facts.attributes & _KEPT).to_bytes(4, "little")
    return found | ({SECURITY: security} if security else {})


def to_smb(path: bytes) -> str:
    """Return a path of an entry as the protocol spells it. Raises UnicodeDecodeError when it is no UTF-8."""
    return path.decode("utf-8", "surrogatepass").replace("/", "\\")


class Shares:
    """Connections to one share, made when needed; each serves one thread at a time. A forked process makes its own."""

    def __init__(self, address: Address, side: Side) -> None:
        self._address, self._side = address, side
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._idle: list[Share] = []

    def __del__(self) -> None:
        # At the end of the interpreter the threads that receive stand still: closing would wait for them for ever.
        if self._pid == os.getpid() and not sys.is_finalizing():
            for share in self._idle:
                share.close()

    def take(self) -> "Share":
        """Return a connection that nobody else uses. Raises the side's missing, denied, unavailable; ExtraMissing."""
        with self._lock:
            if self._pid != os.getpid():
                self._pid, self._idle = os.getpid(), []
            while self._idle:
                share = self._idle.pop()
                if share.is_alive:
                    return share
                share.close()
        try:
            # An optional extra, and a quarter of a second to load.
            from engine.connections.smb_share import Share
        except ImportError as error:
            raise ExtraMissing(
                "reading SMB shares needs a package that is not installed: pip install smbprotocol==1.17.0"
            ) from error
        return Share(self._address, self._side)

    def give(self, share: "Share") -> None:
        """Take a connection back."""
        with self._lock:
            self._idle.append(share)

    @contextlib.contextmanager
    def borrowed(self) -> Iterator["Share"]:
        """Lend a connection; one that broke is closed."""
        share = self.take()
        try:
            yield share
        except EngineError:
            share.close()
            raise
        except BaseException:
            self.give(share)
            raise
        self.give(share)
