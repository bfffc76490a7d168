"""Who has the keys reads everything, who has not learns nothing (engine invariants 24 and 26)."""

import base64
import os
from pathlib import Path

import pytest

from engine.errors import BadKeyFile, IntegrityError, VaultExists, VaultMissing, WrongKey
from engine.ids import digest_name
from engine.keyproviders.keyring import Keyring, RecoveryKey
from engine.keysets import KEYS
from engine.pack import STEP_BYTES
from engine.storage import Memory
from engine.vault import Vault
from tests.support.vaults import START, Bench, contents, entries, on_disk, replace, write_files


def test_the_recovery_key_alone_opens_everything(bench: Bench, tmp_path: Path):
    folder = write_files(tmp_path / "home", {"a": b"one"})
    bench.back_up(folder)
    vault = Vault.open(bench.storage, provider=RecoveryKey.parse(bench.recovery))
    assert contents(vault, vault.find("latest"), below=folder) == on_disk(folder)


def test_case_spaces_and_dashes_of_a_typed_recovery_key_do_not_matter(bench: Bench):
    typed = "  ".join(bench.recovery.lower().replace("-", " ").split()) + "\n"
    assert Vault.open(bench.storage, provider=RecoveryKey.parse(typed)).info.vault_id


@pytest.mark.parametrize("provider", [Keyring.generate(), RecoveryKey.generate()], ids=lambda p: p.name)
def test_another_vaults_key_is_refused(bench: Bench, provider: Keyring | RecoveryKey):
    with pytest.raises(WrongKey, match=r"does not open this vault.*Use the service key file"):
        Vault.open(bench.storage, provider=provider)


def test_every_single_mistyped_letter_of_a_recovery_key_is_noticed(bench: Bench):
    text = bench.recovery
    for at in range(len("BSRK-"), len(text)):
        if text[at] != "-":
            wrong = "A" if text[at] != "A" else "B"
            mistyped = text[:at] + wrong + text[at + 1 :]
            with pytest.raises(BadKeyFile, match="mistyped"):
                RecoveryKey.parse(mistyped)


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("", "starts with BSRK-"),
        ("hello", "starts with BSRK-"),
        ("BSRK-", "mistyped"),
        ("BSRK-AAAA-AAAA", "mistyped"),
        ("BSRK-1111-1111", "character that cannot be in it"),
        ("BSRK-ÄÖÜ", "character that cannot be in it"),
    ],
)
def test_what_is_no_recovery_key_is_refused_with_advice(text: str, advice: str):
    with pytest.raises(BadKeyFile, match=advice):
        RecoveryKey.parse(text)


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("", "at least one key"),
        ("# only a comment\n", "at least one key"),
        ("abc\n", "line 1"),
        ("# comment\nabc not-base64!\n", "line 2"),
        (f"0123456789abcdef {base64.b64encode(bytes(32)).decode()}\n", "does not match its id"),
        (f"0123456789abcdef {base64.b64encode(bytes(31)).decode()}\n", "does not match its id"),
    ],
)
def test_a_damaged_key_file_is_refused_and_names_the_line(tmp_path: Path, text: str, advice: str):
    path = tmp_path / "keys"
    path.write_text(text)
    with pytest.raises(BadKeyFile, match=advice):
        Keyring.load(path)


def test_a_key_file_that_is_missing_or_no_text_is_refused(tmp_path: Path):
    with pytest.raises(BadKeyFile, match="there is no key file"):
        Keyring.load(tmp_path / "none")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadKeyFile, match="cannot be read"):
        Keyring.load(tmp_path / "binary")


def test_a_key_file_is_private_and_never_overwritten(tmp_path: Path):
    path = tmp_path / "deep" / "keys"
    ring = Keyring.generate()
    ring.save(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert Keyring.load(path).text() == ring.text()
    with pytest.raises(BadKeyFile, match="never overwritten"):
        Keyring.generate().save(path)


def test_any_key_of_several_wraps_opens_the_vault(bench: Bench):
    second, third = Keyring.generate(), RecoveryKey.generate()
    sealed = bench.open().keys.seal([bench.ring, second, third], generation=2)
    bench.storage.put(f"{KEYS}2/{digest_name(sealed)}", sealed)
    expected = bench.open().keys.id_key
    for provider in (bench.ring, second, third, RecoveryKey.parse(bench.recovery)):
        assert Vault.open(bench.storage, provider=provider).keys.id_key == expected


def test_a_keyring_opens_what_any_of_its_keys_wrapped(bench: Bench):
    joined = Keyring.parse(Keyring.generate().text() + bench.ring.text())
    assert Vault.open(bench.storage, provider=joined).info.vault_id


def test_a_damaged_newer_key_set_leaves_the_older_one_in_force(bench: Bench):
    sealed = bench.open().keys.seal([bench.ring], generation=2)
    key = f"{KEYS}2/{digest_name(sealed)}"
    bench.storage.put(key, sealed)
    replace(bench, key, sealed[:-5])
    assert bench.open().info.vault_id


def test_a_vault_without_key_sets_says_so(bench: Bench):
    bench.storage.delete([stored.key for stored in bench.storage.scan(KEYS)])
    with pytest.raises(IntegrityError, match="keys are gone"):
        bench.open()


@pytest.mark.invariant(24)
def test_a_worker_without_an_epochs_key_cannot_read_what_it_encrypted(bench: Bench):
    keys = bench.open().keys
    with pytest.raises(IntegrityError, match="data key 2, which this vault does not have"):
        keys.record_key(2, bytes(32), "pack")


def test_there_is_one_vault_at_a_place_and_none_at_an_empty_one(bench: Bench):
    with pytest.raises(VaultExists):
        Vault.create(bench.storage, providers=[bench.ring], now=START)
    with pytest.raises(VaultMissing, match="init"):
        Vault.open(Memory(), provider=bench.ring)


MARKS = (b"MARKED-CONTENT", b"marked-name", b"marked-folder", b"marked-target", b"user.marked", b"marked-value")
LENGTHS = (77_777, 654_321)


@pytest.mark.invariant(26)
def test_nothing_in_the_bucket_shows_names_contents_chunk_ids_or_lengths(bench: Bench, tmp_path: Path):
    """Every byte of the bucket is searched: raw, as hex and as base64, in both byte orders for lengths."""
    folder = tmp_path / "marked-folder"
    files = {"marked-name": b"MARKED-CONTENT" * 40, "raw": os.urandom(LENGTHS[0] - 14) + b"MARKED-CONTENT"}
    files["big"] = os.urandom(LENGTHS[1])
    write_files(folder, files)
    (folder / "link").symlink_to("marked-target")
    os.setxattr(folder / "marked-name", "user.marked", b"marked-value")
    bench.back_up(folder, series="series")
    bucket = bench.objects()
    vault = bench.open()
    rows = list(entries(vault, vault.points()[0]))
    short = {extent.id for row in rows for extent in row.extents}
    long = {ident for block in vault.root(vault.points()[0]).body.blocks for ident in block.groups}
    assert len(short) >= 3
    secrets = {*MARKS, *short, *long, vault.keys.id_key}
    secrets |= {base64.b64encode(secret) for secret in secrets} | {secret.hex().encode() for secret in secrets}
    secrets |= {str(length).encode() for length in LENGTHS}
    secrets |= {length.to_bytes(8, order) for length in LENGTHS for order in ("big", "little")}
    # Four bytes may turn up by chance in a megabyte of noise, but not in what is not encrypted.
    small = {length.to_bytes(4, order) for length in LENGTHS for order in ("big", "little")}
    for key, data in bucket.items():
        for secret in secrets:
            assert secret not in data, key
            assert secret not in key.encode()
        assert not any(length in data[:128] or length in data[-32:] for length in small), key


@pytest.mark.invariant(26)
def test_sizes_of_packs_are_whole_steps(bench: Bench, tmp_path: Path):
    for size in (1, 100, 65_000, 65_536, 700_001):
        bench.back_up(write_files(tmp_path / str(size), {"x": os.urandom(size)}), series=f"s{size}")
    packs = [stored for prefix in ("packs/", "meta/") for stored in bench.storage.scan(prefix)]
    assert len(packs) >= 10
    assert {stored.size % STEP_BYTES for stored in packs} == {0}
