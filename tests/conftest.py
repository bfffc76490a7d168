"""Fixtures for every test: a clean environment, and the real servers on request.

`redis_service`, `postgres_service`, `minio_service` and `radosgw_service` describe one server each (tests/services.py);
`s3_service` runs the test once on each S3 server; `s3_bucket` makes buckets that go away with the test. A test
that uses one carries the marker `services`. A server that can't be started fails the test in CI, and skips it
elsewhere with one loud line at the end of the run.
"""

import contextlib
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import pytest
from minio import Minio
from minio.deleteobjects import DeleteObject
from minio.error import S3Error

from tests import services
from tests.services import S3, Dynamo, Mariadb, Milvus, Postgres, Redis, Samba

if TYPE_CHECKING:
    from tests.support.mariadb import OwnServer
    from tests.support.tokens import SoftToken

# Read once, before the environment is wiped for each test.
KEPT_RUNNING = services.state_folder()
IN_CI = os.environ.get("CI", "").lower() not in {"", "0", "false"}
OWN_FOLDER = "DEV_SERVICES_OF_THIS_RUN"
MISSING = re.compile(r"SERVICE MISSING: ([\w-]+): (.*)", re.DOTALL)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kills", default="100", help="How often the kill loop kills; thousands for a night.")


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        os.environ[OWN_FOLDER] = tempfile.mkdtemp(prefix="backupsite-services-")


def pytest_unconfigure(config: pytest.Config) -> None:
    """End the servers that were started for this run; those that ran before it stay."""
    if not hasattr(config, "workerinput") and (own := os.environ.pop(OWN_FOLDER, None)):
        if (Path(own) / "state.json").exists():
            services.stop(list(services.NAMES), Path(own))
        shutil.rmtree(own, ignore_errors=True)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    names = {"s3_service", "own_mariadb", *(f"{name.replace('-', '_')}_service" for name in services.NAMES)}
    for item in items:
        if names & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.services)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reasons = {}
    for report in terminalreporter.getreports("skipped"):
        text = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if found := MISSING.search(text):
            reasons[found[1]] = " ".join(found[2].split())
    if reasons:
        line = "; ".join(f"{name}: {reason}" for name, reason in sorted(reasons.items()))
        terminalreporter.write_line(f"SKIPPED SERVICES: {line}", red=True, bold=True)


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the machine's own BACKUPSITE_* variables from the test and from what it starts."""
    for name in list(os.environ):
        if name.startswith("BACKUPSITE_") and name != "BACKUPSITE_VAR":
            monkeypatch.delenv(name)


def _missing(name: str, reason: object) -> NoReturn:
    """Fail the test in CI, skip it elsewhere."""
    text = f"SERVICE MISSING: {name}: {reason}"
    if IN_CI:
        pytest.fail(text, pytrace=False)
    pytest.skip(text)


def _entry(name: str) -> dict[str, Any]:
    """Find or start a server; fail or skip the test when that can't be done."""
    try:
        return services.running(KEPT_RUNNING).get(name) or services.start(name, Path(os.environ[OWN_FOLDER]))
    except services.ServiceMissing as missing:
        _missing(name, missing)


@contextlib.contextmanager
def _own_entry(name: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """Give each test process a server of its own, where tests use one whole: two would meet each other's tables."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        yield _entry(name)
        return
    folder = tmp_path_factory.mktemp(name)
    try:
        yield services.start(name, folder)
    except services.ServiceMissing as missing:
        _missing(name, missing)
    finally:
        services.stop([name], folder)


@pytest.fixture(scope="session")
def django_db_setup(django_db_setup: None) -> None:
    """Let tests with real transactions end: the audit trail refuses to be emptied."""
    # The engine's tests also run where Django is not installed.
    from tests.support.trail import let_tests_empty_the_trail

    let_tests_empty_the_trail()


@pytest.fixture(scope="session")
def chromium() -> str:
    """Return the path of an installed Chromium."""
    found = (shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome"))
    return next((path for path in found if path), None) or _missing("chromium", "it is not installed")


@pytest.fixture(scope="session")
def soft_token(tmp_path_factory: pytest.TempPathFactory) -> "SoftToken":
    """Return a fresh PKCS#11 token in software."""
    # The engine's tests also run where the package for tokens is not installed.
    from tests.support import tokens

    try:
        return tokens.make(tmp_path_factory.mktemp("token"))
    except tokens.TokenMissing as missing:
        _missing("softhsm2", missing)


@pytest.fixture(scope="session")
def redis_service() -> Redis:
    return services.redis(_entry("redis"))


@pytest.fixture(scope="session")
def postgres_service() -> Postgres:
    return services.postgres(_entry("postgres"))


@pytest.fixture(scope="session")
def mariadb_service() -> Mariadb:
    return services.mariadb(_entry("mariadb"))


@pytest.fixture(scope="session")
def own_mariadb(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> "Iterator[OwnServer]":
    """Give a MariaDB that this test process has for itself: nobody else purges its logs or makes databases in it."""
    # Most test processes never come to MariaDB.
    from tests.support.mariadb import OwnServer, is_installed

    if not is_installed():
        request.getfixturevalue("mariadb_service")  # skips or fails
    own = OwnServer(tmp_path_factory.mktemp("mariadb"))
    yield own
    own.end()


@pytest.fixture(scope="session")
def minio_service() -> S3:
    return services.s3("minio", _entry("minio"))


@pytest.fixture(scope="session")
def minio_far_service() -> S3:
    """Return a second MinIO: another region."""
    return services.s3("minio-far", _entry("minio-far"))


@pytest.fixture(scope="session")
def radosgw_service() -> S3:
    return services.s3("radosgw", _entry("radosgw"))


@pytest.fixture(scope="session")
def dynalite_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dynamo]:
    with _own_entry("dynalite", tmp_path_factory) as entry:
        yield services.dynamo(entry)


@pytest.fixture(scope="session")
def milvus_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Milvus]:
    with _own_entry("milvus", tmp_path_factory) as entry:
        yield services.milvus(entry)


@pytest.fixture(scope="session")
def samba_service() -> Samba:
    return services.samba(_entry("samba"))


@pytest.fixture(params=["minio", "radosgw"])
def s3_service(request: pytest.FixtureRequest) -> S3:
    """Run the test once on each S3 server."""
    service: S3 = request.getfixturevalue(f"{request.param}_service")
    return service


@pytest.fixture
def s3_bucket() -> Iterator[Callable[..., str]]:
    """Give a maker of fresh buckets: `s3_bucket(service, object_lock=True)` returns the name."""
    made: list[tuple[Minio, str]] = []

    def make(service: S3, *, object_lock: bool = False) -> str:
        client = services.s3_client(service)
        name = f"test-{uuid.uuid4().hex[:16]}"
        client.make_bucket(name, object_lock=object_lock)
        made.append((client, name))
        return name

    yield make
    for client, name in made:
        _remove_bucket(client, name)


def _remove_bucket(client: Minio, name: str) -> None:
    versions = client.list_objects(name, recursive=True, include_version=True)
    targets = [DeleteObject(one.object_name or "", one.version_id) for one in versions]
    locked = list(client.remove_objects(name, targets, bypass_governance_mode=True))
    try:
        client.remove_bucket(name)
    except S3Error:
        # A compliance lock outlives the test; the server's data goes when it stops.
        if not locked:
            raise
