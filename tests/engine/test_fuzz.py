"""Every decoder, fed with anything, raises an engine error and takes no memory to speak of (engine invariant 9).

What is encrypted or signed is fuzzed inside its envelope too: the envelope is made with the right keys around wrong
content, because a decoder must not rely on who wrote it.
"""

import hashlib
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.codec import Compressor, Purpose, seal, unseal
from engine.errors import EngineError
from engine.fetch import read_footer
from engine.ids import digest_name
from engine.index import Segment
from engine.keyproviders.keyring import Keyring, RecoveryKey
from engine.listing import decode, extents_group, names_group, statics_group, volatile_group
from engine.pack import HEADER_BYTES, TRAILER_BYTES, Cipher, footer_range, open_footer, open_header
from engine.point import Commit, decode_commit, decode_root, point_key, root_packs
from engine.session import Session
from engine.storage import Memory
from engine.vault import INFO_KEY, Vault
from tests.support.vaults import START, Bench, entries, write_files

pytestmark = pytest.mark.invariant(9)

MEMORY_MAX = 32 << 20
STRANGERS = [
    "keys/x",
    "keys/x/y",
    "keys/1/2/3",
    "points/x",
    "points/a/b/root",
    "points/a/b/c/d",
    "index/x",
    "sessions/x",
]
FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


class Samples:
    """One small vault and good examples of all that it holds."""

    def __init__(self, folder: Path) -> None:
        self.bench = Bench()
        write_files(folder, {"a/one": b"first content, " * 20, "b": b"x", "empty": b""})
        self.bench.back_up(folder)
        vault = self.bench.open()
        self.keys, self.name = vault.keys, vault.points()[0]
        self.objects = self.bench.objects()
        self.root_key, self.commit_key = point_key(*self.name, "root"), point_key(*self.name, "commit")
        self.root = vault.root(self.name)
        self.pack = self.root.packs[0]
        self.pack_bytes = next(data for key, data in self.objects.items() if key.endswith(self.pack.name))
        self.head = read_footer(self.bench.storage, self.keys, self.pack).head
        rows = list(entries(vault, self.name))
        self.groups = [names_group(rows), statics_group(rows), volatile_group(rows), extents_group(rows)]
        segment = next(key for key in self.objects if key.startswith("index/"))
        self.segment = unseal(self.keys, Purpose.SEGMENT, self.objects[segment], context=b"index")
        _, at = root_packs(self.root_key, self.objects[self.root_key])
        self.root_head, self.root_sealed = self.objects[self.root_key][:at], self.objects[self.root_key][at:]


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Samples:
    return Samples(tmp_path_factory.mktemp("fuzz") / "home")


@st.composite
def damaged(draw: st.DrawFn, good: bytes) -> bytes:
    """Draw random bytes, or `good` with some bytes changed, removed, doubled or put in."""
    if draw(st.integers(0, 3)) == 0:
        return draw(st.binary(max_size=300))
    data = bytearray(good)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(len(data) - 1, 0)))
        change = draw(st.sampled_from(["set", "set", "cut", "drop", "insert", "double", "ones"]))
        if change == "set" and data:
            data[at] = draw(st.integers(0, 255))
        elif change == "cut":
            del data[at:]
        elif change == "drop":
            del data[at : at + draw(st.integers(1, 8))]
        elif change == "insert":
            data[at:at] = draw(st.binary(min_size=1, max_size=8))
        elif change == "double":
            data += data[at:]
        else:
            data[at : at + 4] = b"\xff" * len(data[at : at + 4])
    return bytes(data)


def survives(call: Callable[[], object]) -> None:
    """Run a decoder: it may succeed or raise an engine error, in little memory."""
    tracemalloc.start()
    try:
        call()
    except EngineError:
        pass
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < MEMORY_MAX


@FUZZ
@given(data=st.data())
def test_pack_header(samples: Samples, data: st.DataObject):
    header = data.draw(damaged(samples.pack_bytes[:HEADER_BYTES]))
    survives(lambda: open_header(samples.keys, "x", header, kind=samples.pack.kind, size=65536))


@FUZZ
@given(data=st.data())
def test_pack_trailer(samples: Samples, data: st.DataObject):
    trailer = data.draw(damaged(samples.pack_bytes[-TRAILER_BYTES:]))
    survives(lambda: footer_range("x", trailer, 65536))


@FUZZ
@given(data=st.data())
def test_pack_footer_and_what_is_inside_its_encryption(samples: Samples, data: st.DataObject):
    head = samples.head
    cipher = Cipher(samples.keys, head.kind, head.epoch, head.salt)
    offset, length = footer_range("x", samples.pack_bytes[-TRAILER_BYTES:], len(samples.pack_bytes))
    stored = samples.pack_bytes[offset : offset + length]
    survives(lambda: open_footer(samples.keys, head, data.draw(damaged(stored))))
    body = cipher.decrypt(0xFFFFFFFF, stored)
    plain = Compressor().unpack(body[1:], compressed=bool(body[0]), bytes_max=1 << 20)
    for inner in (data.draw(damaged(body)), b"\0" + data.draw(damaged(plain))):
        buffer = bytearray(len(inner) + 16)
        cipher.encrypt_into(0xFFFFFFFF, inner, memoryview(buffer))
        survives(lambda: open_footer(samples.keys, head, bytes(buffer)))  # noqa: B023 # called at once


@FUZZ
@given(data=st.data())
def test_index_segment(samples: Samples, data: st.DataObject):
    plain = data.draw(damaged(samples.segment))
    survives(lambda: Segment("x", memoryview(plain)))


@FUZZ
@given(data=st.data())
def test_sealed_record(samples: Samples, data: st.DataObject):
    record = data.draw(damaged(samples.root_sealed))
    survives(lambda: unseal(samples.keys, Purpose.ROOT, record, context=b""))


@FUZZ
@given(data=st.data())
def test_listing_groups(samples: Samples, data: st.DataObject):
    groups = list(samples.groups)
    for number in data.draw(st.sets(st.integers(0, 3), min_size=1)):
        groups[number] = data.draw(damaged(groups[number]))
    survives(lambda: decode(groups))


@FUZZ
@given(data=st.data())
def test_root_and_what_is_inside_its_encryption(samples: Samples, data: st.DataObject):
    whole = data.draw(damaged(samples.objects[samples.root_key]))
    survives(lambda: root_packs(samples.root_key, whole))
    survives(lambda: decode_root(samples.keys, samples.root_key, whole))
    context = samples.root_key.encode() + hashlib.sha256(samples.root_head).digest()
    body = data.draw(damaged(msgspec.msgpack.encode(samples.root.body)))
    sealed = seal(samples.keys, Purpose.ROOT, body, context=context)
    survives(lambda: decode_root(samples.keys, samples.root_key, samples.root_head + sealed))


@FUZZ
@given(data=st.data())
def test_commit_signed_or_not(samples: Samples, data: st.DataObject):
    good = samples.objects[samples.commit_key]
    survives(lambda: decode_commit(samples.keys, samples.commit_key, data.draw(damaged(good))))
    payload = data.draw(damaged(good.rpartition(b"\n")[0]))
    signed = samples.keys.sign(samples.commit_key, payload)
    survives(lambda: decode_commit(samples.keys, samples.commit_key, signed))
    assert isinstance(decode_commit(samples.keys, samples.commit_key, good), Commit)


@FUZZ
@given(data=st.data())
def test_vault_json_signed_or_not(samples: Samples, data: st.DataObject):
    good = samples.objects[INFO_KEY]
    payload = data.draw(damaged(good.rpartition(b"\n")[0]))
    for text in (data.draw(damaged(good)), samples.keys.sign(INFO_KEY, payload)):
        storage = copy_with(samples, INFO_KEY, text)
        survives(lambda: Vault.open(storage, provider=samples.bench.ring))  # noqa: B023 # called at once


@FUZZ
@given(data=st.data())
def test_key_set_under_its_right_name(samples: Samples, data: st.DataObject):
    key = next(key for key in samples.objects if key.startswith("keys/"))
    body = data.draw(damaged(samples.objects[key]))
    storage = copy_with(samples, key, None)
    storage.put(f"keys/1/{digest_name(body)}", body)
    survives(lambda: Vault.open(storage, provider=samples.bench.ring))


@pytest.mark.parametrize("name", STRANGERS)
def test_a_strangers_object_under_a_known_prefix_does_no_harm(samples: Samples, name: str):
    storage = copy_with(samples, name, b"stranger")
    vault = Vault.open(storage, provider=samples.bench.ring)
    assert vault.points() == [samples.name]
    assert list(entries(vault, samples.name))


@FUZZ
@given(data=st.data())
def test_a_note_of_a_prune(samples: Samples, data: st.DataObject):
    key = "prune/1/condemned"
    note = samples.keys.sign(key, data.draw(damaged(b'{"packs":["00"]}')))
    storage = copy_with(samples, key, note)
    survives(lambda: Session.open(storage, samples.keys, name="s", verb="backup", now=START))


@FUZZ
@given(text=st.text(max_size=80) | st.from_regex(r"BSRK[-A-Za-z2-7]{0,70}"))
def test_recovery_key_text(text: str):
    survives(lambda: RecoveryKey.parse(text))


@FUZZ
@given(data=st.data())
def test_recovery_key_mistyped(data: st.DataObject):
    good = RecoveryKey.generate().text()
    survives(lambda: RecoveryKey.parse(data.draw(damaged(good.encode())).decode("latin-1")))


@FUZZ
@given(data=st.data())
def test_key_file(data: st.DataObject):
    good = Keyring.generate().text()
    survives(lambda: Keyring.parse(data.draw(damaged(good.encode())).decode("latin-1")))


def copy_with(samples: Samples, key: str, data: bytes | None) -> Memory:
    """Return a copy of the bucket with one object changed, added or left out."""
    storage = Memory(write_once=False)
    for other, body in samples.objects.items():
        if other != key:
            storage.put(other, body)
    if data is not None:
        storage.put(key, data)
    return storage
