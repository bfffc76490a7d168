"""The pattern rules that backup and restore share, as tables."""

import pytest

from engine.patterns import BadPattern, Selection, Verdict

# pattern, path (a folder ends with a slash), does the pattern mean it or a folder above it
MATCHES = [
    ("*.log", "a.log", True),
    ("*.log", "x/y/a.log", True),
    ("*.log", "x.log/inside", True),
    ("*.log", "a.log2", False),
    ("*.log", "new\nline/a.log", True),
    ("*.log", "a.log\n", False),
    ("/home/x/*.log", "home/x/a.log", True),
    ("/home/x/*.log", "home/x/deeper/a.log", False),
    ("/home/x/*.log", "srv/home/x/a.log", False),
    ("/home", "home/", True),
    ("/home", "home/x/y", True),
    ("/home", "x/home", False),
    ("home", "x/home", True),
    ("cache/*.tmp", "a/cache/b.tmp", True),
    ("cache/*.tmp", "cache/b.tmp", True),
    ("cache/*.tmp", "cache/deep/b.tmp", False),
    ("cache/", "a/cache/", True),
    ("cache/", "a/cache/file", True),
    ("cache/", "a/cache", False),
    ("a/**/z", "a/z", True),
    ("a/**/z", "q/a/b/c/z", True),
    ("a/**", "a/", False),
    ("a/**", "a/b", True),
    ("**/node_modules", "x/node_modules/", True),
    ("?", "a", True),
    ("?", "\u00e9", True),
    ("?", "ab", False),
    ("[a-c]x", "bx", True),
    ("[!a-c]x", "bx", False),
    ("\\*", "*", True),
    ("\\*", "a", False),
    ("#recycle", "#recycle/", True),
    ("\\!x", "!x", True),
    ("Case", "case", False),
    ("end\\ ", "end ", True),
    ("end ", "end", True),
]


def meant(selection: Selection, path: str) -> Verdict:
    return selection.verdict(path.rstrip("/").encode(), folder=path.endswith("/"))


@pytest.mark.parametrize(("pattern", "path", "matches"), MATCHES)
def test_an_exclude_pattern_leaves_out_what_it_means(pattern: str, path: str, matches: bool) -> None:
    assert (meant(Selection([], [pattern]), path) is Verdict.SKIP) == matches


@pytest.mark.parametrize(("pattern", "path", "matches"), MATCHES)
def test_an_include_pattern_keeps_what_it_means(pattern: str, path: str, matches: bool) -> None:
    assert (meant(Selection([pattern], []), path) is Verdict.KEEP) == matches


def test_names_that_are_not_utf8_are_matched_too() -> None:
    selection = Selection([], ["*.log"])
    assert selection.verdict(b"\xff\xfe.log", folder=False) is Verdict.SKIP
    assert selection.verdict(b"\xff/\xfe.txt", folder=False) is Verdict.KEEP


def test_the_last_pattern_that_matches_decides() -> None:
    selection = Selection([], ["*.log", "!keep.log", "/a/keep.log"])
    assert meant(selection, "b/x.log") is Verdict.SKIP
    assert meant(selection, "b/keep.log") is Verdict.KEEP
    assert meant(selection, "a/keep.log") is Verdict.SKIP


def test_nothing_is_taken_back_below_an_excluded_folder() -> None:
    assert meant(Selection([], ["/a", "!/a/b"]), "a/b") is Verdict.SKIP
    assert meant(Selection([], ["/a/*", "!/a/b"]), "a/b") is Verdict.KEEP


def test_exclude_wins_over_include() -> None:
    selection = Selection(["/a"], ["*.tmp"])
    assert meant(selection, "a/x") is Verdict.KEEP
    assert meant(selection, "a/x.tmp") is Verdict.SKIP
    assert meant(selection, "b/x") is Verdict.SKIP


def test_a_folder_that_may_lead_to_an_included_entry_is_looked_into_and_others_are_not() -> None:
    anchored = Selection(["/home/x/*.log"], [])
    assert meant(anchored, "home/") is Verdict.LOOK
    assert meant(anchored, "home/x/") is Verdict.LOOK
    assert meant(anchored, "home/y/") is Verdict.SKIP
    assert meant(Selection(["*.log"], []), "home/y/") is Verdict.LOOK


def test_no_patterns_keep_everything() -> None:
    assert Selection([], []).everything
    assert meant(Selection([], []), "a/b") is Verdict.KEEP


@pytest.mark.parametrize("pattern", ["", "  ", "/", "!", "//", "a\\"])
def test_a_pattern_that_means_nothing_is_refused_with_an_example(pattern: str) -> None:
    with pytest.raises(BadPattern, match="gitignore"):
        Selection([], [pattern])
    with pytest.raises(BadPattern):
        Selection([pattern], [])
