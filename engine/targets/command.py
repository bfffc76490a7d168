"""A program's input as a target: what a dump program wrote goes into the program that loads it."""

import os
import shutil

from engine.connections.process import IDLE_S, Input
from engine.entries import Entry, Problem
from engine.errors import ExtraMissing, TargetError
from engine.targets.port import BaseTarget


class CommandTarget(BaseTarget, frozen=True, tag="command", kw_only=True):
    """Runs `argv` for each restored file, with the file's content as its standard input and its path in
    BACKUPSITE_PATH. The restore of a file is done when the program ends with 0. No shell is involved.
    """

    argv: tuple[str, ...]
    host: str
    env: dict[str, str] = {}
    idle_s: float = IDLE_S

    def __repr__(self) -> str:
        return f"CommandTarget({self.argv[:1]!r})"

    @property
    def one_by_one(self) -> bool:
        """Say yes: nothing tells whether two of the program may run at once."""
        return True

    def where(self) -> str:
        return f"the command {' '.join(self.argv)} on {self.host}"

    def check(self) -> None:
        """Raise TargetError without a command, ExtraMissing for a program that is not there."""
        if not self.argv or not self.argv[0]:
            raise TargetError("no command was given: name the program that takes what is restored")
        if shutil.which(self.argv[0], path=self.env.get("PATH")) is None:
            raise ExtraMissing(
                f"the program {self.argv[0]!r} is not there on {self.host}: install it, or give its whole path"
            )

    def create(self, entry: Entry) -> "CommandWriter":
        """Start the program."""
        env = self.env | {"BACKUPSITE_PATH": os.fsdecode(entry.path)}
        return CommandWriter(Input(self.argv, env=env, idle_s=self.idle_s))


class CommandWriter:
    """One run of the program (the Writer port)."""

    def __init__(self, program: Input) -> None:
        self._program = program

    def write(self, data: memoryview, offset: int) -> None:
        self._program.write(data)

    def commit(self) -> list[Problem]:
        """Close the program's input and wait for its end. Raises TargetFailed."""
        try:
            self._program.prove()
        finally:
            self._program.close()
        return []

    def abort(self) -> None:
        """End the program before it has all."""
        self._program.close()
