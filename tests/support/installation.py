"""A full installation in processes of its own: web, workers and beat on PostgreSQL, Redis and an S3 server."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import redis as redis_client
from celery import Celery

from tests.services import S3, Postgres, Redis

ROOT = Path(__file__).parents[2]
PASSWORD = "scenario-password-1"
REDIS_DB = 7
WAIT_S = 120


class Installation:
    """Processes, a database of its own, and a client of the API. `stop` ends everything that was started."""

    def __init__(self, folder: Path, *, postgres: Postgres, redis: Redis) -> None:
        self.folder = folder
        self._postgres, self._name = postgres, f"scenario_{uuid.uuid4().hex[:12]}"
        with psycopg.connect(postgres.url, autocommit=True) as link:
            link.execute(f"CREATE DATABASE {self._name}")
        self.database = postgres.url.rsplit("/", 1)[0] + f"/{self._name}"
        self.broker = f"{redis.url.rstrip('/').rsplit('/', 1)[0] if redis.url.count('/') > 2 else redis.url}/{REDIS_DB}"
        self.flush_redis()
        self._port = _free_port()
        self.env = {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "DATABASE_URL": self.database,
            "BROKER_URL": self.broker,
            "SECRET_KEY": "s" * 50,
            "BACKUPSITE_FIELD_KEYS": "ab" * 32,
            "ALLOWED_HOSTS": "127.0.0.1",
            "BACKUPSITE_URL": f"http://127.0.0.1:{self._port}",
            "BACKUPSITE_VAR": str(folder / "var"),
            "BACKUPSITE_STEP_LEASE_S": "5",
            "BACKUPSITE_STEP_HEARTBEAT_S": "0.5",
            "BACKUPSITE_STEP_RING_AGAIN_S": "4",
            "BACKUPSITE_SWEEP_S": "2",
            "DJANGO_SUPERUSER_PASSWORD": PASSWORD,
        }
        self._running: list[subprocess.Popen[bytes]] = []
        self._token = ""
        for command in ("migrate", "setup_beat", "createsuperuser --noinput --username root --email r@example.org"):
            subprocess.run(
                [sys.executable, "manage.py", *command.split()], cwd=ROOT, env=self.env, check=True, capture_output=True
            )

    def start(self, *command: str) -> subprocess.Popen[bytes]:
        """Start a process in a group of its own; its output goes to a file in the folder."""
        log = open(self.folder / f"{len(self._running)}-{command[-1].replace('/', '_')[:40]}.log", "wb")  # noqa: SIM115
        process = subprocess.Popen(
            [sys.executable, *command], cwd=ROOT, env=self.env, stdout=log, stderr=log, start_new_session=True
        )
        log.close()
        self._running.append(process)
        return process

    def worker(self, name: str, *queues: str) -> subprocess.Popen[bytes]:
        """Start a worker that serves the sweeps and these queues, one step at a time."""
        served = ",".join(("default", *queues))
        return self.start("-m", "celery", "-A", "backupsite", "worker", "-c", "1", "-n", f"{name}@test", "-Q", served)

    def serve(self) -> None:
        """Start web and beat, wait for them, log in."""
        self.start("-m", "celery", "-A", "backupsite", "beat", "--pidfile=")
        self.start("manage.py", "web")
        wait(lambda: self._alive() or None)
        self._token = self.call("POST", "tokens/login/", {"username": "root", "password": PASSWORD})["token"]

    def _alive(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.env['BACKUPSITE_URL']}/healthz/ready", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """Call the API and return the decoded answer. Fails on any refusal, showing it."""
        return json.loads(self.fetch(method, path, body))

    def fetch(self, method: str, path: str, body: dict[str, Any] | None = None) -> bytes:
        request = urllib.request.Request(f"{self.env['BACKUPSITE_URL']}/api/v1/{path}", method=method)
        request.add_header("Content-Type", "application/json")
        if self._token:
            request.add_header("Authorization", f"Token {self._token}")
        data = json.dumps(body).encode() if body is not None else None
        try:
            with urllib.request.urlopen(request, data, timeout=60) as answer:
                content: bytes = answer.read()
                return content
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{method} {path}: {error.code} {error.read().decode()}") from error

    def steps(self, job: str) -> list[dict[str, Any]]:
        with psycopg.connect(self.database) as link, link.cursor(row_factory=psycopg.rows.dict_row) as cursor:
            return cursor.execute("SELECT * FROM jobs_step WHERE job_id = %s ORDER BY id", (job,)).fetchall()

    def flush_redis(self) -> None:
        link = redis_client.Redis.from_url(self.broker)
        link.flushdb()
        link.close()

    def ring(self, step: int, queue: str) -> None:
        """Send one more doorbell for a step."""
        app = Celery(broker=self.broker)
        app.send_task("jobs.run_step", args=(step,), queue=queue)
        app.close()

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        """End a process and all its children at once, as a lost machine would."""
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def stop(self) -> None:
        for process in self._running:
            if process.poll() is None:
                self.kill(process)
        self.flush_redis()
        with psycopg.connect(self._postgres.url, autocommit=True) as link:
            link.execute(f"DROP DATABASE {self._name} WITH (FORCE)")

    def protect(self, files: Path, *, s3: S3, bucket: str, bytes_per_s: int) -> dict[str, str]:
        """Set up region, vault, source, policy and plan through the API; return their ids."""
        account = self.call("POST", "accounts/", {"name": "acme"})["id"]
        region = {
            "name": "main", "url": f"s3://{bucket}/backups", "endpoint": s3.url, "store_region": s3.region,
            "access_key": s3.access_key, "secret_key": s3.secret_key, "bytes_per_s": bytes_per_s,
        }  # fmt: skip
        self.call("POST", "regions/", region)
        vault = self.call("POST", "vaults/", {"account": account, "region": "main", "name": "v"})["vault"]["id"]
        source = {
            "account": account, "region": "main", "name": "web1", "kind": "files", "host": "web1",
            "settings": {"roots": [str(files)]},
        }  # fmt: skip
        made = {"source": self.call("POST", "sources/", source)["id"], "vault": vault}
        made["policy"] = self.call("POST", "policies/", {"account": account, "name": "daily"})["id"]
        return made | {"plan": self.call("POST", "plans/", made)["id"]}

    def finished(self, job: str) -> dict[str, Any]:
        """Wait for the end of a job and return it."""

        def ended() -> dict[str, Any] | None:
            now: dict[str, Any] = self.call("GET", f"jobs/{job}/")
            return now if now["ended_at"] else None

        job_ended: dict[str, Any] = wait(ended)
        return job_ended


def wait(look: Callable[[], Any], *, seconds: float = WAIT_S) -> Any:
    """Return what `look` returns once it is not None."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = look()
        if found is not None:
            return found
        time.sleep(0.1)
    raise AssertionError(f"nothing came within {seconds} s")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
