"""The language of HANA's lists: what is quoted comes back, what is malformed is noticed."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from engine.backint.directives import Directive, Malformed, line, quote, read, split, version

WORDS = st.text(st.characters(exclude_characters="\n\r", codec="utf-8"))
WRITABLE = WORDS.filter(lambda word: not word.endswith("\\"))


@given(st.lists(WRITABLE))
@example(['/usr/sap/HDB/a "quoted" name', "", "back\\slash", 'both\\"', "tab\tand space", "ünïcode ☃"])
def test_what_is_quoted_comes_back(words: list[str]) -> None:
    assert split(" ".join(quote(word) for word in words)) == words


@given(st.lists(WRITABLE, min_size=1))
def test_a_line_of_ours_is_read_as_what_it_was(words: list[str]) -> None:
    (found,) = read(line("EBID", *words).encode() + b"\n")
    assert found == Directive("EBID", words)


@given(st.binary())
def test_no_input_breaks_the_reader(data: bytes) -> None:
    for found in read(b"#PIPE " + data):
        assert not (found.words and found.wrong)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", []),
        ("/a/b 17", ["/a/b", "17"]),
        ('  "/a b"\t12  ', ["/a b", "12"]),
        (r'"a \"b\" c"', ['a "b" c']),
        (r'"C:\dir\file" x', ["C:\\dir\\file", "x"]),
        (r"plain\ next", ["plain\\", "next"]),
        ('mid"dle', ['mid"dle']),
        ('""', [""]),
    ],
)
def test_parameters_are_told_apart_as_the_contract_says(text: str, words: list[str]) -> None:
    assert split(text) == words


@pytest.mark.parametrize("text", ['"never closed', '"a"b', r'"ends in a backslash\"'])
def test_quotes_that_do_not_end_are_malformed(text: str) -> None:
    with pytest.raises(Malformed):
        split(text)


def test_what_the_language_cannot_say_is_refused() -> None:
    assert quote("plain\\") == "plain\\"
    for word in ("two\nlines", "with blank\\", '"\\'):
        with pytest.raises(Malformed):
            quote(word)
    assert line("ERROR", "two\nlines", "/a") == '#ERROR "/a"'


def test_comments_are_left_out_and_unknown_or_longer_keywords_are_comments() -> None:
    data = b'# a comment\r\n\n#PIPELINE "/a"\nPIPE "/a"\n#PIPE "/a" 5\r\n #PIPE "/b"\n#NULL\n#pipe "/c"'
    assert list(read(data)) == [Directive("PIPE", ["/a", "5"]), Directive("NULL", [])]


def test_a_malformed_directive_is_kept_with_what_is_wrong() -> None:
    first, second, third = read(b'#PIPE "/a\n#FILE \xff\n#FILE "/\xef\xbf\xbd"')
    assert (first.keyword, first.words) == ("PIPE", [])
    assert "never closed" in first.wrong
    assert "UTF-8" in second.wrong
    assert third == Directive("FILE", ["/\ufffd"])


def test_versions_are_compared_as_numbers() -> None:
    assert version("backint 1.04") < version("backint 1.50") < version("backint 1.100") < version("backint 2.0")
    assert version("something") == (0, 0)
