"""Key sets that somebody made who can write the bucket and has no key: they cost nothing but an error."""

import os
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import EngineError, FormatError
from engine.ids import digest_name
from engine.keys import Keys, KeySet
from engine.keysets import GENERATION_MAX, KEYS
from engine.rotation import opens, prove, replace_recovery_key, rotate
from tests.engine.test_keys_rotation import key_sets, rotated, wraps
from tests.support.vaults import Bench


def forged(bench: Bench, **changes: object) -> str:
    """Store a changed copy of the newest key set under its right name; return its key."""
    key_set = msgspec.json.decode(bench.storage.get(key_sets(bench.storage)[-1]), type=KeySet)
    data = msgspec.json.encode(msgspec.structs.replace(key_set, **changes))
    key = f"{KEYS}{changes.get('generation', key_set.generation)}/{digest_name(data)}"
    bench.storage.put(key, data)
    return key


def test_forged_wraps_push_none_out_and_are_not_carried_on(bench: Bench):
    key_set = msgspec.json.decode(bench.storage.get(key_sets(bench.storage)[0]), type=KeySet)
    spoilt = [msgspec.structs.replace(wrap, wrapped=os.urandom(len(wrap.wrapped))) for wrap in key_set.wraps]
    forged(bench, wraps=spoilt)
    forged(bench, wraps=spoilt, generation=9)
    forged(bench, wraps=spoilt, generation=8, roll=b"")
    assert opens(bench.storage, bench.ring)
    rotated(bench)
    assert prove(bench.storage, bench.recovery)
    assert not {wrap.wrapped for wrap in spoilt} & {wrap.wrapped for wrap in wraps(bench)}


def test_a_key_set_with_other_data_keys_counts_for_nothing_and_is_left_alone(bench: Bench):
    stranger = Bench()
    theirs = msgspec.json.decode(stranger.storage.get(key_sets(stranger.storage)[0]), type=KeySet)
    key = forged(bench, epochs=theirs.epochs, generation=5)
    salt = bytes(32)
    expected = bench.open().keys.record_key(1, salt, "pack")
    rotated(bench)
    assert bench.open().keys.record_key(1, salt, "pack") == expected
    assert key in key_sets(bench.storage)


def test_a_revoked_key_does_not_come_back_with_its_old_key_set(bench: Bench):
    old = {key: bench.storage.get(key) for key in key_sets(bench.storage)}
    replace_recovery_key(bench.open(), bench.ring, now=bench.clock())
    for _ in range(3):
        rotated(bench)
    for key, data in old.items():
        bench.storage.put(key, data)
    assert not prove(bench.storage, bench.recovery)
    rotated(bench)
    assert not prove(bench.storage, bench.recovery)
    assert not old.keys() & set(key_sets(bench.storage))


def test_no_generation_is_so_high_that_none_can_follow(bench: Bench):
    forged(bench, generation=GENERATION_MAX)
    for _ in range(2):
        done = rotated(bench, new_data_key=True)
        assert done.generation == GENERATION_MAX
    assert bench.open().keys.epochs == [1, 2, 3]
    assert prove(bench.storage, bench.recovery)


def test_a_key_set_under_another_generations_name_is_none(bench: Bench):
    data = bench.storage.get(key_sets(bench.storage)[0])
    misplaced = f"{KEYS}77/{digest_name(data)}"
    bench.storage.put(misplaced, data)
    assert rotated(bench).generation == 2
    assert misplaced in key_sets(bench.storage)


def test_a_root_of_somebody_elses_behind_the_same_key_is_refused(bench: Bench):
    """Who may use the key service, and write the bucket, can wrap a root of their own: vault.json tells it."""
    theirs = Keys(bytes.fromhex(bench.open().info.vault_id), os.urandom(32), {1: os.urandom(32), 2: os.urandom(32)})
    sealed = theirs.seal([bench.ring], generation=9)
    bench.storage.put(f"{KEYS}9/{digest_name(sealed)}", sealed)
    assert bench.open().keys.epochs == [1]


def test_a_key_set_of_a_newer_program_stops_a_rotation(bench: Bench):
    vault = bench.open()
    forged(bench, format=2, generation=2)
    with pytest.raises(FormatError, match="format 2"):
        rotate(vault, bench.ring, now=bench.clock())


# Vaults made before key sets had a roll


def test_a_vault_whose_first_set_has_no_roll_is_rotated_like_any_other(bench: Bench):
    key = key_sets(bench.storage)[0]
    bare = forged(bench, roll=b"")
    bench.storage.delete([key])
    done = rotated(bench, new_data_key=True)
    assert done.removed == [bare]
    assert prove(bench.storage, bench.recovery)
    assert opens(bench.storage, bench.ring)


# Hostile bytes


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_whatever_stands_in_a_key_set_the_vault_opens_with_its_own_keys_or_an_error_is_told(data: st.DataObject):
    bench = Bench()
    key = key_sets(bench.storage)[0]
    told = msgspec.json.decode(bench.storage.get(key))
    if data.draw(st.booleans()):
        bench.storage.delete([key])
    parts = ["wraps", "epochs", "roll", "generation", "vault_id", "format", "bytes"]
    for part in data.draw(st.lists(st.sampled_from(parts), min_size=1, max_size=3, unique=True)):
        if part == "bytes":
            raw = bytearray(msgspec.json.encode(told))
            raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
            store(bench, bytes(raw), generation=1)
            break
        told[part] = data.draw(hostile(told[part]))
    else:
        generation = told["generation"] if isinstance(told["generation"], int) and told["generation"] > 0 else 1
        store(bench, msgspec.json.encode(told), generation=min(generation, GENERATION_MAX))
    salt = bytes(32)
    try:
        keys = bench.open().keys
        expected = keys.record_key(1, salt, "pack")
        assert keys.epochs == [1]
        rotated(bench)
        assert bench.open().keys.record_key(1, salt, "pack") == expected
    except EngineError:
        pass


def hostile(value: Any) -> st.SearchStrategy[Any]:
    """Draw something in the place of a field: of its kind, or of none."""
    anything: st.SearchStrategy[Any] = st.one_of(
        st.none(), st.integers(-1, 2**40), st.text(max_size=5), st.binary(max_size=40), st.just([])
    )
    if not isinstance(value, list):
        return anything
    row = st.dictionaries(st.sampled_from(sorted(value[0])), anything, max_size=3).map(lambda own: {**value[0], **own})
    return st.one_of(anything, st.lists(row, max_size=3), st.just(value + value))


def store(bench: Bench, data: bytes, *, generation: int) -> None:
    bench.storage.put(f"{KEYS}{generation}/{digest_name(data)}", data)
