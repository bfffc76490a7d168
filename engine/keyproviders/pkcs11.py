"""An AES key on a PKCS#11 token: a hardware module, a smart card, SoftHSM. It never leaves the token."""

import contextlib
import os
import threading
from collections.abc import Iterator
from typing import Any

import pkcs11
from pkcs11 import exceptions as said

from engine.errors import KeyRefused, KeyUnavailable, WrongKey
from engine.keyproviders.spec import TokenAddress

_NONCE_BYTES = 12
_TAG_BYTES = 16
_REFUSALS: tuple[tuple[tuple[type[Exception], ...], str], ...] = (
    ((said.PinLocked,), "its PIN is locked after too many wrong ones: its security officer has to unlock it"),
    ((said.PinIncorrect, said.PinInvalid, said.PinLenRange), "the PIN is wrong; it was not tried again"),
    ((said.PinExpired, said.UserPinNotInitialized), "its PIN has to be set first"),
    ((said.NoSuchKey,), "there is no AES key with this label on it: make it there first"),
    ((said.MultipleObjectsReturned,), "several keys have this label: give the key a label of its own"),
    ((said.MultipleTokensReturned,), "several tokens have this name: give the token a name of its own"),
    ((said.MechanismInvalid, said.MechanismParamInvalid, said.FunctionNotSupported), "it can't do AES-GCM"),
)
_LATER = (said.NoSuchToken, said.TokenNotPresent, said.DeviceRemoved, said.DeviceError, said.DeviceMemory)
_DAMAGED = (said.EncryptedDataInvalid, said.EncryptedDataLenRange, said.SignatureInvalid)
# The library is told of no threads, and a forked process has to begin anew with it.
_mutex = threading.Lock()
_loaded: dict[str, int] = {}


class Token:
    """Wraps with an AES key of a token, by AES-GCM inside it, the context as associated data.

    The module is loaded, and the token logged into, for each call anew: a token may be pulled out in between. A wrong
    PIN is tried once only, because tokens lock themselves.
    """

    name = "pkcs11"

    def __init__(self, address: TokenAddress, pin: str) -> None:
        self._address, self._pin = address, pin
        self.key_id = f"{address.token}/{address.label}"

    def wrap(self, secret: bytes, *, context: bytes) -> bytes:
        """Return nonce and ciphertext. Raises KeyRefused, KeyUnavailable."""
        nonce = os.urandom(_NONCE_BYTES)
        with self._key() as key:
            sealed: bytes = key.encrypt(
                secret, mechanism=pkcs11.Mechanism.AES_GCM, mechanism_param=self._bound(nonce, context)
            )
        return nonce + sealed

    def unwrap(self, wrapped: bytes, *, context: bytes) -> bytes:
        """Return the secret. Raises WrongKey, KeyRefused, KeyUnavailable."""
        if len(wrapped) < _NONCE_BYTES + _TAG_BYTES:
            raise self._wrong()
        nonce, sealed = wrapped[:_NONCE_BYTES], wrapped[_NONCE_BYTES:]
        with self._key() as key:
            try:
                secret: bytes = key.decrypt(
                    sealed, mechanism=pkcs11.Mechanism.AES_GCM, mechanism_param=self._bound(nonce, context)
                )
            except (*_DAMAGED, said.GeneralError, said.FunctionFailed):
                # SoftHSM says no more than GeneralError to a tag that does not fit.
                raise self._wrong() from None
        return secret

    def __repr__(self) -> str:
        return f"Token({self.key_id})"

    def _bound(self, nonce: bytes, context: bytes) -> pkcs11.GCMParams:
        return pkcs11.GCMParams(nonce, context + self.key_id.encode(), _TAG_BYTES * 8)

    def _wrong(self) -> WrongKey:
        return WrongKey(f"the key {self.key_id} does not open this vault")

    @contextlib.contextmanager
    def _key(self) -> Iterator[Any]:
        """Log in and yield the key; say in our words what the token did not do."""
        with _mutex:
            try:
                token = self._library().get_token(token_label=self._address.token)
                with token.open(user_pin=self._pin) as session:
                    yield self._only(session)
            except pkcs11.PKCS11Error as error:
                raise self._told(error) from None

    def _only(self, session: Any) -> Any:
        wanted = {
            pkcs11.Attribute.CLASS: pkcs11.ObjectClass.SECRET_KEY,
            pkcs11.Attribute.KEY_TYPE: pkcs11.KeyType.AES,
            pkcs11.Attribute.LABEL: self._address.label,
        }
        # All of them: a search that is left half way stays open on the token.
        found = list(session.get_objects(wanted))
        if len(found) != 1:
            raise said.MultipleObjectsReturned if found else said.NoSuchKey
        return found[0]

    def _library(self) -> Any:
        module, process = self._address.module, os.getpid()
        try:
            library: Any = pkcs11.lib(module)
            if _loaded.setdefault(module, process) != process:
                library.reinitialize()
                _loaded[module] = process
        except pkcs11.PKCS11Error:
            raise KeyRefused(f"the PKCS#11 module {module} can't be loaded: check its path") from None
        return library

    def _told(self, error: Exception) -> Exception:
        for kinds, text in _REFUSALS:
            if isinstance(error, kinds):
                return KeyRefused(f"the token refused the key {self.key_id}: {text}")
        if isinstance(error, _LATER):
            return KeyUnavailable(f"the token {self._address.token} is not there or does not work")
        return KeyUnavailable(f"the token {self._address.token} failed with {type(error).__name__}")
