"""Rows are sorted whatever their number, in bounded memory."""

import random
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.connections.sorting import Row, Sorter

ROWS = st.lists(
    st.builds(
        Row, st.binary(max_size=8), st.integers(0, 1 << 60), st.integers(), st.integers(0, (1 << 64) - 1), st.text()
    ).filter(lambda row: -(1 << 63) <= row.mtime_ns < 1 << 63),
    max_size=60,
)


@given(ROWS, st.integers(1, 9))
def test_what_goes_in_comes_out_in_order(rows: list[Row], run_rows: int) -> None:
    with Sorter(run_rows=run_rows) as sorter:
        for row in rows:
            sorter.add([row])
        assert list(sorter.merged()) == sorted(rows)


def test_many_runs_are_merged_into_few_files() -> None:
    numbers = list(range(5000))
    random.Random(1).shuffle(numbers)
    with Sorter(run_rows=10) as sorter:
        for number in numbers:
            sorter.add([Row(b"%08d" % number, number, 0, 0)])
        assert len(sorter._runs) < 64, "so many files are open at once"
        assert [row.size for row in sorter.merged()] == list(range(5000))


def test_threads_add_side_by_side() -> None:
    with Sorter(run_rows=100) as sorter:

        def add(start: int) -> None:
            for at in range(start, 4000, 4):
                sorter.add([Row(b"%06d" % at, at, 0, 0)])

        with ThreadPoolExecutor(4) as executor:
            list(executor.map(add, range(4)))
        assert [row.size for row in sorter.merged()] == list(range(4000))


def test_nothing_in_gives_nothing_out() -> None:
    with Sorter() as sorter:
        assert list(sorter.merged()) == []


def test_a_closed_sorter_holds_no_file() -> None:
    sorter = Sorter(run_rows=1)
    with sorter:
        sorter.add([Row(b"a", 1, 0, 0)])
        run = sorter._runs[0]
    assert run.closed
    with pytest.raises(ValueError, match="closed"):
        run.read()
