"""Where a key is kept, as one text that the command line and the service share, and the provider that it leads to."""

import os
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit

import msgspec

from engine.errors import KeyRefused, WrongKey
from engine.keyproviders.keyring import Keyring, RecoveryKey
from engine.keyproviders.port import KeyProvider

_FORMS = "keyring:/file, transit:https://host:8200/mount/key or pkcs11:/module.so?token=NAME&label=NAME"
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_OPTIONS = {
    "keyring": frozenset[str](),
    "recovery": frozenset[str](),
    "transit": frozenset({"namespace", "role", "ca"}),
    "pkcs11": frozenset({"token", "label"}),
}


class TransitAddress(NamedTuple):
    """What `transit:` says; `namespace`, `role` and `ca` may be empty."""

    server: str
    mount: str
    key: str
    namespace: str
    role: str
    ca: str


class TokenAddress(NamedTuple):
    """What `pkcs11:` says: the library, the token's label, the key's label."""

    module: str
    token: str
    label: str


class KeySpec(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Where a key is kept (`url`, no secret in it) and the secret that reaching it needs.

    | url | secret |
    |---|---|
    | `keyring:/file` | none |
    | `keyring:` | the text of a key file |
    | `recovery:` | the recovery key |
    | `transit:https://host:8200/mount/key[?namespace=..][&role=..][&ca=/file]` | a token; with `role` its secret id |
    | `pkcs11:/module.so?token=NAME&label=NAME` | the PIN |

    Encrypt it where it is kept; `repr` leaves the secret out.
    """

    url: str
    secret: str = ""

    @classmethod
    def parse(cls, url: str, *, secret: str = "") -> "KeySpec":
        """Return the checked spec. Raises ValueError saying what to change; no message holds a secret."""
        spec = cls(url=url, secret=secret)
        spec.validate()
        return spec

    @property
    def scheme(self) -> str:
        """Return what kind of key it is: `keyring`, `recovery`, `transit` or `pkcs11`."""
        return self.url.partition(":")[0]

    def validate(self) -> None:
        """Raise ValueError, saying what to change, when this leads to no key."""
        scheme, _, rest = self.url.partition(":")
        # The text is not repeated: somebody may have put a recovery key or a token in its place.
        if scheme not in _OPTIONS:
            raise ValueError(f"this does not say where a key is kept: give {_FORMS}")
        if scheme == "transit":
            self.transit()
        elif scheme == "pkcs11":
            self.token()
        elif scheme == "recovery" and rest:
            raise ValueError("the recovery key itself has no place in an address: give recovery: and the key as secret")
        elif scheme == "keyring" and bool(rest) == bool(self.secret):
            raise ValueError("give keyring:/file, or keyring: and the text of a key file as secret")
        elif scheme == "keyring" and rest and not os.path.isabs(rest):
            raise ValueError("keyring: needs an absolute path: keyring:/file")
        if scheme != "keyring" and not self.secret:
            wanted = {"recovery": "the recovery key", "transit": "a token or secret id", "pkcs11": "the PIN"}[scheme]
            raise ValueError(f"{scheme}: needs its secret as well: {wanted}")

    def transit(self) -> TransitAddress:
        """Return the parts of a `transit:` address. Raises ValueError."""
        parts = urlsplit(self.url.partition(":")[2])
        options = self._options(parts.query)
        path = [unquote(part) for part in parts.path.strip("/").split("/")]
        if "@" in parts.netloc or parts.fragment:
            raise ValueError("a transit address holds no user, password or token: give the token as secret")
        if parts.scheme not in ("http", "https") or not parts.hostname or len(path) < 2 or not all(path):
            raise ValueError("this is not the address of a transit key: give transit:https://host:8200/mount/key")
        if parts.scheme == "http" and parts.hostname not in _LOOPBACK:
            raise ValueError("a token must not travel without TLS: give transit:https://... (http is for this host)")
        if options.get("ca") and parts.scheme == "http":
            raise ValueError("ca has no use without https: leave it out")
        names = (options.get(name, "") for name in ("namespace", "role", "ca"))
        return TransitAddress(f"{parts.scheme}://{parts.netloc}", "/".join(path[:-1]), path[-1], *names)

    def token(self) -> TokenAddress:
        """Return the parts of a `pkcs11:` address. Raises ValueError."""
        module, _, query = self.url.partition(":")[2].partition("?")
        options = self._options(query)
        if not os.path.isabs(unquote(module)) or not options.get("token") or not options.get("label"):
            raise ValueError("this does not lead to a key on a token: give pkcs11:/module.so?token=NAME&label=NAME")
        return TokenAddress(unquote(module), options["token"], options["label"])

    def _options(self, query: str) -> dict[str, str]:
        known = _OPTIONS[self.scheme]
        found = parse_qsl(query, keep_blank_values=True)
        if strange := sorted({name for name, _ in found if name not in known}):
            raise ValueError(f"{self.scheme}: knows no {strange[0]!r}, only {', '.join(sorted(known))}")
        if len({name for name, _ in found}) != len(found):
            raise ValueError(f"{self.scheme}: was given the same option twice")
        return dict(found)

    def __repr__(self) -> str:
        return f"KeySpec(url={self.url!r})"


def open_provider(spec: KeySpec) -> KeyProvider:
    """Return the provider; a key service or token is asked at its first use. Raises BadKeyFile, KeyRefused."""
    spec.validate()
    if spec.scheme == "keyring":
        path = spec.url.removeprefix("keyring:")
        return Keyring.load(Path(path)) if path else Keyring.parse(spec.secret)
    if spec.scheme == "recovery":
        return RecoveryKey.parse(spec.secret)
    # Both need packages that are installed only where such keys are used.
    try:
        if spec.scheme == "transit":
            from engine.keyproviders.transit import Transit

            return Transit(spec.transit(), spec.secret)
        from engine.keyproviders.pkcs11 import Token

        return Token(spec.token(), spec.secret)
    except ModuleNotFoundError as error:
        raise KeyRefused(
            f"{spec.scheme}: keys need the package {error.name}: pip install -r requirements-keys.txt"
        ) from None


def round_trip(provider: KeyProvider) -> None:
    """Prove that the key exists, wraps, unwraps the same and keeps to its context (E34). Raises KeyRefused.

    Run it before a vault uses the key; nothing is stored. KeyUnavailable is raised when the key can't be asked now.
    """
    secret, context = os.urandom(32), b"backupsite trial " + os.urandom(8)
    wrapped = provider.wrap(secret, context=context)
    if secret in wrapped:
        raise KeyRefused(f"the {provider.name} key {provider.key_id} does not encrypt")
    try:
        unwrapped = provider.unwrap(wrapped, context=context)
    except WrongKey:
        unwrapped = b""
    if unwrapped != secret:
        raise KeyRefused(f"the {provider.name} key {provider.key_id} does not open what it wrapped")
    try:
        provider.unwrap(wrapped, context=context + b"!")
    except WrongKey:
        return
    raise KeyRefused(f"the {provider.name} key {provider.key_id} takes what was wrapped for something else")
