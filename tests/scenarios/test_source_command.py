"""A dump program's output: backed up, changed, backed up, lost, loaded again; and everything that can end it early.

The dump and the load are SQLite's own, run as programs; what was loaded is read by a third program, row by row.
"""

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from engine.sources.command import CommandSource
from engine.targets.command import CommandTarget
from engine.targets.files import FilesTarget
from tests.support.engine_program import EngineProgram

pytestmark = [pytest.mark.scenario, pytest.mark.timeout(120)]
DUMP = """
import sqlite3, sys
for line in sqlite3.connect(sys.argv[1]).iterdump():
    sys.stdout.write(line + "\\n")
"""
LOAD = """
import sqlite3, sys
text = sys.stdin.read()
if not text.rstrip().endswith("COMMIT;"):
    sys.exit("the dump is not whole")
sqlite3.connect(sys.argv[1]).executescript(text)
"""
ROWS = 40_000


@pytest.fixture
def engine(tmp_path: Path) -> EngineProgram:
    return EngineProgram(tmp_path)


@pytest.fixture
def database(tmp_path: Path) -> Path:
    path = tmp_path / "shop.sqlite"
    rng = random.Random(1)
    with sqlite3.connect(path) as connection:
        connection.execute("create table orders (id integer primary key, customer text, total real)")
        rows = ((number, rng.randbytes(30).hex(), rng.random()) for number in range(ROWS))
        connection.executemany("insert into orders values (?, ?, ?)", rows)
    connection.close()
    return path


def dump(database: Path, **options: object) -> CommandSource:
    argv = (sys.executable, "-c", DUMP, str(database))
    return CommandSource(argv=argv, host="here", name="shop.sql", marker="COMMIT;", **options)  # type: ignore[arg-type] # as given


def rows(database: Path) -> str:
    """Return the digest of all rows, computed by a program of its own."""
    script = (
        "import sqlite3, hashlib, sys; h = hashlib.sha256()\n"
        "for row in sqlite3.connect(sys.argv[1]).execute('select * from orders order by id'):\n"
        "    h.update(repr(row).encode())\n"
        "print(h.hexdigest())"
    )
    done = subprocess.run([sys.executable, "-c", script, str(database)], capture_output=True, text=True, check=True)
    return done.stdout


def test_a_database_is_dumped_changed_dumped_lost_and_loaded_again(
    engine: EngineProgram, database: Path, tmp_path: Path
) -> None:
    first = engine.back_up(dump(database))
    before = rows(database)
    with sqlite3.connect(database) as connection:
        connection.execute("update orders set total = -1 where id between 20000 and 20010")
        connection.execute("insert into orders values (?, 'new', 1.5)", (ROWS,))
    connection.close()
    after = rows(database)
    second = engine.back_up(dump(database))
    stats = first["stats"], second["stats"]
    assert stats[1]["bytes_read"] == stats[1]["bytes"] > 3_000_000
    assert stats[1]["bytes_new"] < stats[0]["bytes_new"] / 2, stats
    assert stats[1]["bytes_stored"] < stats[0]["bytes_stored"] / 2, stats
    database.unlink()
    load = (sys.executable, "-c", LOAD)
    engine.restore(CommandTarget(argv=(*load, str(database)), host="here"), point=second["point"])
    assert rows(database) == after
    other = tmp_path / "other.sqlite"
    engine.restore(CommandTarget(argv=(*load, str(other)), host="here"), point=first["point"])
    assert rows(other) == before


def test_a_dump_can_be_had_as_a_file_and_loaded_by_hand(engine: EngineProgram, database: Path, tmp_path: Path) -> None:
    point = engine.back_up(dump(database))["point"]
    (tmp_path / "out").mkdir()
    engine.restore(FilesTarget(root=os.fsencode(tmp_path / "out")), point=point)
    copy = tmp_path / "copy.sqlite"
    with (tmp_path / "out" / "shop.sql").open("rb") as file:
        subprocess.run([sys.executable, "-c", LOAD, str(copy)], stdin=file, check=True)
    assert rows(copy) == rows(database)


def test_a_backup_that_is_killed_leaves_no_point_and_no_program_and_the_next_one_completes(
    engine: EngineProgram, database: Path, tmp_path: Path
) -> None:
    slow = f"import os, sys, time; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))\n"
    slow += "while True:\n    sys.stdout.write('x' * 100_000); sys.stdout.flush(); time.sleep(0.01)\n"
    process = engine.backing_up(CommandSource(argv=(sys.executable, "-c", slow), host="here", name="shop.sql"))
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        assert process.poll() is None
        time.sleep(0.02)
    time.sleep(0.3)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert engine.points("home") == []
    assert is_gone(int((tmp_path / "pid").read_text()))
    engine.back_up(dump(database))
    engine.run("verify", "--level", "content")
    assert len(engine.points("home")) == 1


def is_gone(pid: int) -> bool:
    """Say whether the program ended within a few seconds: its next write finds nobody."""
    deadline_s = time.monotonic() + 10
    while time.monotonic() < deadline_s:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize(
    ("script", "told"),
    [
        (
            "{dump} | head -c 3000000; echo 'the server closed the connection' >&2; exit 2",
            "server closed the connection",
        ),
        ("{dump} | head -c 3000000; exit 0", "without the sign of completeness 'COMMIT;'"),
        ("echo 'password authentication failed' >&2; exit 1", "password authentication failed"),
        ("exit 0", "without the sign of completeness"),
    ],
)
def test_a_dump_that_fails_in_the_middle_or_ends_early_makes_no_point(
    engine: EngineProgram, database: Path, script: str, told: str
) -> None:
    whole = f"'{sys.executable}' -c '{DUMP}' '{database}' 2>/dev/null"
    source = CommandSource(argv=("sh", "-c", script.format(dump=whole)), host="here", marker="COMMIT;")
    assert told in engine.back_up(source, expect=1)
    assert engine.points("home") == []


def test_a_program_that_is_not_there_is_told_before_anything_is_written(engine: EngineProgram) -> None:
    before = engine.stored()
    said = engine.back_up(CommandSource(argv=("no-such-dump",), host="db1"), expect=1)
    assert "the program 'no-such-dump' is not there on db1" in said
    assert engine.stored() == before


def test_a_server_that_hangs_is_given_up(engine: EngineProgram) -> None:
    source = CommandSource(argv=("sh", "-c", "echo begun; exec sleep 60"), host="here", idle_s=0.5)
    assert "has written nothing for 0.5 s" in engine.back_up(source, expect=1)
    assert engine.points("home") == []


def test_a_load_that_fails_is_told_in_its_own_words(engine: EngineProgram, database: Path) -> None:
    point = engine.back_up(dump(database))["point"]
    refuse = CommandTarget(argv=("sh", "-c", "cat >/dev/null; echo 'table orders exists' >&2; exit 3"), host="here")
    assert "ended with code 3: table orders exists" in engine.restore(refuse, point=point, expect=1)


def test_secrets_are_seen_by_the_program_alone(engine: EngineProgram, tmp_path: Path) -> None:
    script = f"env > {tmp_path}/env; cat /proc/$$/cmdline /proc/$PPID/cmdline > {tmp_path}/seen; echo rows"
    source = CommandSource(argv=("sh", "-c", script), host="here", env={"PGPASSWORD": "hunter2hunter2"})
    engine.back_up(source)
    assert "PGPASSWORD=hunter2hunter2" in (tmp_path / "env").read_text()
    assert b"hunter2" not in (tmp_path / "seen").read_bytes()
    assert not [path for path in engine.vault.rglob("*") if path.is_file() and b"hunter2" in path.read_bytes()]
