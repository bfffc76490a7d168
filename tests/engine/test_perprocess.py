"""Values that each process makes for itself."""

import os
from concurrent.futures import ThreadPoolExecutor
from itertools import count

import pytest

from engine.perprocess import PerProcess


def test_all_threads_of_a_process_share_one_value():
    numbers = count()
    own = PerProcess(lambda: next(numbers))
    assert own.made() is None
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(lambda _: own(), range(100))) == {0}
    assert own.made() == 0


def test_a_fork_makes_its_own_and_leaves_the_parents_alone():
    own = PerProcess(os.getpid)
    assert own() == os.getpid()
    child = os.fork()
    if not child:
        os._exit(0 if own.made() is None and own() == os.getpid() == own.made() else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert own() == os.getpid()


def test_what_could_not_be_made_is_tried_again():
    answers = iter([False, True])

    def make() -> str:
        if not next(answers):
            raise ConnectionError
        return "there"

    own = PerProcess(make)
    with pytest.raises(ConnectionError):
        own()
    assert own() == "there"
