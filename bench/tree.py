"""The data: a tree of real small files, copied from what this machine has, and changes to it."""

import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

SOURCES = ("/usr/share", "/usr/lib", "/usr/local", "/root/go/pkg/mod", "/opt")


def build(root: Path, *, files: int) -> tuple[int, int]:
    """Copy about `files` regular files below `root`, keeping folders; return (files, bytes)."""
    count = total = 0
    for source in _walk():
        if count >= files:
            break
        target = root / str(source).lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            shutil.copy2(source, target)
        except OSError:
            continue  # unreadable or gone: the next file serves as well
        count += 1
        total += target.stat().st_size
    return count, total


def _walk() -> Iterator[Path]:
    for top in SOURCES:
        for folder, names, files in os.walk(top):
            names.sort()
            for name in sorted(files):
                path = Path(folder, name)
                if not path.is_symlink() and path.is_file() and path.stat().st_size < 8 << 20:
                    yield path


def warm(root: Path) -> None:
    """Read everything once, so that every program finds it in memory."""
    for folder, _, files in os.walk(root):
        for name in files:
            Path(folder, name).read_bytes()


def change(root: Path, *, share: float, seed: int) -> int:
    """Append a line to `share` of the files, spread over the tree; return how many."""
    files = sorted(Path(folder, name) for folder, _, names in os.walk(root) for name in names)
    chosen = random.Random(seed).sample(files, int(len(files) * share))
    for path in chosen:
        with path.open("ab") as file:
            file.write(b"changed\n")
    return len(chosen)


def size(folder: Path) -> int:
    """Return the bytes of all files below a folder."""
    return sum(os.lstat(Path(at, name)).st_size for at, _, names in os.walk(folder) for name in names)
