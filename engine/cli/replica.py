"""link, replicate, unlink: a vault that follows another."""

import os
import time
from pathlib import Path

import msgspec

from engine import halt, links, replica
from engine.cli.described import load
from engine.cli.display import Display
from engine.cli.opening import checking_input, clock, key_file, location, opener, read_key, workers
from engine.cli.options import Opening
from engine.cli.options_replica import LinkOptions, ReplicateOptions, UnlinkOptions
from engine.cli.output import COMPLETE, PARTIAL, Answer, WrongUsage, plain, problem_fields, problem_lines, size
from engine.cli.stopping import Stopping
from engine.errors import VaultReadOnly
from engine.ids import new_ulid
from engine.keyproviders.keyring import Keyring
from engine.replica import refresh_keys
from engine.runner import VaultOpener
from engine.runner import run as run_verb
from engine.storage.location import Location, open_storage
from engine.vault import Vault
from engine.verbs import replicate
from engine.verbs.replicate import AT_ONCE, Outcome, ReplicateJob

# Bytes only pass through: threads of one process do it, and it pauses at the end of a unit.
_UNIT_BYTES = 4 << 30


def place(text: str) -> Location:
    """Return the vault at the other end: a folder, or what a JSON file describes. Raises WrongUsage."""
    path = Path(text)
    if path.is_file():
        described: Location = load(path, Location)
        with checking_input():
            described.validate()
        return described
    if "://" in text:
        raise WrongUsage(f"{text} needs more than an address: describe it in a JSON file, and name that")
    return Location(url=os.path.abspath(text))


def run(options: LinkOptions | ReplicateOptions | UnlinkOptions) -> Answer:
    """Do whichever of the three was asked for."""
    if isinstance(options, LinkOptions):
        return _link(options)
    return _replicate(options) if isinstance(options, ReplicateOptions) else _unlink(options)


def _link(options: LinkOptions) -> Answer:
    source_at = place(options.source)
    source = Vault.open(open_storage(source_at), provider=Keyring.parse(read_key(options.source_key_file)))
    path = key_file(options)
    is_new = not path.exists()
    ring = Keyring.generate() if is_new else Keyring.load(path)
    if is_new:
        ring.save(path)
    storage = open_storage(location(options), create=True)
    vault = replica.link(source, storage, providers=[ring], name=source_at.url, now=clock())
    document = {"command": "link", "state": "complete", "vault": options.vault, "vault_id": vault.info.vault_id}
    text = [
        f"{options.vault} is a replica of {source_at.url}, empty so far: run replicate to fill it.",
        f"The key file {path} {'was made' if is_new else 'is used'}: keep a copy of it apart from the vault.",
        "The recovery key of the vault that it follows opens it, too.",
    ]
    return Answer(document | {"key_file": str(path), "key_file_created": is_new}, text, always=True)


def following(options: Opening, source: str) -> VaultOpener:
    """Return what opens a vault that follows the one at `source`, where one is named."""
    vault = opener(options)
    if not source:
        return vault
    return msgspec.structs.replace(vault, other=place(source))


def _replicate(options: ReplicateOptions) -> Answer:
    at_once = AT_ONCE if options.workers is None else workers(options.workers)
    vault = following(options, options.source)
    refresh_keys(vault.vault, vault.provider(), now=clock())
    began_s = time.monotonic()
    now = clock()
    job = ReplicateJob(session=new_ulid(now), started_at=now, at_once=at_once, unit_bytes=_UNIT_BYTES)
    with Stopping() as stopping, Display(stopping, quiet=options.quiet) as display, halt.heard(stopping.halt):
        outcome: Outcome = run_verb(vault, replicate, job, workers=1, progress=display, clock=clock)
    duration_s = time.monotonic() - began_s
    document = {
        "command": "replicate",
        **plain(outcome),
        "duration_s": round(duration_s, 3),
        "problems": problem_fields(outcome.problems),
    }
    healed = outcome.healed
    brought = f"{len(outcome.points):,} points brought, {outcome.packs:,} packs ({size(outcome.bytes)})"
    text = [f"{brought}, in {duration_s:.1f} s"]
    if outcome.points_left:
        text.append(f"{outcome.points_left:,} more points are to come: run it again")
    if healed.here or healed.source:
        text.append(f"healed: {len(healed.here)} packs here, {len(healed.source)} at the source")
    warnings = problem_lines(outcome.problems, outcome.problems_total)
    warnings += [f"pack {name} is damaged, and could not be healed from the other end" for name in healed.left]
    return Answer(document, text, warnings, COMPLETE if outcome.state == "complete" else PARTIAL)


def _unlink(options: UnlinkOptions) -> Answer:
    vault = opener(options).vault
    if links.read_link(vault.storage, vault.keys) is None:
        raise VaultReadOnly(f"{options.vault} is no replica: there is nothing to end")
    if not options.confirm:
        raise WrongUsage("replication that was ended can't be resumed: say that you are sure with --confirm")
    ended_at = links.stop(vault.storage, vault.keys, now=clock())
    document = {"command": "unlink", "state": "complete", "stopped_at": ended_at.isoformat()}
    return Answer(
        document, [f"Replication into {options.vault} ended on {ended_at:%Y-%m-%d %H:%M} UTC. Its points stay."]
    )
