"""Taking a tar archive apart while it comes."""

import io
import tarfile

import pytest

from engine.connections.tarstream import TarBroken, TarStream

FILES = {"a": b"", "b/c": b"x" * 700, "d": b"y" * 512, "e": b"z" * 5000}


class Gathered:
    """Keeps what an archive holds."""

    def __init__(self) -> None:
        self.found: dict[str, bytes] = {}
        self.name = ""

    def begin(self, member: tarfile.TarInfo) -> None:
        self.name = member.name
        self.found[self.name] = b""

    def data(self, data: memoryview) -> None:
        self.found[self.name] += data

    def end(self) -> None:
        self.found[self.name] += b"|"


def packed(files: dict[str, bytes], *, kind: bytes = tarfile.REGTYPE) -> bytes:
    """Return an archive as PostgreSQL ends it: with two empty blocks."""
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.type = len(data), kind
            archive.addfile(member, io.BytesIO(data))
        length = archive.offset
    return target.getvalue()[: length + 1024]


@pytest.mark.parametrize("step", [1, 511, 512, 100_000])
def test_members_come_whole_in_whatever_pieces_the_archive_comes(step: int) -> None:
    taker, data = Gathered(), packed(FILES)
    stream = TarStream(taker)
    for at in range(0, len(data), step):
        stream.feed(data[at : at + step])
    stream.close()
    assert taker.found == {name: data + b"|" for name, data in FILES.items()}


def test_no_beginning_of_an_archive_passes_for_a_whole_one() -> None:
    data = packed({"b": b"x" * 700})
    for length in range(len(data)):
        stream = TarStream(Gathered())
        stream.feed(data[:length])
        with pytest.raises(TarBroken, match="before its end"):
            stream.close()


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"no archive" * 100, "can't be read"),
        (packed(FILES) + packed(FILES), "goes on behind"),
        (packed({"pipe": b""}, kind=tarfile.FIFOTYPE), "unknown type"),
    ],
)
def test_other_bytes_are_refused(data: bytes, says: str) -> None:
    with pytest.raises(TarBroken, match=says):
        TarStream(Gathered()).feed(data)
