"""A key in the transit engine of HashiCorp Vault, OpenBao, or whatever speaks their protocol. It never leaves it."""

import base64
import binascii
from collections.abc import Callable
from typing import Any, TypeVar

import hvac
import requests
from hvac.exceptions import (
    BadGateway,
    Forbidden,
    InternalServerError,
    InvalidPath,
    InvalidRequest,
    RateLimitExceeded,
    Unauthorized,
    VaultDown,
    VaultError,
    VaultNotInitialized,
)

from engine.errors import KeyRefused, KeyUnavailable, WrongKey
from engine.keyproviders.spec import TransitAddress

TIMEOUT_S = 20
_LATER = (BadGateway, InternalServerError, RateLimitExceeded, VaultDown, VaultNotInitialized)
T = TypeVar("T")


class Transit:
    """Wraps with `mount/key` of a server. The context goes with it twice: as associated data, and to derive from.

    Needs a policy with `read` on `mount/keys/key` and `update` on `mount/encrypt/key` and `mount/decrypt/key`. A
    token that AppRole gave is fetched at the first call, and again when it has run out.
    """

    name = "transit"

    def __init__(self, address: TransitAddress, secret: str) -> None:
        self._address, self._secret = address, secret
        self.key_id = "/".join(filter(None, (address.namespace.strip("/"), address.mount, address.key)))
        session = requests.Session()
        session.trust_env = False  # neither proxies nor a .netrc of this host come between
        session.verify = address.ca or True
        self._client = hvac.Client(
            url=address.server,
            token="" if address.role else secret,  # not None: hvac would look for one in the environment
            verify=session.verify,
            timeout=TIMEOUT_S,
            session=session,
            namespace=address.namespace or None,
            allow_redirects=False,
        )

    def wrap(self, secret: bytes, *, context: bytes) -> bytes:
        """Return the server's ciphertext. Raises KeyRefused, KeyUnavailable.

        The key is looked at before: the server would make a missing one for a token that may create it (E34).
        """
        self._ask(self._look)
        request = {"plaintext": _text(secret), **self._bound(context)}
        try:
            answer = self._ask(lambda: self._engine.encrypt_data(self._address.key, **request))
        except InvalidRequest:
            raise self._unfit() from None
        return str(_field(answer, "ciphertext")).encode()

    def unwrap(self, wrapped: bytes, *, context: bytes) -> bytes:
        """Return the secret. Raises WrongKey, KeyRefused, KeyUnavailable."""
        try:
            request = {"ciphertext": wrapped.decode("ascii"), **self._bound(context)}
            answer = self._ask(lambda: self._engine.decrypt_data(self._address.key, **request))
            return base64.b64decode(_field(answer, "plaintext"), validate=True)
        except InvalidRequest as error:
            if "key not found" in str(error):
                raise self._no_key() from None
            raise WrongKey(f"the transit key {self.key_id} does not open this vault") from None
        except (UnicodeDecodeError, binascii.Error, ValueError, TypeError):
            raise WrongKey(f"the transit key {self.key_id} does not open this vault") from None

    def __repr__(self) -> str:
        return f"Transit({self._address.server}, {self.key_id})"

    @property
    def _engine(self) -> Any:
        return self._client.secrets.transit

    def _bound(self, context: bytes) -> dict[str, str]:
        bound = _text(context + self.key_id.encode())
        return {"context": bound, "associated_data": bound, "mount_point": self._address.mount}

    def _look(self) -> None:
        try:
            found = self._engine.read_key(self._address.key, mount_point=self._address.mount)
        except InvalidPath:
            raise self._no_key() from None
        if not _field(found, "supports_encryption") or not _field(found, "supports_decryption"):
            raise self._unfit()

    def _no_key(self) -> KeyRefused:
        return KeyRefused(f"there is no transit key {self.key_id} at {self._address.server}: make it there first")

    def _unfit(self) -> KeyRefused:
        return KeyRefused(f"the transit key {self.key_id} does not encrypt: use one of type aes256-gcm96")

    def _ask(self, call: Callable[[], T]) -> T:
        """Return the answer of a call, logged in; say in our words what the server did not do."""
        server = self._address.server
        try:
            return self._logged_in(call)
        except InvalidRequest:
            raise
        except (Forbidden, Unauthorized):
            raise KeyRefused(
                f"{server} gives no permission to use the transit key {self.key_id}: check the token and its policy"
            ) from None
        except InvalidPath:
            raise KeyRefused(f"{server} has no transit engine at {self._address.mount}/: check the address") from None
        except _LATER as error:
            sealed = "is sealed: somebody has to unseal it" if "sealed" in str(error) else "can't answer now"
            raise KeyUnavailable(f"the key service at {server} {sealed}") from None
        except VaultError as error:
            raise KeyRefused(
                f"{server} answered with {type(error).__name__} to the transit key {self.key_id}"
            ) from None
        except (requests.exceptions.SSLError, OSError) as error:
            raise self._unreached(error) from None

    def _logged_in(self, call: Callable[[], T]) -> T:
        if not self._address.role:
            return call()
        if self._client.token:
            try:
                return call()
            except (Forbidden, Unauthorized):
                self._client.token = ""  # it ran out, or was revoked: once more with a new one
        try:
            answer = self._client.auth.approle.login(self._address.role, self._secret, use_token=False)
        except (InvalidRequest, InvalidPath, Forbidden, Unauthorized):
            raise KeyRefused(f"{self._address.server} refused the AppRole: check its role id and secret id") from None
        self._client.token = answer["auth"]["client_token"]
        return call()

    def _unreached(self, error: Exception) -> Exception:
        # requests tells a missing CA file by OSError, which its own errors are as well.
        server = self._address.server
        if isinstance(error, requests.exceptions.SSLError):
            return KeyRefused(f"the certificate of {server} is not trusted: give its CA with ?ca=/file")
        if not isinstance(error, requests.exceptions.RequestException):
            return KeyRefused(f"the CA file {self._address.ca} can't be read")
        return KeyUnavailable(f"the key service at {server} does not answer")


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _field(answer: Any, name: str) -> Any:
    """Return a field of an answer's data. Raises KeyRefused for what no transit engine answers."""
    try:
        return answer["data"][name]
    except (KeyError, TypeError):
        raise KeyRefused(f"this is not the answer of a transit engine: it has no {name}") from None
