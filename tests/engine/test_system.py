"""System exports: the newest that can be read counts, old ones go, nothing of them lies in the clear."""

import datetime as dt

import pytest

from engine import system
from engine.codec import Purpose, seal
from engine.errors import FormatError
from engine.system import Export, encode
from tests.support.vaults import START, Bench

DAY = dt.timedelta(days=1)


def export(day: int = 0, *, name: str = "marked-name") -> Export:
    rows = {"vaults.vault": [{"pk": "7", "name": name}]}
    secrets = {"vaults.region": {"1": {"secret_key": "marked-secret"}}}
    return Export(at=START + day * DAY, vault="7", tables=rows, secrets=secrets)


@pytest.fixture
def bench() -> Bench:
    return Bench()


def names(bench: Bench) -> list[str]:
    return [stored.key for stored in bench.storage.scan("system/")]


def test_what_was_exported_last_comes_back(bench):
    keys = bench.open().keys
    assert system.newest(bench.storage, keys) is None
    system.put(bench.storage, keys, export(0))
    key = system.put(bench.storage, keys, export(1, name="renamed"))
    found = system.newest(bench.storage, keys)
    assert found is not None
    assert (found.key, found.export, found.problems) == (key, export(1, name="renamed"), [])


def test_only_the_newest_are_kept(bench):
    keys = bench.open().keys
    for day in range(9):
        system.put(bench.storage, keys, export(day), kept=3)
    assert len(names(bench)) == 3
    found = system.newest(bench.storage, keys)
    assert found is not None
    assert found.export.at == START + 8 * DAY


def test_an_export_of_a_clock_that_was_ahead_does_not_hide_the_next(bench):
    keys = bench.open().keys
    system.put(bench.storage, keys, export(4000))
    key = system.put(bench.storage, keys, export(1))
    found = system.newest(bench.storage, keys)
    assert found is not None
    assert (found.key, found.export.at) == (key, START + DAY)


def test_a_damaged_export_is_told_and_the_one_before_it_is_used(bench):
    keys = bench.open().keys
    system.put(bench.storage, keys, export(0))
    bad = system.put(bench.storage, keys, export(1))
    data = bytearray(bench.storage.get(bad))
    data[-1] ^= 1
    bench.storage.overwrite(bad, bytes(data))
    found = system.newest(bench.storage, keys)
    assert found is not None
    assert found.export == export(0)
    assert bad in found.problems[0]


def test_an_export_under_another_name_or_of_another_purpose_is_not_taken(bench):
    keys = bench.open().keys
    key = system.put(bench.storage, keys, export(0))
    bench.storage.put("system/7zzzzzzzzzzzzzzzzzzzzzzzzz", bench.storage.get(key))
    other = "system/7zzzzzzzzzzzzzzzzzzzzzzzzy"
    bench.storage.put(other, seal(keys, Purpose.STAGED, encode(export(3)), context=other.encode()))
    bench.storage.put("system/readme", b"nothing of ours")
    found = system.newest(bench.storage, keys)
    assert found is not None
    assert (found.key, len(found.problems)) == (key, 2)


def test_a_newer_format_is_refused_by_name(bench):
    keys = bench.open().keys
    key = "system/7zzzzzzzzzzzzzzzzzzzzzzzzz"
    newer = Export(format=2, at=START, vault="7", tables={})
    bench.storage.put(key, seal(keys, Purpose.SYSTEM, encode(newer), context=key.encode()))
    with pytest.raises(FormatError, match="format 2"):
        system.newest(bench.storage, keys)


@pytest.mark.invariant(26)
def test_neither_names_nor_credentials_lie_in_the_bucket_in_the_clear(bench):
    system.put(bench.storage, bench.open().keys, export(0))
    assert not [key for key, data in bench.objects().items() if b"marked" in data]


def test_equal_rows_make_equal_documents():
    first = Export(at=START, vault="7", tables={"a": [{"x": 1, "y": 2}], "b": []})
    second = Export(at=START, vault="7", tables={"b": [], "a": [{"y": 2, "x": 1}]})
    assert encode(first) == encode(second)
