"""docs/vault-format.md is enough to read a vault: this reader follows the page and uses nothing of the engine."""

import base64
import hashlib
import json
import os
import tarfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import zstandard
from blake3 import blake3
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from engine.rotation import rotate
from engine.storage import Directory
from tests.support.compaction import compacted, end_point, noise
from tests.support.locking import locked
from tests.support.vaults import Bench, on_disk, pruned, write_files

GOLDEN = Path(__file__).parent.parent / "golden"


def derive(key: bytes, purpose: str, salt: bytes | None = None, length: int = 32) -> bytes:
    return HKDF(hashes.SHA256(), length, salt, b"backupsite 1 " + purpose.encode()).derive(key)


def number(data: bytes) -> int:
    return int.from_bytes(data, "big")


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


class Chunk(NamedTuple):
    pack: Path
    slot: int
    offset: int
    length: int


class Reader:
    """Reads a vault that lies in a folder."""

    def __init__(self, folder: Path, key_file: Path) -> None:
        self.folder = folder
        info = json.loads((folder / "vault.json").read_bytes().rpartition(b"\n")[0])
        assert (info["magic"], info["format"], info["features"]["read"]) == ("backupsite-vault", 1, [])
        key_id, encoded = next(line.split() for line in key_file.read_text().splitlines() if line[0] != "#")
        self.key_sets = [path for path in (folder / "keys").glob("*/*") if sha256(path) == path.name]
        sets = [json.loads(path.read_bytes()) for path in self.key_sets]
        self.vault_id = base64.b64decode(sets[0]["vault_id"])
        wrap = next(base64.b64decode(w["wrapped"]) for one in sets for w in one["wraps"] if w["key_id"] == key_id)
        context = b"backupsite root " + self.vault_id + key_id.encode()
        self.root = root = AESGCM(base64.b64decode(encoded)).decrypt(wrap[:12], wrap[12:], context)
        self.id_key, self.control_key = derive(root, "id"), derive(root, "control")
        self.data_keys = {}
        for epoch in (epoch for one in sets for epoch in one["epochs"]):
            wrapped = base64.b64decode(epoch["wrapped"])
            self.data_keys[epoch["number"]] = self.unwrap(wrapped, epoch["number"].to_bytes(4, "big"))
        assert self.control("vault.json") == info
        self.chunks: dict[bytes, Chunk] = {}
        self.tables: dict[Path, tuple[AESGCM, bytes, bytes, np.ndarray]] = {}

    def unwrap(self, wrapped: bytes, aad: bytes) -> bytes:
        return AESGCM(derive(self.root, "data keys")).decrypt(wrapped[:12], wrapped[12:], aad)

    def control(self, key: str) -> Any:
        payload, _, mac = (self.folder / key).read_bytes().rpartition(b"\n")
        message = len(key).to_bytes(2, "big") + key.encode() + payload
        assert blake3(message, key=self.control_key).hexdigest().encode() == mac
        return json.loads(payload)

    def object_key(self, epoch: bytes, salt: bytes, commitment: bytes, purpose: str) -> AESGCM:
        both = derive(self.data_keys[number(epoch)], purpose, salt, 48)
        assert both[32:] == commitment
        return AESGCM(both[:32])

    def newest(self) -> str:
        return (
            max((p.parent for p in (self.folder / "points").glob("*/*/commit")), key=lambda p: p.name)
            .relative_to(self.folder)
            .as_posix()
        )

    def body(self, point: str) -> tuple[list[Path], Any]:
        data = (self.folder / point / "root").read_bytes()
        assert hashlib.sha256(data).hexdigest() == self.control(f"{point}/commit")["root_sha256"]
        assert (data[:4], number(data[4:8])) == (b"BSRT", 1)
        end = 16 + 44 * number(data[8:12])
        packs, sizes = [], {}
        for at in range(16, end, 44):
            name, alias, kind = (
                data[at : at + 32].hex(),
                number(data[at + 32 : at + 36]),
                number(data[at + 36 : at + 40]),
            )
            path = self.folder / ("packs", "meta")[kind] / name[:2] / (name + (f".{alias}" if alias else ""))
            sizes[path] = number(data[at + 40 : at + 44])
            packs.append(path)
        places = self.moved(point)
        assert all(path.stat().st_size == size for path, size in sizes.items() if path.name not in places)
        record = data[end:]
        assert (record[:4], record[4], record[5]) == (b"BSRC", 1, 2)
        context = f"{point}/root".encode() + hashlib.sha256(data[:end]).digest()
        key = self.object_key(record[8:12], record[12:44], record[44:60], "record 2")
        frame = key.decrypt(bytes(12), record[60:], record[:60] + context)
        return packs, msgspec.msgpack.decode(zstandard.decompress(frame))

    def moved(self, point: str) -> dict[str, list[Path]]:
        """Return what stands for which packs of a point, by name."""
        places: dict[str, list[Path]] = {}
        for folder in sorted((self.folder / "moves").glob("*"), reverse=True):
            move = (folder / "move").read_bytes()
            named = self.control(f"moves/{folder.name}/move")
            commit = self.control(f"moves/{folder.name}/commit")
            assert commit["move_sha256"] == hashlib.sha256(move).hexdigest()
            if point.removeprefix("points/") in named["points"]:
                for old, new in named["packs"].items():
                    places[old] = [self.folder / ("packs", "meta")[k] / name[:2] / name for name, k, _ in new]
        return places

    def needed(self, pack: Path, places: dict[str, list[Path]]) -> list[Path]:
        """Return what the point needs in the place of one pack."""
        if pack.name not in places:
            return [pack]
        return [one for new in places[pack.name] for one in self.needed(new, places)]

    def read_footer(self, pack: Path) -> None:
        data = pack.read_bytes()
        assert (data[:4], data[4], data[-8:]) == (b"BSPK", 1, b"BSPKEND1")
        key = self.object_key(data[8:12], data[28:60], data[60:76], "pack")
        aad = hashlib.sha256(data[:128]).digest()
        at, length = number(data[-32:-28]), number(data[-28:-24])
        body = key.decrypt(b"\xff" * 12, data[at : at + length], aad + b"\xff" * 4)
        plain = zstandard.decompress(body[1:]) if body[0] else body[1:]
        c, s = number(plain[:4]), number(plain[4:8])
        ids, rest = plain[8 : 8 + 32 * c], plain[8 + 32 * c :]
        columns = np.frombuffer(rest[: 12 * c], ">u4").reshape(3, c)
        for row in range(c):
            self.chunks[ids[32 * row : 32 * row + 16]] = Chunk(pack, *(int(column[row]) for column in columns))
        slots = np.frombuffer(rest[12 * c + s :], ">u4").reshape(2, s)
        raw = np.frombuffer(rest[12 * c : 12 * c + s], np.uint8)
        self.tables[pack] = (key, aad, data, np.stack([raw, *slots]).astype(int))

    def chunk(self, ident: bytes) -> bytes:
        chunk = self.chunks[ident[:16]]
        key, aad, data, slots = self.tables[chunk.pack]
        raw, at, length = (int(value) for value in slots[:, chunk.slot])
        plain = key.decrypt(chunk.slot.to_bytes(12, "big"), data[at : at + length], aad + chunk.slot.to_bytes(4, "big"))
        plain = plain if raw else zstandard.decompress(plain)
        found = plain[chunk.offset : chunk.offset + chunk.length]
        assert blake3(found, key=self.id_key).digest()[: len(ident)] == ident
        return found

    def files(self, point: str) -> Iterator[tuple[bytes, bytes]]:
        """Yield (path, content) of every file of a point."""
        packs, body = self.body(point)
        places = self.moved(point)
        for _, count, groups, needed, *_ in body["blocks"]:
            for pack in {one for i in needed for one in self.needed(packs[i], places)} - self.tables.keys():
                self.read_footer(pack)
            names, _, volatile, extents = (
                b"".join(self.chunk(group[at : at + 32]) for at in range(0, len(group), 32)) for group in groups
            )
            assert int.from_bytes(names[:4], "little") == count
            sizes = unshuffle(volatile, count, "<i8")
            counts = unshuffle(extents, count, "<u4")
            total = int(counts.sum())
            ids, lengths = extents[4 * count :], unshuffle(extents[4 * count + 16 * total :], total, "<u8")
            at = 0
            for row, path in enumerate(names[4 + count :].split(b"\0")):
                parts = []
                for one in range(at, at + int(counts[row])):
                    ident = ids[16 * one : 16 * one + 16]
                    parts.append(self.chunk(ident) if any(ident) else bytes(int(lengths[one])))
                at += int(counts[row])
                if names[4 + row] == 0:
                    content = b"".join(parts)
                    assert len(content) == sizes[row]
                    yield path, content


def unshuffle(data: bytes, count: int, kind: str) -> np.ndarray:
    width = np.dtype(kind).itemsize
    flat = np.frombuffer(data, np.uint8, count * width).reshape(width, count)
    return np.ascontiguousarray(flat.T).view(kind).reshape(-1)


def test_a_reader_written_from_the_page_reads_every_file_of_the_newest_point(tmp_path: Path):
    with tarfile.open(GOLDEN / "vault-1.tar") as archive:
        archive.extractall(tmp_path, filter="data")
    reader = Reader(tmp_path, GOLDEN / "vault-1.keys")
    point = reader.newest()
    found = dict(reader.files(point))
    rows = json.loads((GOLDEN / "vault-1.json").read_text())[point.rpartition("/")[2]]
    expected = {row[0].encode("latin-1"): row for row in rows if row[1] == 0}
    assert found.keys() == expected.keys()
    assert len(found) >= 8
    for path, content in found.items():
        size, told = expected[path][5], expected[path][-1]
        assert len(content) == size
        assert told == (content.decode("latin-1") if size < 1000 else hashlib.sha256(content).hexdigest())


def test_the_reader_reads_what_is_written_today(tmp_path: Path):
    (tmp_path / "vault").mkdir()
    bench = Bench(Directory(tmp_path / "vault"))
    files = {f"folder {n % 7}/file {n}": b"content %d " % n * n for n in range(3000)}
    folder = write_files(tmp_path / "home", files | {"large": os.urandom(3_000_000)})
    bench.back_up(folder)
    (folder / "large").write_bytes(b"changed")
    bench.back_up(folder)
    bench.ring.save(tmp_path / "keys")
    reader = Reader(tmp_path / "vault", tmp_path / "keys")
    cut = len(os.fsencode(folder))
    found = {path[cut:]: content for path, content in reader.files(reader.newest())}
    assert found == on_disk(folder)


def test_the_reader_reads_what_compactions_moved_and_moved_on(tmp_path: Path):
    (tmp_path / "vault").mkdir()
    bench, home = Bench(Directory(tmp_path / "vault")), tmp_path / "home"
    files = {f"f{n}": noise(n, 20_000) for n in range(12)}
    first = bench.back_up(write_files(tmp_path / "all", files), series="all")
    other = bench.back_up(write_files(tmp_path / "other", {f"f{n}": noise(n, 20_000) for n in range(4, 7)}), series="o")
    kept = bench.back_up(write_files(home, {f"f{n}": noise(n, 20_000) for n in range(3)}))
    for ended in (first, other):
        end_point(bench, ended.series, ended.point)
        assert compacted(bench).packs_moved > 0
    assert pruned(bench).packs_deleted >= 2
    bench.ring.save(tmp_path / "keys")
    reader = Reader(tmp_path / "vault", tmp_path / "keys")
    (chain,) = [new for new in reader.moved(f"points/home/{kept.point}").values() if not new[0].exists()]
    assert reader.moved(f"points/home/{kept.point}")[chain[0].name]
    cut = len(os.fsencode(home))
    assert {path[cut:]: content for path, content in reader.files(reader.newest())} == on_disk(home)


def test_the_reader_finds_the_locks_that_the_page_describes(tmp_path: Path):
    bench = Bench(Directory(tmp_path / "vault", create=True))
    locked(bench, 30)
    bench.back_up(write_files(tmp_path / "home", {"a": b"content"}))
    bench.ring.save(tmp_path / "keys")
    reader = Reader(tmp_path / "vault", tmp_path / "keys")
    (policy,) = (tmp_path / "vault/locks/policy").iterdir()
    said = reader.control(f"locks/policy/{policy.name}")
    packs, body = reader.body(reader.newest())
    generation = (body["ended_at"] + timedelta(days=said["days"])).timestamp() // 864_000
    end = datetime.fromtimestamp((generation + 1) * 864_000, UTC)
    assert (said["days"], said.get("immutable", False), body["locked_until"]) == (30, False, end)
    (note,) = (tmp_path / "vault/locks").glob("[0-9]*/*")
    assert note.parent.name == str(int(generation))
    assert hashlib.sha256(note.read_bytes().rpartition(b"\n")[0]).hexdigest() == note.name
    assert set(reader.control(f"locks/{note.parent.name}/{note.name}")["packs"]) == {pack.name for pack in packs}
    point = tmp_path / "vault" / reader.newest()
    for path in [*packs, point / "root", point / "commit", tmp_path / "vault/vault.json", policy]:
        lock = tmp_path / "vault/.locks" / path.relative_to(tmp_path / "vault")
        assert datetime.fromisoformat(lock.read_text()) >= end


def test_the_reader_reads_what_was_written_before_and_after_rotations(tmp_path: Path):
    bench = Bench(Directory(tmp_path / "vault", create=True))
    folders = [write_files(tmp_path / f"home{n}", {"a": os.urandom(2000)}) for n in range(2)]
    bench.back_up(folders[0], series="before")
    bench.ring.save(tmp_path / "keys")
    (first,) = Reader(tmp_path / "vault", tmp_path / "keys").key_sets
    rotate(bench.open(), bench.ring, now=bench.clock(), new_data_key=True)
    bench.back_up(folders[1], series="after")
    reader = Reader(tmp_path / "vault", tmp_path / "keys")
    cut = len(os.fsencode(folders[1]))
    assert {path[cut:]: content for path, content in reader.files(reader.newest())} == on_disk(folders[1])
    assert reader.data_keys.keys() == {1, 2}
    assert reader.data_keys[2] == derive(reader.root, "data key 2")
    (path,) = reader.key_sets
    said = json.loads(path.read_bytes())
    assert said["generation"] == int(path.parent.name) == 2
    sealed = base64.b64decode(said["roll"])
    roll = json.loads(reader.unwrap(sealed, b"backupsite roll " + reader.vault_id + b"\0\0\0\2"))
    assert [base64.b64decode(one) for one in roll["wraps"]] == [digest_of(wrap) for wrap in said["wraps"]]
    assert [base64.b64decode(one).hex() for one in roll["replaces"]] == [first.name]
    assert len(roll["revoked"]) == 1, "the wrap of the service key was made anew, that of the recovery key was kept"


def digest_of(wrap: dict[str, str]) -> bytes:
    parts = (wrap["provider"].encode(), wrap["key_id"].encode(), base64.b64decode(wrap["wrapped"]))
    return hashlib.sha256(b"\0".join(parts)).digest()
