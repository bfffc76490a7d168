"""Packs: filled, sealed at their limits, stored before anything refers to them, read back from either end."""

import os
import random
from concurrent.futures import ThreadPoolExecutor

import pytest

from engine import pack as packs
from engine.codec import Compressor
from engine.errors import FormatError, IntegrityError, Unavailable
from engine.fetch import read_footer
from engine.ids import digest_name
from engine.index import Index, encode_segment
from engine.keys import ID_BYTES, Keys
from engine.pack import DATA, META, Cipher, PackWriter, Sealed, footer_range, open_footer, open_header
from engine.point import PackRef
from engine.storage import Memory
from engine.storage.faulty import Fault, Faulty, Mode

KIB, MIB = 1 << 10, 1 << 20
KEYS = Keys.create()
NOISE = random.Random(6)


def chunk_sizes(*sizes: int) -> list[bytes]:
    return [NOISE.randbytes(size) for size in sizes]


def written(store: Memory, chunks: list[bytes], *, kind: int = DATA) -> list[Sealed]:
    writer = PackWriter(KEYS, kind, store.put)
    for chunk in chunks:
        writer.add(KEYS.chunk_id(chunk), chunk)
    return writer.close()


def ref(sealed: Sealed) -> PackRef:
    return PackRef(sealed.head.name, sealed.head.kind, sealed.head.size)


def read_back(store: Memory, sealed: list[Sealed]) -> list[bytes]:
    """Return every chunk through footers and slots, in the order of the packs."""
    found = []
    for one in sealed:
        head, table = read_footer(store, KEYS, ref(one))
        cipher, data = Cipher(KEYS, head.kind, head.epoch, head.salt), store.get(head.key)
        slots = []
        for number, (raw, at, length) in enumerate(zip(table.raw, table.at, table.stored, strict=True)):
            body = cipher.decrypt(number, data[int(at) : int(at) + int(length)])
            slots.append(Compressor().unpack(body, compressed=not raw, bytes_max=packs.SLOT_BYTES_MAX))
        for slot, offset, length in zip(table.slot, table.offset, table.length, strict=True):
            found.append(slots[slot][int(offset) : int(offset) + int(length)])
    return found


@pytest.fixture
def store() -> Memory:
    return Memory()


def test_chunks_of_all_sizes_come_back_from_the_footer(store: Memory):
    chunks = [*chunk_sizes(1, 100, 500 * KIB, 512 * KIB, 3, 700 * KIB, 511 * KIB), b"dull " * 100_000, b"last"]
    sealed = written(store, chunks)
    assert len(sealed) == 1
    assert sorted(read_back(store, sealed)) == sorted(chunks)
    assert [row.tobytes() for row in sealed[0].table.ids[:1]] == [KEYS.chunk_id(read_back(store, sealed)[0])]


def test_a_pack_is_named_by_its_bytes_and_padded_to_steps_of_64_kib(store: Memory):
    (one,) = written(store, chunk_sizes(10), kind=META)
    data = store.get(one.head.key)
    assert one.head.key == f"meta/{one.head.name[:2]}/{one.head.name}"
    assert one.head.name == digest_name(data)
    assert len(data) == one.head.size == 64 * KIB


def test_a_writer_without_chunks_stores_nothing(store: Memory):
    assert written(store, []) == []
    assert store.log == []


def test_small_chunks_share_slots_and_large_ones_have_their_own(store: Memory):
    (one,) = written(store, [*chunk_sizes(*[1000] * 10), NOISE.randbytes(2 * MIB), *chunk_sizes(1000)])
    assert len(one.table.raw) == 2
    assert len(set(one.table.slot.tolist())) == 2


def test_a_chunk_of_half_a_mebibyte_is_alone_only_behind_what_could_not_be_compressed(store: Memory):
    texts = [b"%d" % number * 300_000 for number in range(10, 13)]
    (dull,) = written(store, texts)
    assert dull.table.slot.tolist() == [0, 0, 0]
    (noisy,) = written(store, [*chunk_sizes(2 * MIB, 512 * KIB), *texts])
    assert noisy.table.slot.tolist() == [0, 1, 2, 3, 3]
    assert noisy.table.raw.tolist() == [True, True, False, False]


def test_a_pack_is_sealed_when_it_is_full(store: Memory, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(packs, "TARGET_BYTES", (MIB, MIB))
    monkeypatch.setattr(packs, "_idle", ([], []))
    monkeypatch.setattr(packs, "SLOT_BYTES", 512 * KIB)
    chunks = chunk_sizes(*[600 * KIB] * 5, 300)
    sealed = written(store, chunks)
    assert len(sealed) == 3
    assert sorted(read_back(store, sealed)) == sorted(chunks)


@pytest.mark.parametrize(("limit", "value"), [("SLOTS_MAX", 3), ("CHUNKS_MAX", 50)])
def test_a_pack_is_sealed_at_its_most_slots_and_chunks(
    store: Memory, monkeypatch: pytest.MonkeyPatch, limit: str, value: int
):
    monkeypatch.setattr(packs, limit, value)
    monkeypatch.setattr(packs, "SLOT_BYTES", 400)
    chunks = chunk_sizes(*range(1, 130), 500, 7)
    sealed = written(store, chunks)
    assert len(sealed) > 2
    assert all(len(one.table.raw if limit == "SLOTS_MAX" else one.table.ids) <= value for one in sealed)
    assert sorted(read_back(store, sealed)) == sorted(chunks)


def test_very_many_tiny_chunks_never_overfill_a_pack(store: Memory, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(packs, "CHUNKS_MAX", 1000)  # all of them together would fit into one slot
    chunks = [b"%d" % number for number in range(3500)]
    sealed = written(store, chunks)
    assert [len(one.table.ids) for one in sealed] == [1000, 1000, 1000, 500]
    assert sorted(read_back(store, sealed)) == sorted(chunks)


def test_packs_are_stored_by_an_executor_while_the_next_one_is_filled(store: Memory, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(packs, "SLOTS_MAX", 1)
    monkeypatch.setattr(packs, "SLOT_BYTES", 512 * KIB)
    chunks = chunk_sizes(*[600 * KIB] * 7)
    with ThreadPoolExecutor(2) as executor:
        writer = PackWriter(KEYS, DATA, store.put, executor=executor)
        for chunk in chunks:
            writer.add(KEYS.chunk_id(chunk), chunk)
        sealed = writer.close()
    assert len(sealed) == 7
    assert read_back(store, sealed) == chunks


@pytest.mark.parametrize("at", [1, 2, 3, 4])
def test_an_error_of_the_executor_reaches_the_writer(store: Memory, monkeypatch: pytest.MonkeyPatch, at: int):
    monkeypatch.setattr(packs, "SLOTS_MAX", 1)
    monkeypatch.setattr(packs, "SLOT_BYTES", 512 * KIB)
    faulty = Faulty(store, [Fault(at, Mode.BEFORE, "put")])

    def fill() -> list[Sealed]:
        with ThreadPoolExecutor(1) as executor:
            writer = PackWriter(KEYS, DATA, faulty.put, executor=executor)
            for chunk in chunk_sizes(*[600 * KIB] * 4):
                writer.add(KEYS.chunk_id(chunk), chunk)
            return writer.close()

    with pytest.raises(Unavailable, match="injected"):
        fill()


@pytest.mark.invariant(8)
def test_a_forked_process_draws_salts_of_its_own(store: Memory):
    writer = PackWriter(KEYS, DATA, store.put)
    receive, send = os.pipe()
    child = os.fork()
    if not child:
        try:
            store = Memory()
            forked = PackWriter(KEYS, DATA, store.put)
            forked.add(bytes(32), b"x")
            os.write(send, forked.close()[0].head.salt)
        finally:
            os._exit(0)
    writer.add(bytes(32), b"x")
    salt = writer.close()[0].head.salt
    os.waitpid(child, 0)
    other = os.read(receive, 32)
    os.close(send)
    os.close(receive)
    assert len(other) == 32
    assert other != salt


@pytest.mark.parametrize("kind", [DATA, META])
def test_forked_processes_do_not_write_into_each_others_packs(store: Memory, kind: int):
    """Buffers outlive their writers, and a forked process inherits the idle ones."""
    written(store, chunk_sizes(10), kind=kind)
    mine, others = NOISE.randbytes(100_000), NOISE.randbytes(100_000)
    writer = PackWriter(KEYS, kind, store.put)
    receive, send = os.pipe()
    child = os.fork()
    if not child:
        try:
            forked = PackWriter(KEYS, kind, Memory().put)
            forked.add(KEYS.chunk_id(others), others)
            forked.end_slot()
            os.write(send, b"written")
        finally:
            os._exit(0)
    writer.add(KEYS.chunk_id(mine), mine)
    writer.end_slot()
    assert os.read(receive, 7) == b"written"
    os.waitpid(child, 0)
    (sealed,) = writer.close()
    os.close(receive)
    os.close(send)
    cipher = Cipher(KEYS, kind, sealed.head.epoch, sealed.head.salt)
    data = store.get(sealed.head.key)
    at, stored = int(sealed.table.at[0]), int(sealed.table.stored[0])
    slot = Compressor().unpack(
        cipher.decrypt(0, data[at : at + stored]), compressed=not sealed.table.raw[0], bytes_max=len(mine)
    )
    assert slot == mine


def test_a_header_of_another_kind_vault_or_version_is_refused(store: Memory):
    (one,) = written(store, chunk_sizes(10))
    data = store.get(one.head.key)
    opening = {"kind": DATA, "size": len(data)}
    assert open_header(KEYS, one.head.name, data[:128], **opening) == one.head
    with pytest.raises(IntegrityError, match="wrong header"):
        open_header(KEYS, one.head.name, data[:128], kind=META, size=len(data))
    with pytest.raises(IntegrityError, match="wrong header"):
        open_header(Keys.create(), one.head.name, data[:128], **opening)
    with pytest.raises(FormatError, match="has format 2"):
        open_header(KEYS, one.head.name, data[:4] + b"\x02" + data[5:128], **opening)
    with pytest.raises(IntegrityError, match="cut short"):
        open_header(KEYS, one.head.name, data[:100], **opening)
    with pytest.raises(IntegrityError, match="damaged header"):
        open_header(KEYS, one.head.name, data[:127] + b"\x01", **opening)


@pytest.mark.invariant(9)
def test_slots_can_not_be_exchanged_within_a_pack_or_between_packs(store: Memory):
    first, second = (written(store, chunk_sizes(600 * KIB, 600 * KIB))[0] for _ in range(2))
    data = store.get(first.head.key)
    at, length = int(first.table.at[0]), int(first.table.stored[0])
    slot = data[at : at + length]
    right = Cipher(KEYS, DATA, first.head.epoch, first.head.salt)
    assert right.decrypt(0, slot)
    with pytest.raises(IntegrityError, match="fails its authentication"):
        right.decrypt(1, slot)
    with pytest.raises(IntegrityError, match="fails its authentication"):
        Cipher(KEYS, DATA, second.head.epoch, second.head.salt).decrypt(0, slot)
    with pytest.raises(IntegrityError, match="fails its authentication"):
        Cipher(KEYS, META, first.head.epoch, first.head.salt).decrypt(0, slot)
    with pytest.raises(IntegrityError, match="fails its authentication"):
        right.decrypt(0, b"short")


def test_a_footer_that_points_outside_or_names_no_slot_is_refused(store: Memory):
    (one,) = written(store, chunk_sizes(10))
    data = store.get(one.head.key)
    with pytest.raises(IntegrityError, match="damaged end"):
        footer_range(one.head.name, data[-33:-1], len(data))
    with pytest.raises(IntegrityError, match="footer outside itself"):
        footer_range(one.head.name, data[-32:], 200)
    with pytest.raises(IntegrityError, match="fails its authentication"):
        open_footer(KEYS, one.head, bytes(60))


@pytest.mark.invariant(11)
def test_a_rebuilt_index_says_what_the_writer_said(store: Memory):
    """Engine invariant 11."""
    chunks = chunk_sizes(1, 100, 600 * KIB, 5000)
    sealed = written(store, chunks)
    first, again = Index(store, KEYS, None), Index(store, KEYS, None)
    for plain in encode_segment(sealed):
        first.add(plain)
    for plain in encode_segment([read_footer(store, KEYS, ref(one)) for one in sealed]):
        again.add(plain)
    ids = [KEYS.chunk_id(chunk)[:ID_BYTES] for chunk in chunks]
    assert first.places(ids) == again.places(ids)
    assert None not in first.places(ids)
