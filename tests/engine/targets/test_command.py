"""A program's input as a target: it gets each file whole, its exit code decides, its secrets stay its own."""

import json
import os
from pathlib import Path

import msgspec
import pytest

from engine.entries import Entry, Kind
from engine.errors import ExtraMissing, TargetError, TargetFailed, TargetUnavailable
from engine.ids import new_ulid
from engine.session import open_sessions
from engine.sources.command import CommandSource
from engine.targets.command import CommandTarget
from engine.targets.kinds import AnyTarget
from engine.verbs import backup
from tests.support.runs import Stopping, backed_up, restored, run_backup
from tests.support.vaults import Bench, write_files

MIB = 1 << 20


def target(script: str, **options: object) -> CommandTarget:
    return CommandTarget(argv=("sh", "-c", script), host="here", **options)  # type: ignore[arg-type] # as given


def dumped(bench: Bench, script: str) -> None:
    source = CommandSource(argv=("sh", "-c", script), host="here")
    run_backup(
        bench,
        backup.BackupJob(session=new_ulid(bench.clock()), series="d", source=source, started_at=bench.clock()),
    )


def test_a_dump_goes_into_the_program_that_loads_it(tmp_path: Path) -> None:
    bench = Bench()
    dumped(bench, "seq 2000000")
    outcome = restored(bench, target(f"tee {tmp_path}/copy | wc -l > {tmp_path}/count"))
    assert (outcome.state, outcome.files) == ("complete", 1)
    assert (tmp_path / "count").read_text().strip() == "2000000"
    assert (tmp_path / "copy").stat().st_size == outcome.bytes


def test_each_file_has_a_run_of_its_own_one_after_the_other_and_knows_its_path(tmp_path: Path) -> None:
    bench = Bench()
    write_files(tmp_path / "tree", {"a": b"1", "b/c d": b"", "b/e": b"x" * 5 * MIB})
    backed_up(bench, tmp_path / "tree")
    script = (
        f"mkdir {tmp_path}/running || exit 9; "
        f'printf "%s %s\\n" "$(wc -c)" "$BACKUPSITE_PATH" >> {tmp_path}/log; rmdir {tmp_path}/running'
    )
    outcome = restored(bench, target(script))
    assert outcome.state == "complete"
    below = str(tmp_path / "tree").lstrip("/")
    assert (tmp_path / "log").read_text().splitlines() == [f"1 {below}/a", f"0 {below}/b/c d", f"{5 * MIB} {below}/b/e"]


@pytest.mark.parametrize(
    ("script", "told"),
    [
        ("cat >/dev/null; echo 'duplicate key' >&2; exit 1", "ended with code 1: duplicate key"),
        ("head -c 100 >/dev/null; echo 'syntax error' >&2; exit 2", "syntax error"),
        ("kill -9 $$", "sh"),
    ],
)
def test_a_program_that_fails_fails_the_restore_with_its_own_words(script: str, told: str) -> None:
    bench = Bench()
    dumped(bench, "seq 2000000")
    with pytest.raises(TargetFailed, match=told):
        restored(bench, target(script))
    assert open_sessions(bench.storage) == []


def test_a_program_that_hangs_ends_the_restore() -> None:
    bench = Bench()
    dumped(bench, "seq 2000000")
    with pytest.raises(TargetUnavailable, match="taken nothing"):
        restored(bench, target("exec sleep 30", idle_s=0.3))


def test_a_restore_that_is_stopped_ends_the_program_without_an_end_of_input_that_looks_whole(tmp_path: Path) -> None:
    bench = Bench()
    dumped(bench, "seq 4000000")
    script = f"echo $$ > {tmp_path}/pid; cat > {tmp_path}/copy && touch {tmp_path}/loaded"
    with pytest.raises(Exception, match="canceled"):
        restored(bench, target(script), progress=Stopping(6))
    pid = int((tmp_path / "pid").read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert not (tmp_path / "loaded").exists()


def test_what_is_missing_is_said_before_anything_is_written() -> None:
    with pytest.raises(ExtraMissing, match="install it, or give its whole path"):
        CommandTarget(argv=("no-such-loader",), host="here").check()
    with pytest.raises(TargetError, match="no command was given"):
        CommandTarget(argv=(), host="here").check()


def test_a_link_has_no_place_in_a_program(tmp_path: Path) -> None:
    (problem,) = target("cat").make(Entry(b"link", Kind.SYMLINK))
    assert (problem.reason, problem.lost) == ("write-failed", True)


def test_secrets_are_in_the_environment_and_nowhere_else(tmp_path: Path) -> None:
    bench = Bench()
    dumped(bench, "echo rows")
    given = target(f"env > {tmp_path}/env; cat > /dev/null", env={"PGPASSWORD": "hunter2"})
    restored(bench, given)
    assert "PGPASSWORD=hunter2" in (tmp_path / "env").read_text()
    assert "hunter2" not in repr(given) + given.where()


def test_it_travels_as_json_as_people_write_it() -> None:
    text = json.dumps({"type": "command", "argv": ["psql", "shop"], "host": "db1"})
    found = msgspec.json.decode(text, type=AnyTarget)
    assert found == CommandTarget(argv=("psql", "shop"), host="db1")
