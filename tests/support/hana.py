"""A stand-in for SAP HANA at the other end of the Backint agent: it makes pipes, writes and reads them as HANA does.

All pipes of a call are open at once, and none is written before the last one is: an agent that holds one back never
gets further. No agent makes this wait for ever: it opens pipes without blocking, and gives up when the agent has ended.
"""

import contextlib
import hashlib
import os
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from engine.keyproviders.keyring import Keyring
from engine.keyproviders.spec import KeySpec
from engine.runner import VaultOpener
from engine.storage.location import Location, open_storage
from engine.vault import Vault
from tests.services import S3
from tests.support.kills import clock

PROGRAM = Path(__file__).parents[2] / "deploy" / "hdbbackint"
SOFTWARE = 'SOFTWAREID "backint {}" "hdbindexserver 2.00.076"'
_WAIT_S = 60.0
_STEP_S = 0.01


class Answer(NamedTuple):
    """How a call of the agent ended: its exit code, its lines behind #SOFTWAREID, its log."""

    code: int
    lines: list[str]
    log: str


class Call:
    """One call of the agent that is under way."""

    def __init__(self, process: "subprocess.Popen[bytes]", out: Path, log: Path) -> None:
        self.process, self._out, self._log = process, out, log

    @property
    def has_ended(self) -> bool:
        return self.process.poll() is not None

    def lines(self) -> list[str]:
        """Return what stands in the output so far."""
        return self._out.read_text().splitlines() if self._out.exists() else []

    def signal(self, number: int) -> None:
        """Signal the agent alone, not what it started."""
        self.process.send_signal(number)

    def end(self, timeout_s: float = _WAIT_S) -> Answer:
        """Wait for the end of the call."""
        _, errors = self.process.communicate(timeout=timeout_s)
        log = self._log.read_text() if self._log.exists() else ""
        lines = self.lines()
        assert "Traceback" not in errors.decode() + log, errors.decode() + log
        if lines:
            assert lines[0].startswith('#SOFTWAREID "backint ')
        return Answer(self.process.returncode, lines[1:], errors.decode() + log)


class Hana:
    """One database with its own agent, called through a link as HANA does."""

    def __init__(self, folder: Path, parameters: str, *, database: str = "SYSTEMDB@HDB") -> None:
        self.folder, self.database = folder, database
        folder.mkdir(parents=True, exist_ok=True)
        self.parameters = folder / "hdbbackint.toml"
        self.log = folder / "agent.log"
        self.write(parameters)
        self.agent = folder / "opt" / "hdbbackint"
        self.agent.parent.mkdir(exist_ok=True)
        if not self.agent.exists():
            self.agent.symlink_to(PROGRAM)
        self.pipes = folder / "usr/sap/HDB/SYS/global/hdb/backint" / database.partition("@")[0]
        self.pipes.mkdir(parents=True, exist_ok=True)
        self._calls = 0

    def write(self, parameters: str, **more: object) -> None:
        """Write the parameter file; `more` are its numbers."""
        numbers = "".join(f"{name} = {value}\n" for name, value in more.items())
        # Tables come last in TOML.
        top, table, rest = parameters.partition("[s3]")
        own = f'log_file = "{self.log}"\ncache_dir = "{self.folder / "cache"}"\n'
        self.parameters.write_text(f"{top}{own}{numbers}{table}{rest}")

    def name(self, last: str) -> str:
        """Return HANA's full name of an object."""
        return str(self.pipes / last)

    def call(self, function: str, lines: Sequence[str], *, version: str = "1.50", level: str = "COMPLETE") -> Call:
        """Start the agent with these lines of input."""
        self._calls += 1
        inputs, output = self.folder / f"in-{self._calls}", self.folder / f"out-{self._calls}"
        inputs.write_text("\n".join([f"#{SOFTWARE.format(version)}", "a comment", *lines, ""]))
        command = [
            str(self.agent), "-u", self.database, "-f", function, "-i", str(inputs), "-o", str(output),
            "-p", str(self.parameters), "-s", "1634567890123", "-c", str(len(lines)), "-l", level,
        ]  # fmt: skip
        # HANA's own libraries and modules are in its environment.
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "PYTHON"))},
            "BACKUPSITE_PYTHON": sys.executable, "LD_LIBRARY_PATH": "/nonexistent", "PYTHONHOME": "/nonexistent",
        }  # fmt: skip
        process = subprocess.Popen(
            command, cwd="/", env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        return Call(process, output, self.log)

    def ask(self, function: str, lines: Sequence[str], *, version: str = "1.50") -> Answer:
        """Call the agent and wait for its end."""
        return self.call(function, lines, version=version).end()

    def back_up(self, contents: Mapping[str, bytes], *, level: str = "COMPLETE") -> Answer:
        """Back these objects up, each through a pipe, all written at once."""
        lines = [f'#PIPE "{self.name(last)}" {len(data) + 4096}' for last, data in contents.items()]
        with self.made(contents):
            call = self.call("backup", lines, level=level)
            gate = threading.Barrier(len(contents))
            _at_once([_writing(self.name(last), data, call, gate) for last, data in contents.items()])
            return call.end()

    def restore(
        self, lines: Sequence[str], lasts: Sequence[str], *, one_by_one: bool = False
    ) -> tuple[Answer, dict[str, str]]:
        """Restore into pipes of these names; return the answer and the SHA-256 of what came through each."""
        found: dict[str, str] = {}
        with self.made(lasts):
            call = self.call("restore", lines)
            reading = [_reading(self.name(last), last, found, call) for last in lasts]
            if one_by_one:
                for read in reading:
                    read()
            else:
                _at_once(reading)
            return call.end(), found

    @contextlib.contextmanager
    def made(self, lasts: Mapping[str, bytes] | Sequence[str]) -> Iterator[None]:
        """Make pipes, and remove them."""
        for last in lasts:
            os.mkfifo(self.name(last), 0o600)
        yield
        for last in lasts:
            os.unlink(self.name(last))


def new_vault(
    folder: Path, service: S3 | None = None, bucket: str = "", *, endpoint: str = ""
) -> tuple[VaultOpener, str]:
    """Make a vault with its key file; return what opens it here, and the parameters that lead the agent to it."""
    ring = Keyring.generate()
    key = folder / "service.key"
    key.touch(0o600)
    key.write_text(ring.text())
    if service is None:
        place, where = Location.parse(str(folder / "vault")), f'vault = "{folder / "vault"}"\nkey_file = "{key}"\n'
    else:
        secret = folder / "s3.secret"
        secret.touch(0o600)
        secret.write_text(service.secret_key)
        place = Location.parse(
            f"s3://{bucket}/vault", endpoint=service.url, access_key=service.access_key,
            secret_key=service.secret_key, region=service.region,
        )  # fmt: skip
        where = (
            f'vault = "s3://{bucket}/vault"\nkey_file = "{key}"\n\n[s3]\nendpoint = "{endpoint or service.url}"\n'
            f'access_key = "{service.access_key}"\nsecret_key_file = "{secret}"\nregion = "{service.region}"\n'
        )
    Vault.create(open_storage(place, create=True), providers=[ring], now=clock())
    return VaultOpener(location=place, key=KeySpec.parse("keyring:", secret=ring.text())), where


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def opened(path: str, flag: int, call: Call) -> int:
    """Open a pipe without blocking, once the agent has its other end; -1 when the agent ended instead."""
    deadline_s = time.monotonic() + _WAIT_S
    while time.monotonic() < deadline_s:
        try:
            return os.open(path, flag | os.O_NONBLOCK)
        except OSError:
            if call.has_ended:
                return -1
            time.sleep(_STEP_S)
    raise AssertionError(f"the agent has not opened {path}")


def written(fd: int, data: bytes, call: Call) -> bool:
    """Write all of it; False when the agent closed the pipe."""
    view = memoryview(data)
    while view:
        select.select([], [fd], [], 0.2)
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            if call.has_ended:
                return False
        except BrokenPipeError:
            return False
    return True


def _writing(path: str, data: bytes, call: Call, gate: threading.Barrier) -> Callable[[], None]:
    def write() -> None:
        fd = opened(path, os.O_WRONLY, call)
        if fd < 0:
            gate.abort()
            return
        with contextlib.suppress(threading.BrokenBarrierError):
            gate.wait(_WAIT_S)
        written(fd, data, call)
        os.close(fd)

    return write


def _reading(path: str, last: str, found: dict[str, str], call: Call) -> Callable[[], None]:
    def read() -> None:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        hasher, has_begun = hashlib.sha256(), False
        while True:
            select.select([fd], [], [], 0.05)
            try:
                data = os.read(fd, 1 << 20)
            except BlockingIOError:
                has_begun = True
                continue
            hasher.update(data)
            has_begun = has_begun or bool(data)
            if not data and (has_begun or call.has_ended):
                break
            if not data:
                time.sleep(_STEP_S)
        os.close(fd)
        if has_begun:
            found[last] = hasher.hexdigest()

    return read


def _at_once(acts: Sequence[Callable[[], None]]) -> None:
    threads = [threading.Thread(target=act) for act in acts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def ended(call: Call) -> None:
    """Kill an agent and all that it started: for tests that failed in the middle."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(call.process.pid, signal.SIGKILL)


def gone(folder: Path) -> None:
    """Remove a vault's folder, as a store that vanishes."""
    shutil.rmtree(folder)
