"""The parameter file: what it may say, and what it is refused for."""

from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from engine.backint.parameters import BadParameters, load, opener, series_of
from engine.ids import valid_series
from engine.keyproviders.keyring import Keyring


@pytest.fixture
def key(tmp_path: Path) -> Path:
    path = tmp_path / "service.key"
    path.touch(0o600)
    path.write_text(Keyring.generate().text())
    return path


def written(folder: Path, text: str) -> Path:
    path = folder / "parameters.toml"
    path.write_text(text)
    return path


def test_a_folder_and_a_key_file_are_enough(tmp_path: Path, key: Path) -> None:
    wanted = load(written(tmp_path, f'vault = "/vault"\nkey_file = "{key}"\n'))
    assert wanted.processes >= 1
    found = opener(wanted)
    assert found.location.folder == "/vault"
    assert found.key.secret == key.read_text().strip()


def test_a_bucket_takes_its_secret_from_a_file(tmp_path: Path, key: Path) -> None:
    secret = tmp_path / "s3"
    secret.touch(0o600)
    secret.write_text("hush\n")
    text = (
        f'vault = "s3://bucket/v"\nkey_file = "{key}"\nworkers = 3\n'
        f'[s3]\nendpoint = "https://s3.example"\naccess_key = "me"\nsecret_key_file = "{secret}"\n'
    )
    wanted = load(written(tmp_path, text))
    assert opener(wanted).location.secret_key == "hush"
    assert wanted.processes == 3
    assert "hush" not in repr(opener(wanted)) + repr(wanted)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("vault = ", "not TOML"),
        ('key_file = "/k"', "vault"),
        ('vault = "/v"', "one of them"),
        ('vault = "/v"\nkey_file = "/k"\nkey = "keyring:/k"', "one of them"),
        ('vault = "/v"\nkey_file = "relative"', "absolute"),
        ('vault = "/v"\nkey_file = "/k"\nsecret_key = "x"', "secret_key"),
        ('vault = "/v"\nkey_file = "/k"\nopen_timeout_s = 0', "time-out"),
        ('vault = "/v"\nkey_file = "/k"\nworkers = -1', "negative"),
        ('vault = "/v"\nkey_file = "/k"\nprefix = "Hana"', "prefix"),
        ('vault = "/v"\nkey_file = "/k"\nworkers = "two"', "workers"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_what_to_change(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(BadParameters, match=told):
        load(written(tmp_path, text))


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadParameters, match="nowhere"):
        load(tmp_path / "nowhere")
    with pytest.raises(BadParameters, match="no-key"):
        opener(load(written(tmp_path, f'vault = "/v"\nkey_file = "{tmp_path}/no-key"')))


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620])
def test_a_secret_that_others_can_reach_is_refused(tmp_path: Path, key: Path, mode: int) -> None:
    key.chmod(mode)
    with pytest.raises(BadParameters, match=r"chmod 600"):
        opener(load(written(tmp_path, f'vault = "/v"\nkey_file = "{key}"')))


def test_an_address_that_is_none_is_refused(tmp_path: Path, key: Path) -> None:
    with pytest.raises(BadParameters, match="absolute/folder"):
        opener(load(written(tmp_path, f'vault = "v"\nkey_file = "{key}"')))


def test_series_are_named_by_system_and_database() -> None:
    assert series_of("hana", "SYSTEMDB@HDB") == "hana-hdb-systemdb"
    assert series_of("hana", "HDB") == "hana-hdb"
    assert series_of("hana", "My DB@HDB").startswith("hana-hdb-my-db-")


@given(st.text("AB@-_b"), st.text("AB@-_b"))
@example("@A", "A")
def test_every_database_has_a_series_of_its_own(one: str, other: str) -> None:
    assert valid_series(series_of("hana", one))
    assert (series_of("hana", one) == series_of("hana", other)) == (one == other)
