"""What the database itself refuses to everybody: to change or remove a line of the audit trail.

The triggers are put in place after every migration, not by one: SQLite drops a table's triggers when a later migration
rebuilds the table.
"""

from typing import Any

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper

MESSAGE = "the audit trail is append-only"
TABLES = ("accounts_event", "accounts_link")
_NAMES = {f"{table}_is_append_only_{verb}" for table in TABLES for verb in ("update", "delete")}

_FUNCTION = f"""
CREATE OR REPLACE FUNCTION accounts_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '{MESSAGE}' USING ERRCODE = 'integrity_constraint_violation';
END $$
"""


def _statements(vendor: str) -> list[str]:
    if vendor == "sqlite":
        return [
            f"CREATE TRIGGER IF NOT EXISTS {table}_is_append_only_{verb} BEFORE {verb} ON {table} "
            f"BEGIN SELECT RAISE(ABORT, '{MESSAGE}'); END"
            for table in TABLES
            for verb in ("update", "delete")
        ]
    return [
        _FUNCTION,
        *(
            f"CREATE OR REPLACE TRIGGER {table}_is_append_only_{verb} BEFORE {verb} ON {table} "
            "FOR EACH ROW EXECUTE FUNCTION accounts_append_only()"
            for table in TABLES
            for verb in ("update", "delete")
        ),
        *(
            f"CREATE OR REPLACE TRIGGER {table}_is_append_only_truncate BEFORE TRUNCATE ON {table} "
            "FOR EACH STATEMENT EXECUTE FUNCTION accounts_append_only()"
            for table in TABLES
        ),
    ]


def install(connection: BaseDatabaseWrapper) -> None:
    """Put the triggers in place, where the tables are there. Safe to call twice; no other database is supported."""
    with connection.cursor() as cursor:
        if not set(TABLES) <= set(connection.introspection.table_names(cursor)):
            return
        for statement in _statements(connection.vendor):
            cursor.execute(statement)


def remove(connection: BaseDatabaseWrapper) -> None:
    """Take the triggers away, as only an administrator of the database can; the service never calls this."""
    with connection.cursor() as cursor:
        for table in TABLES:
            for verb in ("update", "delete", "truncate"):
                on = f" ON {table}" if connection.vendor == "postgresql" else ""
                cursor.execute(f"DROP TRIGGER IF EXISTS {table}_is_append_only_{verb}{on}")


def stand(connection: BaseDatabaseWrapper) -> bool:
    """Say whether all triggers are in place and, on PostgreSQL, switched on."""
    with connection.cursor() as cursor:
        if connection.vendor == "sqlite":
            cursor.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'")
        else:
            cursor.execute("SELECT tgname FROM pg_trigger WHERE tgenabled IN ('O', 'A')")
        return {row[0] for row in cursor.fetchall()} >= _NAMES


def after_migrate(sender: Any, using: str, **_: Any) -> None:
    """Put the triggers of the database that was migrated in place."""
    install(connections[using])
