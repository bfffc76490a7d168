"""Which files of a PostgreSQL log follow which."""

import pytest

from engine.connections.walfiles import gaps, name_of, number, position

MIB = 1 << 20


@pytest.mark.parametrize(
    ("name", "size", "expected"),
    [
        ("000000010000000000000001", 16 * MIB, 1),
        ("0000000300000001000000FF", 16 * MIB, 511),
        ("000000010000000200000001", 1024 * MIB, 9),
    ],
)
def test_a_name_tells_the_number_of_a_segment(name: str, size: int, expected: int) -> None:
    assert number(name, size) == expected
    assert name_of(name[:8], expected, size) == name


def test_a_position_is_a_number() -> None:
    assert position("1/A") == (1 << 32) + 10


def test_what_is_missing_in_between_is_named() -> None:
    names = [
        "0000000100000000000000FD",
        "0000000100000000000000FE",
        "000000010000000100000002",
        "000000010000000100000003",
    ]
    assert gaps(names, 16 * MIB) == [("0000000100000000000000FF", "000000010000000100000001")]
    assert gaps(names[2:], 16 * MIB) == gaps([], 16 * MIB) == []


def test_a_new_timeline_goes_on_with_the_segment_in_which_the_old_one_ended() -> None:
    names = [
        "000000010000000000000005",
        "000000010000000000000006",
        "000000020000000000000006",
        "000000020000000000000007",
    ]
    assert gaps(names, 16 * MIB) == []
