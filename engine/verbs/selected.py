"""The entries of a point that a restore's patterns mean, in order, reading no more of the listing than that takes."""

from collections.abc import Iterator

from engine.browse import Browser
from engine.entries import Entry, Kind, sort_key
from engine.patterns import Selection, Verdict


def selected(browser: Browser, selection: Selection) -> Iterator[Entry]:
    """Yield what the patterns mean, in order; a folder that only leads somewhere comes when something follows."""
    if selection.everything:
        yield from browser.entries()
        return
    leading: list[Entry] = []
    for entry in _candidates(browser, selection):
        verdict = selection.verdict(entry.path, folder=entry.kind == Kind.DIRECTORY)
        if verdict is Verdict.SKIP:
            continue
        while leading and not entry.path.startswith(leading[-1].path + b"/"):
            leading.pop()
        if verdict is Verdict.LOOK:
            leading.append(entry)
        else:
            yield from leading
            leading.clear()
            yield entry


def _candidates(browser: Browser, selection: Selection) -> Iterator[Entry]:
    """Yield the entries that anchored includes can mean, reading no block in between."""
    starts = selection.starts
    if starts is None:
        yield from browser.entries()
        return
    keys = sorted({sort_key(start.strip(b"/")) for start in starts})
    top = [key for i, key in enumerate(keys) if not any(_under(key, other) for other in keys[:i])]
    above = {key[:at] for key in top for at in _cuts(key)}
    for key in sorted(set(top) | above):
        if key in above:
            found = next(browser.entries(key), None)
            if found is not None and found.sort_key == key:
                yield found
            continue
        for entry in browser.entries(key):
            if not _under(entry.sort_key, key):
                break
            yield entry


def _under(key: bytes, folder: bytes) -> bool:
    return not folder or key == folder or key.startswith(folder + b"\0")


def _cuts(key: bytes) -> list[int]:
    return [at for at in range(len(key)) if key[at : at + 1] == b"\0"]
