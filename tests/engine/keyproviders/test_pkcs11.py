"""What a PKCS#11 token can answer, with SoftHSM's real module."""

import threading

import pkcs11
import pytest

from engine.errors import KeyRefused, KeyUnavailable, WrongKey
from engine.keyproviders.port import KeyProvider
from engine.keyproviders.spec import KeySpec, open_provider, round_trip
from tests.support.tokens import SoftToken

CONTEXT = b"context"


def reached(token: SoftToken, label: str = "backup", *, pin: str = "") -> KeyProvider:
    return open_provider(KeySpec.parse(token.address(label), secret=pin or token.pin))


def test_the_key_never_leaves_the_token(token: SoftToken):
    assert token.attribute("backup", pkcs11.Attribute.EXTRACTABLE) is False
    with pytest.raises(pkcs11.exceptions.AttributeSensitive):
        token.attribute("backup", pkcs11.Attribute.VALUE)


@pytest.mark.rule("E34")
def test_a_key_that_is_not_on_the_token_is_told(token: SoftToken):
    with pytest.raises(KeyRefused, match="there is no AES key with this label on it: make it there first"):
        reached(token, "missing").wrap(b"s" * 32, context=CONTEXT)


def test_a_wrong_pin_is_tried_once_and_not_repeated_in_the_error(token: SoftToken):
    provider = reached(token, pin="9999-wrong")
    with pytest.raises(KeyRefused, match="the PIN is wrong; it was not tried again") as refusal:
        provider.wrap(b"s" * 32, context=CONTEXT)
    assert not refusal.value.transient
    assert "9999-wrong" not in str(refusal.value)
    assert refusal.value.__suppress_context__
    round_trip(reached(token))


def test_a_token_that_was_pulled_out_is_waited_for(token: SoftToken):
    spec = KeySpec.parse(token.address("backup").replace(token.label, "elsewhere"), secret=token.pin)
    with pytest.raises(KeyUnavailable, match="the token elsewhere is not there") as refusal:
        open_provider(spec).unwrap(bytes(60), context=CONTEXT)
    assert refusal.value.transient


def test_a_module_that_cannot_be_loaded_is_told(token: SoftToken):
    spec = KeySpec.parse("pkcs11:/none/module.so?token=t&label=l", secret="1234")
    with pytest.raises(KeyRefused, match=r"module /none/module.so can't be loaded: check its path"):
        open_provider(spec).wrap(b"s" * 32, context=CONTEXT)


def test_a_label_that_two_keys_have_is_refused(token: SoftToken):
    token.make_key("twice")
    token.make_key("twice")
    with pytest.raises(KeyRefused, match="several keys have this label"):
        reached(token, "twice").wrap(b"s" * 32, context=CONTEXT)


def test_a_key_of_another_kind_is_none(token: SoftToken):
    token.make_key("triple", kind=pkcs11.KeyType.DES3)
    with pytest.raises(KeyRefused, match="there is no AES key with this label"):
        reached(token, "triple").wrap(b"s" * 32, context=CONTEXT)


def test_threads_take_turns(token: SoftToken):
    provider = reached(token)
    wrapped = provider.wrap(b"s" * 32, context=CONTEXT)
    opened: list[bytes] = []

    def unwrap() -> None:
        opened.extend(provider.unwrap(wrapped, context=CONTEXT) for _ in range(5))

    threads = [threading.Thread(target=unwrap) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert opened == [b"s" * 32] * 20


def test_what_the_token_never_wrapped_is_a_wrong_key(token: SoftToken):
    for wrapped in (b"", bytes(27), bytes(60)):
        with pytest.raises(WrongKey, match="does not open this vault"):
            reached(token).unwrap(wrapped, context=CONTEXT)
