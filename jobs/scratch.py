"""Folders of this machine for work that leaves nothing behind, not even when its process is killed.

Each folder has a lock file beside it, which the process holds for as long as it lives; whoever can take the lock knows
that nobody works there any more.
"""

import contextlib
import fcntl
import os
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

from django.conf import settings

_LOCK = ".lock"


@contextlib.contextmanager
def folder(purpose: str) -> Iterator[Path]:
    """Have an empty folder inside the block, for this user alone; those that dead processes left go first."""
    sweep()
    path, descriptor = _claim(purpose)
    lock = path.with_suffix(_LOCK)
    try:
        path.mkdir(mode=0o700)
        yield path
    finally:
        remove(path)
        lock.unlink(missing_ok=True)
        os.close(descriptor)


def _claim(purpose: str) -> tuple[Path, int]:
    """Return a fresh name and the descriptor that holds its lock; a sweep may be faster once or twice."""
    while True:
        path = Path(settings.SCRATCH_DIR) / f"{purpose}-{uuid.uuid4().hex}"
        descriptor = _locked(path.with_suffix(_LOCK), create=True)
        if descriptor is not None:
            return path, descriptor


def sweep() -> int:
    """Remove the folders of processes that are gone; return how many."""
    root = Path(settings.SCRATCH_DIR)
    root.mkdir(parents=True, exist_ok=True, mode=0o700)
    removed = 0
    for lock in root.glob(f"*{_LOCK}"):
        descriptor = _locked(lock, create=False)
        if descriptor is not None:
            remove(lock.with_suffix(""))
            lock.unlink(missing_ok=True)
            os.close(descriptor)
            removed += 1
    return removed


def remove(path: Path) -> None:
    """Remove a folder with all that is in it, however deep; restored folders may forbid their owner to look inside."""
    for command in (["rm", "-rf", "--"], ["chmod", "-R", "u+rwx", "--"], ["rm", "-rf", "--"]):
        if path.exists():
            subprocess.run([*command, path], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)


def _locked(path: Path, *, create: bool) -> int | None:
    """Return a descriptor that holds the lock, None when another process does or the file is gone."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if create else 0), 0o600)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor
