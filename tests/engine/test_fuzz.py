"""Every decoder, fed with anything, raises an engine error and takes no memory to speak of (engine invariant 9).

`python -m tests.fuzz NAME` feeds the same decoders for longer, led by what of them was reached.
"""

import copy
import subprocess
import sys
import tracemalloc
from collections.abc import Callable

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.errors import EngineError
from engine.session import open_sessions
from tests.fuzz.samples import Samples
from tests.fuzz.targets import TARGETS
from tests.support.vaults import entries, pruned, rebuilt, verified

pytestmark = pytest.mark.invariant(9)
MEMORY_MAX = 32 << 20
STRANGERS = [
    "keys/x",
    "keys/x/y",
    "keys/1/2/3",
    "points/x",
    "points/a/b/root",
    "points/a/b/c/d",
    "index/x",
    "sessions/x",
    "sessions/x/y/z",
    "moves/x",
    "moves/x/y/z",
    "verify/x",
    "verify/x/y/z",
    "locks/x",
    "holds/x",
    "expiry/x/y",
    "prune/x",
    "prune/seen/x/y",
    "system/x",
]
FUZZ = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
TIMES = st.sampled_from(["2031-01-01T00:00:00", "0001-01-01T00:00:00Z", "9999-12-31T23:59:59.999999+00:00", "now"])
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.sampled_from([-1, 0, 1, 2**63, -(2**63), 2**64, 1e300])
    | st.text(max_size=9)
    | TIMES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=5,
)


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Samples:
    return Samples(tmp_path_factory.mktemp("fuzz") / "home")


@st.composite
def damaged(draw: st.DrawFn, good: bytes) -> bytes:
    """Draw random bytes, or `good` with some bytes changed, removed, doubled or put in."""
    if draw(st.integers(0, 3)) == 0:
        return draw(st.binary(max_size=300))
    data = bytearray(good)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(len(data) - 1, 0)))
        change = draw(st.sampled_from(["set", "set", "cut", "drop", "insert", "double", "ones"]))
        if change == "set" and data:
            data[at] = draw(st.integers(0, 255))
        elif change == "cut":
            del data[at:]
        elif change == "drop":
            del data[at : at + draw(st.integers(1, 8))]
        elif change == "insert":
            data[at:at] = draw(st.binary(min_size=1, max_size=8))
        elif change == "double":
            data += data[at:]
        else:
            data[at : at + 4] = b"\xff" * len(data[at : at + 4])
    return bytes(data)


@st.composite
def bent(draw: st.DrawFn, good: bytes) -> bytes:
    """Draw a document with some of its values, at any depth, exchanged for others."""
    document = msgspec.json.decode(good)
    for _ in range(draw(st.integers(1, 3))):
        inside = document
        while True:
            places = list(inside) if isinstance(inside, dict) else list(range(len(inside)))
            if not places:
                break
            place = draw(st.sampled_from(places))
            if isinstance(inside[place], dict | list) and inside[place] and draw(st.booleans()):
                inside = inside[place]
                continue
            is_time = isinstance(inside[place], str) and inside[place][:2] == "20"
            inside[place] = draw(TIMES | VALUES if is_time else VALUES)
            break
    return msgspec.json.encode(document)


def survives(call: Callable[[], object]) -> None:
    """Run a decoder: it may succeed or raise an engine error, in little memory."""
    tracemalloc.start()
    try:
        call()
    except EngineError:
        pass
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < MEMORY_MAX


@pytest.mark.parametrize("name", TARGETS)
@FUZZ
@given(data=st.data())
def test_a_decoder_survives_anything(samples: Samples, name: str, data: st.DataObject):
    target = TARGETS[name]
    good = target.good(samples)
    drawn = data.draw(bent(good) if target.is_json and data.draw(st.booleans()) else damaged(good))
    survives(lambda: target.run(samples, drawn))


@pytest.mark.parametrize("name", TARGETS)
def test_a_decoder_takes_what_is_good(samples: Samples, name: str):
    """A target that refused its own good bytes would prove nothing about the others."""
    target = TARGETS[name]
    try:
        target.run(samples, target.good(samples))
    except EngineError:
        assert name == "sealed-record"  # it is sealed for its place


@pytest.mark.parametrize("key", STRANGERS)
def test_a_strangers_object_under_a_known_prefix_does_no_harm(samples: Samples, key: str):
    bench = copy.copy(samples.bench)
    bench.storage = samples.copy_with(key, b"stranger")
    vault = bench.open()
    assert vault.points() == [samples.name]
    assert list(entries(vault, samples.name))
    assert open_sessions(vault.storage) == []
    assert vault.moves.committed == []
    # A root that nobody can read may be of a backup that runs: then nothing is deleted.
    assert pruned(bench, dry_run=True).state == ("failed" if key.endswith("/root") else "complete")
    outcome = verified(bench, "structure")
    assert (outcome.lost, outcome.census.points) == ([], 1)
    assert rebuilt(bench).rows


def test_the_coverage_guided_fuzzer_runs_where_it_is_installed():
    pytest.importorskip("atheris", reason="atheris is an option: python -m pip install atheris")
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz", "note-ledger", "-runs=200"], capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    assert "Done 200 runs" in done.stderr
