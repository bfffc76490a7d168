"""The recovery key in shares: enough of them are the key, and everything else is refused with what to do."""

import itertools
import traceback
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shamir_mnemonic.wordlist import WORDLIST

from engine.errors import BadKeyFile
from engine.keyproviders.keyring import Keyring, RecoveryKey
from engine.keyproviders.shares import MOST, WORDS, join, split
from engine.vault import Vault
from tests.support.vaults import Bench


@pytest.fixture(scope="module")
def key() -> RecoveryKey:
    return RecoveryKey.generate()


@pytest.fixture(scope="module")
def shares(key: RecoveryKey) -> list[str]:
    """Five shares, three of which are needed."""
    return split(key, 3, 5)


def test_any_three_of_five_shares_open_the_vault(bench: Bench):
    shares = split(RecoveryKey.parse(bench.recovery), 3, 5)
    assert {len(share.split()) for share in shares} == {WORDS}
    for three in itertools.combinations(shares, 3):
        assert join(three).text() == bench.recovery
    assert Vault.open(bench.storage, provider=join(shares[1:4])).info.vault_id


@settings(max_examples=25, deadline=None)
@given(st.integers(2, MOST).flatmap(lambda n: st.tuples(st.integers(2, n), st.just(n))), st.randoms())
def test_whatever_the_numbers_enough_shares_in_any_order_are_the_key(numbers: tuple[int, int], rng):
    key = RecoveryKey.generate()
    shares = split(key, *numbers)
    assert len(set(shares)) == numbers[1]
    assert join(rng.sample(shares, numbers[0])).text() == key.text()


def test_case_and_spaces_of_typed_shares_do_not_matter(key: RecoveryKey, shares: list[str]):
    typed = [f"  {share.upper()} \n".replace(" ", "   ") for share in shares[:3]]
    assert join(typed).text() == key.text()


def test_more_shares_than_needed_may_be_given(key: RecoveryKey, shares: list[str]):
    assert join(shares).text() == key.text()
    assert join([*shares, shares[0]]).text() == key.text()


def test_too_few_shares_say_how_many_are_needed(shares: list[str]):
    with pytest.raises(BadKeyFile, match=r"^2 of the 3 shares that are needed were given: add more"):
        join(shares[:2])
    with pytest.raises(BadKeyFile, match=r"^2 of the 3 shares that are needed were given, one of them twice: add more"):
        join([shares[0], shares[1], shares[1]])
    with pytest.raises(BadKeyFile, match="no share was given"):
        join([])


def test_shares_of_different_sets_are_told_apart(key: RecoveryKey, shares: list[str]):
    for other in (split(key, 3, 5), split(RecoveryKey.generate(), 3, 5), split(key, 2, 3)):
        with pytest.raises(BadKeyFile, match="share 3 is of another set than share 1"):
            join([*shares[:2], other[2]])


def test_a_share_that_only_pretends_to_be_of_the_set_is_found(shares: list[str]):
    """The library takes exactly as many as are needed: what is beyond them is proven as well."""
    from shamir_mnemonic.share import Share

    true = Share.from_mnemonic(shares[4])
    fields = {name: getattr(true, name) for name in true.__dataclass_fields__}
    false = Share(**{**fields, "value": bytes(len(true.value))}).mnemonic()
    for given_ in ([*shares[:3], false], [shares[0], shares[1], false], [*shares, false]):
        with pytest.raises(BadKeyFile, match="don't fit together"):
            join(given_)


def test_every_mistyped_word_is_noticed_and_its_place_is_named_when_it_is_no_word(shares: list[str]):
    words = shares[1].split()
    for place, word in enumerate(words):
        other = WORDLIST[0] if word != WORDLIST[0] else WORDLIST[1]
        swapped = " ".join([*words[:place], other, *words[place + 1 :]])
        with pytest.raises(BadKeyFile, match="share 2 is mistyped: its checksum does not fit"):
            join([shares[0], swapped, shares[2]])
        unknown = " ".join([*words[:place], "backup", *words[place + 1 :]])
        with pytest.raises(BadKeyFile, match=f"share 2 is mistyped: its word {place + 1} is not one"):
            join([shares[0], unknown, shares[2]])


def test_two_words_that_changed_places_are_noticed(shares: list[str]):
    words = shares[0].split()
    words[5], words[6] = words[6], words[5]
    with pytest.raises(BadKeyFile, match="share 1 is mistyped: its checksum"):
        join([" ".join(words), *shares[1:3]])


def test_a_share_with_a_word_missing_or_too_many_says_so(shares: list[str]):
    for text, count in ((shares[0].rsplit(" ", 1)[0], 32), (shares[0] + " academic", 34), ("", 0)):
        with pytest.raises(BadKeyFile, match=f"share 1 has {count} words, not 33"):
            join([text, *shares[1:3]])


@pytest.mark.parametrize(("m", "n"), [(1, 1), (1, 3), (0, 3), (4, 3), (2, 17), (-1, 2)])
def test_numbers_that_make_no_sense_are_refused(key: RecoveryKey, m: int, n: int):
    with pytest.raises(ValueError, match="give 2 to 16 shares, and let at least 2 be needed"):
        split(key, m, n)


def test_each_split_draws_other_shares(key: RecoveryKey):
    assert len({share for _ in range(20) for share in split(key, 2, 3)}) == 60


def test_no_error_repeats_a_share(key: RecoveryKey, shares: list[str]):
    spoilt = shares[0].split()
    spoilt[8] = "secretly"
    for given_ in (shares[:2], [*shares[:2], split(key, 3, 5)[0]], [" ".join(spoilt), *shares[1:3]]):
        with pytest.raises(BadKeyFile) as refusal:
            join(given_)
        shown = "".join(traceback.format_exception(refusal.value))
        assert not any(" ".join(share.split()[4:8]) in shown for share in shares)
        assert "secretly" not in shown


# The key file of the service


def test_a_renewed_keyring_wraps_with_a_new_key_and_opens_what_the_old_ones_wrapped():
    old = Keyring.generate()
    new = old.renewed()
    assert new.key_id != old.key_id
    assert new.unwrap(old.wrap(b"s" * 32, context=b"c"), context=b"c") == b"s" * 32
    assert Keyring.parse(new.text()).key_id == new.key_id


def test_a_rewritten_key_file_is_private_and_loses_no_key(tmp_path: Path):
    path, old = tmp_path / "keys", Keyring.generate()
    old.save(path)
    new = old.renewed()
    new.rewrite(path)
    assert path.read_text() == new.text()
    assert path.stat().st_mode & 0o777 == 0o600
    for other in (old, Keyring.generate()):
        with pytest.raises(BadKeyFile, match="holds a key that would be lost"):
            other.rewrite(path)
    assert path.read_text() == new.text()
    assert [one.name for one in tmp_path.iterdir()] == ["keys"]


def test_a_key_file_that_cannot_be_rewritten_stays_as_it_was(tmp_path: Path):
    path, old = tmp_path / "keys", Keyring.generate()
    old.save(path)
    (tmp_path / "keys.new").mkdir()
    with pytest.raises(BadKeyFile, match="cannot be written"):
        old.renewed().rewrite(path)
    assert path.read_text() == old.text()
