"""A PostgreSQL server as a source: dumps of its databases, base backups of the whole, or its write-ahead log."""

import datetime as dt
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import msgspec

from engine.connections.pgnames import BASE, CLUSTER, database_of, path_of
from engine.connections.postgres import OLDEST, Client
from engine.connections.process import IDLE_S, Output
from engine.entries import Entry, Problem, sort_key
from engine.errors import ExtraMissing, SourceDenied, SourceError, SourceMissing
from engine.sources.port import BaseSource, Identity, Reader
from engine.sources.postgres_stream import BaseBackup, Checked, EndsWith, archive
from engine.sources.postgres_wal import Keeping, Spool
from engine.sources.stream import StreamReader, stream_entry

SLOTS_SINCE = 15
_CLUSTER_END = b"-- PostgreSQL database cluster dump complete"
_PROGRAMS = {
    "logical": ("psql", "pg_dump", "pg_dumpall"),
    "physical": ("psql", "pg_basebackup"),
    "wal": ("psql", "pg_receivewal"),
}
_FACTS = """
SELECT json_build_object(
  'version', current_setting('server_version_num')::int / 10000,
  'standby', pg_is_in_recovery(),
  'replication', (SELECT rolsuper OR rolreplication FROM pg_roles WHERE rolname = current_user),
  'passwords', has_table_privilege('pg_authid', 'SELECT'),
  'switch', has_function_privilege('pg_switch_wal()', 'EXECUTE'),
  'wal_level', current_setting('wal_level'),
  'tablespaces', (SELECT coalesce(json_agg(spcname ORDER BY spcname), '[]') FROM pg_tablespace
    WHERE spcname NOT IN ('pg_default', 'pg_global')))
"""
_LIST = """
SELECT coalesce(json_agg(json_build_object('name', datname, 'open', datallowconn)), '[]')
FROM pg_database WHERE NOT datistemplate
"""


class PostgresSource(BaseSource, frozen=True, tag="postgres", kw_only=True, dict=True):
    """One PostgreSQL server (13 or newer), read by the client programs on `host`, the machine of the worker.

    `server` is a host name, or the folder of a Unix socket. What a point holds goes by `mode`:
    `logical`: `cluster.sql` (roles, tablespaces) and `databases/<name>.dump` for each of `databases` (none: all but
    templates), names percent-encoded; each dump is consistent in itself, not with the others. `physical`: `base.tar`, a
    base backup of the whole server. `wal`: `wal/<segment>`, the write-ahead log as it was gathered in the folder
    `spool` through the replication slot `slot`, or as archive_command puts it into the folder `wal_folder`.
    Segments stay in `spool` for `keep_days` (0: for ever), longer while no complete point holds them.
    """

    host: str
    server: str = "localhost"
    port: int = 5432
    user: str = "postgres"
    password: str = ""
    database: str = "postgres"
    mode: Literal["logical", "physical", "wal"] = "logical"
    databases: tuple[str, ...] = ()
    exclude_schemas: tuple[str, ...] = ()
    exclude_tables: tuple[str, ...] = ()
    spool: str = ""
    slot: str = "backupsite"
    wal_folder: str = ""
    keep_days: int = 14
    warn_wal_bytes: int = 4 << 30
    sslmode: str = "prefer"
    sslrootcert: str = ""
    programs: str = ""
    bytes_per_s: int = 0
    idle_s: float = IDLE_S

    def __repr__(self) -> str:
        return f"PostgresSource({self.mode!r} of {self.server!r}:{self.port})"

    @cached_property
    def _client(self) -> Client:
        return Client(
            server=self.server,
            port=self.port,
            user=self.user,
            password=self.password,
            database=self.database,
            sslmode=self.sslmode,
            sslrootcert=self.sslrootcert,
            programs=self.programs,
            idle_s=self.idle_s,
        )

    @cached_property
    def _spool(self) -> Spool:
        folder = Path(self.wal_folder or self.spool)
        return Spool(self._client, folder, self.slot, archive=bool(self.wal_folder))

    def identity(self) -> Identity:
        """Return the server's address and what of it is kept."""
        address = f"{self.server}:{self.port}"
        named = self.databases if self.mode == "logical" else ()
        return Identity("postgres", self.host, [f"{address}/{name}" for name in named] or [address])

    def options(self) -> dict[str, list[str]]:
        """Return the mode and what was left out."""
        left_out = {"exclude_schemas": list(self.exclude_schemas), "exclude_tables": list(self.exclude_tables)}
        return {"mode": [self.mode], **(left_out if self.mode == "logical" else {})}

    def follows(self, started_at: dt.datetime | None) -> None:
        """Hear which log the vault holds: what was there when that run began."""
        self.__dict__["_held"] = started_at

    def check(self) -> None:
        """Raise ExtraMissing, SourceDenied, SourceMissing, SourceUnavailable, or SourceError for what is not set up."""
        self._check_settings()
        for program in _PROGRAMS[self.mode]:
            self._client.program(program)
        facts = self._client.ask(_FACTS)
        if facts["version"] < OLDEST:
            raise SourceError(f"the server is PostgreSQL {facts['version']}: {OLDEST} is the oldest that is supported")
        program = _PROGRAMS[self.mode][1]
        if (version := self._client.version(program)) < facts["version"]:
            raise ExtraMissing(
                f"{program} on this host is of version {version} and can't read a server of version "
                f"{facts['version']}: install the programs of the server's version, or name their folder"
            )
        if self.mode == "logical":
            self._chosen()
        else:
            self._check_replication(facts)

    def walk(self) -> Iterator[Entry | Problem | None]:
        if self.mode == "logical":
            yield from self._walk_logical()
        elif self.mode == "physical":
            yield stream_entry(BASE)
        else:
            yield from self._spool.fill(warn_bytes=self.warn_wal_bytes)
            self._spool.trim(Keeping(self.keep_days, self.__dict__.get("_held")))
            yield from self._spool.entries()

    def open(self, entry: Entry) -> Reader | Problem:
        """Start the program that writes the entry, or open a segment of the log."""
        if self.mode == "wal":
            return self._spool.open(entry)
        client = self._client
        if entry.path == BASE:
            proof: Any = BaseBackup()
            argv = [client.program("pg_basebackup"), "-w", "-D", "-", "-Ft", "-X", "fetch", "-c", "fast"]
            output = Output([*argv, "--manifest-checksums=SHA256"], env=client.env(), idle_s=self.idle_s)
        elif entry.path == CLUSTER:
            proof = EndsWith(_CLUSTER_END)
            secret = [] if client.ask(_FACTS)["passwords"] else ["--no-role-passwords"]
            argv = [client.program("pg_dumpall"), "-w", "--globals-only", *secret]
            output = Output([*argv, "-l", self.database], env=client.env(), idle_s=self.idle_s)
        else:
            proof = archive()
            without = [f"--exclude-schema={one}" for one in self.exclude_schemas]
            without += [f"--exclude-table={one}" for one in self.exclude_tables]
            argv = [client.program("pg_dump"), "-w", "-Fc", "-Z0", *without]
            output = Output(argv, env=client.env(database_of(entry.path) or ""), idle_s=self.idle_s)
        stream = Checked(output, proof, bytes_per_s=self.bytes_per_s)
        return StreamReader(msgspec.structs.replace(entry), stream, stream.prove)

    def _walk_logical(self) -> Iterator[Entry | Problem]:
        if not self._client.ask(_FACTS)["passwords"]:
            yield Problem(
                *(CLUSTER, "attributes"),
                f"the passwords of roles are not kept: {self.user!r} may not read pg_authid (superusers may)",
                lost=False,
            )
        yield stream_entry(CLUSTER)
        for path, is_open in sorted(self._chosen().items(), key=lambda one: sort_key(one[0])):
            if is_open:
                yield stream_entry(path)
            else:
                yield Problem(path, "unreadable", "the database accepts no connections", lost=bool(self.databases))

    def _chosen(self) -> dict[bytes, bool]:
        """Return the path of each database that is kept, and whether it accepts connections. Raises SourceMissing."""
        found = {one["name"]: bool(one["open"]) for one in self._client.ask(_LIST)}
        for name in self.databases:
            if name not in found:
                raise SourceMissing(f"there is no database {name!r} at {self.server}:{self.port}")
        return {path_of(name): found[name] for name in self.databases or found}

    def _check_settings(self) -> None:
        if self.mode != "wal":
            return
        if bool(self.spool) == bool(self.wal_folder):
            raise SourceError(
                "name the folder in which the log is gathered through a slot (spool), or the one that archive_command "
                "fills (wal_folder): one of them"
            )
        if not Path(self.spool or self.wal_folder).is_absolute():
            raise SourceError(f"{self.spool or self.wal_folder!r} is not an absolute path")

    def _check_replication(self, facts: dict[str, Any]) -> None:
        if not facts["replication"] and not (self.mode == "wal" and self.wal_folder):
            raise SourceDenied(f"{self.user!r} may not replicate: ALTER ROLE ... WITH REPLICATION allows it")
        if facts["wal_level"] == "minimal":
            raise SourceError("the server's wal_level is minimal: set it to replica and restart the server")
        if self.mode == "physical":
            if facts["tablespaces"]:
                raise SourceError(
                    f"the server has tablespaces of its own ({', '.join(facts['tablespaces'])}), and a base backup "
                    "with these is no single stream: use the mode logical, or move their tables to pg_default"
                )
            self._client.system()  # pg_hba.conf may refuse replication alone
            return
        if facts["standby"]:
            raise SourceError("the server is a standby: gather the log from the primary")
        if not facts["switch"]:
            raise SourceDenied(
                f"{self.user!r} may not end a segment: GRANT EXECUTE ON FUNCTION pg_switch_wal() allows it"
            )
        self._spool.check()
        if not self.wal_folder:
            if facts["version"] < SLOTS_SINCE:
                raise SourceError(
                    f"the server is PostgreSQL {facts['version']}, and its slots do not tell where they stand before "
                    f"{SLOTS_SINCE}: let archive_command put the log into a folder, and name that (wal_folder)"
                )
            self._client.system()
