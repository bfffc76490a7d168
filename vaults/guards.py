"""What the database itself refuses (B6): an immutable vault never becomes less immutable, not even by plain SQL.

The triggers are installed after every migration, not by one: SQLite drops a table's triggers when a later migration
rebuilds the table.
"""

from typing import Any

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper

MESSAGE = "an immutable vault stays immutable"

_SQLITE = f"""
CREATE TRIGGER IF NOT EXISTS vault_stays_immutable BEFORE UPDATE ON vaults_vault
WHEN OLD.immutable_since IS NOT NULL AND (
    NEW.immutable_since IS NOT OLD.immutable_since OR NEW.lock_days < OLD.lock_days
    OR NEW.region_id IS NOT OLD.region_id OR NEW.prefix IS NOT OLD.prefix OR NEW.id IS NOT OLD.id
)
BEGIN
    SELECT RAISE(ABORT, '{MESSAGE}');
END
"""
_POSTGRESQL = f"""
CREATE OR REPLACE FUNCTION vault_stays_immutable() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF OLD.immutable_since IS NOT NULL AND (
        NEW.immutable_since IS DISTINCT FROM OLD.immutable_since OR NEW.lock_days < OLD.lock_days
        OR NEW.region_id IS DISTINCT FROM OLD.region_id OR NEW.prefix IS DISTINCT FROM OLD.prefix
        OR NEW.id IS DISTINCT FROM OLD.id
    ) THEN
        RAISE EXCEPTION '{MESSAGE}' USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN NEW;
END $$;
CREATE OR REPLACE TRIGGER vault_stays_immutable BEFORE UPDATE ON vaults_vault
FOR EACH ROW EXECUTE FUNCTION vault_stays_immutable();
"""
_BY_VENDOR = {"sqlite": _SQLITE, "postgresql": _POSTGRESQL}


def install(connection: BaseDatabaseWrapper) -> None:
    """Put the triggers in place, where the table is there. Safe to call twice; no other database is supported."""
    with connection.cursor() as cursor:
        if "vaults_vault" not in connection.introspection.table_names(cursor):
            return
        columns = connection.introspection.get_table_description(cursor, "vaults_vault")
        if "immutable_since" in {column.name for column in columns}:
            cursor.execute(_BY_VENDOR[connection.vendor])


def after_migrate(sender: Any, using: str, **_: Any) -> None:
    """Install the triggers of the database that was migrated."""
    install(connections[using])
