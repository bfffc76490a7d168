"""A rotation changes who opens a vault, and rewrites none of its data."""

import base64
import datetime as dt
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

from engine.errors import (
    EngineError,
    FormatError,
    IntegrityError,
    KeyRefused,
    LastKey,
    NotFound,
    RevokedKey,
    Unavailable,
    WrongKey,
)
from engine.ids import digest_name
from engine.keyproviders.keyring import Keyring, RecoveryKey
from engine.keyproviders.port import KeyProvider
from engine.keys import KeySet, Wrap
from engine.keysets import KEYS, needed
from engine.locks import extend_base
from engine.rotation import Holder, Rotated, opens, prove, replace_recovery_key, rotate, state
from engine.storage import Memory, Storage
from engine.storage.faulty import Fault, Faulty, Mode
from engine.vault import INFO_KEY, Vault
from tests.support.locking import LockingBench
from tests.support.vaults import START, Bench, Clock, contents, on_disk, replace, write_files

YEAR = dt.timedelta(days=365)


def rotated(bench: Bench, **options: Any) -> Rotated:
    """Rotate with the bench's keyring at hand."""
    return rotate(bench.open(), bench.ring, now=bench.clock(), **options)


def recovery(bench: Bench) -> RecoveryKey:
    return RecoveryKey.parse(bench.recovery)


def key_sets(storage: Storage) -> list[str]:
    return [stored.key for stored in storage.scan(KEYS)]


@pytest.mark.invariant(25)
def test_a_rotation_writes_one_key_set_and_touches_nothing_else(bench: Bench, tmp_path: Path):
    folder = write_files(tmp_path / "home", {"a": os.urandom(3000)})
    bench.back_up(folder)
    before = bench.objects()
    done = rotated(bench, new_data_key=True)
    after = bench.objects()
    assert {key for key in after if key not in before} == {done.key_set}
    assert {key for key in before if key not in after} == set(done.removed) == set(key_sets_of(before))
    assert all(after[key] == before[key] for key in after if key in before)
    for provider in (bench.ring, recovery(bench)):
        vault = Vault.open(bench.storage, provider=provider)
        assert contents(vault, vault.find("latest"), below=folder) == on_disk(folder)


def key_sets_of(objects: dict[str, bytes]) -> list[str]:
    return [key for key in objects if key.startswith(KEYS)]


@pytest.mark.invariant(25)
def test_later_packs_use_the_new_data_key_and_old_ones_stay_readable(bench: Bench, tmp_path: Path):
    folders = [write_files(tmp_path / str(n), {"f": os.urandom(2000)}) for n in range(3)]
    for number, folder in enumerate(folders):
        bench.back_up(folder, series=f"s{number}")
        assert rotated(bench, new_data_key=True).state.epochs == list(range(1, number + 3))
    assert {epoch_of(data) for key, data in bench.objects().items() if key.startswith("packs/")} == {1, 2, 3}
    vault = bench.open()
    for number, folder in enumerate(folders):
        assert contents(vault, vault.find("latest", series=f"s{number}"), below=folder) == on_disk(folder)


def epoch_of(pack: bytes) -> int:
    return int.from_bytes(pack[8:12], "big")


@pytest.mark.invariant(25)
def test_a_worker_that_opened_the_vault_before_goes_on_reading_and_writing(bench: Bench, tmp_path: Path):
    early = bench.open()
    done = rotated(bench, new_data_key=True)
    new = write_files(tmp_path / "new", {"f": b"written with the new data key"})
    bench.back_up(new)
    assert early.keys.epoch == 1
    assert contents(early, early.find("latest"), below=new) == on_disk(new)
    salt = os.urandom(32)
    assert early.keys.record_key(1, salt, "pack") == bench.open().keys.record_key(1, salt, "pack")
    assert done.state.epochs == [1, 2]


@pytest.mark.invariant(24)
def test_an_unknown_data_key_is_looked_for_once_and_is_an_error(bench: Bench):
    storage = Faulty(bench.storage)
    keys = Vault.open(storage, provider=bench.ring).keys
    for _ in range(3):
        with pytest.raises(IntegrityError, match="data key 7, which this vault does not have"):
            keys.record_key(7, bytes(32), "pack")
    assert storage.count("scan", KEYS) == 2


@pytest.mark.invariant(25)
def test_a_revoked_key_opens_nothing_and_all_others_do(bench: Bench):
    other, another = Keyring.generate(), RecoveryKey.generate()
    rotated(bench, add=[other, another])
    done = rotated(bench, revoke=[other.key_id])
    assert done.revoked == [Holder("keyring", other.key_id)]
    assert not opens(bench.storage, other)
    assert all(opens(bench.storage, key) for key in (bench.ring, another, recovery(bench)))


@pytest.mark.invariant(25)
def test_a_revoked_key_is_refused_while_a_lock_still_keeps_its_key_set(tmp_path: Path):
    clock = Clock()
    storage = Memory(clock=lambda: clock.time)
    bench = Bench(storage)
    bench.clock = clock
    old = recovery(bench)
    extend_base(bench.open(), until=START + YEAR)
    _, done = replace_recovery_key(bench.open(), bench.ring, now=clock())
    assert [(one.key, one.until) for one in done.remaining] == [(key_sets(storage)[0], START + YEAR)]
    assert storage.locked_until(done.key_set) == START + YEAR
    with pytest.raises(RevokedKey, match=r"was revoked.*newest recovery key"):
        Vault.open(storage, provider=old)
    assert needed(storage, bench.open().keys) == [done.key_set]
    extend_base(bench.open(), until=START + 2 * YEAR)
    clock.time = START + YEAR + dt.timedelta(days=1)
    rotated(bench)
    assert len(key_sets(storage)) == 2, "the set in force is locked for another year, the first one is gone"
    assert not opens(storage, old)


def test_what_locks_keep_of_many_rotations_is_neither_read_nor_asked_for(tmp_path: Path):
    bench = LockingBench()
    extend_base(bench.open(), until=START + YEAR)
    for _ in range(20):
        rotated(bench, new_data_key=True)
    assert len(key_sets(bench.storage)) == 21

    class Counted(Keyring):
        """Counts what a key service would be asked."""

        asked = 0

        def unwrap(self, wrapped: bytes, *, context: bytes) -> bytes:
            self.asked += 1
            return super().unwrap(wrapped, context=context)

    storage, provider = Faulty(bench.storage), Counted(list(vars(bench.ring)["_keys"].values()))
    keys = Vault.open(storage, provider=provider).keys
    assert keys.epochs == list(range(1, 22))
    assert (storage.count("get", KEYS), provider.asked) == (1, 1)
    assert len(needed(storage, keys)) == 1
    assert storage.count("get", KEYS) == 2
    stranger = Counted([os.urandom(32)])
    assert not opens(bench.storage, stranger)
    assert stranger.asked == 21, "once for each wrap, in however many sets it stands"


def test_the_recovery_key_is_replaced(bench: Bench, tmp_path: Path):
    folder = write_files(tmp_path / "home", {"a": b"one"})
    bench.back_up(folder)
    new, done = replace_recovery_key(bench.open(), bench.ring, now=bench.clock())
    assert done.revoked == [Holder("recovery", recovery(bench).key_id)]
    assert not prove(bench.storage, bench.recovery)
    vault = Vault.open(bench.storage, provider=RecoveryKey.parse(new.text()))
    assert contents(vault, vault.find("latest"), below=folder) == on_disk(folder)


def test_with_only_the_recovery_key_at_hand_it_is_not_replaced(bench: Bench):
    with pytest.raises(LastKey, match="Add another key first"):
        replace_recovery_key(bench.open(), recovery(bench), now=bench.clock())
    assert prove(bench.storage, bench.recovery)


def test_the_key_at_hand_is_never_revoked(bench: Bench):
    with pytest.raises(LastKey, match="while it is the one at hand"):
        rotated(bench, revoke=[bench.ring.key_id])
    new = Keyring.generate()
    with pytest.raises(LastKey):
        rotated(bench, add=[new], revoke=[new.key_id])


def test_a_key_id_that_opens_nothing_is_not_revoked(bench: Bench):
    before = bench.objects()
    with pytest.raises(KeyRefused, match="no key 0123456789abcdef opens this vault"):
        rotated(bench, revoke=["0123456789abcdef"])
    assert bench.objects() == before


@pytest.mark.rule("E34")
def test_a_key_that_does_not_open_what_it_wrapped_never_gets_into_a_vault(bench: Bench):
    class Forgetful(Keyring):
        """Encrypts, and can't decrypt."""

        def unwrap(self, wrapped: bytes, *, context: bytes) -> bytes:
            raise WrongKey("no")

    class Wrong(Keyring):
        """Answers with something else."""

        def unwrap(self, wrapped: bytes, *, context: bytes) -> bytes:
            return bytes(32)

    for kind in (Forgetful, Wrong):
        before = bench.objects()
        with pytest.raises(KeyRefused, match="does not open what it wrapped"):
            rotated(bench, add=[kind([os.urandom(32)])])
        assert bench.objects() == before
        with pytest.raises(KeyRefused, match="does not open what it wrapped"):
            Vault.create(Memory(), providers=[kind([os.urandom(32)])], now=START)


@pytest.mark.rule("E33")
def test_a_key_is_wrapped_anew_under_its_own_id(bench: Bench):
    first = wraps(bench)
    done = rotated(bench)
    assert done.revoked == []
    assert {(w.provider, w.key_id) for w in wraps(bench)} == {(w.provider, w.key_id) for w in first}
    changed = {w.provider for w in wraps(bench)} - {w.provider for w in wraps(bench) if w in first}
    assert changed == {"keyring"}, "the recovery key, which nobody typed, keeps its wrap"


def wraps(bench: Bench) -> list[Wrap]:
    sets = [msgspec.json.decode(bench.storage.get(key), type=KeySet) for key in key_sets(bench.storage)]
    return [wrap for one in sets for wrap in one.wraps]


def test_the_state_tells_who_opens_the_vault(bench: Bench):
    rotated(bench, new_data_key=True)
    told = state(bench.open())
    assert told.epochs == [1, 2]
    assert {holder.provider: holder.key_id for holder in told.holders} == {
        "keyring": bench.ring.key_id,
        "recovery": recovery(bench).key_id,
    }
    assert told.sets == key_sets(bench.storage)


def test_a_vault_that_this_program_must_not_write_is_not_rotated(bench: Bench):
    vault = bench.open()
    vault.info = msgspec.structs.replace(vault.info, features={"write": ["twins"]})
    with pytest.raises(FormatError, match="must know twins"):
        rotate(vault, bench.ring, now=bench.clock())


# Proof of possession


def test_the_proof_of_the_recovery_key_only_reads(bench: Bench):
    storage = Faulty(bench.storage)
    assert prove(storage, bench.recovery.lower())
    assert not prove(storage, RecoveryKey.generate().text())
    assert {call.verb for call in storage.calls} == {"get", "scan"}


def test_a_damaged_vault_json_is_told_from_a_wrong_key(bench: Bench):
    replace(bench, INFO_KEY, bench.storage.get(INFO_KEY)[:-1] + b"!")
    with pytest.raises(IntegrityError, match="damaged or forged"):
        prove(bench.storage, bench.recovery)


def test_a_wrong_key_and_a_damaged_key_set_are_both_told(bench: Bench):
    bench.storage.put(f"{KEYS}1/{'0' * 64}", b"damaged")
    with pytest.raises(WrongKey, match=r"does not open this vault; keys/1/0{64} is damaged"):
        Vault.open(bench.storage, provider=Keyring.generate())


def test_a_process_that_has_the_keys_brings_back_key_sets_that_were_deleted(bench: Bench):
    vault = bench.open()
    bench.storage.delete(key_sets(bench.storage))
    rotate(vault, bench.ring, now=bench.clock(), add=[recovery(bench)])
    assert opens(bench.storage, bench.ring)
    assert prove(bench.storage, bench.recovery)


# Faults and crashes at every storage call

FAULTS = {
    "put": (Mode.BEFORE, Mode.AFTER, Mode.DELAYED),
    "get": (Mode.BEFORE, Mode.SHORT, Mode.WRONG),
    "scan": (Mode.BEFORE, Mode.AFTER),
    "delete": (Mode.BEFORE, Mode.AFTER, Mode.DELAYED),
    "locked_until": (Mode.BEFORE, Mode.AFTER),
}


def start() -> tuple[Bench, Keyring, RecoveryKey]:
    """Return a vault with two key sets, as two rotations at once leave it, and what a rotation shall add and revoke."""
    bench = Bench()
    first = bench.open()
    first_set = bench.storage.get(key_sets(bench.storage)[0])
    rotate(first, bench.ring, now=bench.clock(), new_data_key=True)
    bench.storage.put(f"{KEYS}1/{digest_name(first_set)}", first_set)
    return bench, Keyring.generate(), RecoveryKey.generate()


def swap(bench: Bench, storage: Storage, new: Keyring, key: RecoveryKey) -> Rotated:
    vault = Vault.open(bench.storage, provider=bench.ring)
    vault.storage = storage
    revoke = [recovery(bench).key_id]
    return rotate(vault, bench.ring, now=bench.clock(), add=[new, key], revoke=revoke, new_data_key=True)


@pytest.mark.invariant(25)
@pytest.mark.parametrize("times", [1, 0], ids=["once", "from then on"])
def test_a_fault_at_any_call_leaves_a_vault_that_opens(times: int):
    bench, new, key = start()
    calls = Faulty(bench.storage)
    swap(bench, calls, new, key)
    assert {seen.verb for seen in calls.calls} == set(FAULTS)
    for at, seen in enumerate(calls.calls, 1):
        for mode in FAULTS[seen.verb]:
            check_fault(Fault(at=at, mode=mode, times=times))


def check_fault(fault: Fault) -> None:
    bench, new, key = start()
    salt = os.urandom(32)
    expected = [bench.open().keys.record_key(epoch, salt, "pack") for epoch in (1, 2)]
    storage = Faulty(bench.storage, [fault])
    try:
        done = swap(bench, storage, new, key)
    except EngineError:
        done = None
    for moment in ("after the fault", "after what the network had kept"):
        keys = bench.open().keys
        assert [keys.record_key(epoch, salt, "pack") for epoch in (1, 2)] == expected, (fault, moment)
        assert opens(bench.storage, recovery(bench)) or opens(bench.storage, key), (fault, moment)
        if done is not None:
            assert keys.epochs == [1, 2, 3], (fault, moment)
            assert opens(bench.storage, new), (fault, moment)
            assert not opens(bench.storage, recovery(bench)), (fault, moment)
        storage.settle()
    final = swap_again(bench, new)
    assert final.state.sets == [final.key_set]
    assert len(key_sets(bench.storage)) == 1, "the next rotation deletes what was left"


def swap_again(bench: Bench, new: Keyring) -> Rotated:
    return rotate(bench.open(), bench.ring, now=bench.clock(), add=[new])


@pytest.mark.invariant(25)
def test_nothing_is_deleted_before_the_new_set_was_read_back_and_opened(bench: Bench):
    storage = Faulty(bench.storage)
    vault = bench.open()
    vault.storage = storage
    done = rotate(vault, bench.ring, now=bench.clock())
    verbs = [(seen.verb, seen.key) for seen in storage.calls]
    put, deleted = verbs.index(("put", done.key_set)), verbs.index(("delete", done.removed[0]))
    assert ("get", done.key_set) in verbs[put:deleted]

    class Reversed(Keyring):
        """Opens its wraps when they are made, and not when they are read back."""

        asked = 0

        def unwrap(self, wrapped: bytes, *, context: bytes) -> bytes:
            self.asked += 1
            if self.asked > 1:
                raise WrongKey("no")
            return super().unwrap(wrapped, context=context)

    before = key_sets(bench.storage)
    with pytest.raises(WrongKey):
        rotated(bench, add=[Reversed([os.urandom(32)])])
    assert set(before) < set(key_sets(bench.storage))
    assert opens(bench.storage, bench.ring)


def test_no_secret_is_in_what_a_rotation_says(bench: Bench):
    new, done = replace_recovery_key(bench.open(), bench.ring, now=bench.clock())
    shown = [repr(done), repr(bench.open().keys), repr(new), repr(bench.ring), msgspec.json.encode(done).decode()]
    for secret in secrets_of(new, bench.ring, recovery(bench)):
        assert not any(secret in text for text in shown)


def secrets_of(*providers: KeyProvider) -> set[str]:
    raw = [
        vars(one)["_key"] if isinstance(one, RecoveryKey) else next(iter(vars(one)["_keys"].values()))
        for one in providers
    ]
    texts = {one.text() for one in providers if isinstance(one, RecoveryKey)}
    return texts | {key.hex() for key in raw} | {base64.b64encode(key).decode() for key in raw} | {str(k) for k in raw}


def test_key_sets_that_vanish_whenever_they_are_read_are_tried_again_and_then_later(bench: Bench):
    class Vanishing(Faulty):
        def get(self, key: str, *, offset: int = 0, length: int | None = None) -> bytes:
            if key.startswith(KEYS):
                self.tried += 1
                raise NotFound(key)
            return super().get(key, offset=offset, length=length)

        tried = 0

    storage = Vanishing(bench.storage)
    with pytest.raises(Unavailable, match="change faster than they can be read") as told:
        Vault.open(storage, provider=bench.ring)
    assert told.value.transient
    assert storage.tried == 10
