"""Every decoder by name, as a function of any bytes, with good bytes to begin with.

What is encrypted or signed has a target inside its envelope too: the envelope is made with the right keys around wrong
content, because a decoder must not rely on who wrote it.
"""

import hashlib
from collections.abc import Callable
from typing import NamedTuple

import msgspec

from engine.codec import Compressor, Purpose, seal, unseal
from engine.ids import digest_name, new_ulid
from engine.index import Segment
from engine.keyproviders.keyring import Keyring, RecoveryKey
from engine.ledger import Ledger, Reading
from engine.ledger import Note as LedgerNote
from engine.links import Link, Stopped, read_link, stopped_at
from engine.listing import decode
from engine.locks import Ledger as LockLedger
from engine.locks import Locked, LockPolicy, generation_of, lock_until, read_policy
from engine.moves import Move, MoveCommit
from engine.pack import HEADER_BYTES, TRAILER_BYTES, footer_range, open_footer, open_header
from engine.point import Expired, decode_commit, decode_root, root_packs
from engine.progress import Silent
from engine.session import LEASE_S, Beat, Closed, Names, Opened, Session, open_sessions, running
from engine.system import Export, newest
from engine.vault import INFO_KEY
from engine.verbs import prune, sweep
from engine.verbs.hold import Hold, holds
from engine.verbs.merge import merge_index
from engine.verbs.resolve import resolve
from engine.verbs.timeguard import Ran, TimeGuard
from tests.fuzz.samples import FOOTER, Samples
from tests.support.vaults import START

_RUN = new_ulid(START)


class Target(NamedTuple):
    """One decoder. `good` returns bytes that it takes, `run` feeds it with any; `is_json` lets fields be exchanged."""

    good: Callable[[Samples], bytes]
    run: Callable[[Samples, bytes], object]
    is_json: bool = False


def _signed(key: str | Callable[[Samples], str]) -> Callable[[Samples], bytes]:
    return lambda samples: samples.objects[key if isinstance(key, str) else key(samples)].rpartition(b"\n")[0]


def _vault_json(samples: Samples, data: bytes) -> object:
    return samples.opened(samples.copy_with(INFO_KEY, data))


def _key_set(samples: Samples, data: bytes) -> object:
    storage = samples.copy_with(samples.key_of("keys/"), None)
    storage.put(f"keys/1/{digest_name(data)}", data)
    return samples.opened(storage)


def _root_inside(samples: Samples, data: bytes) -> object:
    context = samples.root_key.encode() + hashlib.sha256(samples.root_head).digest()
    sealed = seal(samples.keys, Purpose.ROOT, data, context=context)
    return decode_root(samples.keys, samples.root_key, samples.root_head + sealed)


def _group(number: int) -> Target:
    def run(samples: Samples, data: bytes) -> object:
        return decode([data if n == number else group for n, group in enumerate(samples.groups)])

    return Target(lambda samples: samples.groups[number], run)


def _plain_footer(samples: Samples) -> bytes:
    body = samples.cipher.decrypt(FOOTER, samples.footer)
    return Compressor().unpack(body[1:], compressed=bool(body[0]), bytes_max=1 << 20)


def _footer_inside(samples: Samples, data: bytes) -> object:
    return open_footer(samples.keys, samples.head, samples.sealed_footer(data))


def _merge(samples: Samples, data: bytes) -> object:
    sealed = seal(samples.keys, Purpose.SEGMENT, data, context=b"index")
    vault = samples.opened(samples.copy_with(f"index/0/{digest_name(sealed)}", sealed))
    return merge_index(vault, Silent(), drop={"00" * 32})


def _system(samples: Samples, data: bytes) -> object:
    key = f"system/{_RUN}"
    sealed = seal(samples.keys, Purpose.SYSTEM, data, context=key.encode())
    return newest(samples.copy_with(key, sealed), samples.keys)


OBJECTS = {
    "pack-header": Target(
        lambda s: s.pack_bytes[:HEADER_BYTES],
        lambda s, data: open_header(s.keys, "x", data, kind=s.pack.kind, size=65536),
    ),
    "pack-trailer": Target(lambda s: s.pack_bytes[-TRAILER_BYTES:], lambda s, data: footer_range("x", data, 65536)),
    "pack-footer": Target(lambda s: s.footer, lambda s, data: open_footer(s.keys, s.head, data)),
    "pack-footer-inside": Target(lambda s: s.cipher.decrypt(FOOTER, s.footer), _footer_inside),
    "pack-footer-plain": Target(_plain_footer, lambda s, data: _footer_inside(s, b"\0" + data)),
    "segment": Target(lambda s: s.segment, lambda s, data: Segment("x", memoryview(data))),
    "segment-merged": Target(lambda s: s.segment, _merge),
    "sealed-record": Target(lambda s: s.root_sealed, lambda s, data: unseal(s.keys, Purpose.ROOT, data, context=b"")),
    "listing-names": _group(0),
    "listing-statics": _group(1),
    "listing-volatile": _group(2),
    "listing-extents": _group(3),
    "root": Target(lambda s: s.objects[s.root_key], lambda s, data: decode_root(s.keys, s.root_key, data)),
    "root-head": Target(lambda s: s.objects[s.root_key], lambda s, data: root_packs(s.root_key, data)),
    "root-inside": Target(lambda s: msgspec.msgpack.encode(s.root.body), _root_inside),
    "commit": Target(lambda s: s.objects[s.commit_key], lambda s, data: decode_commit(s.keys, s.commit_key, data)),
    "vault-json": Target(lambda s: s.objects[INFO_KEY], _vault_json),
    "key-set": Target(lambda s: s.objects[s.key_of("keys/")], _key_set, is_json=True),
    "recovery-key": Target(
        lambda s: RecoveryKey.generate().text().encode(), lambda s, data: RecoveryKey.parse(data.decode("latin-1"))
    ),
    "key-file": Target(
        lambda s: Keyring.generate().text().encode(), lambda s, data: Keyring.parse(data.decode("latin-1"))
    ),
    "system-export": Target(
        lambda s: msgspec.json.encode(
            Export(at=START, vault="v", tables={"t": [{"a": 1}]}, secrets={"t": {"1": {"k": "v"}}})
        ),
        _system,
        is_json=True,
    ),
}


def _note(key: str, note: msgspec.Struct, use: Callable[[Samples, str, bytes], object]) -> Target:
    """Return the target of a control object: any payload, signed."""
    return Target(lambda _: msgspec.json.encode(note), lambda samples, data: use(samples, key, data), is_json=True)


def _open_session(samples: Samples, key: str, data: bytes) -> object:
    vault = samples.noted(key, data)
    return Session.open(vault.storage, vault.keys, name="s", verb="backup", now=START)


def _is_dead(samples: Samples, key: str, data: bytes) -> object:
    vault = samples.noted(key, data)
    open_sessions(vault.storage)
    return running(vault.storage, vault.keys, "s").is_dead(START, lease_s=LEASE_S)


def _settle(samples: Samples, key: str, data: bytes) -> object:
    return resolve(samples.noted(key, data), Silent())


def _advance(samples: Samples, key: str, data: bytes) -> object:
    run = key.split("/")[1]
    return sweep.advance(samples.noted(key, data), run, Silent(), now=START, lease_s=LEASE_S)


def _prune(samples: Samples, key: str, data: bytes) -> object:
    vault = samples.noted(key, data)
    Session.open(vault.storage, vault.keys, name="s", verb="backup", now=START)
    job = prune.PruneJob(run=_RUN, started_at=START)
    return list(prune.plan(vault, job, Silent(), now=START))


def _expired(samples: Samples, key: str, data: bytes) -> object:
    return samples.noted(f"points/{'/'.join(samples.name)}/expired", data).points()


def _good_move(samples: Samples) -> bytes:
    point = "/".join(samples.name)
    return msgspec.json.encode(Move("r", "s", [point], {samples.pack.name: [samples.pack]}))


def _good_move_commit(samples: Samples) -> bytes:
    key = "moves/r/move"
    return msgspec.json.encode(MoveCommit("r", digest_name(samples.keys.sign(key, _good_move(samples)))))


def _move(samples: Samples, data: bytes) -> object:
    signed = samples.keys.sign("moves/r/move", data)
    return _moved(samples, signed, msgspec.json.encode(MoveCommit("r", digest_name(signed))))


def _move_commit(samples: Samples, data: bytes) -> object:
    return _moved(samples, samples.keys.sign("moves/r/move", _good_move(samples)), data)


def _moved(samples: Samples, move: bytes, commit: bytes) -> object:
    storage = samples.copy_with("moves/r/move", move)
    storage.put("moves/r/commit", samples.keys.sign("moves/r/commit", commit))
    vault = samples.opened(storage)
    return [vault.root(name).needed for name in vault.points()]


def _ledger(samples: Samples, key: str, data: bytes) -> object:
    vault = samples.noted(key, data)
    ledger = Ledger.load(vault.storage, vault.keys, now=START)
    ledger.tidy(objects=["a"], points=[])
    return ledger.coverage({"a": 1, "b": 2}, START)


def _time_guard(samples: Samples, key: str, data: bytes) -> object:
    return TimeGuard(samples.noted(key, data)).objection([START])


def _policy(samples: Samples, key: str, data: bytes) -> object:
    vault = samples.noted(key, data)
    policy = read_policy(vault.storage, vault.keys)
    return lock_until(policy, START) if policy else None


def _locked(samples: Samples, key: str, data: bytes) -> object:
    vault = samples.noted(key, data)
    return LockLedger.load(vault.storage, vault.keys, since=START).covers("a", START)


def _link(samples: Samples, key: str, data: bytes) -> object:
    vault = samples.noted(key, data)
    return read_link(vault.storage, vault.keys), stopped_at(vault.storage, vault.keys)


def _commit_inside(samples: Samples, key: str, data: bytes) -> object:
    vault = samples.noted(samples.commit_key, data)
    return [vault.root(name) for name in vault.points()]


_CONDEMNED = sweep.Condemned(["00" * 32], [0], [65536], ["home/x"])
_AT = f"prune/{_RUN}/"
NOTES = {
    "note-commit": Target(
        _signed(lambda s: s.commit_key), lambda s, data: _commit_inside(s, s.commit_key, data), is_json=True
    ),
    "note-vault-json": Target(
        _signed(INFO_KEY), lambda s, data: _vault_json(s, s.keys.sign(INFO_KEY, data)), is_json=True
    ),
    "note-open": _note("sessions/s/open", Opened("s", "backup", START, ["home/x"]), _is_dead),
    "note-beat": _note("sessions/s/beat", Beat(START), _is_dead),
    "note-closed": _note("sessions/s/closed", Closed("done", START), _settle),
    "note-condemned": _note(f"{_AT}condemned", _CONDEMNED, _open_session),
    "note-condemned-advance": _note(f"{_AT}condemned", _CONDEMNED, _advance),
    "note-tombstones": _note(f"{_AT}tombstones", _CONDEMNED, _open_session),
    "note-tombstones-advance": _note(f"{_AT}tombstones", _CONDEMNED, _advance),
    "note-waiting": _note(f"{_AT}waiting-x", sweep.Waiting(["s"], ["prune/x/done"]), _advance),
    "note-seen": _note("prune/seen/x", prune.Seen(["s"], ["00" * 32]), _prune),
    "note-damaged": _note("damaged/x", Names(["x"]), _open_session),
    "note-expired": _note("", Expired("x", "home", "why", START), _expired),
    "note-move": Target(_good_move, _move, is_json=True),
    "note-move-commit": Target(_good_move_commit, _move_commit, is_json=True),
    "note-ledger": _note("verify/2031-05/x", LedgerNote([Reading(START, ["a"], ["b"], ["home/x"])]), _ledger),
    "note-expiry": _note("expiry/x", Ran("x", START), _time_guard),
    "note-link": _note("replica/link", Link("far", START), _link),
    "note-stopped": _note("replica/stopped", Stopped(START), _link),
    "note-hold": _note("holds/home/x/y", Hold("home", "x", "why", START), lambda s, k, d: list(holds(s.noted(k, d)))),
    "note-lock-policy": _note("locks/policy/x", LockPolicy(30, START), _policy),
    "note-locked": _note(f"locks/{generation_of(START)}/x", Locked(["a"]), _locked),
}
TARGETS = OBJECTS | NOTES
