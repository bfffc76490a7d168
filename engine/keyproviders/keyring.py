"""Key providers that need nothing else: the service's keyring file and the offline recovery key."""

import base64
import binascii
import hashlib
import os
import secrets
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from engine.errors import BadKeyFile, WrongKey

KEY_BYTES = 32
_NONCE_BYTES = 12
_CHECK_BYTES = 3
_PREFIX = "BSRK"
_GROUP = 4


def _key_id(key: bytes) -> str:
    """Return a name for the key that tells nothing about it."""
    return hashlib.sha256(b"backupsite key id" + key).hexdigest()[:16]


def _wrap(key: bytes, secret: bytes, context: bytes) -> bytes:
    nonce = os.urandom(_NONCE_BYTES)
    return nonce + AESGCM(key).encrypt(nonce, secret, context)


def _unwrap(key: bytes, wrapped: bytes, context: bytes) -> bytes:
    try:
        return AESGCM(key).decrypt(wrapped[:_NONCE_BYTES], wrapped[_NONCE_BYTES:], context)
    except (InvalidTag, ValueError):
        raise WrongKey("this key does not open the vault") from None


class Keyring:
    """The service's keys: the first wraps new vaults, all of them unwrap.

    File: one key a line, `<key id> <base64 of 32 bytes>`; lines that start with # are comments. Mode 0600.
    """

    name = "keyring"

    def __init__(self, keys: list[bytes]) -> None:
        if not keys or any(len(key) != KEY_BYTES for key in keys):
            raise BadKeyFile("a keyring needs at least one key of 32 bytes")
        self._keys = {_key_id(key): key for key in keys}
        self.key_id = _key_id(keys[0])

    @classmethod
    def generate(cls) -> "Keyring":
        """Return a keyring with one new random key."""
        return cls([secrets.token_bytes(KEY_BYTES)])

    @classmethod
    def parse(cls, text: str) -> "Keyring":
        """Return the keyring that `text()` wrote. Raises BadKeyFile naming the line."""
        keys = []
        for number, line in enumerate(text.splitlines(), 1):
            if not line.strip() or line.startswith("#"):
                continue
            try:
                key_id, encoded = line.split()
                key = base64.b64decode(encoded, validate=True)
            except (ValueError, binascii.Error):
                raise BadKeyFile(f"line {number} of the key file is not '<id> <base64>'") from None
            if len(key) != KEY_BYTES or key_id != _key_id(key):
                raise BadKeyFile(f"line {number} of the key file is damaged: the key does not match its id")
            keys.append(key)
        return cls(keys)

    @classmethod
    def load(cls, path: Path) -> "Keyring":
        """Read the key file. Raises BadKeyFile."""
        try:
            return cls.parse(path.read_text("ascii"))
        except FileNotFoundError:
            raise BadKeyFile(f"there is no key file at {path}") from None
        except (OSError, UnicodeDecodeError) as error:
            raise BadKeyFile(f"the key file {path} cannot be read: {error}") from error

    def text(self) -> str:
        """Return the file's contents."""
        lines = [f"{key_id} {base64.b64encode(key).decode()}" for key_id, key in self._keys.items()]
        head = "# Backupsite service keys. Keep a copy apart from the vaults; never share it."
        return "\n".join([head, *lines, ""])

    def save(self, path: Path) -> None:
        """Write a new key file, mode 0600, durable on return. Raises BadKeyFile when one exists."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w", encoding="ascii") as file:
                file.write(self.text())
                file.flush()
                os.fsync(file.fileno())
        except FileExistsError:
            raise BadKeyFile(f"{path} exists already; a key file is never overwritten") from None
        except OSError as error:
            raise BadKeyFile(f"the key file {path} cannot be written: {error}") from error

    def renewed(self) -> "Keyring":
        """Return this keyring with a new key in front: it wraps from now on, the others go on unwrapping."""
        return Keyring([secrets.token_bytes(KEY_BYTES), *self._keys.values()])

    def rewrite(self, path: Path) -> None:
        """Put this keyring in the place of a key file, durable on return; after an error the file is as it was.

        Raises BadKeyFile, also when a key of the file would be lost.
        """
        if not Keyring.load(path)._keys.keys() <= self._keys.keys():
            raise BadKeyFile(f"{path} holds a key that would be lost")
        draft = path.with_name(f"{path.name}.new")
        try:
            draft.unlink(missing_ok=True)
            self.save(draft)
            draft.replace(path)
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            raise BadKeyFile(f"the key file {path} cannot be written: {error}") from error

    def wrap(self, secret: bytes, *, context: bytes) -> bytes:
        return _wrap(self._keys[self.key_id], secret, context + self.key_id.encode())

    def unwrap(self, wrapped: bytes, *, context: bytes) -> bytes:
        for key_id, key in self._keys.items():
            try:
                return _unwrap(key, wrapped, context + key_id.encode())
            except WrongKey:
                continue
        raise WrongKey("no key of the key file opens this vault")


class RecoveryKey:
    """The offline key, printed once when a vault is made: `BSRK-XXXX-...`, base32 with a checksum."""

    name = "recovery"

    def __init__(self, key: bytes) -> None:
        self._key = key
        self.key_id = _key_id(key)

    @classmethod
    def generate(cls) -> "RecoveryKey":
        return cls(secrets.token_bytes(KEY_BYTES))

    @classmethod
    def parse(cls, text: str) -> "RecoveryKey":
        """Read what a person typed; case, spaces and dashes don't matter. Raises BadKeyFile on a slip."""
        compact = "".join(text.split()).replace("-", "").upper()
        if not compact.startswith(_PREFIX):
            raise BadKeyFile(f"a recovery key starts with {_PREFIX}-")
        body = compact[len(_PREFIX) :]
        try:
            raw = base64.b32decode(body + "=" * (-len(body) % 8))
        except (ValueError, binascii.Error):
            raise BadKeyFile("the recovery key has a character that cannot be in it, or a part is missing") from None
        key, check = raw[:KEY_BYTES], raw[KEY_BYTES:]
        if len(key) != KEY_BYTES or check != hashlib.sha256(key).digest()[:_CHECK_BYTES]:
            raise BadKeyFile("the recovery key is mistyped: its checksum does not fit")
        return cls(key)

    def raw(self) -> bytes:
        """Return the 32 bytes, to be split."""
        return self._key

    def text(self) -> str:
        """Return the printable form."""
        raw = self._key + hashlib.sha256(self._key).digest()[:_CHECK_BYTES]
        body = base64.b32encode(raw).decode().rstrip("=")
        return "-".join([_PREFIX, *(body[at : at + _GROUP] for at in range(0, len(body), _GROUP))])

    def wrap(self, secret: bytes, *, context: bytes) -> bytes:
        return _wrap(self._key, secret, context + self.key_id.encode())

    def unwrap(self, wrapped: bytes, *, context: bytes) -> bytes:
        return _unwrap(self._key, wrapped, context + self.key_id.encode())
