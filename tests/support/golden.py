"""Make the golden vault of the format that this program writes: `python -m tests.support.golden FOLDER EMPTY`.

Run once for each format, with the first version that writes it; what it made is kept for ever and never made again.
"""

import hashlib
import json
import os
import sys
import tarfile
from pathlib import Path

from engine.entries import Entry
from engine.storage import Directory
from engine.vault import FORMAT, PointName, Vault
from tests.support.vaults import Bench, entries, write_files


def describe(vault: Vault, name: PointName) -> list[list[object]]:
    """Return what a point holds, as JSON: every entry's fields, its content or, if long, its SHA-256."""
    fetcher = vault.fetcher(vault.root(name))

    def content(entry: Entry) -> str:
        parts = [fetcher.chunks([e.id])[0] if e.id else bytes(e.length) for e in entry.extents]
        data = b"".join(parts)
        return data.decode("latin-1") if len(data) < 1000 else hashlib.sha256(data).hexdigest()

    return [
        [
            row.path.decode("latin-1"), int(row.kind), row.mode, row.uid, row.gid, row.size, row.mtime_ns, row.links,
            row.target.decode("latin-1"), {k.decode("latin-1"): v.decode("latin-1") for k, v in row.xattrs.items()},
            [[extent.length, not extent.id] for extent in row.extents], content(row),
        ]
        for row in entries(vault, name)
    ]  # fmt: skip


def make_tree(folder: Path) -> Path:
    """Make a few files that use every field of a listing."""
    write_files(folder, {"a/one.txt": b"The first golden file.\n" * 30, "a/two": bytes(range(256)), "empty": b""})
    (folder / "large").write_bytes(b"".join(b"line %07d of a larger file\n" % number for number in range(30_000)))
    with (folder / "holes").open("wb") as file:
        file.write(b"start")
        file.seek(1 << 20)
        file.write(b"end")
    (folder / "link").symlink_to("a/one.txt")
    (folder / "hard").hardlink_to(folder / "a/two")
    (folder / "folder").mkdir(mode=0o750)
    os.mkfifo(folder / "fifo")
    Path(os.fsdecode(os.fsencode(folder) + b"/n\xff\nn")).write_bytes(b"odd name")
    os.setxattr(folder / "a/one.txt", "user.note", b"kept")
    return folder


def make(target: Path, work: Path) -> None:
    """Write vault-<format>.tar, .keys and .json into `target`; `work` is an empty folder."""
    (work / "vault").mkdir()
    bench = Bench(Directory(work / "vault"))
    folder = make_tree(work / "home")
    bench.back_up(folder)
    (folder / "later").write_bytes(b"second point")
    bench.back_up(folder)
    vault = bench.open()
    expected = {name.point: describe(vault, name) for name in vault.points()}
    stem = target / f"vault-{FORMAT}"
    bench.ring.save(stem.with_suffix(".keys"))
    with stem.with_suffix(".keys").open("a") as file:
        file.write(f"# {bench.recovery}\n")
    stem.with_suffix(".json").write_text(json.dumps(expected, indent=0) + "\n")
    with tarfile.open(stem.with_suffix(".tar"), "w") as tar:
        for path in sorted((work / "vault").rglob("*")):
            if path.is_file():
                tar.add(path, str(path.relative_to(work / "vault")))


if __name__ == "__main__":
    make(Path(sys.argv[1]), Path(sys.argv[2]))
