"""Cut points: deterministic, independent of how the bytes arrive, pinned for ever (engine invariant 12)."""

import hashlib
import random
from itertools import pairwise

import pytest

from engine.chunker import PROFILES, Chunker

MIB = 1 << 20
DATA = random.Random(4).randbytes(20 * MIB)


def cut(data: bytes, *, profile: str = "general", seed: int = 7, piece: int = 1 << 30) -> list[bytes]:
    """Return the chunks of a stream that arrives `piece` bytes at a time."""
    at = 0

    def read(view: memoryview) -> int:
        nonlocal at
        part = data[at : at + min(len(view), piece)]
        view[: len(part)] = part
        at += len(part)
        return len(part)

    return [bytes(chunk) for chunks in Chunker(profile, seed).windows(read) for chunk in chunks]


def test_chunks_join_to_what_was_read():
    for size in (0, 1, 131_071, 131_072, 524_288, 2 * MIB, 16 * MIB, 16 * MIB + 1, 20 * MIB):
        assert b"".join(cut(DATA[:size])) == DATA[:size]
    assert cut(b"") == []


@pytest.mark.invariant(12)
@pytest.mark.parametrize("piece", [4093, 65536, 5 * MIB])
def test_cuts_do_not_depend_on_how_the_stream_arrives(piece: int):
    assert cut(DATA, piece=piece) == cut(DATA)


@pytest.mark.parametrize("profile", PROFILES)
def test_chunk_sizes_stay_between_a_quarter_and_four_times_the_average(profile: str):
    average = PROFILES[profile]
    sizes = [len(chunk) for chunk in cut(DATA, profile=profile)]
    assert all(average // 4 <= size <= 4 * average for size in sizes[:-1])
    assert sizes[-1] <= 4 * average
    assert average / 2 < len(DATA) / len(sizes) < 2 * average


def test_zeros_are_cut_at_the_longest_chunk():
    assert {len(chunk) for chunk in cut(bytes(8 * MIB))} == {2 * MIB}


def test_a_change_moves_only_the_cuts_near_it():
    changed = DATA[: 9 * MIB] + b"inserted" + DATA[9 * MIB :]
    before, after = set(cut(DATA)), set(cut(changed))
    assert len(after - before) <= 2


def test_another_vaults_seed_cuts_elsewhere():
    ends = [[sum(map(len, chunks[: i + 1])) for i in range(len(chunks))] for chunks in (cut(DATA), cut(DATA, seed=8))]
    assert len(set(ends[0]) & set(ends[1])) <= 2


GOLDEN = {
    "general": "45d84f859ade0f446d805a5d399ed7c7",
    "database": "2261c26bbae2a81e49c0baab3b80c4a2",
    "media": "d998abc3ba1b9771620dfbaa2900c11b",
}


@pytest.mark.invariant(12, 30)
@pytest.mark.parametrize("profile", PROFILES)
def test_cuts_are_those_of_every_version_of_this_program(profile: str):
    """Another library or version that cuts elsewhere would store everything anew: never change these digests."""
    digest = hashlib.sha256()
    for chunk in cut(DATA, profile=profile):
        digest.update(len(chunk).to_bytes(4, "big"))
    assert digest.hexdigest()[:32] == GOLDEN[profile]


def test_a_window_lives_until_the_next_one_is_asked_for():
    chunker = Chunker("general", 7)
    source = iter([DATA[:MIB], b""])

    def read(view: memoryview) -> int:
        part = next(source)
        view[: len(part)] = part
        return len(part)

    windows = chunker.windows(read)
    first = next(windows)
    assert all(b.obj is a.obj for a, b in pairwise(first))
    assert b"".join(first) == DATA[:MIB]
    assert next(windows, None) is None
