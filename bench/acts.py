"""Acts of a measurement, each in a process of its own, so that its memory is its own; and the vaults they work on."""

import datetime as dt
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from bench.machine import peak_bytes
from engine.keyproviders.keyring import Keyring
from engine.keyproviders.spec import KeySpec
from engine.runner import VaultOpener
from engine.storage import Directory
from engine.storage.location import Location
from engine.vault import Vault

Told = dict[str, Any]


def clock() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


def new_vault(folder: Path) -> None:
    """Make a vault and its key in a folder."""
    ring = Keyring.generate()
    ring.save(folder / "key")
    Vault.create(Directory(str(folder / "vault"), create=True), providers=[ring], now=clock())


def opener(folder: Path, *, cache: str = "cache") -> VaultOpener:
    """Return what opens that vault, with an index cache in the folder too."""
    key = KeySpec.parse("keyring:", secret=(folder / "key").read_text())
    return VaultOpener(location=Location.parse(str(folder / "vault")), key=key, cache=str(folder / cache))


def told_by(program: str, act: str, folder: Path, **options: object) -> Told:
    """Do one act of `python -m PROGRAM` in a process of its own; return what it told. Raises CalledProcessError."""
    given = [f"--{name}={value}" for name, value in options.items()]
    command = [sys.executable, "-m", program, f"--act={act}", f"--folder={folder}", *given]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    told: Told = json.loads(done.stdout)
    print(f"{act:24} {told['seconds']:8.2f} s {told['peak_bytes'] / 2**20:6.0f} MiB", flush=True)
    return told


def do(act: Callable[[], Any]) -> None:
    """Do one act here and tell as JSON what it cost, and its outcome.

    `own_cpu_s` is the processor time of this process alone, `cpu_s` that of its workers too; `peak_bytes` is the memory
    of the largest of them.
    """
    begin_s, own_s, workers_s = time.perf_counter(), _used_s(resource.RUSAGE_SELF), _used_s(resource.RUSAGE_CHILDREN)
    outcome = act()
    seconds = time.perf_counter() - begin_s
    own_s, workers_s = _used_s(resource.RUSAGE_SELF) - own_s, _used_s(resource.RUSAGE_CHILDREN) - workers_s
    workers = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    told = {
        "seconds": seconds,
        "cpu_s": own_s + workers_s,
        "own_cpu_s": own_s,
        "peak_bytes": max(peak_bytes(), workers),
        "outcome": msgspec.to_builtins(outcome),
    }
    sys.stdout.write(json.dumps(told))


def _used_s(who: int) -> float:
    used = resource.getrusage(who)
    return used.ru_utime + used.ru_stime
