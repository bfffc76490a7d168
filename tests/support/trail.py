"""What an administrator of the database can do to the audit trail, and the service never does."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from django.db import connection
from django.test import TransactionTestCase

from accounts import guards


@contextmanager
def guards_off() -> Iterator[None]:
    """Take the triggers away inside the block."""
    guards.remove(connection)
    try:
        yield
    finally:
        guards.install(connection)


def sql(statement: str, *values: Any) -> None:
    """Run a statement of SQL behind everybody's back."""
    with connection.cursor() as cursor:
        cursor.execute(statement, values)


def let_tests_empty_the_trail() -> None:
    """Tests with real transactions end by emptying every table, which the triggers refuse as they should."""
    empty = TransactionTestCase._fixture_teardown  # type: ignore[attr-defined]  # Django's own, not in the stubs

    def unguarded(case: TransactionTestCase) -> None:
        with guards_off():
            empty(case)

    TransactionTestCase._fixture_teardown = unguarded  # type: ignore[attr-defined]  # as above
