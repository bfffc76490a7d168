"""Names: ULIDs as the specification writes them."""

import datetime as dt
import re

from engine.ids import new_ulid, ulid_moment

NOW = dt.datetime(2031, 2, 3, 4, 5, 6, 789_000, tzinfo=dt.UTC)


def test_the_moment_in_a_ulid_of_the_specification_is_read():
    assert ulid_moment("01arz3ndektsv4rrffq69g5fav") == dt.datetime(2016, 7, 30, 23, 54, 10, 259_000, tzinfo=dt.UTC)
    assert ulid_moment("0000000000zzzzzzzzzzzzzzzz").timestamp() == 0


def test_a_new_ulid_holds_its_moment_and_is_written_in_26_digits_that_cannot_be_mistaken():
    ulid = new_ulid(NOW)
    assert re.fullmatch("[0-7][0-9a-hjkmnp-tv-z]{25}", ulid)
    assert ulid_moment(ulid) == NOW


def test_ulids_sort_by_their_moments_and_differ_within_one():
    later = [new_ulid(NOW + dt.timedelta(milliseconds=n)) for n in range(50)]
    assert sorted(later) == later
    assert len({new_ulid(NOW) for _ in range(1000)}) == 1000
