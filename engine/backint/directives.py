"""The lines that HANA and the agent exchange: a keyword and parameters (Backint for SAP HANA, "BACKINT 1.50").

UTF-8, one directive a line. A line that does not begin with a known keyword is a comment. A parameter may be quoted,
and must be when it holds white space; inside quotes a backslash escapes a quote, and nothing else.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

KEYWORDS = ("SOFTWAREID", "PIPE", "FILE", "EBID", "NULL")
_LINE = re.compile(rf"#({'|'.join(KEYWORDS)})(?:[ \t]+(.*))?", re.DOTALL)
_BLANKS = " \t"
_NUMBERS = re.compile(r"(\d+)\.(\d+)")


class Malformed(ValueError):
    """A directive whose parameters can't be told apart."""


class Directive(NamedTuple):
    """One line of the input. `words` are its parameters; `wrong` says why there are none."""

    keyword: str
    words: list[str]
    wrong: str = ""


def read(data: bytes) -> Iterator[Directive]:
    """Yield the directives of an input, comments left out."""
    for raw in data.split(b"\n"):
        line = raw.removesuffix(b"\r").decode("utf-8", "replace")
        found = _LINE.fullmatch(line)
        if found is None:
            continue
        keyword, rest = found[1], found[2] or ""
        if "\ufffd" in rest and not _is_text(raw):
            yield Directive(keyword, [], f"it is not UTF-8: {rest}")
            continue
        try:
            yield Directive(keyword, split(rest))
        except Malformed as error:
            yield Directive(keyword, [], f"{error}: {rest}")


def split(text: str) -> list[str]:
    """Return the parameters of a directive. Raises Malformed."""
    words: list[str] = []
    at = 0
    while at < len(text):
        if text[at] in _BLANKS:
            at += 1
            continue
        word, at = _quoted(text, at + 1) if text[at] == '"' else _plain(text, at)
        words.append(word)
    return words


def quote(word: str) -> str:
    """Return a parameter as it is written. Raises Malformed for what the language has no form for."""
    if "\n" in word or "\r" in word:
        raise Malformed("a parameter can't hold a line break")
    if not word.endswith("\\"):
        escaped = word.replace('"', '\\"')
        return f'"{escaped}"'
    # Its backslash would escape the closing quote.
    if any(blank in word for blank in _BLANKS) or word.startswith('"'):
        raise Malformed("a parameter with blanks or a quote can't end in a backslash")
    return word


def line(keyword: str, *words: str) -> str:
    """Return a line of the output; a parameter that can't be written is left out."""
    parts = [f"#{keyword}"]
    for word in words:
        try:
            parts.append(quote(word))
        except Malformed:
            continue
    return " ".join(parts)


def version(text: str) -> tuple[int, int]:
    """Return the version of Backint that a #SOFTWAREID tells, (0, 0) when it tells none."""
    found = _NUMBERS.search(text)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def _quoted(text: str, at: int) -> tuple[str, int]:
    """Return the word behind an opening quote, and where the next may begin."""
    letters: list[str] = []
    while at < len(text):
        if text.startswith('\\"', at):
            letters.append('"')
            at += 2
        elif text[at] == '"':
            if at + 1 < len(text) and text[at + 1] not in _BLANKS:
                raise Malformed("a quote ends in the middle of a parameter")
            return "".join(letters), at + 1
        else:
            letters.append(text[at])
            at += 1
    raise Malformed("a quote is never closed")


def _plain(text: str, at: int) -> tuple[str, int]:
    end = next((i for i in range(at, len(text)) if text[i] in _BLANKS), len(text))
    return text[at:end], end


def _is_text(raw: bytes) -> bool:
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True
