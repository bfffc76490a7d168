"""Where HANA's objects go back to: pipes that it made, files that come about whole or not at all."""

import os
import threading
from pathlib import Path

import pytest

from engine.entries import Entry, Kind
from engine.errors import TargetError, TargetUnavailable
from engine.targets.backint import BackintTarget

ENTRY = Entry(b"usr/sap/object", Kind.FILE)


def test_a_file_is_made_by_the_agent_for_its_user_alone_and_replaces_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "catalogue"
    path.write_bytes(b"old")
    target = BackintTarget(destination=str(path), is_pipe=False)
    writer = target.create(ENTRY)
    writer.write(memoryview(b"new "), 0)
    writer.write(memoryview(b"content"), 4)
    assert path.read_bytes() == b"old"
    assert writer.commit() == []
    assert path.read_bytes() == b"new content"
    assert path.stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == ["catalogue"]


def test_a_file_that_is_given_up_leaves_nothing(tmp_path: Path) -> None:
    writer = BackintTarget(destination=str(tmp_path / "new"), is_pipe=False).create(ENTRY)
    writer.write(memoryview(b"half"), 0)
    writer.abort()
    assert os.listdir(tmp_path) == []


def test_a_file_that_cannot_be_put_into_place_leaves_nothing_but_the_error(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    target = BackintTarget(destination=str(tmp_path / "taken"), is_pipe=False)
    with pytest.raises(OSError, match="directory"):
        target.write_small(ENTRY, b"content")
    assert os.listdir(tmp_path) == ["taken"]


@pytest.mark.parametrize("is_pipe", [True, False])
def test_a_pipe_that_hana_made_is_written_whatever_the_object_was(tmp_path: Path, is_pipe: bool) -> None:
    path, found = tmp_path / "pipe", []
    os.mkfifo(path)
    reader = threading.Thread(target=lambda: found.append(path.read_bytes()))
    reader.start()
    target = BackintTarget(destination=str(path), is_pipe=is_pipe, open_s=20)
    assert target.write_small(ENTRY, b"content") == []
    reader.join()
    assert found == [b"content"]


def test_a_pipe_that_is_not_there_is_never_made_as_a_file(tmp_path: Path) -> None:
    target = BackintTarget(destination=str(tmp_path / "pipe"), open_s=0.2)
    with pytest.raises(TargetUnavailable, match="can't be opened"):
        target.create(ENTRY)
    assert os.listdir(tmp_path) == []


def test_a_place_that_is_none_is_refused() -> None:
    for destination in ("", "relative", "/nul\0"):
        with pytest.raises(TargetError, match="absolute path"):
            BackintTarget(destination=destination).check()
