"""`python -m engine` on one vault in a folder, with sources and targets given as described structs."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec

from engine.sources.kinds import AnySource
from engine.targets.kinds import AnyTarget


class EngineProgram:
    """One vault, its key file and cache, all in `folder`; every call is a process of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.vault = folder / "vault"
        self._described = 0
        self._env = {
            **{name: value for name, value in os.environ.items() if not name.startswith("AWS_")},
            "BACKUPSITE_KEY_FILE": str(folder / "service.key"),
            "BACKUPSITE_CACHE_DIR": str(folder / "cache"),
        }
        self.run("init")

    def start(self, verb: str, *arguments: str) -> "subprocess.Popen[bytes]":
        """Start a command in a session of its own."""
        command = [sys.executable, "-m", "engine", verb, str(self.vault), *arguments, "--json"]
        return subprocess.Popen(
            command, env=self._env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
        )

    def run(self, verb: str, *arguments: str, expect: int = 0) -> Any:
        """Run a command to its end; return its JSON document, or what it said on failure."""
        return ended(self.start(verb, *arguments), expect=expect)

    def backing_up(self, source: AnySource, *, series: str = "home") -> "subprocess.Popen[bytes]":
        """Start a backup."""
        return self.start("backup", "--source", self._file(source), "--series", series, "--workers", "2")

    def back_up(self, source: AnySource, *, series: str = "home", expect: int = 0) -> Any:
        """Back up to the end; return the document, or what was said on failure."""
        return ended(self.backing_up(source, series=series), expect=expect)

    def restore(self, target: AnyTarget, *, point: str, expect: int = 0) -> Any:
        """Restore to the end; return the document, or what was said on failure."""
        return self.run("restore", point, "--target", self._file(target), "--workers", "1", expect=expect)

    def points(self, series: str) -> list[str]:
        """Return the ids of the points of a series."""
        return [point["point"] for point in self.run("points", "--series", series)["points"]]

    def stored(self) -> set[str]:
        """Return the name of every object in the vault."""
        return {str(path.relative_to(self.vault)) for path in self.vault.rglob("*") if path.is_file()}

    def _file(self, described: AnySource | AnyTarget) -> str:
        self._described += 1
        path = self.folder / f"described-{self._described}.json"
        path.touch(0o600)
        path.write_bytes(msgspec.json.encode(described))
        return str(path)


def ended(process: "subprocess.Popen[bytes]", *, expect: int) -> Any:
    """Wait for a command; return its JSON document, or what it said on failure."""
    out, err = process.communicate(timeout=100)
    said = err.decode(errors="replace")
    assert "Traceback" not in said, said
    assert process.returncode == expect, (process.returncode, out[-2000:], said[-2000:])
    if not out.strip():
        return said
    document = json.loads(out)
    return document["error"]["message"] if "error" in document else document


def killed(process: "subprocess.Popen[bytes]") -> None:
    """Kill a command and its workers."""
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=30)
