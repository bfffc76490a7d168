"""A tar archive as a stream, taken apart while it comes."""

import tarfile
from typing import Protocol

_BLOCK = 512


class TarBroken(ValueError):
    """The bytes are no tar archive, or not a whole one."""


class Taker(Protocol):
    """Takes the members of an archive, one after the other: `begin`, any number of `data`, `end`."""

    def begin(self, member: tarfile.TarInfo) -> None: ...

    def data(self, data: memoryview) -> None: ...

    def end(self) -> None: ...


class TarStream:
    """Follows an archive from its first byte to its last and hands its members to `taker`; `feed` it all.

    Knows plain archives as PostgreSQL writes them: no member that only describes the next one.
    """

    def __init__(self, taker: Taker) -> None:
        self._taker = taker
        self._head = bytearray()
        self._left = self._padding = self._zeros = 0

    def feed(self, data: bytes | memoryview) -> None:
        """Follow the next bytes. Raises TarBroken."""
        view = memoryview(data)
        while view:
            if self._left:
                part = view[: self._left]
                self._taker.data(part)
                self._left -= len(part)
                if not self._left:
                    self._taker.end()
            elif self._padding:
                part = view[: self._padding]
                self._padding -= len(part)
            else:
                part = view[: _BLOCK - len(self._head)]
                self._head += part
                if len(self._head) == _BLOCK:
                    self._begin(bytes(self._head))
                    self._head.clear()
            view = view[len(part) :]

    def close(self) -> None:
        """Raise TarBroken unless the end is the end of an archive."""
        if self._zeros < 2 or self._head:
            raise TarBroken("the archive ends before its end mark")

    def _begin(self, head: bytes) -> None:
        if not any(head):
            self._zeros += 1
            return
        if self._zeros:
            raise TarBroken("the archive goes on behind its end mark")
        try:
            member = tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            raise TarBroken(f"the archive can't be read: {error}") from error
        if not (member.isreg() or member.isdir() or member.islnk() or member.issym()):
            raise TarBroken(f"the archive holds {member.name!r} of the unknown type {member.type!r}")
        self._taker.begin(member)
        self._left = member.size if member.isreg() else 0
        self._padding = -self._left % _BLOCK
        if not self._left:
            self._taker.end()
