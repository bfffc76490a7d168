"""Sources and targets that no path can name, described by a JSON file: {"type": "command", "argv": [...], ...}."""

import stat
from pathlib import Path
from typing import Any

import msgspec

from engine.cli.output import WrongUsage


def load(path: Path, kinds: Any) -> Any:
    """Return the source or target that the file describes. Raises WrongUsage with the place of the mistake.

    The file may hold passwords: one that others can read is refused.
    """
    try:
        if path.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH):
            raise WrongUsage(f"{path} may hold passwords and can be read by others: run `chmod 600 {path}`")
        return msgspec.json.decode(path.read_bytes(), type=kinds)
    except OSError as error:
        raise WrongUsage(f"{path} can't be read: {error.strerror}") from error
    except msgspec.DecodeError as error:
        raise WrongUsage(f"{path} does not describe a source or target: {error}") from error
