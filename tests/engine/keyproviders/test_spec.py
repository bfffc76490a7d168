"""The text that says where a key is kept: what it leads to, and every way in which it is wrong."""

import sys
from pathlib import Path

import pytest

from engine.errors import BadKeyFile, KeyRefused
from engine.keyproviders.keyring import Keyring, RecoveryKey
from engine.keyproviders.spec import KeySpec, TokenAddress, TransitAddress, open_provider

SECRET = "hvs.very-secret"


def test_a_keyring_is_read_from_its_file_or_given_as_text(tmp_path: Path):
    ring = Keyring.generate()
    ring.save(tmp_path / "keys")
    for spec in (KeySpec.parse(f"keyring:{tmp_path / 'keys'}"), KeySpec.parse("keyring:", secret=ring.text())):
        assert open_provider(spec).key_id == ring.key_id


def test_a_recovery_key_is_given_as_secret():
    key = RecoveryKey.generate()
    assert open_provider(KeySpec.parse("recovery:", secret=key.text())).key_id == key.key_id


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("transit:https://h:8200/transit/key", TransitAddress("https://h:8200", "transit", "key", "", "", "")),
        ("transit:https://h/a/b/key", TransitAddress("https://h", "a/b", "key", "", "", "")),
        (
            "transit:https://h/t/my%20key?namespace=team%2Fa&role=r1&ca=/etc/ca.pem",
            TransitAddress("https://h", "t", "my key", "team/a", "r1", "/etc/ca.pem"),
        ),
        ("transit:http://127.0.0.1:1/t/k", TransitAddress("http://127.0.0.1:1", "t", "k", "", "", "")),
    ],
)
def test_a_transit_address_is_taken_apart(url: str, expected: TransitAddress):
    assert KeySpec.parse(url, secret=SECRET).transit() == expected


def test_a_token_address_is_taken_apart():
    spec = KeySpec.parse("pkcs11:/usr/lib/my%20module.so?token=Backup&label=the%20key", secret="1234")
    assert spec.token() == TokenAddress("/usr/lib/my module.so", "Backup", "the key")


@pytest.mark.parametrize(
    ("url", "secret", "says"),
    [
        ("", "", "does not say where a key is kept"),
        ("vault:https://h/m/k", SECRET, "does not say where a key is kept"),
        ("keyring:", "", "give keyring:/file, or keyring: and the text"),
        ("keyring:/keys", SECRET, "give keyring:/file, or keyring: and the text"),
        ("keyring:keys", "", "needs an absolute path"),
        ("recovery:", "", "needs its secret as well: the recovery key"),
        ("recovery:BSRK-AAAA", SECRET, "has no place in an address"),
        ("transit:https://h/transit/key", "", "needs its secret as well: a token"),
        ("transit:https://h/key", SECRET, "not the address of a transit key"),
        ("transit:https://h/transit//key", SECRET, "not the address of a transit key"),
        ("transit:https:///transit/key", SECRET, "not the address of a transit key"),
        ("transit:ftp://h/transit/key", SECRET, "not the address of a transit key"),
        ("transit:http://vault.example/transit/key", SECRET, "must not travel without TLS"),
        (f"transit:https://{SECRET}@h/transit/key", "x", "holds no user, password or token"),
        ("transit:https://h/transit/key#x", SECRET, "holds no user, password or token"),
        ("transit:https://h/transit/key?token=x", SECRET, "knows no 'token', only ca, namespace, role"),
        ("transit:https://h/transit/key?role=a&role=b", SECRET, "same option twice"),
        ("transit:http://localhost/transit/key?ca=/x", SECRET, "ca has no use without https"),
        ("pkcs11:/m.so?token=t", "1234", "does not lead to a key on a token"),
        ("pkcs11:m.so?token=t&label=l", "1234", "does not lead to a key on a token"),
        ("pkcs11:/m.so?token=t&label=l", "", "needs its secret as well: the PIN"),
        ("pkcs11:/m.so?token=t&label=l&pin=1234", "1234", "knows no 'pin', only label, token"),
    ],
)
def test_what_leads_to_no_key_is_refused_with_advice_and_without_the_secret(url: str, secret: str, says: str):
    with pytest.raises(ValueError, match=says) as refusal:
        KeySpec.parse(url, secret=secret)
    assert SECRET not in str(refusal.value)
    with pytest.raises(ValueError, match=says):
        open_provider(KeySpec(url=url, secret=secret))


def test_a_key_file_that_is_not_there_is_told(tmp_path: Path):
    with pytest.raises(BadKeyFile, match="there is no key file"):
        open_provider(KeySpec.parse(f"keyring:{tmp_path / 'none'}"))


@pytest.mark.parametrize(
    ("url", "package"),
    [("transit:https://h/transit/key", "hvac"), ("pkcs11:/m.so?token=t&label=l", "pkcs11")],
)
def test_a_missing_package_is_named(url: str, package: str, monkeypatch: pytest.MonkeyPatch):
    module = "engine.keyproviders." + url.partition(":")[0]
    monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(KeyRefused, match=rf"need the package {package}: pip install -r requirements-keys.txt"):
        open_provider(KeySpec.parse(url, secret=SECRET))


def test_the_text_of_a_spec_holds_no_secret():
    spec = KeySpec.parse("transit:https://h/transit/key", secret=SECRET)
    assert SECRET not in f"{spec!r} {spec} {[spec]}"
    assert spec.url in repr(spec)
