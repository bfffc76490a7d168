"""A program's output as a source: kept as one file, or not at all."""

import os
from pathlib import Path

import msgspec
import pytest

from engine.errors import ExtraMissing, SourceError, SourceIncomplete, SourceUnavailable
from engine.ids import new_ulid
from engine.progress import Silent
from engine.sources.command import CommandSource
from engine.sources.kinds import AnySource
from engine.verbs import backup
from tests.support.runs import run_backup
from tests.support.vaults import Bench, contents


def source(script: str, **options: object) -> CommandSource:
    return CommandSource(argv=("sh", "-c", script), host="here", **options)  # type: ignore[arg-type] # as given


def backed_up(bench: Bench, given: CommandSource) -> backup.Outcome:
    """Back up; units and results travel as they do between processes."""
    order = backup.BackupJob(session=new_ulid(bench.clock()), series="dump", source=given, started_at=bench.clock())
    return run_backup(bench, order)


def test_what_a_program_writes_is_kept_as_a_file_of_the_name_that_was_asked_for() -> None:
    bench = Bench()
    outcome = backed_up(bench, source("seq 300000; echo '-- done'", name="numbers.txt", marker="-- done"))
    (name,) = bench.open().points()
    expected = "".join(f"{number}\n" for number in range(1, 300_001)).encode() + b"-- done\n"
    assert contents(bench.open(), name) == {b"numbers.txt": expected}
    assert (outcome.state, outcome.stats.bytes) == ("complete", len(expected))


def test_the_next_dump_stores_only_what_changed() -> None:
    bench = Bench()
    first = backed_up(bench, source("seq 1000000"))
    second = backed_up(bench, source("seq 999999; echo last"))
    assert second.stats.bytes_read == pytest.approx(first.stats.bytes_read, abs=10)
    assert 0 < second.stats.bytes_new < first.stats.bytes_new / 2


@pytest.mark.parametrize(
    ("script", "told"),
    [
        ("seq 100000; echo 'lost connection' >&2; exit 2", "ended with code 2: lost connection"),
        ("seq 100000; exit 0", "without the sign of completeness '-- done'"),
        ("seq 100000; kill -9 $$", "killed by signal 9"),
    ],
)
def test_a_program_that_fails_or_ends_without_its_marker_makes_no_point(script: str, told: str) -> None:
    bench = Bench()
    with pytest.raises(SourceIncomplete, match=told):
        backed_up(bench, source(script, marker="-- done"))
    assert bench.open().points() == []


def test_a_program_that_hangs_makes_no_point() -> None:
    bench = Bench()
    with pytest.raises(SourceUnavailable, match="written nothing"):
        backed_up(bench, source("echo begun; exec sleep 30", idle_s=0.3))
    assert bench.open().points() == []


def test_nothing_is_written_when_the_program_is_not_there() -> None:
    bench = Bench()
    before = bench.objects()
    with pytest.raises(ExtraMissing, match="install it, or give its whole path"):
        backed_up(bench, CommandSource(argv=("no-such-dump",), host="here"))
    assert bench.objects() == before


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "nul\0"])
def test_a_name_that_is_no_files_is_refused(name: str) -> None:
    with pytest.raises(SourceError, match="name of a file"):
        source("true", name=name).check()


@pytest.mark.parametrize("argv", [(), ("",)])
def test_no_command_is_refused(argv: tuple[str, ...]) -> None:
    with pytest.raises(SourceError, match="no command was given"):
        CommandSource(argv=argv, host="here").check()


def test_a_program_is_looked_for_where_it_will_be_looked_for(tmp_path: Path) -> None:
    program = tmp_path / "own-dump"
    program.write_text("#!/bin/sh\necho own\n")
    program.chmod(0o755)
    with pytest.raises(ExtraMissing):
        CommandSource(argv=("own-dump",), host="here").check()
    found = CommandSource(argv=("own-dump",), host="here", env={"PATH": f"{tmp_path}:{os.environ['PATH']}"})
    found.check()
    bench = Bench()
    backed_up(bench, found)
    assert contents(bench.open(), bench.open().points()[0]) == {b"output": b"own\n"}


def test_secrets_of_the_environment_are_nowhere_to_be_read() -> None:
    bench = Bench()
    given = source('printf %s "$PASSWORD" | wc -c', env={"PASSWORD": "hunter2hunter2"})
    backed_up(bench, given)
    name = bench.open().points()[0]
    body = bench.open().root(name).body
    assert contents(bench.open(), name) == {b"output": b"14\n"}
    assert "hunter2" not in repr(given) + str(given.identity()) + str(given.options()) + repr(body)


def test_it_travels_as_json_as_people_write_it() -> None:
    text = '{"type": "command", "argv": ["pg_dump", "shop"], "host": "db1", "marker": "done"}'
    found = msgspec.json.decode(text, type=AnySource)
    assert found == CommandSource(argv=("pg_dump", "shop"), host="db1", marker="done")
    assert msgspec.json.decode(msgspec.json.encode(found), type=AnySource) == found


def test_a_backup_that_is_stopped_ends_the_program(tmp_path: Path) -> None:
    bench = Bench()
    script = f"echo $$ > {tmp_path}/pid; exec cat /dev/zero"
    order = backup.BackupJob(
        session=new_ulid(bench.clock()), series="dump", source=source(script), started_at=bench.clock()
    )

    class Impatient(Silent):
        def add(self, *, entries: int = 0, bytes: int = 0, bytes_stored: int = 0) -> None:
            self.canceled = bytes > 0

    with pytest.raises(Exception, match="canceled"):
        run_backup(bench, order, progress=Impatient())
    pid = int((tmp_path / "pid").read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert bench.open().points() == []
