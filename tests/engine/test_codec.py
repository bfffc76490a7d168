"""Compression and sealed records: what goes in comes out, what is foreign or damaged is refused."""

import random

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from engine.codec import Compressor, Purpose, seal, unseal
from engine.errors import FormatError, IntegrityError
from engine.keys import Keys

KEYS = Keys.create()


@given(st.binary(max_size=2000))
def test_what_is_packed_is_unpacked(data: bytes):
    compressed, body = Compressor().pack(data)
    assert Compressor().unpack(bytes(body), compressed=compressed, bytes_max=2000) == data


def test_what_does_not_shrink_is_kept_raw():
    assert Compressor().pack(random.Random(5).randbytes(5000))[0] is False
    compressed, body = Compressor().pack(b"dull " * 1000)
    assert compressed
    assert len(body) < 100


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (zstandard.compress(bytes(1001)), "at most 1000 are possible"),
        (zstandard.ZstdCompressor(write_content_size=False).compress(bytes(10)), "at most 1000"),
        (zstandard.compress(bytes(100))[:-2], "cannot be read"),
        (b"no frame at all", "cannot be read"),
        (b"", "cannot be read"),
    ],
)
def test_a_frame_that_is_too_large_or_damaged_is_refused(data: bytes, reason: str):
    with pytest.raises(IntegrityError, match=reason):
        Compressor().unpack(data, compressed=True, bytes_max=1000)


@given(st.binary(max_size=500), st.sampled_from(Purpose), st.binary(max_size=20))
def test_a_sealed_record_opens_with_its_purpose_and_context(payload: bytes, purpose: Purpose, context: bytes):
    assert unseal(KEYS, purpose, seal(KEYS, purpose, payload, context=context), context=context) == payload


def test_a_sealed_record_opens_with_nothing_else():
    data = seal(KEYS, Purpose.ROOT, b"payload", context=b"here")
    with pytest.raises(IntegrityError, match="fails its authentication"):
        unseal(KEYS, Purpose.ROOT, data, context=b"there")
    with pytest.raises(IntegrityError, match="wrong header"):
        unseal(KEYS, Purpose.SEGMENT, data, context=b"here")
    with pytest.raises(IntegrityError, match="another key"):
        unseal(Keys.create(), Purpose.ROOT, data, context=b"here")
    with pytest.raises(IntegrityError, match="cut short"):
        unseal(KEYS, Purpose.ROOT, data[:70], context=b"here")
    with pytest.raises(FormatError, match="has format 2"):
        unseal(KEYS, Purpose.ROOT, data[:4] + b"\x02" + data[5:], context=b"here")


@pytest.mark.invariant(9)
def test_every_damaged_byte_of_a_record_is_noticed():
    data = seal(KEYS, Purpose.ROOT, b"payload", context=b"here")
    for at in range(len(data)):
        damaged = bytearray(data)
        damaged[at] ^= 0x10
        with pytest.raises((IntegrityError, FormatError)):
            unseal(KEYS, Purpose.ROOT, bytes(damaged), context=b"here")


def test_sealing_the_same_twice_gives_different_bytes():
    assert seal(KEYS, Purpose.ROOT, b"x", context=b"") != seal(KEYS, Purpose.ROOT, b"x", context=b"")
