"""A PostgreSQL data directory as a target: a base backup unpacked, the log beside it, recovery to a moment."""

import datetime as dt
import os
import pwd
import shlex
import stat
import tarfile
import tempfile
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import msgspec

from engine.connections import walfiles
from engine.connections.pgnames import BASE, WAL
from engine.connections.postgres import Client
from engine.connections.process import IDLE_S, Output, quoted
from engine.connections.tarstream import TarBroken, TarStream
from engine.entries import Entry, Kind, Problem
from engine.errors import TargetError, TargetFailed, TargetMissing, TargetNotEmpty, UnsafePath
from engine.targets.files import FilesTarget
from engine.targets.port import BaseTarget, Writer

_SLOWEST_BYTES_PER_S = 5e6
_LABEL = "backup_label"
_START = "START WAL LOCATION: "
_CONFIGURATION = "postgresql.auto.conf"
_MARK = "# Recovery, written by the restore:"


class PostgresDataTarget(BaseTarget, frozen=True, tag="postgres-data", kw_only=True, dict=True):
    """A new data directory on this host. No server is started.

    `folder` is absolute, and missing or empty when `base.tar` is restored into it. Segments of the log go into
    `<folder>.wal`, once the base backup is there; then recovery is set up, to `until` (ISO 8601 with a time zone,
    empty: to the end of the log). All belongs to `owner` when root restores. With `verify` the unpacked backup is
    compared with its manifest by pg_verifybackup. Safe to run again; a crash leaves a directory to be emptied.
    """

    folder: str
    until: str = ""
    owner: str = "postgres"
    verify: bool = True
    programs: str = ""
    idle_s: float = IDLE_S

    @cached_property
    def _data(self) -> Path:
        return Path(os.path.normpath(self.folder))

    @property
    def _log(self) -> Path:
        return self._data.with_name(self._data.name + ".wal")

    @cached_property
    def _files(self) -> FilesTarget:
        return FilesTarget(root=os.fsencode(self._data))

    @cached_property
    def _log_files(self) -> FilesTarget:
        return FilesTarget(root=os.fsencode(self._log))

    @property
    def one_by_one(self) -> bool:
        """Say yes: the log comes to a base backup that is there."""
        return True

    def where(self) -> str:
        return f"the data directory {self.folder}"

    def check(self) -> None:
        """Raise TargetMissing, TargetNotEmpty, TargetError for what can't work, ExtraMissing."""
        if not os.path.isabs(self.folder) or "\n" in self.folder:
            raise TargetError(f"{self.folder!r} is not an absolute path")
        if not self._data.parent.is_dir():
            raise TargetMissing(f"the folder {str(self._data.parent)!r} does not exist")
        self._until()
        self._owner()
        if self._data.exists() and not self._data.is_dir():
            raise TargetNotEmpty(f"{self.folder!r} is not a folder: move it away")
        if (self._data / "postmaster.pid").exists():
            raise TargetNotEmpty(f"a server runs in {self.folder!r}, or did: stop it and choose an empty folder")
        if self.verify:
            Client("", 0, "", "", programs=self.programs).program("pg_verifybackup")

    def existing(self, path: bytes) -> int | None:
        """Raise TargetNotEmpty where a base backup would mix with something, TargetMissing for a log without one."""
        if path == BASE:
            for folder in (self._data, self._log):
                if folder.is_dir() and any(folder.iterdir()):
                    raise TargetNotEmpty(f"{str(folder)!r} is not empty: a base backup needs an empty folder")
        if path.startswith(WAL) and not (self._data / _LABEL).is_file():
            raise TargetMissing(
                f"{self.folder!r} holds no base backup that waits for its start: restore one (base.tar) there first"
            )
        return None

    def create(self, entry: Entry) -> Writer:
        """Begin to unpack a base backup, or a segment. Raises TargetFailed for another path."""
        if entry.path == BASE:
            self._make(self._data)
            return Unpacking(self._files, self._owned, self._verify if self.verify else None)
        if entry.path.startswith(WAL) and entry.kind == Kind.FILE:
            self._make(self._log)
            return self._log_files.create(self._owned(entry, entry.path.removeprefix(WAL)))
        raise TargetFailed(
            f"{entry.path.decode('utf-8', 'replace')!r} is no part of a base backup or a log: restore it into a folder"
        )

    def flush(self) -> None:
        """Set up recovery when there is a log, make all durable. Raises TargetFailed for a log with gaps."""
        if not (self._data / _LABEL).is_file():
            return  # nothing was restored
        recovers = self._log.is_dir() and any(self._log.iterdir())
        if recovers:
            self._check_log()
            self._set_up()
            self._log_files.flush()
        self._files.flush()

    def _until(self) -> dt.datetime | None:
        if not self.until:
            return None
        try:
            moment = dt.datetime.fromisoformat(self.until)
        except ValueError as error:
            raise TargetError(f"{self.until!r} is no time: write it as 2031-05-06T07:08:09+00:00") from error
        if moment.tzinfo is None:
            raise TargetError(f"{self.until!r} tells no time zone: add one, such as +00:00")
        return moment

    def _owner(self) -> tuple[str, int, int]:
        """Return (name, uid, gid) of whom the files belong to: only root can choose."""
        try:
            found = pwd.getpwnam(self.owner) if os.geteuid() == 0 else pwd.getpwuid(os.geteuid())
        except KeyError as error:
            raise TargetError(f"there is no account {self.owner!r} on this host: name the server's") from error
        return found.pw_name, found.pw_uid, found.pw_gid

    def _owned(self, entry: Entry, path: bytes) -> Entry:
        name, uid, gid = self._owner()
        return msgspec.structs.replace(entry, path=path, user=name, uid=uid, group="", gid=gid, xattrs={})

    def _make(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, exist_ok=True)
        if os.geteuid() == 0:
            os.chown(folder, *self._owner()[1:])
        folder.chmod(0o700)

    def _verify(self) -> None:
        client = Client("", 0, "", "", programs=self.programs)
        # The log inside a base backup is not in its manifest, and has checksums of its own.
        argv = [client.program("pg_verifybackup"), "--no-parse-wal", "--quiet", str(self._data)]
        size = sum(path.lstat().st_size for path in self._data.rglob("*"))
        patience_s = max(self.idle_s, size / _SLOWEST_BYTES_PER_S)  # it says nothing before its end
        output = Output(argv, env={"LC_ALL": "C"}, idle_s=patience_s)
        try:
            output.readinto(memoryview(bytearray(1 << 16)))
            if output.code():
                raise TargetFailed(f"the restored base backup does not fit its manifest: {quoted(output.errors)}")
        finally:
            output.close()

    def _check_log(self) -> None:
        """Raise TargetFailed unless the log goes on without a gap where the base backup begins."""
        label = (self._data / _LABEL).read_text()
        start = label.partition(_START)[2].partition("(file ")[2].partition(")")[0]
        paths = [*(self._data / "pg_wal").iterdir(), *self._log.iterdir()]
        sizes = {path.name: path.stat().st_size for path in paths if walfiles.SEGMENT.fullmatch(path.name)}
        if not sizes or not walfiles.SEGMENT.fullmatch(start):
            raise TargetFailed("the base backup does not tell where its log begins: restore it again")
        size = max(sizes.values())
        needed = {name for name in sizes if walfiles.number(name, size) >= walfiles.number(start, size)}
        for first, last in walfiles.gaps([start, *needed], size):
            raise TargetFailed(
                f"the log from {first} to {last} is missing between the base backup and this point: restore an older "
                "point of the log as well, or begin with a newer base backup"
            )

    def _set_up(self) -> None:
        """Write what makes the server recover at its start."""
        until = self._until()
        command = f'cp {shlex.quote(str(self._log)).replace("%", "%%")}/%f "%p"'
        settings = {"restore_command": command, "recovery_target_action": "promote"}
        if until:
            settings["recovery_target_time"] = until.isoformat(sep=" ")
        path = self._data / _CONFIGURATION
        before = path.read_text().partition(_MARK)[0] if path.exists() else ""
        lines = [f"{name} = '{value.replace(chr(39), chr(39) * 2)}'" for name, value in settings.items()]
        self._replace(path, f"{before.rstrip()}\n{_MARK}\n" + "".join(f"{line}\n" for line in lines))
        self._replace(self._data / "recovery.signal", "")

    def _replace(self, path: Path, text: str) -> None:
        with tempfile.NamedTemporaryFile("w", dir=self._data, delete=False) as aside:
            aside.write(text)
        if os.geteuid() == 0:
            os.chown(aside.name, *self._owner()[1:])
        os.replace(aside.name, path)


class Unpacking:
    """A base backup on its way into a data directory (the Writer port). Nothing leaves that directory."""

    def __init__(
        self, files: FilesTarget, owned: Callable[[Entry, bytes], Entry], verify: Callable[[], None] | None
    ) -> None:
        self._files, self._owned, self._verify = files, owned, verify
        self._tar = TarStream(self)
        self._folders: list[Entry] = []
        self._file: Writer | None = None
        self._at = 0
        self._problems: list[Problem] = []

    def write(self, data: memoryview, offset: int) -> None:
        try:
            self._tar.feed(data)
        except TarBroken as error:
            raise TargetFailed(f"this is no base backup: {error}") from error

    def begin(self, member: tarfile.TarInfo) -> None:
        """Begin a member of the archive. Raises TargetFailed for what a base backup in one stream never holds."""
        path = os.fsencode(member.name).removeprefix(b"./").rstrip(b"/")
        if not path:
            raise TargetFailed("the base backup holds a member without a name")
        if not (member.isreg() or member.isdir()):
            raise TargetFailed(f"the base backup holds the link {member.name!r}: a link could lead anywhere")
        kind = Kind.DIRECTORY if member.isdir() else Kind.FILE
        entry = Entry(
            path, kind, stat.S_IMODE(member.mode) & 0o777, size=member.size, mtime_ns=int(member.mtime) * 10**9
        )
        entry = self._owned(entry, path)
        try:
            if member.isdir():
                self._problems += self._files.make(entry)
                self._folders.append(entry)
            else:
                self._file, self._at = self._files.create(entry), 0
        except UnsafePath as error:
            raise TargetFailed(f"the base backup would write outside the data directory: {error}") from error

    def data(self, data: memoryview) -> None:
        if self._file is not None:
            self._file.write(data, self._at)
            self._at += len(data)

    def end(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            self._problems += file.commit()

    def commit(self) -> list[Problem]:
        """Finish the folders and compare. Raises TargetFailed for an archive without its end, or a difference."""
        try:
            self._tar.close()
        except TarBroken as error:
            raise TargetFailed(f"this is no whole base backup: {error}") from error
        for folder in reversed(self._folders):
            self._problems += self._files.finish(folder)
        if self._verify and not self._problems:
            self._verify()
        return self._problems

    def abort(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.abort()
