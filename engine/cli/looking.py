"""What ls and cat share: opening a point, naming its entries."""

import datetime as dt
import stat
from typing import Any

from engine.browse import Browser
from engine.cli.opening import checking_input, opener
from engine.cli.options import Opening
from engine.cli.output import path_fields, shown
from engine.entries import Entry, Kind
from engine.vault import PointName, Vault, check_series

_TYPES = {
    Kind.FILE: stat.S_IFREG,
    Kind.DIRECTORY: stat.S_IFDIR,
    Kind.SYMLINK: stat.S_IFLNK,
    Kind.FIFO: stat.S_IFIFO,
    Kind.CHARACTER_DEVICE: stat.S_IFCHR,
    Kind.BLOCK_DEVICE: stat.S_IFBLK,
}


def find_point(vault: Vault, *, point: str, series: str) -> PointName:
    """Return the point that was meant. Raises PointMissing, WrongUsage."""
    if series:
        with checking_input():
            check_series(series)
    return vault.find(point, series=series or None)


def open_point(options: Opening, *, point: str, series: str) -> Browser:
    """Open the vault and the point that was meant."""
    vault = opener(options).vault
    return Browser.open(vault, find_point(vault, point=point, series=series))


def entry_line(entry: Entry) -> str:
    """Return a line like those of `ls -l`."""
    mode = stat.filemode(_TYPES[Kind(entry.kind)] | (entry.mode & 0o7777))
    owner, group = entry.user or str(entry.uid), entry.group or str(entry.gid)
    when = dt.datetime.fromtimestamp(entry.mtime_ns // 10**9, dt.UTC).astimezone().strftime("%Y-%m-%d %H:%M")
    target = f" -> {shown(entry.target)}" if entry.kind == Kind.SYMLINK else ""
    name = shown(entry.path.rpartition(b"/")[2])
    return f"{mode} {entry.links:>3} {owner:<8} {group:<8} {entry.size:>13,} {when} {name}{target}"


def entry_fields(entry: Entry) -> dict[str, Any]:
    """Return an entry for JSON."""
    fields = {
        **path_fields(entry.path), "kind": Kind(entry.kind).name.lower(), "mode": f"{entry.mode & 0o7777:04o}",
        "uid": entry.uid, "gid": entry.gid, "user": entry.user, "group": entry.group,
        "size": entry.size, "mtime_ns": entry.mtime_ns, "links": entry.links,
    }  # fmt: skip
    if entry.kind == Kind.SYMLINK:
        fields["target"] = entry.target.decode("utf-8", "backslashreplace")
    return fields
