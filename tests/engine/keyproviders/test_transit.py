"""What a transit engine can answer, and what is made of it."""

import socket
import subprocess
import time
from pathlib import Path

import pytest

from engine.errors import EngineError, KeyRefused, KeyUnavailable, WrongKey
from engine.keyproviders import transit as module
from engine.keyproviders.port import KeyProvider
from engine.keyproviders.spec import KeySpec, open_provider, round_trip
from engine.storage import Memory
from engine.vault import Vault
from tests.support.transit import Key, TransitDouble, transit_double
from tests.support.vaults import START

CONTEXT = b"context"


def reached(double: TransitDouble, key: str = "backup", *, token: str = "", **options: str) -> KeyProvider:
    return open_provider(KeySpec.parse(double.address(key, **options), secret=token or double.token()))


def refused(provider: KeyProvider, kind: type[EngineError], says: str, *, hidden: str = "") -> None:
    """Expect the error from both operations, with nothing secret in it."""
    for call in (
        lambda: provider.wrap(b"s" * 32, context=CONTEXT),
        lambda: provider.unwrap(b"vault:v1:AAAA", context=CONTEXT),
    ):
        with pytest.raises(kind, match=says) as answer:
            call()
        assert answer.value.transient is (kind is KeyUnavailable)
        assert not hidden or hidden not in str(answer.value)
        assert answer.value.__cause__ is None
        assert answer.value.__suppress_context__


@pytest.mark.rule("E34")
def test_a_key_that_does_not_exist_is_not_made(transit: TransitDouble):
    provider = reached(transit, "missing", token=transit.token("read", "encrypt", "decrypt", "create"))
    refused(provider, KeyRefused, "there is no transit key transit/missing at .*: make it there first")
    assert "missing" not in transit.keys


def test_a_token_that_is_wrong_or_may_not_is_told_so(transit: TransitDouble):
    says = "gives no permission to use the transit key transit/backup: check the token and its policy"
    refused(reached(transit, token="hvs.wrong"), KeyRefused, says, hidden="hvs.wrong")
    refused(reached(transit, token=transit.token("nothing")), KeyRefused, says)


def test_a_token_that_may_only_decrypt_opens_vaults(transit: TransitDouble):
    wrapped = reached(transit).wrap(b"s" * 32, context=CONTEXT)
    assert reached(transit, token=transit.token("decrypt")).unwrap(wrapped, context=CONTEXT) == b"s" * 32


def test_a_sealed_server_is_tried_again_later(transit: TransitDouble):
    provider = reached(transit)
    transit.sealed = True
    refused(provider, KeyUnavailable, "is sealed: somebody has to unseal it")
    transit.sealed = False
    round_trip(provider)


@pytest.mark.parametrize("status", [429, 500, 501, 502, 503])
def test_a_server_in_trouble_is_tried_again_later(transit: TransitDouble, status: int):
    transit.status = status
    refused(reached(transit), KeyUnavailable, "can't answer now")


def test_an_answer_that_nobody_expects_is_named(transit: TransitDouble):
    transit.status = 418
    refused(reached(transit), KeyRefused, "answered with UnexpectedError")


def test_a_server_that_is_not_there_is_tried_again_later():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    spec = KeySpec.parse(f"transit:http://127.0.0.1:{port}/transit/backup", secret="hvs.secret")
    refused(open_provider(spec), KeyUnavailable, "does not answer", hidden="hvs.secret")


def test_a_server_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "TIMEOUT_S", 0.2)
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        spec = KeySpec.parse(f"transit:http://127.0.0.1:{mute.getsockname()[1]}/transit/backup", secret="hvs.secret")
        begun = time.monotonic()
        refused(open_provider(spec), KeyUnavailable, "does not answer")
        assert time.monotonic() - begun < 5


def test_another_mount_is_told_from_another_key(transit: TransitDouble):
    spec = KeySpec.parse(f"transit:{transit.url}/elsewhere/backup", secret=transit.token())
    with pytest.raises(KeyRefused, match="has no transit engine at elsewhere/"):
        open_provider(spec).unwrap(b"vault:v1:AAAA", context=CONTEXT)


def test_a_key_that_only_signs_is_refused(transit: TransitDouble):
    with pytest.raises(KeyRefused, match="does not encrypt: use one of type aes256-gcm96"):
        reached(transit, "sign").wrap(b"s" * 32, context=CONTEXT)


def test_a_deleted_key_is_told_from_a_wrong_one(transit: TransitDouble):
    provider = reached(transit)
    wrapped = provider.wrap(b"s" * 32, context=CONTEXT)
    del transit.keys["backup"]
    with pytest.raises(KeyRefused, match="there is no transit key transit/backup"):
        provider.unwrap(wrapped, context=CONTEXT)


@pytest.mark.rule("E33")
def test_a_rotation_of_the_key_on_its_server_changes_nothing_for_the_vault(transit: TransitDouble):
    storage = Memory()
    provider = reached(transit)
    Vault.create(storage, providers=[provider], now=START)
    transit.keys["backup"].versions.append(b"2" * 32)
    vault = Vault.open(storage, provider=provider)
    assert vault.keys.epochs == [1]


def test_a_namespace_is_sent_along_and_belongs_to_the_keys_id(transit: TransitDouble):
    transit.namespace = "team/a"
    provider = reached(transit, namespace="team/a")
    round_trip(provider)
    assert provider.key_id == "team/a/transit/backup"
    with pytest.raises(KeyRefused, match=r"has no transit engine|there is no transit key"):
        reached(transit).wrap(b"s" * 32, context=CONTEXT)


def test_an_approle_logs_in_once_and_again_when_its_token_has_run_out(transit: TransitDouble):
    role, secret = transit.role()
    provider = reached(transit, token=secret, role=role)
    for _ in range(3):
        round_trip(provider)
    assert transit.requests.count("POST auth/approle/login") == 1
    transit.tokens.clear()
    round_trip(provider)
    assert transit.requests.count("POST auth/approle/login") == 2


def test_a_refused_approle_is_told(transit: TransitDouble):
    role, secret = transit.role()
    says = "refused the AppRole: check its role id and secret id"
    refused(reached(transit, token="wrong-secret-id", role=role), KeyRefused, says, hidden="wrong-secret-id")
    transit.sealed = True
    refused(reached(transit, token=secret, role=role), KeyUnavailable, "is sealed")


def test_the_environment_of_the_process_is_not_asked(transit: TransitDouble, monkeypatch: pytest.MonkeyPatch):
    for name, value in {
        "VAULT_TOKEN": transit.token(),
        "VAULT_ADDR": "http://127.0.0.1:9",
        "VAULT_NAMESPACE": "other",
        "HTTP_PROXY": "http://127.0.0.1:9",
        "http_proxy": "http://127.0.0.1:9",
    }.items():
        monkeypatch.setenv(name, value)
    round_trip(reached(transit))
    role, _ = transit.role()
    refused(reached(transit, token="wrong", role=role), KeyRefused, "refused the AppRole")


def test_what_is_no_transit_engine_is_told(transit: TransitDouble, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(transit, "answer", lambda *given: {"hello": "world"})
    refused(reached(transit), KeyRefused, "not the answer of a transit engine")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate for 127.0.0.1 with its key, in one file."""
    folder = tmp_path_factory.mktemp("tls")
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(folder / "key"), "-out", str(folder / "crt")]
    subprocess.run(command, check=True, capture_output=True)
    both = folder / "both.pem"
    both.write_text((folder / "crt").read_text() + (folder / "key").read_text())
    return both


def test_the_servers_certificate_is_checked(certificate: Path, tmp_path: Path):
    with transit_double(certificate=certificate) as double:
        double.keys["backup"] = Key()
        round_trip(reached(double, ca=str(certificate)))
        refused(reached(double), KeyRefused, "is not trusted: give its CA with .ca=/file")
        assert len(double.requests) == 4, "nothing was said to a server that is not trusted"
        refused(reached(double, ca=str(tmp_path / "none")), KeyRefused, "the CA file .*none can't be read")


def test_a_wrap_that_is_no_text_is_a_wrong_key(transit: TransitDouble):
    with pytest.raises(WrongKey):
        reached(transit).unwrap(b"\xff\xfe", context=CONTEXT)
