"""The whole story of a Milvus cluster, on Milvus Lite as a server, through processes of the command line."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.scenarios.relay import Door
from tests.services import Milvus
from tests.support.milvus import Lite, client, empty, fill, items, lite, seen

pytestmark = [pytest.mark.scenario, pytest.mark.timeout(300)]
ROWS, MANY = 400, 7000


class Engine:
    """`python -m engine` on a vault in a folder, with sources and targets as files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._environment = os.environ | {
            "BACKUPSITE_KEY_FILE": str(folder / "service.key"),
            "BACKUPSITE_CACHE_DIR": str(folder / "cache"),
        }

    def start(self, verb: str, *arguments: object) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-m", "engine", verb, self.folder / "vault", *arguments, "--json"]
        return subprocess.Popen(
            list(map(str, command)),
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )

    def run(self, verb: str, *arguments: object, expect: int = 0) -> Any:
        process = self.start(verb, *arguments)
        out, err = process.communicate(timeout=100)
        assert process.returncode == expect, (process.returncode, out[-2000:], err[-2000:])
        return json.loads(out)

    def backup(self, uri: str, *, expect: int = 0, **fields: object) -> Any:
        return self.run("backup", "--source", self.named(uri, **fields), "--series", "cluster", expect=expect)

    def restore(self, uri: str, *arguments: object, expect: int = 0, **fields: object) -> Any:
        return self.run("restore", "latest", "--target", self.named(uri, **fields), *arguments, expect=expect)

    def named(self, uri: str, **fields: object) -> Path:
        """Write a source or target for the command line."""
        path = self.folder / "place.json"
        path.touch(0o600)
        path.write_text(json.dumps({"type": "milvus", "uri": uri, **fields}))
        return path


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    made = Engine(tmp_path)
    made.run("init")
    return made


@pytest.fixture
def cluster(milvus_service: Milvus) -> Iterator[str]:
    """Give the address of a server with databases, collections, partitions, indexes, aliases and rows."""
    empty(milvus_service.uri)
    fill(milvus_service.uri, rows=ROWS)
    yield milvus_service.uri
    empty(milvus_service.uri)


def without_ttl(found: dict[str, Any]) -> dict[str, Any]:
    """Return a cluster as a restore makes it by default: collections have no time to live (D4), keys are given."""
    text = json.dumps(found, sort_keys=True).replace("{'collection.ttl.seconds': '864000'}", "{}")
    restored: dict[str, Any] = json.loads(text)
    described = restored["archive"]["collections"]["empty"]["described"]
    described["auto_id"] = "False"
    described["fields"] = described["fields"].replace(", 'auto_id': True", "")
    return restored


def reported(outcome: dict[str, Any]) -> set[str]:
    return {problem["reason"] for problem in outcome["problems"]}


@pytest.mark.rule("D1", "D4")
def test_a_cluster_comes_back_on_a_fresh_server_and_only_changes_are_stored(
    engine: Engine, cluster: str, tmp_path: Path
) -> None:
    empty(cluster)
    fill(cluster, rows=MANY)
    first = engine.backup(cluster)
    assert (first["state"], first["problems"]) == ("complete", [])

    one = client(cluster)
    one.upsert("items", [{**row, "price": 1.25} for row in items(MANY)[100 : 100 + MANY // 100] if row["id"] % 4])
    one.delete("items", filter="id in [101, 102]")
    one.close()
    second = engine.backup(cluster)
    assert second["stats"]["bytes_read"] > 4_000_000
    assert second["stats"]["bytes_new"] < second["stats"]["bytes_read"] / 2

    before = seen(cluster)
    assert before["archive"]["collections"]["words"]["loaded"] is False  # as it was before it was read
    empty(cluster)
    with lite(tmp_path / "fresh") as fresh:
        outcome = engine.restore(fresh.uri)
        assert outcome["state"] == "complete"
        assert seen(fresh.uri) == without_ttl(before)
        assert reported(outcome) == {"adjusted"}
        assert any("collection.ttl.seconds (864000)" in problem["detail"] for problem in outcome["problems"])

        refused = engine.restore(fresh.uri, expect=1)
        assert "is there already" in json.dumps(refused)
        engine.restore(fresh.uri, "--include", "/databases/archive/collections/words", suffix="_again")
        again = seen(fresh.uri)["archive"]["collections"]
        assert again["words_again"]["rows"] == again["words"]["rows"]


def test_a_point_restored_into_a_folder_is_readable_without_this_program(
    engine: Engine, cluster: str, tmp_path: Path
) -> None:
    engine.backup(cluster)
    (tmp_path / "out").mkdir()
    engine.run("restore", "latest", "--to", tmp_path / "out")
    reader = (
        "import json, pyarrow, sys; rows = pyarrow.ipc.open_stream(sys.argv[1]).read_all();"
        "print(json.dumps(rows.select(['id', 'extra' if 'extra' in rows.column_names else 'name']).to_pylist()))"
    )
    place = tmp_path / "out/databases/default/collections/items"
    done = subprocess.run(
        [sys.executable, "-c", reader, place / "rows/north/rows.arrow"], capture_output=True, check=True
    )
    wanted = [{"id": row["id"], "name": row["name"]} for row in items(ROWS) if row["id"] % 4 == 0]
    assert json.loads(done.stdout) == wanted
    schema = json.loads((place / "0-schema.json").read_text())
    assert [field["name"] for field in schema["schema"]["fields"]][:2] == ["id", "name"]


def test_a_backup_whose_workers_are_killed_leaves_no_point_and_the_next_one_is_complete(
    engine: Engine, cluster: str
) -> None:
    process = engine.start("backup", "--source", engine.named(cluster), "--series", "cluster", "--workers", "2")
    while not list((engine.folder / "vault").glob("packs/*/*")) and process.poll() is None:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert engine.run("points")["points"] == []
    outcome = engine.backup(cluster)
    assert (outcome["state"], outcome["problems"]) == ("complete", [])
    assert [point["state"] for point in engine.run("points")["points"]] == ["complete"]


def test_a_server_that_goes_away_in_the_middle_leaves_no_point_and_a_clear_error(engine: Engine, cluster: str) -> None:
    door = Door(cluster.removeprefix("http://"))
    process = engine.start(
        "backup", "--source", engine.named(f"http://{door.endpoint}", timeout_s=5), "--series", "cluster"
    )
    while not list((engine.folder / "vault").glob("sessions/*")) and process.poll() is None:
        time.sleep(0.02)
    door.close()
    out, err = process.communicate(timeout=60)
    assert process.returncode == 1, (out, err)
    assert b"can't be used" in out + err
    assert engine.run("points")["points"] == []


def test_a_server_that_hangs_ends_the_backup_in_time(engine: Engine, tmp_path: Path) -> None:
    server = Lite(tmp_path / "hanging")
    server.start()
    try:
        server.pause()
        begun = time.monotonic()
        refused = engine.backup(server.uri, expect=1, timeout_s=2)
        assert "did not answer ListDatabases within 2 s" in json.dumps(refused)
        assert time.monotonic() - begun < 30
    finally:
        server.kill()


def test_an_address_where_nothing_listens_is_told_before_anything_is_written(engine: Engine) -> None:
    before = sorted(path for path in (engine.folder / "vault").rglob("*") if path.is_file())
    refused = engine.backup("http://127.0.0.1:1", expect=1, timeout_s=3)
    assert "the Milvus server at 127.0.0.1:1 can't be used" in json.dumps(refused)
    assert sorted(path for path in (engine.folder / "vault").rglob("*") if path.is_file()) == before
