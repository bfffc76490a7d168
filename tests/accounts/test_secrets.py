"""Credentials in the database are sealed, bound to their row, and survive a change of keys."""

import pytest
from django.core.exceptions import ImproperlyConfigured

from accounts.secrets import SecretUnreadable, seal, unseal

OLD, NEW = "11" * 32, "22" * 32
VALUES = {"secret_key": "hunter2"}


def test_what_was_sealed_opens_again_and_says_nothing_in_between(settings):
    settings.FIELD_KEYS = [OLD]
    sealed = seal(VALUES, context="region:1")
    assert "hunter2" not in sealed
    assert unseal(sealed, context="region:1") == VALUES
    assert seal(VALUES, context="region:1") != sealed


def test_nothing_is_sealed_as_nothing():
    assert (seal({}, context="x"), unseal("", context="x")) == ("", {})


def test_a_sealed_text_does_not_open_in_another_row():
    with pytest.raises(SecretUnreadable, match="source:2"):
        unseal(seal(VALUES, context="source:1"), context="source:2")


def test_keys_rotate_the_first_seals_and_all_open(settings):
    settings.FIELD_KEYS = [OLD]
    sealed = seal(VALUES, context="x")
    settings.FIELD_KEYS = [NEW, OLD]
    assert unseal(sealed, context="x") == VALUES
    again = seal(VALUES, context="x")
    settings.FIELD_KEYS = [NEW]
    assert unseal(again, context="x") == VALUES
    with pytest.raises(SecretUnreadable, match="BACKUPSITE_FIELD_KEYS"):
        unseal(sealed, context="x")


@pytest.mark.parametrize("extra", range(20))
def test_every_changed_character_is_noticed(extra):
    sealed = seal(VALUES | {"more": "x" * extra}, context="x")
    for place in range(len(sealed)):
        with pytest.raises(SecretUnreadable):
            unseal(sealed[:place] + ("A" if sealed[place] != "A" else "B") + sealed[place + 1 :], context="x")


@pytest.mark.parametrize("keys", [["short"], ["zz" * 32], [""]])
def test_a_key_that_is_none_is_refused_with_what_to_set(settings, keys):
    settings.FIELD_KEYS = keys
    with pytest.raises(ImproperlyConfigured, match="BACKUPSITE_FIELD_KEYS must be hex"):
        seal(VALUES, context="x")
