"""Following an archive of pg_dump: a whole one is told from every piece of it, however it arrives."""

import struct

import pytest

from engine.connections.pgdump import Archive, ArchiveBroken

CREATE = "CREATE DATABASE shop WITH TEMPLATE = template0 ENCODING = 'UTF8';\n"
COPY = "COPY public.t (a) FROM stdin;\n"


def number(value: int) -> bytes:
    return struct.pack("<bI", value < 0, abs(value))


def text(value: str | None) -> bytes:
    return number(-1) if value is None else number(len(value)) + value.encode()


def entry(ident: int, what: str, definition: str, *, version: int, has_data: bool) -> bytes:
    """Return one line of a table of contents, as pg_dump writes it in format 1.`version`."""
    return b"".join([
        number(ident), number(int(has_data)), text("1262"), text("16384"), text("shop"), text(what), number(2),
        text(definition), text(""), text(COPY if has_data else None), text("public"), text(None),
        text("heap") if version >= 14 else b"", number(0) if version >= 16 else b"", text("boss"), text("false"),
        text("7"), text(None), bytes([1 if has_data else 3]) + bytes(8),
    ])  # fmt: skip


def archive(*, version: int = 14, rows: int = 300) -> bytes:
    """Return an archive with two tables and large objects."""
    head = b"PGDMP" + bytes([1, version, 0, 4, 8, 1]) + (b"\0" if version >= 15 else number(0))
    head += b"".join(number(one) for one in (1, 2, 3, 4, 5, 126, 0)) + text("shop") + text("15.1") + text("15.1")
    contents = [
        entry(11, "DATABASE", CREATE, version=version, has_data=False),
        entry(12, "TABLE DATA", "", version=version, has_data=True),
        entry(13, "TABLE DATA", "", version=version, has_data=True),
        entry(14, "BLOBS", "", version=version, has_data=True),
    ]
    lines = b"".join(text(f"{row}\t{'x' * (row % 50)}\n") for row in range(rows))
    data = b"\x01" + number(12) + lines + number(0) + b"\x01" + number(13) + text("\\.\n") + number(0)
    objects = number(4711) + text("a") + text("b") + number(0) + number(4712) + number(0) + number(0)
    return head + number(len(contents)) + b"".join(contents) + data + b"\x03" + number(14) + objects


def followed(data: bytes, *, step: int = 1 << 20) -> Archive:
    found = Archive()
    for at in range(0, len(data), step):
        found.feed(memoryview(data)[at : at + step])
    return found


@pytest.mark.parametrize("version", [12, 13, 14, 15, 16])
@pytest.mark.parametrize("step", [1, 7, 4096, 1 << 20])
def test_a_whole_archive_is_one_in_whatever_pieces_it_comes(version: int, step: int) -> None:
    found = followed(archive(version=version), step=step)
    found.close()
    assert (found.database, found.create) == ("shop", CREATE)


def test_no_beginning_of_an_archive_passes_for_a_whole_one() -> None:
    data = archive()
    for length in range(len(data)):
        with pytest.raises(ArchiveBroken, match="ends"):
            followed(data[:length]).close()


def test_an_archive_that_ends_between_two_tables_is_not_whole() -> None:
    data = archive()
    second = data.rindex(b"\x01" + number(13) + text("\\.\n"))
    with pytest.raises(ArchiveBroken, match="the data of 2 of its entries"):
        followed(data[:second]).close()


def test_what_comes_behind_the_end_is_noticed() -> None:
    with pytest.raises(ArchiveBroken, match="does not name"):
        followed(archive() + b"\x01" + number(99))
    with pytest.raises(ArchiveBroken, match="ends in the middle"):
        followed(archive() + b"\x01").close()


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"-- PostgreSQL database dump\n", "no archive"),
        (b"PGDMP\x01\x0e\x00\x04\x08\x03" + bytes(100), "not in the custom format"),
        (b"PGDMP\x01\x0b\x00\x04\x08\x01" + bytes(100), "1.11 are not known"),
        (b"PGDMP\x01\x0e\x00\x08\x08\x01" + bytes(100), "not known"),
    ],
)
def test_other_bytes_are_refused(data: bytes, says: str) -> None:
    with pytest.raises(ArchiveBroken, match=says):
        followed(data)


def test_a_format_newer_than_known_is_taken_by_its_head_and_its_last_bytes() -> None:
    newer = b"PGDMP\x01\x63\x00\x04\x08\x01" + bytes(50) + b"who knows"
    followed(newer + bytes(5)).close()
    with pytest.raises(ArchiveBroken, match="does not end as archives do"):
        followed(newer).close()
