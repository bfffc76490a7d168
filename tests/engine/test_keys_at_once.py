"""Rotations beside each other and beside writers: no order of the calls loses a data key (engine invariant 25)."""

import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from engine import rotation
from engine.errors import WrongKey
from engine.keyproviders.keyring import Keyring, RecoveryKey
from engine.keyproviders.port import KeyProvider
from engine.keys import Keys
from engine.keysets import KEYS
from engine.rotation import opens, prove, rotate
from engine.storage import Memory
from engine.vault import Vault
from tests.support.interleaving import Actor, interleave
from tests.support.vaults import Bench, contents, on_disk, write_files


class Written:
    """What was written with which data key, by whoever had the vault open."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, bytes, tuple[bytes, bytes]]] = []

    def write(self, keys: Keys) -> None:
        salt = os.urandom(32)
        self.rows.append((keys.epoch, salt, keys.record_key(keys.epoch, salt, "pack")))

    def lost(self, keys: Keys) -> list[int]:
        return [epoch for epoch, salt, key in self.rows if keys.record_key(epoch, salt, "pack") != key]


def act(written: Written, added: KeyProvider, *, new_data_key: bool) -> Callable[[Bench], object]:
    """Return what one process does: open, write, rotate, write on with the old keys, open anew, write."""

    def run(own: Bench) -> object:
        vault = own.open()
        written.write(vault.keys)
        done = rotate(vault, own.ring, now=own.clock(), add=[added], new_data_key=new_data_key)
        written.write(vault.keys)
        written.write(own.open().keys)
        return done

    return run


def play(seed: int, *, kill_share: float) -> str:
    """Run up to three rotations in one order; say what went wrong, empty when nothing did."""
    rng = random.Random(seed)
    bench, written = Bench(), Written()
    added = [Keyring.generate() for _ in range(rng.choice((2, 3)))]
    actors = [
        Actor(f"rotation{n}", bench, act(written, one, new_data_key=rng.random() < 0.7)) for n, one in enumerate(added)
    ]
    interleave(actors, rng, kill_share=kill_share)
    if errors := [actor.error for actor in actors if actor.error]:
        return f"failed: {errors}"
    for provider in (bench.ring, RecoveryKey.parse(bench.recovery)):
        if lost := written.lost(Vault.open(bench.storage, provider=provider).keys):
            return f"data keys {lost} are lost to {provider.name}"
    for actor, one in zip(actors, added, strict=True):
        if actor.result is not None and not opens(bench.storage, one):
            return f"the key of {actor.name} does not open the vault"
    rotate(bench.open(), bench.ring, now=bench.clock())
    if written.lost(bench.open().keys):
        return "data keys are lost by the next rotation"
    return "" if len(list(bench.storage.scan(KEYS))) == 1 else "key sets are left over"


@pytest.mark.invariant(25)
@pytest.mark.parametrize("kill_share", [0.0, 0.03], ids=["all end", "some are killed"])
def test_no_order_of_rotations_loses_a_data_key_or_a_key(kill_share: float):
    for seed in range(250):
        assert play(seed, kill_share=kill_share) == "", f"seed {seed}"


# Taken away, each part of the design is missed by some order


@pytest.mark.invariant(25)
def test_the_orders_show_it_when_a_rotation_deletes_what_it_has_not_read(monkeypatch: pytest.MonkeyPatch):
    def all_others(storage: Memory, names: list[str]) -> tuple[list[str], list[object]]:
        keys = [stored.key for stored in storage.scan(KEYS)]
        newest = max(keys, key=lambda key: int(key.split("/")[1]))
        gone = [key for key in keys if key != newest]
        storage.delete(gone)
        return gone, []

    monkeypatch.setattr(rotation, "_remove", all_others)
    assert any(play(seed, kill_share=0.0) for seed in range(250))


@pytest.mark.invariant(25)
def test_the_orders_show_it_when_data_keys_are_drawn(monkeypatch: pytest.MonkeyPatch):
    def drawn(keys: Keys) -> Keys:
        return Keys(keys.vault_id, keys._root, {**keys._data_keys, keys.epochs[-1] + 1: os.urandom(32)})

    monkeypatch.setattr(Keys, "renewed", drawn)
    assert any("lost" in play(seed, kill_share=0.0) for seed in range(250))


def revoke(own: Bench, key_id: str) -> object:
    return rotate(own.open(), own.ring, now=own.clock(), revoke=[key_id])


@pytest.mark.invariant(25)
@pytest.mark.parametrize("seed", range(60))
def test_who_revokes_a_key_while_another_rotation_carries_it_on_has_revoked_it(seed: int):
    bench, gone = Bench(), Keyring.generate()
    rotate(bench.open(), bench.ring, now=bench.clock(), add=[gone])
    actors = [
        Actor("revokes", bench, lambda own: revoke(own, gone.key_id)),
        Actor("goes on", bench, lambda own: rotate(own.open(), own.ring, now=own.clock(), new_data_key=True)),
    ]
    interleave(actors, random.Random(seed))
    assert [actor.error for actor in actors] == [None, None]
    assert not opens(bench.storage, gone)
    assert prove(bench.storage, bench.recovery)


class Rotations(RuleBasedStateMachine):
    """Backups, rotations and revocations in any order; real points, restored with each key that is in force."""

    folder: Path

    def __init__(self) -> None:
        super().__init__()
        self.bench = Bench()
        self.valid: list[KeyProvider] = [self.bench.ring, RecoveryKey.parse(self.bench.recovery)]
        self.revoked: list[KeyProvider] = []
        self.opened: list[Vault] = [self.bench.open()]
        self.points: dict[str, Path] = {}

    @rule()
    def back_up(self) -> None:
        name = f"s{len(self.points)}"
        folder = write_files(self.folder / os.urandom(8).hex(), {"f": os.urandom(200)})
        self.points[name] = folder
        self.bench.back_up(folder, series=name)

    @rule(new_data_key=st.booleans(), keyring=st.booleans())
    def add(self, new_data_key: bool, keyring: bool) -> None:
        new: KeyProvider = Keyring.generate() if keyring else RecoveryKey.generate()
        rotate(self.bench.open(), self.bench.ring, now=self.bench.clock(), add=[new], new_data_key=new_data_key)
        self.valid.append(new)

    @precondition(lambda self: len(self.valid) > 1)
    @rule(data=st.data())
    def revoke(self, data: st.DataObject) -> None:
        gone = data.draw(st.sampled_from(self.valid[1:]))
        self.valid.remove(gone)
        self.revoked.append(gone)
        rotate(self.bench.open(), self.bench.ring, now=self.bench.clock(), revoke=[gone.key_id])

    @rule(data=st.data())
    def rotate_with_another_key_at_hand(self, data: st.DataObject) -> None:
        holding = data.draw(st.sampled_from(self.valid))
        vault = Vault.open(self.bench.storage, provider=holding)
        rotate(vault, holding, now=self.bench.clock(), new_data_key=data.draw(st.booleans()))

    @rule()
    def open_and_keep(self) -> None:
        self.opened.append(self.bench.open())

    @invariant()
    def every_point_is_restored_with_every_key_in_force_and_with_none_that_was_revoked(self) -> None:
        for provider in self.valid:
            self.check(Vault.open(self.bench.storage, provider=provider))
        for vault in self.opened:
            self.check(vault)
        for provider in self.revoked:
            with pytest.raises(WrongKey):
                Vault.open(self.bench.storage, provider=provider)

    def check(self, vault: Vault) -> None:
        for series, folder in self.points.items():
            assert contents(vault, vault.find("latest", series=series), below=folder) == on_disk(folder)


@pytest.mark.invariant(24, 25)
def test_random_rotations_lose_no_point_to_a_key_in_force_and_show_none_to_a_revoked_one(tmp_path: Path):
    Rotations.folder = tmp_path
    run_state_machine_as_test(
        Rotations,
        settings=settings(
            max_examples=12, stateful_step_count=10, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
