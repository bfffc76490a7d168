"""What tests of sources share."""

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest


@pytest.fixture
def mount() -> Iterator[Callable[[Path], None]]:
    """Give a way to mount an empty file system at a folder; what is still mounted at the end is unmounted."""
    mounted: list[Path] = []

    def make(folder: Path) -> None:
        done = subprocess.run(["mount", "-t", "tmpfs", "tmpfs", folder], capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"mounting is not permitted here: {done.stderr.strip()}")
        mounted.append(folder)

    yield make
    for folder in reversed(mounted):
        if os.path.ismount(folder):
            subprocess.run(["umount", folder], check=True)
