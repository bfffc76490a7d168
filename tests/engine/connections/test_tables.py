"""Names, sums and paces of tables."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.connections.tables import FINISH, ROWS, SCHEMA, Pace, Place, Range, Tally, path_of, patiently, place_of
from engine.entries import sort_key


def tally(lines: list[bytes]) -> Tally:
    made = Tally()
    made.add(lines)
    return made


@given(st.lists(st.binary(max_size=9), max_size=20), st.randoms())
def test_a_digest_does_not_depend_on_the_order_of_rows_nor_on_their_ranges(
    lines: list[bytes], dice: random.Random
) -> None:
    mixed = dice.sample(lines, len(lines))
    cut = dice.randint(0, len(lines))
    parts = tally(mixed[:cut])
    parts.merge(tally(mixed[cut:]))
    assert parts == tally(lines)
    assert parts.line == tally(lines).line


@given(st.lists(st.binary(min_size=1, max_size=9), min_size=1, max_size=9))
def test_a_digest_tells_a_changed_a_missing_and_a_doubled_row(lines: list[bytes]) -> None:
    right = tally(lines)
    assert tally([lines[0] + b"!", *lines[1:]]) != right
    assert tally(lines[1:]).digest != right.digest
    assert tally([*lines, lines[0]]).digest != right.digest


@given(
    st.text(st.characters(codec="utf-8"), min_size=1, max_size=20),
    st.integers(1, 1024),
    st.sampled_from(["", "from-a%2F", "to-%FF", "from-1-to-2"]),
)
def test_a_path_means_what_it_was_made_for_whatever_the_table_is_called(table: str, number: int, bounds: str) -> None:
    part = Range(number, 1024, bounds)
    assert place_of(path_of(table, SCHEMA)) == Place(table, SCHEMA)
    assert place_of(path_of(table, FINISH)) == Place(table, FINISH)
    assert place_of(path_of(table, ROWS, part.name)) == Place(table, ROWS, part)


@pytest.mark.parametrize(
    "path",
    [b"tables", b"tables/a", b"tables//0-schema.json", b"other/a/0-schema.json", b"tables/a/rows", b"tables/a/rows/x",
     b"tables/a/rows/0001.jsonl", b"tables/\xff/0-schema.json", b"tables/a/b/0-schema.json", b"x"],
)  # fmt: skip
def test_a_path_that_is_no_tables_means_nothing(path: bytes) -> None:
    assert place_of(path) is None


def test_a_description_comes_before_the_rows_and_the_end_behind_them() -> None:
    paths = [path_of("a", SCHEMA), path_of("a", ROWS, Range().name), path_of("a", FINISH), path_of("a-b", SCHEMA)]
    assert sorted(paths, key=sort_key) == paths


def test_a_pace_spreads_what_is_taken_and_saves_no_idle_time() -> None:
    at, slept = [100.0], []

    def sleep(seconds: float) -> None:
        slept.append(round(seconds, 6))
        at[0] += seconds

    pace = Pace(10, clock=lambda: at[0], sleep=sleep)
    for _ in range(3):
        pace.take(5)
    assert slept == [0.5, 0.5]
    at[0] += 60
    pace.take(5)
    pace.take(5)
    assert slept == [0.5, 0.5, 0.5]
    Pace(0, clock=lambda: at[0], sleep=sleep).take(10**9)
    assert len(slept) == 3


def test_patience_ends() -> None:
    tries: list[int] = []

    def act() -> bool:
        tries.append(1)
        return len(tries) == 3

    assert patiently(act, tries=5, first_s=0.001, most_s=0.001)
    assert len(tries) == 3
    assert not patiently(lambda: False, tries=2, first_s=0.001, most_s=0.001)
