"""What the disks of this machine hold, and where their volumes are mounted (C23, C45)."""

from pathlib import Path

from engine.sources.mounts import own_volumes

_SECTOR_BYTES = 512  # in /sys, whatever the disk's own sectors are
# Optical and floppy drives: what lies in them is not the machine's.
_DRIVES = ("sr", "fd")


def attached_bytes(block: Path = Path("/sys/block")) -> int:
    """Return the capacity of all block devices but virtual ones (loop, RAM, device mapper, RAID) and drives, in bytes.

    0 where the system does not tell, as in some containers and outside Linux.
    """
    total = 0
    try:
        devices = sorted(block.iterdir())
    except OSError:
        return 0
    for device in devices:
        try:
            if "/virtual/" in str(device.resolve()) or device.name.startswith(_DRIVES):
                continue
            total += int((device / "size").read_text()) * _SECTOR_BYTES
        except (OSError, ValueError):
            continue  # it was unplugged just now
    return total


def volumes() -> list[str]:
    """Return where this machine's volumes are mounted; those whose names are no text are left out (C23)."""
    found = []
    for path in own_volumes():
        try:
            found.append(path.decode())
        except UnicodeDecodeError:
            continue
    return found
