"""Sources of several kinds through the service: saved, tried, planned, backed up, restored; and what goes wrong."""

import io
import socket
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from minio import Minio

from tests.scenarios.installation import (
    Installation,
    Protected,
    fresh_bucket,
    fresh_database,
    full_set,
    own_redis_number,
    until,
)
from tests.scenarios.relay import Door
from tests.services import S3, Postgres, Redis, s3_client

pytestmark = [pytest.mark.scenario, pytest.mark.slow, pytest.mark.timeout(200)]
LOOPBACK = "127.0.0.0/8,::1/128"
COPY = "import pathlib, sys; sys.stdout.buffer.write(pathlib.Path(sys.argv[1]).read_bytes()); print('-- end')"
LOAD = "import pathlib, sys; pathlib.Path(sys.argv[1]).write_bytes(sys.stdin.buffer.read())"
SLOWLY = """
import pathlib, sys, time
for number in range(int(sys.argv[1])):
    sys.stdout.buffer.write(bytes([number]) * 200_000)
    sys.stdout.flush()
    time.sleep(0.1)
"""


@pytest.fixture(scope="module")
def site(
    tmp_path_factory: pytest.TempPathFactory, postgres_service: Postgres, redis_service: Redis
) -> Iterator[Installation]:
    """An installation whose operator allows sources on loopback; its vaults lie in a folder."""
    folder = tmp_path_factory.mktemp("sources")
    with own_redis_number(redis_service) as broker:
        more = {"BACKUPSITE_SOURCE_NETWORKS": LOOPBACK, "BACKUPSITE_SOURCE_CHECK_S": "8"}
        with full_set(folder, database=postgres_service, broker=broker, more=more) as installation:
            installation.region("main", folder / "store")
            yield installation


@pytest.fixture
def worker(site: Installation) -> Iterator[None]:
    """A worker of the host alpha and the region; the service knows that it is there."""
    with site.working():
        source = site.source(f"seen {uuid.uuid4().hex}", "command", {"argv": ["true"]}, host="alpha")
        until(lambda: _answers(site, source), seconds=30, what="the worker")
        yield


def _answers(site: Installation, source: dict[str, Any]) -> bool:
    try:
        site.api.post(f"sources/{source['id']}/test/", expect=202)
    except AssertionError:
        return False
    return True


def planned(site: Installation, source: dict[str, Any]) -> Protected:
    """Give a source a vault and a plan."""
    vault = site.api.post("vaults/", {"account": site.account, "region": "main", "name": source["name"]}, expect=201)
    return site.bind(source["name"], source["id"], vault["vault"]["id"])


def backed_up(site: Installation, protected: Protected) -> dict[str, Any]:
    return site.ended(site.backup(protected)["id"])


def restored(site: Installation, point: str, **wanted: Any) -> dict[str, Any]:
    job = site.api.post("jobs/", {"kind": "restore", "point": point} | wanted, expect=202)
    return site.ended(job["id"])


def tried(site: Installation, source: dict[str, Any]) -> dict[str, Any]:
    """Try the connection on the source's host and return the row once its worker answered."""
    before = site.api.post(f"sources/{source['id']}/test/", expect=202)["checked_at"]
    look = f"sources/{source['id']}/"
    until(lambda: site.api.get(look)["checked_at"] != before, seconds=30, what="the worker's answer")
    found: dict[str, Any] = site.api.get(look)
    return found


def test_a_programs_output_is_kept_and_given_back_to_a_program_and_to_a_folder(
    site: Installation, worker: None, tmp_path: Path
) -> None:
    book, loaded, out = tmp_path / "book", tmp_path / "loaded", tmp_path / "out"
    out.mkdir()
    book.write_text("first edition\n" * 1000)
    settings = {
        "argv": [sys.executable, "-c", COPY, str(book)],
        "restore_argv": [sys.executable, "-c", LOAD, str(loaded)],
        "name": "book.txt",
        "marker": "-- end",
    }
    source = site.source("book", "command", settings, host="alpha")
    assert tried(site, source)["check_error"] == ""
    protected = planned(site, source)
    first = backed_up(site, protected)
    book.write_text("second edition\n" * 1000)
    second = backed_up(site, protected)
    assert (first["units_done"], len(site.steps(first["id"], stage="work"))) == (first["units_total"], 1)
    book.unlink()
    failed = site.ended(site.backup(protected)["id"], "failed")
    assert failed["error_code"] == "source_incomplete"
    assert len(site.points(protected)) == 2
    restored(site, second["point"])
    assert loaded.read_text() == "second edition\n" * 1000 + "-- end\n"
    folder = site.source("alpha's folders", "files", {"roots": [str(out)]}, host="alpha")
    restored(site, first["point"], destination=folder["id"], to=str(out))
    assert (out / "book.txt").read_text() == "first edition\n" * 1000 + "-- end\n"


def test_a_database_is_kept_lost_and_given_back_under_its_name_and_another(
    site: Installation, worker: None, postgres_service: Postgres
) -> None:
    with fresh_database(postgres_service) as url:
        name = url.rpartition("/")[2]
        with psycopg.connect(url) as link:
            link.execute("CREATE TABLE shop AS SELECT g AS id, md5(g::text) AS word FROM generate_series(1, 20000) g")
        source = site.source(
            name, "postgres", settings_of(postgres_service, name), host="alpha", credentials=key(postgres_service)
        )
        assert tried(site, source)["check_error"] == ""
        protected = planned(site, source)
        backed_up(site, protected)
        with psycopg.connect(url) as link:
            link.execute("INSERT INTO shop VALUES (0, 'the newest')")
        job = backed_up(site, protected)
        assert job["report"]["stats"]["bytes_read"] > 500_000
        assert job["bytes_stored"] < job["report"]["stats"]["bytes_read"] / 2
        with psycopg.connect(postgres_service.url, autocommit=True) as link:
            link.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())
        restored(site, job["point"])
        assert rows(url) == 20001
        restored(site, job["point"], to="_copy")
        assert rows(f"{url}_copy") == 20001
        with psycopg.connect(postgres_service.url, autocommit=True) as link:
            link.execute(f"DROP DATABASE {name}_copy WITH (FORCE)".encode())


def settings_of(server: Postgres, database: str, port: int = 0) -> dict[str, Any]:
    return {"server": "127.0.0.1", "port": port or server.port, "user": server.user, "databases": [database]}


def key(server: Postgres) -> dict[str, str]:
    return {"password": server.password}


def rows(url: str) -> int:
    with psycopg.connect(url) as link:
        found = link.execute("SELECT count(*) FROM shop").fetchone()
    assert found is not None
    return int(found[0])


def test_wrong_credentials_are_told_and_never_repeated(
    site: Installation, worker: None, postgres_service: Postgres
) -> None:
    wrong = {"password": "not-the-password-at-all"}
    settings = settings_of(postgres_service, postgres_service.database)
    source = site.source("wrong key", "postgres", settings, host="alpha", credentials=wrong)
    found = tried(site, source)
    assert "password" in found["check_error"]
    job = site.ended(site.backup(planned(site, source))["id"], "failed")
    assert (job["error_code"], job["point"]) == ("source_denied", None)
    assert "not-the-password" not in str(job) + str(found) + str(site.steps(job["id"])) + site.logs()


def test_a_worker_that_is_killed_in_the_middle_of_a_stream_is_replaced(site: Installation) -> None:
    settings = {"argv": [sys.executable, "-c", SLOWLY, "60"], "name": "slow.bin"}
    protected = planned(site, site.source("slow", "command", settings, host="alpha"))
    with site.working() as first:
        job = site.backup(protected)["id"]
        site.watch(
            job, lambda now: now["bytes_done"] or now["bytes_stored"] or site.steps(job, stage="work", state="running")
        )
        first.kill()
    assert site.points(protected) == []
    with site.working():
        done = site.ended(job)
    assert done["report"]["stats"]["bytes_read"] == 60 * 200_000
    assert [step["attempt"] for step in site.steps(job, stage="work")] == [2]


def test_a_server_that_is_gone_leaves_no_point_and_the_job_goes_on_when_it_is_back(
    site: Installation, worker: None, postgres_service: Postgres
) -> None:
    door = Door(f"127.0.0.1:{postgres_service.port}")
    port = int(door.endpoint.rpartition(":")[2])
    settings = settings_of(postgres_service, postgres_service.database, port)
    source = site.source("behind a door", "postgres", settings, host="alpha", credentials=key(postgres_service))
    protected = planned(site, source)
    door.close()
    job = site.backup(protected)["id"]
    site.watch(job, lambda now: any("will be tried again" in event["text"] for event in now["events"]))
    [told] = {
        event["text"].partition("tried again: ")[2] for event in site.job(job)["events"] if "again" in event["text"]
    }
    assert str(port) in told
    assert site.points(protected) == []
    door.open()
    assert site.ended(job)["point"]
    door.close()


class TestBucket:
    """What is read over the network: no host, any worker of the region."""

    @pytest.fixture
    def bucket(self, minio_service: S3) -> Iterator[str]:
        with fresh_bucket(minio_service) as name:
            yield name

    def settings(self, service: S3, bucket: str, url: str = "") -> dict[str, Any]:
        return {"endpoint": url or service.url, "bucket": bucket, "region": service.region}

    def keys(self, service: S3) -> dict[str, str]:
        return {"access_key": service.access_key, "secret_key": service.secret_key}

    @pytest.mark.rule("A1", "A29")
    def test_objects_that_were_deleted_overwritten_and_changed_come_back_and_go_elsewhere(
        self, site: Installation, worker: None, minio_service: S3, bucket: str
    ) -> None:
        client = s3_client(minio_service)
        tree = {f"shop/{number}": bytes([number]) * 50_000 for number in range(40)}
        put(client, bucket, tree)
        source = site.source(
            "bucket", "bucket", self.settings(minio_service, bucket), credentials=self.keys(minio_service)
        )
        assert (source["host"], source["check_error"], bool(source["checked_at"])) == ("", "", True)
        protected = planned(site, source)
        first = backed_up(site, protected)
        assert {step["queue"] for step in site.steps(first["id"])} == {"region.main"}
        assert first["report"]["requests"]["GET"] >= 1
        put(client, bucket, {"shop/0": b"another"})
        second = backed_up(site, protected)
        assert second["report"]["stats"]["bytes_read"] == len(b"another")
        client.remove_object(bucket, "shop/1")
        put(client, bucket, {"shop/2": b"overwritten by mistake", "shop/3": tree["shop/3"] + b"more"})
        now = tree | {"shop/0": b"another"}
        restored(site, second["point"], same_name="overwrite", overwrite_confirmed=True)
        assert objects(client, bucket) == now
        restored(site, second["point"], to="elsewhere/")
        assert objects(client, bucket) == now | {f"elsewhere/{name}": data for name, data in now.items()}

    @pytest.mark.rule("A30")
    def test_a_bucket_is_tried_before_it_is_saved(self, site: Installation, minio_service: S3, bucket: str) -> None:
        settings = self.settings(minio_service, bucket)
        wrong = {"access_key": minio_service.access_key, "secret_key": "not-the-secret-key"}
        refused = site.source("wrong", "bucket", settings, credentials=wrong, expect=409)
        assert refused["errors"][0]["code"] == "source_unreachable"
        assert "not-the-secret-key" not in str(refused) + site.logs()
        missing = self.settings(minio_service, f"{bucket}-missing")
        refused = site.source("wrong", "bucket", missing, credentials=self.keys(minio_service), expect=409)
        assert refused["errors"][0]["code"] == "source_unreachable"
        saved = site.source("wrong", "bucket", missing, credentials=self.keys(minio_service), skip_check=True)
        assert saved["checked_at"] is None
        tried = site.api.post(f"sources/{saved['id']}/test/", expect=200)
        assert tried["check_error"]
        assert tried["checked_at"]

    def test_an_internal_address_that_nobody_allowed_is_refused(self, site: Installation, minio_service: S3) -> None:
        settings = self.settings(minio_service, "shop", "http://10.1.2.3:9000")
        refused = site.source("inside", "bucket", settings, skip_check=True, expect=409)
        assert refused["errors"][0]["code"] == "address_refused"

    def test_a_store_that_hangs_is_given_up_soon(self, site: Installation, minio_service: S3) -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            url = f"http://127.0.0.1:{silent.getsockname()[1]}"
            started = time.monotonic()
            settings = self.settings(minio_service, "shop", url)
            refused = site.source("hangs", "bucket", settings, credentials=self.keys(minio_service), expect=409)
            assert time.monotonic() - started < 20
        assert refused["errors"][0]["code"] == "source_unreachable"


def put(client: Minio, bucket: str, tree: dict[str, bytes]) -> None:
    for name, data in tree.items():
        client.put_object(bucket, name, io.BytesIO(data), len(data))


def objects(client: Minio, bucket: str) -> dict[str, bytes]:
    names = [one.object_name or "" for one in client.list_objects(bucket, recursive=True)]
    found = {}
    for name in names:
        answer = client.get_object(bucket, name)
        found[name] = answer.read()
        answer.close()
        answer.release_conn()
    return found


def test_nobody_can_look_at_a_source_while_its_host_is_off(site: Installation) -> None:
    source = site.source("off", "command", {"argv": ["true"]}, host="omega")
    refused = site.api.post(f"sources/{source['id']}/test/", expect=409)
    assert refused["errors"][0]["code"] == "host_offline"
