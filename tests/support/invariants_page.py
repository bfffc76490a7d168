"""Write docs/invariants.md: what the engine promises, and which tests prove it, read from the `invariant` markers.

Run `make invariants` after adding or renaming a test that carries one.
"""

from tests.support.markers import ROOT, Marker

PAGE = ROOT / "docs" / "invariants.md"
PROMISES = {
    1: "Whatever a committed point needs is in the store, from its commit until it expires.",
    2: "A backup says that it succeeded exactly when its point is durable; when it can't know, it says that.",
    3: "No key is ever written twice with different bytes, and no name that was condemned is used again.",
    4: "A pack is deleted only after condemnation, a barrier for open sessions, a second look and tombstones.",
    5: "No session refers to a pack that was condemned before it opened.",
    6: "A session that was fenced never makes a point visible.",
    7: "Safety rests on no clock; a wrong one costs time or another try.",
    8: "No key and nonce come together twice, and no salt serves two objects.",
    9: "Nothing is used that was not authenticated: damage of any byte raises, and no decoder takes much memory.",
    10: "A chunk is what its id says, which is checked whenever it is read.",
    11: "Index, copies of it and ledger may be lost: what comes back answers the same.",
    12: "A profile and a key cut the same bytes at the same places, on every machine and for ever.",
    13: "Writing goes pack, segment, root, commit; deleting goes the other way.",
    14: "A restored tree is the tree that was backed up, with all that belongs to it.",
    15: "A restore touches nothing outside its folder, whatever the listing or the folder says.",
    16: "An incremental backup says what one that reads everything says.",
    17: "When points and locks are over, prunes leave the vault itself and nothing else.",
    18: "A prune does nothing in a vault that does not fit together, or that only a newer program understands.",
    19: "Locks last at least as long as every point that needs the object, and are never shortened.",
    20: "A delete names versions, and a key that the store refused to delete counts as still there.",
    21: "A replica is whole at every moment: each point that is committed there can be restored there.",
    22: "What is deleted at the source stays in the replica.",
    23: "The catalogue and the index come back from the bucket alone, twice alike.",
    24: "Without a data key its packs stay closed; counting and scrubbing need no key at all.",
    25: "Rotating keys rewrites no data and loses none, for any key that is still in force.",
    26: "The bucket shows no content, name, chunk id or chunk length.",
    27: "Memory does not grow with the source.",
    28: "No clock and no rule expires more than the limit without somebody's consent.",
    29: "Every damaged byte is found within its period, and what sources still have is stored again.",
    30: "Vaults of every released format open for ever; what only a newer program understands is refused by name.",
}
MARKER = Marker(
    "invariant",
    lambda name: type(name) is int and name in PROMISES,
    takes=f"an invariant marker takes numbers from 1 to {len(PROMISES)}",
)
OPENING = """# The engine's promises and their proofs

A test that proves a promise of the engine carries the marker `@pytest.mark.invariant(4)`; this page lists them and is
written by `make invariants`. Run one promise's tests with
`python -m tests.support.invariants_page 4 | xargs python -m pytest`.

| promise | | proven by |
|---|---|---|
"""


def page(found: dict[str, set[str]]) -> str:
    """Return the page's text for the tests of each promise."""
    return OPENING + "".join(f"| {n} | {text} | {_proof(n, found)} |\n" for n, text in PROMISES.items())


def unproven(found: dict[str, set[str]]) -> list[int]:
    """Return the promises that no test proves."""
    return [number for number in PROMISES if not found.get(str(number))]


def _proof(number: int, found: dict[str, set[str]]) -> str:
    return "<br>".join(f"`{test}`" for test in sorted(found.get(str(number), ())))


def main(arguments: list[str]) -> str:
    """Write the page; with numbers, return their tests instead, one a line."""
    found = MARKER.collect()
    if arguments:
        return "\n".join(sorted({test for number in arguments for test in found.get(number, ())}))
    PAGE.write_text(page(found))
    return f"{PAGE.relative_to(ROOT)}: {len(PROMISES) - len(unproven(found))} of {len(PROMISES)} promises"


if __name__ == "__main__":
    import sys

    sys.stdout.write(main(sys.argv[1:]) + "\n")
