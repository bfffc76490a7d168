"""The keys of one vault (vault-format, section 3): a wrapped root, and what is derived from it."""

import hmac
import os
from collections.abc import Sequence

import msgspec
from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from engine.errors import FormatError, IntegrityError, WrongKey
from engine.keyproviders.port import KeyProvider

FORMAT = 1
ID_BYTES = 16
COMMIT_BYTES = 16
_KEY_BYTES = 32


def _derive(key: bytes, info: str, *, salt: bytes = b"", length: int = _KEY_BYTES) -> bytes:
    return HKDF(hashes.SHA256(), length, salt or None, b"backupsite 1 " + info.encode()).derive(key)


class Wrap(msgspec.Struct, frozen=True):
    """The root key under one provider's key."""

    provider: str
    key_id: str
    wrapped: bytes


class Epoch(msgspec.Struct, frozen=True):
    """One data key under the root key."""

    number: int
    wrapped: bytes


class KeySet(msgspec.Struct, frozen=True):
    """What `keys/<n>/<sha256>` holds, as JSON."""

    format: int
    vault_id: bytes
    generation: int
    wraps: list[Wrap]
    epochs: list[Epoch]


class Keys:
    """The opened keys of a vault. Keep it in memory only.

    `chunk_id(data)` is the full 32-byte id; the first 16 bytes stand in indexes and listings.
    """

    def __init__(self, vault_id: bytes, root: bytes, data_keys: dict[int, bytes]) -> None:
        self.vault_id = vault_id
        self.epoch = max(data_keys)
        self.id_key = _derive(root, "id")
        self.chunker_seed = int.from_bytes(_derive(root, "chunker", length=8), "big") >> 1
        self.cache_key = _derive(root, "cache")
        self._control_key = _derive(root, "control")
        self._wrap_key = _derive(root, "data keys")
        self._root = root
        self._data_keys = data_keys

    @classmethod
    def create(cls) -> "Keys":
        """Draw a new vault's id, root and first data key."""
        return cls(os.urandom(16), os.urandom(_KEY_BYTES), {1: os.urandom(_KEY_BYTES)})

    @classmethod
    def open(cls, key_set: KeySet, provider: KeyProvider) -> "Keys":
        """Unwrap with whichever wrap the provider opens. Raises WrongKey, IntegrityError, FormatError."""
        if key_set.format != FORMAT:
            raise FormatError(f"the vault's keys have format {key_set.format}, this program knows {FORMAT}")
        context = b"backupsite root " + key_set.vault_id
        for wrap in key_set.wraps:
            if wrap.provider != provider.name:
                continue
            try:
                root = provider.unwrap(wrap.wrapped, context=context)
            except WrongKey:
                continue
            return cls(key_set.vault_id, root, _open_epochs(key_set, root))
        raise WrongKey(f"the {provider.name} key does not open this vault")

    def seal(self, providers: Sequence[KeyProvider], *, generation: int) -> bytes:
        """Return the JSON of a key set whose root every one of `providers` can unwrap."""
        context = b"backupsite root " + self.vault_id
        wraps = [Wrap(p.name, p.key_id, p.wrap(self._root, context=context)) for p in providers]
        epochs = [Epoch(number, _seal_epoch(self._wrap_key, number, key)) for number, key in self._data_keys.items()]
        return msgspec.json.encode(KeySet(FORMAT, self.vault_id, generation, wraps, epochs))

    def chunk_id(self, data: bytes | bytearray | memoryview) -> bytes:
        """Return the keyed BLAKE3 of a chunk, 32 bytes."""
        return blake3(data, key=self.id_key).digest()

    def record_key(self, epoch: int, salt: bytes, purpose: str) -> tuple[bytes, bytes]:
        """Return (AES key, commitment) for one salt; each salt is used for one object only."""
        data_key = self._data_keys.get(epoch)
        if data_key is None:
            raise IntegrityError(f"the object was encrypted with data key {epoch}, which this vault does not have")
        both = _derive(data_key, purpose, salt=salt, length=_KEY_BYTES + COMMIT_BYTES)
        return both[:_KEY_BYTES], both[_KEY_BYTES:]

    def sign(self, key: str, payload: bytes) -> bytes:
        """Return a control object: the payload, a newline, the MAC over its key and payload."""
        return payload + b"\n" + self._mac(key, payload)

    def verify(self, key: str, data: bytes) -> bytes:
        """Return the payload of a control object. Raises IntegrityError."""
        payload, _, mac = data.rpartition(b"\n")
        if not hmac.compare_digest(mac, self._mac(key, payload)):
            raise IntegrityError(f"{key} is damaged or forged")
        return payload

    def _mac(self, key: str, payload: bytes) -> bytes:
        message = len(key).to_bytes(2, "big") + key.encode() + payload
        return blake3(message, key=self._control_key).hexdigest().encode()


def _seal_epoch(wrap_key: bytes, number: int, key: bytes) -> bytes:
    nonce = os.urandom(12)
    return nonce + AESGCM(wrap_key).encrypt(nonce, key, number.to_bytes(4, "big"))


def _open_epochs(key_set: KeySet, root: bytes) -> dict[int, bytes]:
    wrap_key = AESGCM(_derive(root, "data keys"))
    keys = {}
    for epoch in key_set.epochs:
        try:
            keys[epoch.number] = wrap_key.decrypt(
                epoch.wrapped[:12], epoch.wrapped[12:], epoch.number.to_bytes(4, "big")
            )
        except (InvalidTag, ValueError, OverflowError):
            raise IntegrityError(f"data key {epoch.number} of the vault is damaged") from None
    if not keys:
        raise IntegrityError("the vault has no data key")
    return keys
