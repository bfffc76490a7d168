"""The Backint agent, driven as SAP HANA drives it: pipes of all services written at once, lists in, lists out."""

import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.ids import new_ulid
from engine.locks import enable
from engine.progress import Silent
from engine.runner import VaultOpener, run
from engine.verbs import prune, verify
from tests.scenarios.relay import Door
from tests.services import S3
from tests.support.hana import Call, Hana, digest, ended, new_vault, opened, written
from tests.support.kills import clock

pytestmark = [pytest.mark.scenario, pytest.mark.timeout(120)]
DATA = ("COMPLETE_DATA_BACKUP_databackup_0_1", "COMPLETE_DATA_BACKUP_databackup_1_1", "with a space_databackup_2_1")
SAVED = re.compile(r'#SAVED "([0-9a-z]{26})" "([^"]+)" (\d+)')


def contents(seed: int = 1) -> dict[str, bytes]:
    """Return what three services write: 3, 5 and 9 MB."""
    return {
        last: random.Random(f"{last}{seed}").randbytes(size << 20) for last, size in zip(DATA, (3, 5, 9), strict=True)
    }


def changed(data: bytes) -> bytes:
    """Return the content of a database a little later."""
    return data[:1_000_000] + b"some rows of today" + data[1_000_100:]


@pytest.fixture
def site(tmp_path: Path) -> tuple[VaultOpener, Hana]:
    vault, parameters = new_vault(tmp_path)
    return vault, Hana(tmp_path / "hana", parameters)


def saved(lines: list[str]) -> dict[str, str]:
    """Return name -> id of #SAVED lines, which must be all there are."""
    found = [SAVED.fullmatch(line) for line in lines]
    assert all(found), lines
    return {one[2]: one[1] for one in found if one}


def points(vault: VaultOpener) -> list[str]:
    return [name.point for name in vault.open().points()]


@pytest.mark.rule("E8", "E37")
def test_a_database_is_backed_up_changed_backed_up_lost_and_given_back(site: tuple[VaultOpener, Hana]) -> None:
    vault, hana = site
    first_data = contents()
    first = hana.back_up(first_data)
    assert first.code == 0, first.log
    first_ids = saved(first.lines)
    assert set(first_ids) == {hana.name(last) for last in DATA}
    second_data = {last: changed(data) for last, data in first_data.items()}
    second = hana.back_up(second_data, level="INCREMENTAL")
    second_ids = saved(second.lines)
    assert not set(second_ids.values()) & set(first_ids.values())
    stats = [vault.vault.root(name).body.stats for name in vault.vault.points()]
    read, new = sum(one.bytes_read for one in stats[3:]), sum(one.bytes_new for one in stats[3:])
    assert read == sum(len(data) for data in second_data.values())
    assert new < read / 2, (read, new)
    lines = [f'#EBID "{first_ids[hana.name(last)]}" "{hana.name(last)}"' for last in DATA]
    answer, found = hana.restore(lines, DATA)
    assert answer.code == 0, answer.log
    assert sorted(answer.lines) == sorted(line.replace("#EBID", "#RESTORED") for line in lines)
    assert found == {last: digest(data) for last, data in first_data.items()}
    answer, found = hana.restore([f'#NULL "{hana.name(last)}"' for last in DATA], DATA)
    assert answer.code == 0, answer.log
    assert found == {last: digest(data) for last, data in second_data.items()}


def test_one_worker_is_enough_for_all_pipes_at_once(site: tuple[VaultOpener, Hana]) -> None:
    vault, hana = site
    hana.write(hana.parameters.read_text().partition("log_file")[0], workers=1)
    many = {f"databackup_{number}_1": b"x" * 200_000 + bytes([number]) for number in range(12)}
    answer = hana.back_up(many)
    assert answer.code == 0, answer.log
    assert len(saved(answer.lines)) == 12
    answer, found = hana.restore([f'#NULL "{hana.name(last)}"' for last in many], list(many))
    assert found == {last: digest(data) for last, data in many.items()}, answer.log


def test_files_are_saved_and_come_back_as_files_made_by_the_agent(
    site: tuple[VaultOpener, Hana], tmp_path: Path
) -> None:
    vault, hana = site
    name = Path(hana.name("backup catalog"))
    name.write_bytes(b"the catalogue" * 1000)
    answer = hana.ask("backup", [f'#FILE "{name}" 13000', f'#FILE "{name}-missing"'])
    assert answer.code == 1
    assert sorted(line.split()[0] for line in answer.lines) == ["#ERROR", "#SAVED"]
    assert f'#ERROR "{name}-missing"' in answer.lines
    name.unlink()
    other = tmp_path / "elsewhere"
    answer = hana.ask("restore", [f'#NULL "{name}"', f'#NULL "{name}" "{other}"'])
    assert answer.code == 0, answer.log
    assert name.read_bytes() == other.read_bytes() == b"the catalogue" * 1000


def test_a_pipe_is_given_back_at_another_place(site: tuple[VaultOpener, Hana]) -> None:
    vault, hana = site
    ids = saved(hana.back_up({"a": b"content"}).lines)
    (ebid,) = ids.values()
    answer, found = hana.restore([f'#EBID "{ebid}" "{hana.name("a")}" "{hana.name("b c")}"'], ["b c"])
    assert answer.lines == [f'#RESTORED "{ebid}" "{hana.name("a")}"'], answer.log
    assert found == {"b c": digest(b"content")}


def test_logs_are_given_back_one_after_the_other_because_hana_opens_them_so(site: tuple[VaultOpener, Hana]) -> None:
    vault, hana = site
    hana.write(hana.parameters.read_text().partition("log_file")[0], open_timeout_s=20, workers=4)
    logs = {f"log_backup_2_0_{number}": os.urandom(2_000_000) for number in range(4)}
    assert len(saved(hana.back_up(logs, level="LOG").lines)) == 4
    lines = [f'#NULL "{hana.name(last)}"' for last in logs]
    answer, found = hana.restore(lines, list(logs), one_by_one=True)
    assert answer.code == 0, answer.log
    assert [line.rpartition('"/')[2] for line in answer.lines] == [line.rpartition('"/')[2] for line in lines]
    assert found == {last: digest(data) for last, data in logs.items()}


def test_what_there_is_can_be_asked_for(site: tuple[VaultOpener, Hana]) -> None:
    vault, hana = site
    assert hana.ask("inquire", ["#NULL"]).lines == ["#NOTFOUND"]
    ids = [next(iter(saved(hana.back_up({last: b"x" + bytes([n])}).lines).values())) for n, last in enumerate("aab")]
    a, b = hana.name("a"), hana.name("b")
    answer = hana.ask("inquire", ["#NULL"])
    assert answer.code == 0
    shown = [re.sub(r' "\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"$', " <moment>", line) for line in answer.lines]
    assert shown == [f'#BACKUP "{ebid}" "{name}" <moment>' for ebid, name in zip(reversed(ids), (b, a, a), strict=True)]
    old = hana.ask(
        "inquire", [f'#NULL "{a}"', f'#EBID "{ids[2]}"', f'#EBID "{ids[2]}" "{a}"', '#NULL "/no"'], version="1.04"
    )
    assert old.lines == [
        f'#BACKUP "{ids[1]}" "{a}"', f'#BACKUP "{ids[0]}" "{a}"', f'#BACKUP "{ids[2]}" "{b}"',
        f'#NOTFOUND "{ids[2]}" "{a}"', '#NOTFOUND "/no"',
    ]  # fmt: skip
    other = Hana(hana.folder, hana.parameters.read_text().partition("log_file")[0], database="TEN@HDB")
    assert other.ask("inquire", ["#NULL", f'#EBID "{ids[0]}"']).lines == ["#NOTFOUND", f'#NOTFOUND "{ids[0]}"']


def test_a_copy_of_a_system_reads_the_backups_of_the_other_one(site: tuple[VaultOpener, Hana]) -> None:
    vault, hana = site
    (ebid,) = saved(hana.back_up({"a": b"content"}).lines).values()
    parameters = hana.parameters.read_text().partition("log_file")[0]
    copy = Hana(hana.folder, f'reads_from = "SYSTEMDB@HDB"\n{parameters}', database="SYSTEMDB@QAS")
    answer, found = copy.restore([f'#EBID "{ebid}" "{copy.name("a")}"'], ["a"])
    assert found == {"a": digest(b"content")}, answer.log
    assert copy.ask("delete", [f'#EBID "{ebid}" "{copy.name("a")}"']).lines == [
        f'#NOTFOUND "{ebid}" "{copy.name("a")}"'
    ]


def test_hana_deletes_what_it_names_and_nothing_else(site: tuple[VaultOpener, Hana]) -> None:
    vault, hana = site
    (kept,) = saved(hana.back_up({"a": b"kept"}).lines).values()
    (going,) = saved(hana.back_up({"a": b"going"}).lines).values()
    name = hana.name("a")
    answer = hana.ask("delete", [f'#EBID "{kept}" "{name}-other"', f'#EBID "{going}" "{name}"'])
    assert answer.lines == [f'#NOTFOUND "{kept}" "{name}-other"', f'#DELETED "{going}" "{name}"'], answer.log
    assert points(vault) == [kept]
    answer = hana.ask("restore", [f'#EBID "{going}" "{name}"'])
    assert (answer.code, answer.lines) == (1, [f'#NOTFOUND "{name}"'])
    assert hana.ask("delete", [f'#EBID "{going}" "{name}"']).lines == [f'#NOTFOUND "{going}" "{name}"']


@pytest.mark.rule("B6")
def test_an_immutable_vault_answers_a_delete_with_an_error_and_the_log_tells_until_when(
    minio_service: S3, s3_bucket: Callable[..., str], tmp_path: Path
) -> None:
    vault, parameters = new_vault(tmp_path, minio_service, s3_bucket(minio_service, object_lock=True))
    enable(vault.open(), days=7, now=clock())
    hana = Hana(tmp_path / "hana", parameters)
    data = {"a": os.urandom(3 << 20)}
    answer = hana.back_up(data)
    (ebid,) = saved(answer.lines).values()
    answer = hana.ask("delete", [f'#EBID "{ebid}" "{hana.name("a")}"'])
    assert (answer.code, answer.lines) == (1, [f'#ERROR "{ebid}" "{hana.name("a")}"'])
    assert re.search(r"locked until \d{4}-\d\d-\d\d \d\d:\d\d UTC", answer.log)
    answer, found = hana.restore([f'#NULL "{hana.name("a")}"'], ["a"])
    assert found == {"a": digest(data["a"])}, answer.log


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_an_agent_that_is_ended_in_the_middle_leaves_no_point_and_says_nothing_was_saved(
    site: tuple[VaultOpener, Hana], number: int
) -> None:
    vault, hana = site
    data = contents()
    lasts = list(data)
    with hana.made(lasts):
        call = hana.call("backup", [f'#PIPE "{hana.name(last)}"' for last in lasts])
        try:
            fds = [opened(hana.name(last), os.O_WRONLY, call) for last in lasts]
            for fd in fds:
                assert written(fd, data[lasts[0]], call)
            call.signal(number)
            # Its processes let go of the pipes, whatever they were doing.
            for fd in fds:
                assert not written(fd, os.urandom(40 << 20), call)
                os.close(fd)
            answer = call.end()
        finally:
            ended(call)
    assert answer.code != 0
    assert not [line for line in answer.lines if not line.startswith("#ERROR")]
    assert points(vault) == []
    if number == signal.SIGTERM:
        assert sorted(answer.lines) == sorted(f'#ERROR "{hana.name(last)}"' for last in lasts)
    again = hana.back_up(data)
    assert again.code == 0, again.log
    assert len(points(vault)) == 3


def test_a_store_that_goes_away_in_the_middle_is_an_error_for_what_was_not_saved(
    minio_service: S3, s3_bucket: Callable[..., str], tmp_path: Path
) -> None:
    door = Door(minio_service.endpoint)
    vault, parameters = new_vault(tmp_path, minio_service, s3_bucket(minio_service), endpoint=f"http://{door.endpoint}")
    hana = Hana(tmp_path / "hana", parameters)
    first = hana.back_up({"a": b"content"})
    assert first.code == 0, first.log
    with hana.made(["b"]):
        call = hana.call("backup", [f'#PIPE "{hana.name("b")}"'])
        try:
            fd = opened(hana.name("b"), os.O_WRONLY, call)
            assert written(fd, os.urandom(20 << 20), call)
            door.close()
            written(fd, os.urandom(60 << 20), call)
            os.close(fd)
            answer = call.end(100)
        finally:
            ended(call)
    assert (answer.code, answer.lines) == (1, [f'#ERROR "{hana.name("b")}"'])
    assert len(points(vault)) == 1
    answer = hana.ask("inquire", ["#NULL", f'#EBID "{points(vault)[0]}"'])
    assert (answer.code, answer.lines) == (1, ["#ERROR", f'#ERROR "{points(vault)[0]}"'])


def test_a_wrong_key_and_wrong_credentials_are_an_error_for_each_object(
    minio_service: S3, s3_bucket: Callable[..., str], tmp_path: Path
) -> None:
    vault, parameters = new_vault(tmp_path, minio_service, s3_bucket(minio_service))
    (tmp_path / "other").mkdir()
    new_vault(tmp_path / "other")
    wrong_key = parameters.replace(str(tmp_path / "service.key"), str(tmp_path / "other" / "service.key"))
    bad_secret = tmp_path / "bad.secret"
    bad_secret.touch(0o600)
    bad_secret.write_text("not the secret")
    wrong_secret = parameters.replace(str(tmp_path / "s3.secret"), str(bad_secret))
    open_secret = tmp_path / "open.secret"
    open_secret.touch(0o644)
    for given, told in (
        (wrong_key, "does not open"),
        (wrong_secret, "SignatureDoesNotMatch"),
        (parameters.replace(str(tmp_path / "s3.secret"), str(open_secret)), "chmod 600"),
        (parameters.replace("vault =", "valut ="), "valut"),
    ):
        hana = Hana(tmp_path / "hana", given)
        answer = hana.back_up({"a": b"content", "b": b"content"})
        assert answer.code == 1
        assert sorted(answer.lines) == [f'#ERROR "{hana.name(last)}"' for last in "ab"]
        assert told in answer.log, answer.log
        assert "not the secret" not in answer.log
        answer = hana.ask("delete", [f'#EBID "{new_ulid(clock())}" "{hana.name("a")}"'])
        assert (answer.code, len(answer.lines)) == (1, 1)
        assert answer.lines[0].startswith("#ERROR ")
    assert points(vault) == []


def test_pipes_that_nobody_opens_or_fills_or_that_end_empty_are_errors(site: tuple[VaultOpener, Hana]) -> None:
    vault, hana = site
    hana.write(hana.parameters.read_text().partition("log_file")[0], open_timeout_s=2.5, idle_timeout_s=0.8)
    lasts = ["never opened", "silent", "empty"]
    with hana.made(lasts):
        call = hana.call("backup", [f'#PIPE "{hana.name(last)}"' for last in [*lasts, "not made"]])
        silent, empty = (opened(hana.name(last), os.O_WRONLY, call) for last in lasts[1:])
        os.write(silent, b"begun")
        os.close(empty)
        answer = call.end()
        os.close(silent)
    assert answer.code == 1
    assert sorted(answer.lines) == sorted(f'#ERROR "{hana.name(last)}"' for last in [*lasts, "not made"])
    for told in ("nobody has opened", "nothing has come through", "without a single byte", "No such file"):
        assert told in answer.log
    assert points(vault) == []


def test_a_reader_that_lets_go_of_a_restore_makes_it_an_error(site: tuple[VaultOpener, Hana]) -> None:
    vault, hana = site
    saved(hana.back_up({"a": os.urandom(6 << 20)}).lines)
    with hana.made(["a"]):
        call = hana.call("restore", [f'#NULL "{hana.name("a")}"'])
        fd = os.open(hana.name("a"), os.O_RDONLY)
        os.read(fd, 1000)
        os.close(fd)
        answer = call.end()
    assert (answer.code, answer.lines) == (1, [f'#ERROR "{hana.name("a")}"'])
    assert "closed it before it had all" in answer.log


def test_two_agents_and_a_prune_work_on_one_vault_at_once(site: tuple[VaultOpener, Hana]) -> None:
    vault, hana = site
    tenant = Hana(hana.folder / "tenant", hana.parameters.read_text().partition("log_file")[0], database="TEN@HDB")
    answers = []
    threads = [
        threading.Thread(target=lambda: answers.append(hana.back_up(contents()))),
        threading.Thread(target=lambda: answers.append(tenant.back_up({"log_backup_1": b"log" * 99_999}, level="LOG"))),
    ]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        job = prune.PruneJob(run=new_ulid(clock()), started_at=clock())
        run(vault, prune, job, workers=1, progress=Silent(), clock=clock)
        time.sleep(0.05)
    assert [answer.code for answer in answers] == [0, 0], [answer.log for answer in answers]
    assert {name.series for name in vault.vault.points()} == {"hana-hdb-systemdb", "hana-hdb-ten"}
    look = verify.VerifyJob(session=new_ulid(clock()), level="content", started_at=clock())
    assert run(vault, verify, look, workers=1, progress=Silent(), clock=clock).findings == []


def test_lines_that_cannot_be_understood_are_errors_and_the_others_are_done(site: tuple[VaultOpener, Hana]) -> None:
    vault, hana = site
    name = Path(hana.name("file"))
    name.write_bytes(b"content")
    lines = ["#PIPE", '#FILE "never closed', f'#EBID "1" "{name}"', '#FILE "relative"', "#COMMENT", f"#FILE {name}"]
    answer = hana.ask("backup", lines)
    assert answer.code == 1
    assert len(answer.lines) == 5
    assert next(line for line in answer.lines if line.startswith("#SAVED")).endswith(f'"{name}" 7')
    assert len([line for line in answer.lines if line.startswith("#ERROR")]) == 4


def test_the_version_is_shown_and_a_call_without_a_function_is_wrong_usage(site: tuple[VaultOpener, Hana]) -> None:
    vault, hana = site
    environment = {**os.environ, "BACKUPSITE_PYTHON": sys.executable}
    shown = subprocess.run([hana.agent, "-v"], env=environment, capture_output=True, text=True, check=True)
    assert re.fullmatch(r'"backint 1\.50" "backupsite [0-9.]+"\n', shown.stdout)
    wrong = subprocess.run([hana.agent, "-u", "X@Y"], env=environment, capture_output=True, text=True, check=False)
    assert (wrong.returncode, wrong.stdout) == (2, "")


def test_an_output_that_cannot_be_written_stops_everything(site: tuple[VaultOpener, Hana]) -> None:
    vault, hana = site
    with hana.made(["a", "b"]):
        (hana.folder / "in").write_text(f'#PIPE "{hana.name("a")}"\n#PIPE "{hana.name("b")}"\n')
        command: list[str | Path] = [hana.agent, "-u", "X@Y", "-f", "backup", "-i", hana.folder / "in"]
        command += ["-p", hana.parameters]
        environment = {**os.environ, "BACKUPSITE_PYTHON": sys.executable}
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
        )
        assert process.stdout is not None
        assert process.stdout.readline().startswith(b"#SOFTWAREID")
        process.stdout.close()
        call = Call(process, hana.folder / "none", hana.log)
        first, second = (opened(hana.name(last), os.O_WRONLY, call) for last in "ab")
        os.write(first, b"all of it")
        os.close(first)
        # Its line can't be written any more: the other pipe is let go.
        deadline_s = time.monotonic() + 30
        while written(second, os.urandom(10_000), call):
            assert time.monotonic() < deadline_s
            time.sleep(0.05)
        os.close(second)
        process.stdout = None
        assert call.end().code == 1
    assert len(points(vault)) <= 1
    assert "the output can't be written" in hana.log.read_text()
