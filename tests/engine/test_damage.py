"""Damage is never taken for data: whatever byte rots, reading raises an engine error or gives what was stored.

Engine invariant 9. The vault is small, so that every byte that means something can be damaged in turn.
"""

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from engine.errors import EngineError
from engine.listing import decode
from engine.pack import TRAILER_BYTES, footer_range
from engine.storage import Memory
from engine.verbs.inspect import scrub
from tests.support.vaults import Bench, contents, entries, verified, write_files

pytestmark = pytest.mark.slow

KINDS = ("vault.json", "keys/", "index/", "packs/", "meta/", "root", "commit", "sessions/")
PADDING_STEP = 1009

Everything = list[tuple[str, object]]


def read_everything(bench: Bench) -> Everything:
    """Open the vault, list its points, read every entry and every file."""
    vault = bench.open()
    found: Everything = []
    for name in vault.points():
        found.append((name.point, (list(entries(vault, name)), contents(vault, name))))
    return found


class Patient:
    """A vault whose objects are damaged one at a time and healed again."""

    def __init__(self, folder: Path) -> None:
        self.bench = Bench()
        write_files(folder, {"a/one": b"first content, " * 20, "a/two": bytes(range(256)), "b": b"x", "empty": b""})
        self.bench.back_up(folder)
        write_files(folder, {"c": b"second run"})
        self.bench.back_up(folder)
        assert isinstance(self.bench.storage, Memory)
        self.storage = self.bench.storage
        self.storage.write_once = False
        self.truth = read_everything(self.bench)
        self.objects = self.bench.objects()

    def of_kind(self, kind: str) -> list[str]:
        return [key for key in self.objects if key.startswith(kind) or key.endswith("/" + kind)]

    def outcome(self, key: str, data: bytes) -> str:
        """Damage, read all, heal; return raised or same. Anything else fails the test that asks."""
        self.storage.put(key, data)
        try:
            return "same" if read_everything(self.bench) == self.truth else "OTHER DATA"
        except EngineError:
            return "raised"
        finally:
            self.storage.put(key, self.objects[key])
            self.storage.log.clear()

    def meaningful(self, key: str) -> list[int]:
        """Return the positions to damage: all, but of a pack's padding only some."""
        data = self.objects[key]
        if not key.startswith(("packs/", "meta/")):
            return list(range(len(data)))
        start, length = footer_range(key, data[-TRAILER_BYTES:], len(data))
        padding = range(start + length, len(data) - TRAILER_BYTES)
        return [at for at in range(len(data)) if at not in padding or not at % PADDING_STEP]


@pytest.fixture(scope="module")
def patient(tmp_path_factory: pytest.TempPathFactory) -> Patient:
    return Patient(tmp_path_factory.mktemp("damage") / "home")


@pytest.fixture(scope="module")
def without_index(tmp_path_factory: pytest.TempPathFactory) -> Patient:
    """The same with no index, so that headers, trailers and footers are all that tells where chunks lie."""
    patient = Patient(tmp_path_factory.mktemp("no-index") / "home")
    patient.storage.delete(patient.of_kind("index/"))
    patient.objects = patient.bench.objects()
    return patient


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ (1 << at % 8)]) + data[at + 1 :]


def cuts(data: bytes) -> list[int]:
    return sorted({0, 1, 4, 16, 60, 128, len(data) // 2, len(data) - 33, len(data) - 1} & set(range(len(data))))


@pytest.mark.invariant(9)
@pytest.mark.parametrize("kind", KINDS)
def test_a_flipped_bit_anywhere_raises_or_changes_nothing(patient: Patient, kind: str):
    outcomes = set()
    for key in patient.of_kind(kind):
        for at in patient.meaningful(key):
            outcomes.add(patient.outcome(key, flipped(patient.objects[key], at)))
    expected = {"index/": {"same"}, "sessions/": {"same"}, "packs/": {"raised", "same"}, "meta/": {"raised", "same"}}
    assert outcomes == expected.get(kind, {"raised"})


@pytest.mark.invariant(9)
@pytest.mark.parametrize("kind", ["packs/", "meta/"])
def test_a_flipped_bit_raises_or_changes_nothing_when_footers_replace_the_index(without_index: Patient, kind: str):
    outcomes = set()
    for key in without_index.of_kind(kind):
        for at in without_index.meaningful(key):
            outcomes.add(without_index.outcome(key, flipped(without_index.objects[key], at)))
    assert outcomes == {"raised", "same"}


@pytest.mark.invariant(9)
@pytest.mark.parametrize("kind", KINDS)
def test_an_object_cut_short_raises_or_changes_nothing(patient: Patient, without_index: Patient, kind: str):
    for one in (patient, without_index):
        outcomes = {
            one.outcome(key, one.objects[key][:end]) for key in one.of_kind(kind) for end in cuts(one.objects[key])
        }
        assert outcomes <= {"raised", "same"}


@pytest.mark.invariant(9)
@pytest.mark.parametrize("kind", KINDS)
def test_an_object_that_grew_or_holds_another_objects_bytes_raises_or_changes_nothing(patient: Patient, kind: str):
    for key in patient.of_kind(kind):
        others = [data for other, data in patient.objects.items() if other != key]
        for data in [patient.objects[key] + b"\0", patient.objects[key] * 2, *others]:
            assert patient.outcome(key, data) in ("raised", "same"), key


@pytest.mark.invariant(9)
@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_object_raises_or_changes_nothing(patient: Patient, kind: str):
    for key in patient.of_kind(kind):
        patient.storage.delete([key])
        try:
            found = read_everything(patient.bench)
        except EngineError:
            continue
        finally:
            patient.storage.put(key, patient.objects[key])
        if kind in ("root", "commit"):
            assert found == [point for point in patient.truth if point[0] != key.split("/")[2]]
        else:
            assert found == patient.truth


@pytest.mark.invariant(29)
@pytest.mark.parametrize("kind", ["packs/", "meta/", "index/", "keys/"])
def test_scrubbing_finds_every_flipped_bit_of_a_named_object_padding_included(patient: Patient, kind: str):
    for key in patient.of_kind(kind):
        data = bytearray(patient.objects[key])
        for at in range(0, len(data), 3 if len(data) > 4096 else 1):
            data[at] ^= 1 << at % 8
            patient.storage.put(key, data)
            assert scrub(patient.storage, key) is not None, f"{key} at {at}"
            data[at] ^= 1 << at % 8
        patient.storage.put(key, patient.objects[key])
        patient.storage.log.clear()


def places(patient: Patient, key: str) -> Iterator[int]:
    """Yield one position in each part of an object."""
    size = len(patient.objects[key])
    yield from (at for at in (0, 4, 40, 70, 130, size // 2, size - 30, size - 14, size - 1) if 0 <= at < size)


@pytest.mark.invariant(29)
@pytest.mark.parametrize(
    ("level", "kinds"),
    [
        ("inventory", ("root", "commit")),
        ("structure", ("root", "commit", "index/", "sessions/")),
        ("scrub", ("root", "commit", "index/", "packs/", "meta/", "keys/")),
        ("content", ("root", "commit", "index/", "packs/", "meta/", "sessions/")),
    ],
)
def test_verify_finds_the_damage_that_its_level_promises(patient: Patient, level: str, kinds: tuple[str, ...]):
    for kind in kinds:
        for key in patient.of_kind(kind):
            for at in list(places(patient, key))[:: 1 if kind in ("packs/", "root") else 3]:
                patient.storage.put(key, flipped(patient.objects[key], at))
                try:
                    outcome = verified(patient.bench, level)  # type: ignore[arg-type] # one of the levels
                except EngineError:
                    assert kind == "keys/"  # its keys don't open: nothing can be verified, and the error says so
                    continue
                finally:
                    patient.storage.put(key, patient.objects[key])
                assert outcome.state == "failed", f"{key} at {at}"
                assert key in {finding.object for finding in outcome.findings}
        patient.storage.delete([key for key in patient.bench.objects() if key not in patient.objects])


def test_random_groups_are_no_listing():
    rng = random.Random(1)
    make: Callable[[], bytes] = lambda: rng.randbytes(rng.choice([0, 3, 4, 40, 400]))  # noqa: E731 # a line is enough
    for _ in range(500):
        with pytest.raises(EngineError):
            decode([make() for _ in range(4)])
