"""Programs as sources and targets: their end is proven, their errors are quoted, and none outlives its reader."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from engine.connections.process import Input, Output
from engine.errors import ExtraMissing, SourceIncomplete, SourceUnavailable, TargetFailed, TargetUnavailable


def shell(script: str, **options: object) -> Output:
    return Output(["sh", "-c", script], **options)  # type: ignore[arg-type] # as given


def eater(script: str, **options: object) -> Input:
    return Input(["sh", "-c", script], **options)  # type: ignore[arg-type] # as given


def all_of(output: Output, *, at_once: int = 100_000) -> bytes:
    parts, view = [], memoryview(bytearray(at_once))
    while count := output.readinto(view):
        parts.append(bytes(view[:count]))
    return b"".join(parts)


def alive(pid: int) -> bool:
    """Say whether a process runs; one that ended and that nobody waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def gone(pid: int, *, within_s: float = 5) -> bool:
    deadline_s = time.monotonic() + within_s
    while alive(pid) and time.monotonic() < deadline_s:
        time.sleep(0.02)
    return not alive(pid)


@pytest.fixture
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give programs that are to end a short time for it."""
    monkeypatch.setattr("engine.connections.process._GRACE_S", 0.2)


def test_an_output_is_read_to_an_end_that_the_exit_code_and_the_marker_prove() -> None:
    output = shell("printf first; sleep 0.1; head -c 300000 /dev/zero; printf -- '-- done'")
    data = all_of(output, at_once=70_000)
    output.prove(marker=b"-- done")
    output.close()
    assert (data[:5], len(data), output.at) == (b"first", 300_012, 300_012)


def test_a_view_is_filled_although_a_pipe_holds_less() -> None:
    output = shell("head -c 3000000 /dev/zero")
    assert output.readinto(memoryview(bytearray(2_000_000))) == 2_000_000
    output.close()


def test_a_program_that_drips_is_handed_on_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.connections.process._SLICE_S", 0.3)
    output = shell("for i in 1 2 3 4 5 6 7 8 9; do echo drop; sleep 0.1; done")
    assert 0 < output.readinto(memoryview(bytearray(1000))) < 45
    assert len(all_of(output)) > 0
    output.prove()
    output.close()


@pytest.mark.parametrize(
    ("script", "told"),
    [
        ("printf half; echo 'disk is full' >&2; exit 3", "sh ended with code 3: disk is full"),
        ("printf half; exit 1", "sh ended with code 1: it said nothing"),
        ("printf half; kill -9 $$", "was killed by signal 9"),
        ("printf 'all but the end'", "without the sign of completeness '-- done'"),
        ("printf -- '-- done'; head -c 100000 /dev/zero", "without the sign of completeness"),
        ("printf -- '-- done'; exit 2", "ended with code 2"),
    ],
)
def test_an_end_that_is_none_makes_the_output_incomplete(script: str, told: str) -> None:
    output = shell(script)
    all_of(output)
    with pytest.raises(SourceIncomplete, match=told):
        output.prove(marker=b"-- done")
    output.close()


def test_a_marker_that_was_read_in_two_pieces_counts() -> None:
    output = shell("printf -- 'much before -- done'")
    all_of(output, at_once=5)
    output.prove(marker=b"-- done")
    output.close()


def test_an_output_that_was_not_read_to_its_end_proves_nothing() -> None:
    output = shell("printf 'more than that'")
    assert output.readinto(memoryview(bytearray(4))) == 4
    with pytest.raises(SourceIncomplete, match="not read to its end"):
        output.prove()
    output.close()


def test_a_program_that_hangs_is_given_up_before_and_after_its_last_byte(hurry: None) -> None:
    output = shell("printf some; sleep 30", idle_s=0.3)
    with pytest.raises(SourceUnavailable, match="written nothing"):
        all_of(output)
    output.close()
    output = shell("exec >&-; sleep 30", idle_s=0.3)
    assert all_of(output) == b""
    with pytest.raises(SourceUnavailable, match="did not end"):
        output.prove()
    output.close()


def test_closing_ends_the_program_and_what_it_started_even_what_does_not_want_to(hurry: None, tmp_path: Path) -> None:
    script = f"trap '' TERM; sh -c \"trap '' TERM; echo \\$\\$ > {tmp_path}/child; sleep 60\" & echo $$; wait"
    output = shell(script)
    view = memoryview(bytearray(100))
    while not (tmp_path / "child").exists() or not (tmp_path / "child").read_text().strip():
        time.sleep(0.02)
    count = os.readv(output._process.stdout.fileno(), [view])  # type: ignore[union-attr] # it has one
    parent, child = int(bytes(view[:count])), int((tmp_path / "child").read_text())
    assert alive(parent)
    assert alive(child)
    output.close()
    assert gone(parent)
    assert gone(child)


def test_a_program_that_is_not_there_or_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(ExtraMissing, match="'no-such-program' is not there"):
        Output(["no-such-program"])
    (tmp_path / "text").write_text("no program")
    (tmp_path / "text").chmod(0o755)
    with pytest.raises(ExtraMissing, match="can't be started"):
        Input([str(tmp_path / "text")])


def test_a_program_sees_the_environment_it_is_given_and_little_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_OF_THE_WORKER", "hush")
    output = shell("env", env={"PGPASSWORD": "for you"})
    names = {line.partition(b"=")[0] for line in all_of(output).splitlines()}
    output.close()
    assert b"PGPASSWORD" in names
    assert names <= {b"PATH", b"HOME", b"LANG", b"TMPDIR", b"PGPASSWORD", b"PWD", b"SHLVL", b"_", b"OLDPWD"}


def test_only_the_end_of_many_errors_is_quoted_on_one_line() -> None:
    output = shell("for i in $(seq 9000); do echo line $i; done >&2; exit 1")
    all_of(output)
    with pytest.raises(SourceIncomplete) as raised:
        output.prove()
    output.close()
    text = str(raised.value)
    assert "line 9000" in text
    assert "line 1 " not in text
    assert len(text) < 900
    assert "\n" not in text


def test_an_input_gets_all_and_is_done_when_the_program_says_so(tmp_path: Path) -> None:
    data = os.urandom(3 << 20)
    program = eater(f"cat > {tmp_path}/copy; sleep 0.1")
    program.write(data[:10])
    program.write(memoryview(data)[10:])
    program.prove()
    program.close()
    assert (tmp_path / "copy").read_bytes() == data


@pytest.mark.parametrize(
    ("script", "told"),
    [
        ("head -c 10 >/dev/null; echo 'I have enough' >&2; exit 4", "stopped reading: I have enough"),
        ("head -c 10 >/dev/null; echo 'said to stdout'; exit 4", "stopped reading: said to stdout"),
    ],
)
def test_a_program_that_stops_reading_is_quoted(script: str, told: str) -> None:
    program = eater(script)
    with pytest.raises(TargetFailed, match=told):
        program.write(bytes(100 << 20))
    program.close()


def test_a_program_that_read_all_and_failed_has_failed() -> None:
    program = eater("cat > /dev/null; echo 'constraint violated' >&2; exit 3")
    program.write(b"rows")
    with pytest.raises(TargetFailed, match="ended with code 3: constraint violated"):
        program.prove()
    program.close()


def test_a_program_that_takes_nothing_or_never_ends_is_given_up(hurry: None) -> None:
    program = eater("sleep 30", idle_s=0.3)
    with pytest.raises(TargetUnavailable, match="taken nothing"):
        program.write(bytes(8 << 20))
    program.close()
    program = eater("cat > /dev/null; sleep 30", idle_s=0.3)
    with pytest.raises(TargetUnavailable, match="did not end"):
        program.prove()
    program.close()


def test_an_input_that_is_closed_early_ends_its_program(hurry: None) -> None:
    program = Input([sys.executable, "-c", "import time, sys; sys.stdin.read(); time.sleep(60)"])
    program.write(b"begun")
    pid = program._process.pid
    program.close()
    assert gone(pid)
    assert program._process.returncode in (-signal.SIGTERM, -signal.SIGKILL)
