"""List a bucket by several threads, each a range of keys at a time, and bring the keys into the order of paths.

A server lists keys in the order of their UTF-8 bytes, one page after the other; entries come in the order of their
paths, in which "/" is the least of all. So everything is listed first, and sorted (engine.connections.sorting).
"""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, wait
from typing import NamedTuple

from engine import halt
from engine.connections.bucket import PAGE, BucketClient, Listed, identity, is_archive
from engine.connections.keypaths import path_of
from engine.connections.sorting import Row, Sorter
from engine.entries import sort_key

_RANGES = 4  # for each thread: their sizes are guesses
_DEEPEST = 16
_LAST = "\U0010ffff"
_DIGITS, _HEX = "0123456789", "0123456789abcdef"
_RUNS = (_DIGITS, "abcdefghijklmnopqrstuvwxyz", "ABCDEFGHIJKLMNOPQRSTUVWXYZ")


class KeyRange(NamedTuple):
    """The keys of `prefix` behind `after`, up to and with `last`; empty is no bound."""

    prefix: str
    after: str = ""
    last: str = ""


def row_of(listed: Listed) -> Row:
    """Return what is kept of an object until its turn comes."""
    inode = identity(listed.etag, listed.version)
    archived = listed.storage_class if is_archive(listed.storage_class) else ""
    return Row(sort_key(path_of(listed.key)), listed.size, listed.modified_ns, inode, archived)


def list_into(
    sorter: Sorter, client: BucketClient, prefixes: Sequence[str], *, threads: int, versions: bool = False
) -> None:
    """List everything under the prefixes into the sorter. No thread is left when this returns.

    Raises StorageError.
    """
    stopped: list[bool] = []
    large: list[str] = []
    for prefix in prefixes:
        page = client.page({"prefix": prefix, "max-keys": str(PAGE)}, versions=versions)
        if page.following:
            large.append(prefix)
        else:
            sorter.add(map(row_of, page.objects))
    with halt.threads(threads, "list") as executor:
        ranges = [part for prefix in large for part in ranges_of(client, prefix, wanted=threads * _RANGES)]
        futures = [executor.submit(_list, client, part, sorter.add, versions, stopped) for part in ranges]
        try:
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
        finally:
            stopped.append(True)
        for future in done:
            future.result()


def ranges_of(client: BucketClient, prefix: str, *, wanted: int) -> list[KeyRange]:
    """Cut a prefix into ranges that several threads can list, by a few requests; one range where nothing shows how."""
    bounds = split_points(client, prefix) if wanted > 1 else []
    if len(bounds) >= wanted:
        bounds = [bounds[len(bounds) * number // wanted] for number in range(1, wanted)]
    starts = ["", *bounds]
    return [KeyRange(prefix, after, last) for after, last in zip(starts, [*bounds, ""], strict=True)]


def split_points(client: BucketClient, prefix: str) -> list[str]:
    """Return keys, or beginnings of keys, between which the keys of a prefix lie, in order."""
    for _ in range(_DEEPEST):
        page = client.page({"prefix": prefix, "delimiter": "/", "max-keys": str(PAGE)})
        names = sorted({*page.prefixes, *(listed.key for listed in page.objects)})
        if page.following:
            return _varied(client, prefix, names[0], names[-1])
        if len(names) != 1 or not page.prefixes:
            return names if page.prefixes else []
        prefix = names[0]
    return []


def _varied(client: BucketClient, prefix: str, first: str, last: str) -> list[str]:
    """Return bounds for a level of more than a page of names, of which the first page is known.

    Names that count or are digests vary in single characters: each place where they do is found by one request.
    """
    stem = os.path.commonprefix([first, last])  # noqa: RUF071  # of characters, which is what is wanted
    bounds: set[str] = set()
    for at in range(len(prefix), len(stem) + 1):
        known, before = last[at : at + 1], last[:at]
        run = next((run for run in _RUNS if known and known in run), "")
        if not run or (at < len(stem) and not _any_behind(client, before, known)):
            continue
        if run is _DIGITS and _any_behind(client, before, "9"):
            run = _HEX
        bounds |= {before + one for one in run if one > known}
    return sorted(bounds)


def _any_behind(client: BucketClient, prefix: str, character: str) -> bool:
    """Say whether a key of the prefix goes on with a character behind this one."""
    page = client.page({"prefix": prefix, "start-after": prefix + character + _LAST, "max-keys": "1"})
    return bool(page.objects)


def _list(
    client: BucketClient, part: KeyRange, add: Callable[[list[Row]], None], versions: bool, stopped: list[bool]
) -> None:
    for listed in _pages(client, part, versions):
        add([row_of(one) for one in listed])
        if stopped:
            return


def _pages(client: BucketClient, part: KeyRange, versions: bool) -> Iterator[list[Listed]]:
    parameters = {"prefix": part.prefix, "max-keys": str(PAGE)}
    if part.after:
        parameters["key-marker" if versions else "start-after"] = part.after
    for page in client.scan(parameters, versions=versions):
        if part.last and page.objects and page.objects[-1].key > part.last:
            yield [listed for listed in page.objects if listed.key <= part.last]
            return
        yield page.objects
