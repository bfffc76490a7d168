"""Spread the reading of a whole vault over many runs: which objects a run reads (engine invariant 29)."""

import datetime as dt
from collections.abc import Mapping

from blake3 import blake3

from engine.ledger import Ledger

DAYS = 30
_DAY = dt.timedelta(days=1)
_EARLY = dt.timedelta(hours=36)  # the next run may be late by half a day


def choose(
    sizes: Mapping[str, int], ledger: Ledger, now: dt.datetime, *, days: int, bytes_max: int, seed: str
) -> set[str]:
    """Return the names of the objects (name -> bytes) that wait longest, those never seen before last.

    With `days`, as many as make up the share of one day, and all that would otherwise wait longer than that until the
    next run; with `bytes_max` until so much is chosen (0 = no limit). Among equals `seed` decides, so that with a
    lost ledger, too, every run reads others.
    """

    def order(name: str) -> tuple[dt.datetime, bool, bytes]:
        return ledger.since(name) or now, name in ledger.read_at, blake3(f"{seed} {name}".encode()).digest(8)

    share = -(-sum(sizes.values()) // days) if days else 0
    chosen: set[str] = set()
    total = 0
    for name in sorted(sizes, key=order):
        overdue = (ledger.since(name) or now) <= now - days * _DAY + _EARLY
        if days and total >= share and not overdue:
            break
        if bytes_max and total >= bytes_max:
            break
        chosen.add(name)
        total += sizes[name]
    return chosen
