"""Keys rotated by processes that are killed beside running backups, and where locks keep what was replaced."""

import datetime as dt
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import pytest

from engine.errors import EngineError, RevokedKey
from engine.keyproviders.keyring import Keyring, RecoveryKey
from engine.keysets import KEYS
from engine.rotation import prove, replace_recovery_key, rotate
from engine.storage import Directory, Location, open_storage
from engine.vault import Vault
from tests.services import S3
from tests.support.locking import audited, locked
from tests.support.vaults import Bench, contents, on_disk, verified, write_files

pytestmark = [pytest.mark.scenario, pytest.mark.invariant(25), pytest.mark.timeout(300)]
KILLS = 30


def now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


def rotate_for_ever(folder: Path, ring: Keyring) -> NoReturn:
    """Be a process that rotates until it is killed; another key joins and leaves each time."""
    code = 1
    try:
        storage = Directory(folder)
        while True:
            guest = Keyring.generate()
            rotate(Vault.open(storage, provider=ring), ring, now=now(), add=[guest], new_data_key=True)
            rotate(Vault.open(storage, provider=ring), ring, now=now(), revoke=[guest.key_id])
    except EngineError:
        code = 2
    finally:
        os._exit(code)


@contextmanager
def killed_sometime(act: Callable[[], NoReturn], rng: random.Random) -> Iterator[None]:
    """Let a process run beside the block, and kill it at a moment that nobody chose."""
    child = os.fork()
    if not child:
        act()
    try:
        yield
        time.sleep(rng.random() * 0.05)
    finally:
        os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status), "it ended by an error of its own"


def test_backups_survive_rotations_that_are_killed_beside_them(tmp_path: Path):
    rng = random.Random(7)
    bench = Bench(Directory(tmp_path / "vault", create=True))
    folders = {}
    for number in range(KILLS):
        series = f"s{number}"
        folders[series] = write_files(tmp_path / "home" / series, {"f": rng.randbytes(500)})
        with killed_sometime(lambda: rotate_for_ever(tmp_path / "vault", bench.ring), rng):
            if number % 3 == 0:
                bench.back_up(folders[series], series=series)
        if number % 3:
            bench.back_up(folders[series], series=series)
    assert len(bench.open().keys.epochs) > KILLS / 2
    for provider in (bench.ring, RecoveryKey.parse(bench.recovery)):
        vault = Vault.open(bench.storage, provider=provider)
        for series, folder in folders.items():
            assert contents(vault, vault.find("latest", series=series), below=folder) == on_disk(folder)
    assert verified(bench, "content").findings == []
    rotate(bench.open(), bench.ring, now=now())
    assert len(list(bench.storage.scan(KEYS))) == 1


def test_an_immutable_vault_is_rotated_and_keeps_what_its_locks_keep(
    s3_service: S3, s3_bucket: Callable[..., str], tmp_path: Path
):
    place = Location.parse(
        f"s3://{s3_bucket(s3_service, object_lock=True)}/vault", endpoint=s3_service.url,
        access_key=s3_service.access_key, secret_key=s3_service.secret_key, region=s3_service.region,
    )  # fmt: skip
    bench = Bench(open_storage(place))
    bench.clock = now  # type: ignore[assignment] # the servers' locks go by the real one
    locked(bench, 1)
    folder = write_files(tmp_path / "home", {"a": os.urandom(2000)})
    bench.back_up(folder)
    (before,) = [stored.key for stored in bench.storage.scan(KEYS)]
    end = bench.storage.locked_until(before)
    new, done = replace_recovery_key(bench.open(), bench.ring, now=now())
    assert [(one.key, one.until) for one in done.remaining] == [(before, end)]
    assert done.removed == []
    assert bench.storage.locked_until(done.key_set) == end
    with pytest.raises(RevokedKey):
        Vault.open(bench.storage, provider=RecoveryKey.parse(bench.recovery))
    bench.back_up(folder, series="again")
    assert prove(bench.storage, new.text())
    assert audited(bench).findings == []
    vault = Vault.open(bench.storage, provider=new)
    assert contents(vault, vault.find("latest", series="home"), below=folder) == on_disk(folder)
