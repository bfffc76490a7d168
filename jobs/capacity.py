"""How much the disks that are attached to this machine hold (C45)."""

from pathlib import Path

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
