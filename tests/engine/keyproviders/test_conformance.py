"""What every key provider promises, each with a real key of its kind."""

import copy
import os
import pickle
import traceback

import msgspec
import pytest

from engine.errors import KeyRefused, WrongKey
from engine.keyproviders.keyring import Keyring, RecoveryKey
from engine.keyproviders.spec import open_provider, round_trip
from engine.keys import Keys, KeySet, Wrap
from engine.rotation import opens, rotate
from engine.runner import VaultOpener
from engine.storage import Memory
from engine.storage.location import Location
from engine.vault import Vault
from tests.engine.keyproviders.conftest import Kind
from tests.support.vaults import START

CONTEXT = b"backupsite root 0123456789abcdef"


@pytest.mark.rule("E34")
def test_what_was_wrapped_is_unwrapped_by_a_provider_opened_anew(kind: Kind):
    secret = os.urandom(32)
    wrapped = kind.provider.wrap(secret, context=CONTEXT)
    assert secret not in wrapped
    assert kind.provider.unwrap(wrapped, context=CONTEXT) == secret
    assert kind.provider.key_id == kind.provider.key_id
    round_trip(kind.provider)


def test_no_two_wraps_are_the_same(kind: Kind):
    provider, secret = kind.provider, os.urandom(32)
    assert len({provider.wrap(secret, context=CONTEXT) for _ in range(5)}) == 5


def test_what_was_wrapped_for_something_else_is_refused(kind: Kind):
    wrapped = kind.provider.wrap(os.urandom(32), context=CONTEXT)
    for other in (b"", CONTEXT[:-1], CONTEXT + b"!"):
        with pytest.raises(WrongKey):
            kind.provider.unwrap(wrapped, context=other)


def test_another_key_of_the_kind_is_refused(kind: Kind):
    wrapped = kind.provider.wrap(os.urandom(32), context=CONTEXT)
    with pytest.raises(WrongKey):
        open_provider(kind.other).unwrap(wrapped, context=CONTEXT)


def test_every_changed_byte_and_every_missing_end_is_refused(kind: Kind):
    provider = kind.provider
    wrapped = provider.wrap(os.urandom(32), context=CONTEXT)
    damaged = [wrapped[:at] + bytes([wrapped[at] ^ 1]) + wrapped[at + 1 :] for at in range(len(wrapped))]
    for data in [*damaged, *(wrapped[:end] for end in range(0, len(wrapped), 7)), b"\xff" * 40]:
        with pytest.raises(WrongKey):
            provider.unwrap(data, context=CONTEXT)


def test_a_vault_is_made_rotated_and_opened_with_it(kind: Kind):
    storage = Memory()
    vault, recovery = Vault.create(storage, providers=[kind.provider], now=START)
    other = open_provider(kind.other)
    assert opens(storage, kind.provider)
    assert not opens(storage, other)
    rotate(vault, kind.provider, now=START, add=[other], new_data_key=True)
    assert opens(storage, other)
    assert Vault.open(storage, provider=kind.provider).keys.epochs == [1, 2]
    rotate(vault, other, now=START, revoke=[kind.provider.key_id])
    assert not opens(storage, kind.provider)
    assert opens(storage, RecoveryKey.parse(recovery))


def test_a_forked_process_uses_it_too(kind: Kind):
    provider = kind.provider
    wrapped = provider.wrap(b"s" * 32, context=CONTEXT)
    child = os.fork()
    if not child:
        code = 1
        try:
            code = 0 if open_provider(kind.spec).unwrap(wrapped, context=CONTEXT) == b"s" * 32 else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert provider.unwrap(wrapped, context=CONTEXT) == b"s" * 32


def test_its_secrets_are_in_no_text(kind: Kind):
    provider = kind.provider
    opener = VaultOpener(location=Location(url="/tmp/vault"), key=kind.spec)
    texts = [repr(provider), str(provider), repr(kind.spec), str(kind.spec), repr(opener), repr([kind.spec])]
    wrapped = provider.wrap(os.urandom(32), context=CONTEXT)
    try:
        open_provider(kind.other).unwrap(wrapped, context=CONTEXT)
    except WrongKey:
        texts.append(traceback.format_exc())
    for secret in kind.secrets:
        assert not any(secret in text for text in texts)


def test_a_spec_is_copied_and_sent_whole(kind: Kind):
    for other in (copy.deepcopy(kind.spec), pickle.loads(pickle.dumps(kind.spec))):
        assert open_provider(other).key_id == kind.provider.key_id


# E34: a key that does not do what it must is found by the round trip


class Broken(Keyring):
    """A key that fails in one way."""

    def __init__(self, how: str) -> None:
        super().__init__([bytes(32)])
        self.how = how

    def wrap(self, secret: bytes, *, context: bytes) -> bytes:
        if self.how == "plain":
            return secret
        return super().wrap(secret, context=b"" if self.how == "any context" else context)

    def unwrap(self, wrapped: bytes, *, context: bytes) -> bytes:
        if self.how == "plain":
            return wrapped
        if self.how == "other":
            return bytes(32)
        if self.how == "one way":
            raise WrongKey("no")
        return super().unwrap(wrapped, context=b"" if self.how == "any context" else context)


@pytest.mark.rule("E34")
@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("plain", "does not encrypt"),
        ("other", "does not open what it wrapped"),
        ("one way", "does not open what it wrapped"),
        ("any context", "takes what was wrapped for something else"),
    ],
)
def test_the_round_trip_finds_a_key_that_does_not_do_what_it_must(how: str, says: str):
    with pytest.raises(KeyRefused, match=says):
        round_trip(Broken(how))


def test_a_wrap_of_another_length_than_a_root_opens_nothing():
    ring = Keyring.generate()
    keys = Keys.create()
    sealed = keys.seal([ring], generation=1)
    key_set = msgspec.json.decode(sealed, type=KeySet)
    short = ring.wrap(b"short", context=b"backupsite root " + keys.vault_id)
    changed = msgspec.structs.replace(key_set, wraps=[Wrap("keyring", ring.key_id, short)])
    with pytest.raises(WrongKey):
        Keys.open(changed, ring)
