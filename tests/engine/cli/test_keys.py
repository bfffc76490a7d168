"""Keys on the command line: every kind opens a vault; they are listed, rotated, proven, split and joined."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.keyproviders.keyring import Keyring, RecoveryKey
from engine.keyproviders.spec import KeySpec
from tests.engine.cli.conftest import Cli
from tests.engine.cli.test_bad_input import FAILED, USAGE, refused
from tests.support.transit import Key, transit_double


@pytest.fixture
def recovery(cli: Cli, tmp_path: Path) -> str:
    """A vault at `tmp_path / "vault"`; return its recovery key, which is in the file `recovery` as well."""
    text: str = cli("init", tmp_path / "vault", "--json").document["recovery_key"]
    (tmp_path / "recovery").write_text(text)
    return text


def opens(cli: Cli, tmp_path: Path, *key: object) -> bool:
    return cli("points", tmp_path / "vault", *key).code == 0


def test_keys_lists_who_opens_the_vault(cli: Cli, recovery: str, tmp_path: Path) -> None:
    document = cli("keys", tmp_path / "vault", "--json").document
    assert document["holders"] == [
        {"provider": "keyring", "key_id": Keyring.load(tmp_path / "key").key_id},
        {"provider": "recovery", "key_id": RecoveryKey.parse(recovery).key_id},
    ]
    assert document["epochs"] == [1]
    shown = cli("keys", tmp_path / "vault").out
    assert RecoveryKey.parse(recovery).key_id in shown
    assert "Data keys: 1." in shown


def test_a_service_key_is_replaced_with_no_moment_without_one(cli: Cli, recovery: str, tree: Path, tmp_path: Path):
    vault = tmp_path / "vault"
    assert cli("backup", vault, tree, "--workers", "1").code == 0
    old = Keyring.load(tmp_path / "key")
    answer = cli("key-new", tmp_path / "key", "--json").document
    assert answer["key_file_created"] is False
    assert Keyring.load(tmp_path / "key").key_id == answer["key_id"] != old.key_id
    assert opens(cli, tmp_path), "the key before it is still in the file"
    assert cli("key-rotate", vault, "--revoke", old.key_id, "--new-data-key", "--json").document["epochs"] == [1, 2]
    old.save(tmp_path / "old")
    before = ("--key-file", tmp_path / "old")
    refused(cli, "points", vault, *before, code=FAILED, says="does not open this vault", name="wrong_key")
    (tmp_path / "out").mkdir()
    assert cli("restore", vault, "latest", "--to", tmp_path / "out", "--workers", "1").code == 0
    assert (tmp_path / "out" / str(tree)[1:] / "a.txt").read_text() == "hello"


def test_key_new_makes_a_private_key_file(cli: Cli, tmp_path: Path) -> None:
    assert cli("key-new", tmp_path / "made").code == 0
    assert (tmp_path / "made").stat().st_mode & 0o777 == 0o600
    assert cli("key-new", tmp_path / "made").code == 0
    assert (tmp_path / "made").stat().st_mode & 0o777 == 0o600
    assert len(Keyring.load(tmp_path / "made")._keys) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


def test_key_new_leaves_a_damaged_key_file_alone(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "made").write_text("damaged\n")
    refused(cli, "key-new", tmp_path / "made", code=FAILED, says="line 1 of the key file", name="bad_key_file")
    assert (tmp_path / "made").read_text() == "damaged\n"


def test_another_key_file_is_added_and_revoked(cli: Cli, recovery: str, tmp_path: Path) -> None:
    vault, other = tmp_path / "vault", Keyring.generate()
    other.save(tmp_path / "other")
    assert cli("key-rotate", vault, "--add-key", f"keyring:{tmp_path / 'other'}").code == 0
    assert opens(cli, tmp_path, "--key-file", tmp_path / "other")
    assert cli("key-rotate", vault, "--revoke", other.key_id).code == 0
    assert not opens(cli, tmp_path, "--key-file", tmp_path / "other")
    assert opens(cli, tmp_path)


def test_a_new_recovery_key_takes_the_place_of_the_old_one(cli: Cli, recovery: str, tmp_path: Path) -> None:
    vault = tmp_path / "vault"
    new = cli("key-rotate", vault, "--new-recovery-key", "--json").document["recovery_key"]
    (tmp_path / "new").write_text(new)
    assert opens(cli, tmp_path, "--recovery-key-file", tmp_path / "new")
    assert not opens(cli, tmp_path, "--recovery-key-file", tmp_path / "recovery")


def test_a_quiet_rotation_still_shows_the_new_recovery_key(cli: Cli, recovery: str, tmp_path: Path) -> None:
    assert "Recovery key: BSRK-" in cli("key-rotate", tmp_path / "vault", "--new-recovery-key", "--quiet").out


def test_a_vault_whose_key_file_was_lost_gets_a_new_one(cli: Cli, recovery: str, tmp_path: Path) -> None:
    vault, lost = tmp_path / "vault", Keyring.load(tmp_path / "key").key_id
    offline = ("--recovery-key-file", tmp_path / "recovery")
    says = "only itself at hand"
    refused(cli, "key-rotate", vault, *offline, "--new-recovery-key", code=FAILED, says=says, name="last_key")
    (tmp_path / "key").unlink()
    assert cli("key-new", tmp_path / "key").code == 0
    added = ("--add-key", f"keyring:{tmp_path / 'key'}", "--revoke", lost, "--new-recovery-key")
    assert cli("key-rotate", vault, *offline, *added).code == 0
    assert opens(cli, tmp_path)
    assert not opens(cli, tmp_path, *offline)


def test_a_recovery_key_is_proven_with_exit_code_and_words(cli: Cli, recovery: str, tmp_path: Path) -> None:
    vault = tmp_path / "vault"
    yes = cli("key-prove", vault, "--recovery-key-file", tmp_path / "recovery")
    assert (yes.code, yes.out) == (0, "The recovery key opens this vault: keep it where it is.\n")
    (tmp_path / "other").write_text(RecoveryKey.generate().text())
    no = cli("key-prove", vault, "--recovery-key-file", tmp_path / "other", "--json")
    assert (no.code, no.document["opens"]) == (FAILED, False)
    refused(cli, "key-prove", vault, code=USAGE, says="no recovery key: give --recovery-key-file")


def test_a_vault_is_opened_by_shares_of_its_recovery_key(
    cli: Cli, recovery: str, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vault = tmp_path / "vault"
    assert cli("backup", vault, tree, "--workers", "1").code == 0
    offline = ("--recovery-key-file", tmp_path / "recovery")
    shares = cli("key-split", vault, *offline, "--shares", 3, "--needed", 2, "--json").document["shares"]
    monkeypatch.delenv("BACKUPSITE_KEY_FILE")
    (tmp_path / "one").write_text(f"# from the safe\n{shares[2]}\n")
    (tmp_path / "two").write_text(shares[0].upper())
    both = ("--shares-file", tmp_path / "one", "--shares-file", tmp_path / "two")
    (tmp_path / "out").mkdir()
    assert cli("restore", vault, "latest", "--to", tmp_path / "out", "--workers", "2", *both).code == 0
    assert (tmp_path / "out" / str(tree)[1:] / "a.txt").read_text() == "hello"
    assert cli("key-prove", vault, *both).code == 0
    assert cli("key-join", vault, *both, "--json").document["recovery_key"] == recovery
    says = "1 of the 2 shares that are needed were given"
    refused(cli, "points", vault, *both[:2], code=FAILED, says=says, name="bad_key_file")


def test_shares_are_made_of_a_key_that_opens_the_vault_only(cli: Cli, recovery: str, tmp_path: Path) -> None:
    vault = tmp_path / "vault"
    (tmp_path / "other").write_text(RecoveryKey.generate().text())
    wrong = ("--recovery-key-file", tmp_path / "other", "--shares", 3, "--needed", 2)
    refused(cli, "key-split", vault, *wrong, code=FAILED, says="does not open this vault", name="wrong_key")
    few = ("--recovery-key-file", tmp_path / "recovery", "--shares", 3, "--needed", 1)
    refused(cli, "key-split", vault, *few, code=USAGE, says="let at least 2 be needed")
    refused(cli, "key-join", vault, code=USAGE, says="no shares: give --shares-file FILE")


def test_the_keyring_may_stand_in_the_environment(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BACKUPSITE_KEY_FILE")
    monkeypatch.setenv("BACKUPSITE_KEYRING", Keyring.generate().text())
    assert cli("init", tmp_path / "vault").code == 0
    assert opens(cli, tmp_path)
    assert not (tmp_path / "key").exists()


def test_an_address_without_its_secret_or_of_no_key_is_wrong_usage(cli: Cli, recovery: str, tmp_path: Path) -> None:
    vault = tmp_path / "vault"
    refused(cli, "points", vault, "--key", "transit:https://h/m/k", code=USAGE, says="needs its secret as well")
    answer = cli("points", vault, "--key", recovery)
    assert answer.code == USAGE
    assert recovery not in answer.err, "what was put in the wrong place is not repeated"


@pytest.mark.rule("E34")
def test_no_vault_is_made_with_a_key_that_is_not_there(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("secret-token\n")
    key = ("--key", "transit:http://127.0.0.1:9/transit/key", "--key-secret-file", tmp_path / "token")
    refused(cli, "init", tmp_path / "vault", *key, code=FAILED, says="does not answer", name="key_unavailable")
    assert not (tmp_path / "vault").exists()


def test_no_command_shows_a_service_key(cli: Cli, recovery: str, tmp_path: Path) -> None:
    vault, secret = tmp_path / "vault", (tmp_path / "key").read_text().split()[-1]
    for command in ("keys", "key-rotate", "points"):
        for options in ((), ("--json",)):
            answer = cli(command, vault, *options)
            assert secret not in answer.out + answer.err
            assert recovery not in answer.out + answer.err
    assert json.loads(cli("keys", vault, "--json").out)["holders"]


@pytest.fixture(params=["transit", "pkcs11"])
def elsewhere(request: pytest.FixtureRequest) -> Iterator[KeySpec]:
    """A key in a transit engine, and one on a token."""
    if request.param == "pkcs11":
        token = request.getfixturevalue("soft_token")
        token.make_key("command line")
        yield token.spec("command%20line")
        return
    with transit_double() as double:
        double.keys["backup"] = Key()
        yield KeySpec.parse(double.address("backup"), secret=double.token())


def test_a_vault_lives_with_a_key_that_is_kept_elsewhere(
    cli: Cli, program: Cli, elsewhere: KeySpec, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Made, filled by several processes, rotated and restored; the secret comes by a file, then by a variable."""
    vault = tmp_path / "vault"
    monkeypatch.delenv("BACKUPSITE_KEY_FILE")
    monkeypatch.setenv("BACKUPSITE_KEY", elsewhere.url)
    (tmp_path / "secret").write_text(elsewhere.secret + "\n")
    answers = [cli("init", vault, "--key-secret-file", tmp_path / "secret", "--json")]
    monkeypatch.setenv("BACKUPSITE_KEY_SECRET", elsewhere.secret)
    answers.append(program("backup", vault, tree, "--workers", "2"))
    answers.append(cli("key-rotate", vault, "--new-data-key", "--json"))
    answers.append(cli("backup", vault, tree, "--deep", "--workers", "1"))
    answers.append(cli("keys", vault))
    (tmp_path / "out").mkdir()
    answers.append(program("restore", vault, "latest", "--to", tmp_path / "out", "--workers", "2"))
    assert [answer.code for answer in answers] == [0] * len(answers), answers[-1].err
    assert (tmp_path / "out" / str(tree)[1:] / "a.txt").read_text() == "hello"
    assert not any(elsewhere.secret in answer.out + answer.err for answer in answers)
    (tmp_path / "recovery").write_text(answers[0].document["recovery_key"])
    assert cli("key-prove", vault, "--recovery-key-file", tmp_path / "recovery").code == 0
    monkeypatch.setenv("BACKUPSITE_KEY_SECRET", "0000")
    refusal = cli("points", vault)
    assert refusal.code == FAILED
    assert "gives no permission" in refusal.err or "the PIN is wrong" in refusal.err
