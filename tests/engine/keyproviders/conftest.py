"""Each kind of key provider, ready to wrap."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest

from engine.keyproviders.keyring import Keyring, RecoveryKey
from engine.keyproviders.port import KeyProvider
from engine.keyproviders.spec import KeySpec, open_provider
from tests.support.tokens import SoftToken
from tests.support.transit import Key, TransitDouble, transit_double

KINDS = ["keyring", "recovery", "transit", "transit, derived", "transit, AppRole", "pkcs11"]


class Kind(NamedTuple):
    """One kind of provider: how two different keys of it are reached, and what of them is secret."""

    spec: KeySpec
    other: KeySpec
    secrets: list[str]

    @property
    def provider(self) -> KeyProvider:
        return open_provider(self.spec)


@pytest.fixture
def transit() -> Iterator[TransitDouble]:
    """A transit engine on loopback, with the keys `backup` and `other`."""
    with transit_double() as double:
        double.keys |= {"backup": Key(), "other": Key(), "derived": Key(derived=True), "sign": Key(type="ed25519")}
        yield double


@pytest.fixture(scope="session")
def token(soft_token: SoftToken) -> SoftToken:
    """A token with the keys `backup` and `other`."""
    soft_token.make_key("backup")
    soft_token.make_key("other")
    return soft_token


def keyrings(request: pytest.FixtureRequest) -> Kind:
    texts = [Keyring.generate().text() for _ in range(2)]
    specs = [KeySpec.parse("keyring:", secret=text) for text in texts]
    return Kind(specs[0], specs[1], [texts[0].split()[-1]])


def recovery_keys(request: pytest.FixtureRequest) -> Kind:
    texts = [RecoveryKey.generate().text() for _ in range(2)]
    specs = [KeySpec.parse("recovery:", secret=text) for text in texts]
    return Kind(specs[0], specs[1], [texts[0]])


def transit_keys(request: pytest.FixtureRequest, *, key: str = "backup", role: bool = False) -> Kind:
    double: TransitDouble = request.getfixturevalue("transit")
    role_id, secret = double.role() if role else ("", double.token())
    options = {"role": role_id} if role else {}
    specs = [KeySpec.parse(double.address(name, **options), secret=secret) for name in (key, "other")]
    return Kind(specs[0], specs[1], [secret])


def token_keys(request: pytest.FixtureRequest) -> Kind:
    token: SoftToken = request.getfixturevalue("token")
    return Kind(token.spec("backup"), token.spec("other"), [token.pin])


_MAKERS: dict[str, Callable[[pytest.FixtureRequest], Kind]] = {
    "keyring": keyrings,
    "recovery": recovery_keys,
    "transit": transit_keys,
    "transit, derived": lambda request: transit_keys(request, key="derived"),
    "transit, AppRole": lambda request: transit_keys(request, role=True),
    "pkcs11": token_keys,
}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    return _MAKERS[request.param](request)
