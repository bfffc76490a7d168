"""Giving restored things their owner, mode, extended attributes and times."""

import grp
import os
import pwd
import stat

from engine.entries import Entry, Kind, Problem

_ACCESS_ACL = "system.posix_acl_access"
_ACLS = (_ACCESS_ACL, "system.posix_acl_default")
_SET_ID = stat.S_ISUID | stat.S_ISGID


class Owners:
    """Numbers of owners on this host: by name when the name exists here, else the stored number (as tar does)."""

    def __init__(self) -> None:
        self._users: dict[tuple[str, int], int] = {}
        self._groups: dict[tuple[str, int], int] = {}

    def uid(self, name: str, number: int) -> int:
        """Return the user's number here."""
        found = self._users.get((name, number))
        if found is None:
            try:
                found = pwd.getpwnam(name).pw_uid if name else number
            except KeyError:
                found = number
            self._users[name, number] = found
        return found

    def gid(self, name: str, number: int) -> int:
        """Return the group's number here."""
        found = self._groups.get((name, number))
        if found is None:
            try:
                found = grp.getgrnam(name).gr_gid if name else number
            except KeyError:
                found = number
            self._groups[name, number] = found
        return found


def _failed(entry: Entry, what: str, error: Exception) -> Problem:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return Problem(entry.path, "attributes", f"{what}: {reason}", lost=False)


class Attributes:
    """Sets attributes in the one order that keeps them: owner, xattrs, mode, times.

    `restore_owner`: None = when running as root, True = always (a failure is a Problem), False = never.
    Changing the owner clears capabilities and set-id bits, so it comes first; user xattrs need write
    permission, so the mode comes after them. A set-id bit is dropped when the owner could not be restored.
    """

    def __init__(self, restore_owner: bool | None) -> None:
        self.owners = Owners()
        self._owner = os.geteuid() == 0 if restore_owner is None else restore_owner

    def apply(self, fd: int, entry: Entry, *, inherits: bool, owner: tuple[int, int] | None = None) -> list[Problem]:
        """Set everything on an open file or folder. `inherits`: drop an ACL that the folder around it gave.

        `owner` are the numbers that it surely has already.
        """
        problems: list[Problem] = []
        mode = entry.mode
        owned = False
        if self._owner:
            uid, gid = self.owners.uid(entry.user, entry.uid), self.owners.gid(entry.group, entry.gid)
            try:
                if (uid, gid) != owner:
                    os.chown(fd, uid, gid)
                owned = True
            except (OSError, OverflowError) as error:
                problems.append(_failed(entry, "the owner was not set", error))
        if mode & _SET_ID and not owned and entry.kind == Kind.FILE:
            mode = self._without_foreign_ids(fd, entry, problems)
        if inherits:
            self._drop_acls(fd, entry)
        if entry.xattrs:
            self._extend(fd, entry, problems)
        try:
            os.chmod(fd, mode)
        except OSError as error:
            problems.append(_failed(entry, "the mode was not set", error))
        try:
            os.utime(fd, ns=(entry.mtime_ns, entry.mtime_ns))
        except (OSError, OverflowError) as error:
            problems.append(_failed(entry, "the time was not set", error))
        return problems

    def _without_foreign_ids(self, fd: int, entry: Entry, problems: list[Problem]) -> int:
        status = os.fstat(fd)
        mode = entry.mode
        if status.st_uid != entry.uid:
            mode &= ~stat.S_ISUID
        if status.st_gid != entry.gid:
            mode &= ~stat.S_ISGID
        if mode != entry.mode:
            problems.append(
                Problem(entry.path, "attributes", "set-id bits were left out: it has another owner here", lost=False)
            )
        return mode

    def _drop_acls(self, fd: int, entry: Entry) -> None:
        for name in _ACLS:
            if name.encode() not in entry.xattrs:
                try:
                    os.removexattr(fd, name)
                except OSError:
                    continue  # there was none

    def _extend(self, place: int | bytes, entry: Entry, problems: list[Problem]) -> None:
        if not hasattr(os, "setxattr"):
            problems.append(Problem(entry.path, "attributes", "this system keeps no extended attributes", lost=False))
            return
        # An ACL brings the final mode with it, which may forbid the others: it comes last.
        for name, value in sorted(entry.xattrs.items(), key=lambda pair: pair[0].startswith(b"system.posix_acl")):
            try:
                os.setxattr(place, name, value)
            except OSError as error:
                problems.append(_failed(entry, f"the attribute {os.fsdecode(name)} was not set", error))

    def apply_aside(self, folder: int, name: bytes, entry: Entry) -> list[Problem]:
        """Set everything on a link, fifo or device without opening it; `name` is inside the open `folder`."""
        problems: list[Problem] = []
        if self._owner:
            uid, gid = self.owners.uid(entry.user, entry.uid), self.owners.gid(entry.group, entry.gid)
            try:
                os.chown(name, uid, gid, dir_fd=folder, follow_symlinks=False)
            except (OSError, OverflowError) as error:
                problems.append(_failed(entry, "the owner was not set", error))
        if entry.xattrs or entry.kind != Kind.SYMLINK:
            self._by_handle(folder, name, entry, problems)
        try:
            os.utime(name, ns=(entry.mtime_ns, entry.mtime_ns), dir_fd=folder, follow_symlinks=False)
        except (OSError, OverflowError) as error:
            problems.append(_failed(entry, "the time was not set", error))
        return problems

    def _by_handle(self, folder: int, name: bytes, entry: Entry, problems: list[Problem]) -> None:
        """Set xattrs and mode through a handle: neither has a call that takes a folder and follows no link."""
        if not hasattr(os, "O_PATH"):
            try:
                os.chmod(name, entry.mode, dir_fd=folder, follow_symlinks=False)
            except (OSError, NotImplementedError) as error:
                problems.append(_failed(entry, "the mode was not set", error))
            return
        handle = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
        try:
            place = b"/proc/self/fd/%d" % handle
            self._extend(place, entry, problems)
            if entry.kind != Kind.SYMLINK:
                try:
                    os.chmod(place, entry.mode)
                except OSError as error:
                    problems.append(_failed(entry, "the mode was not set", error))
        finally:
            os.close(handle)
