"""A program's output as a source: any dump program that writes to its standard output."""

import shutil
from collections.abc import Iterator

import msgspec

from engine.connections.process import IDLE_S, Output
from engine.entries import Entry, Problem
from engine.errors import ExtraMissing, SourceError
from engine.sources.port import BaseSource, Identity
from engine.sources.stream import StreamReader, stream_entry


class CommandSource(BaseSource, frozen=True, tag="command", kw_only=True):
    """What `argv` writes, kept as one file of the name `name`. No shell is involved: name one to have its grammar.

    A point comes about only when the program ends with 0 and, where one is given, `marker` stands in the last 64 KiB.
    `env` is added to a minimal environment (PATH, HOME, LANG, TMPDIR) and may hold secrets. Nothing written for
    `idle_s` counts as a program that hangs.
    """

    argv: tuple[str, ...]
    host: str
    name: str = "output"
    marker: str = ""
    env: dict[str, str] = {}
    idle_s: float = IDLE_S

    def __repr__(self) -> str:
        return f"CommandSource({self.name!r} of {self.argv[:1]!r})"

    def identity(self) -> Identity:
        """Return the program's command line as it was given."""
        return Identity("command", self.host, [" ".join(self.argv)])

    def options(self) -> dict[str, list[str]]:
        return {"command": list(self.argv), "marker": [self.marker] if self.marker else []}

    def check(self) -> None:
        """Raise SourceError for a name that is no file's, ExtraMissing for a program that is not there."""
        if not self.argv or not self.argv[0]:
            raise SourceError("no command was given: name the program and its arguments")
        if self.name in ("", ".", "..") or "/" in self.name or "\0" in self.name:
            raise SourceError(f"the output can't be kept as {self.name!r}: give it the name of a file, without '/'")
        if shutil.which(self.argv[0], path=self.env.get("PATH")) is None:
            raise ExtraMissing(
                f"the program {self.argv[0]!r} is not there on {self.host}: install it, or give its whole path"
            )

    def walk(self) -> Iterator[Entry | Problem]:
        yield stream_entry(self.name.encode())

    def open(self, entry: Entry) -> StreamReader | Problem:
        """Start the program. Its end is proven by its exit code and the marker."""
        output = Output(self.argv, env=self.env, idle_s=self.idle_s)
        return StreamReader(msgspec.structs.replace(entry), output, lambda: output.prove(marker=self.marker.encode()))
