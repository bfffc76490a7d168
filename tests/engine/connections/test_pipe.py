"""Named pipes: opened with patience, read to a proven end, never waited for without end."""

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.connections.pipe import Patience, PipeReader, PipeWriter, asked
from engine.errors import Canceled, SourceIncomplete, SourceUnavailable, TargetFailed, TargetUnavailable

SHORT = Patience(open_s=0.3, idle_s=0.3)
LONG = Patience(open_s=20, idle_s=20)


@pytest.fixture
def pipe(tmp_path: Path) -> str:
    path = tmp_path / "a pipe"
    os.mkfifo(path)
    return str(path)


@pytest.fixture
def wake() -> Iterator[tuple[int, int]]:
    read, write = os.pipe()
    yield read, write
    os.close(read)


def later(seconds: float, path: str, *parts: bytes) -> threading.Thread:
    """Write into the pipe, as another program does: begin after a while, and pause between the parts."""

    def write() -> None:
        time.sleep(seconds)
        with open(path, "wb", buffering=0) as file:
            for part in parts:
                file.write(part)
                time.sleep(seconds)

    thread = threading.Thread(target=write)
    thread.start()
    return thread


def all_of(reader: PipeReader) -> bytes:
    parts, view = [], memoryview(bytearray(100_000))
    while count := reader.readinto(view):
        parts.append(bytes(view[:count]))
    return b"".join(parts)


def test_a_pipe_is_read_to_the_end_that_its_writer_makes(pipe: str) -> None:
    reader = PipeReader(pipe, LONG)
    thread = later(0.15, pipe, b"first", os.urandom(300_000), b"last")
    data = all_of(reader)
    thread.join()
    reader.prove()
    assert (data[:5], data[-4:], len(data)) == (b"first", b"last", 300_009)
    reader.close()


def test_a_pipe_that_is_made_later_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "later"
    maker = threading.Timer(0.2, os.mkfifo, [path])
    maker.start()
    reader = PipeReader(str(path), LONG)
    maker.join()
    reader.close()


def test_a_writer_that_comes_and_goes_without_a_byte_has_made_an_end_that_proves_nothing(pipe: str) -> None:
    reader = PipeReader(pipe, LONG)
    later(0, pipe).join()
    assert all_of(reader) == b""
    with pytest.raises(SourceIncomplete, match="without a single byte"):
        reader.prove()
    reader.close()


def test_an_end_that_was_not_reached_is_not_proven(pipe: str) -> None:
    reader = PipeReader(pipe, LONG)
    thread = later(0, pipe, b"much")
    assert reader.readinto(memoryview(bytearray(2))) == 2
    with pytest.raises(SourceIncomplete, match="not read to its end"):
        reader.prove()
    reader.close()
    thread.join()


def test_a_pipe_that_nobody_opens_is_given_up(pipe: str) -> None:
    reader = PipeReader(pipe, SHORT)
    with pytest.raises(SourceUnavailable, match="nobody has opened"):
        all_of(reader)
    reader.close()


def test_a_writer_that_falls_silent_is_given_up(pipe: str) -> None:
    reader = PipeReader(pipe, SHORT._replace(open_s=20))
    thread = later(0.9, pipe, b"only this")
    with pytest.raises(SourceUnavailable, match="nothing has come"):
        all_of(reader)
    reader.close()
    thread.join()


def test_what_is_not_there_or_no_pipe_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceUnavailable, match="No such file"):
        PipeReader(str(tmp_path / "nothing"), SHORT)
    (tmp_path / "file").touch()
    with pytest.raises(SourceUnavailable, match="not a pipe"):
        PipeReader(str(tmp_path / "file"), SHORT)
    with pytest.raises(TargetUnavailable, match="not a pipe"):
        PipeWriter(str(tmp_path / "file"), SHORT)


def test_an_order_to_stop_wakes_whoever_waits(pipe: str, tmp_path: Path, wake: tuple[int, int]) -> None:
    read, write = wake
    assert not asked(read)
    assert not asked(-1)
    reader = PipeReader(pipe, LONG._replace(wake=read))
    stopping = threading.Timer(0.2, os.close, [write])
    stopping.start()
    with pytest.raises(Canceled):
        all_of(reader)
    assert asked(read)
    with pytest.raises(Canceled):
        PipeWriter(str(tmp_path / "nothing"), LONG._replace(wake=read))
    reader.close()
    stopping.join()


def test_a_reader_gets_all_that_is_written(pipe: str) -> None:
    data, found = os.urandom(3 << 20), []
    thread = threading.Thread(target=lambda: found.append(Path(pipe).read_bytes()))
    thread.start()
    writer = PipeWriter(pipe, LONG)
    writer.write(memoryview(data))
    writer.close()
    thread.join()
    assert found == [data]


def test_a_pipe_that_nobody_reads_is_given_up(pipe: str) -> None:
    with pytest.raises(TargetUnavailable, match="nobody opened it to read"):
        PipeWriter(pipe, SHORT)


def test_a_reader_that_takes_nothing_or_goes_is_noticed(pipe: str) -> None:
    fd = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    writer = PipeWriter(pipe, SHORT)
    with pytest.raises(TargetUnavailable, match="taken nothing"):
        writer.write(memoryview(bytes(8 << 20)))
    os.close(fd)
    with pytest.raises(TargetFailed, match="closed it before"):
        writer.write(memoryview(b"more"))
    writer.close()
