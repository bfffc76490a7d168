"""One small vault, good examples of all that it holds, and copies of it with one object changed."""

from pathlib import Path

from engine.codec import Purpose, unseal
from engine.fetch import read_footer
from engine.listing import extents_group, names_group, statics_group, volatile_group
from engine.pack import TRAILER_BYTES, Cipher, footer_range
from engine.point import point_key, root_packs
from engine.storage import Memory
from engine.vault import Vault
from tests.support.vaults import Bench, entries, write_files

FOOTER = 0xFFFFFFFF


class Samples:
    """A vault with one point; every part of it decrypted and whole."""

    def __init__(self, folder: Path) -> None:
        self.bench = Bench()
        write_files(folder, {"a/one": b"first content, " * 20, "b": b"x", "empty": b""})
        self.bench.back_up(folder)
        vault = self.bench.open()
        self.keys, self.name = vault.keys, vault.points()[0]
        self.objects = self.bench.objects()
        self.root_key, self.commit_key = point_key(*self.name, "root"), point_key(*self.name, "commit")
        self.root = vault.root(self.name)
        self.pack = self.root.packs[0]
        self.pack_bytes = next(data for key, data in self.objects.items() if key.endswith(self.pack.name))
        self.head = read_footer(self.bench.storage, self.keys, self.pack).head
        rows = list(entries(vault, self.name))
        self.groups = [names_group(rows), statics_group(rows), volatile_group(rows), extents_group(rows)]
        segment = next(key for key in self.objects if key.startswith("index/"))
        self.segment = unseal(self.keys, Purpose.SEGMENT, self.objects[segment], context=b"index")
        _, at = root_packs(self.root_key, self.objects[self.root_key])
        self.root_head, self.root_sealed = self.objects[self.root_key][:at], self.objects[self.root_key][at:]

    @property
    def cipher(self) -> Cipher:
        """Return the cipher of the pack."""
        return Cipher(self.keys, self.head.kind, self.head.epoch, self.head.salt)

    @property
    def footer(self) -> bytes:
        """Return the footer of the pack, as stored."""
        offset, length = footer_range("x", self.pack_bytes[-TRAILER_BYTES:], len(self.pack_bytes))
        return self.pack_bytes[offset : offset + length]

    def sealed_footer(self, inner: bytes) -> bytes:
        """Return a footer with any content under the pack's own key."""
        buffer = bytearray(len(inner) + 16)
        self.cipher.encrypt_into(FOOTER, inner, memoryview(buffer))
        return bytes(buffer)

    def key_of(self, prefix: str) -> str:
        """Return the first key below a prefix."""
        return next(key for key in self.objects if key.startswith(prefix))

    def copy_with(self, key: str, data: bytes | None) -> Memory:
        """Return a copy of the bucket with one object changed, added or left out."""
        storage = Memory(write_once=False)
        for other, body in self.objects.items():
            if other != key:
                storage.put(other, body)
        if data is not None:
            storage.put(key, data)
        return storage

    def opened(self, storage: Memory) -> Vault:
        """Open the vault in a copy."""
        return Vault.open(storage, provider=self.bench.ring)

    def noted(self, key: str, payload: bytes) -> Vault:
        """Return the vault with any payload signed under a key."""
        return self.opened(self.copy_with(key, self.keys.sign(key, payload)))
