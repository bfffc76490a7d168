"""Copy the live chunks of old packs into new ones: the work of a compaction."""

from collections.abc import Iterator
from typing import NamedTuple

import msgspec
import numpy as np

from engine import halt
from engine.codec import Compressor
from engine.errors import IntegrityError
from engine.fetch import cut_chunk, open_slot, read_footer, read_range
from engine.ids import pack_key
from engine.index import Index, Place, encode_segment
from engine.keys import ID_BYTES
from engine.pack import META, Cipher, PackWriter, Sealed
from engine.point import PackRef
from engine.progress import Progress
from engine.vault import Vault
from engine.verbs.candidates import Task

_RANGE_BYTES = 8 << 20
_GAP_BYTES = 256 << 10


class Left(msgspec.Struct, frozen=True):
    """A pack that was left alone, and why."""

    object: str
    detail: str


class _Chunk(NamedTuple):
    """One live chunk: its full id and where it lies."""

    ident: bytes
    place: Place


class Repacker:
    """Rewrites packs of one kind. Close it to make everything durable and listed in the index. Not for threads.

    `left`, `bytes_read`, `bytes_written` and `packs_written` tell what was done.
    """

    def __init__(self, vault: Vault, progress: Progress, *, kind: int) -> None:
        self._vault, self._progress, self._kind = vault, progress, kind
        self._executor = halt.threads(1, "pack")
        self._writer = PackWriter(vault.keys, kind, vault.storage.put, executor=self._executor)
        self._zstd = Compressor()
        self._own: set[bytes] = set()
        self._copied: dict[str, list[bytes]] = {}
        self._found: dict[str, list[PackRef]] = {}
        self.left: list[Left] = []
        self.bytes_read = self.bytes_written = self.packs_written = 0

    def __enter__(self) -> "Repacker":
        return self

    def __exit__(self, *exc: object) -> None:
        self._executor.shutdown()

    def take(self, task: Task) -> None:
        """Copy one pack's live chunks, or check that the packs which hold them already are whole there."""
        problem = self._check_elsewhere(task) if task.elsewhere else ""
        if task.elsewhere and not problem:
            self._found[task.pack.name] = [pack for pack, _ in task.elsewhere]
        elif task.reason == "broken" and task.ids:
            self.left.append(Left(pack_key(task.pack.kind, task.pack.name), problem))
        else:
            self._copy(task)

    def close(self) -> dict[str, list[PackRef]]:
        """Store all that is pending, packs first; return what stands for each old pack."""
        sealed = self._writer.close()
        index = Index(self._vault.storage, self._vault.keys, None)
        for plain in encode_segment(sealed):
            self.bytes_written += index.add(plain)
        self.bytes_written += sum(pack.head.size for pack in sealed)
        self.packs_written = len(sealed)
        where = {
            ident: PackRef(head.name, head.kind, head.size) for head, table in sealed for ident in _full_ids(table.ids)
        }
        copied = {name: list(dict.fromkeys(where[ident] for ident in ids)) for name, ids in self._copied.items()}
        return self._found | copied

    def _check_elsewhere(self, task: Task) -> str:
        """Read the chunks where they are said to be; return what is wrong with one."""
        for pack, ids in task.elsewhere:
            try:
                for _ in self._chunks(pack, ids):
                    pass
            except IntegrityError as error:
                return str(error)
        return ""

    def _copy(self, task: Task) -> None:
        ids: list[bytes] = []
        slot = -1
        try:
            for chunk, data in self._chunks(task.pack, task.ids):
                if self._kind == META and chunk.place.slot != slot:
                    self._writer.end_slot()  # the groups of one block stay together
                slot = chunk.place.slot
                ids.append(chunk.ident)
                if chunk.ident not in self._own:
                    self._own.add(chunk.ident)
                    self._writer.add(chunk.ident, data)
        except IntegrityError as error:
            self.left.append(Left(pack_key(task.pack.kind, task.pack.name), str(error)))
            return
        self._copied[task.pack.name] = ids

    def _chunks(self, pack: PackRef, ids: bytes) -> Iterator[tuple[_Chunk, bytes]]:
        """Yield these chunks of a pack, checked, in the order of the pack. Raises IntegrityError, MissingObject."""
        if not ids:
            return
        sealed = read_footer(self._vault.storage, self._vault.keys, pack)
        head = sealed.head
        cipher = Cipher(self._vault.keys, head.kind, head.epoch, head.salt)
        for run in _runs(_places(sealed, ids)):
            self._progress.check()
            start = run[0].place.slot_at
            end = run[-1].place.slot_at + run[-1].place.slot_stored
            stored = memoryview(read_range(self._vault.storage, head, start, end - start))
            self.bytes_read += len(stored)
            self._progress.add(bytes=len(stored))
            number, slot = -1, b""
            for chunk in run:
                place = chunk.place
                if place.slot != number:
                    at = place.slot_at - start
                    number, slot = place.slot, open_slot(self._zstd, cipher, place, stored[at : at + place.slot_stored])
                yield chunk, cut_chunk(self._vault.keys, slot, chunk.ident, place)


def _places(sealed: Sealed, ids: bytes) -> list[_Chunk]:
    """Return the chunks with these short ids, by slot and offset. Raises IntegrityError when the pack lacks one."""
    head, table = sealed
    wanted = {ids[at : at + ID_BYTES] for at in range(0, len(ids), ID_BYTES)}
    found: dict[bytes, _Chunk] = {}
    for row, ident in enumerate(_full_ids(table.ids)):
        if ident[:ID_BYTES] in wanted and ident[:ID_BYTES] not in found:
            slot = int(table.slot[row])
            place = Place(
                head, slot, bool(table.raw[slot]), int(table.at[slot]), int(table.stored[slot]),
                int(table.offset[row]), int(table.length[row]),
            )  # fmt: skip
            found[ident[:ID_BYTES]] = _Chunk(ident, place)
    if len(found) != len(wanted):
        raise IntegrityError(f"{head.key} does not hold all that the index says")
    return sorted(found.values(), key=lambda chunk: (chunk.place.slot_at, chunk.place.offset))


def _runs(chunks: list[_Chunk]) -> Iterator[list[_Chunk]]:
    """Cut chunks into runs that one read each brings: slots that lie close together, about _RANGE_BYTES."""
    run: list[_Chunk] = []
    for chunk in chunks:
        if run and chunk.place.slot != run[-1].place.slot:
            last = run[-1].place
            gap = chunk.place.slot_at - last.slot_at - last.slot_stored
            if gap > _GAP_BYTES or chunk.place.slot_at - run[0].place.slot_at > _RANGE_BYTES:
                yield run
                run = []
        run.append(chunk)
    if run:
        yield run


def _full_ids(ids: np.ndarray) -> list[bytes]:
    joined = ids.tobytes()
    return [joined[at : at + 32] for at in range(0, len(joined), 32)]
