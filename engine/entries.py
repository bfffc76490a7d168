"""One entry of a recovery point, as sources yield it and targets take it (vault-format, section 5)."""

import enum

import msgspec

# The times that a listing can hold, 1896 to 2481; a source brings others to the nearer end.
TIME_MIN_NS, TIME_MAX_NS = -(1 << 61), (1 << 64) - (1 << 61) - 1


class Kind(enum.IntEnum):
    """What an entry is. Stored as one byte: never renumber."""

    FILE = 0
    DIRECTORY = 1
    SYMLINK = 2
    FIFO = 3
    CHARACTER_DEVICE = 4
    BLOCK_DEVICE = 5


class Extent(msgspec.Struct, array_like=True, gc=False, frozen=True):
    """A run of a file: `length` bytes that are the chunk `id` (16 bytes), or a hole when `id` is empty."""

    id: bytes
    length: int


def sort_key(path: bytes) -> bytes:
    """Return the bytes by which a path stands in a listing: what is in a folder comes right behind it."""
    return path.replace(b"/", b"\0")


class Entry(msgspec.Struct, array_like=True, gc=False):
    """One file, directory, link or device.

    `path`: raw bytes, absolute without the leading slash, components joined by b"/", never empty, "." or "..".
    Sorted by `path.replace(b"/", b"\\0")`, which is the order of a depth-first walk. Times are nanoseconds
    since 1970. `device` is the ordinal of the file system within the walk (0 = the first met), so that a
    reboot that renumbers devices changes nothing. Entries with `links` > 1 and equal (device, inode) are hard
    links of one file. `target` is a symlink's text, `rdev` a device's number. `xattrs` hold ACLs too.
    A walk leaves `target`, `xattrs` and `extents` empty; reading the entry fills them.
    """

    path: bytes
    kind: int
    mode: int = 0
    uid: int = 0
    gid: int = 0
    user: str = ""
    group: str = ""
    size: int = 0
    mtime_ns: int = 0
    ctime_ns: int = 0
    inode: int = 0
    device: int = 0
    links: int = 1
    rdev: int = 0
    target: bytes = b""
    xattrs: dict[bytes, bytes] = {}
    extents: list[Extent] = []

    @property
    def sort_key(self) -> bytes:
        """Return the bytes by which listings are ordered."""
        return sort_key(self.path)


class Problem(msgspec.Struct, array_like=True, gc=False, frozen=True):
    """One entry that was left out or may be inconsistent, and why.

    `reason` is one of: socket, unreadable, vanished, changed, other-file-system, unsafe-path, damaged, write-failed,
    attributes, exists, lag, archived, link (a share's link to elsewhere), adjusted (made otherwise than it was),
    password (a new one, told once), unverified (restored, not compared). `lost` tells whether the entry's content is
    missing from the result (then the job ends partial_complete); a skipped socket or a skipped mount is not a loss but
    is counted. `detail` is for people.
    """

    path: bytes
    reason: str
    detail: str = ""
    lost: bool = True


class Block(msgspec.Struct, array_like=True, gc=False):
    """One line of a root's block table.

    `groups`: names, statics, volatile, extents, each as the joined full ids of its chunks (one per PIECE_BYTES).
    `packs`: ordinals in the root's pack table of all packs the block needs, its own meta packs included.
    `newest_ns`: the latest mtime or ctime in it. `files` and `bytes` count its files.
    """

    first: bytes
    rows: int
    groups: list[bytes]
    packs: list[int]
    newest_ns: int
    files: int
    bytes: int
