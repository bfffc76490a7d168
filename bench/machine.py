"""What was measured on, for the pages, and what a process costs."""

import datetime as dt
import os
import platform
from pathlib import Path


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def measured() -> str:
    """Return one line: when, and on what."""
    return (
        f"Measured on {dt.datetime.now(dt.UTC):%Y-%m-%d}, {cores()} cores, {platform.machine()}, "
        f"Linux {platform.release()}, Python {platform.python_version()}, load {os.getloadavg()[0]:.1f} at the end."
    )


def peak_bytes() -> int:
    """Return the most memory that this process has had since it began, without what it inherited."""
    return _status("VmHWM")


def anonymous_bytes() -> int:
    """Return the memory that this process alone holds now: mapped files, which the system may drop, don't count."""
    return _status("RssAnon")


def resident_bytes() -> int:
    """Return the memory of this process now, mapped files too."""
    return _status("VmRSS")


def _status(name: str) -> int:
    text = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith(name))
