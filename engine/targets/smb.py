"""A share of an SMB server as a target."""

import contextlib
import errno
import itertools
import secrets
import threading
from functools import cached_property
from typing import TYPE_CHECKING

from engine.connections.smb import (
    ATTRIBUTES,
    CREATED,
    PORT,
    SECURITY,
    TARGET,
    TIMEOUT_S,
    Address,
    Facts,
    Shares,
    to_filetime,
    to_smb,
)
from engine.entries import Entry, Kind, Problem
from engine.errors import TargetError, TargetMissing, UnsafePath
from engine.targets.port import BaseTarget
from engine.targets.smb_names import safe_path

if TYPE_CHECKING:
    from engine.connections.smb_messages import Basic, Handle
    from engine.connections.smb_share import Share

_OURS = {ATTRIBUTES, CREATED, SECURITY}
_NORMAL, _DIRECTORY = 0x80, 0x10
_PLAIN_MODES = (0o600, 0o700)
_FOREIGN = (
    "owners, modes and extended attributes of Unix have no place on a share: they were not set, here and elsewhere"
)
_KNOWN_FOLDERS = 10_000


def _failed(path: bytes, error: OSError) -> Problem:
    if error.errno in (errno.EEXIST, errno.EISDIR, errno.ENOTEMPTY):
        return Problem(path, "exists", "something else stands in its place: move it away and restore again")
    if error.errno == errno.ENOTDIR:
        return Problem(path, "exists", "a file stands where one of its folders must go: move it away")
    return Problem(path, "write-failed", error.strerror or str(error))


class SmbTarget(BaseTarget, frozen=True, tag="smb", kw_only=True, dict=True):
    """A folder of a share to restore into; it must exist. Nothing is written outside of it or through a link.

    Files are written under `.<random>.backupsite-part` beside their place and renamed when complete: a crash leaves
    such parts, which may be deleted. With `security` the kept owners, groups and access lists are set; without it what
    is restored inherits the folder's. Modes, owners and ACLs of Unix are left out, which is reported once.
    """

    server: str
    share: str
    user: str
    password: str
    domain: str = ""
    port: int = PORT
    path: str = ""
    security: bool = False
    encrypt: bool = True
    timeout_s: float = TIMEOUT_S

    def __repr__(self) -> str:
        return f"SmbTarget({self.where()!r})"

    @cached_property
    def _address(self) -> Address:
        return Address(
            *(self.server, self.share, self.user, self.password, self.domain, self.port),
            encrypt=self.encrypt,
            timeout_s=self.timeout_s,
        )

    @cached_property
    def _shares(self) -> Shares:
        return Shares(self._address, TARGET)

    @cached_property
    def _root(self) -> bytes:
        return self.path.replace("\\", "/").strip("/").encode("utf-8", "surrogatepass")

    @cached_property
    def _folders(self) -> set[bytes]:
        """Folders that were seen to be folders and no links. Threads add to it."""
        return set()

    @cached_property
    def _asides(self) -> "itertools.count[int]":
        return itertools.count()

    @cached_property
    def _mark(self) -> str:
        return secrets.token_hex(6)

    @cached_property
    def _told(self) -> threading.Event:
        return threading.Event()

    @property
    def in_order(self) -> bool:
        """Say no: files are written aside, in any order."""
        return False

    def where(self) -> str:
        """Return the share and folder."""
        return self._address.shown + (f"/{self._root.decode('utf-8', 'replace')}" if self._root else "")

    def check(self) -> None:
        """Raise TargetMissing when the folder is not there (C27), TargetDenied, TargetUnavailable."""
        if self._root:
            try:
                safe_path(self._root)
            except UnsafePath as error:
                raise TargetError(f"{self.path!r} can't be restored into: {error}") from error
        with self._shares.borrowed() as share:
            try:
                facts = share.facts(to_smb(self._root))
            except OSError as error:
                raise TargetMissing(f"{self.where()} cannot be restored into: {error.strerror}") from error
        if not facts.is_folder or facts.is_link:
            raise TargetMissing(f"{self.where()} is not a folder")

    def existing(self, path: bytes) -> int | None:
        """Return the Kind of what stands at `path`, a link as a symlink; None for nothing. Raises UnsafePath."""
        safe_path(path)
        with self._shares.borrowed() as share:
            try:
                self._enter(share, self._parent(path), make=False)
                facts = share.facts(self._place(path))
            except (FileNotFoundError, NotADirectoryError):
                return None
        if facts.is_link:
            return Kind.SYMLINK
        return Kind.DIRECTORY if facts.is_folder else Kind.FILE

    def make(self, entry: Entry) -> list[Problem]:
        """Create a folder; one that exists is kept. Links and devices are problems."""
        if entry.kind != Kind.DIRECTORY:
            return [Problem(entry.path, "write-failed", "a link, fifo or device can't be made on a share")]
        try:
            safe_path(entry.path)
            with self._shares.borrowed() as share:
                self._enter(share, self._below_root(entry.path), make=True)
        except UnsafePath as error:
            return [Problem(entry.path, "unsafe-path", str(error))]
        except OSError as error:
            return [_failed(entry.path, error)]
        return self._foreign(entry)

    def create(self, entry: Entry) -> "SmbWriter":
        """Begin a file aside, at its full size. Raises UnsafePath, or OSError for this file alone."""
        safe_path(entry.path)
        share = self._shares.take()
        try:
            self._enter(share, self._parent(entry.path), make=True)
            aside = self._aside(entry.path)
            handle = share.create(aside, owning=bool(self._descriptor(entry)))
            writer = SmbWriter(self, share, handle, entry, aside=aside)
            if entry.size:
                share.resize(handle, entry.size)
        except OSError:
            self._shares.give(share)
            raise
        except BaseException:
            share.close()
            raise
        return writer

    def write_small(self, entry: Entry, data: bytes | memoryview) -> list[Problem]:
        """Write a whole file at once: in one round trip when nothing stands in its place."""
        path = entry.path
        try:
            safe_path(path)
            with self._shares.borrowed() as share:
                self._enter(share, self._parent(path), make=True)
                if len(data) <= share.piece and not self._descriptor(entry):
                    with contextlib.suppress(FileExistsError):
                        share.write_whole(self._aside(path), self._place(path), bytes(data), self.basic(entry))
                        return self._foreign(entry)
            writer = self.create(entry)
        except UnsafePath as error:
            return [Problem(path, "unsafe-path", str(error))]
        except OSError as error:
            return [_failed(path, error)]
        try:
            writer.write(memoryview(data), 0)
        except OSError as error:
            writer.abort()
            return [_failed(path, error)]
        except BaseException:
            writer.abort()
            raise
        return writer.commit()

    def link(self, entry: Entry, first: bytes) -> list[Problem]:
        """Make `entry` one more name of the restored file `first`."""
        try:
            safe_path(entry.path)
            safe_path(first)
            with self._shares.borrowed() as share:
                self._enter(share, self._parent(entry.path), make=True)
                handle = share.open(self._place(first))
                try:
                    try:
                        share.link(handle, self._place(entry.path))
                    except FileExistsError:
                        self.clear(share, entry)
                        share.link(handle, self._place(entry.path))
                finally:
                    share.close_handle(handle)
        except UnsafePath as error:
            return [Problem(entry.path, "unsafe-path", str(error))]
        except OSError as error:
            return [_failed(entry.path, error)]
        return []

    def finish(self, entry: Entry) -> list[Problem]:
        """Set a folder's times and attributes, after everything inside it was written."""
        from engine.connections.smb_messages import FOLDER_ATTRIBUTES, OWNERSHIP  # needs the optional extra

        descriptor = self._descriptor(entry)
        try:
            with self._shares.borrowed() as share:
                access = FOLDER_ATTRIBUTES | (OWNERSHIP if descriptor else 0)
                handle = share.open(self._place(entry.path), access, folder=True)
                try:
                    if descriptor:
                        share.set_security(handle, descriptor)
                    share.set_basic(handle, self.basic(entry))
                finally:
                    share.close_handle(handle)
        except OSError as error:
            return [Problem(entry.path, "attributes", f"they were not set: {error.strerror}", lost=False)]
        return []

    def basic(self, entry: Entry) -> "Basic":
        """Return the times and attributes that an entry is given."""
        from engine.connections.smb_messages import Basic  # needs the optional extra

        attributes = int.from_bytes(entry.xattrs.get(ATTRIBUTES, b""), "little") & 0x7
        plain = _DIRECTORY if entry.kind == Kind.DIRECTORY else 0 if attributes else _NORMAL
        created = int.from_bytes(entry.xattrs.get(CREATED, b""), "little")
        return Basic(created, to_filetime(entry.mtime_ns), attributes | plain)

    def clear(self, share: "Share", entry: Entry) -> None:
        """Remove the file that stands in an entry's place. Raises FileExistsError when that is not to be replaced."""
        place = self._place(entry.path)
        folder, _, name = place.rpartition("\\")
        standing = share.standing(folder, name)
        if standing is not None and standing != name:
            raise OSError(errno.EBUSY, f"{standing!r} stands there, which a share takes for the same name")
        facts: Facts = share.facts(place)
        if facts.is_folder or facts.is_link:
            raise FileExistsError(errno.EEXIST, "a folder or a link stands in its place")
        share.remove(place)

    def settle(self, share: "Share", handle: "Handle", entry: Entry) -> list[Problem]:
        """Give a written file its attributes and its name, replacing a file of exactly that name."""
        descriptor = self._descriptor(entry)
        problems = self._foreign(entry)
        if descriptor:
            try:
                share.set_security(handle, descriptor)
            except OSError as error:
                problems.append(
                    Problem(
                        entry.path, "attributes", f"the owner and rights were not set: {error.strerror}", lost=False
                    )
                )
        try:
            share.rename(handle, self._place(entry.path), replace=False)
        except FileExistsError:
            self.clear(share, entry)
            share.rename(handle, self._place(entry.path), replace=True)
        share.set_basic(handle, self.basic(entry))
        return problems

    def give_back(self, share: "Share") -> None:
        """Take back the connection of a writer."""
        self._shares.give(share)

    def _descriptor(self, entry: Entry) -> bytes:
        return entry.xattrs.get(SECURITY, b"") if self.security else b""

    def _foreign(self, entry: Entry) -> list[Problem]:
        """Report, once, that something of this entry has no place here."""
        has_owner = (entry.uid, entry.gid, entry.user, entry.group) != (0, 0, "", "")
        if not (has_owner or entry.mode not in _PLAIN_MODES or set(entry.xattrs) - _OURS) or self._told.is_set():
            return []
        self._told.set()
        return [Problem(entry.path, "attributes", _FOREIGN, lost=False)]

    def _below_root(self, path: bytes) -> bytes:
        return self._root + b"/" + path if self._root else path

    def _parent(self, path: bytes) -> bytes:
        return self._below_root(path).rpartition(b"/")[0]

    def _place(self, path: bytes) -> str:
        return to_smb(self._below_root(path))

    def _aside(self, path: bytes) -> str:
        folder = to_smb(self._parent(path))
        name = f".{self._mark}{next(self._asides):x}{threading.get_ident():x}.backupsite-part"
        return f"{folder}\\{name}" if folder else name

    def _enter(self, share: "Share", folder: bytes, *, make: bool) -> None:
        """See that every folder on the way is one, and no link. Raises FileNotFoundError without `make`, UnsafePath."""
        if folder in self._folders or not folder:
            return
        self._enter(share, folder.rpartition(b"/")[0], make=make)
        place = to_smb(folder)
        try:
            facts = share.facts(place)
        except FileNotFoundError:
            if not make:
                raise
            with contextlib.suppress(FileExistsError):  # another worker made it
                share.make_folder(place)
            facts = share.facts(place)
        if facts.is_link:
            raise UnsafePath(f"{folder!r} is a link in the share restored into: nothing is written through it")
        if not facts.is_folder:
            raise NotADirectoryError(errno.ENOTDIR, "a file stands where a folder must go")
        if len(self._folders) >= _KNOWN_FOLDERS:
            self._folders.clear()
        self._folders.add(folder)


class SmbWriter:
    """One file being written aside (the Writer port). Has a connection of its own."""

    def __init__(self, target: SmbTarget, share: "Share", handle: "Handle", entry: Entry, *, aside: str) -> None:
        self._target, self._share, self._handle, self._entry, self._aside = target, share, handle, entry, aside

    def write(self, data: memoryview, offset: int) -> None:
        """Write all of `data` at `offset`. Raises OSError, TargetUnavailable."""
        self._share.write(self._handle, data, offset)

    def commit(self) -> list[Problem]:
        """Set size and attributes and rename into place; a failure removes what was written and is a Problem."""
        try:
            self._share.resize(self._handle, self._entry.size)
            problems = self._target.settle(self._share, self._handle, self._entry)
        except OSError as error:
            self.abort()
            return [_failed(self._entry.path, error)]
        except BaseException:
            self._share.close()
            raise
        self._share.close_handle(self._handle)
        self._target.give_back(self._share)
        return problems

    def abort(self) -> None:
        """Remove what was written aside."""
        if not self._share.is_alive:
            self._share.close()
            return
        self._share.close_handle(self._handle)
        with contextlib.suppress(OSError):
            self._share.remove(self._aside)
        self._target.give_back(self._share)
