"""MariaDB as a source: what is dumped, what an account must be allowed, and what makes no point."""

import datetime as dt
import ipaddress
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from engine.connections.mariadb import MariadbServer
from engine.connections.mariadb_grants import Grants
from engine.connections.mariadb_points import database_of, path_of
from engine.entries import Entry, Problem, sort_key
from engine.errors import (
    ExtraMissing,
    SourceDenied,
    SourceError,
    SourceIncomplete,
    SourceMissing,
    SourceUnavailable,
)
from engine.sources.kinds import AnySource
from engine.sources.mariadb import MariadbImageSource, MariadbSource
from tests.support.mariadb import OwnServer, connected

NAMES = ("src_a", "src_a-b", "src % é", "src.")


@pytest.fixture(scope="module")
def server(own_mariadb: OwnServer) -> Iterator[MariadbServer]:
    """A server with a few small databases, which go away."""
    reach = own_mariadb.server
    with connected(reach) as connection, connection.cursor() as cursor:
        for name in NAMES:
            cursor.execute(f"CREATE DATABASE `{name}` CHARACTER SET latin1 COLLATE latin1_bin")
            cursor.execute(f"CREATE TABLE `{name}`.t (a INT PRIMARY KEY, b BLOB)")
            cursor.execute(f"INSERT INTO `{name}`.t VALUES (2, 'two'), (1, X'00FF')")
        cursor.execute("CREATE TABLE `src_a`.loose (a INT) ENGINE=MyISAM")
        yield reach
        for name in NAMES:
            cursor.execute(f"DROP DATABASE `{name}`")


@pytest.fixture
def account(server: MariadbServer) -> Iterator[Callable[..., MariadbServer]]:
    """Make an account with these grants, and no more."""
    made: list[str] = []

    def make(*grants: str, password: str = "its own") -> MariadbServer:
        name = f"made{len(made)}"
        made.append(name)
        with connected(server) as connection, connection.cursor() as cursor:
            cursor.execute(f"CREATE USER {name}@'%%' IDENTIFIED BY %s", [password])
            for grant in grants:
                cursor.execute(f"GRANT {grant} TO {name}@'%'")
        return msgspec.structs.replace(server, user=name, password=password)

    yield make
    with connected(server) as connection, connection.cursor() as cursor:
        for name in made:
            cursor.execute(f"DROP USER {name}@'%'")


def source(server: MariadbServer, *databases: str, **options: bool) -> MariadbSource:
    return MariadbSource(server=server, host="here", databases=databases or ("src_a",), **options)


def content(given: MariadbSource | MariadbImageSource, entry: Entry) -> bytes:
    """Read a stream to its proven end."""
    opened = given.open(entry)
    assert not isinstance(opened, Problem), opened
    parts, at = [], 0
    with opened as reader:
        view = memoryview(bytearray(1 << 20))
        while count := reader.readinto(view, at):
            parts.append(bytes(view[:count]))
            at += count
        assert not reader.changed()
    return b"".join(parts)


def entries(given: MariadbSource | MariadbImageSource) -> list[Entry]:
    return [one for one in given.walk() if isinstance(one, Entry)]


def programs(folder: Path, **scripts: str) -> Path:
    """Return a folder of client programs in which some are these scripts."""
    folder.mkdir()
    for name in ("mariadb", "mariadb-dump", "mariadb-backup", "mariadb-binlog", "mbstream"):
        script = scripts.get(name.replace("-", "_"))
        if script is None:
            found = shutil.which(name)
            assert found is not None
            (folder / name).symlink_to(found)
        else:
            (folder / name).write_text(f"#!/bin/sh\n{script}\n")
            (folder / name).chmod(0o755)
    return folder


def certificate(folder: Path, name: str) -> Path:
    """Return a file with a key and a certificate for 127.0.0.1 that vouches for itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1)).not_valid_after(now + dt.timedelta(days=2))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path = folder / f"{name}.pem"
    path.write_bytes(private + made.public_bytes(pem))
    return path


def answering(versions: str) -> str:
    """Return a script of a client that tells this version and data folder."""
    return f'case "$*" in *VERSION*) printf "{versions}\\n";; *) printf "Ssl_cipher\\t\\n";; esac'


def test_every_database_is_a_stream_in_listing_order_and_its_name_can_be_read_back(server: MariadbServer) -> None:
    given = source(server, *NAMES)
    given.check()
    walked = [entry.path for entry in entries(given)]
    assert walked == [*sorted((path_of(name) for name in NAMES), key=sort_key), b"users.sql"]
    assert {database_of(path) for path in walked[:-1]} == set(NAMES)
    assert path_of("..") == b"databases/%2E%2E/dump.sql"
    assert database_of(path_of("a/..%")) == "a/..%"


def test_no_databases_named_are_all_but_the_systems(server: MariadbServer) -> None:
    given = MariadbSource(server=server, host="here", users=False)
    names = {database_of(entry.path) for entry in entries(given)}
    assert set(NAMES) <= names
    assert not {"mysql", "information_schema", "performance_schema", "sys"} & names


def test_an_unchanged_database_gives_the_same_bytes_again_with_its_own_character_set(server: MariadbServer) -> None:
    given = source(server, "src_a-b", users=False)
    [entry] = entries(given)
    first, second = content(given, entry), content(given, entry)
    assert first == second
    assert b"ALTER DATABASE CHARACTER SET latin1 COLLATE latin1_bin;" in first
    assert b"INSERT INTO `t` VALUES\n(1,0x00FF),\n(2,0x74776F);" in first
    assert b"CHANGE MASTER TO MASTER_LOG_FILE=" in first


def test_together_databases_are_one_stream_that_says_which_they_are(server: MariadbServer) -> None:
    given = source(server, "src_a-b", "src % é", together=True, users=False)
    [entry] = entries(given)
    assert entry.path == b"databases.sql"
    opened = given.open(entry)
    assert not isinstance(opened, Problem)
    with opened as reader:
        assert reader.entry.xattrs == {b"user.mariadb.databases": b"src_a-b src%20%25%20%C3%A9"}
    dump = content(given, entry)
    assert dump.count(b"CREATE DATABASE") == 2
    assert dump.count(b"CHANGE MASTER TO") == 1


def test_tables_without_transactions_are_told(server: MariadbServer) -> None:
    [problem] = [one for one in source(server, *NAMES).walk() if isinstance(one, Problem)]
    assert (problem.path, problem.reason, problem.lost) == (path_of("src_a"), "changed", False)
    assert "MyISAM" in problem.detail


def test_accounts_are_kept_with_their_passwords_hashed(
    server: MariadbServer, account: Callable[..., MariadbServer]
) -> None:
    account("SELECT ON src_a.*")
    given = source(server)
    dump = content(given, entries(given)[-1])
    assert b"CREATE USER IF NOT EXISTS `made0`@`%` IDENTIFIED BY PASSWORD '*" in dump
    assert b"GRANT SELECT ON `src_a`.* TO `made0`@`%`" in dump
    assert b"its own" not in dump


@pytest.mark.parametrize(
    ("grants", "told"),
    [
        ((), r"is not on 127.0.0.1:\d+, or the account 'made0' has no right"),
        (("SELECT, EVENT ON src_a.*",), r"GRANT SHOW VIEW, TRIGGER ON `src_a`\.\*"),
        (("SELECT, EVENT, TRIGGER, SHOW VIEW ON src_a.*",), r"procedure and function: GRANT SELECT ON mysql\.\*"),
        (
            ("SELECT, EVENT, TRIGGER, SHOW VIEW ON src_a.*", "SELECT ON mysql.proc"),
            "can't read the other accounts",
        ),
    ],
)
def test_an_account_that_would_leave_something_out_is_refused(
    account: Callable[..., MariadbServer], grants: tuple[str, ...], told: str
) -> None:
    with pytest.raises((SourceDenied, SourceMissing), match=told):
        source(account(*grants)).check()


def test_the_least_rights_are_enough(account: Callable[..., MariadbServer]) -> None:
    reach = account("SELECT, EVENT, TRIGGER, SHOW VIEW ON `src\\_a`.*", "SELECT ON mysql.proc")
    given = source(reach, users=False)
    given.check()
    assert b"CREATE TABLE `t`" in content(given, entries(given)[0])
    with pytest.raises(SourceDenied, match="does not see every database"):
        MariadbSource(server=reach, host="here", users=False).check()


def test_odd_passwords_are_passed_on_as_they_are(account: Callable[..., MariadbServer]) -> None:
    source(account("SELECT, EVENT, TRIGGER, SHOW VIEW ON *.*", password="a#b\"c'd\\e ü=$;")).check()


def test_grants_are_read_with_patterns_roles_and_columns() -> None:
    grants = Grants(
        [
            "GRANT `role` TO `u`@`%`",
            "GRANT SHOW VIEW, TRIGGER ON *.* TO `u`@`%` IDENTIFIED BY PASSWORD '*00'",
            "GRANT SELECT ON `a\\_b%`.* TO `role`",
            "GRANT SELECT (x, y), UPDATE (z) ON `c`.`t` TO `u`@`%`",
            "GRANT EXECUTE ON PROCEDURE `d`.`p` TO `u`@`%`",
            "GRANT ALL PRIVILEGES ON `e``f`.* TO `u`@`%`",
        ]
    )
    assert grants.has("TRIGGER")
    assert not grants.has("SELECT")
    assert grants.has_in("a_bc", "SELECT")
    assert not grants.has_in("aXb", "SELECT")
    assert not grants.has_in("c", "SELECT")
    assert grants.has_in("c", "UPDATE", table="t")
    assert not grants.has_in("d", "EXECUTE")
    assert grants.has_in("e`f", "EVENT")


def test_a_database_that_is_not_there_is_named(server: MariadbServer) -> None:
    with pytest.raises(SourceMissing, match="'nowhere'"):
        source(server, "nowhere").check()


def test_a_database_dropped_meanwhile_is_a_problem_of_its_own(server: MariadbServer) -> None:
    [entry, _] = entries(source(server))
    gone = source(server).open(msgspec.structs.replace(entry, path=path_of("gone")))
    assert isinstance(gone, Problem)
    assert (gone.reason, gone.lost) == ("vanished", True)


@pytest.mark.parametrize(
    ("script", "told"),
    [
        ("echo 'INSERT 1'; exit 0", "without '-- Dump completed' at the end"),
        ("echo '-- Dump completed'; echo 'INSERT 1'; exit 0", "without '-- Dump completed' at the end"),
        ("echo '-- Dump completed'; echo 'disk full' >&2; exit 5", "ended with code 5: disk full"),
    ],
)
def test_a_dump_that_fails_or_is_cut_off_is_no_backup(
    server: MariadbServer, tmp_path: Path, script: str, told: str
) -> None:
    script = f'case "$*" in *--version*) echo MariaDB;; *) {script};; esac'
    reach = msgspec.structs.replace(server, programs=str(programs(tmp_path / "bin", mariadb_dump=script)))
    given = source(reach, users=False)
    with pytest.raises(SourceIncomplete, match=told):
        content(given, entries(given)[0])


def test_a_server_that_is_lost_in_the_middle_is_worth_another_try(server: MariadbServer, tmp_path: Path) -> None:
    script = 'case "$*" in *--version*) echo MariaDB;; *) echo "Error 2013: Lost connection" >&2; exit 3;; esac'
    reach = msgspec.structs.replace(server, programs=str(programs(tmp_path / "bin", mariadb_dump=script)))
    given = source(reach, users=False)
    with pytest.raises(SourceUnavailable, match="Lost connection"):
        content(given, entries(given)[0])


def test_secrets_are_in_no_command_line_description_or_message(server: MariadbServer, tmp_path: Path) -> None:
    script = f'echo "$@" >> {tmp_path}/said; echo "$MYSQL_PWD" > {tmp_path}/env; echo MariaDB; echo "-- Dump completed"'
    reach = msgspec.structs.replace(server, programs=str(programs(tmp_path / "bin", mariadb_dump=script)))
    given = source(reach, users=False)
    content(given, entries(given)[0])
    assert server.password in (tmp_path / "env").read_text()
    shown = (tmp_path / "said").read_text(), repr(given), repr(reach), str(given.options()), str(given.identity())
    assert all(server.password not in text for text in shown)
    assert "--no-defaults" in shown[0]


def test_a_source_travels_whole_and_in_a_description(server: MariadbServer) -> None:
    for given in (source(server), MariadbImageSource(server=server, host="here")):
        assert msgspec.json.decode(msgspec.json.encode(given), type=AnySource) == given


def test_a_missing_program_is_named_with_its_package(server: MariadbServer, tmp_path: Path) -> None:
    nowhere = msgspec.structs.replace(server, programs=str(tmp_path))
    with pytest.raises(ExtraMissing, match=r"mariadb-dump is not there in .*mariadb-client"):
        source(nowhere).check()
    with pytest.raises(ExtraMissing, match=r"mariadb-backup is not there in .*mariadb-backup"):
        MariadbImageSource(server=nowhere, host="here").check()


@pytest.mark.parametrize(
    ("change", "kind", "told"),
    [
        ({"password": "wrong"}, SourceDenied, "Access denied for user"),
        ({"port": 1}, SourceUnavailable, "Can't connect to server on '127.0.0.1'"),
        ({"host": "no-such-host.invalid"}, SourceUnavailable, "Unknown server host"),
        ({"tls": "require"}, SourceError, "offers no TLS"),
    ],
)
def test_a_server_that_cannot_be_reached_is_told_as_what_it_is(
    server: MariadbServer, change: dict[str, str], kind: type[SourceError], told: str
) -> None:
    with pytest.raises(kind, match=told) as raised:
        source(msgspec.structs.replace(server, **change)).check()
    assert type(raised.value) is kind


def test_a_server_with_a_certificate_is_known_by_it_and_no_other(server: MariadbServer, tmp_path: Path) -> None:
    ours, foreign = certificate(tmp_path, "ours"), certificate(tmp_path, "foreign")
    own = OwnServer(tmp_path / "own", options={"ssl-cert": str(ours), "ssl-key": str(ours)})
    try:
        own.sql("CREATE DATABASE src_a")
        reach = msgspec.structs.replace(own.server, tls="verify", tls_ca=str(ours))
        given = source(reach, users=False)
        given.check()
        assert b"Dump completed" in content(given, entries(given)[0])
        source(msgspec.structs.replace(own.server, tls="require"), users=False).check()
        with pytest.raises(SourceError, match="certificate"):
            source(msgspec.structs.replace(reach, tls_ca=str(foreign))).check()
    finally:
        own.end(signal.SIGKILL)


def test_a_server_that_never_answers_ends_as_unavailable(server: MariadbServer, tmp_path: Path) -> None:
    slow = programs(tmp_path / "bin", mariadb_dump='case "$*" in *--version*) echo MariaDB;; *) exec sleep 30;; esac')
    reach = msgspec.structs.replace(server, programs=str(slow), idle_s=0.5)
    given = source(reach, users=False)
    with pytest.raises(SourceUnavailable, match=r"nothing for 0\.5 s"):
        content(given, entries(given)[0])


def test_a_physical_backup_needs_its_rights_and_the_data_folder(
    server: MariadbServer, account: Callable[..., MariadbServer], tmp_path: Path
) -> None:
    MariadbImageSource(server=account("RELOAD, PROCESS, LOCK TABLES, BINLOG MONITOR ON *.*"), host="here").check()
    with pytest.raises(SourceDenied, match=r"GRANT PROCESS, BINLOG MONITOR ON \*\.\*"):
        MariadbImageSource(server=account("RELOAD, LOCK TABLES ON *.*"), host="here").check()
    elsewhere = programs(tmp_path / "bin", mariadb=answering("10.11.1-MariaDB\\t2F6E6F776865726521"))
    with pytest.raises(SourceDenied, match=r"the data folder /nowhere! of .* can't be read on here"):
        MariadbImageSource(server=msgspec.structs.replace(server, programs=str(elsewhere)), host="here").check()


@pytest.mark.parametrize(("version", "told"), [("11.8.2-MariaDB", "of different series"), ("8.4.2", "is MySQL 8.4.2")])
def test_a_physical_backup_refuses_a_server_that_mariabackup_can_not_read(
    server: MariadbServer, tmp_path: Path, version: str, told: str
) -> None:
    other = programs(tmp_path / "bin", mariadb=answering(f"{version}\\t2F"))
    with pytest.raises(SourceError, match=told):
        MariadbImageSource(server=msgspec.structs.replace(server, programs=str(other)), host="here").check()


def test_a_physical_backup_that_does_not_say_that_it_is_complete_is_none(
    server: MariadbServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    for script, told in (("echo data; echo 'completed OK' >&2", "did not end with"), ("exit 1", "ended with code 1")):
        folder = programs(tmp_path / f"bin{len(told)}", mariadb_backup=script)
        given = MariadbImageSource(server=msgspec.structs.replace(server, programs=str(folder)), host="here")
        with pytest.raises(SourceIncomplete, match=told):
            content(given, entries(given)[0])
    assert not [name for name in os.listdir(tmp_path) if name.startswith("backupsite-")]
