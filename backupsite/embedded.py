"""What the embedded default makes once and keeps under its var folder: secrets and the broker's address."""

import os
import secrets
import socket
from pathlib import Path


def kept(path: Path, value: str) -> str:
    """Return the text kept in `path`; the first caller stores `value` there, readable by its owner only.

    Safe when several processes start at once: one creates the file, the others read it.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    aside = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    aside.touch(mode=0o600)
    aside.write_text(value + "\n")
    try:
        os.link(aside, path)
    except FileExistsError:
        pass  # another process or an earlier start was first: its value counts
    finally:
        aside.unlink()
    return path.read_text().strip()


def free_port() -> int:
    """Return a TCP port that nothing on loopback listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def broker_url(var: Path) -> str:
    """Return the address of the embedded Redis: loopback, its own port and password, both drawn once."""
    password = kept(var / "broker.password", secrets.token_urlsafe(24))
    port = kept(var / "broker.port", str(free_port()))
    return f"redis://:{password}@127.0.0.1:{port}/0"
