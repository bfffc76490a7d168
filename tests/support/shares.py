"""Shares of the test Samba: a fresh folder on its disk, and the source and target that reach it over the network."""

import subprocess
import tempfile
from pathlib import Path
from typing import Any

from engine.sources.smb import SmbSource
from engine.targets.smb import SmbTarget
from tests.services import Samba

TIMEOUT_S = 20.0


class SharedFolder:
    """One folder of the share. `disk` is where it lies on this host: the independent way to look into it."""

    def __init__(self, samba: Samba) -> None:
        self.samba = samba
        self.disk = Path(tempfile.mkdtemp(prefix="t", dir=samba.data))

    @property
    def name(self) -> str:
        return self.disk.name

    def _login(self) -> dict[str, Any]:
        one = self.samba
        account: dict[str, Any] = {"user": one.user, "password": one.password}
        return account | {
            "server": one.host,
            "port": one.port,
            "share": one.share,
            "path": self.name,
            "timeout_s": TIMEOUT_S,
        }

    def source(self, **fields: Any) -> SmbSource:
        return SmbSource(**(self._login() | fields))

    def target(self, **fields: Any) -> SmbTarget:
        return SmbTarget(**(self._login() | fields))

    def program(self, command: str) -> str:
        """Run a command of Debian's smbclient in the folder; return what it printed."""
        one = self.samba
        place = f"//{one.host}/{one.share}"
        login = ("-U", f"{one.user}%{one.password}", "-p", str(one.port), "-s", "/dev/null")
        done = subprocess.run(
            ["smbclient", place, *login, "-D", self.name, "-c", command], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout
