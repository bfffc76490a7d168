"""A whole installation in processes of its own: web, workers, beat, a database and a broker; and its API over HTTP."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlencode

import psycopg
import redis
import urllib3
from celery import Celery
from minio import Minio
from minio.deleteobjects import DeleteObject
from minio.error import S3Error

from tests.services import ROOT, S3, Postgres, Redis, s3_client

T = TypeVar("T")
PASSWORD = "an operator's password"
ENDED = ("complete", "partial_complete", "failed", "canceled", "skipped", "missed")
# Short enough that a test need not wait for a dead worker; a slow machine is not taken for a dead one.
TIMES = {
    "BACKUPSITE_STEP_LEASE_S": "4",
    "BACKUPSITE_STEP_HEARTBEAT_S": "0.3",
    "BACKUPSITE_STEP_RING_AGAIN_S": "4",
    "BACKUPSITE_SWEEP_S": "1",
    "BACKUPSITE_WORKER_SEEN_S": "30",
    "BACKUPSITE_RATE_USER": "100000/min",
    "BACKUPSITE_RATE_ANON": "1000/min",
}
LOG_SHOWN = 3000


def until(look: Callable[[], T | None], *, seconds: float = 60, what: str = "what the test waits for") -> T:
    """Return what `look` gives once it gives anything."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = look()
        if found:
            return found
        time.sleep(0.1)
    raise AssertionError(f"{what} did not come within {seconds} s")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Api:
    """The API as a script sees it: one token, JSON in, JSON out, a wrong status is an error that shows the answer.

    Paths are those below /api/v1/, or begin with a slash.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._pool = urllib3.PoolManager(timeout=urllib3.Timeout(60), retries=False)
        self._headers: dict[str, str] = {}

    def login(self, user: str, password: str) -> None:
        answer = self.post("tokens/login/", {"username": user, "password": password}, expect=201)
        self._headers = {"Authorization": f"Token {answer['token']}"}

    def get(self, path: str, /, *, expect: int = 200, **query: object) -> Any:
        return json.loads(self.read(path, expect=expect, **query))

    def read(self, path: str, /, *, expect: int = 200, **query: object) -> bytes:
        return self._call("GET", f"{path}?{urlencode(query)}" if query else path, None, expect)

    def post(self, path: str, body: dict[str, Any] | None = None, *, expect: int) -> Any:
        return json.loads(self._call("POST", path, body or {}, expect))

    def patch(self, path: str, body: dict[str, Any], *, expect: int = 200) -> Any:
        return json.loads(self._call("PATCH", path, body, expect))

    def _call(self, method: str, path: str, body: dict[str, Any] | None, expect: int) -> bytes:
        place = path if path.startswith("/") else f"/api/v1/{path}"
        answer = self._pool.request(method, f"{self.url}{place}", json=body, headers=self._headers)
        assert answer.status == expect, f"{method} {path}: {answer.status} {answer.data[:2000]!r}"
        return bytes(answer.data)


@dataclass
class Process:
    """One process with its children; `log` is where its output goes."""

    name: str
    log: Path
    popen: "subprocess.Popen[bytes]"

    def kill(self) -> None:
        """End the process and all its children at once, as a machine without power does."""
        if self.popen.poll() is None:
            os.killpg(self.popen.pid, signal.SIGKILL)
        self.popen.wait(timeout=10)

    def stop(self) -> None:
        """Ask the process to end, as a supervisor does."""
        self.popen.terminate()
        self.popen.wait(timeout=60)

    def freeze(self) -> None:
        """Stop the process and those that it started, as a machine that hangs would; `thaw` lets them go on."""
        os.killpg(self.popen.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let a frozen process go on where it was."""
        os.killpg(self.popen.pid, signal.SIGCONT)

    def owns(self, worker: str) -> bool:
        """Say whether a step's `worker` (host:pid) is one of these processes; they must run still."""
        return os.getpgid(int(worker.rpartition(":")[2])) == self.popen.pid


@dataclass(frozen=True)
class Protected:
    """Ids of what a plan binds, and the vault's recovery key."""

    source: str
    vault: str
    plan: str
    recovery_key: str


class Installation:
    """Starts and ends processes with one environment; `api` is logged in as an administrator after `serve`."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder = folder
        port = free_port()
        self.environment = {
            **{name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "LANG", "TMPDIR")},
            **TIMES,
            "BACKUPSITE_VAR": str(folder / "var"),
            "BACKUPSITE_URL": f"http://127.0.0.1:{port}",
            "BACKUPSITE_HOST": "alpha",
            "DJANGO_SUPERUSER_PASSWORD": PASSWORD,
            **environment,
        }
        self.api = Api(f"http://127.0.0.1:{port}")
        self.account = ""
        self._processes: list[Process] = []

    def manage(self, *arguments: str) -> str:
        """Run a command of manage.py to its end and return what it printed."""
        done = subprocess.run(
            [sys.executable, "manage.py", *arguments],
            cwd=ROOT, env=self.environment, capture_output=True, text=True, timeout=100, check=False,
        )  # fmt: skip
        assert done.returncode == 0, (arguments, done.stdout[-2000:], done.stderr[-2000:])
        return done.stdout

    def start(self, name: str, *arguments: str, **environment: str) -> Process:
        """Start a Python process with children of its own."""
        log = self.folder / f"{len(self._processes):02}-{name}.log"
        with log.open("wb") as output:
            popen = subprocess.Popen(
                [sys.executable, *arguments],
                cwd=ROOT, env={**self.environment, **environment}, stdin=subprocess.DEVNULL,
                stdout=output, stderr=output, start_new_session=True,
            )  # fmt: skip
        process = Process(name, log, popen)
        self._processes.append(process)
        return process

    def serve(self, *, beats: int = 1) -> None:
        """Set up the database, start web and beat, log in and open an account."""
        self.set_up()
        self.run(beats=beats)
        self.account = self.api.post("accounts/", {"name": "acme"}, expect=201)["id"]

    def set_up(self) -> None:
        """Set up the database, with an administrator."""
        self.manage("migrate", "--verbosity=0")
        self.manage("setup_beat")
        self.manage("createsuperuser", "--noinput", "--username=root", "--email=root@example.org")

    def run(self, *, beats: int = 1) -> None:
        """Start web and beat, and log in."""
        self.start("web", "manage.py", "web")
        for number in range(beats):
            self.start(f"beat{number}", "-m", "celery", "-A", "backupsite", "beat", "--pidfile=", "--loglevel=INFO")
        until(self._answers, what=f"the web process\n{self.logs()}")
        self.api.login("root", PASSWORD)

    def _answers(self) -> bool:
        try:
            return bool(self.api.read("/healthz/live"))
        except urllib3.exceptions.HTTPError:
            return False

    def worker(self, *queues: str, steps: int = 2, host: str = "alpha") -> Process:
        """Start a worker: of the host `host` and every region, or of the named queues alone."""
        named = [f"--queue={queue}" for queue in queues]
        arguments = ["manage.py", "worker", f"--concurrency={steps}", *named]
        return self.start(f"worker-{'+'.join(queues) or 'all'}", *arguments, BACKUPSITE_HOST=host)

    @contextmanager
    def working(self, *queues: str, steps: int = 2, host: str = "alpha") -> Iterator[Process]:
        """Have a worker inside the block; it is killed at its end."""
        process = self.worker(*queues, steps=steps, host=host)
        try:
            yield process
        finally:
            process.kill()

    def end(self) -> None:
        """End everything that still runs."""
        for process in reversed(self._processes):
            process.kill()

    def cut_database(self) -> None:
        """End every connection to the database, as its restart does."""
        others = "datname = current_database() AND pid <> pg_backend_pid()"
        with psycopg.connect(self.environment["DATABASE_URL"]) as link:
            link.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {others}".encode())

    def logs(self) -> str:
        """Return the end of what every process wrote."""
        shown = [f"--- {one.name}\n{one.log.read_text(errors='replace')[-LOG_SHOWN:]}" for one in self._processes]
        return "\n".join(shown)

    def region(self, name: str, store: S3 | Path, bucket: str = "", **options: Any) -> dict[str, Any]:
        """Make a region on an S3 server or in a folder; return what the probe found."""
        values: dict[str, Any] = {"name": name, "url": str(store)}
        if isinstance(store, S3):
            values |= {"url": f"s3://{bucket}/backups", "endpoint": store.url, "store_region": store.region}
            values |= {"access_key": store.access_key, "secret_key": store.secret_key}
        answer: dict[str, Any] = self.api.post("regions/", values | options, expect=201)
        return answer

    def protect(
        self, name: str, root: Path, *, region: str = "main", host: str = "alpha", policy: dict[str, Any] | None = None
    ) -> Protected:
        """Make a vault, a source, a policy and the plan that binds them, all called `name`."""
        vault = self.api.post("vaults/", {"account": self.account, "region": region, "name": name}, expect=201)
        settings = {"roots": [str(root)]}
        wanted = {"account": self.account, "region": region, "name": name, "kind": "files"}
        source = self.api.post("sources/", wanted | {"host": host, "settings": settings}, expect=201)
        return self.bind(name, source["id"], vault["vault"]["id"], vault["recovery_key"], policy=policy)

    def source(
        self, name: str, kind: str, settings: dict[str, Any], *, host: str = "", expect: int = 201, **more: Any
    ) -> Any:
        """Make a source of any kind in the region main; `credentials` and `skip_check` among `more`."""
        wanted = {"account": self.account, "region": "main", "name": name, "kind": kind, "host": host}
        return self.api.post("sources/", wanted | {"settings": settings} | more, expect=expect)

    def bind(
        self, name: str, source: str, vault: str, recovery_key: str = "", *, policy: dict[str, Any] | None = None
    ) -> Protected:
        """Make a policy and a plan of that name."""
        made = self.api.post("policies/", {"account": self.account, "name": name} | (policy or {}), expect=201)
        plan = self.api.post("plans/", {"source": source, "policy": made["id"], "vault": vault}, expect=201)
        return Protected(source, vault, plan["id"], recovery_key)

    def backup(self, protected: Protected, *, expect: int = 202) -> Any:
        return self.api.post("jobs/", {"kind": "backup", "plan": protected.plan}, expect=expect)

    def restore(self, point: str, folder: Path, *, expect: int = 202, **wanted: Any) -> Any:
        return self.api.post("jobs/", {"kind": "restore", "point": point, "to": str(folder)} | wanted, expect=expect)

    def job(self, job: str) -> dict[str, Any]:
        found: dict[str, Any] = self.api.get(f"jobs/{job}/")
        return found

    def steps(self, job: str, **wanted: object) -> list[dict[str, Any]]:
        """Return the steps of a job whose fields have the wanted values, oldest first."""
        found = self.api.get(f"jobs/{job}/steps/", page_size=500)["results"]
        return sorted(
            (one for one in found if all(one[name] == value for name, value in wanted.items())),
            key=lambda one: one["id"],
        )

    def points(self, protected: Protected) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.api.get("recovery-points/", vault=protected.vault)["results"]
        return found

    def watch(self, job: str, look: Callable[[dict[str, Any]], object], *, seconds: float = 60) -> dict[str, Any]:
        """Return the job as soon as `look(job)` is true. Fails, with the logs, when it ends before."""

        def seen() -> dict[str, Any] | None:
            now = self.job(job)
            if look(now):
                return now
            assert now["state"] not in ENDED, f"{json.dumps(now, indent=1)}\n{self.logs()}"
            return None

        try:
            return until(seen, seconds=seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{json.dumps(self.job(job), indent=1)}\n{self.logs()}") from error

    def ended(self, job: str, state: str = "complete", *, seconds: float = 90) -> dict[str, Any]:
        """Wait for the job's end in this state and return it."""
        return self.watch(job, lambda now: now["state"] == state, seconds=seconds)

    def ring(self, step: dict[str, Any], times: int = 1) -> None:
        """Send a step's message again from outside."""
        with Celery(broker=self.environment["BROKER_URL"]) as app:
            for _ in range(times):
                app.send_task("jobs.run_step", args=(step["id"],), queue=step["queue"])


@contextmanager
def fresh_database(postgres: Postgres) -> Iterator[str]:
    """Have an empty database inside the block; give its address."""
    name = f"scenario_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(postgres.url, autocommit=True) as link:
        link.execute(f"CREATE DATABASE {name}".encode())
    try:
        yield f"{postgres.url.rpartition('/')[0]}/{name}"
    finally:
        with psycopg.connect(postgres.url, autocommit=True) as link:
            link.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)".encode())


@contextmanager
def fresh_bucket(service: S3) -> Iterator[str]:
    """Have a bucket inside the block, for the tests of a module; give its name."""
    client = s3_client(service)
    name = f"scenario-{uuid.uuid4().hex[:12]}"
    client.make_bucket(name)
    try:
        yield name
    finally:
        removed(client, name)


def removed(client: Minio, bucket: str) -> None:
    """Delete a bucket and what is in it, beside workers that may still be writing into it."""
    for attempt in range(20):
        keys = [DeleteObject(one.object_name or "") for one in client.list_objects(bucket, recursive=True)]
        assert not list(client.remove_objects(bucket, keys))
        try:
            client.remove_bucket(bucket)
            return
        except S3Error as error:
            if error.code != "BucketNotEmpty" or attempt == 19:
                raise


@contextmanager
def own_redis_number(service: Redis) -> Iterator[str]:
    """Have one of the server's numbered databases alone inside the block; give its address."""
    first = redis.Redis.from_url(service.url)
    claimed = (number for number in range(1, 16) if first.set(f"scenario:{number}", 1, nx=True, ex=900))
    number = next(claimed)
    url = f"redis://:{service.password}@{service.host}:{service.port}/{number}"
    with redis.Redis.from_url(url) as link:
        link.flushdb()
        try:
            yield url
        finally:
            link.flushdb()
            first.delete(f"scenario:{number}")
            first.close()


@contextmanager
def full_set(
    folder: Path, *, database: Postgres, broker: str, beats: int = 1, more: dict[str, str] | None = None
) -> Iterator[Installation]:
    """Have an installation with a fresh database and the given broker, served, inside the block.

    `more` are further variables of its environment.
    """
    with fresh_database(database) as database_url:
        environment = {
            "DATABASE_URL": database_url,
            "BROKER_URL": broker,
            "SECRET_KEY": "scenario-" + "k" * 50,
            "BACKUPSITE_FIELD_KEYS": "5c" * 32,
            "BACKUPSITE_KEY_FILE": str(folder / "service.key"),
            "ALLOWED_HOSTS": "127.0.0.1",
            **(more or {}),
        }
        installation = Installation(folder, environment)
        try:
            installation.serve(beats=beats)
            yield installation
        finally:
            installation.end()
