"""Trees of files to back up: hostile ones from hypothesis, large ones for benches; and how two of them differ."""

import dataclasses
import hashlib
import os
import random
import socket
import stat
import struct
from collections.abc import Callable
from pathlib import Path

from hypothesis import strategies as st

AS_ROOT = os.geteuid() == 0
_BLOCK = 4096
_SECOND = 1_000_000_000
# What ext4 can hold: December 1901 to May 2446.
_TIMES = st.integers(-2_147_483_648 * _SECOND, 15_032_385_535 * _SECOND)


@dataclasses.dataclass(frozen=True)
class Node:
    """One thing of a tree. `kind`: file, folder, symlink, hardlink, fifo, socket or device."""

    kind: str
    mode: int = 0o644
    data: tuple[tuple[int, bytes], ...] = ()
    size: int = 0
    target: bytes = b""
    mtime_ns: int = 0
    owner: tuple[int, int] | None = None
    xattrs: tuple[tuple[bytes, bytes], ...] = ()


Tree = dict[bytes, Node]

_NASTY_NAMES = st.sampled_from(
    [
        b"-rf",
        b"--",
        b" ",
        b"trailing ",
        b"new\nline",
        b"\xff\xfe",
        b"caf\xc3\xa9",
        b"cafe\xcc\x81",
        b"a" * 255,
        b"\xc3\xa9" * 127,
        b"*",
        b"!x",
        b"#recycle",
        b"...",
        b".hidden",
        b"\\back\\slash",
        b"a",
        b"a!",
        b"a.b",
        b"\x01",
        b"\x7f",
        b"~",
        b"$(id)",
        b"%2e%2e",
        b"CON",
        b".x.backupsite-part",
    ]
)
_ANY_NAMES = st.binary(min_size=1, max_size=12).map(lambda raw: raw.replace(b"/", b"s").replace(b"\0", b"n"))
NAMES = st.one_of(_NASTY_NAMES, _ANY_NAMES).filter(lambda name: name not in (b".", b".."))
_MODES = st.one_of(st.sampled_from([0o644, 0o755, 0o4755, 0o2755, 0o1777, 0o0, 0o7777]), st.integers(0, 0o7777))


def acl(user: int, permissions: int) -> bytes:
    """Return the value of a system.posix_acl_access that gives one more user rights."""
    undefined = 0xFFFFFFFF
    rows = [(0x01, 6, undefined), (0x02, permissions, user), (0x04, 4, undefined), (0x10, 7, undefined)]
    rows.append((0x20, 0, undefined))
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *row) for row in rows)


def _xattrs() -> st.SearchStrategy[tuple[tuple[bytes, bytes], ...]]:
    user = st.tuples(st.sampled_from([b"user.note", b"user.\xff odd"]), st.binary(max_size=40))
    rights = st.builds(
        lambda uid, bits: (b"system.posix_acl_access", acl(uid, bits)), st.integers(1, 9), st.integers(0, 7)
    )
    return st.lists(st.one_of(user, rights), max_size=2, unique_by=lambda pair: pair[0]).map(tuple)


def _common() -> dict[str, st.SearchStrategy[object]]:
    owner = st.tuples(st.integers(0, 70_000), st.integers(0, 70_000))
    return {"mode": _MODES, "mtime_ns": _TIMES, "owner": st.none() | owner if AS_ROOT else st.none()}


@st.composite
def _files(draw: st.DrawFn) -> Node:
    """Draw a file: empty, small, or sparse with holes at its start, middle or end."""
    rest = {name: draw(strategy) for name, strategy in _common().items()}
    shape = draw(st.sampled_from(["empty", "small", "small", "sparse", "hole"]))
    pieces: list[tuple[int, bytes]] = []
    size = 0
    if shape == "small":
        content = draw(st.binary(min_size=1, max_size=300))
        pieces, size = [(0, content)], len(content)
    elif shape == "hole":
        size = draw(st.integers(1, 64 * _BLOCK))
    elif shape == "sparse":
        for block in sorted(draw(st.sets(st.integers(0, 60), min_size=1, max_size=4))):
            pieces.append((block * _BLOCK, draw(st.binary(min_size=1, max_size=20)) * draw(st.sampled_from([1, 300]))))
        size = pieces[-1][0] + len(pieces[-1][1]) + draw(st.sampled_from([0, 1, 5 * _BLOCK]))
    return Node("file", data=tuple(pieces), size=size, xattrs=draw(_xattrs()), **rest)  # type: ignore[arg-type] # drawn


@st.composite
def _others(draw: st.DrawFn) -> Node:
    rest = {name: draw(strategy) for name, strategy in _common().items()}
    kinds = ["symlink", "symlink", "fifo", "socket"] + (["device"] if AS_ROOT else [])
    kind = draw(st.sampled_from(kinds))
    targets = st.sampled_from(
        [b"/etc/passwd", b"nowhere", b"..", b".", b"../../../..", b"\xff", b"a", b"/" + b"x" * 999]
    )
    target = draw(targets) if kind == "symlink" else b""
    return Node(kind, target=target, **rest)  # type: ignore[arg-type] # drawn


@st.composite
def trees(draw: st.DrawFn, max_size: int = 12) -> Tree:
    """Draw a hostile tree: path below its root -> Node, folders before what is in them."""
    tree: Tree = {}
    folders = [b""]
    files: list[bytes] = []
    for _ in range(draw(st.integers(0, max_size))):
        parent = draw(st.sampled_from(folders))
        name = draw(NAMES)
        path = parent + b"/" + name if parent else name
        if path in tree:
            continue
        kind = draw(st.sampled_from(["folder", "file", "file", "other", "hardlink"]))
        if kind == "folder":
            rest = {key: draw(strategy) for key, strategy in _common().items()}
            tree[path] = Node("folder", xattrs=draw(_xattrs()), **rest)  # type: ignore[arg-type] # drawn
            folders.append(path)
        elif kind == "hardlink" and files:
            tree[path] = Node("hardlink", target=draw(st.sampled_from(files)))
        elif kind == "other":
            tree[path] = draw(_others())
        else:
            tree[path] = draw(_files())
            files.append(path)
    return tree


def _place(root: bytes, path: bytes) -> tuple[int, bytes]:
    """Return (descriptor of the folder around `path`, name): paths may be longer than PATH_MAX."""
    components = path.split(b"/")
    fd = os.open(root, os.O_RDONLY)
    for name in components[:-1]:
        below = os.open(name, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=fd)
        os.close(fd)
        fd = below
    return fd, components[-1]


def _make(fd: int, name: bytes, node: Node, *, root: bytes) -> None:
    if node.kind == "folder":
        os.mkdir(name, 0o700, dir_fd=fd)
    elif node.kind == "file":
        file = os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600, dir_fd=fd)
        for offset, data in node.data:
            os.pwrite(file, data, offset)
        os.ftruncate(file, node.size)
        os.close(file)
    elif node.kind == "symlink":
        os.symlink(node.target, name, dir_fd=fd)
    elif node.kind == "hardlink":
        other, first = _place(root, node.target)
        os.link(first, name, src_dir_fd=other, dst_dir_fd=fd, follow_symlinks=False)
        os.close(other)
    elif node.kind == "fifo":
        os.mkfifo(name, 0o600, dir_fd=fd)
    elif node.kind == "socket":
        with socket.socket(socket.AF_UNIX) as end:
            end.bind(b"/proc/self/fd/%d/%s" % (fd, name)) if len(name) < 80 else os.mkfifo(name, dir_fd=fd)
    elif node.kind == "device":
        os.mknod(name, stat.S_IFCHR | 0o600, os.makedev(1, 3), dir_fd=fd)
    else:
        raise AssertionError(node.kind)


def _dress(fd: int, name: bytes, node: Node) -> None:
    """Give a made thing its owner, xattrs, mode and times."""
    if node.owner is not None:
        os.chown(name, *node.owner, dir_fd=fd, follow_symlinks=False)
    for key, value in node.xattrs:
        try:
            os.setxattr(b"/proc/self/fd/%d/%s" % (fd, name), key, value, follow_symlinks=False)
        except OSError:
            continue  # this file system keeps none: the tree is what it could be made
    if node.kind != "symlink":
        needed = {"folder": 0o700, "file": 0o400}.get(node.kind, 0)
        os.chmod(name, node.mode if AS_ROOT else node.mode | needed, dir_fd=fd)
    os.utime(name, ns=(node.mtime_ns, node.mtime_ns), dir_fd=fd, follow_symlinks=False)


def build(tree: Tree, root: Path | bytes) -> None:
    """Make `tree` below the existing folder `root`."""
    top = os.fsencode(root)
    for path, node in tree.items():
        fd, name = _place(top, path)
        _make(fd, name, node, root=top)
        os.close(fd)
    for path, node in reversed(tree.items()):
        if node.kind != "hardlink":
            fd, name = _place(top, path)
            _dress(fd, name, node)
            os.close(fd)


def build_deep(root: Path | bytes, *, levels: int = 20, width: int = 255) -> bytes:
    """Make folders of `width`-byte names in each other, a file in the last; return the file's path below `root`."""
    components = [b"%03d" % level + b"d" * (width - 3) for level in range(levels)]
    tree = {b"/".join(components[: count + 1]): Node("folder", 0o755) for count in range(levels)}
    deepest = b"/".join([*components, b"file"])
    tree[deepest] = Node("file", data=((0, b"deep"),), size=4)
    build(tree, root)
    return deepest


def build_real(root: Path | bytes, *, files: int, seed: int = 0, per_folder: int = 40) -> int:
    """Make `files` small files of text-like data, of the sizes a home folder has; return their bytes in total."""
    top = os.fsencode(root)
    numbers = random.Random(seed)
    words = [bytes(numbers.choices(range(97, 123), k=numbers.randint(2, 9))) for _ in range(2000)]
    text = b" ".join(numbers.choices(words, k=400_000))
    total = 0
    for number in range(files):
        folder = b"%s/%02d/%03d" % (top, number // per_folder // 100, number // per_folder % 100)
        if number % per_folder == 0:
            os.makedirs(folder, exist_ok=True)
        size = min(int(numbers.lognormvariate(8.0, 1.6)), 400_000)
        start = numbers.randrange(len(text) - size) if size < len(text) else 0
        with open(folder + b"/%05d.txt" % number, "wb") as file:
            file.write(text[start : start + size])
        total += size
    return total


def _content(fd: int, size: int) -> tuple[str, list[tuple[int, int]]]:
    """Return (digest, runs of data) of an open file; a file below one block counts as one run."""
    digest = hashlib.blake2b(digest_size=16)
    offset = 0
    while block := os.pread(fd, 1 << 20, offset):
        digest.update(block)
        offset += len(block)
    if size < _BLOCK or not hasattr(os, "SEEK_DATA"):
        return digest.hexdigest(), [(0, size)]
    runs = []
    at = 0
    while at < size:
        try:
            data = os.lseek(fd, at, os.SEEK_DATA)
        except OSError:
            break
        at = os.lseek(fd, data, os.SEEK_HOLE)
        runs.append((data, at))
    return digest.hexdigest(), runs


def _extended(fd: int, name: bytes) -> dict[str, bytes]:
    place = b"/proc/self/fd/%d/%s" % (fd, name)
    try:
        names = os.listxattr(place, follow_symlinks=False)
        return {key: os.getxattr(place, key, follow_symlinks=False) for key in names}
    except (OSError, AttributeError):
        return {}


Facts = dict[str, object]


def _look(fd: int, name: bytes, status: os.stat_result) -> Facts:
    facts: Facts = {
        "type": stat.S_IFMT(status.st_mode),
        "mode": oct(stat.S_IMODE(status.st_mode)),
        "owner": (status.st_uid, status.st_gid),
        "mtime_ns": status.st_mtime_ns,
        "xattrs": _extended(fd, name),
    }
    if stat.S_ISREG(status.st_mode):
        file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=fd)
        facts["size"] = status.st_size
        facts["content"], facts["runs"] = _content(file, status.st_size)
        os.close(file)
    elif stat.S_ISLNK(status.st_mode):
        facts["target"] = os.readlink(name, dir_fd=fd)
    elif stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode):
        facts["rdev"] = status.st_rdev
    return facts


def snapshot(root: Path | bytes, *, sockets: bool = False) -> dict[bytes, Facts]:
    """Return what lstat, content, holes, links and xattrs tell of everything below `root`. No code of the engine's."""
    found: dict[bytes, Facts] = {}
    links: dict[tuple[int, int], bytes] = {}

    def visit(fd: int, prefix: bytes) -> None:
        for text in sorted(os.listdir(fd), key=os.fsencode):
            name = os.fsencode(text)
            path = prefix + name
            status = os.stat(name, dir_fd=fd, follow_symlinks=False)
            if stat.S_ISSOCK(status.st_mode) and not sockets:
                continue
            found[path] = _look(fd, name, status)
            if stat.S_ISDIR(status.st_mode):
                below = os.open(name, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=fd)
                visit(below, path + b"/")
                os.close(below)
            else:
                found[path]["link of"] = links.setdefault((status.st_dev, status.st_ino), path)

    top = os.open(root, os.O_RDONLY)
    visit(top, b"")
    os.close(top)
    return found


def difference(
    left: dict[bytes, Facts],
    right: dict[bytes, Facts],
    *,
    ignore: Callable[[bytes, str], bool] = lambda path, fact: False,
) -> list[str]:
    """Return one readable line for each thing in which two snapshots differ; `ignore(path, fact)` leaves some out."""
    lines = []
    for path in sorted(left.keys() | right.keys()):
        if path not in left or path not in right:
            lines.append(f"{path!r}: only in the {'left' if path in left else 'right'}")
            continue
        for fact in sorted(left[path].keys() | right[path].keys()):
            a, b = left[path].get(fact), right[path].get(fact)
            if a != b and not ignore(path, fact):
                lines.append(f"{path!r}: {fact} is {a!r} in the left, {b!r} in the right")
    return lines
