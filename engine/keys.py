"""The keys of one vault (vault-format, section 3): a wrapped root, and what is derived from it."""

import hashlib
import hmac
import os
from collections.abc import Callable, Iterable, Sequence

import msgspec
from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from engine.errors import FormatError, IntegrityError, KeyRefused, WrongKey
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

    @property
    def digest(self) -> bytes:
        """Return what a roll names it by."""
        return hashlib.sha256(b"\0".join((self.provider.encode(), self.key_id.encode(), self.wrapped))).digest()


class Epoch(msgspec.Struct, frozen=True):
    """One data key under the root key."""

    number: int
    wrapped: bytes


class Roll(msgspec.Struct, frozen=True, omit_defaults=True):
    """What only who had the root can have said of a key set; all but `wraps` adds up from set to set.

    `wraps` are the digests of the set's own. `revoked` wraps open the vault no more, in whatever set they stand.
    `replaces` are SHA-256 of key sets whose data keys are all in this one.
    """

    wraps: list[bytes]
    revoked: list[bytes] = []
    replaces: list[bytes] = []


class KeySet(msgspec.Struct, frozen=True, omit_defaults=True):
    """What `keys/<n>/<sha256>` holds, as JSON. `roll` is a Roll under the wrap key; the first sets had none."""

    format: int
    vault_id: bytes
    generation: int
    wraps: list[Wrap]
    epochs: list[Epoch]
    roll: bytes = b""


class Keys:
    """The opened keys of a vault. Keep it in memory only.

    `chunk_id(data)` is the full 32-byte id; the first 16 bytes stand in indexes and listings. `epoch` is the data key
    that new objects are written with, for as long as this one lives. `look_again` returns the key sets as they are
    now: an object may name a data key that a rotation made after this was opened.
    """

    look_again: Callable[[], Iterable[KeySet]] | None = None

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
        self._unknown: set[int] = set()

    @classmethod
    def create(cls) -> "Keys":
        """Draw a new vault's id, root and first data key."""
        return cls(os.urandom(16), os.urandom(_KEY_BYTES), {1: os.urandom(_KEY_BYTES)})

    @classmethod
    def open(cls, key_set: KeySet, provider: KeyProvider) -> "Keys":
        """Unwrap with whichever wrap the provider opens. Raises WrongKey, IntegrityError, FormatError."""
        if key_set.format != FORMAT:
            raise FormatError(f"the vault's keys have format {key_set.format}, this program knows {FORMAT}")
        for wrap in wraps_for(key_set, provider):
            try:
                return cls.joined([key_set], unwrap_root(key_set.vault_id, wrap, provider))
            except WrongKey:
                continue
        raise WrongKey(f"the {provider.name} key does not open this vault")

    @classmethod
    def joined(cls, key_sets: Sequence[KeySet], root: bytes) -> "Keys":
        """Return what sets of one vault hold together; what was not made with this root is left out.

        Raises IntegrityError when nothing is left.
        """
        data_keys: dict[int, bytes] = {}
        problem = IntegrityError("the vault has no data key")
        for key_set in key_sets:
            try:
                data_keys = {**_open_epochs(key_set, root), **data_keys}
            except IntegrityError as error:
                problem = error
        if not data_keys:
            raise problem
        return cls(key_sets[0].vault_id, root, data_keys)

    def seal(
        self,
        providers: Sequence[KeyProvider],
        *,
        generation: int,
        carried: Sequence[Wrap] = (),
        roll: Roll | None = None,
    ) -> bytes:
        """Return the JSON of a key set that every one of `providers` opens, and who opened the `carried` wraps.

        Each new wrap is opened again before it counts (E34). Of `roll` the wraps are filled in here. Raises KeyRefused.
        """
        wraps = [*(self._wrap(provider) for provider in providers), *carried]
        epochs = [Epoch(number, _seal_epoch(self._wrap_key, number, key)) for number, key in self._data_keys.items()]
        digests = [wrap.digest for wrap in wraps]
        said = msgspec.structs.replace(roll, wraps=digests) if roll else Roll(digests)
        nonce = os.urandom(12)
        plain, bound = msgspec.json.encode(said), _roll_context(self.vault_id, generation)
        sealed = nonce + AESGCM(self._wrap_key).encrypt(nonce, plain, bound)
        return msgspec.json.encode(KeySet(FORMAT, self.vault_id, generation, wraps, epochs, sealed))

    def roll(self, key_set: KeySet) -> Roll:
        """Return what the set's maker said of it. Raises IntegrityError when nobody with the root made it as it is."""
        try:
            bound = _roll_context(key_set.vault_id, key_set.generation)
            plain = AESGCM(self._wrap_key).decrypt(key_set.roll[:12], key_set.roll[12:], bound)
            roll = msgspec.json.decode(plain, type=Roll)
        except (InvalidTag, ValueError, OverflowError, msgspec.MsgspecError):
            raise IntegrityError("a key set of the vault has no roll, or a forged one") from None
        if roll.wraps != [wrap.digest for wrap in key_set.wraps]:
            raise IntegrityError("the wraps of a key set were changed")
        return roll

    def renewed(self) -> "Keys":
        """Return these keys and one more data key, which new objects will be written with.

        It is derived, not drawn: two rotations at once make the same key for the same number.
        """
        number = max(self._data_keys) + 1
        return Keys(self.vault_id, self._root, {**self._data_keys, number: _derive(self._root, f"data key {number}")})

    def learn(self, key_set: KeySet) -> bool:
        """Know the data keys of another set too; say whether it is one of this vault, whole and genuine."""
        try:
            self._data_keys = {**_open_epochs(key_set, self._root), **self._data_keys}
        except IntegrityError:
            return False
        return True

    @property
    def epochs(self) -> list[int]:
        """Return the numbers of the data keys that are known."""
        return sorted(self._data_keys)

    def is_same(self, other: "Keys") -> bool:
        """Say whether the other has this root and at least these data keys."""
        return hmac.compare_digest(self._root, other._root) and self._data_keys.items() <= other._data_keys.items()

    def chunk_id(self, data: bytes | bytearray | memoryview) -> bytes:
        """Return the keyed BLAKE3 of a chunk, 32 bytes."""
        return blake3(data, key=self.id_key).digest()

    def record_key(self, epoch: int, salt: bytes, purpose: str) -> tuple[bytes, bytes]:
        """Return (AES key, commitment) for one salt; each salt is used for one object only."""
        data_key = self._data_keys.get(epoch) or self._looked_up(epoch)
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

    def _looked_up(self, epoch: int) -> bytes | None:
        if self.look_again is None or epoch in self._unknown:
            return None
        for key_set in self.look_again():
            self.learn(key_set)
        if epoch not in self._data_keys:
            # A data key is stored before anything is written with it: what is not there now will never be.
            self._unknown.add(epoch)
        return self._data_keys.get(epoch)

    def _wrap(self, provider: KeyProvider) -> Wrap:
        context = _context(self.vault_id)
        wrapped = provider.wrap(self._root, context=context)
        try:
            proven = hmac.compare_digest(provider.unwrap(wrapped, context=context), self._root)
        except WrongKey:
            proven = False
        if not proven:
            raise KeyRefused(f"the {provider.name} key {provider.key_id} does not open what it wrapped")
        return Wrap(provider.name, provider.key_id, wrapped)

    def _mac(self, key: str, payload: bytes) -> bytes:
        message = len(key).to_bytes(2, "big") + key.encode() + payload
        return blake3(message, key=self._control_key).hexdigest().encode()


def wraps_for(key_set: KeySet, provider: KeyProvider) -> list[Wrap]:
    """Return the wraps that the provider may open, the likeliest first."""
    found = [wrap for wrap in key_set.wraps if wrap.provider == provider.name]
    return sorted(found, key=lambda wrap: wrap.key_id != provider.key_id)


def unwrap_root(vault_id: bytes, wrap: Wrap, provider: KeyProvider) -> bytes:
    """Return the root under one wrap. Raises WrongKey, and what the provider raises."""
    root = provider.unwrap(wrap.wrapped, context=_context(vault_id))
    if len(root) != _KEY_BYTES:
        raise WrongKey(f"the {provider.name} key does not open this vault")
    return root


def _context(vault_id: bytes) -> bytes:
    return b"backupsite root " + vault_id


def _roll_context(vault_id: bytes, generation: int) -> bytes:
    return b"backupsite roll " + vault_id + generation.to_bytes(4, "big")


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
