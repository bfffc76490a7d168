"""Keys of objects as paths, and back: no two keys share a path, and every path is well formed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.connections.keypaths import key_of, path_of
from engine.errors import UnsafePath

TEXT = st.text(st.characters(codec="utf-8"), min_size=1, max_size=200)
# Mostly what makes paths ill formed, so that it meets.
ODD = st.text(alphabet="/.\0a0\N{LATIN SMALL LETTER Y WITH DIAERESIS}", min_size=1, max_size=200)
KEYS = st.one_of(TEXT, ODD)


@given(KEYS)
def test_every_key_comes_back_from_its_path(key: str) -> None:
    assert key_of(path_of(key)) == key


@given(KEYS, KEYS)
def test_two_keys_never_share_a_path(one: str, other: str) -> None:
    assert (path_of(one) == path_of(other)) == (one == other)


@given(KEYS)
def test_every_path_is_well_formed(key: str) -> None:
    path = path_of(key)
    assert b"\0" not in path
    assert not {b"", b".", b".."} & set(path.split(b"/"))


@given(st.text(alphabet="ab/-!", min_size=1).filter(lambda key: "//" not in f"/{key}/"))
def test_a_plain_key_is_its_path(key: str) -> None:
    assert path_of(key) == key.encode()


@pytest.mark.parametrize(
    ("key", "path"),
    [
        ("a//b", b"a/\xff/b"),
        ("/a", b"\xff/a"),
        ("a/", b"a/\xff"),
        ("./..", b"\xff./\xff.."),
        ("a\0b", b"a\xff0b"),
        ("\0", b"\xff0"),
        ("\0.", b"\xff0."),
    ],
)
def test_what_no_path_may_have_is_marked(key: str, path: bytes) -> None:
    assert path_of(key) == path
    assert key_of(path) == key


def test_a_file_name_that_is_no_text_can_not_become_a_key() -> None:
    with pytest.raises(UnsafePath, match="keys are UTF-8"):
        key_of(b"a/\xfe")


def test_a_path_that_is_too_long_for_a_key_is_refused() -> None:
    assert len(key_of(b"x" * 1024)) == 1024
    with pytest.raises(UnsafePath, match="more than 1024"):
        key_of(b"x" * 1025)
