"""A folder for the data files of a physical backup: unpacked and prepared, ready for a server to be started on it."""

import os
import stat

from engine.connections.mariadb import MariadbServer
from engine.connections.mariadb_points import IMAGE
from engine.connections.process import Input, Output, quoted
from engine.entries import Entry, Problem
from engine.errors import TargetDenied, TargetError, TargetFailed, TargetMissing, TargetNotEmpty
from engine.targets.port import BaseTarget

_DONE = "completed OK!"
_PREPARE_S = 24 * 3600


class MariadbImageTarget(BaseTarget, frozen=True, tag="mariadb-image", kw_only=True):
    """Unpacks `backup.xbstream` into the empty folder `folder` and lets mariabackup prepare it.

    What is in the folder gets the owner of the folder, when this program may give it. A run that was killed leaves a
    folder that is not empty: empty it and restore again. `server` names the folder of the programs.
    """

    folder: str
    server: MariadbServer = MariadbServer()

    @property
    def one_by_one(self) -> bool:
        """Say yes: there is one file."""
        return True

    def where(self) -> str:
        return self.folder

    def check(self) -> None:
        """Raise TargetMissing, TargetDenied, TargetNotEmpty, ExtraMissing."""
        if not self.folder.startswith("/") or not os.path.isdir(self.folder):
            raise TargetMissing(f"{self.folder!r} is not a folder of this host")
        if not os.access(self.folder, os.R_OK | os.W_OK | os.X_OK):
            raise TargetDenied(f"{self.folder!r} can't be written by this program's account")
        if os.listdir(self.folder):
            raise TargetNotEmpty(f"{self.folder!r} is not empty: a server's data files need a folder of their own")
        self.server.program("unpack")
        self.server.program("backup")

    def existing(self, path: bytes) -> int | None:
        """Return None. Raises TargetError for a file of another kind of point."""
        if path != IMAGE:
            raise TargetError(
                f"{path.decode('utf-8', 'replace')} is no physical backup: restore this point into a folder, or into "
                "a server with the settings of the mode that made it"
            )
        return None

    def create(self, entry: Entry) -> "ImageWriter":
        """Start mbstream in the folder."""
        return ImageWriter(self.folder, self.server)


class ImageWriter:
    """One image on its way into the folder (the Writer port)."""

    def __init__(self, folder: str, server: MariadbServer) -> None:
        self._folder, self._server = folder, server
        self._program = Input([server.program("unpack"), "-x", "-C", folder], idle_s=server.idle_s)

    def write(self, data: memoryview, offset: int) -> None:
        self._program.write(data)

    def commit(self) -> list[Problem]:
        """Wait for the unpacking, prepare the files, give them to the folder's owner. Raises TargetFailed."""
        try:
            self._program.prove()
        finally:
            self._program.close()
        self._prepare()
        return self._give()

    def abort(self) -> None:
        """End mbstream; what it wrote stays, and is no data folder."""
        self._program.close()

    def _prepare(self) -> None:
        argv = [self._server.program("backup"), "--no-defaults", "--prepare", f"--target-dir={self._folder}"]
        output = Output(argv, idle_s=_PREPARE_S)
        try:
            output.readinto(memoryview(bytearray(1 << 16)))
            code, said = output.code(), quoted(output.errors)
        finally:
            output.close()
        if code or not said.endswith(_DONE):
            raise TargetFailed(f"{output.name} could not prepare {self._folder!r} (code {code}): {said}")

    def _give(self) -> list[Problem]:
        status = os.stat(self._folder)
        if os.geteuid() or not status.st_uid:
            return []
        for place, folders, files in os.walk(self._folder):
            for name in (*folders, *files):
                path = os.path.join(place, name)
                if not stat.S_ISLNK(os.lstat(path).st_mode):
                    os.chown(path, status.st_uid, status.st_gid, follow_symlinks=False)
        return []
