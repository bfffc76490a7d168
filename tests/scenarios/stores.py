"""Two MinIO servers of a test's own, which it may kill, start again and lose with all that they hold."""

import json
import os
import shutil
import signal
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests import services
from tests.scenarios.installation import until


class OwnMinio:
    """One server. It was started by deploy/dev-services and is started again here, at the same address."""

    def __init__(self, name: str, state: Path) -> None:
        self.s3 = services.s3(name, services.start(name, state))
        entry = json.loads((state / "state.json").read_text())[name]
        [process] = entry["processes"]
        self._program, self._pid, self._folder = process["command"], int(process["pid"]), Path(entry["folder"])
        self._again: subprocess.Popen[bytes] | None = None

    def kill(self) -> None:
        """End the server at once, as a lost machine does; what it has on its disk stays."""
        if self._again is not None:
            self._again.kill()
            self._again.wait(timeout=10)
        else:
            with suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)
        until(lambda: not self._answers(), seconds=20, what="the server's end")

    def start(self) -> None:
        """Start it again with the data that it had."""
        keys = {"MINIO_ROOT_USER": self.s3.access_key, "MINIO_ROOT_PASSWORD": self.s3.secret_key}
        command = [self._program, "server", "--quiet", "--address", self.s3.endpoint, str(self._folder / "data")]
        with (self._folder / "log").open("ab") as log:
            self._again = subprocess.Popen(
                command, env=os.environ | keys | {"HOME": str(self._folder), "MINIO_UPDATE": "off"},
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        until(self._answers, seconds=30, what="MinIO")

    def lose(self) -> None:
        """End the server, and its data with it."""
        self.kill()
        shutil.rmtree(self._folder / "data")

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.s3.url}/minio/health/ready", timeout=2) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False


@contextmanager
def two_regions(folder: Path) -> Iterator[tuple[OwnMinio, OwnMinio]]:
    """Have two servers inside the block: processes of their own, on ports of their own."""
    names, state = ["minio", "minio-far"], folder / "stores"
    made: list[OwnMinio] = []
    try:
        for name in names:
            made.append(OwnMinio(name, state))
        yield made[0], made[1]
    finally:
        for one in made:
            one.kill()
        services.stop(names, state)
