"""Where the service's own key comes from."""

from pathlib import Path

import pytest

from engine.errors import BadKeyFile
from engine.keyproviders.keyring import Keyring
from vaults import repositories


def test_the_environments_keyring_takes_the_place_of_the_file(settings, tmp_path: Path):
    ring = Keyring.generate()
    settings.KEYRING_FILE = tmp_path / "keys"
    settings.KEYRING = ring.text()
    assert repositories.keyring().key_id == ring.key_id
    settings.KEYRING = ring.text().splitlines()[1]
    assert repositories.keyring().key_id == ring.key_id
    assert not (tmp_path / "keys").exists()


def test_a_damaged_keyring_in_the_environment_is_refused_and_no_other_is_made(settings, tmp_path: Path):
    settings.KEYRING_FILE = tmp_path / "keys"
    settings.KEYRING = "0123456789abcdef secret"
    with pytest.raises(BadKeyFile, match="line 1 of the key file") as refusal:
        repositories.keyring()
    assert "secret" not in str(refusal.value)
    assert not (tmp_path / "keys").exists()


def test_without_one_a_key_file_is_made_once(settings, tmp_path: Path):
    settings.KEYRING, settings.KEYRING_FILE = "", tmp_path / "keys"
    made = repositories.keyring().key_id
    assert repositories.keyring().key_id == made == Keyring.load(tmp_path / "keys").key_id
