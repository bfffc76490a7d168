"""The real servers that tests run against: found running, or started once for the whole run by deploy/dev-services.

`tests.conftest` turns each into a session fixture. A test that asks for one carries the marker `services`.
"""

import json
import os
import subprocess
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import urllib3
from minio import Minio

T = TypeVar("T")
ROOT = Path(__file__).parent.parent
PROGRAM = ROOT / "deploy" / "dev-services"
NAMES = ("redis", "postgres", "minio", "minio-far", "radosgw", "mariadb", "dynalite", "milvus", "samba")


class ServiceMissing(Exception):
    """A server neither runs nor can be started; the text says why."""


@dataclass(frozen=True)
class Redis:
    """A Redis with a password; `url` names database 0."""

    host: str
    port: int
    password: str
    url: str


@dataclass(frozen=True)
class Postgres:
    """A PostgreSQL; the user may create databases, `url` names an empty one."""

    host: str
    port: int
    user: str
    password: str
    database: str
    url: str


@dataclass(frozen=True)
class Mariadb:
    """A MariaDB with a binary log; the user may do everything, `data` is its data folder."""

    host: str
    port: int
    user: str
    password: str
    data: str


@dataclass(frozen=True)
class Dynamo:
    """A server of the DynamoDB API that takes any keys."""

    port: int
    url: str
    region: str
    access_key: str
    secret_key: str


@dataclass(frozen=True)
class Milvus:
    """A Milvus Lite without users."""

    port: int
    uri: str


@dataclass(frozen=True)
class Samba:
    """A Samba with one account; `data` is where its share lies on this host's disk."""

    host: str
    port: int
    user: str
    password: str
    share: str
    data: str


@dataclass(frozen=True)
class S3:
    """An S3 server on plain HTTP; `endpoint` is host:port, `url` the same with its scheme."""

    name: str
    endpoint: str
    url: str
    access_key: str
    secret_key: str
    region: str


def state_folder() -> Path:
    """Return where deploy/dev-services keeps its state."""
    return Path(os.environ.get("BACKUPSITE_DEV_SERVICES") or ROOT / ".dev-services").absolute()


def running(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the servers that run, by name."""
    shown = _call("env", "--json", "--dir", str(folder))
    services: dict[str, dict[str, Any]] = json.loads(shown.stdout)
    return services


def start(name: str, folder: Path) -> dict[str, Any]:
    """Return the server's entry; start it when it doesn't run. Raises ServiceMissing.

    Safe to call from several processes at once: deploy/dev-services takes a lock.
    """
    done = _call("start", name, "--dir", str(folder))
    if entry := running(folder).get(name):
        return entry
    raise ServiceMissing(done.stderr.strip() or done.stdout.strip())


def stop(names: list[str], folder: Path) -> None:
    """End the servers and delete their data."""
    if names:
        _call("stop", *names, "--dir", str(folder))


def redis(entry: dict[str, Any]) -> Redis:
    return _described(Redis, entry)


def postgres(entry: dict[str, Any]) -> Postgres:
    return _described(Postgres, entry)


def mariadb(entry: dict[str, Any]) -> Mariadb:
    return _described(Mariadb, entry)


def dynamo(entry: dict[str, Any]) -> Dynamo:
    return _described(Dynamo, entry)


def milvus(entry: dict[str, Any]) -> Milvus:
    return _described(Milvus, entry)


def samba(entry: dict[str, Any]) -> Samba:
    return _described(Samba, entry)


def s3(name: str, entry: dict[str, Any]) -> S3:
    return _described(S3, {"name": name, **entry})


def s3_client(service: S3) -> Minio:
    """Return a client that gives up at once where the server refuses or is gone."""
    pool = urllib3.PoolManager(timeout=urllib3.Timeout(10), retries=False)
    return Minio(
        service.endpoint,
        access_key=service.access_key,
        secret_key=service.secret_key,
        region=service.region,
        secure=False,
        http_client=pool,
    )


def _described(kind: type[T], values: dict[str, Any]) -> T:
    return kind(**{field.name: values[field.name] for field in fields(kind)})  # type: ignore[arg-type]  # T is a dataclass


def _call(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(PROGRAM), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=110, stdin=subprocess.DEVNULL, check=False)
