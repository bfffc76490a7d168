"""The vault's protocol as a model (vault-format, section 6), explored in every order of its steps.

The store is a set of facts; each process is a state and a function from (facts, state) to what may come next. A process
that is never given another turn has been killed, so every crash is explored, too. There is no clock: a session may be
taken for dead at any moment. `broken` names steps that are left out; each of them must lead to a violation.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

Fact = tuple[Any, ...]
Facts = frozenset[Fact]
State = tuple[Any, ...]
Step = Callable[[Facts, State], Iterator[tuple[Facts, State]]]
OLD = "old"
NONE: frozenset[Any] = frozenset()


class Process(NamedTuple):
    """One actor of the model."""

    name: str
    start: State
    step: Step


class Checked(NamedTuple):
    """What an exploration found: `violation` is empty when there is none."""

    states: int
    violation: str


def of(facts: Facts, kind: str) -> list[Fact]:
    """Return the facts of one kind."""
    return [fact for fact in facts if fact[0] == kind]


def named(facts: Facts, kind: str) -> frozenset[Any]:
    """Return the second parts of the facts of one kind."""
    return frozenset(fact[1] for fact in of(facts, kind))


def needed(facts: Facts) -> frozenset[Any]:
    """Return the packs that any root needs, committed or not."""
    return frozenset(pack for fact in of(facts, "root") for pack in fact[2])


def open_sessions(facts: Facts) -> frozenset[Any]:
    """Return the sessions that have neither ended nor been fenced."""
    return named(facts, "open") - named(facts, "closed") - named(facts, "fence")


def writer(name: str, broken: frozenset[str]) -> Process:
    """A backup: open, what is forbidden, the index, packs, rows, root, fence?, commit, closed."""

    def step(facts: Facts, state: State) -> Iterator[tuple[Facts, State]]:
        at, forbidden, usable, refs = state
        if at == "begin":
            opened = facts if "open" in broken else facts | {("open", name)}
            yield opened, ("forbidden", forbidden, usable, refs)
        elif at == "forbidden":
            bad = frozenset(p for kind in ("condemned", "tombs") for fact in of(facts, kind) for p in fact[2])
            yield facts, ("index", NONE if "forbidden" in broken else bad, usable, refs)
        elif at == "index":
            yield facts, ("pack", forbidden, named(facts, "row") - forbidden, refs)
        elif at == "pack":
            for pack in usable:
                yield facts, ("root", forbidden, usable, frozenset({pack}))
            yield facts | {("pack", f"new-{name}")}, ("row", forbidden, usable, frozenset({f"new-{name}"}))
        elif at == "row":
            yield facts | {("row", f"new-{name}")}, ("root", forbidden, usable, refs)
        elif at == "root":
            yield facts | {("root", name, refs)}, ("check", forbidden, usable, refs)
        elif at == "check":
            if name in open_sessions(facts) or "check" in broken or "open" in broken:
                yield facts, ("commit", forbidden, usable, refs)
            else:
                yield facts | {("closed", name, "aborted")}, ("failed", forbidden, usable, refs)
        elif at == "commit":
            yield facts | {("commit", name)}, ("close", forbidden, usable, refs)
        elif at == "close":
            yield facts | {("closed", name, "committed")}, ("done", forbidden, usable, refs)

    return Process(f"writer {name}", ("begin", NONE, NONE, NONE), step)


def condemner(run: str, broken: frozenset[str]) -> Process:
    """The first half of a prune: packs, roots, condemned, then the sessions to wait for."""

    def step(facts: Facts, state: State) -> Iterator[tuple[Facts, State]]:
        at, packs = state
        if at == "packs":
            yield facts, ("roots", named(facts, "pack"))
        elif at == "roots":
            yield facts, ("condemn" if packs - needed(facts) else "nothing", packs - needed(facts))
        elif at == "condemn":
            if "wait first" in broken:
                facts |= {("waiting", run, open_sessions(facts))}
                yield facts, ("condemn late", packs)
            else:
                yield facts | {("condemned", run, packs)}, ("wait", packs)
        elif at == "condemn late":
            yield facts | {("condemned", run, packs)}, ("over", packs)
        elif at == "wait":
            yield facts | {("waiting", run, open_sessions(facts))}, ("over", packs)

    return Process(f"condemner {run}", ("packs", NONE), step)


def sweeper(run: str, name: str, broken: frozenset[str]) -> Process:
    """The second half, by whoever comes by: barrier, claim, second look, tombstones, delete, done, tidy."""

    def step(facts: Facts, state: State) -> Iterator[tuple[Facts, State]]:
        at, wanted, doomed = state
        condemned = frozenset(p for fact in of(facts, "condemned") if fact[1] == run for p in fact[2])
        tombs = [fact[2] for fact in of(facts, "tombs") if fact[1] == run]
        if at == "begin":
            if tombs:
                yield facts, ("delete", wanted, tombs[0])
            elif condemned and run not in named(facts, "claim"):
                noted = [fact[2] for fact in of(facts, "waiting") if fact[1] == run]
                wait_for = open_sessions(facts).intersection(*noted)
                yield facts, ("barrier", NONE if "barrier" in broken else wait_for, doomed)
        elif at == "barrier":
            left = wanted & open_sessions(facts)
            if not left or "fence" in broken:
                yield facts, ("claim", NONE, doomed)
            for session in left:
                yield facts | {("fence", session)}, state
        elif at == "claim":
            yield facts | {("claim", run, name)}, ("alone", wanted, doomed)
        elif at == "alone":
            others = {fact[2] for fact in of(facts, "claim") if fact[1] == run} - {name}
            if (not others or "claim" in broken) and condemned and not tombs:
                yield facts, ("look", wanted, doomed)
            else:
                yield facts - {("claim", run, name)}, ("begin", NONE, NONE)
        elif at == "look":
            yield facts, ("tombs", wanted, condemned - (NONE if "second look" in broken else needed(facts)))
        elif at == "tombs":
            kept = facts if "tombstones" in broken else facts | {("tombs", run, doomed)}
            yield kept, ("delete", wanted, doomed)
        elif at == "delete":
            left = sorted(doomed & named(facts, "pack"))
            if left:
                yield facts - {("pack", left[0])}, state
            else:
                yield facts | {("done", run)}, ("tidy", wanted, doomed)
        elif at == "tidy":
            yield frozenset(fact for fact in facts if fact[:2] != ("condemned", run)), ("over", wanted, doomed)

    return Process(f"sweeper {name} of {run}", ("begin", NONE, NONE), step)


def expirer(point: str) -> Process:
    """Expiry of one point: `expired`, then the commit goes, then the root."""

    def step(facts: Facts, state: State) -> Iterator[tuple[Facts, State]]:
        if state == ("mark",):
            yield facts | {("expired", point)}, ("commit",)
        elif state == ("commit",):
            yield facts - {("commit", point)}, ("root",)
        elif state == ("root",):
            yield frozenset(fact for fact in facts if fact[:2] != ("root", point)), ("over",)

    return Process(f"expiry of {point}", ("mark",), step)


def resolver(broken: frozenset[str]) -> Process:
    """Settles a prepared point whose writer died, and forgets sessions that are over."""

    def step(facts: Facts, state: State) -> Iterator[tuple[Facts, State]]:
        at, point, refs, condemned = state
        if at == "points":
            for fact in of(facts, "root"):
                if fact[1] not in named(facts, "commit") and fact[1] not in named(facts, "expired"):
                    yield facts, ("session", fact[1], fact[2], NONE)
        elif at == "session":
            closed = {fact[2] for fact in of(facts, "closed") if fact[1] == point}
            running = point in open_sessions(facts)
            if running and "resolve running" not in broken:
                yield facts, ("over", point, refs, NONE)
            elif "aborted" in closed or point not in named(facts, "open") or "resolve running" in broken:
                yield facts, ("again", point, refs, NONE)
            elif point in named(facts, "fence"):
                yield facts, ("condemned", point, refs, NONE)
        elif at == "again":
            if point not in named(facts, "commit"):
                yield frozenset(fact for fact in facts if fact[:2] != ("root", point)), ("over", point, refs, NONE)
        elif at == "condemned":
            bad = frozenset(p for kind in ("condemned", "tombs") for fact in of(facts, kind) for p in fact[2])
            yield facts, ("packs", point, refs, NONE if "commit condemned" in broken else bad)
        elif at == "packs":
            if refs - named(facts, "pack"):
                yield facts, ("again", point, refs, condemned)
            elif not refs & condemned:
                yield facts, ("bless", point, refs, condemned)
        elif at == "bless":
            yield facts | {("commit", point)}, ("over", point, refs, condemned)

    return Process("resolver", ("points", "", NONE, NONE), step)


def violation(facts: Facts, processes: Iterable[Process], states: Iterable[State]) -> str:
    """Say what is wrong: a visible point without a pack, or a reported success that is not there."""
    visible = {f[1]: f[2] for f in of(facts, "root") if ("commit", f[1]) in facts and ("expired", f[1]) not in facts}
    for point, refs in visible.items():
        if lost := refs - named(facts, "pack"):
            return f"{point} is committed and misses {sorted(lost)}"
    for process, state in zip(processes, states, strict=True):
        kind, _, name = process.name.partition(" ")
        if kind == "writer" and state[0] in ("close", "done") and name not in visible:
            return f"{name} was reported as done and is not visible"
    return ""


def explore(processes: list[Process], *, states_max: int) -> Checked:
    """Visit every state that any order of the processes' steps can reach, breadth first."""
    facts: Facts = frozenset({("pack", OLD), ("row", OLD), ("root", OLD, frozenset({OLD})), ("commit", OLD)})
    begin = (facts, tuple(process.start for process in processes))
    seen, queue = {begin}, deque([begin])
    while queue:
        facts, states = queue.popleft()
        if found := violation(facts, processes, states):
            return Checked(len(seen), found)
        for number, process in enumerate(processes):
            for after, state in process.step(facts, states[number]):
                following = (after, (*states[:number], state, *states[number + 1 :]))
                if following not in seen:
                    seen.add(following)
                    queue.append(following)
        if len(seen) > states_max:
            return Checked(len(seen), "")
    return Checked(len(seen), "")
