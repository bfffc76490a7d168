"""What a newer program wrote is refused by name; what is optional and unknown is left alone (engine invariant 30)."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from engine.codec import Purpose, seal, unseal
from engine.errors import FormatError, IntegrityError
from engine.fetch import read_footer
from engine.ids import digest_name, new_ulid
from engine.index import load_segment
from engine.keysets import KEYS
from engine.pack import open_header
from engine.point import Commit, decode_root, encode_commit, point_key, root_packs
from engine.vault import INFO_KEY, Vault
from tests.support.vaults import Bench, contents, on_disk, replace, write_files

pytestmark = pytest.mark.invariant(30)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_files(tmp_path / "home", {"a": b"one", "b/c": b"two"})


@pytest.fixture
def filled(bench: Bench, folder: Path) -> Bench:
    bench.back_up(folder)
    return bench


def edit_info(bench: Bench, edit: Callable[[dict[str, object]], object]) -> None:
    """Change vault.json as a newer program, which holds the keys, would."""
    payload = msgspec.json.decode(bench.storage.get(INFO_KEY).rpartition(b"\n")[0])
    edit(payload)
    replace(bench, INFO_KEY, bench.open().keys.sign(INFO_KEY, msgspec.json.encode(payload)))


def rewrite_root(bench: Bench, edit: Callable[[bytes], bytes]) -> str:
    """Change a root and commit it again, as a newer program would; return its key."""
    vault = bench.open()
    name = vault.points()[0]
    session = vault.root(name).body.session
    key, commit_key = point_key(*name, "root"), point_key(*name, "commit")
    data = edit(bench.storage.get(key))
    replace(bench, key, data)
    commit = Commit(name.point, name.series, session, digest_name(data), bench.clock())
    replace(bench, commit_key, encode_commit(vault.keys, commit))
    return key


def test_a_vault_of_a_newer_format_is_refused(filled: Bench):
    edit_info(filled, lambda info: info.update(format=2))
    with pytest.raises(FormatError, match=r"format 2.*Use a newer version"):
        filled.open()


@pytest.mark.parametrize("shape", [{"magic": "backupsite-vault", "format": 7, "all": "different"}])
def test_a_newer_vault_is_refused_whatever_else_it_says(filled: Bench, shape: dict[str, object]):
    replace(filled, INFO_KEY, msgspec.json.encode(shape) + b"\nanother kind of signature")
    with pytest.raises(FormatError, match="format 7"):
        filled.open()


def test_another_programs_file_is_no_vault(filled: Bench):
    replace(filled, INFO_KEY, b'{"magic": "restic", "format": 1}\n')
    with pytest.raises(IntegrityError, match="no vault"):
        filled.open()


def test_an_unknown_feature_needed_to_read_refuses_everything(filled: Bench):
    edit_info(filled, lambda info: info.update(features={"read": ["parity"], "write": [], "prune": []}))
    with pytest.raises(FormatError, match="read this vault a program must know parity"):
        filled.open()


def test_an_unknown_feature_needed_to_write_refuses_sessions_and_lets_reading_go_on(filled: Bench, folder: Path):
    edit_info(filled, lambda info: info.update(features={"read": [], "write": ["parity"], "prune": []}))
    vault = filled.open()
    assert contents(vault, vault.find("latest"), below=folder) == on_disk(folder)
    with pytest.raises(FormatError, match="write this vault a program must know parity"):
        vault.open_session(new_ulid(filled.clock()), verb="backup", now=filled.clock())


def test_unknown_optional_words_are_read_over_and_stay(filled: Bench, folder: Path):
    def edit(info: dict[str, object]) -> None:
        info.update(motto="keep", features={"read": [], "write": [], "prune": [], "index": ["bloom"]})

    edit_info(filled, edit)
    filled.back_up(folder)
    assert b'"motto":"keep"' in filled.storage.get(INFO_KEY)
    assert b'"index":["bloom"]' in filled.storage.get(INFO_KEY)


def test_a_newer_key_set_is_refused(filled: Bench):
    key = next(stored.key for stored in filled.storage.scan(KEYS))
    newer = msgspec.json.decode(filled.storage.get(key)) | {"format": 2, "generation": 2, "wraps": "otherwise"}
    data = msgspec.json.encode(newer)
    filled.storage.put(f"keys/2/{digest_name(data)}", data)
    with pytest.raises(FormatError, match="format 2, this program knows 1"):
        filled.open()


@pytest.mark.parametrize("where", ["head", "sealed body"])
def test_a_newer_root_is_refused(filled: Bench, where: str):
    def edit(data: bytes) -> bytes:
        _, end = root_packs("x", data)
        at = 7 if where == "head" else end + 4
        return data[:at] + b"\x02" + data[at + 1 :]

    key = rewrite_root(filled, edit)
    vault = filled.open()
    with pytest.raises(FormatError, match="format 2, this program knows 1"):
        vault.root(vault.points()[0])
    with pytest.raises(FormatError):
        decode_root(vault.keys, key, filled.storage.get(key))
    assert isinstance(next(iter(vault.catalogue())).error, FormatError)


def test_fields_that_a_later_program_adds_to_a_root_are_read_over(filled: Bench, folder: Path):
    def edit(data: bytes) -> bytes:
        keys, key = filled.open().keys, point_key(*filled.open().points()[0], "root")
        _, at = root_packs(key, data)
        context = key.encode() + hashlib.sha256(data[:at]).digest()
        body = msgspec.msgpack.decode(unseal(keys, Purpose.ROOT, data[at:], context=context))
        body["hold"] = "until further notice"
        return data[:at] + seal(keys, Purpose.ROOT, msgspec.msgpack.encode(body), context=context)

    rewrite_root(filled, edit)
    vault = filled.open()
    assert contents(vault, vault.find("latest"), below=folder) == on_disk(folder)


def test_a_newer_pack_is_refused(filled: Bench):
    vault = filled.open()
    pack = vault.root(vault.points()[0]).packs[0]
    key = next(stored.key for stored in filled.storage.scan("") if stored.key.endswith(pack.name))
    data = filled.storage.get(key)
    header = data[:4] + b"\x02" + data[5:128]
    with pytest.raises(FormatError, match="format 2"):
        open_header(vault.keys, pack.name, header, kind=pack.kind, size=pack.size)
    replace(filled, key, header + data[128:])
    with pytest.raises(FormatError, match="format 2"):
        read_footer(filled.storage, vault.keys, pack)


@pytest.mark.parametrize("where", ["segment", "seal"])
def test_a_newer_segment_is_refused_and_not_called_damaged(filled: Bench, where: str):
    vault = filled.open()
    key = next(stored.key for stored in filled.storage.scan("index/"))
    data = filled.storage.get(key)
    if where == "segment":
        plain = unseal(vault.keys, Purpose.SEGMENT, data, context=b"index")
        data = seal(vault.keys, Purpose.SEGMENT, plain[:4] + b"\x02" + plain[5:], context=b"index")
    else:
        data = data[:4] + b"\x02" + data[5:]
    newer = f"index/0/{digest_name(data)}"
    filled.storage.put(newer, data)
    with pytest.raises(FormatError, match="format 2, this program knows 1"):
        load_segment(filled.storage, vault.keys, newer)
    with pytest.raises(FormatError):
        _ = Vault.open(filled.storage, provider=filled.ring).index
