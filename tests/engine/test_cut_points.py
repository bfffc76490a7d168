"""Cut points are part of the format: the same for ever, on every implementation (engine invariants 12 and 30)."""

import hashlib
import io
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyfastcdc.cy import FastCDC as InC
from pyfastcdc.py import FastCDC as InPython

from engine.chunker import CHUNK_BYTES_MAX, PROFILES, Chunker

SEEDS = (0, 1, 0x7FFF_FFFF_FFFF_FFFF, 0x0123_4567_89AB_CDEF)
# SHA-256 over the cut points of `sample()` for all profiles and seeds. It never changes.
PINNED = "20aaa7589e3c19ff5a5d69e7f5ea9fec0b17e48d3f133070b52c91acbb56e135"


def sample(size: int = 24 << 20) -> bytes:
    """Return bytes that are the same on every platform: noise, a run of one byte, text-like repetition."""
    noise = hashlib.shake_256(b"backupsite chunker sample").digest(size // 2)
    return noise + bytes(size // 4) + b"".join(b"line %08d of a log\n" % i for i in range(size // 4 // 24))


SAMPLE = sample()


def cuts(chunker: Chunker, data: bytes, pieces: list[int] | None = None) -> list[int]:
    """Return the chunk lengths of a stream that arrives in pieces of the given sizes, over and over."""
    stream = io.BytesIO(data)
    sizes = iter(pieces or [])

    def read(view: memoryview) -> int:
        size = next(sizes, len(view))
        return stream.readinto(view[: max(1, min(size, len(view)))])

    return [len(chunk) for window in chunker.windows(read) for chunk in window]


@pytest.mark.invariant(12, 30)
def test_cut_points_are_those_of_the_first_version():
    digest = hashlib.sha256()
    for profile in sorted(PROFILES):
        for seed in SEEDS:
            lengths = cuts(Chunker(profile, seed), SAMPLE)
            assert sum(lengths) == len(SAMPLE)
            digest.update(f"{profile} {seed} {lengths}\n".encode())
    assert digest.hexdigest() == PINNED


@pytest.mark.invariant(12)
@pytest.mark.parametrize("profile", sorted(PROFILES))
@pytest.mark.parametrize("seed", SEEDS)
def test_the_compiled_and_the_pure_python_chunker_cut_alike(profile: str, seed: int):
    data = SAMPLE[(12 << 20) - (3 << 20) : (12 << 20) + (1 << 20)]
    avg = PROFILES[profile]
    compiled = InC(avg, min_size=avg // 4, max_size=4 * avg, normalized_chunking=2, seed=seed)
    pure = InPython(avg, min_size=avg // 4, max_size=4 * avg, normalized_chunking=2, seed=seed)
    expected = [chunk.length for chunk in compiled.cut_buf(data)]
    assert [chunk.length for chunk in pure.cut_buf(data)] == expected
    assert cuts(Chunker(profile, seed), data) == expected


@pytest.mark.invariant(12)
@settings(max_examples=25, deadline=None)
@given(
    pieces=st.lists(st.integers(1, 6 << 20), max_size=40), seed=st.sampled_from(SEEDS), start=st.integers(0, 4 << 20)
)
def test_cut_points_do_not_depend_on_how_the_stream_arrives(pieces: list[int], seed: int, start: int):
    chunker = Chunker("database", seed)
    data = SAMPLE[start : start + (5 << 20)]
    whole = cuts(Chunker("database", seed), data)
    assert cuts(chunker, data, pieces) == whole


def test_another_seed_cuts_elsewhere_and_every_chunk_keeps_to_its_limits():
    found = set()
    for seed in SEEDS:
        lengths = cuts(Chunker("general", seed), SAMPLE)
        assert max(lengths) <= 4 * PROFILES["general"] <= CHUNK_BYTES_MAX
        assert min(lengths[:-1]) >= PROFILES["general"] // 4
        found.add(tuple(lengths))
    assert len(found) == len(SEEDS)


def test_a_change_moves_only_the_cuts_near_it():
    rng = random.Random(5)
    data = rng.randbytes(16 << 20)
    chunker = Chunker("database", 7)

    def digests(stream: bytes) -> set[bytes]:
        ends, at = [], 0
        for length in cuts(chunker, stream):
            ends.append(hashlib.sha256(stream[at : at + length]).digest())
            at += length
        return set(ends)

    before, after = digests(data), digests(data[: 5 << 20] + b"inserted" + data[5 << 20 :])
    assert len(before - after) <= 3
